"""Settings of an endpoint in, where and how it is asked out; and where its answers may lead.

The key is read from the environment where it is used. An answer may name the address of its image;
it must not make this machine ask around in its own network.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipeline import AigiError

_PRIVATE = (".local", ".internal", ".lan", ".localdomain", ".home", ".corp", ".intranet")


class Stopped(AigiError):
    """The endpoint will answer no request of this source: its key, account, model or address."""


class Unfit(Exception):
    """An address that an answer must not have; the text is the reason."""


@dataclass(frozen=True)
class Way:
    """How a source's endpoint is asked.

    Attributes:
        where: the source, for messages: `sources.NAME`.
        url: base address, without user, query and fragment.
        model: what the endpoint calls the model.
        key_env: environment variable with the key; None: none is sent.
        timeout: seconds for a whole answer.
        retries: attempts after the first one.
        concurrency: requests at once.
        interval: seconds from the start of one request to that of the next.
    """

    where: str
    url: str
    model: str
    key_env: str | None = None
    timeout: float = 180.0
    retries: int = 5
    concurrency: int = 4
    interval: float = 0.0

    def key(self) -> str | None:
        """The key.

        Raises:
            Stopped: it is not set, no header can hold it, or others could read it on the way.
        """
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise Stopped(
                f"{self.where}.key_env: the environment variable {self.key_env} is not set. Set it "
                "to the endpoint's key, on every machine that works."
            )
        if not re.fullmatch(r"[!-~]+", key):
            raise Stopped(
                f"{self.where}.key_env: the environment variable {self.key_env} has spaces or "
                "other characters that no key has. Set it anew."
            )
        if urlsplit(self.url).scheme == "http" and public_host(self.url) is not None:
            raise Stopped(
                f"{self.where}.url: {self.url}: with http, everybody on the way could read the "
                "key. Use https, or key_env: null."
            )
        return key


def _global(host: str) -> bool:
    """Whether an address is one of the internet. Raises ValueError: it is a name."""
    found = ipaddress.ip_address(host)
    inner = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (inner or found).is_global


def public_host(url: str) -> str | None:
    """The name of the host of a URL that is on the internet; None: one of somebody's own network.

    A release has the former: whose service made its images. The latter is nobody's business.
    """
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        return host if _global(host) else None
    except ValueError:
        return host if "." in host and not host.endswith(_PRIVATE) else None


@dataclass(frozen=True)
class Target:
    """Where to get a file: what to connect to, and the name that it has there."""

    url: str
    headers: dict[str, str]
    extensions: dict[str, Any]


async def allowed(address: str, base: str) -> Target:
    """Where to get the image at an address that came in an answer.

    Only http and https are followed, only https where the endpoint has it, and of hosts that are
    not on the internet only the endpoint itself. What was looked up is what is asked, so that a
    name cannot become another host in between.

    Args:
        base: address of the endpoint.

    Raises:
        Unfit: it leads elsewhere.
        OSError: its host is not found.
    """
    import httpx2

    try:
        url, mine = httpx2.URL(address), httpx2.URL(base)
        host = url.host
    except (httpx2.InvalidURL, ValueError):
        raise Unfit("the image's address is none") from None
    schemes = ("https",) if mine.scheme == "https" else ("http", "https")
    if url.scheme not in schemes or not host or url.userinfo:
        scheme = re.sub(r"[^a-z0-9+.-]", "?", url.scheme)[:20]
        raise Unfit(f"the image is at {scheme}://, allowed is {' and '.join(schemes)}")
    if (host, url.port) == (mine.host, mine.port):
        return Target(str(url), {}, {})
    port = url.port or (443 if url.scheme == "https" else 80)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    places = [str(one[4][0]) for one in found]
    if not places or not all(map(_global, places)):
        raise Unfit(
            "the image is at a host of a private network. Let the endpoint give the image itself "
            "(in the specification, request: {response_format: b64_json})"
        )
    named = host if url.port is None else f"{host}:{url.port}"
    pinned = str(url.copy_with(host=places[0]))
    return Target(pinned, {"Host": named}, {"sni_hostname": host})
