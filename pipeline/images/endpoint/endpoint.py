"""Plan rows of an endpoint's source in, its images and what it said of them out.

The endpoint speaks OpenAI's images API, as vLLM-Omni, SGLang and closed services do. A row's
`versions` has the request and the answer's facts under `endpoint`; the prompt is the row's `text`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import groupby
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import PIL
import pyarrow as pa
from pydantic import AfterValidator, Field

from pipeline import AigiError
from pipeline.images.endpoint.address import Stopped, Way, public_host
from pipeline.images.endpoint.asking import Answer, Asker, looping
from pipeline.images.endpoint.replies import Unusable
from pipeline.marks.names import embed
from pipeline.metadata import beside_pixels, noted
from pipeline.pixels import (
    BadPicture,
    Container,
    contained,
    decode,
    image_size,
    named,
    pixels_sha256,
)
from pipeline.plan.specification import HttpSpec
from pipeline.settings import Settings
from pipeline.tables import ENDPOINT, IMAGES

_SETUP_ERRORS = 8
"""Rows of a shard that may have an error, none of them a refusal, before one has an image."""


def _base(url: str) -> str:
    """The base address of an API; a wrong one may contain a key, so no message shows it."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not re.fullmatch(r"[!-~]+", url):
        raise ValueError("expected http(s)://HOST/…, the base of the API, such as https://HOST/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "expected no user, password, query or fragment; a key is in the environment variable "
            "that key_env names"
        )
    return url.rstrip("/")


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
        raise ValueError(
            "expected the name of an environment variable, in capitals, such as OPENAI_API_KEY; "
            "the key itself is in no file"
        )
    return name


class HttpSource(Settings):
    """Where an OpenAI-compatible images endpoint is, and how it is asked."""

    kind: Literal["http"]
    url: Annotated[str, AfterValidator(_base)] | None = Field(
        None, description="base of its API, such as https://HOST/v1; needed to make images"
    )
    key_env: Annotated[str, AfterValidator(_variable)] | None = Field(
        None, description="environment variable with the key, on every machine; null: no key"
    )
    requests_per_minute: float | None = Field(
        None, gt=0, description="at most, of all workers together; null: no limit"
    )
    concurrency: Annotated[int, Field(ge=1, le=256)] = Field(
        4, description="requests at once, of each worker"
    )
    retries: Annotated[int, Field(ge=0, le=20)] = Field(
        5,
        description="attempts after the first, where the endpoint is busy, silent or broken: after "
        "1, 2, 4, … s, or what it asks for (Retry-After, up to 600 s)",
    )
    timeout: float = Field(180, gt=0, le=3600, description="seconds for one whole answer")
    lists_models: bool = Field(
        True, description="compare the model with GET /models before any work"
    )

    def way(self, name: str, model: str, workers: int = 1) -> Way:
        """How it is asked.

        Args:
            name: of the source.
            model: of it.
            workers: that ask it at once; each gets its share of the rate.

        Raises:
            AigiError: nobody said where it is.
        """
        if self.url is None:
            raise AigiError(
                f"sources.{name}.url: needed, but not given; it is the base of the endpoint's API, "
                f"for example --set sources.{name}.url=https://HOST/v1"
            )
        rate = self.requests_per_minute
        return Way(
            where=f"sources.{name}",
            url=self.url,
            model=model,
            key_env=self.key_env,
            timeout=self.timeout,
            retries=self.retries,
            concurrency=self.concurrency,
            interval=0.0 if rate is None else 60 * workers / rate,
        )


def local_http(sources: Mapping[str, object], name: str) -> HttpSource:
    """Where the endpoint of a source is.

    Args:
        sources: the workflow's `sources`.

    Raises:
        AigiError: they do not say so.
    """
    source = sources.get(name)
    if not isinstance(source, HttpSource):
        raise AigiError(
            f"sources.{name}: an endpoint makes the images of this source; set where it is, for "
            f"example --set 'sources.{name}={{kind: http, url: \"https://HOST/v1\"}}', or leave it "
            "out with plan.sources"
        )
    return source


def check_endpoint(name: str, spec: HttpSpec, local: HttpSource) -> None:
    """Check that the endpoint answers, takes the key and offers the model.

    Raises:
        AigiError: it does not; names the source and what to do.
    """
    way = local.way(name, spec.model)
    way.key()
    if not local.lists_models:
        return

    async def asked() -> None:
        async with Asker(way) as asker:
            await asker.check()

    with looping() as loop:
        loop.submit(asked).result()


def most_bytes(width: int, height: int) -> int:
    """Bytes that an image file of this size may have: RGBA of 16 bits, not compressed, and more."""
    return max(16 << 20, 12 * width * height)


class Endpoint:
    """A worker: rows of the plan in, rows of the `images` table out, in the same order.

    Each image is yielded by itself, as soon as those before it are there: what is kept need not be
    paid for again.

    Args:
        name: the source, for messages.
        spec: what is asked for.
        local: where and how.
        container: what images are stored in.
        workers: that ask this endpoint at once.

    Raises:
        AigiError: nobody said where the endpoint is.
    """

    def __init__(
        self,
        name: str,
        spec: HttpSpec,
        local: HttpSource,
        container: Container | None = None,
        workers: int = 1,
    ) -> None:
        self.name, self.spec = name, spec
        self.way = local.way(name, spec.model, workers)
        self.container = container or Container()
        self.host = public_host(self.way.url) or "local"
        self.stopped: Stopped | None = None

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Ask for the images of `rows` (PLAN): one request for all variants of one image.

        Yields:
            `IMAGES` chunks. An image that cannot be had is a row whose `image` is null and whose
            `error` is the reason.

        Raises:
            Stopped: the endpoint takes no request of this source; from then on, at once.
            MachineFault: it does not answer, or with errors of its own.
            AigiError: the first images all have errors that are no refusals.
        """
        if self.stopped is not None:
            raise self.stopped
        groups = [
            list(group)
            for _, group in groupby(
                rows.to_pylist(), key=lambda row: row["pair_id"] or row["image_id"]
            )
        ]
        setup: list[str] = []
        made = False

        async def begun() -> Asker:
            return Asker(self.way)

        with looping() as loop:
            asker = loop.submit(begun).result()
            try:
                asked = partial(self._asked, asker)
                for found, refused in loop.ahead(groups, asked, 2 * self.way.concurrency):
                    error = found[0].get("error")
                    made = made or error is None
                    if error is not None and not refused:
                        setup.append(error)
                    if not made and len(setup) == min(_SETUP_ERRORS, len(groups)) > 1:
                        # Not bad rows but a bad set-up, and each request may cost money.
                        raise AigiError(
                            f"sources.{self.name}: every image failed, the first with: {setup[0]}"
                        )
                    yield pa.Table.from_pylist(found, schema=IMAGES)
            except Stopped as error:
                self.stopped = error
                raise
            finally:
                loop.submit(asker.close).result()

    async def _asked(
        self, asker: Asker, group: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], bool]:
        """The rows of one image and its variants, and whether its content was refused."""
        import asyncio

        first = group[0]
        request = {
            "model": self.spec.model,
            "n": 1,
            "size": f"{first['width']}x{first['height']}",
            **({} if first["seed"] is None else {"seed": first["seed"]}),
            **self.spec.request,
        }
        most = most_bytes(first["width"], first["height"])
        facts: dict[str, Any] = {"host": self.host, "request": request}
        try:
            answer = await asker.image({**request, "prompt": first["text"]}, most)
            return await asyncio.to_thread(self._rows, group, facts, answer), False
        except (Unusable, BadPicture) as error:
            refused = isinstance(error, Unusable) and error.refused
            row = {"error": str(error)[:500], **self._provenance(facts)}
            return [{"image_id": one["image_id"], **row} for one in group], refused

    @staticmethod
    def _provenance(facts: Mapping[str, Any]) -> dict[str, str]:
        versions = {"pillow": PIL.__version__, ENDPOINT: facts}
        return {"device": ENDPOINT, "versions": json.dumps(versions, sort_keys=True)}

    def _rows(
        self, group: list[dict[str, Any]], facts: Mapping[str, Any], answer: Answer
    ) -> list[dict[str, Any]]:
        """Rows of an image and its variants. Raises BadPicture."""
        width, height = group[0]["width"], group[0]["height"]
        size = image_size(answer.data)
        if size is not None and size != (width, height):
            raise BadPicture(f"wrong size: {size[0]}x{size[1]}, {width}x{height} was asked for")
        picture = decode(answer.data, width * height)
        if picture.rgb.shape[:2] != (height, width):
            raise BadPicture(f"wrong size: {width}x{height} was asked for")
        provenance = self._provenance(
            {
                **facts,
                "asked": answer.asked,
                "seconds": answer.seconds,
                "attempts": answer.attempts,
                "answer": dict(answer.facts),
            }
        )
        found = []
        for row in group:
            rgb = embed(picture.rgb, row["watermark"])
            found.append(
                {
                    "image_id": row["image_id"],
                    "image": named(row["image_id"], contained(rgb, self.container)),
                    "width": width,
                    "height": height,
                    "pixels_sha256": pixels_sha256(rgb),
                    "original_sha256": hashlib.sha256(answer.data).hexdigest(),
                    "note": noted(picture.note, beside_pixels(answer.data)),
                    **provenance,
                }
            )
        return found
