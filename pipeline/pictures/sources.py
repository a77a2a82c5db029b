"""Settings of imported sources: where their images and captions are on this machine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipeline.pictures.embedded import Flag
from pipeline.rows.settings import USUAL, TableFormat
from pipeline.settings import Count, Location, Settings

KEEPS = (
    "store 8-bit RGB PNG files byte for byte, with text (prompts, graphs, keys), EXIF and GPS; "
    "false: pixels and what is needed to show them. Other images are encoded without it, always"
)
COLOURS = (
    "srgb: an image with another colour profile is converted; stored: its values stay as they are; "
    "both are noted in its row"
)
_LATER = frozenset(["colours", "strip", "table"])


class _Imported(Settings):
    """What an imported source records."""

    def recorded(self) -> dict[str, Any]:
        """What decides its rows, as JSON values.

        Whether metadata is kept decides none. A setting that older records do not have is there
        only where it is not at its default, so that these stay as they are.
        """
        found = self.model_dump(mode="json", exclude={"keep_metadata"})
        usual = type(self).model_construct().model_dump(mode="json", include=set(_LATER))
        return {k: v for k, v in found.items() if k not in usual or v != usual[k]}


class ImportSource(_Imported):
    """Where the images and captions of a closed model are stored."""

    kind: Literal["import"]
    path: Location = Field(
        description="folder, .zip, .tar or .parquet of images, a folder of such shards, or a "
        "pattern (`train-*.tar`)"
    )
    captions: Location | None = Field(
        None,
        description="CSV, TSV, JSON (lines, an array, COCO) or parquet, a folder or a pattern of "
        "them; null: metadata.jsonl or metadata.csv among the images, else the file beside an "
        "image, else the prompt inside it",
    )
    table: TableFormat = Field(USUAL, description="how the files of `captions` are written")
    file_column: str = Field("file", description="of `captions`: the column with file names")
    text_column: str = Field("text", description="the column with captions")
    split_column: str | None = Field(
        None, description="column with train, validation or test; null: a hash of the prompt"
    )
    strip: tuple[Flag, ...] = Field(
        ("lora", "midjourney"),
        description="what is taken out of prompts inside images: LoRA tags, Midjourney's flags",
    )
    fit: Literal["reject", "crop", "keep"] = Field(
        "reject", description="what to do with an image of another size than the specification's"
    )
    max_pixels: Count = Field(64_000_000, description="larger images are rejected")
    keep_metadata: bool = Field(False, description=KEEPS)
    colours: Literal["srgb", "stored"] = Field("srgb", description=COLOURS)


class OriginalSource(_Imported):
    """Where the original PKU-AIGI-500K release is stored, and which source of it this is."""

    kind: Literal["pku"]
    path: Location = Field(
        description="folder of the whole release as downloaded: archives (split ones too), or "
        "their unpacked content"
    )
    subfolder: Literal["SD-2_1-B", "SD-2_1", "SD-XL", "MJ", "MOD"]
    fit: Literal["reject", "crop", "keep"] = Field(
        "reject", description="what to do with an image of another size than the specification's"
    )
    max_pixels: Count = Field(64_000_000, description="larger images are rejected")
    keep_metadata: bool = Field(False, description=KEEPS)
    colours: Literal["srgb", "stored"] = Field("srgb", description=COLOURS)


ImportedSource = ImportSource | OriginalSource
