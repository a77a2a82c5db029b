"""The four experiments of the paper, small, from the commands that the workflow files give."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.store import Store
from tests.conftest import aigi
from tests.learned.conftest import TEXT, pictures
from tests.training.release import write_release

pytestmark = pytest.mark.slow

SMALL = (
    "train.weights={}", "train.lambdas=[0.004, 0.03]", "train.steps=60", "train.batch=4",
    "train.crop=64", "train.shuffle_buffer=32", "train.learning_rate=0.002",
    "train.precision=float32", "train.validation_pictures=2", "train.validate_every=60",
)  # fmt: skip
TEST = 18
"""Test pictures of the demo's release."""
SIZES = "{{kind: catc, name: {name}, n: 8, m: 20, hidden: 16, heads: 2, text: {text}}}"


def run(workflow: str, *settings: str) -> str:
    """Run a workflow file; what it said."""
    done = aigi("run", f"workflows/{workflow}", *(a for s in settings for a in ("--set", s)))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's release: five sources, marks on some SDXL pictures."""
    folder = tmp_path_factory.mktemp("experiments") / "demo"
    done = aigi("demo", "--out", str(folder), "--set", "train=null")
    assert done.returncode == 0, done.stderr
    return folder / "release"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of other pictures than generated ones."""
    return write_release(
        tmp_path_factory.mktemp("photos"),
        {("photos", s): pictures(count, 96, 96, seed) for s, count, seed in (
            ("train", 12, 0), ("validation", 2, 7), ("test", 6, 8),
        )},
    )  # fmt: skip


def labels(run_directory: Path) -> dict[str, int]:
    """Measurements by codec, none of which failed."""
    rows = Store(str(run_directory)).read_all("measurements").to_pylist()
    assert all(row["error"] is None for row in rows)
    names = [row["codec"] for row in rows]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def test_all_codecs_by_source(generated: Path, tmp_path: Path) -> None:
    place = f"benchmark.pictures.place={generated}"
    page = run("benchmark.yaml", f"run={tmp_path}", place, "benchmark.pictures.limit=2")
    counts = labels(tmp_path)
    assert {"jpeg", "webp", "avif", "jpeg2000", "catc-small"} <= counts.keys()
    rows = Store(str(tmp_path)).read_all("measurements").to_pylist()
    assert {row["source"] for row in rows} == {"sd21-base", "sd21", "sdxl", "mj52", "mod"}
    assert "benchmark/README.md" in page
    for codec in counts:
        mine = {(row["image_id"], row["quality"]) for row in rows if row["codec"] == codec}
        assert len(mine) == counts[codec]


def test_with_and_without_a_mark(generated: Path, tmp_path: Path) -> None:
    place = f"benchmark.pictures.place={generated}"
    few = "benchmark.codecs=[jpeg, webp, avif]"
    run("benchmark_watermark.yaml", f"run={tmp_path}", place, few, "benchmark.anchor=jpeg")
    labels(tmp_path)
    rows = Store(str(tmp_path)).read_all("measurements").to_pylist()
    marked = [row for row in rows if row["watermark"] != "none"]
    assert marked and len(marked) < len(rows)
    assert all((row["watermark_accuracy"] is not None) == (row in marked) for row in rows)
    high = [row["watermark_accuracy"] for row in marked if row["bpp"] > 1.5]
    low = [row["watermark_accuracy"] for row in marked if row["bpp"] < 0.4]
    assert sum(high) / len(high) > sum(low) / len(low), "a codec that keeps more keeps the mark"


def test_text_on_and_off(generated: Path, tmp_path: Path) -> None:
    data = (f"run={tmp_path / 'train'}", f"train.data.place={generated}", *SMALL)
    run("train.yaml", *data, "train.network=" + SIZES.format(name="catc", text=str(TEXT)))
    run("train.yaml", *data, "train.network=" + SIZES.format(name="catc-no-text", text="null"))
    with_text, without = (f"{tmp_path}/train/train/{n}-mse-*" for n in ("catc", "catc-no-text"))
    page = run(
        "benchmark_text.yaml", f"run={tmp_path / 'run'}", f"benchmark.pictures.place={generated}",
        f"benchmark.codecs.0.models=[{with_text}]", f"benchmark.codecs.1.models=[{with_text}]",
        f"benchmark.codecs.2.models=[{without}]", "benchmark.strips=null",
    )  # fmt: skip
    count = 2 * TEST
    assert labels(tmp_path / "run") == {"text": count, "empty-prompts": count, "no-text": count}
    assert "benchmark/README.md" in page
    rows = Store(str(tmp_path / "run")).read_all("measurements").to_pylist()
    spent = {
        name: sum(r["prompt_bytes"] for r in rows if r["codec"] == name)
        for name in labels(tmp_path / "run")
    }
    assert spent["text"] > 10 * spent["empty-prompts"]


def test_photos_and_generated_pictures(generated: Path, photos: Path, tmp_path: Path) -> None:
    net = "train.network=" + SIZES.format(name="catc-no-text", text="null")
    run("train.yaml", f"run={tmp_path / 'photos'}", f"train.data.place={photos}", *SMALL, net)
    run(
        "train.yaml", f"run={tmp_path / 'tuned'}", f"train.data.place={generated}", *SMALL, net,
        f"train.init={tmp_path / 'photos' / 'train'}",
    )  # fmt: skip
    for name, place, count in (("generated", generated, TEST), ("photos-too", photos, 6)):
        run(
            "benchmark_domain.yaml", f"run={tmp_path / name}", f"benchmark.pictures.place={place}",
            f"benchmark.codecs.0.models=[{tmp_path}/photos/train/catc-no-text-mse-*]",
            f"benchmark.codecs.1.models=[{tmp_path}/tuned/train/catc-no-text-mse-*]",
            "benchmark.codecs.2=jpeg", "benchmark.strips=null",
        )  # fmt: skip
        expected = {"photos": 2 * count, "tuned": 2 * count, "jpeg": 7 * count}
        assert labels(tmp_path / name) == expected
    # More training on one kind helps on that kind.
    rows = Store(str(tmp_path / "generated")).read_all("measurements").to_pylist()
    quality = {
        name: sum(r["psnr"] for r in rows if r["codec"] == name) for name in ("photos", "tuned")
    }
    assert quality["tuned"] > quality["photos"]
