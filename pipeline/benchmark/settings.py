"""The `benchmark` section of a workflow."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from pipeline import AigiError
from pipeline.codecs.codec import CodecSettings, named_codec
from pipeline.codecs.table import CODECS, no_codec
from pipeline.collection import Pictures
from pipeline.models.clip import Embeddings
from pipeline.settings import Count, Location, Settings


class Strips(Settings):
    """Images that are shown beside what each codec makes of them at one rate or distance."""

    count: Count = Field(1, description="images of each source")
    bpp: float | None = Field(None, gt=0, description="bits a pixel that every codec is brought to")
    psnr: float | None = Field(None, gt=0, description="or dB")
    crop: Count = Field(160, description="pixels a side of the part that is enlarged")

    @model_validator(mode="after")
    def _one_target(self) -> Strips:
        if (self.bpp is None) == (self.psnr is None):
            raise ValueError("give either bpp or psnr")
        return self

    @property
    def target(self) -> tuple[Literal["bpp", "psnr"], float]:
        """The column that every codec is brought to, and its value."""
        return ("psnr", self.psnr or 0.0) if self.bpp is None else ("bpp", self.bpp)


class Complexity(Settings):
    """What codecs cost: a square cut of one image, coded in a process of its own."""

    sides: tuple[Annotated[int, Field(ge=16, le=8192)], ...] = Field(
        (512, 1024), min_length=1, description="pixels a side of the squares that are coded"
    )
    rounds: Count = Field(1, description="after one that does not count; the median is taken")


class Benchmark(Settings):
    """Images and codecs in, the `measurements` table and a report out."""

    pictures: Pictures | None = Field(None, description="null: the release of this run")
    codecs: tuple[Annotated[CodecSettings, BeforeValidator(named_codec)], ...] = Field(min_length=1)
    anchor: str = Field("vvc", description="the codec that BD-rates are against")
    interpolation: Literal["pchip", "akima", "cubic"] = Field(
        "pchip", description="between the points of a curve, for BD-rates"
    )
    clip: Embeddings | None = Field(
        None,
        description="model, as in embeddings, that decoded images are compared with their "
        "originals and prompts by; null: they are not",
    )
    lpips: Location | None = Field(
        None,
        description="file of torchvision's AlexNet weights (alexnet-owt-7be5be79.pth, or the same "
        "as safetensors), for LPIPS; it needs aigi[metrics]; null: no LPIPS",
    )
    dists: Location | None = Field(
        None,
        description="file of torchvision's VGG-16 weights (vgg16-397923af.pth, or the same as "
        "safetensors), for DISTS; it needs aigi[metrics]; null: no DISTS",
    )
    watermarks: bool = Field(
        False, description="read the marks of decoded images; of those that hold a message"
    )
    strips: Strips | None = Strips(bpp=0.3)
    complexity: Complexity | None = None
    programs: dict[str, Location] = Field(
        default_factory=dict, description="where programs lie: ffmpeg, EncoderApp, bpgenc, …"
    )

    @property
    def distances(self) -> dict[str, str]:
        """Files of weights by kind, of the perceptual distances that are asked for."""
        files = {"lpips": self.lpips, "dists": self.dists}
        return {kind: file for kind, file in files.items() if file is not None}

    @property
    def measured(self) -> Pictures:
        """The images of a section that `Workflow.benchmark_here` has made complete.

        Raises:
            AigiError: it has not.
        """
        if self.pictures is None:
            raise AigiError("benchmark.pictures: not given, and no run was named")
        return self.pictures

    @field_validator("codecs")
    @classmethod
    def _known(cls, codecs: tuple[CodecSettings, ...]) -> tuple[CodecSettings, ...]:
        for codec in codecs:
            if codec.codec not in CODECS:
                raise ValueError(no_codec(codec.codec))
        return codecs

    @model_validator(mode="after")
    def _one_each(self) -> Benchmark:
        labels = [codec.label for codec in self.codecs]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two codecs are called {label}: give one of them another name")
        # A workflow without the usual anchor has no BD-rates; the page says so.
        if self.anchor not in (*labels, type(self).model_fields["anchor"].default):
            raise ValueError(
                f"anchor: no codec is called {self.anchor}; there are {', '.join(labels)}"
            )
        return self
