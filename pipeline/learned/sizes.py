"""The name of a network in, its sizes out: everything that `config.json` of a codec says.

No torch here, so that a command can list and check networks before anything heavy is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline import gate
from pipeline.complaints import near
from pipeline.gate import Checked

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Tail = Literal["none", "power"]
"""What the distributions of latents have beyond the learned ones, at a share of 2^-10: nothing, or
a power law, so that latents far out have a gradient and cheap escapes."""
REPOSITORY = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$"


class TextSizes(Checked):
    """The frozen CLIP text encoder, and what is taken from it.

    Attributes:
        tower: `tiny` (embedded), or the Hub id of an open_clip model.
        revision: its commit or tag; null: the newest.
        sha256: of its weights file; null: any.
        features: `tokens` are vectors of every token up to the end of the text, `pooled` is the
            last of them alone.
        width: numbers of a vector.
    """

    tower: str = Field("timm/vit_base_patch32_clip_224.openai", pattern=REPOSITORY)
    revision: (
        Annotated[
            str,
            # Without .., as it becomes the name of a file in the cache of the Hub.
            Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*$", max_length=100),
        ]
        | None
    ) = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    features: Literal["tokens", "pooled"] = "tokens"
    width: int = Field(512, ge=1, le=4096)


class HyperpriorSizes(Checked):
    """Ballé 2018 (`hyperprior`) or Minnen 2018 without autoregression (`mean-scale`).

    Attributes:
        n: channels of the transforms and of z.
        m: channels of y.
        qualities: rates that it codes at, each with gains of its own for the channels of y.
        tail: of the distributions of y and z.
    """

    kind: Literal["hyperprior", "mean-scale"]
    name: str = Field(pattern=NAME)
    n: int = Field(ge=1, le=512)
    m: int = Field(ge=1, le=1024)
    qualities: int = Field(1, ge=1, le=32)
    tail: Tail = "none"
    text: None = None


class CatcSizes(Checked):
    """The cross-attention transformer codec.

    Attributes:
        n: channels of the transforms and of z.
        m: channels of y.
        slices: groups of channels of y that are coded one after the other.
        hidden: channels of the recurrent state.
        heads: of every attention; divides n and hidden.
        mlp: width of a block's MLP over its channels.
        qualities: rates that it codes at, each with gains of its own for the channels of y.
        tail: of the distributions of y and z.
        text: null leaves the cross-attention out.
        hyper_text: whether the hyper-transforms h_a and h_s read the text, too.
        states: recurrent states: one for all, or one for the means and one for the scales.
    """

    kind: Literal["catc"]
    name: str = Field(pattern=NAME)
    n: int = Field(ge=1, le=512)
    m: int = Field(ge=1, le=1024)
    slices: int = Field(5, ge=1, le=64)
    hidden: int = Field(ge=1, le=1024)
    heads: int = Field(4, ge=1, le=64)
    mlp: int = Field(2, ge=1, le=8)
    qualities: int = Field(1, ge=1, le=32)
    tail: Tail = "none"
    text: TextSizes | None = None
    hyper_text: bool = False
    states: Literal[1, 2] = 1

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the options that came later, where they are not used.

        So older codecs keep their `config.json` and their fingerprint.
        """
        found: dict[str, Any] = dump(self)
        later = {"hyper_text": False, "states": 1}
        return {key: value for key, value in found.items() if later.get(key, ...) != value}

    @model_validator(mode="after")
    def _divides(self) -> CatcSizes:
        if self.hyper_text and self.text is None:
            raise ValueError("hyper_text needs text")
        if self.n % self.heads or self.hidden % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide n and hidden")
        if self.m % self.slices:
            raise ValueError(f"slices ({self.slices}) must divide m ({self.m})")
        return self


class LightSizes(Checked):
    """A light CATC: few channels where the maps are large, and a space-channel entropy model.

    Attributes:
        n: channels of z.
        m: channels of y; the groups have as many.
        widths: channels of the transforms at H/2, H/4 and H/8.
        blocks: residual blocks there.
        groups: channels of y that are coded one after the other.
        checkered: how many of the first groups are coded in two passes, as a checkerboard.
        hidden: channels in the entropy model.
        heads: of every attention; divides the last width and hidden.
        mlp: width of a CAT block's MLP over its channels.
        qualities: rates that it codes at, each with gains of its own for the channels of y.
        tail: of the distributions of y and z.
        text: null leaves the cross-attention out.
    """

    kind: Literal["catc-light"]
    name: str = Field(pattern=NAME)
    n: int = Field(ge=1, le=512)
    m: int = Field(ge=1, le=1024)
    widths: list[Annotated[int, Field(ge=1, le=512)]] = Field(
        [32, 64, 128], min_length=3, max_length=3
    )
    blocks: list[Annotated[int, Field(ge=0, le=16)]] = Field([0, 1, 2], min_length=3, max_length=3)
    groups: list[Annotated[int, Field(ge=1, le=1024)]] = Field(
        [16, 16, 32, 64, 192], min_length=1, max_length=64
    )
    checkered: int = Field(3, ge=0, le=64)
    hidden: int = Field(128, ge=1, le=1024)
    heads: int = Field(4, ge=1, le=64)
    mlp: int = Field(2, ge=1, le=8)
    qualities: int = Field(1, ge=1, le=32)
    tail: Tail = "none"
    text: TextSizes | None = None

    @model_validator(mode="after")
    def _fits(self) -> LightSizes:
        if self.widths[-1] % self.heads or self.hidden % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide the last of widths, and hidden")
        if sum(self.groups) != self.m:
            raise ValueError(f"groups have {sum(self.groups)} channels, m is {self.m}")
        if self.checkered > len(self.groups):
            raise ValueError(f"checkered ({self.checkered}): there are {len(self.groups)} groups")
        return self


class TcmSizes(Checked):
    """Mixed transformer and CNN blocks (Liu 2023).

    Attributes:
        n: channels of z.
        m: channels of y.
        width: channels of each of the two branches of a block; the paper's N.
        depth: blocks at each size of the maps; every other one has shifted windows.
        head: channels of a head of attention at H/2; twice as many at H/4, four times at H/8 and
            in the hyper-transforms, which divides the width.
        slices: groups of channels of y that are coded one after the other.
        inner: channels of the attention in the entropy model, and of its last hidden layer.
        support: channels of its first hidden layer.
        qualities: rates that it codes at, each with gains of its own for the channels of y.
        tail: of the distributions of y and z.
    """

    kind: Literal["tcm"]
    name: str = Field(pattern=NAME)
    n: int = Field(192, ge=1, le=512)
    m: int = Field(320, ge=1, le=512)
    width: int = Field(ge=1, le=256)
    depth: int = Field(2, ge=1, le=4)
    head: int = Field(8, ge=1, le=64)
    slices: int = Field(5, ge=1, le=16)
    inner: int = Field(128, ge=2, le=256)
    support: int = Field(224, ge=1, le=512)
    qualities: int = Field(1, ge=1, le=32)
    tail: Tail = "none"
    text: None = None

    @model_validator(mode="after")
    def _divides(self) -> TcmSizes:
        if self.width % (4 * self.head):
            raise ValueError(f"four times head ({4 * self.head}) must divide width ({self.width})")
        if self.inner % (2 * self.head):
            raise ValueError(f"twice head ({2 * self.head}) must divide inner ({self.inner})")
        if self.m % self.slices:
            raise ValueError(f"slices ({self.slices}) must divide m ({self.m})")
        return self


class ElicSizes(Checked):
    """Uneven groups of channels, each a checkerboard (He 2022).

    Attributes:
        n: channels of the transforms and of z.
        m: channels of y; the groups have as many.
        groups: channels of y that are coded one after the other.
        support: channels of the first hidden layer of what earlier groups tell.
        inner: of its second.
        aggregate: channels of the last hidden layer of what all tell together.
        qualities: rates that it codes at, each with gains of its own for the channels of y.
        tail: of the distributions of y and z.
    """

    kind: Literal["elic"]
    name: str = Field(pattern=NAME)
    n: int = Field(192, ge=2, le=512)
    m: int = Field(320, ge=2, le=512)
    groups: list[Annotated[int, Field(ge=1, le=512)]] = Field(
        [16, 16, 32, 64, 192], min_length=1, max_length=16
    )
    support: int = Field(224, ge=1, le=512)
    inner: int = Field(128, ge=1, le=512)
    aggregate: int = Field(512, ge=1, le=1024)
    qualities: int = Field(1, ge=1, le=32)
    tail: Tail = "none"
    text: None = None

    @model_validator(mode="after")
    def _fits(self) -> ElicSizes:
        if sum(self.groups) != self.m:
            raise ValueError(f"groups have {sum(self.groups)} channels, m is {self.m}")
        return self


Sizes = HyperpriorSizes | CatcSizes | LightSizes | TcmSizes | ElicSizes
_KINDS: dict[str, type[Sizes]] = {
    "hyperprior": HyperpriorSizes, "mean-scale": HyperpriorSizes, "catc": CatcSizes,
    "catc-light": LightSizes, "tcm": TcmSizes, "elic": ElicSizes,
}  # fmt: skip

_FULL = CatcSizes(kind="catc", name="catc", n=128, m=320, hidden=192, text=TextSizes())
_SMALL = CatcSizes(
    kind="catc", name="catc-small", n=64, m=160, hidden=96, heads=2, text=TextSizes()
)
_LIGHT = LightSizes(
    kind="catc-light", name="catc-light", n=96, m=320, tail="power", text=TextSizes()
)


def _without_text(sizes: CatcSizes | LightSizes) -> CatcSizes | LightSizes:
    return sizes.model_copy(update={"text": None, "name": f"{sizes.name}-no-text"})


NETWORKS: dict[str, Sizes] = {
    sizes.name: sizes
    for sizes in (
        # The smaller of the two sizes that both papers train, for their lower rates.
        HyperpriorSizes(kind="hyperprior", name="hyperprior", n=128, m=192),
        HyperpriorSizes(kind="mean-scale", name="mean-scale", n=128, m=192),
        _FULL,
        _without_text(_FULL),
        _SMALL,
        _without_text(_SMALL),
        _LIGHT,
        _without_text(_LIGHT),
        # The three sizes of the paper; the largest has its best curves.
        TcmSizes(kind="tcm", name="tcm-small", width=64),
        TcmSizes(kind="tcm", name="tcm-medium", width=96),
        TcmSizes(kind="tcm", name="tcm", width=128),
        ElicSizes(kind="elic", name="elic"),
    )
}


REMEDY = "Copy the model anew; pipeline/learned/sizes.py describes all sizes."


def parse(given: dict[str, Any], where: str = "codec configuration") -> Sizes:
    """Check the content of a `config.json`.

    Args:
        where: the file, for messages.

    Raises:
        AigiError: a key is unknown, missing or out of range.
    """
    kind = given.get("kind")
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        problem = (
            f"needed; there are {', '.join(_KINDS)}"
            if kind is None
            else (f"no {kind!r}; {near(kind, _KINDS)}")
        )
        raise gate.refused(where, "kind", problem, REMEDY)
    return gate.check(model, given, where, REMEDY)


def read(path: Path) -> Sizes:
    """The sizes in a `config.json`.

    Raises:
        AigiError: it cannot be read, or is no configuration of a network.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise gate.refused(str(path), "", f"cannot be read: {error.strerror}", REMEDY) from None
    return parse(gate.parse(data, str(path), REMEDY), str(path))
