"""The four experiments of the paper, small, from the commands that the workflow files give."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.tables import Store
from pipeline.tiny.paint import render
from pipeline.tiny.scenes import draw_scene
from tests.conftest import aigi
from tests.learned.conftest import TEXT, pictures
from tests.learned.release import write_release

pytestmark = pytest.mark.slow

SMALL = (
    "train.weights={}", "train.lambdas=[0.004, 0.03]", "train.steps=60", "train.batch=4",
    "train.crop=64", "train.shuffle_buffer=32", "train.learning_rate=0.002",
    "train.precision=float32", "train.validation_pictures=2", "train.validate_every=60",
)  # fmt: skip
SIZES = "{{kind: catc, name: {name}, n: 8, m: 20, hidden: 16, heads: 2, text: {text}}}"


def run(workflow: str, *settings: str) -> str:
    """Run a workflow file; what it said."""
    done = aigi("run", f"workflows/{workflow}", *(a for s in settings for a in ("--set", s)))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A release of generated pictures, one mark among them, and one of photos."""
    folder = tmp_path_factory.mktemp("experiments")
    drawn = [render(draw_scene(n), 96, 96, n) for n in range(20)]
    generated = write_release(
        folder / "generated",
        {("sdxl", s): p for s, p in (
            ("train", drawn[:12]), ("validation", drawn[12:14]), ("test", drawn[14:]),
        )},
    )  # fmt: skip
    photos = write_release(
        folder / "photos",
        {("photos", s): pictures(count, 96, 96, seed) for s, count, seed in (
            ("train", 12, 0), ("validation", 2, 7), ("test", 6, 8),
        )},
    )  # fmt: skip
    return generated, photos


def labels(run_directory: Path) -> dict[str, int]:
    """Measurements by codec, none of which failed."""
    rows = Store(str(run_directory)).read_all("measurements").to_pylist()
    assert all(row["error"] is None for row in rows)
    names = [row["codec"] for row in rows]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def test_text_on_and_off(places: tuple[Path, Path], tmp_path: Path) -> None:
    generated, _ = places
    data = (f"run={tmp_path / 'train'}", f"train.data.place={generated}", *SMALL)
    run("train.yaml", *data, "train.network=" + SIZES.format(name="catc", text=str(TEXT)))
    run("train.yaml", *data, "train.network=" + SIZES.format(name="catc-no-text", text="null"))
    with_text, without = (f"{tmp_path}/train/train/{n}-mse-*" for n in ("catc", "catc-no-text"))
    page = run(
        "benchmark_text.yaml", f"run={tmp_path / 'run'}", f"benchmark.pictures.place={generated}",
        f"benchmark.codecs.0.models=[{with_text}]", f"benchmark.codecs.1.models=[{with_text}]",
        f"benchmark.codecs.2.models=[{without}]", "benchmark.strips=null",
    )  # fmt: skip
    assert labels(tmp_path / "run") == {"text": 12, "empty-prompts": 12, "no-text": 12}
    assert "benchmark/README.md" in page
    rows = Store(str(tmp_path / "run")).read_all("measurements").to_pylist()
    spent = {
        name: sum(r["prompt_bytes"] for r in rows if r["codec"] == name)
        for name in labels(tmp_path / "run")
    }
    assert spent["text"] > 10 * spent["empty-prompts"]


def test_photos_and_generated_pictures(places: tuple[Path, Path], tmp_path: Path) -> None:
    generated, photos = places
    net = "train.network=" + SIZES.format(name="catc-no-text", text="null")
    run("train.yaml", f"run={tmp_path / 'photos'}", f"train.data.place={photos}", *SMALL, net)
    run(
        "train.yaml", f"run={tmp_path / 'tuned'}", f"train.data.place={generated}", *SMALL, net,
        f"train.init={tmp_path / 'photos' / 'train'}",
    )  # fmt: skip
    for name, place in (("generated", generated), ("photos-too", photos)):
        run(
            "benchmark_domain.yaml", f"run={tmp_path / name}", f"benchmark.pictures.place={place}",
            f"benchmark.codecs.0.models=[{tmp_path}/photos/train/catc-no-text-mse-*]",
            f"benchmark.codecs.1.models=[{tmp_path}/tuned/train/catc-no-text-mse-*]",
            "benchmark.codecs.2=jpeg", "benchmark.strips=null",
        )  # fmt: skip
        assert labels(tmp_path / name) == {"photos": 12, "tuned": 12, "jpeg": 42}
    # More training on one kind helps on that kind.
    rows = Store(str(tmp_path / "generated")).read_all("measurements").to_pylist()
    quality = {
        name: sum(r["psnr"] for r in rows if r["codec"] == name) for name in ("photos", "tuned")
    }
    assert quality["tuned"] > quality["photos"]
