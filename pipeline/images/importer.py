"""Images and captions of a closed model in; caption triples and rows of the `images` table out.

Nothing is changed that need not be: an image that already is a plain 8-bit RGB PNG is stored with
the bytes of its pixels as they are, every other one is decoded once and stored in the container of
the run. What a file says beside its pixels (texts, EXIF, GPS) is left out, and noted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import PIL
import pyarrow as pa

from pipeline.marks.names import embed
from pipeline.metadata import bare_png, beside_pixels, noted
from pipeline.pictures.colours import in_srgb
from pipeline.pictures.lists import open_import
from pipeline.pictures.names import Escapes
from pipeline.pictures.sources import ImportedSource, OriginalSource
from pipeline.pixels import RGB, BadPicture, Container, contained, decode, named, pixels_sha256
from pipeline.tables import IMAGES
from pipeline.threads import ahead, workers

CHUNK_ROWS, CHUNK_BYTES = 16, 64 << 20
# No device is waited for: here the encoder decides the speed.
REENCODED = Container(method=0)


def _fitted(rgb: RGB, expected: tuple[int | None, int | None], fit: str) -> tuple[RGB, str | None]:
    """The image, or its centre, and None; or the image and why it does not fit."""
    height, width = rgb.shape[:2]
    wide, high = expected[0] or width, expected[1] or height
    if fit == "keep" or (width, height) == (wide, high):
        return rgb, None
    if fit == "reject":
        return rgb, (f"size {width}x{height}, expected {wide}x{high} (set fit: crop or keep)")
    if width < wide or height < high:
        return rgb, f"too small: {width}x{height}, expected at least {wide}x{high}"
    left, top = (width - wide) // 2, (height - high) // 2
    return rgb[top : top + high, left : left + wide], None


class Importer:
    """A worker: rows of the plan in, rows of the `images` table out, in the same order.

    Args:
        source: where the images are, and what to do with one of another size.
        container: of images that are encoded again; by default as the stage does.
        threads: images decoded and encoded at once; changes no byte.

    Raises:
        AigiError: the folder or archive is missing or refused.
    """

    def __init__(
        self, source: ImportedSource, container: Container = REENCODED, threads: int = 2
    ) -> None:
        self.source, self.threads, self.container = source, threads, container
        self.pictures = open_import(source)
        # Images of the original release that have a watermark came with it.
        self.marks = not isinstance(source, OriginalSource)
        self.versions = json.dumps({"pillow": PIL.__version__})

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Import the images of `rows`, up to 16 rows or 64 MiB a chunk.

        Args:
            rows: `image_id`, `path` (name of the image), `width`, `height` (null: any),
                `watermark` (null: none).

        Yields:
            `IMAGES` chunks. An image that cannot be used is a row whose `image` is null and
            whose `error` is the reason.

        Raises:
            MachineFault: the folder or archive itself cannot be read, or is gone.
        """
        plan = rows.select(["image_id", "path", "width", "height", "watermark"]).to_pylist()
        done: list[dict[str, Any]] = []
        size = 0
        with workers(self.threads, "import") as pool:
            # A few pictures are under way while the last chunk is being written.
            for row in ahead(plan, self._row, pool, 4 * self.threads):
                done.append(row)
                size += len((row.get("image") or {}).get("bytes", b""))
                if len(done) == CHUNK_ROWS or size > CHUNK_BYTES:
                    yield pa.Table.from_pylist(done, schema=IMAGES)
                    done, size = [], 0
        if done:
            yield pa.Table.from_pylist(done, schema=IMAGES)

    def _row(self, plan: dict[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {"image_id": plan["image_id"], "device": "cpu"}
        row["versions"] = self.versions
        try:
            if plan["path"] is None:
                raise BadPicture("the plan names no picture (path is null)")
            data = self.pictures.read(plan["path"])
            row["original_sha256"] = hashlib.sha256(data).hexdigest()
            picture = decode(data, self.source.max_pixels)
            rgb, misfit = _fitted(picture.rgb, (plan["width"], plan["height"]), self.source.fit)
            if misfit:
                raise BadPicture(misfit)
            rgb, colours = in_srgb(rgb, data, self.source.colours == "srgb")
        except (BadPicture, Escapes) as error:
            # So is a file of the plan that is not there, if its folder is: the others can be made,
            # and a run that ends without it reports that.
            return row | {"error": str(error)}
        rgb = embed(rgb, (self.marks and plan["watermark"]) or "none")
        if not (picture.lossless_png and rgb is picture.rgb):
            stored, gone = contained(rgb, self.container), beside_pixels(data)
        elif self.source.keep_metadata:
            stored, gone = data, ()
        else:
            stored, gone = bare_png(data)
        return row | {
            "image": named(plan["image_id"], stored),
            "width": rgb.shape[1],
            "height": rgb.shape[0],
            "pixels_sha256": pixels_sha256(rgb),
            "note": noted("; ".join(filter(None, (picture.note, colours))), gone),
        }
