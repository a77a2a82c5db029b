"""Locations in, open files and file systems out; or one line that says why not, and what to do.

Every path and fsspec URL that a user gives is opened here. A server that accepts a connection and
says nothing is given up after a while. A file that does not exist stays a FileNotFoundError:
whether it exists is often the question.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import IO, Any

from pipeline import AigiError
from pipeline.hub_said import cause_of, no_such
from pipeline.shown import public_url

_S3 = ("s3", "s3a")
ABANDONED = timedelta(days=2)
"""An upload to S3 has no owner whose life could be asked for; one this old has none."""
_OURS = (AigiError, MemoryError, UnicodeError, TypeError, AttributeError, NameError, AssertionError)
"""What a file system raises, but the outside does not cause."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_AGAIN = "Check the address, the network and the credentials, then run the same command again."


def silence() -> float:
    """Seconds that a server may say nothing, for each of a few attempts.

    Raises:
        AigiError: `AIGI_TIMEOUT` is no number of seconds.
    """
    text = os.environ.get("AIGI_TIMEOUT") or "15"
    with suppress(ValueError):
        if (seconds := float(text)) > 0:
            return seconds
    raise AigiError(f"AIGI_TIMEOUT: {text}: expected seconds above 0, for example 15")


class Unreachable(AigiError):
    """A location that cannot be read or written, and what to do about it."""


def protocol_of(location: str) -> str:
    """`s3` of `s3://…`; empty for a path of this machine."""
    return location.partition("://")[0] if "://" in location else ""


def in_short(error: BaseException) -> str:
    """The text of an error in one line; of one without a text, its kind."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _absent(error: BaseException) -> bool:
    """Whether the file is what is missing, and not the server, the bucket or the answer."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or _bucket(error) or no_such(error):
        return False
    if isinstance(cause, (TimeoutError, ConnectionError)):
        return False
    # fsspec makes a FileNotFoundError of whatever goes wrong with HTTP.
    http = cause is not None and type(cause).__module__.startswith("aiohttp")
    return not http or getattr(cause, "status", None) in (404, 410)


def _bucket(error: BaseException) -> bool:
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code == "NoSuchBucket"


def _said(location: str, error: Exception) -> str:
    """What is wrong with a location, and what to do."""
    local = "://" not in location
    if (cause := cause_of(error)) is not None:
        # What its clients say beside that is long, and names the address that was asked.
        detail = "" if no_such(error) else f" ({in_short(error)})"
        return f"{cause.what}{detail}. {cause.remedy}"
    if _bucket(error):
        return "there is no such bucket. Correct its name, or create it."
    if isinstance(error, PermissionError):
        what = "permission denied" if local else f"access denied: {in_short(error)}"
        return f"{what}. Change its rights or use credentials that have them."
    if isinstance(error, IsADirectoryError):
        return "is a folder, but a file is needed. Correct the path."
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return "a part of this path is a file, but a folder is needed. Correct the path."
    if isinstance(error, FileNotFoundError) and _absent(error):
        return "no such file or folder. Correct the path."
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return "the file system is read-only. Use another place, or mount it to be written."
    if local and isinstance(error, OSError):
        return f"cannot be read or written: {error.strerror or in_short(error)}. Check the disk."
    if isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower():
        return f"no answer in time ({in_short(error)}). {_AGAIN}"
    inner = error.__cause__ if isinstance(error, FileNotFoundError) else None
    if (status := getattr(inner or error, "status", None)) in (401, 403):
        return (
            f"access denied (HTTP status {status}). If its signature has expired, get the address "
            "anew; else use credentials that have the rights."
        )
    return f"cannot be reached: {in_short(inner or error)}. {_AGAIN}"


def unreachable(location: str, error: Exception) -> Exception:
    """The error to raise where `location` gave `error`: that itself, if it is not the outside's."""
    if isinstance(error, _OURS) or getattr(error, "errno", None) in _FULL:
        return error
    # The file at fault may lie deep below the location.
    file = str(getattr(error, "filename", None) or "")
    if file.startswith(location):
        location = file
    return Unreachable(f"{location}: {_said(location, error)}")


@contextmanager
def reached(location: str) -> Iterator[None]:
    """Around work on the files of a location: explain its OSErrors, a missing file too.

    Raises:
        Unreachable: names the location, and what to do.
    """
    try:
        yield
    except OSError as error:
        raise unreachable(location, error) from error


def on_this_machine(path: str | os.PathLike[str]) -> str:
    """The path, if it is one of this machine.

    Raises:
        Unreachable: it is a URL; as a path it would mean a folder named for the protocol.
    """
    found = os.fspath(path)
    if url := re.match(r"([A-Za-z][A-Za-z0-9+]+):/+", found):
        raise Unreachable(
            f"{url[1]}://{found[url.end() :]}: a URL, but only a path on this machine can be given "
            "here."
        )
    return found


def created(path: str) -> IO[bytes]:
    """A new local file, open for writing and for reading what was written.

    Raises:
        Unreachable: it cannot be made.
    """
    with reached(path):
        return open(path, "w+b")


class _Explained:
    """An object of fsspec whose methods raise `Unreachable`, or FileNotFoundError."""

    def __init__(self, inner: Any, location: str, root: str, local: bool) -> None:
        self._inner, self._location, self._root, self._local = inner, location, root, local

    def _call(self, method: Callable[..., Any], location: str, *given: Any, **more: Any) -> Any:
        try:
            return method(*given, **more)
        except Exception as error:
            if _absent(error) or (self._local and not isinstance(error, OSError)):
                raise
            found = unreachable(location, error)
            if found is error:
                raise
            raise found from error

    def _where(self, given: tuple[Any, ...]) -> str:
        return self._location

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self._inner, name)
        if name.startswith("_") or not callable(value):
            return value

        def explained(*given: Any, **more: Any) -> Any:
            return self._call(value, self._where(given), *given, **more)

        return explained


class _File(_Explained):
    """An open file of a server."""

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        while line := self.readline():
            yield line


class _FileSystem(_Explained):
    """A file system. Paths are its own, as `url_to_fs` returns them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self._location,)

    def _where(self, given: tuple[Any, ...]) -> str:
        # `put_file` has a path of this machine before its own.
        paths = [path for path in given if isinstance(path, str)]
        mine = next((path for path in paths if path.startswith(self._root)), None)
        if self._local:
            return paths[0] if paths else self._root
        return self._location.rstrip("/") + ("" if mine is None else mine[len(self._root) :])

    def open(self, path: str, *given: Any, **more: Any) -> Any:
        """An open file. Raises FileNotFoundError, Unreachable."""
        where = self._where((path,))
        file = self._call(self._inner.open, where, path, *given, **more)
        return file if self._local else _File(file, where, path, self._local)

    def makedirs(self, path: str, **more: Any) -> None:
        """Make a folder, where there are folders. Raises Unreachable."""
        # Where there are none, a bucket would be made, of a name with a mistake in it.
        if protocol_of(self._location) not in (*_S3, "gs", "gcs", "abfs", "az"):
            self._call(self._inner.makedirs, self._where((path,)), path, **more)

    def sweep_uploads(self, path: str) -> None:
        """Abort uploads below a folder that were begun on S3 days ago and never ended."""
        if protocol_of(self._location) not in _S3:
            return
        bucket, _, prefix = path.rstrip("/").partition("/")
        before = datetime.now(UTC) - ABANDONED
        # Nobody else depends on it, and not everybody may list uploads.
        with suppress(Unreachable, FileNotFoundError):
            found = self.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
            for upload in found.get("Uploads", ()):
                if upload["Initiated"] < before:
                    named = {"Bucket": bucket, "Key": upload["Key"]}
                    self.call_s3("abort_multipart_upload", **named, UploadId=upload["UploadId"])

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder. Raises Unreachable where nobody knows."""
        try:
            self._call(self._inner.info, self._where((path,)), path)
        except FileNotFoundError:
            return False
        return True

    def find(self, path: str, **more: Any) -> Any:
        """All files below a folder. What cannot be listed is an error, and not left out."""

        def refuse(error: OSError) -> None:
            raise error

        if _walks(self._inner):
            more["on_error"] = refuse
        return self._call(self._inner.find, self._where((path,)), path, **more)


def _walks(fs: Any) -> bool:
    """Whether `find` walks folder by folder, and leaves out what it cannot list."""
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    if isinstance(fs, AsyncFileSystem):
        return type(fs)._find is AsyncFileSystem._find
    return type(fs).find is AbstractFileSystem.find


def _limits(protocol: str) -> dict[str, Any]:
    """Arguments of a file system that bound how long it waits for an answer."""
    if protocol in _S3:
        # s3fs itself tries five times.
        retries = {"mode": "standard", "total_max_attempts": 2}
        times = {"connect_timeout": silence(), "read_timeout": silence()}
        return {"config_kwargs": {**times, "retries": retries}}
    if protocol in ("http", "https"):
        import aiohttp

        # Without this, a file that takes longer than five minutes is cut off.
        limit = aiohttp.ClientTimeout(total=None, sock_connect=silence(), sock_read=silence())
        return {"client_kwargs": {"timeout": limit}}
    return {"timeout": silence()} if protocol == "ftp" else {}


_HUB_WAITS = 4
"""Times `silence` that the Hub may think: it answers a commit of many files late."""


@cache
def hub_with_limits() -> None:
    """Let no client of the Hub wait for ever, which many of its calls do where it is silent."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def limit(request: Any) -> None:
        waits = {"read": _HUB_WAITS * silence()}
        given = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {
            part: waits.get(part, silence()) if given.get(part) is None else given[part]
            for part in ("connect", "read", "write", "pool")
        }

    def client() -> Any:
        made = default_client_factory()
        hooks = made.event_hooks
        made.event_hooks = {**hooks, "request": [*hooks.get("request", ()), limit]}
        return made

    set_client_factory(client)


def _without_expecting(fs: Any) -> None:
    """Send files to S3 at once: where it is silent, the wait for `100 Continue` has no limit."""
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    fs.session = AioSession(**fs.kwargs)
    fs.session.unregister("before-call.s3", add_expect_header)


def _same(location: str) -> Any:
    return file_system(location)[0]


def file_system(location: str) -> tuple[Any, str]:
    """The file system of a location, and the path in it.

    Raises:
        Unreachable: there is no such protocol, or nobody answers.
    """
    import fsspec

    # Other processes write there too: a remembered listing would hide their files.
    options: dict[str, Any] = {"use_listings_cache": False}
    for part in location.split("::"):
        protocol = protocol_of(part)
        if protocol == "hf":
            hub_with_limits()
        set_by_user = fsspec.config.conf.get(protocol, {})
        mine = {name: v for name, v in _limits(protocol).items() if name not in set_by_user}
        if mine:
            options[protocol] = mine
    try:
        fs, root = fsspec.core.url_to_fs(location, **options)
    except (ImportError, ValueError) as error:
        hint = ". For S3: pip install 'aigi[s3]'" if location.startswith("s3") else ""
        raise Unreachable(f"{location}: {in_short(error)}{hint}") from error
    except Exception as error:  # ftp, sftp and others connect here
        raise unreachable(location, error) from error
    if getattr(fs, "session", fs) is None and protocol_of(location) in _S3:
        _without_expecting(fs)
    local = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
    return _FileSystem(fs, root if local else location, root, local), root


class _Zstd(io.RawIOBase):
    """A file packed by zstd, read with the codec that Arrow brings along.

    Damage is an EOFError, as where a file packed otherwise is cut.
    """

    def __init__(self, raw: Any) -> None:
        import pyarrow as pa

        self._stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            if error.errno is None:
                raise EOFError(in_short(error)) from error
            raise
        buffer[: len(data)] = data
        return len(data)


def compression_of(path: str) -> str | None:
    """How a file is packed, by the ending of its name: .gz, .bz2, .xz, .zst; None: it is not."""
    from fsspec.utils import infer_compression

    if path.lower().endswith((".zst", ".zstd")):
        return "zstd"
    found: str | None = infer_compression(path.lower())
    return found


def _unpacked(raw: Any, compression: str | None) -> Any:
    from fsspec.compression import compr

    if compression is None:
        return raw
    if compression == "zstd":
        return io.BufferedReader(_Zstd(raw), 1 << 16)
    return compr[compression](raw, mode="rb")


@contextmanager
def opened(location: str, encoding: str | None = None, unpack: bool = False) -> Iterator[Any]:
    """A file, open for reading: bytes, or text where an encoding is given.

    Args:
        unpack: whether what its ending (.gz, .bz2, .xz, .zst) says is packed is unpacked.

    Raises:
        FileNotFoundError: no such file.
        Unreachable: it cannot be read.
    """
    fs, path = file_system(location)
    with fs.open(path, "rb") as raw:
        # The ending of a signed link is in front of its signature.
        file = _unpacked(raw, compression_of(public_url(location)) if unpack else None)
        if encoding is not None:
            file = io.TextIOWrapper(file, encoding=encoding)
        try:
            yield file
        except OSError as error:
            if _absent(error):
                raise
            raise unreachable(location, error) from error
