"""An empty folder in, a small finished release out: the demo makes its models and runs them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.workflow import Workflow

if TYPE_CHECKING:
    from rich.table import Table


def resource(name: str) -> Path:
    """A file of `prompts/`, `manifests/` or `workflows/`, in a checkout or in an installed wheel.

    Raises:
        AigiError: the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for root in (package / "data", package.parent):
        if (root / name).exists():
            return root / name
    raise AigiError(f"{name}: not in this installation; install aigi again")


def make_models(folder: Path) -> None:
    """Write the demo's three pipelines; the same bytes at every call."""
    from pipeline.dataset.grammar import Grammar
    from pipeline.tiny.models import save_sd, save_sdxl

    sentences = list(Grammar.load(str(resource("prompts/grammar.yaml"))).sentences(2_000, seed=0))
    save_sd(folder / "sd21-base", sentences, seed=0, v_prediction=False)
    save_sd(folder / "sd21", sentences, seed=1, v_prediction=True)
    save_sdxl(folder / "sdxl", sentences, seed=2)


def demo_workflow(out: Path, overrides: Iterable[str]) -> Workflow:
    """The demo's workflow, with run directory and models below `out`."""
    pictures = Path(__file__).resolve().parent / "tiny" / "pictures"
    places = [
        f"run={out.resolve()}",
        *(
            f"sources.{name}.folder={out.resolve() / 'models' / name}"
            for name in ("sd21-base", "sd21", "sdxl")
        ),
        f"sources.mj52.path={pictures / 'mj52'}",
        f"sources.mj52.captions={pictures / 'mj52' / 'captions.csv'}",
        f"sources.mod.path={pictures / 'mod.zip'}",
        f"sources.mod.captions={pictures / 'mod.jsonl'}",
    ]
    return workflows.load(resource("workflows/demo.yaml"), [*places, *overrides])


def load_back(release: Path) -> list[dict[str, Any]]:
    """Load every config and split as a user would, and compare the pictures' hashes.

    Returns:
        config, split, images, sizes and whether all pixels equal those that were generated.
    """
    import numpy as np
    from datasets import disable_progress_bars, get_dataset_config_names, load_dataset

    disable_progress_bars()
    found = []
    # A cache inside the run: the user's own is not filled with demo data.
    cache = str(release.parent / "cache")
    for config in get_dataset_config_names(str(release)):
        for split, data in load_dataset(str(release), config, cache_dir=cache).items():
            sizes, same = set(), True
            for row in data:
                pixels = np.asarray(row["image"].convert("RGB"))
                sizes.add(f"{pixels.shape[1]}x{pixels.shape[0]}")
                same &= hashlib.sha256(pixels.tobytes()).hexdigest() == row["pixels_sha256"]
            found.append(
                {
                    "config": config,
                    "split": str(split),
                    "images": len(data),
                    "size": ", ".join(sorted(sizes)),
                    "same": same,
                }
            )
    return found


def run_demo(
    out: Path,
    overrides: Iterable[str],
    execute: Callable[[Workflow], None],
    show: Callable[[Table], None],
) -> None:
    """Make models, run every stage, load the release back and print what there is.

    Raises:
        AigiError: a stage failed, or a picture differs after loading.
    """
    from rich.table import Table

    started = time.perf_counter()
    make_models(out / "models")
    execute(demo_workflow(out, overrides))
    release = out / "release"
    lines = load_back(release)
    table = Table("config", "split", "size", title="Loaded back with datasets.load_dataset")
    table.add_column("images", justify="right")
    table.add_column("pixels")
    for line in lines:
        table.add_row(
            line["config"],
            line["split"],
            line["size"],
            str(line["images"]),
            "as generated" if line["same"] else "DIFFERENT",
        )
    show(table)
    if not all(line["same"] for line in lines):
        raise AigiError(f"{release}: pictures differ from those that were generated")
    images = sum(line["images"] for line in lines)
    print(f"{images} images in {time.perf_counter() - started:.0f} s: {release}")
    print(f"next: aigi status {out}; aigi verify {release}")
