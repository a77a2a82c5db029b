"""aigi: (re)build, publish and benchmark datasets of AI-generated images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pipeline.shown import redacted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from datasets import Dataset, IterableDataset

    from pipeline.handle import Run

__version__ = "0.1.0"


class AigiError(Exception):
    """An error that the user can act on: what failed, where, and what to do next.

    Raised for bad input, refused settings and failed shards. The command line prints its
    text without a traceback; every other exception is a defect and keeps its traceback. What it
    quotes comes from anywhere, so it holds no secret of a URL from the beginning.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(redacted(part) if isinstance(part, str) else part for part in parts))


def load(
    name: str,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    **more: Any,
) -> Dataset | IterableDataset:
    """Load a release: `datasets.load_dataset` that also knows runs and the URLs of `aigi`.

    Args:
        name: `ORG/NAME` on the Hub, `hf://datasets/ORG/NAME[@REVISION]`, a release folder, or a
            run directory.
        config: the source, for example `sdxl`; None: the first one of the specification.
        split: train, validation or test; None: a dictionary of all.
        revision: tag, branch or commit on the Hub. Give one where figures are to be repeated.
        streaming: read rows as they are asked for, nothing is downloaded first.
        more: for `load_dataset`, for example `columns=["text", "image_id"]`.

    Returns:
        A `datasets.Dataset` (`image` is a PIL picture); an `IterableDataset` where streaming.

    Raises:
        AigiError: two revisions, or one for a folder; the Hub has none, or not for this user.
    """
    from datasets import load_dataset

    if name.startswith("hf://datasets/"):
        name, _, stated = name.removeprefix("hf://datasets/").rstrip("/").partition("@")
        if stated and revision not in (None, stated):
            raise AigiError(f"{name}: revision {stated} in the URL and {revision} beside it")
        revision = stated or revision
    elif os.path.isdir(name):
        if revision is not None:
            raise AigiError(f"{name}: a folder has no revision {revision}; leave it out")
        inside = os.path.join(name, "release")
        name = inside if os.path.isfile(os.path.join(inside, "manifest.json")) else name
        more = {**_own_cache(name), **more}
    try:
        return load_dataset(
            name, config, split=split, revision=revision, streaming=streaming, **more
        )
    except (OSError, ValueError, RuntimeError) as error:
        from pipeline.models.hub import why_not

        if os.path.exists(name) or (cause := why_not(error, name, revision)) is None:
            raise
        at = "" if revision is None else f"@{revision}"
        raise AigiError(f"{name}{at}: {cause}") from error


def run(
    workflow: str | Path | Mapping[str, Any],
    /,
    *,
    quiet: bool = False,
    replace: bool = False,
    retry_failed: bool = False,
    trust: bool = False,
    **overrides: Any,
) -> Run:
    """Run a workflow, as `aigi run` does; what is made already stays, and the same call resumes.

    Args:
        workflow: a file, the name of one that came with aigi (`regenerate`), or its sections.
        quiet: no lines about the work.
        replace: remove images and tables that changed settings cannot keep.
        retry_failed: make rows that have an error again.
        trust: load the models, datasets and logos that a manifest asks for.
        overrides: settings to replace: `plan={"limit": 8}`, or `**{"plan.limit": 8}`.

    Returns: a handle: `status()`, `table(NAME)` as Arrow, `load(CONFIG, SPLIT)`, `sheet()`.

    Raises:
        AigiError: what is wrong, and what to do; finished shards are kept.
    """
    from pipeline.handle import run as handle
    from pipeline.intact import Checks
    from pipeline.progress import Progress

    checks = Checks(retry=retry_failed, replace=replace)
    return handle(workflow, overrides, Progress(quiet=quiet), checks, trust)


def _own_cache(folder: str) -> dict[str, str]:
    """The cache of a release in a folder, for `load_dataset`; none for what is no release.

    `datasets` knows local folders by their last name alone: it would load the rows that a folder
    `release` had elsewhere, or before.
    """
    import hashlib

    from datasets import config

    try:
        with open(os.path.join(folder, "manifest.json"), "rb") as file:
            manifest = file.read()
    except OSError:
        return {}
    digest = hashlib.sha256(manifest + os.path.realpath(folder).encode()).hexdigest()[:32]
    return {"cache_dir": os.path.join(config.HF_DATASETS_CACHE, "aigi", digest)}
