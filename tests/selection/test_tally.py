"""What a finished run has and lacks: counted once, by source, split and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.plan import specification
from pipeline.selection.kept import FILES
from pipeline.selection.tally import Generation, lacks, shortage, tally, tally_of
from pipeline.store import Store
from tests.release.test_release import made, select


def lines(workflow: Any, store: Store) -> list[str]:
    return [str(lack) for lack in lacks(workflow.planned("selection"), store)]


def test_a_lack_is_told_by_source_split_and_reason(tmp_path: Path) -> None:
    failed = {("train", rank, "none") for rank in range(4)} | {("test", 0, "dwt-dct")}
    workflow, store = made(tmp_path, failed)
    select(workflow, store)
    assert lines(workflow, store) == ["sd train: 2 of 4: 4 failed (black: 4)"]
    assert shortage(workflow.planned("selection"), store) == {"sd/train": 6}
    # Of a selection that an earlier version made there is no tally; it is counted then.
    written = store.read_json("selection", FILES) or {}
    counted = tally_of(store)
    assert counted["sd/test"].planned == 6 and counted["sd/test"].kept == 3
    assert counted["sd/test"].reasons == {"failed": 1, "surplus": 2}
    del written["tally"]
    store.write_json(written, "selection", FILES)
    assert {
        name: (one.planned, one.kept, one.reasons) for name, one in tally_of(store).items()
    } == {name: (one.planned, one.kept, one.reasons) for name, one in counted.items()}
    assert lines(workflow, store) == ["sd train: 2 of 4: 4 failed"]


def test_a_plan_that_is_too_small_is_told(tmp_path: Path) -> None:
    workflow, store = made(tmp_path, set(), planned=2)
    select(workflow, store)
    expected = ["sd train: 2 of 4: 2 never planned", "sd test: 2 of 3: 1 never planned"]
    assert lines(workflow, store) == expected


def test_nothing_lacks_where_quotas_are_met(tmp_path: Path) -> None:
    workflow, store = made(tmp_path, {("train", 1, "none"), ("train", 3, "none")})
    select(workflow, store)
    assert lines(workflow, store) == []


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, ["sd train: 4 of 6: 2 failed (black: 2)"]), (4, []), (5, None)]
)
def test_a_split_without_a_count_wants_all_that_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, expected: list[str] | None
) -> None:
    workflow, store = made(tmp_path, {("train", 1, "none"), ("train", 3, "none")})
    plan = workflow.planned("selection").model_copy(update={"limit": limit})
    select(workflow, store)
    real = specification.load

    def open_counts(location: str) -> Any:
        found = real(location)
        for source in found.sources.values():
            for split in source.splits.values():
                object.__setattr__(split, "count", None)
        return found

    monkeypatch.setattr(specification, "load", open_counts)
    # The selection was made with counts: what it dropped as surplus nobody asked for.
    found = [str(lack) for lack in lacks(plan, store)]
    assert found == (["sd train: 4 of 5: 2 failed (black: 2)"] if expected is None else expected)


def test_variants_count_once() -> None:
    found = tally(
        [
            Generation("sd/test", 1, None),
            Generation("sd/test", 1, None),
            Generation("sd/test", 2, "nsfw"),
            Generation("sd/train", 1, None),
        ]
    )
    assert (found["sd/test"].planned, found["sd/test"].kept) == (2, 1)
    assert found["sd/test"].reasons == {"nsfw": 1} and found["sd/train"].kept == 1
