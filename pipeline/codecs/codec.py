"""The name and settings of a codec in, something that codes images to bytes and back out.

    codec = opened(CodecSettings(codec="jpeg"), 75, Here())
    data = codec.encode(image, "a red boat")
    assert codec.decode(data).shape == image.shape

The bytes alone suffice to decode, and all of them count as rate. CODECS has a row for each; adding
one is a class with these two methods and a row, which has the settings of its encoder too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
)

from pipeline.codecs.command import EncoderSettings
from pipeline.learned.shipped import shipped
from pipeline.pixels import RGB
from pipeline.settings import Location, Settings, folder_or_hub, located


def _locate_model(value: object, info: ValidationInfo) -> object:
    """A folder or pattern of folders where there is one, else the Hub id as it stands."""
    if not isinstance(value, str) or "://" in value:
        return value
    base = (info.context or {}).get("base")
    name, sign, folder = value.partition("=")
    if sign:  # of a recipe: ORG/NAME=FOLDER
        return f"{name}={located(folder, base)}"
    return folder_or_hub(value, base)


def named_codec(value: object) -> object:
    """`jpeg` means `{codec: jpeg}`; `compressai:NETWORK[:QUALITY]` a network of its zoo.

    So does the name of a network that comes with aigi mean this one.
    """
    if not isinstance(value, str):
        return value

    if value in shipped():
        return {"codec": "learned", "name": str(value), "models": [str(value)]}
    kind, *rest = value.split(":")
    if kind != "compressai" or not rest:
        return {"codec": str(value)}
    found: dict[str, Any] = {"codec": kind, "models": rest[:1]}
    return found | ({"qualities": rest[1:]} if rest[1:] else {})


class CodecSettings(Settings):
    """A codec to measure.

    Its bare name stands for it with the defaults of `pipeline.codecs`, and that of a network that
    comes with aigi for this network.
    """

    codec: str = Field(description="a name of pipeline/codecs/codec.py: jpeg, vvc, learned, …")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")] | None = Field(
        None, description="in tables and figures; null: the codec's, or that of its one network"
    )
    qualities: tuple[float, ...] | None = Field(
        None,
        min_length=1,
        description="as the codec counts them; of models, all of them: 1, 2, …, and fractions "
        "between those of one network; null: usual",
    )
    preset: str | None = Field(None, description="of hevc and vvc")
    models: tuple[Annotated[str, BeforeValidator(_locate_model)], ...] = Field(
        (),
        description="learned: names, folders or Hub ids, lowest rate first, or a pattern as "
        "RUN/train/catc-mse-*, lowest λ first; none: `catc-small`, which comes "
        "with aigi; compressai: one network; recipe: generators to trust, as ORG/NAME or "
        "ORG/NAME=FOLDER",
    )
    text: Location | None = Field(None, description="learned: folder of the text encoder")
    prompts: bool = Field(True, description="learned: false codes with an empty prompt")
    effort: int = Field(
        0, ge=0, le=2, description="learned: 1, 2: search for cheaper files, which takes long"
    )

    @property
    def label(self) -> str:
        """What tables and figures call it."""
        zoo = self.codec == "compressai" and self.models
        return self.name or (self.models[0] if zoo else self.codec)


class Codec(Protocol):
    """What every codec can do."""

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """The bytes of a uint8 image, H x W x 3, of any size from 1 x 1."""

    def decode(self, data: bytes) -> RGB:
        """The image of such bytes: uint8, H x W x 3."""


@dataclass(frozen=True)
class Here:
    """This machine: where programs lie, and the device for networks."""

    programs: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"


@runtime_checkable
class OfRows(Protocol):
    """A codec that codes an image by what its row says of how it was made."""

    def of(self, known: str) -> Codec:
        """The codec of one image.

        Args:
            known: JSON of `pipeline.release.making.Known`.
        """


def no_prompt(data: bytes) -> int:
    """Bytes of the prompt in a file that has none."""
    return 0


@dataclass(frozen=True)
class Row:
    """What there is to know about a codec.

    Attributes:
        title: for figures and tables.
        format: chroma, bit depth and colour of what is coded.
        qualities: usual ones, from low to high rate.
        grid: all that a search may try, from low to high rate; empty: only the given ones.
        open: makes the codec of these settings at one quality; raises `Missing` where this machine
            lacks something.
        version: of encoder and decoder; raises `Missing` in the same case.
        settings: of the encoder, as JSON knows them, all but the quality and what `CodecSettings`
            has. They are written here alone, and are part of the codec's digest.
        external: runs as a program of its own, whose start is part of every time.
        network: runs on the device of the workflow; all others on the CPU.
        prompt_bytes: how many bytes of a file hold the prompt.
        presets: that its encoder has, the usual one first.
        rows: it is one of `OfRows`.
    """

    title: str
    format: str
    qualities: tuple[float, ...]
    grid: tuple[float, ...]
    open: Callable[[EncoderSettings, CodecSettings, float, Here], Codec]
    version: Callable[[CodecSettings, Here], str]
    settings: EncoderSettings
    external: bool = False
    network: bool = False
    prompt_bytes: Callable[[bytes], int] = no_prompt
    presets: tuple[str, ...] = ()
    rows: bool = False
