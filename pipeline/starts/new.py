"""A name and a kind in, a commented workflow with its specification out, ready to be edited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import AigiError
from pipeline.complaints import near
from pipeline.starts.generate import NO_LICENCE, Wanted, file_of, generate, named
from pipeline.starts.written import Comment, filled, write

PROMPTS = (
    "A lighthouse on a cliff at dusk, seen from a small boat",
    "Portrait of an old fisherman who mends a net, soft window light",
    "A bowl of ripe figs and a linen cloth, oil painting",
    "A narrow street of a hill town after rain, reflections of lanterns",
    "Macro photograph of a beetle on a fern leaf",
    "A robot that waters tomatoes on a balcony, watercolour",
    "Isometric view of a tiny library in a hollow tree",
    "Snow leopard on a rock above the clouds, long lens",
)
"""What a list of prompts begins with, for a user to replace."""
MODEL = "sdxl"


def _generate(name: str, file: Path) -> str:
    """Images of a list of prompts, which is written beside it."""
    prompts = file.with_name(f"{file.stem}-prompts.txt")
    if not prompts.exists():
        prompts.parent.mkdir(parents=True, exist_ok=True)
        prompts.write_text("".join(f"{line}\n" for line in PROMPTS), encoding="utf-8")
    return generate(Wanted(model=MODEL, prompts=str(prompts), out=f"runs/{name}"), file).text


def _import(name: str, file: Path) -> str:
    """Images of a folder or archive, and their captions."""
    values = {"source": "images", "path": "images", "licence": NO_LICENCE, "title": file.stem}
    return _of_template("import.yaml", name, file, "imported images", values)


def _train(name: str, file: Path) -> str:
    """A codec, trained on a release."""
    return _of_template("train.yaml", name, file, "a codec of our own", {"place": "runs/demo"})


def _benchmark(name: str, file: Path) -> str:
    """Codecs, measured on a release or a folder of images."""
    return _of_template("benchmark.yaml", name, file, "codecs compared", {"place": "runs/demo"})


KINDS: dict[str, Callable[[str, Path], str]] = {
    "generate": _generate, "import": _import, "train": _train, "benchmark": _benchmark,
}  # fmt: skip
"""What a workflow is for: a name and its file in, its text out."""


def _of_template(template: str, name: str, file: Path, what: str, values: dict[str, Any]) -> str:
    about = {"about": Comment(f"{file.stem}: {what}"), "file": Comment(str(file))}
    return filled(template, {**about, "name": name, "run": f"runs/{name}", **values})


def new(name: str, kind: str) -> Path:
    """Write a workflow.

    Args:
        name: of the file, its ending left out; a folder before it counts.
        kind: key of KINDS.

    Returns: the file.

    Raises:
        AigiError: no such kind; or the file is there already.
    """
    if kind not in KINDS:
        raise AigiError(f'--kind: no "{kind}"; {near(kind, KINDS)}')
    file = file_of(name.removesuffix(".yaml"))
    if "://" in name or file.name == ".yaml":
        raise AigiError(f"{name}: expected the name of a workflow file to write, such as mine")
    if file.exists():
        raise AigiError(f"{file}: there already, so it stays as it is. Give another name.")
    write(file, KINDS[kind](named(file.stem), file), over=False)
    return file
