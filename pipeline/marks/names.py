"""The name of a mark and an image in, the image with that mark out.

A variant is named by one string: `none`, `dwt-dct`, `dwt-dct-svd`, or `visible:` with what to
draw, for example `visible:text=AI generated,position=bottom-right,opacity=0.5,scale=0.2`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.marks.dwt_dct import embed_dwt_dct, embed_dwt_dct_svd
from pipeline.marks.visible import Visible, embed_visible, parse_visible
from pipeline.pixels import RGB

EMBED: dict[str, Callable[[RGB], RGB]] = {
    "none": lambda rgb: rgb,
    "dwt-dct": embed_dwt_dct,
    "dwt-dct-svd": embed_dwt_dct_svd,
}
"""Variants without settings: uint8 HxWx3 in, the variant out."""


def parse(name: str, folder: Path | None = None, beside: bool = False) -> str | Visible:
    """Check the name of a variant.

    Args:
        folder: where a relative logo file is; None: the logo must be known already.
        beside: a logo is in that folder itself, and named with its hash: others wrote the name.

    Returns:
        The name, or what is to be drawn.

    Raises:
        ValueError: states what is wrong and what is expected.
    """
    if name in EMBED:
        return name
    kind, colon, rest = name.partition(":")
    if kind != "visible" or not colon:
        raise ValueError(
            f"{name!r} is no watermark; use {', '.join(EMBED)} or visible:text=… or visible:logo=…"
        )
    return parse_visible(rest, folder, beside)


def embed(rgb: RGB, name: str) -> RGB:
    """The named variant of an image (both uint8 HxWx3); the image itself is not changed.

    Raises:
        ValueError: no such variant, or its logo is not known in this process.
    """
    if name in EMBED:
        return EMBED[name](rgb)
    visible = parse(name)
    assert isinstance(visible, Visible)
    return embed_visible(rgb, visible)
