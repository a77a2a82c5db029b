"""A workflow in, a run that can be looked at out: what `pipeline.run` gives.

run = pipeline.run("regenerate", run="runs/mine", plan={"limit": 8, "sources": ["sdxl"]})
run.table("selection").to_pandas()
run.sheet()                                  # a notebook shows it
run.load("sdxl", "test")[0]["image"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import AigiError, load
from pipeline.complaints import near
from pipeline.progress import Progress
from pipeline.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset
    from PIL.Image import Image

    from pipeline.intact import Checks
    from pipeline.status import Status
    from pipeline.workflow import Workflow


@dataclass(frozen=True)
class Run:
    """A run: its directory, and what is in it now. Nothing is kept in memory.

    Attributes:
        url: run directory, a path or an fsspec URL.
        lacks: of what there were fewer images than wanted when it ended, a line each.
        benchmark: the page of its benchmark, if it made one.
    """

    url: str
    lacks: tuple[str, ...] = ()
    benchmark: str | None = None
    _store: Store = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_store", Store(str(self.url)))

    def status(self) -> list[Status]:
        """The state of each stage, in their order.

        Raises:
            AigiError: there is no run here.
        """
        from pipeline.alive import Watcher
        from pipeline.status import status

        return status(self._store, Watcher(self._store).look()[0])

    def tables(self) -> dict[str, int]:
        """Names of the tables, with the rows of each."""
        return {one.table: one.rows for one in self.status() if one.rows}

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a table, in the order of the plan.

        Args:
            name: such as prompts, plan, images, quality, selection or measurements.
            columns: those to read; None: all. Images are large: leave out `image`.

        Raises:
            AigiError: no such table or column; or a file of it is damaged.
        """
        if not self._store.shards(name):
            raise AigiError(f"{self.url}: no table {name}; {near(name, self.tables())}")
        return self._store.read_all(name, None if columns is None else list(columns))

    @property
    def release(self) -> str:
        """Where its release is, or will be."""
        return self._store.path("release")

    def load(
        self, config: str | None = None, split: str | None = None, **more: Any
    ) -> Dataset | IterableDataset:
        """Its release as a dataset, as `pipeline.load`."""
        return load(str(self.url), config, split, **more)

    def sheet(self) -> Image:
        """A contact sheet of its first images, each with its prompt.

        Raises:
            AigiError: there are no images, or one is damaged.
        """
        import io

        from PIL import Image

        from pipeline.pages.preview import sheet

        return Image.open(io.BytesIO(sheet(self._store)))


def _flat(overrides: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted names; mappings reach into a section, and replace nothing beside."""
    for key, value in overrides.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def workflow_of(workflow: str | Path | Mapping[str, Any], overrides: Mapping[str, Any]) -> Workflow:
    """The checked workflow that is meant.

    Args:
        workflow: a file, the name of one that came with aigi, or its sections. Relative paths in
            sections, as in overrides, start at the current folder.
        overrides: settings to replace: sections as mappings, or dotted names.

    Raises:
        AigiError: no such file, or a setting is wrong; names it.
    """
    import yaml

    from pipeline import workflow as workflows

    def text(value: object) -> object:
        return str(value) if isinstance(value, Path) else value

    given = [
        f"{key}={yaml.safe_dump(text(value), default_flow_style=True, width=1 << 20)}"
        for key, value in _flat(overrides)
    ]
    if isinstance(workflow, Mapping):
        return workflows.of(workflow, "workflow", given)
    return workflows.load(workflow, given)


def run(
    workflow: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any],
    progress: Progress,
    checks: Checks,
    trust: bool,
) -> Run:
    """As `pipeline.run`, which says what the arguments are."""
    from pipeline.execute import execute
    from pipeline.release.trust import confirm

    found = workflow_of(workflow, overrides)
    confirm(found, trust)
    done = execute(found, progress, checks)
    return Run(found.run, tuple(map(str, done.lacks)), done.benchmark)
