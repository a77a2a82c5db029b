"""Shards appear whole or not at all, on local disk and on a store without rename."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.parquet import IMAGE_BYTES, IMAGE_ROWS, _image_groups
from pipeline.pixels import pixels_sha256, png_bytes
from pipeline.store import Damaged, Store
from pipeline.tables import IMAGE, IMAGES


def images(sizes: list[int]) -> pa.Table:
    rows = [
        {"image_id": f"{i:04d}", "image": {"bytes": os.urandom(size), "path": f"{i}.png"}}
        for i, size in enumerate(sizes)
    ]
    return pa.Table.from_pylist(rows, schema=IMAGES)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return Store(url)


def test_what_is_written_is_read(store: Store) -> None:
    table = images([10, 2_000, 0])
    shard = store.write("images", "a/b-00000", table, IMAGES)
    assert store.shards("images") == {"a/b-00000": shard.bytes}
    assert store.read("images", "a/b-00000").equals(table)
    assert store.rows("images", "a/b-00000") == 3
    assert store.sha256("images", "a/b-00000.parquet") == shard.sha256


def test_failing_worker_leaves_nothing(store: Store) -> None:
    def chunks() -> Iterator[pa.Table]:
        yield images([50] * (IMAGE_ROWS + 20))
        raise RuntimeError("model fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        store.write("images", "x", chunks(), IMAGES)
    assert store.shards("images") == {}
    assert not store.local or os.listdir(store.path("images")) == []


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -9])
def test_a_shard_cut_short_has_no_rows(store: Store, keep: int) -> None:
    store.write("images", "x", images([500] * 4), IMAGES)
    path = store.path("images", "x.parquet")
    data = store.fs.cat_file(path)
    store.fs.pipe_file(path, data[:keep])
    assert store.rows("images", "x") is None
    with pytest.raises(AigiError, match=r"x\.parquet.*--rehash"):
        store.read("images", "x")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_row_groups_depend_on_rows_alone(data: st.DataObject) -> None:
    """However a worker cuts its chunks, the file has the same bytes."""
    count = data.draw(st.integers(0, 260))
    table = images([3] * count)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=6)))
    pieces = [table.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, count], strict=True)]
    store = Store(f"memory://{uuid.uuid4().hex}")
    whole = store.write("images", "whole", table, IMAGES)
    cut = store.write("images", "cut", iter(pieces), IMAGES)
    assert whole.sha256 == cut.sha256
    assert whole.rows == cut.rows == count


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_row_groups_end_where_the_next_image_does_not_fit(data: st.DataObject) -> None:
    """By counting row after row, however many of them are counted at once."""
    most_rows, most_bytes = 7, 60_000
    sizes = data.draw(st.lists(st.sampled_from([1, 900, 9_000, 25_000, 70_000]), max_size=40))
    table = images(sizes)
    expected, rows, held = [], 0, 0
    for row in range(len(sizes)):
        one = table.slice(row, 1).nbytes
        if rows and (rows == most_rows or held + one > most_bytes):
            expected.append(rows)
            rows = held = 0
        rows, held = rows + 1, held + one
    expected += [rows] if rows else []
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sizes)), max_size=6)))
    pieces = [table.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, len(sizes)], strict=True)]
    groups = list(_image_groups(pieces, most_rows, most_bytes))
    assert [group.num_rows for group in groups] == expected
    assert pa.concat_tables([table.slice(0, 0), *groups]).equals(table)


def test_row_groups_are_small(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("images", "many", images([10] * 350), IMAGES)
    store.write("images", "large", images([30 << 20] * 5), IMAGES)
    many = pq.read_metadata(tmp_path / "images/many.parquet")
    assert [many.row_group(i).num_rows for i in range(many.num_row_groups)] == [100, 100, 100, 50]
    large = pq.read_metadata(tmp_path / "images/large.parquet")
    for i in range(large.num_row_groups):
        assert large.row_group(i).total_byte_size <= IMAGE_BYTES + (1 << 20)
    assert many.row_group(0).column(0).has_offset_index


def test_full_disk_in_a_real_small_file_system(tmp_path: Path) -> None:
    """In a mount namespace of its own, with a tmpfs of 2 MB."""
    script = tmp_path / "fill.py"
    script.write_text(
        "import sys\n"
        "from tests.test_store import images\n"
        "from pipeline.folder import DiskFull\n"
        "from pipeline.store import Store\n"
        "from pipeline.tables import IMAGES\n"
        "store = Store(sys.argv[1])\n"
        "store.write('images', 'small', images([100_000]), IMAGES)\n"
        "try:\n"
        "    store.write('images', 'large', images([1_000_000] * 4), IMAGES)\n"
        "except DiskFull as error:\n"
        "    print('FULL', error)\n"
        "import os\n"
        "print(sorted(os.listdir(sys.argv[1] + '/images')))\n"
    )
    place = tmp_path / "small"
    place.mkdir()
    inside = f"mount -t tmpfs -o size=2m tmpfs {place} && {sys.executable} {script} {place}"
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", inside],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        )
    except FileNotFoundError:
        pytest.skip("no `unshare` here")
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    assert "FULL" in done.stdout, done.stdout + done.stderr
    assert "no space left" in done.stdout
    assert "['small.parquet']" in done.stdout


def test_json_is_written_whole(store: Store) -> None:
    assert store.read_json("_stages", "a.json") is None
    store.write_json({"b": 1, "a": "ü"}, "_stages", "a.json")
    assert store.read_json("_stages", "a.json") == {"a": "ü", "b": 1}


def test_leftovers_of_dead_processes_are_swept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("images", "x", images([10]), IMAGES)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    mine = tmp_path / "images" / f".y.parquet.{os.getpid()}@{host}.{'0' * 32}.tmp"
    left = tmp_path / "images" / f".y.parquet.{dead.pid}@{host}.{'1' * 32}.tmp"
    other = tmp_path / "images" / f".y.parquet.{dead.pid}@elsewhere.{'2' * 32}.tmp"
    for path in (mine, left, other):
        path.write_bytes(b"half")
    store.sweep("images")
    assert mine.exists()
    assert other.exists()
    assert not left.exists()
    assert list(store.shards("images")) == ["x"]


def test_unknown_protocol_is_an_error() -> None:
    with pytest.raises(AigiError, match="nosuch"):
        Store("nosuch://bucket/x")


PAIR = pa.schema([("image_id", pa.string()), ("width", pa.int32()), ("height", pa.int32())])


def test_tables_of_other_rows_are_refused_by_name(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def write(table: str, *ids: str) -> None:
        rows = [{"image_id": name, "width": number} for number, name in enumerate(ids)]
        store.write(table, "a", pa.Table.from_pylist(rows, PAIR), PAIR)

    write("plan", "x", "y")
    write("images", "x", "y")
    found = store.aligned("a", {"plan": ["width"], "images": None})
    assert found["plan"].column_names == ["image_id", "width"]
    assert found["images"].column_names == PAIR.names
    for others in (("y", "x"), ("x",), ("x", "y", "z"), ("x", "z")):
        write("images", *others)
        with pytest.raises(AigiError, match=r"images/a.parquet does not have the rows of the plan"):
            store.aligned("a", {"plan": [], "images": []})
    with pytest.raises(AigiError, match=r"images/a.parquet does not have the rows of the input"):
        store.aligned("a", {"images": []}, found["plan"]["image_id"])


def test_rows_are_read_from_their_row_groups_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image_id": f"{number}", "width": number} for number in range(10)]
    (tmp_path / "t").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, PAIR), tmp_path / "t" / "a.parquet", row_group_size=4)
    groups: list[int] = []
    real = pq.ParquetFile.read_row_group

    def counting(self: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        groups.append(group)
        return real(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    store = Store(str(tmp_path))
    found = list(store.rows_at("t", "a", [9, 1, 1, 3], ["width"]))
    assert found == [(1, {"width": 1}), (3, {"width": 3}), (9, {"width": 9})]
    assert groups == [0, 2]
    with pytest.raises(AigiError, match=r"a.parquet: has 10 rows, and no row 11"):
        list(store.rows_at("t", "a", [10], ["width"]))
    with pytest.raises(AigiError, match=r"b.parquet: missing"):
        list(store.rows_at("t", "b", [0], ["width"]))
    (tmp_path / "t" / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(AigiError, match=r"a.parquet: damaged"):
        list(store.rows_at("t", "a", [0], ["width"]))


def test_a_damaged_image_is_named_and_a_row_without_one_left_out(tmp_path: Path) -> None:
    schema = PAIR.append(pa.field("image", IMAGE)).append(pa.field("pixels_sha256", pa.string()))
    grey = np.full((3, 5, 3), 7, np.uint8)
    good, stated = png_bytes(grey), pixels_sha256(grey)
    images = [{"bytes": good, "path": None}, None, {"bytes": good[:-20], "path": None}]
    rows = [
        {
            "image_id": f"id{number}",
            "width": 5,
            "height": 3,
            "image": image,
            "pixels_sha256": stated,
        }
        for number, image in enumerate(images)
    ]
    store = Store(str(tmp_path))
    store.write("images", "a", pa.Table.from_pylist(rows, schema), schema)
    ((row, rgb, values),) = store.images("images", "a", [0, 1])
    assert (row, rgb.shape, values["image_id"]) == (0, (3, 5, 3), "id0")
    assert (rgb == 7).all()
    with pytest.raises(AigiError, match=r"images/a\.parquet: row 3 \(id2\).*--rehash"):
        list(store.images("images", "a", [2]))


def test_an_image_that_is_not_the_one_of_its_row_is_named(tmp_path: Path) -> None:
    schema = PAIR.append(pa.field("image", IMAGE)).append(pa.field("pixels_sha256", pa.string()))
    grey = np.full((3, 5, 3), 7, np.uint8)
    row = {
        "image_id": "id",
        "width": 5,
        "height": 3,
        "image": {"bytes": png_bytes(grey * 0), "path": None},
        "pixels_sha256": pixels_sha256(grey),
    }
    store = Store(str(tmp_path))
    store.write("images", "a", pa.Table.from_pylist([row], schema), schema)
    with pytest.raises(Damaged, match=r"a\.parquet: row 1 \(id\): other pixels than its pixels_"):
        list(store.images("images", "a", [0]))


OUT_OF_THE_RUN = [
    "..", "../x", "a/../../x", "a/..", "/etc/passwd", "//x", "a//b", "a/", ".", "./x", "a\\..\\x",
    "C:x", "C:/x", "a\0b", "a\nb", "\x1b[1m", "\udcff", "x" * 300, "a/" + "é" * 200, "memory://x",
]  # fmt: skip


@pytest.mark.parametrize("name", OUT_OF_THE_RUN)
def test_no_name_leads_out_of_a_run(store: Store, name: str) -> None:
    """Whatever is done with it, and whichever part of the path it is."""
    inside, outside = Store(store.url + "/run"), store
    outside.write("", "x", images([3]), IMAGES)
    before = outside.shards("")
    for parts in ([name], ["images", name], [name, "x"], ["", name]):
        with pytest.raises(AigiError, match="is not the name of a file in this folder"):
            inside.path(*parts)
    doing: list[Callable[[], object]] = [
        lambda: inside.write(name, "x", images([1]), IMAGES),
        lambda: inside.write_json({}, "images", name),
        lambda: inside.write_bytes(b"", name),
        lambda: inside.copy(io.BytesIO(b"x"), name),
        lambda: inside.remove("images", name),
        lambda: inside.read_json(name),
        lambda: inside.size(name),
        lambda: inside.sha256(name),
    ]
    if not name.endswith((".", "/")):  # with the ending of a shard, these mean nothing else
        doing += [
            lambda: inside.write("images", name, images([1]), IMAGES),
            lambda: inside.read("images", name),
            lambda: inside.rows("images", name),
            lambda: list(inside.rows_at("images", name, [0])),
        ]
    for do in doing:
        with pytest.raises(AigiError, match="is not the name of a file in this folder"):
            do()
    assert outside.shards("") == before


def test_an_empty_last_name_is_not_the_folder(store: Store) -> None:
    store.write("images", "x", images([3]), IMAGES)
    with pytest.raises(AigiError, match="is not the name"):
        store.remove("images", "")
    assert list(store.shards("")) == ["images/x"]


def test_nothing_is_written_or_removed_behind_a_link(tmp_path: Path) -> None:
    """A run from elsewhere may contain a link to a folder of the user."""
    mine = Store(str(tmp_path / "mine"))
    mine.write("", "x", images([3]), IMAGES)
    before = (tmp_path / "mine" / "x.parquet").read_bytes()
    run = Store(str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan").symlink_to(tmp_path / "mine")
    for do in (
        lambda: run.write("plan", "x", images([5]), IMAGES),
        lambda: run.remove("plan", "x.parquet"),
        lambda: run.write_json({}, "plan", "_rounds.json"),
    ):
        with pytest.raises(AigiError, match=r"a link leads out of .*run to .*mine, where nothing"):
            do()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["x.parquet"]
    assert (tmp_path / "mine" / "x.parquet").read_bytes() == before


def test_links_to_files_are_read_and_replaced(tmp_path: Path) -> None:
    """As in the cache of the Hub, whose files are links; a run may itself be one."""
    elsewhere = Store(str(tmp_path / "blobs"))
    elsewhere.write("", "x", images([3]), IMAGES)
    before = (tmp_path / "blobs" / "x.parquet").read_bytes()
    (tmp_path / "real" / "images").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "images" / "a.parquet").symlink_to(tmp_path / "blobs" / "x.parquet")
    run = Store(str(tmp_path / "run"))
    assert run.read("images", "a").num_rows == 1
    run.write("images", "a", images([7, 7]), IMAGES)
    assert run.read("images", "a").num_rows == 2
    assert (tmp_path / "blobs" / "x.parquet").read_bytes() == before


@pytest.mark.parametrize("data", [b"[1]", b'{"a": NaN}', b'{"a": "\xff"}', b"[" * 10**5, b"{"])
def test_a_damaged_record_is_one_line_with_its_remedy(store: Store, data: bytes) -> None:
    store.write_bytes(data, "plan", "_rounds.json")
    with pytest.raises(AigiError, match=r"plan/_rounds\.json: .*\. Start again\.$") as caught:
        store.read_json("plan", "_rounds.json", remedy="Start again.")
    assert "\n" not in str(caught.value)
