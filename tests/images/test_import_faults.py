"""Folders and mounts that go away in mid-import, disks that fail: no image is blamed for them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem
from typer.testing import CliRunner

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.build import make, stages
from pipeline.cli import app
from pipeline.faults import MachineFault
from pipeline.pictures.names import Absent
from pipeline.pictures.pictures import open_pictures
from pipeline.pixels import png_bytes
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.store import Store
from tests.conftest import ROOT, aigi_here

SIZE = (24, 32)


def plant(folder: Path, count: int, captions: Path | None = None) -> Path:
    """A folder of small images, each with its caption."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    lines = ["file,text"]
    for number in range(count):
        pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        (folder / f"{number:03}.png").write_bytes(png_bytes(pixels))
        lines.append(f"{number:03}.png,a picture of number {number}")
    (captions or folder.parent / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def workflow_of(folder: Path, place: str, count: int | None, **more: Any) -> Path:
    """A workflow that imports the images of a place, one a shard; `count` of them are wanted."""
    split = {"width": SIZE[1], "height": SIZE[0]} | ({} if count is None else {"count": count})
    source = {"title": "Drawn", "licence": "CC0-1.0", "kind": "import", "model": "drawn",
              "splits": {"train": split}}  # fmt: skip
    (folder / "dataset.yaml").write_text(
        yaml.safe_dump({"name": "t", "title": "T", "licence": "CC0-1.0",
                        "sources": {"drawn": source}})
    )  # fmt: skip
    path = folder / "workflow.yaml"
    sections: dict[str, Any] = {
        "run": str(folder / "run"),
        "split": {"validation": 0.0, "test": 0.0},
        "plan": {"dataset": "dataset.yaml", "shard_mb": 0.001},
        "sources": {"drawn": {"kind": "import", "path": place,
                              "captions": str(folder / "captions.csv")}},
        "images": {},
        "release": {"version": "1.0.0"},
    }  # fmt: skip
    sections = {name: value for name, value in (sections | more).items() if value is not None}
    path.write_text(yaml.safe_dump(sections))
    return path


def rows_of(run: Path, table: str = "images") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = Store(str(run)).read_all(table).to_pylist()
    return rows


def start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", str(path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def here(path: Path, *options: str) -> tuple[int, str]:
    """The command in this process: its exit code, and what it wrote to standard error."""
    done = CliRunner().invoke(app, ["run", str(path), *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stderr


def wait_for(run: Path, shards: int, process: subprocess.Popen[str]) -> None:
    while len(list((run / "images").glob("*.parquet"))) < shards:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


def test_a_folder_that_goes_away_in_mid_import_costs_no_image(tmp_path: Path) -> None:
    count = 60
    folder = plant(tmp_path / "pictures", count)
    path, run = workflow_of(tmp_path, str(folder), count, release=None), tmp_path / "run"
    process = start(path)
    wait_for(run, 3, process)
    folder.rename(tmp_path / "elsewhere")
    _, said = process.communicate()
    assert process.returncode == 1, said
    assert f"{folder}: the folder of " in said and "is gone" in said and "Traceback" not in said
    assert "run the same command again" in said
    assert 3 <= len(rows_of(run)) < count, "it was all over before the folder went"
    assert all(row["error"] is None for row in rows_of(run))
    code, said = here(path)
    assert code == 1 and "no such file or folder" in said
    (tmp_path / "elsewhere").rename(folder)
    code, said = here(path)
    assert code == 0, said
    rows = rows_of(run)
    assert len(rows) == count and all(row["error"] is None for row in rows)


UNMOUNTED = """
mount -t tmpfs tmpfs {folder} && cp {images}/* {folder} &&
{{ {python} -m pipeline.cli run {workflow} & }}
run=$!
while [ $(ls {run}/images 2>/dev/null | wc -l) -lt 3 ]; do kill -0 $run || exit 9; done
umount -l {folder}
wait $run; echo code $?
{python} -m pipeline.cli run {workflow}; echo code $?
mount -t tmpfs tmpfs {folder} && cp {images}/* {folder}
{python} -m pipeline.cli run {workflow}; echo code $?
"""


@pytest.mark.slow
def test_a_mount_that_goes_away_leaves_an_empty_folder(tmp_path: Path) -> None:
    """A real mount, in a mount namespace of its own; it comes back with other inodes."""
    count = 200
    folder = tmp_path / "mounted"
    folder.mkdir()
    images = plant(tmp_path / "pictures", count)
    path = workflow_of(tmp_path, str(folder), count)
    script = UNMOUNTED.format(
        folder=folder, images=images, python=sys.executable, workflow=path, run=tmp_path / "run"
    )
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no `unshare` here")
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 1", "code 1", "code 0"], done.stderr
    assert "was replaced" in done.stderr and "has no images" in done.stderr
    rows = rows_of(tmp_path / "run")
    assert len(rows) == count and all(row["error"] is None for row in rows)


def test_a_file_that_is_gone_from_its_folder_is_a_row_until_it_is_back(
    tmp_path: Path, models: Path
) -> None:
    """The run goes on without it, says so by its exit code, and `--retry-failed` makes it."""
    folder = plant(tmp_path / "pictures", 9)
    scores = {"embeddings": {"folder": str(models / "clip")}, "quality": {}}
    path, run = workflow_of(tmp_path, str(folder), None, **scores), tmp_path / "run"
    workflow = workflows.load(path)
    run_stages(stages(workflow)[:1], Store(workflow.run), workflow.compute, Progress(quiet=True))
    (folder / "004.png").rename(tmp_path / "004.png")
    for options, expected in (((), 3), ((), 3), (("--allow-fewer",), 0), (("--retry-failed",), 3)):
        code, said = here(path, "--quiet", *options)
        assert code == expected, said
        assert "drawn train: 8 of 9: 1 failed (no such picture: 1)" in said
        assert ("error: fewer images than wanted" in said) == (code == 3)
    assert len(rows_of(run, "release/drawn")) == 8, "what could be made is released"
    sound = {p: p.stat().st_mtime_ns for p in (run / "images").glob("*.parquet")}
    (tmp_path / "004.png").rename(folder / "004.png")
    code, said = here(path, "--retry-failed")
    assert code == 0, said
    assert len(rows_of(run, "release/drawn")) == 9
    assert all(row["error"] is None for row in rows_of(run))
    again = [p for p, when in sound.items() if p.stat().st_mtime_ns != when]
    assert len(again) == 1, "the shard with the failed row, and no other"
    for table, column in (("embeddings", "image_vector"), ("quality", "entropy")):
        assert len(rows_of(run, table)) == 9
        assert all(row[column] is not None for row in rows_of(run, table)), table
    assert aigi_here("verify", str(run / "release")).returncode == 0


class Faulty(LocalFileSystem):  # type: ignore[misc]
    """A local disk behind a URL that fails with the number that stands in a file beside it."""

    protocol = "faulty"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("faulty://"))

    def _fail(self, path: str) -> None:
        switch = Path(path).parent.parent / "fault"
        if switch.exists() and path.endswith("5.png"):
            raise OSError(int(switch.read_text()), "it is broken", path)

    def cat_file(self, path: str, *more: Any, **options: Any) -> Any:
        self._fail(self._strip_protocol(path))
        return super().cat_file(path, *more, **options)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES])
def test_a_disk_that_fails_fails_the_shard_and_is_asked_again(tmp_path: Path, number: int) -> None:
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    plant(tmp_path / "pictures", 12)
    path = workflow_of(tmp_path, f"faulty://{tmp_path}/pictures", 12, release=None)
    workflow = workflows.load(path)
    store = Store(workflow.run)
    switch = tmp_path / "fault"
    run_stages(stages(workflow)[:1], store, workflow.compute, Progress(quiet=True))
    switch.write_text(str(number))  # it breaks between the plan and the images
    with pytest.raises(AigiError, match=r"images: 1 of 12 shards failed.*it is broken"):
        make(workflow, store, Progress(quiet=True))
    assert len(rows_of(tmp_path / "run")) == 11
    failed = (store.read_json("_stages", "images.json") or {})["failed"]
    assert all("Traceback" not in text for text in failed.values())
    switch.unlink()
    make(workflow, store, Progress(quiet=True))
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 12 and all(row["error"] is None for row in rows)


def test_a_real_input_output_error_of_a_file(tmp_path: Path) -> None:
    """A process's memory reads as EIO at its beginning; bound over an image, it is a broken one."""
    folder = plant(tmp_path / "pictures", 3)
    code = (
        "import sys\nfrom pipeline.pictures.pictures import open_pictures\n"
        "found = open_pictures(sys.argv[1])\n"
        "for name in found.names():\n"
        "    try:\n        print(name, len(found.read(name)) > 0)\n"
        "    except Exception as error:\n        print(type(error).__name__, error)\n"
    )
    script = (
        f"mount --bind /proc/$$/mem {folder}/001.png && "
        f"{sys.executable} -c '{code}' {folder} && umount {folder}/001.png"
    )
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no `unshare` here")
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    first, second, third = done.stdout.splitlines()
    assert first == "000.png True" and third == "002.png True"
    assert second == f"MachineFault {folder}: 001.png: cannot be read: Input/output error"


def test_folders_inside_are_looked_at_one_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b", "c"):
        plant(folder / name, 3)
    found = open_pictures(str(folder))
    assert len(found.read("a/001.png")) > 0
    (folder / "a" / "000.png").unlink()
    with pytest.raises(Absent):
        found.read("a/000.png")
    (folder / "a").rename(tmp_path / "a")
    with pytest.raises(MachineFault, match=f"{folder / 'a'}: the folder of a/002.png is gone"):
        found.read("a/002.png")
    plant(folder / "a", 2)  # as another mount in its place
    with pytest.raises(MachineFault, match="was replaced"):
        found.read("a/002.png")
    for file in (folder / "b").iterdir():
        file.unlink()
    for call in (found.read, found.size):
        with pytest.raises(MachineFault, match=r"b/000\.png has no images.*put an empty file"):
            call("b/000.png")
    (folder / "b" / "000.png").touch()
    assert found.read("b/000.png") == b"", "the way out that the error names"


def test_a_folder_that_cannot_be_listed_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        plant(folder / name, 1)
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("/b"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(MachineFault, match="b: cannot be listed: Input/output error"):
        open_pictures(str(folder)).names()


def test_an_archive_that_is_cut_while_it_is_read_is_not_full_of_damaged_images(
    tmp_path: Path,
) -> None:
    import zipfile

    folder = plant(tmp_path / "pictures", 40)  # more than Python reads ahead
    archive = tmp_path / "p.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)
    found = open_pictures(str(archive))
    assert found.read("003.png") == (folder / "003.png").read_bytes()
    os.truncate(archive, archive.stat().st_size // 2)
    with pytest.raises(MachineFault, match=r"p\.zip: changed while it was being read"):
        found.read("030.png")
    # Damage that was there when it was opened is that of one image.
    with zipfile.ZipFile(archive, "w") as file:
        file.write(folder / "001.png", "001.png")
    data = bytearray(archive.read_bytes())
    data[60] ^= 1
    archive.write_bytes(data)
    with pytest.raises(Exception, match="damaged in the archive"):
        open_pictures(str(archive)).read("001.png")


def test_a_tar_that_is_gone_or_another_one_blames_no_image(tmp_path: Path) -> None:
    import tarfile

    def pack(names: list[str]) -> None:
        with tarfile.open(tmp_path / "new.tar", "w") as file:
            for name in names:
                file.add(folder / name, name)
        os.replace(tmp_path / "new.tar", archive)

    folder, archive = plant(tmp_path / "pictures", 9), tmp_path / "p.tar"
    names = sorted(path.name for path in folder.iterdir() if path.suffix == ".png")
    pack(names)
    found = open_pictures(str(archive))
    assert found.read("003.png") == (folder / "003.png").read_bytes()
    pack(names[::-1])  # the same files, elsewhere in it
    with pytest.raises(MachineFault, match=r"p\.tar: changed since it was opened"):
        found.read("003.png")
    assert open_pictures(str(archive)).read("003.png") == (folder / "003.png").read_bytes()
    found = open_pictures(str(archive))
    archive.unlink()
    with pytest.raises(MachineFault, match=r"p\.tar: is gone"):
        found.read("003.png")


def test_an_archive_of_the_original_release_that_is_gone_blames_no_image(tmp_path: Path) -> None:
    import zipfile

    from pipeline.pictures.original import OriginalPictures
    from pipeline.pictures.sources import OriginalSource

    drawn = plant(tmp_path / "pictures", 2)
    folder = tmp_path / "release" / "MJ"
    folder.mkdir(parents=True)
    for number, name in enumerate(("MJ-part1.zip", "MJ-part2.zip")):
        with zipfile.ZipFile(folder / name, "w") as file:
            file.write(drawn / f"{number:03}.png", f"train/{number + 1}_0.png")
            file.writestr("train.txt", "one\ntwo\n")
    source = OriginalSource(kind="pku", path=str(folder.parent), subfolder="MJ")
    with OriginalPictures(source) as found:
        assert found.read("MJ/train/2_0.png") == (drawn / "001.png").read_bytes()
    (folder / "MJ-part2.zip").rename(tmp_path / "away.zip")
    with (
        OriginalPictures(source) as found,
        pytest.raises(MachineFault, match=r"train/2_0\.png is not in the release any more"),
    ):
        found.read("MJ/train/2_0.png")
