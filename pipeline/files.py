"""Files in, hashes and lines of text out; files that appear whole or not at all."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import AigiError
from pipeline.outside import file_system, on_this_machine, reached


def resource(name: str) -> Path:
    """A file of `prompts/`, `manifests/` or `workflows/`, in a checkout or in an installed wheel.

    Raises:
        AigiError: the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for root in (package / "data", package.parent):
        if (root / name).exists():
            return root / name
    raise AigiError(f"{name}: missing from this installation; install aigi again")


def file_sha256(path: str) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: str, weights: str) -> dict[str, str]:
    """Name and sha256 of the weights and of every configuration file beside them."""
    kinds = (".json", ".txt", ".model")
    return {
        name: file_sha256(os.path.join(folder, name))
        for name in sorted(os.listdir(folder))
        if name.endswith(kinds) or name == os.path.basename(weights)
    }


_TEMPORARY = re.compile(r"^\..*\.(?P<pid>\d+)@(?P<host>.+)\.[0-9a-f]{32}\.tmp$")
_NAME = 40  # characters of a file's name in that of its temporary file, which has a limit too


@contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary name for a file that appears as `path` at the end, on disk and whole.

    After an error `path` is what it was.
    """
    folder, base = os.path.split(os.fspath(path))
    writer = f"{os.getpid()}@{socket.gethostname()}"
    name = os.path.join(folder, f".{base[:_NAME]}.{writer}.{uuid.uuid4().hex}.tmp")
    try:
        yield name
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file or none.

    What a killed process left beside the file, of another try to write it, is removed.

    Raises:
        AigiError: it cannot be written there.
    """
    folder, base = os.path.split(on_this_machine(path))
    with reached(os.fspath(path)):
        _sweep_files(
            folder or ".", (n for n in os.listdir(folder or ".") if n[1:].startswith(base[:_NAME]))
        )
        with replaced(path) as name:
            Path(name).write_bytes(data)


def alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # A dead child that nobody has asked for still has its number.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def sweep(folder: str) -> None:
    """Remove what `replaced` could not, because its process was killed, at any depth."""
    for where, _, names in os.walk(folder):
        _sweep_files(where, names)


def _sweep_files(folder: str, names: Iterable[str]) -> None:
    for name in names:
        writer = _TEMPORARY.search(name)
        if writer is None:
            continue
        path = os.path.join(folder, name)
        dead = writer["host"] == socket.gethostname() and not alive(int(writer["pid"]))
        with suppress(FileNotFoundError):
            # Of another machine's writer only the age is known; a live one is younger.
            if dead or time.time() - os.path.getmtime(path) > 86_400:
                os.unlink(path)


_SCRATCH = re.compile(r"^aigi-[a-z]+-(?P<pid>\d+)@(?P<host>.+)-[^-]+$")


@contextmanager
def scratch(purpose: str) -> Iterator[str]:
    """A folder on this machine's own disk, for the time of a block.

    Its name has its owner, so that `sweep_scratch` finds it if the owner is killed.

    Args:
        purpose: a word of small letters, for who finds the folder.

    Raises:
        AigiError: there is no place for temporary files.
    """
    _sweep_scratch_once()
    owner = f"{os.getpid()}@{socket.gethostname()}"
    with reached(tempfile.gettempdir()):
        folder = tempfile.mkdtemp("", f"aigi-{purpose}-{owner}-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch() -> None:
    """Remove folders of `scratch` whose owners were killed."""
    try:
        names = os.listdir(tempfile.gettempdir())
    except OSError:
        return
    for name in names:
        owner = _SCRATCH.search(name)
        if owner is None:
            continue
        folder = os.path.join(tempfile.gettempdir(), name)
        # Who lives on another machine is not known here, and may be silent for long.
        mine = owner["host"] == socket.gethostname()
        if not alive(int(owner["pid"])) if mine else _untouched(folder) > _DAYS * 86_400:
            shutil.rmtree(folder, ignore_errors=True)


_sweep_scratch_once = cache(sweep_scratch)
_DAYS = 7


def _untouched(folder: str) -> float:
    """Seconds since something in a folder was written."""
    times = [0.0]
    for where, _, names in os.walk(folder):
        for path in (where, *(os.path.join(where, name) for name in names)):
            with suppress(FileNotFoundError):
                times.append(os.path.getmtime(path))
    return time.time() - max(times)


_SIGNS = frozenset("*?[")
INVALID = "invalid UTF-8"


# "surrogateescape" turns each byte that is not UTF-8 into one of these.
ESCAPED = re.compile("[\udc80-\udcff]")


def decode_lines(block: bytes, first: int = 1) -> tuple[list[str], dict[int, str]]:
    """Lines of a text without their endings, and the problem of each that is not UTF-8.

    Args:
        block: whole lines.
        first: number of the first; where it is 1, a byte order mark is dropped.
    """
    if first == 1:
        block = block.removeprefix(codecs.BOM_UTF8)
    valid = True
    try:
        text = block.decode()
    except UnicodeDecodeError:
        text, valid = block.decode("utf-8", "surrogateescape"), False
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    lines = text.split("\n")
    if not lines[-1]:  # what follows the last line end is no line
        lines.pop()
    if valid:
        return lines, {}
    return lines, {n: INVALID for n, line in enumerate(lines, first) if ESCAPED.search(line)}


def fixed_part(path: str) -> str | None:
    """The folder, with its `/`, that all files of a pattern of names are below.

    Returns: None where a path can be no pattern. A file may still have such a name. In a URL a `?`
    begins what signs it, and servers of HTTP list nothing.
    """
    signs = _SIGNS if "://" not in path else _SIGNS - {"?"}
    if path.startswith(("http://", "https://")) or not signs & set(path):
        return None
    first = min(path.index(sign) for sign in signs & set(path))
    return path[: path.rfind("/", 0, first) + 1]


def signature(path: str) -> dict[str, Any]:
    """Size of a file and a hash of its content: of all up to 64 MiB, of three samples beyond.

    Of a folder, or of the files that fit a pattern, names and sizes are hashed.

    Raises:
        AigiError: no such file, or it cannot be read.
    """
    fs, name = file_system(path)
    try:
        info = fs.info(name)
    except FileNotFoundError:
        fitting = {} if fixed_part(path) is None else fs.glob(name, detail=True)
        if not fitting:
            raise AigiError(f"{path}: no such file or folder") from None
        info, name = {"type": "pattern"}, ""
    if info["type"] != "file":
        files = fitting if info["type"] == "pattern" else fs.find(name, detail=True)
        listing = sorted(
            (file[len(name) :], int(item["size"] or 0)) for file, item in files.items()
        )
        return {"files": len(listing), "sha256": hashlib.sha256(repr(listing).encode()).hexdigest()}
    size, sample = int(info["size"] or 0), 1 << 20
    digest = hashlib.sha256()
    with reached(path), fs.open(name, "rb") as file:
        if size <= 64 * sample:
            digest.update(file.read())
        else:
            for start in (0, size // 2, size - sample):
                file.seek(start)
                digest.update(file.read(sample))
    return {"bytes": size, "sha256": digest.hexdigest()}
