"""The original release with every defect planted in, a release that loads out: by the command."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, PngImagePlugin

from pipeline.metadata import bare_png
from pipeline.store import Store
from tests.conftest import ROOT, aigi, aigi_here
from tests.hub import serve
from tests.pictures.test_volumes import split, write_volumes, zipped
from tests.test_end_to_end import contents

WORKFLOW = ROOT / "workflows" / "import_pku.yaml"
SOURCES = {
    "sd21-base": "SD-2_1-B", "sd21": "SD-2_1", "sdxl": "SD-XL", "mj52": "MJ", "mod": "MOD",
}  # fmt: skip
SIZES = {"train": (48, 32), "val": (48, 32), "test": (64, 32)}
LINES = {
    "train": [f"a {color} boat on a lake" for color in ("red", "green", "blue", "white", "grey")],
    "val": ["a castle on a hill", "two castles on a hill"],
    "test": ["a tree in the fog", "two trees in the fog"],
}


def png(name: str, size: tuple[int, int], mode: str = "RGB") -> bytes:
    """A picture of its own for every name, with a text that we would not write."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    low = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(low).resize(size, Image.Resampling.BICUBIC).convert(mode)
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "a front end")
    out = io.BytesIO()
    picture.save(out, "PNG", pnginfo=info)
    return out.getvalue()


def text(part: str) -> bytes:
    return "".join(f"{line}\n" for line in LINES[part]).encode()


@dataclass
class Original:
    """A release in the original's layout.

    Attributes:
        good: bytes by source and name of every picture that is to arrive.
        bad: source, place, line and start of the reason of everything that is not.
    """

    root: Path
    good: dict[tuple[str, str], bytes] = field(default_factory=dict)
    bad: list[tuple[str, str, int | None, str]] = field(default_factory=list)

    def pictures(self, source: str, part: str, lines: int, each: int = 1) -> dict[str, bytes]:
        """Sound pictures of the first lines of a split, all of which are to arrive."""
        names = [
            f"{part}/{line}.png" if part == "test" else f"{part}/{line}_{k}.png"
            for line in range(1, lines + 1)
            for k in range(1 if part == "test" else each)
        ]
        made = {name: png(f"{source}{name}", SIZES[part]) for name in names}
        for name, data in made.items():
            self.good[source, f"{SOURCES[source]}/{name}"] = data
        return made

    def plant(self, source: str, place: str, line: int | None, reason: str) -> None:
        """Expect a reject; a picture that was to arrive no longer is."""
        self.bad.append((source, place, line, reason))
        self.good.pop((source, place), None)

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


STRAY = "stray file: neither a picture nor a text of the release"


def base(made: Original) -> dict[str, bytes]:
    """Two archives, of which the first repeats the folder's name; CRLF, BOM, an empty line."""
    name, archive = "sd21-base", "SD-2_1-B/SD-2_1-B-part"
    train = made.pictures(name, "train", 5, each=2)
    lines = [*LINES["train"][:3], "", LINES["train"][4]]
    one = {k: v for k, v in train.items() if "_0" in k}
    two = {k: v for k, v in train.items() if "_1" in k}
    empty = f"no caption: {archive}1.zip/SD-2_1-B/train.txt: the line is empty"
    made.plant(name, "SD-2_1-B/train/4_0.png", 4, empty)
    made.plant(name, "SD-2_1-B/train/4_1.png", 4, empty)
    # The same name in both archives: equal pictures, then different ones.
    two["train/1_0.png"] = one["train/1_0.png"]
    made.plant(
        name, f"{archive}2.zip/train/1_0.png", 1,
        f"twice: the same picture as {archive}1.zip/SD-2_1-B/train/1_0.png",
    )  # fmt: skip
    two["train/2_0.png"] = png("another", SIZES["train"])
    del made.good[name, "SD-2_1-B/train/2_0.png"]
    here, there = f"{archive}1.zip/SD-2_1-B/train/2_0.png", f"{archive}2.zip/train/2_0.png"
    made.plant(name, here, 2, f"twice: another picture than {there}")
    made.plant(name, there, 2, f"twice: another picture than {here}")
    one |= {
        "train/0_0.png": b"x", "train/9_0.png": b"x", "train/Thumbs.db": b"x",
        "train/7.png": b"x", "9_9.png": b"x", "captions.txt": b"x",
    }  # fmt: skip
    for line in (0, 9):
        reason = f"no caption: {archive}1.zip/SD-2_1-B/train.txt has lines 1 to 5"
        made.plant(name, f"SD-2_1-B/train/{line}_0.png", line, reason)
    inside = f"{archive}1.zip/SD-2_1-B"
    made.plant(name, f"{inside}/train/Thumbs.db", None, STRAY)
    made.plant(name, f"{inside}/train/7.png", None, "wrong name: a train picture is LINE_INDEX.png")
    made.plant(name, f"{inside}/9_9.png", None, "no split: none of train, val or test on its way")
    made.plant(name, f"{inside}/captions.txt", None, "stray file: not train.txt, vaild.txt or")
    one["train.txt"] = b"\xef\xbb\xbf" + "\r\n".join(lines).encode()
    made.write(f"{archive}1.zip", zipped({f"SD-2_1-B/{k}": v for k, v in one.items()}))
    test = made.pictures(name, "test", 2)
    made.write(f"{archive}2.zip", zipped(two | test | {"test/test.txt": text("test")}))
    return made.pictures(name, "val", 2) | {"vaild.txt": text("val")}


def spanned(made: Original) -> dict[str, bytes]:
    """An archive in volumes with Zip64 records, text files beside it; damaged pictures."""
    name = "sd21"
    train = made.pictures(name, "train", 5, each=2)
    damaged = bytearray(train["train/1_1.png"])
    damaged[damaged.index(b"IDAT") + 20] ^= 1
    train["train/1_1.png"] = bytes(damaged)
    made.plant(name, "SD-2_1/train/1_1.png", None, "damaged: wrong checksum in the PNG chunk")
    train["train/2_1.png"] = train["train/2_1.png"][:-30]
    made.plant(name, "SD-2_1/train/2_1.png", None, "truncated")
    train["train/3_1.png"] = png("too large", (96, 32))
    made.plant(name, "SD-2_1/train/3_1.png", None, "size 96x32, expected 48x32")
    train["train/4_1.png"] = b""
    made.plant(name, "SD-2_1/train/4_1.png", None, "empty")
    files = train | made.pictures(name, "test", 2) | {"__MACOSX/train/._1_0.png": b"x"}
    made.plant(name, "SD-2_1/SD21.zip/SD21/__MACOSX/train/._1_0.png", None, STRAY)
    volumes = split(
        zipped({f"SD21/{k}": v for k, v in files.items()}, zip64=True), [0.2, 0.4, 0.9], zip64=True
    )
    write_volumes(volumes, made.root / "SD-2_1" / "SD21.zip")
    # One caption is a test caption of another source; one line has no picture.
    lines = [*LINES["train"][:4], LINES["test"][1], "a line that was never drawn"]
    made.write("SD-2_1/train.txt", "\n".join(lines).encode())
    made.plant(name, "SD-2_1/train.txt", 6, "no picture of this line")
    made.write("SD-2_1/test.txt", text("test"))
    for index in (0, 1):
        reason = "split: listed as train, but its prompt is in test"
        made.plant(name, f"SD-2_1/train/5_{index}.png", None, reason)
    return made.pictures(name, "val", 2) | {"valid.txt": text("val")}


def pairs(made: Original) -> dict[str, bytes]:
    """Test pictures without and with watermark, of one of which the marked variant is missing;
    text files in the folders of their splits."""
    name = "sdxl"
    files = made.pictures(name, "train", 5)
    files["train/train.txt"] = text("train").replace(b"blue", b"bl\xfce")
    reason = "no caption: SD-XL/SD-XL.zip/train/train.txt: invalid UTF-8"
    made.plant(name, "SD-XL/train/3_0.png", 3, reason)
    for folder, meant, lines in (("no_watermark", "", (1, 2)), ("watermark", "watermark/", (1,))):
        for line in lines:
            data = png(f"{folder}{line}", SIZES["test"])
            files[f"test/{folder}/{line}.png"] = data
            made.good[name, f"SD-XL/test/{meant}{line}.png"] = data
        files[f"test/{folder}/test.txt"] = text("test")
    # Bytes of one entry are damaged in the archive itself.
    data = zipped(files, zip64=True)
    at = data.index(files["train/1_0.png"][40:]) + 100
    made.write("SD-XL/SD-XL.zip", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    made.plant(name, "SD-XL/train/1_0.png", None, "damaged in the archive: Bad CRC-32")
    return made.pictures(name, "val", 1) | {"val.txt": LINES["val"][0].encode()}


def beside(made: Original) -> dict[str, bytes]:
    """An archive, and what was unpacked from it in the same folder, the last file cut short."""
    name = "mj52"
    files = made.pictures(name, "train", 5) | made.pictures(name, "test", 1)
    files["train/1_0.png"] = png("with alpha", SIZES["train"], "RGBA")
    made.good[name, "MJ/train/1_0.png"] = files["train/1_0.png"]
    files |= {"train.txt": text("train"), "test.txt": LINES["test"][0].encode()}
    made.write("MJ/MJ.zip", zipped(files))
    for inside, data in files.items():
        made.write(f"MJ/{inside}", data[:50] if inside == "train/5_0.png" else data)
    made.write("MJ/train/.DS_Store", b"x")
    made.plant(name, "MJ/train/.DS_Store", None, STRAY)
    return made.pictures(name, "val", 1)  # and no text: its pictures have no captions


def unpacked(made: Original) -> dict[str, bytes]:
    """No archive at all; a picture more than the specification asks for."""
    name = "mod"
    files = made.pictures(name, "train", 2) | made.pictures(name, "test", 1)
    del made.good[name, "MOD/train/2_0.png"]
    files |= {"train.txt": "\n".join(LINES["train"][:2]).encode()}
    files |= {"test.txt": LINES["test"][0].encode()}
    for inside, data in files.items():
        made.write(f"MOD/{inside}", data)
    return made.pictures(name, "val", 1) | {"vaild.txt": LINES["val"][0].encode() + b"\r\n"}


def plant(root: Path) -> Original:
    """Write a release in the original's layout, with every defect in it."""
    made = Original(root)
    parts = {"sd21-base": base, "sd21": spanned, "sdxl": pairs, "mj52": beside, "mod": unpacked}
    shared: dict[str, bytes] = {"vaild/Thumbs.db": b"x", "vaild/lost/1_0.png": b"x"}
    for name, make in parts.items():
        shared |= {f"vaild/{SOURCES[name]}/{k}": v for k, v in make(made).items()}
    made.plant("mj52", "MJ/val/1_0.png", 1, "no caption: there is no val.txt")
    made.plant("sd21-base", "vaild.zip/vaild/Thumbs.db", None, STRAY)
    made.plant("sd21-base", "vaild.zip/vaild/lost/1_0.png", None, "no source: none of SD-2_1-B")
    made.write("vaild.zip", zipped(shared))
    made.write("README.md", b"comes along with a download")
    return made


SPLITS = {"train": "train", "val": "validation", "test": "test"}


def specification(path: Path) -> Path:
    """The published specification with small sizes and open counts."""
    data = yaml.safe_load((ROOT / "manifests" / "pku-original.yaml").read_text())
    for source in data["sources"].values():
        for part, name in SPLITS.items():
            size = source["splits"][name]
            size["width"], size["height"] = SIZES[part]
            del size["count"]
    data["sources"]["mod"]["splits"]["train"]["count"] = 1
    data["sources"]["mod"]["splits"]["validation"]["count"] = 2
    path.write_text(yaml.safe_dump(data))
    return path


def command(folder: Path, root: Path, run: Path) -> list[str]:
    options = [
        f"run={run}", f"plan.dataset={specification(folder / 'small.yaml')}",
        "plan.shard_mb=0.01", f"embeddings.folder={ROOT / 'pipeline/tiny/weights/clip'}",
        *(f"sources.{name}.path={root}" for name in SOURCES),
    ]  # fmt: skip
    return ["run", str(WORKFLOW), *(part for option in options for part in ("--set", option))]


@dataclass
class Finished:
    made: Original
    run: Path
    output: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("pku")
    made = plant(folder / "PKU-AIGI-500K")
    done = aigi_here(*command(folder, made.root, folder / "run"))
    assert done.returncode == 3, done.stderr
    yield Finished(made, folder / "run", done.stderr)


def test_every_planted_defect_is_rejected_with_its_reason(finished: Finished) -> None:
    store = Store(str(finished.run))
    found: list[tuple[str, str, int | None, str]] = []
    for table in ("plan", "images"):
        for row in store.read("rejects", table).to_pylist():
            place = row["file"].removeprefix(f"{finished.made.root}:")
            found.append((row["source"], place, row["line"], row["reason"]))
    found.sort(key=str)
    expected = sorted(finished.made.bad, key=str)
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    for (*_, reason), (*_, start) in zip(found, expected, strict=True):
        assert reason.startswith(start)
    assert len(found) == 25
    # And they are counted.
    by_reason = Counter(reason.split(":")[0] for *_, reason in found)
    assert f"{by_reason['no caption']} no caption" in finished.output
    failed = len(store.read("rejects", "images"))
    assert f"{failed} failed" in finished.output
    for found_, wanted in (("train: 2", 1), ("validation: 1", 2)):
        assert f"plan: mod {found_} images found, {wanted} needed" in finished.output


def test_what_is_missing_is_reported_at_the_end(finished: Finished) -> None:
    """One split has too few images; of those without a count, images that failed are missing."""
    last = finished.output[finished.output.index("error: fewer images than wanted") :]
    assert "mod validation: 1 of 2: 1 never planned" in last
    told = [int(count) for count in re.findall(r" (\d+) failed", last)]
    assert sum(told) == len(Store(str(finished.run)).read("rejects", "images"))
    assert "The exit code is 3; --allow-fewer makes it 0" in last


def test_everything_sound_arrives_as_it_was(finished: Finished) -> None:
    from datasets import load_dataset

    loaded: dict[tuple[str, str], dict[str, Any]] = {}
    for source in SOURCES:
        for part, name in SPLITS.items():
            if (source, part) == ("mj52", "val"):
                continue
            data = load_dataset(
                str(finished.run / "release"), source, split=name,
                cache_dir=str(finished.run / "cache"),
            )  # fmt: skip
            for row in data:
                assert (row["source"], row["path"].split("/")[1]) == (source, part)
                loaded[source, row["path"]] = row
    assert set(loaded) == set(finished.made.good)
    stored = {}
    store = Store(str(finished.run))
    for shard in store.shards("images"):
        for row in store.read("images", shard, ["image_id", "image"]).to_pylist():
            stored[row["image_id"]] = row["image"]
    for (source, name), data in finished.made.good.items():
        row = loaded[source, name]
        assert row["original_sha256"] == hashlib.sha256(data).hexdigest()
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert row["pixels_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
        np.testing.assert_array_equal(np.asarray(row["image"]), pixels)
        part, _, file = name.split("/", 1)[1].partition("/")
        line = int(Path(file).stem.split("_")[0])
        assert row["text"] == LINES[part][line - 1]
        if (source, name) == ("mj52", "MJ/train/1_0.png"):
            assert stored[row["image_id"]]["bytes"] != data, "RGBA is stored anew"
        else:
            # The bytes of its pixels as they were, and nothing of what it says beside them.
            assert stored[row["image_id"]]["bytes"] == bare_png(data)[0] != data
        assert b"a front end" not in stored[row["image_id"]]["bytes"]
        assert row["note"] == "left out: text"
    audited = aigi_here("verify", str(finished.run), "--pixels", "8")
    assert audited.returncode == 0, audited.stdout


def test_from_archives_to_a_published_release(finished: Finished, tmp_path: Path) -> None:
    """All the way: the rows that load at the tag are the pictures that were sound."""
    with serve(tmp_path / "hub") as hub:
        to = "hf://datasets/tester/pku"
        done = aigi("publish", str(finished.run), "--to", to, **hub.environment())
        assert done.returncode == 0, done.stderr
        loaded = re.findall(r"^(\S+): (\d+) rows loaded$", done.stdout, re.M)
        assert sum(int(rows) for _, rows in loaded) == len(finished.made.good)
        assert aigi("verify", f"{to}@v1.0.0", **hub.environment()).returncode == 0


def test_test_pairs_are_pairs_and_keep_their_own_pixels(finished: Finished) -> None:
    rows = Store(str(finished.run)).read_all("plan").to_pylist()
    pairs: dict[str, dict[str, str]] = {}
    for row in rows:
        assert (row["watermark"] == "none") == ("/watermark/" not in row["path"])
        if row["pair_id"] is None:
            continue
        assert (row["source"], row["split"]) == ("sdxl", "test")
        pairs.setdefault(row["pair_id"], {})[row["watermark"]] = row["path"]
        assert (row["watermark"] == "none") == (row["image_id"] == row["pair_id"])
    both = {"none": "SD-XL/test/1.png", "dwt-dct": "SD-XL/test/watermark/1.png"}
    assert list(pairs.values()) == [both]
    alone = [row for row in rows if row["path"] == "SD-XL/test/2.png"]
    assert [row["watermark"] for row in alone] == ["none"], "nothing is marked by us"


def test_shards_read_the_archives_in_their_order(finished: Finished) -> None:
    with zipfile.ZipFile(finished.made.root / "MJ" / "MJ.zip") as archive:
        order = [f"MJ/{name}" for name in archive.namelist() if name.startswith("train/")]
    store = Store(str(finished.run))
    shards = [name for name in store.shards("plan") if name.startswith("mj52-train")]
    assert len(shards) > 1
    assert [
        path for name in shards for path in store.read("plan", name)["path"].to_pylist()
    ] == order


def test_killed_in_mid_import_then_finished(finished: Finished, tmp_path: Path) -> None:
    options = command(tmp_path, finished.made.root, tmp_path / "run")
    # The process ends at its twentieth picture, as kill -9 ends it.
    code = (
        "import os, signal, sys\n"
        "from pipeline.images.importer import Importer\n"
        "row, seen = Importer._row, []\n"
        "def dying(self, plan):\n"
        "    seen.append(plan)\n"
        "    if len(seen) == 20:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return row(self, plan)\n"
        "Importer._row = dying\n"
        "from pipeline.cli import app\n"
        "app(sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9
    images = tmp_path / "run" / "images"
    kept = {path: path.stat().st_mtime_ns for path in images.glob("*.parquet")}
    assert 0 < len(kept) < len(list((finished.run / "images").glob("*.parquet")))
    # First without a release, to which the images move.
    for more in (["--set", "release=null"], []):
        done = aigi_here(*options, "--allow-fewer", *more)
        assert done.returncode == 0, done.stderr
        assert not more or all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert contents(tmp_path / "run") == contents(finished.run)


def test_a_missing_volume_is_named_before_any_work(finished: Finished, tmp_path: Path) -> None:
    volume = finished.made.root / "SD-2_1" / "SD21.z02"
    hidden = volume.rename(volume.with_name("elsewhere"))
    try:
        done = aigi_here(*command(tmp_path, finished.made.root, tmp_path / "run"))
    finally:
        hidden.rename(volume)
    assert done.returncode == 1
    assert f"error: {volume}: missing. " in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "plan").exists()


def test_published_counts_are_asked_for() -> None:
    """The specification of the import has the sizes and counts of the published table."""
    from pipeline.plan import specification as specifications

    theirs, ours = (
        specifications.load(str(ROOT / "manifests" / f"{name}.yaml"))
        for name in ("pku-original", "pku-aigi-500k")
    )
    assert list(theirs.sources) == list(ours.sources)
    for name, source in ours.sources.items():
        for part, spec in source.splits.items():
            other = theirs.sources[name].splits[part]
            for value in ("count", "width", "height", "watermarks"):
                assert getattr(other, value) == getattr(spec, value), (name, part, value)
