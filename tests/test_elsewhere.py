"""A long run on S3: its parts, signs of life and logs are there, and what is over is removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import AigiError, alive, parts
from pipeline.alive import ALIVE, Watcher
from pipeline.logbook import LOGS, last_word, logbook
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.stage import Compute
from pipeline.status import status, verdict
from pipeline.store import Store
from tests import toy


@pytest.fixture
def bucket(s3: Callable[[str], None], moto: str) -> str:
    s3(moto)
    boto3 = pytest.importorskip("boto3")
    boto3.client("s3").create_bucket(Bucket="long")
    return "s3://long/run"


def test_a_shard_on_s3_goes_on_where_it_was(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "EVERY", 0.0)
    monkeypatch.setattr(parts, "_SHARE", 0.0)
    monkeypatch.setattr(alive, "EVERY", 0.1)
    store, log, seen = Store(bucket), tmp_path / "log", []

    def go(bad_shard: int | None) -> None:
        progress = Progress(quiet=True)
        made = toy.stages(shards=1, keeps=True, bad_shard=bad_shard, seconds=2.0, log=str(log))
        with logbook(bucket, "aigi run") as book, alive.driver(bucket, progress):
            try:
                run_stages(made, store, Compute(), progress)
            except AigiError as error:
                seen.extend(Watcher(store).look()[0])
                book.end(1, str(error))
                raise
            book.end(0)

    with pytest.raises(AigiError, match="1 of 1 shards failed"):
        go(35)
    (one,) = seen
    assert one.sign.role == "driver" and one.age is not None and one.age < 60
    found = status(store)
    assert (found[1].state, found[1].kept_rows) == ("failed", 30)
    word = last_word(store)
    assert word is not None and word.code == 1
    assert verdict(store, found, Watcher(store).look()[0], 0.0) == (
        1,
        f"ended with exit code 1: {word.said}",
    )
    go(None)
    assert log.read_text().split() == ["0", "10", "20", "30", "30"]
    toy.make(str(tmp_path / "here"), shards=1)
    (mine,) = (tmp_path / "here" / "squares").glob("*.parquet")
    assert store.fs.cat_file(store.path("squares", mine.name)) == mine.read_bytes()
    for gone in (ALIVE, parts.PARTS):
        with pytest.raises(FileNotFoundError):
            store.fs.info(store.path(gone))
    names = [path.rsplit("/", 1)[-1] for path in store.fs.find(store.path(LOGS))]
    assert len(names) == 3 and "last.json" in names
    assert b"squares: part-00000: 30 of 40 rows are kept" in store.fs.cat_file(
        store.path(LOGS, names[1])
    )
