"""Requests for images in, an endpoint's answers out: whole, bounded, and in time.

An endpoint speaks OpenAI's images API: `POST {url}/images/generations`, `GET {url}/models`. One
that is busy, silent or broken is asked again, a few times; each attempt has an end, and so has each
wait. The key is in the header of requests to the endpoint and nowhere else: in no request to
another host, and in no text of an answer that is kept.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import __version__
from pipeline.complaints import near
from pipeline.faults import MachineFault
from pipeline.images.endpoint.address import Stopped, Unfit, Way, allowed
from pipeline.images.endpoint.replies import (
    LATER,
    Again,
    Found,
    Reply,
    Unusable,
    fault,
    found_in,
    parsed,
)
from pipeline.outside import in_short, silence
from pipeline.shown import one_line

if TYPE_CHECKING:
    import httpx2

R = TypeVar("R")
T = TypeVar("T")

LONGEST_WAIT = 600.0
"""Seconds that an endpoint may ask for with `Retry-After`; one that asks for more is given up."""
FIRST_WAIT = 1.0
"""Seconds after the first failed attempt, doubled with each; one that asks for more gets it."""
_MOST_BACKOFF = 60.0
_JSON_BYTES = 8 << 20
"""Of an answer beside its image."""


@dataclass(frozen=True)
class Answer:
    """An image of an endpoint.

    Attributes:
        data: the image file.
        facts: what the endpoint says of it.
        asked: when, UTC, to the second.
        seconds: from the request to the last byte of the answer.
        attempts: requests that it took.
    """

    data: bytes
    facts: Mapping[str, Any]
    asked: str
    seconds: float
    attempts: int


@dataclass(frozen=True)
class _Made:
    """The result of an attempt, and what it took."""

    value: Any
    asked: str
    seconds: float
    attempts: int


class _Large(Exception):
    """An answer has more bytes than it may."""


class Asker:
    """An endpoint, its connections, its rate, and what it asked to wait for; for `async with`.

    Raises:
        Stopped: there is no key.
    """

    def __init__(self, way: Way) -> None:
        self.way, self.key = way, way.key()
        self._gate = asyncio.Semaphore(way.concurrency)
        self._client = self._new({"Authorization": f"Bearer {self.key}"} if self.key else {})
        self._next = self._free = 0.0  # seconds of the loop: of the next request, of any
        self._answered = 0

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End its connections."""
        await self._client.aclose()

    def _new(self, headers: Mapping[str, str]) -> httpx2.AsyncClient:
        import httpx2

        return httpx2.AsyncClient(
            headers={
                "User-Agent": f"aigi/{__version__}",
                # A compressed answer of some bytes could become one of gigabytes.
                "Accept-Encoding": "identity",
                **headers,
            },
            timeout=httpx2.Timeout(self.way.timeout, connect=silence()),
            follow_redirects=False,  # they could lead to another host, with the key
        )

    def clean(self, text: object) -> str:
        """A text of the endpoint as it may be kept: without the key."""
        found = str(text)
        return found.replace(self.key, "***") if self.key else found

    # --- attempts -------------------------------------------------------------------------------

    async def _reply(
        self, client: httpx2.AsyncClient, method: str, url: str, most: int, **more: Any
    ) -> Reply:
        """One attempt: the whole answer, whatever it is.

        Raises:
            _Large: it has more than `most` bytes.
            Again: there is none.
        """
        import httpx2

        try:
            async with (
                asyncio.timeout(self.way.timeout),
                client.stream(method, url, **more) as response,
            ):
                found = Reply(response.status_code, {**response.headers})
                body = bytearray()
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > most:
                        raise _Large
                found.body = bytes(body)
        except TimeoutError:
            raise Again(f"no whole answer within {self.way.timeout:g} s") from None
        except (httpx2.TransportError, OSError) as error:
            said = f"{type(error).__name__}: {in_short(error)}"
            raise Again(one_line(self.clean(said))) from None
        if found.headers.get("content-encoding", "identity").lower() != "identity":
            raise Again("a compressed answer, though none was asked for")
        return found

    async def _asked(self, method: str, path: str, most: int, **more: Any) -> Reply:
        """One attempt at the endpoint: its answer, if that is what was asked for.

        Raises:
            Unusable, Stopped, Again: whose fault it is that there is none.
        """
        reply = await self._reply(self._client, method, f"{self.way.url}/{path}", most, **more)
        if not 200 <= reply.status < 300:
            raise fault(reply, path, self.way, self.clean)
        return reply

    async def _turn(self) -> None:
        """Wait for this request's turn: by the rate, and by what the endpoint asked for."""
        now = asyncio.get_running_loop().time
        start = max(now(), self._next)
        self._next = start + self.way.interval
        while (wait := max(start, self._free) - now()) > 0:
            await asyncio.sleep(wait)

    async def _insistent(self, attempt: Callable[[], Awaitable[Any]], retries: int) -> _Made:
        """The first attempt that succeeds.

        Raises:
            MachineFault: none did.
        """
        loop, before, number = asyncio.get_running_loop(), self._answered, 0
        place = f"{self.way.where}: {self.way.url}"
        while True:
            number += 1
            await self._turn()
            asked, started = datetime.now(UTC).isoformat(timespec="seconds"), loop.time()
            try:
                value = await attempt()
                return _Made(value, asked, round(loop.time() - started, 3), number)
            except Again as error:
                again = error
            if again.wait is not None and again.wait > LONGEST_WAIT:
                raise MachineFault(
                    f"{place}: {again}: it asks to wait {again.wait:,.0f} s. Run the same command "
                    "again after that."
                )
            if number > retries:
                if again.broken and self._answered > before:
                    # It makes other images all the while: this prompt is what breaks it.
                    raise Unusable(f"error of the endpoint: {number} times {again}")
                raise MachineFault(
                    f"{place}: no image after {number} attempts: {again}. Look at the endpoint, "
                    "then run the same command again."
                )
            if again.wait is not None:  # for all: it has more to do than it can
                self._free = max(self._free, loop.time() + again.wait)
            await asyncio.sleep(min(_MOST_BACKOFF, FIRST_WAIT * 2 ** (number - 1)))

    # --- images ---------------------------------------------------------------------------------

    async def image(self, request: Mapping[str, Any], most: int) -> Answer:
        """One image.

        Args:
            request: fields of the request.
            most: bytes that the image file may have.

        Raises:
            Unusable: no image for this row.
            Stopped: none for this source.
            MachineFault: the endpoint does not work.
        """
        # Base64 takes 4 bytes for 3.
        limit = most * 4 // 3 + _JSON_BYTES

        async def attempt() -> tuple[bytes, Found]:
            try:
                reply = await self._asked("POST", "images/generations", limit, json=dict(request))
            except _Large:
                raise Unusable(f"too large: the answer has more than {limit:,} bytes") from None
            found = found_in(reply, self.way, self.clean)
            data = found.data
            if data is None:
                data = await self._fetched(found.address, most)
            if len(data) > most:
                raise Unusable(f"too large: the image has {len(data):,} bytes")
            return data, found

        async with self._gate:
            made = await self._insistent(attempt, self.way.retries)
        self._answered += 1
        data, found = made.value
        return Answer(data, found.facts, made.asked, made.seconds, made.attempts)

    async def _fetched(self, address: str, most: int) -> bytes:
        """The image file at an address of an answer; the key does not go there.

        Raises:
            Unusable: an address that an answer must not have, or no file there.
        """
        try:
            async with asyncio.timeout(self.way.timeout):
                target = await allowed(address, self.way.url)
        except (Unfit, UnicodeError) as error:
            raise Unusable(f"unfit address: {one_line(self.clean(error))}") from None
        except OSError as error:
            if getattr(error, "errno", None) == socket.EAI_NONAME:
                raise Unusable("unfit address: there is no such host") from None
            raise Again(f"the image's host is not found: {in_short(error)}") from None
        async with self._new(target.headers) as client:
            try:
                reply = await self._reply(
                    client, "GET", target.url, most, extensions=target.extensions
                )
            except _Large:
                raise Unusable(f"too large: the image has more than {most:,} bytes") from None
        if reply.status in LATER or reply.status >= 500:
            raise Again(f"the image's own address answered HTTP {reply.status}", reply.wait())
        if reply.status != 200:
            raise Unusable(f"no image: its own address answered HTTP {reply.status}")
        return reply.body

    # --- before any work ------------------------------------------------------------------------

    async def check(self) -> None:
        """Check that the endpoint answers, takes the key and lists the model.

        Raises:
            Stopped: it does not.
            MachineFault: it does not answer.
        """
        where, url, model = self.way.where, self.way.url, self.way.model

        async def attempt() -> Reply:
            return await self._asked("GET", "models", _JSON_BYTES)

        try:
            made = await self._insistent(attempt, min(2, self.way.retries))
            found = parsed(made.value.body)
        except (_Large, Unusable, ValueError) as error:
            said = f" ({error})" if isinstance(error, Unusable) else ""
            raise Stopped(
                f"{where}: {url}/models: no list of models{said}. Correct {where}.url (the base of "
                f"the API, for example https://HOST/v1), or set {where}.lists_models: false."
            ) from None
        data = found.get("data") if isinstance(found, dict) else None
        listed = data if isinstance(data, list) else []
        names = [str(one.get("id")) for one in listed if isinstance(one, dict)]
        if model not in names:
            shown = [one_line(self.clean(name))[:80] for name in names]
            there = near(model, shown[:20]) if shown else "it lists none"
            raise Stopped(
                f"{where}: {url}: it offers no model {model!r}; {there}. Correct the model in the "
                f"dataset specification, or set {where}.lists_models: false."
            )


# --- the loop ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """An event loop in a thread of its own, for those who are not asynchronous."""

    loop: asyncio.AbstractEventLoop

    def submit(self, work: Callable[..., Awaitable[R]], *given: Any) -> Future[R]:
        """Begin an asynchronous function; its result."""

        async def begun() -> R:
            return await work(*given)

        return asyncio.run_coroutine_threadsafe(begun(), self.loop)

    def ahead(
        self, items: Iterable[T], work: Callable[[T], Awaitable[R]], most: int
    ) -> Iterator[R]:
        """As `threads.ahead`: results in the order of the items, up to `most` of them ahead."""
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(self.submit(work, item))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def looping() -> Iterator[Loop]:
    """An event loop for the time of a block; what is under way at its end is given up."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="asking", daemon=True)
    thread.start()

    async def end() -> None:
        mine = asyncio.all_tasks() - {asyncio.current_task()}
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        await loop.shutdown_default_executor()

    try:
        yield Loop(loop)
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
