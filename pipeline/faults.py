"""An error in; whether the machine is at fault, or the one row that was being made, out.

A row keeps its own faults: a damaged file, an image without a number in it, a codec that does not
take a size. Those of the machine say nothing about a row: a device, memory, a disk, a network, a
mount that went away, a program that was killed. They fail the shard, and the same command makes it
again. Whoever turns an error into the fault of a row asks here first.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import signal
from collections.abc import Callable, Iterator

from pipeline import AigiError


class MachineFault(AigiError):
    """The machine failed, so the shard does too; it is no verdict on any of its rows."""


_DEVICE = re.compile(
    r"\bCUDA (error|driver|out of memory|failure)|\b(cuDNN|CUDNN_|cuBLAS|CUBLAS_|CUSOLVER_|CUFFT_)"
    r"|\bNCCL\b|\bHIP (error|out of memory)|\bMIOpen\b|\bMPS backend\b|\bXPU out of memory"
    r"|device-side assert|unspecified launch failure|illegal memory access"
)
"""What torch and the libraries of devices say; a RuntimeError like any other, but for its text."""
_MEMORY = re.compile(
    r"out of memory|can(no|')t allocate memory|not enough memory|_ALLOC_FAILED|bad_alloc"
    r"|\bMemoryError\b|Invalid buffer size|malloc of size \d+ failed|could not create a primitive",
    re.IGNORECASE,
)
"""What torch, C++ and programs say when memory is short: the CPU's or a device's."""
_ROOM = 1 << 30
_DEVICE_TYPES = {"torch.OutOfMemoryError", "torch.AcceleratorError"}
_NETWORK = {
    "aiohttp", "azure", "botocore", "google", "httpcore", "httpx", "httpx2", "huggingface_hub",
    "requests", "urllib3",
}  # fmt: skip
"""Packages whose errors tell of the way to a file, and not of the file."""
_OF_A_NAME = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
}  # fmt: skip
"""Numbers that are about one name. All others are about the disk, its mount or its permissions."""
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS}
"""Signals that a program raises by itself, at what it was given; all others come from outside."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _types(error: BaseException) -> Iterator[str]:
    for kind in type(error).__mro__:
        yield f"{kind.__module__}.{kind.__qualname__}"


def _room() -> bool:
    """Whether this process can still get as much memory as any image needs."""
    try:
        mmap.mmap(-1, _ROOM).close()  # pages that nobody touches cost nothing
    except OSError:
        return False
    return True


def short_of_memory(error: BaseException) -> bool:
    """Whether memory was too small, a device's or the machine's: less at once may fit.

    A MemoryError while there is plenty is none: a damaged file may ask for any amount.
    """
    if isinstance(error, MemoryError):
        return not _room()
    if "torch.OutOfMemoryError" in _types(error):
        return True
    return isinstance(error, RuntimeError | OSError) and says_memory(str(error))


def says_memory(text: str) -> bool:
    """Whether this is what a program says when memory is short."""
    return _MEMORY.search(text) is not None


def of_machine(error: BaseException) -> bool:
    """Whether the machine is at fault, by the error itself or by what it was raised from."""
    return any(_of_machine(one) for one in _chain(error))


def _of_machine(error: BaseException) -> bool:
    if isinstance(error, MachineFault) or short_of_memory(error):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return not of_a_name(error)
    types = list(_types(error))
    if isinstance(error, ConnectionError | TimeoutError) or _DEVICE_TYPES & {*types}:
        return True
    if _NETWORK & {name.partition(".")[0] for name in types}:
        return True
    # A pool whose process died; the classes are in modules that are slow to load.
    if any(name.startswith("concurrent.futures") and "Broken" in name for name in types):
        return True
    return isinstance(error, RuntimeError) and _DEVICE.search(str(error)) is not None


def of_a_name(error: OSError) -> bool:
    """Whether an error only says that a name is no file: no such file, a folder, too long."""
    return error.errno in _OF_A_NAME


def in_short(error: BaseException) -> str:
    """One line of an error: its kind, and the beginning of its text."""
    text = " ".join(str(error).split())[:300]
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def let_through(error: Exception, where: str = "") -> None:
    """Raise a fault of the machine; return for any other error, which may be that of a row.

    Args:
        where: what was being done, for the message.

    Raises:
        MachineFault: the machine is at fault.
    """
    if isinstance(error, MachineFault):
        raise error
    if of_machine(error):
        text = str(error) if isinstance(error, AigiError) else in_short(error)
        raise MachineFault(f"{where}: {text}" if where else text) from error


def killed_by(exit_code: int) -> str | None:
    """The signal from outside that ended a program, by its exit code; None: it ended by itself.

    A shell in between reports 128 and the number of the signal.
    """
    number = -exit_code if exit_code < 0 else exit_code - 128
    try:
        found = signal.Signals(number)
    except ValueError:
        return None
    return None if found in _CRASHES else found.name


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int] | None:
    """What tells a folder from another one in its place; None: there is none."""
    try:
        found = os.stat(folder)
    except OSError as error:
        if of_a_name(error):
            return None
        raise MachineFault(f"{folder}: {error.strerror}") from error
    return found.st_dev, found.st_ino


def holds(folder: str | os.PathLike[str], wanted: Callable[[str], bool]) -> bool:
    """Whether a file with a wanted name is in a folder or below; looks only until it finds one."""
    with os.scandir(folder) as entries:
        inside = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                inside.append(entry.path)
            elif wanted(entry.name):
                return True
    return any(holds(path, wanted) for path in inside)


class Folders:
    """Folders as they were when they were first read: a mount that goes away leaves another one."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, int] | None] = {}

    def read(self, folder: str | os.PathLike[str]) -> None:
        """Remember a folder in which a file could be read."""
        name = os.fspath(folder)
        if name not in self._first:
            self._first[name] = _identity(name)

    def lost(self, folder: str | os.PathLike[str], wanted: Callable[[str], bool]) -> str | None:
        """What has become of a folder in which a file is missing; None: it is as it was.

        Raises:
            MachineFault: it cannot be looked at.
        """
        now = _identity(folder)
        if now is None:
            return "is gone"
        if now != self._first.get(os.fspath(folder), now):
            return "was replaced"
        return None if holds(folder, wanted) else "has no images"
