"""The original PKU-AIGI-500K release in; the images of one of its sources, with captions, out.

The release has one folder per source (`SD-2_1-B`, …) with `train`, `val` and `test` in it.
`12_0.png`, in train and val, shows line 12 (from 1) of that split's text file; so does `12.png` in
test. The release is shipped as archives: one or two per source, some split into volumes, and
`vaild.zip` with the validation parts of all. It is not documented how folders are nested in the
archives, or where the text files are. So a file is placed by the names along its path: the
outermost one that names a source (an archive counts as a folder), and the innermost one that
names a split.

Names along the path that mention a watermark tell the two variants of the SDXL test images
apart; the mark is taken to be `dwt-dct`, which diffusers embeds.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple, Self, get_args

from pipeline import AigiError
from pipeline.faults import MachineFault
from pipeline.files import decode_lines
from pipeline.outside import reached
from pipeline.pictures.names import EXTENSIONS, Caption, Escapes, wanted
from pipeline.pictures.pictures import FolderPictures
from pipeline.pictures.sources import OriginalSource
from pipeline.pictures.zips import ZipPictures
from pipeline.pixels import BadPicture
from pipeline.settings import Split

MARK = "dwt-dct"

SUBFOLDERS: tuple[str, ...] = get_args(OriginalSource.model_fields["subfolder"].annotation)
_SPELLED: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "vaild": "validation",  # as published
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_SHORT: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}
_SPLIT = re.compile(rf"({'|'.join(sorted(_SPELLED, key=len, reverse=True))})(?![a-z])")
_MARKED = re.compile(
    r"(?<![a-z])(?P<how>with|without|w[^a-z]?o|no|non|not|un)?[^a-z]*"
    r"(?:water[^a-z]*mark(?:ed|s)?|wm)(?![a-z])"
)
_LINE_INDEX = re.compile(r"([0-9]{1,9})_([0-9]{1,9})\.png")
_LINE = re.compile(r"([0-9]{1,9})([^0-9].*)?\.png")
_ARCHIVE = re.compile(r"(.*)\.(zip|z[0-9]{2,})", re.IGNORECASE | re.DOTALL)


_IN_MARKED = "/watermark/"


class _Folder(NamedTuple):
    """What the names along the path of a file state; None: nothing."""

    source: str | None
    split: Split | None
    marked: bool | None


class _Found(NamedTuple):
    """Where an image is, and what its name states about it."""

    container: int
    name: str
    split: Split
    line: int


class _Text(NamedTuple):
    """A text file: where it is, its lines, and the problem of each that is not UTF-8."""

    place: str
    lines: list[str]
    problems: dict[int, str]


class _Refused(NamedTuple):
    place: str
    reason: str
    line: int | None = None


def _plain(name: str) -> str:
    """`SD-2_1-B`, `sd21b` and `SD-2_1-B-part2.zip` are names of one source."""
    short = re.sub(r"([-_ ]?part[-_ ]?[0-9]+)?(\.zip)?$", "", name.casefold())
    return re.sub(r"[^a-z0-9]", "", short)


_SOURCES = {_plain(name): name for name in SUBFOLDERS}


def _source_of(name: str) -> str | None:
    return _SOURCES.get(_plain(name))


def _says_marked(name: str) -> bool | None:
    found = _MARKED.search(name.casefold())
    return None if found is None else found["how"] in (None, "with")


@lru_cache(maxsize=4096)
def _folder(path: str) -> _Folder:
    parts = path.split("/")
    sources = [_source_of(part) for part in parts]
    splits = [_SPLIT.match(part.casefold()) for part in reversed(parts)]
    marks = [_says_marked(part) for part in reversed(parts)]
    return _Folder(
        next((source for source in sources if source), None),
        next((_SPELLED[split[1]] for split in splits if split), None),
        next((marked for marked in marks if marked is not None), None),
    )


def _marked(name: str) -> str:
    """Name of an image's marked variant; of that one too."""
    folder, _, file = name.replace(_IN_MARKED, "/").rpartition("/")
    return f"{folder}{_IN_MARKED}{file}"


def _place(prefix: str, name: str) -> str:
    """Where a file is in the release: `SD-XL/SD-XL.zip/train/1_0.png`."""
    # Some programs write backslashes, and a file name may hold bytes that no text can.
    return f"{prefix}/{name}".replace("\\", "/").encode(errors="replace").decode()


def _split_of_text(place: str) -> Split | None:
    stem, ending = os.path.splitext(os.path.basename(place).casefold())
    return _SPELLED.get(stem) if ending == ".txt" else None


def _is_archive(place: str) -> re.Match[str] | None:
    """Match of a zip archive or a volume of one (groups: path without ending, ending)."""
    found = _ARCHIVE.fullmatch(place)
    hidden = found is not None and not wanted(place, frozenset([f".{found[2].lower()}"]))
    return None if hidden else found


def _archives(root: str, places: Iterable[str]) -> list[str]:
    """Archives among the files of a folder, sorted; of a split one, its last volume."""
    found: dict[str, str] = {}
    volumes: dict[str, str] = {}
    for place in sorted(places):
        match = _is_archive(place)
        if match is not None:
            (found if match[2].lower() == "zip" else volumes).setdefault(match[1], place)
    for stem, place in volumes.items():
        if stem not in found:
            raise AigiError(
                f"{os.path.join(root, stem)}.zip: missing. {os.path.basename(place)} is a volume "
                "of this archive, and this is its last; fetch it into the same folder."
            )
    return list(found.values())


class OriginalPictures:
    """The images of one source of the original release, wherever they are in it.

    An image is named as the release means it, `SD-XL/val/3_0.png`, however it is packed; a
    marked one is `SD-XL/test/watermark/3.png`. Where an image is both in an archive and unpacked
    beside it, the archive's copy is read: an unpacked file may be cut short.

    Raises:
        AigiError: no such folder, nothing of this source in it, an archive that is damaged or
            refused, a volume that is missing, or two text files that differ.
    """

    def __init__(self, source: OriginalSource) -> None:
        self.source = source
        self._containers: list[tuple[str, FolderPictures | ZipPictures]] = []
        self._found: dict[str, _Found] = {}
        self._twins: dict[str, list[_Found]] = defaultdict(list)
        self._shown: dict[Split, set[int]] = defaultdict(set)  # lines that have an image
        self._refused: list[_Refused] = []
        self._texts: dict[Split, _Text] = {}
        self._at_root: list[str] = []  # text files
        try:
            self._open()
            self._sort()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archives."""
        for _, container in self._containers:
            container.close()

    # --- Where things are ----------------------------------------------------------------------

    def _open(self) -> None:
        """Open the archives and folders of this source, and those that belong to no single one."""
        root, mine = self.source.path, self.source.subfolder
        try:
            inside = sorted(os.scandir(root), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            raise AigiError(
                f"{root}: no such folder; give the folder that contains {mine} and its archives"
            ) from None
        beside, folders = [], []
        for entry in inside:
            owner = _source_of(entry.name)
            if owner not in (mine, None):
                continue
            if not entry.is_dir():
                beside.append(entry.name)
            elif owner or _SPLIT.match(entry.name.casefold()):
                folders.append((entry.name, FolderPictures(entry.path)))
        self._at_root = [name for name in beside if _split_of_text(name) is not None]
        archives = _archives(root, beside)
        for name, folder in folders:
            archives += _archives(root, (f"{name}/{file}" for file in folder.files()))
        for place in archives:
            location = os.path.join(root, place)
            with reached(location):
                self._containers.append((place, ZipPictures(location)))
        self._containers += folders
        if not self._containers:
            raise AigiError(
                f"{root}: nothing of {mine} in it; path must be the folder that contains {mine} "
                "and the other sources, as archives or unpacked"
            )

    def _sort(self) -> None:
        """Sort all files into images, text files and refused ones."""
        texts: dict[Split, list[tuple[int, str]]] = defaultdict(list)
        for number, (prefix, container) in enumerate(self._containers):
            names = container.files()
            places = [_place(prefix, name) for name in names]
            owners = [_folder(place.rpartition("/")[0]).source for place in places]
            # What belongs to no source is shown once: by the first of those that are in there.
            first = next((known for known in SUBFOLDERS if known in owners), SUBFOLDERS[0])
            for name, place, owner in zip(names, places, owners, strict=True):
                if (owner or first) != self.source.subfolder:
                    continue
                if isinstance(container, FolderPictures) and _is_archive(place):
                    continue  # opened by itself
                split = _split_of_text(place)
                if not wanted(place, EXTENSIONS | {".txt"}):
                    self._refuse(place, "stray file: neither a picture nor a text of the release")
                elif owner is None:
                    self._refuse(place, f"no source: none of {', '.join(SUBFOLDERS)} on its way")
                elif split is not None:
                    texts[split].append((number, name))
                elif place.lower().endswith(".txt"):
                    self._refuse(place, "stray file: not train.txt, vaild.txt or test.txt")
                else:
                    self._take(number, name, place)
        self._settle_twins()
        for split, files in texts.items():
            self._read_texts(split, files)
        # A text beside the folders of the sources is for all of them.
        for name in self._at_root:
            split = _split_of_text(name)
            if split is not None and (split in self._shown or split in self._texts):
                self._read_text(split, name, FolderPictures(self.source.path), name)

    def _refuse(self, place: str, reason: str, line: int | None = None) -> None:
        self._refused.append(_Refused(place, reason, line))

    def _take(self, container: int, name: str, place: str) -> None:
        """Give an image the name that the release means, unless another one has it."""
        folder, _, file = place.rpartition("/")
        _, split, marked = _folder(folder)
        if split is None:
            self._refuse(place, "no split: none of train, val or test on its way")
            return
        if split == "test":
            match = _LINE.fullmatch(file.casefold())
            suffix = _says_marked(match[2]) if match and match[2] else None
            if match is None or (match[2] and suffix is None):
                self._refuse(place, "wrong name: a test picture is LINE.png")
                return
            marked = marked if suffix is None else suffix
            stem = f"{int(match[1])}"
        else:
            match = _LINE_INDEX.fullmatch(file.casefold())
            if match is None:
                self._refuse(place, f"wrong name: a {_SHORT[split]} picture is LINE_INDEX.png")
                return
            stem = f"{int(match[1])}_{int(match[2])}"
        line = int(match[1])
        meant = f"{self.source.subfolder}/{_SHORT[split]}/{stem}.png"
        if marked:
            meant = _marked(meant)
        self._shown[split].add(line)
        found = _Found(container, name, split, line)
        first = self._found.setdefault(meant, found)
        if first is found:
            return
        unpacked = isinstance(self._containers[container][1], FolderPictures)
        if not unpacked or isinstance(self._containers[first.container][1], FolderPictures):
            self._twins[meant].append(found)

    def _settle_twins(self) -> None:
        """Keep the first of several images of one name if all are equal, else none.

        If they differ, it is unknown which one is meant.
        """
        for meant, twins in self._twins.items():
            first = self._found[meant]
            same = len({self._checksum(found) for found in (first, *twins)}) == 1
            how = "the same picture as" if same else "another picture than"
            others = [(found, first) for found in twins]
            if not same:
                del self._found[meant]
                others.insert(0, (first, twins[0]))
            for found, other in others:
                reason = f"twice: {how} {self._place_of(other)}"
                self._refuse(self._place_of(found), reason, found.line)

    def _checksum(self, found: _Found) -> int | str:
        try:
            return self._containers[found.container][1].checksum(found.name)
        except (BadPicture, Escapes) as error:
            return str(error)

    def _place_of(self, found: _Found) -> str:
        return _place(self._containers[found.container][0], found.name)

    def _read_texts(self, split: Split, files: Iterable[tuple[int, str]]) -> None:
        """Read the text file of a split; where there are several, they must be the same."""
        for number, name in files:
            prefix, container = self._containers[number]
            self._read_text(split, _place(prefix, name), container, name)

    def _read_text(
        self, split: Split, place: str, container: FolderPictures | ZipPictures, name: str
    ) -> None:
        try:
            lines, problems = decode_lines(container.read(name))
        except (BadPicture, Escapes) as error:
            self._refuse(place, str(error))
            return
        text = self._texts.setdefault(split, _Text(place, lines, problems))
        if text.lines != lines:
            raise AigiError(
                f"{self.source.path}: {text.place} and {place} differ, so captions of "
                f"{self.source.subfolder} {split} are unknown; keep the right one"
            )

    # --- What the others read ------------------------------------------------------------------

    def captions(self) -> Iterator[Caption]:
        """Every image with its caption and split, in their order on disk.

        An image and its marked variant are one caption with two `variants`. Refused files and
        lines of the text files that no image shows follow, each with its reason.
        """
        for name, found in self._found.items():
            plain, marked = name.replace(_IN_MARKED, "/"), _marked(name)
            if name == marked and plain in self._found:
                continue
            there = {
                watermark: variant
                for watermark, variant in (("none", plain), (MARK, marked))
                if variant in self._found
            }
            text, problem = self._caption(found)
            if problem is None:
                variants = None if list(there) == ["none"] else there
                yield Caption(name, text, None, found.split, found.line, variants)
                continue
            for variant in there.values():
                yield Caption(variant, None, problem, found.split, found.line)
        for place, reason, line in self._refused:
            yield Caption(place, None, reason, None, line)
        for split, text_file in self._texts.items():
            for line, text in enumerate(text_file.lines, start=1):
                if text.strip() and line not in self._shown[split]:
                    problem = "no picture of this line"
                    yield Caption(text_file.place, text, problem, split, line)

    def _caption(self, found: _Found) -> tuple[str | None, str | None]:
        """The line that belongs to an image, or why there is none."""
        text = self._texts.get(found.split)
        if text is None:
            return None, f"no caption: there is no {_SHORT[found.split]}.txt"
        if not 1 <= found.line <= len(text.lines):
            return None, f"no caption: {text.place} has lines 1 to {len(text.lines)}"
        if found.line in text.problems:
            return None, f"no caption: {text.place}: {text.problems[found.line]}"
        caption = text.lines[found.line - 1].strip()
        return caption or None, None if caption else f"no caption: {text.place}: the line is empty"

    def _at(self, name: str) -> tuple[FolderPictures | ZipPictures, str]:
        try:
            found = self._found[name]
        except KeyError:
            # It was here when the plan was made; most likely a whole archive is not any more.
            raise MachineFault(
                f"{self.source.path}: {name} is not in the release any more. Put back its archive "
                "or file; to go on without this image, put an empty file in its place."
            ) from None
        return self._containers[found.container][1], found.name

    def read(self, name: str) -> bytes:
        """All bytes of an image.

        Raises:
            BadPicture: it is missing in its folder or archive, damaged, or larger than 512 MiB.
            Escapes: it is not in its folder or archive.
            MachineFault: its folder or archive is gone or cannot be read.
        """
        container, inside = self._at(name)
        return container.read(inside)

    def head(self, name: str, count: int) -> bytes:
        """The first `count` bytes of an image. Raises BadPicture, Escapes."""
        container, inside = self._at(name)
        return container.head(inside, count)
