"""Images of releases and folders in, the `characteristics` table out: a row each.

An image that cannot be measured has a row with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field

from pipeline.analysis.color import CHANNELS, color_moments, colorfulness, saturation
from pipeline.analysis.compressibility import (
    check_lossless,
    gradient_energy,
    lossless_bpp,
    noise_level,
    spectral_slope,
)
from pipeline.analysis.places import content, places, read_shard, rows_of, shard_names, state
from pipeline.analysis.texture import texture
from pipeline.collection import Pictures
from pipeline.pixels import RGB, BadPicture, decode
from pipeline.settings import Count, Settings
from pipeline.stage import Map

CHARACTERISTICS = pa.schema(
    # All numbers are null where `error` says why; also where a picture is too small or flat.
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("watermark", pa.string()),
        ("width", pa.int32()),  # pixels, before any crop
        ("height", pa.int32()),
        ("error", pa.string()),
        # GLCM of the luma at 256 levels: means over the distances and angles of the settings
        ("glcm_contrast", pa.float32()),  # levels²
        ("glcm_dissimilarity", pa.float32()),  # levels
        ("glcm_homogeneity", pa.float32()),  # 0 to 1
        ("glcm_asm", pa.float32()),  # 0 to 1
        ("glcm_energy", pa.float32()),  # 0 to 1
        ("glcm_correlation", pa.float32()),  # -1 to 1
        ("glcm_entropy", pa.float32()),  # bits, 0 to 16
        # mean, standard deviation, signed cube root of the third central moment: levels
        *((f"{channel}_{moment}", pa.float32())
          for channel in ("red", "green", "blue") for moment in ("mean", "std", "third")),
        ("colorfulness", pa.float32()),  # 0 for grey, about 100 for garish
        ("saturation", pa.float32()),  # 0 to 1
        ("gradient_energy", pa.float32()),  # levels²
        ("spectral_slope", pa.float32()),  # of log power over log frequency
        ("noise_level", pa.float32()),  # levels
        ("png_bpp", pa.float32()),  # bits of a lossless file a pixel
        ("jxl_bpp", pa.float32()),  # null: not asked for
    ]
)  # fmt: skip


class Characteristics(Settings):
    """Images in, the `characteristics` table out: texture, colour, compressibility."""

    pictures: tuple[Pictures, ...] = Field(
        (), description="releases and folders; empty: the release of this run"
    )
    distances: tuple[Count, ...] = Field((1,), min_length=1, description="of the GLCM, in pixels")
    angles: tuple[Literal[0, 45, 90, 135], ...] = Field(
        (0, 45, 90, 135), min_length=1, description="of the GLCM, in degrees"
    )
    symmetric: bool = Field(True, description="GLCM: count each pair in both directions")
    crop: Count | None = Field(
        None,
        description="measure only the middle square with this side in pixels, and leave smaller "
        "images out, so that sources of different sizes can be compared",
    )
    lossless: tuple[Literal["png", "jxl"], ...] = Field(
        ("png",),
        description="file formats whose sizes are measured; for jxl: pip install pillow-jxl-plugin",
    )
    max_pixels: Count = Field(64_000_000, description="larger images are refused")
    reference: str | None = Field(
        None, description="source to compare the others with; null: compare each with all others"
    )


VERSION = 1
MOMENTS = ("mean", "std", "third")
_COLUMNS = ("image_id", "image", "source", "split", "watermark")


def measured(rgb: RGB, settings: Characteristics) -> dict[str, float]:
    """All numbers of one image (uint8, H x W x 3), by column; NaN for undefined numbers."""
    # Pillow's luma: ITU-R BT.601, rounded.
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    angles = [math.radians(angle) for angle in settings.angles]
    glcm = texture(grey, settings.distances, angles, settings.symmetric)
    moments = color_moments(rgb)
    return {
        **{f"glcm_{name}": value for name, value in glcm.items()},
        **{
            f"{channel}_{moment}": float(moments[i, j])
            for i, channel in enumerate(CHANNELS)
            for j, moment in enumerate(MOMENTS)
        },
        "colorfulness": colorfulness(rgb),
        "saturation": saturation(rgb),
        "gradient_energy": gradient_energy(grey),
        "spectral_slope": spectral_slope(grey),
        "noise_level": noise_level(grey),
        **{f"{kind}_bpp": lossless_bpp(rgb, kind) for kind in settings.lossless},
    }


def middle(rgb: RGB, side: int) -> RGB:
    """The middle of an image: uint8, `side` x `side` x 3; rounded towards the top left."""
    top, left = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
    return np.ascontiguousarray(rgb[top : top + side, left : left + side])


class Characteriser:
    """Rows of images in, rows of CHARACTERISTICS out, one by one."""

    def __init__(self, settings: Characteristics) -> None:
        self.settings = settings

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Yield one row at a time."""
        for row in rows.to_pylist():
            yield pa.Table.from_pylist([self._row(row)], CHARACTERISTICS)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        found = {name: row[name] for name in ("image_id", "source", "split", "watermark")}
        crop = self.settings.crop
        try:
            rgb = decode(row["image"]["bytes"], self.settings.max_pixels).rgb
        except BadPicture as error:
            return found | {"error": str(error)}
        found |= {"height": rgb.shape[0], "width": rgb.shape[1]}
        if crop is not None:
            if min(rgb.shape[:2]) < crop:
                return found | {"error": f"smaller than the crop of {crop} pixels"}
            rgb = middle(rgb, crop)
        numbers = measured(rgb, self.settings)
        return found | {n: v if math.isfinite(v) else None for n, v in numbers.items()}


def stage(settings: Characteristics, run: str) -> Map:
    """The characteristics stage of a run directory."""
    pictures = places(settings.pictures, run)
    deciding = settings.model_dump(mode="json", exclude={"pictures", "reference"})
    return Map(
        table="characteristics",
        version=VERSION,
        schema=CHARACTERISTICS,
        settings=deciding,
        inputs=(),
        names=partial(shard_names, pictures),
        read=partial(read_shard, pictures, _COLUMNS),
        make_worker=partial(Characteriser, settings),
        check=partial(check_lossless, settings.lossless),
        outside=partial(content, pictures),
        state=partial(state, pictures),
        rows=partial(rows_of, pictures),
    )
