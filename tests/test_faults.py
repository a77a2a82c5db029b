"""Which errors are the machine's and which a row's: real ones where this machine can make them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline import AigiError
from pipeline.codecs.command import CodecFailed, peak_mib, run
from pipeline.faults import MachineFault, killed_by, let_through, of_machine
from pipeline.folder import DiskFull
from pipeline.pictures.names import Absent
from pipeline.pixels import BadPicture
from pipeline.store import Store
from tests.conftest import ROOT


def of(number: int) -> OSError:
    return OSError(number, "x", "/a")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


MACHINE = [
    *(of(number) for number in (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTCONN)),
    *(of(number) for number in (errno.EACCES, errno.ENOSPC, errno.ENOMEM, errno.EMFILE)),
    ConnectionResetError(),
    TimeoutError("read"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: device-side assert triggered", 710),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("HIP error: the operation cannot be performed in the present state"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    DiskFull("full"),
    MachineFault("x"),
    caused(AigiError("embeddings: set a smaller batch_size"), torch.OutOfMemoryError("x")),
    caused(CodecFailed("JPEG: x"), of(errno.EIO)),
]
ROWS = [
    *(of(number) for number in (errno.ENOENT, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)),
    OSError("image file is truncated"),
    MemoryError("a damaged header asked for 8 TiB, and there is memory enough"),
    RuntimeError("The size of tensor a (77) must match the size of tensor b (93)"),
    ValueError("`prompt` has to be of type `str`"),
    BadPicture("damaged"),
    Absent(),
    CodecFailed("ffmpeg: exit code 1: no such size"),
    AigiError("decoded to 3x3 pixels"),
]


@pytest.mark.parametrize("error", MACHINE, ids=repr)
def test_of_the_machine(error: Exception) -> None:
    assert of_machine(error)
    with pytest.raises(MachineFault):
        let_through(error, "somewhere")


@pytest.mark.parametrize("error", ROWS, ids=repr)
def test_of_a_row(error: Exception) -> None:
    assert not of_machine(error)
    let_through(error, "somewhere")


def test_a_pool_whose_process_was_killed_is_the_machines() -> None:
    with ProcessPoolExecutor(1) as pool:
        error = pool.submit(_die).exception()
    assert error is not None and of_machine(error)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


LIMITED = """
import io, resource
import numpy as np
from PIL import Image
from pipeline.folder import DiskFull
from pipeline.faults import MachineFault
from pipeline.pixels import BadPicture, decode

file = io.BytesIO()
Image.new("RGB", (6000, 6000)).save(file, "PNG")
used = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmSize" in line) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + {room}, -1))
try:
    decode(file.getvalue(), 1 << 26)
except BadPicture as error:
    print("row", error)
except MachineFault as error:
    print("machine", error)
else:
    print("decoded")
"""


@pytest.mark.parametrize(("room", "said"), [(40 << 20, "machine"), (3 << 30, "decoded")])
def test_an_image_is_not_blamed_for_a_machine_without_memory(room: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(room=room)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith(said), done.stdout + done.stderr


# What a real program ends with, and whether the image that it was given is to blame.
ENDS = {
    "kill -KILL $$": True,
    "kill -TERM $$": True,
    "kill -BUS $$": True,
    "sh -c 'kill -KILL $$'": True,  # a shell in between says 137
    "kill -SEGV $$": False,
    "kill -ABRT $$": False,
    "echo 'x265 [error]: malloc of size 400000 failed' >&2; exit 1": True,
    "echo \"terminate called after throwing an instance of 'std::bad_alloc'\" >&2; exit 1": True,
    "echo 'width not supported' >&2; exit 1": False,
    "exit 255": False,
}


@pytest.mark.parametrize(("script", "machine"), ENDS.items())
def test_programs_that_are_killed_or_find_no_memory(script: str, machine: bool) -> None:
    for call in (run, lambda arguments: peak_mib(lambda: run(arguments))):
        with pytest.raises(MachineFault if machine else CodecFailed) as caught:
            call(["sh", "-c", script])
        assert of_machine(caught.value) == machine
        assert "\n" not in str(caught.value)


def test_a_program_that_is_gone_is_the_machines(tmp_path: Path) -> None:
    program = tmp_path / "encoder"
    with pytest.raises(MachineFault, match="encoder: cannot be started: No such file"):
        run([str(program)])
    program.write_text("#!/bin/sh\n")
    with pytest.raises(MachineFault, match="cannot be started: Permission denied"):
        run([str(program)])


def test_exit_codes_that_are_no_signal() -> None:
    assert [killed_by(code) for code in (0, 1, 2, 127, 128, 255, -11, 139)] == [None] * 8
    assert [killed_by(code) for code in (-9, 137, -15, 143)] == ["SIGKILL"] * 2 + ["SIGTERM"] * 2


def test_a_disk_that_fails_is_no_reason_to_delete_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = pa.schema([("a", pa.int64())])
    store = Store(str(tmp_path))
    store.write("t", "s", pa.table({"a": [1]}, schema=schema), schema)

    def broken(*given: object, **options: object) -> None:
        raise of(errno.EIO)

    with monkeypatch.context() as patched:
        patched.setattr(pq, "read_table", broken)
        patched.setattr(pq, "ParquetFile", broken)
        for read in (lambda: store.read("t", "s"), lambda: list(store.rows_at("t", "s", [0]))):
            with pytest.raises(MachineFault, match=r"s\.parquet: OSError: \[Errno 5\]"):
                read()
    (tmp_path / "t" / "s.parquet").write_bytes(b"PAR1")
    with pytest.raises(AigiError, match="--rehash"):
        store.read("t", "s")
