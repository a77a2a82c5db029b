"""Names of programs in, their places or how to get them out; and one call of one program."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import AigiError
from pipeline.faults import MachineFault, killed_by, says_memory
from pipeline.files import scratch
from pipeline.pixels import RGB

SECONDS, DECODE_SECONDS = 3600, 300
"""A program that takes longer for one image is ended; damaged streams keep some decoders busy."""

EncoderSettings = Mapping[str, Any]
"""Settings of an encoder, as JSON knows them; a class of codecs says which ones it takes."""

UNKNOWN = "of unknown version"
"""In place of a version that a program does not tell."""

_SIZE = struct.Struct("<HH")
_LAUNCHER = """
import os, sys
report, *arguments = sys.argv[1:]
child = os.posix_spawnp(arguments[0], arguments, os.environ)
_, status, used = os.wait4(child, 0)
with open(report, "a") as file:
    print(used.ru_maxrss, file=file)
code = os.waitstatus_to_exitcode(status)
sys.exit(128 - code if code < 0 else code)
"""
_before: ContextVar[tuple[str, ...]] = ContextVar("_before", default=())
"""Arguments in front of those of every program: what starts it in our place."""


class Missing(AigiError):
    """A codec needs something that is not on this machine; the text says how to get it."""


class CodecFailed(AigiError):
    """A program could not code or decode this image."""


def find(program: str, programs: Mapping[str, str], hint: str) -> str:
    """Path of a program: as the settings say, else on PATH.

    Raises:
        Missing: it is in neither place.
    """
    given = programs.get(program)
    if given is not None:
        if not os.path.isfile(given):
            raise Missing(f"programs.{program}: {given}: no such file")
        return given
    found = shutil.which(program)
    if found is None:
        raise Missing(f"{program} is not on PATH. {hint}")
    return found


@lru_cache(maxsize=8)
def _encoders(ffmpeg: str) -> frozenset[str]:
    text = run([ffmpeg, "-hide_banner", "-encoders"]).decode(errors="replace")
    return frozenset(re.findall(r"^ [VAS][A-Z.]{5} (\S+)", text, re.M))


@lru_cache(maxsize=8)
def ffmpeg_version(ffmpeg: str) -> str:
    """`ffmpeg` and its version."""
    found = re.match(r"ffmpeg version (\S+)", run([ffmpeg, "-version"]).decode(errors="replace"))
    return f"ffmpeg {found[1] if found else UNKNOWN}"


def find_ffmpeg(encoder: str, programs: Mapping[str, str]) -> str:
    """Path of an ffmpeg that has this encoder: of the settings, of imageio-ffmpeg, or on PATH.

    Raises:
        Missing: there is none, or it was built without the encoder.
    """
    hint = "Install it with pip install 'aigi[codecs]' (a static ffmpeg with all encoders)."
    if "ffmpeg" in programs:
        path = find("ffmpeg", programs, hint)
    else:
        try:
            import imageio_ffmpeg

            path = imageio_ffmpeg.get_ffmpeg_exe()
        except (ImportError, RuntimeError):
            path = find("ffmpeg", programs, hint)
    if encoder not in _encoders(path):
        raise Missing(f"{path} was built without {encoder}. {hint}")
    return path


def finished(
    arguments: Sequence[str], data: bytes, seconds: float, folder: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    """A program that has ended, given `data` on its standard input, and what it wrote.

    If this process is stopped meanwhile, or loses patience, the program is ended with all that it
    has started.

    Args:
        folder: its current folder; None: ours.

    Raises:
        subprocess.TimeoutExpired: it took longer than `seconds`.
        OSError: it cannot be started.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        arguments, stdin=pipe, stdout=pipe, stderr=pipe, cwd=folder, process_group=0
    ) as process:
        try:
            out, said = process.communicate(data, timeout=seconds)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, said)


def run(arguments: Sequence[str], data: bytes = b"", seconds: float = SECONDS) -> bytes:
    """What a program writes to its standard output, given `data` on its standard input.

    Raises:
        CodecFailed: it ended with an error, or took too long.
        MachineFault: it was killed, or found too little memory; there is no such program any more.
    """
    name = os.path.basename(arguments[0])
    try:
        done = finished([*_before.get(), *arguments], data, seconds)
    except subprocess.TimeoutExpired:
        raise CodecFailed(f"{name}: ended after {seconds:g} s") from None
    except OSError as error:
        raise MachineFault(f"{arguments[0]}: cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        text = (done.stderr or done.stdout).decode(errors="replace").strip()
        said = text.splitlines()
        if signal := killed_by(done.returncode):
            raise MachineFault(f"{name}: ended by {signal} from outside (out of memory?)")
        if says_memory(text):
            raise MachineFault(f"{name}: out of memory: {said[0]}")
        raise CodecFailed(f"{name}: exit code {done.returncode}: {said[0] if said else '(silent)'}")
    return done.stdout


def peak_mib(work: Callable[[], object]) -> float:
    """MiB that the largest of the programs run by `work` had at its peak; at least about 10.

    Linux counts what a process shares with its parent before it becomes another program as its
    own, so not this process but a bare Python starts them.
    """
    with scratch("peak") as folder:
        report = Path(folder, "kib.txt")
        token = _before.set((sys.executable, "-I", "-S", "-c", _LAUNCHER, str(report)))
        try:
            work()
        finally:
            _before.reset(token)
        return max(map(int, report.read_text().split())) / 1024


def padded(image: RGB, multiple: int, least: int) -> RGB:
    """The uint8 H x W x 3 image, its last column and row repeated until a codec takes it."""
    height, width = image.shape[:2]
    more = [max(-(-side // multiple) * multiple, least) - side for side in (height, width)]
    if not any(more):
        return image
    return np.pad(image, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")


def with_size(image: RGB, stream: bytes) -> bytes:
    """A raw bitstream behind the width and height of a uint8 H x W x 3 image, 4 bytes."""
    height, width = image.shape[:2]
    if max(height, width) > 0xFFFF:
        raise CodecFailed(f"{width}x{height} pixels: a side is longer than 65,535")
    return _SIZE.pack(width, height) + stream


def split_size(data: bytes) -> tuple[int, int, bytes]:
    """Width, height and bitstream of what `with_size` made.

    Raises:
        CodecFailed: it did not make this.
    """
    if len(data) <= _SIZE.size:
        raise CodecFailed(f"{len(data)} bytes are no image")
    width, height = _SIZE.unpack_from(data)
    if not width or not height:
        raise CodecFailed(f"{width}x{height} pixels: damaged")
    return width, height, data[_SIZE.size :]
