"""How this machine runs a text-to-image source in; what of it is recorded out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pipeline.settings import Count, Location, Model, Settings


class DiffusersSource(Settings):
    """How this machine runs a text-to-image source of the specification."""

    kind: Literal["diffusers"] = "diffusers"
    folder: Location | None = Field(None, description="local copy; null: download from the Hub")
    file: Location | None = Field(
        None, description="the one .safetensors file that the specification pins"
    )
    loras: dict[str, Location] = Field(
        default_factory=dict, description="files of LoRAs on this machine, by their names"
    )
    components: dict[str, Location] = Field(
        default_factory=dict, description="folders of other components on this machine, by names"
    )
    batch_size: Count = Field(4, description="images made at once")
    vae: Model | None = Field(
        None, description="another VAE: a folder, or a Hub id as ORG/NAME@REVISION"
    )
    vae_tiling: bool | None = Field(
        None, description="decode in tiles, one image at a time; null: from 1536 pixels per side"
    )
    vae_slicing: bool = Field(False, description="decode one image at a time")
    attention_slicing: bool = Field(False, description="less memory, slower")
    attention: str | None = Field(
        None,
        description="backend of the denoiser's attention, as diffusers names it; null: torch's",
    )
    offload: Literal["none", "model", "sequential"] = Field(
        "none",
        description="keep weights in the CPU's memory, and move to the GPU one component at a time "
        "(model) or one layer (sequential, very slow)",
    )
    quantise: Literal["none", "8bit", "4bit"] = Field(
        "none", description="hold denoiser and text encoders in fewer bits; changes the images"
    )
    compile: bool = Field(
        False, description="use torch.compile for the denoiser and the decoding of latents"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> DiffusersSource:
        if self.offload == "sequential":
            for other, set_ in (("quantise", self.quantise != "none"), ("compile", self.compile)):
                if set_:
                    raise ValueError(
                        f"offload: sequential moves single layers, which does not work with "
                        f"{other}; set offload: model, or remove {other}"
                    )
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the places that came later, where there are none: records stay as they are."""
        found: dict[str, Any] = dump(self)
        return {name: value for name, value in found.items() if name not in PLACES or value}

    def recorded(self) -> dict[str, Any]:
        """What can change a byte, for the record of the stage: places and moves cannot.

        Settings that came later are only in it where they differ from what was done before, so
        that a run of an earlier version is still the same run.
        """
        every = self.model_dump(mode="json", exclude={"folder", "offload", *PLACES})
        usual = DiffusersSource().model_dump(mode="json")
        return {
            name: value
            for name, value in every.items()
            if name in _FIRST_RECORDED or value != usual[name]
        }


_FIRST_RECORDED = {"kind", "batch_size", "vae", "vae_tiling", "attention_slicing", "compile"}
"""Settings that every record of the stage has had, whatever their values."""
IN_ROWS = ("vae_slicing", "attention", "offload", "quantise")
"""Settings that `versions` of every row states where they are not the usual ones."""
DECIDING = ("attention", "quantise", "vae_slicing")
"""Those of them that decide pixels."""


PLACES = ("file", "loras", "components")
"""Settings that say where files are whose content the specification pins."""

# Above this many pixels a side the VAE's activations dominate memory: decode in tiles.
TILE_FROM = 1536
