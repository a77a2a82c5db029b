"""What made an image in, an .aigi file out (`aigi encode --recipe`), and back (`aigi decode`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import AigiError
from pipeline.cli.show import read_file, talk, tell
from pipeline.files import write_file

if TYPE_CHECKING:
    from pipeline.pixels import RGB
    from pipeline.release.making import Known, Making
    from pipeline.release.remake import Remaker

Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Code a generated image as what made it: RELEASE#IMAGE_ID, or a JSON file with the "
        "columns of its row and its `pipeline`, beside the image.",
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Load the generator that a recipe names, from the Hub.")
]


def refuse(given: Mapping[str, object], what: str) -> None:
    """Refuse options that would do nothing.

    Raises:
        AigiError: one of them is given.
    """
    if asked := [option for option, value in given.items() if value]:
        raise AigiError(f"{asked[0]}: {what} takes none; leave it out")


def encode_recipe(
    recipe: str, image: Path | None, out: Path, model: str | None, trust: bool, device: str
) -> None:
    """Write the file of an image of a release, or of an image beside a row.

    Raises:
        AigiError: no such image, nobody knows what made it, or its generator is not trusted.
    """
    from pipeline.codecs.recipe import RecipeCodec, unpack

    if "#" in recipe:
        if image is not None:
            raise AigiError(f"{image}: the image of {recipe} is in the release; leave this one out")
        pixels, known = _of_release(recipe)
    elif image is None:
        raise AigiError(f"{recipe}: give the image that this row made, as `aigi encode IMAGE`")
    else:
        pixels, known = _of_row(Path(recipe), image)
    remaker = _remaker(known.certain(), known.folder, model, trust, device, recipe)
    codec = RecipeCodec(remaker)
    data = codec.encode_known(pixels, known)
    header, residual = unpack(data)
    write_file(out, data)
    rest = f"with {len(residual):,} bytes that correct what is made here" if residual else "exact"
    bpp = 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
    tell(f"{out}: {len(data):,} bytes, {bpp:.4f} bpp, {rest}")
    if header.making.batch > 1:
        talk(f"it is drawn in a batch of {header.making.batch}, whose shape moves pixels")
    _tell_needs(header.making, remaker)
    which = "" if model is None else f" --model {model}"
    talk(f"next: aigi decode {out}{which} -o {out.with_name(f'{out.stem}-decoded.png')}")


def decode_recipe(
    file: Path, data: bytes, out: Path, model: str | None, trust: bool, device: str
) -> None:
    """Write the image of a file, exactly, or nothing.

    Raises:
        AigiError: it is damaged, names a generator that is not trusted, or this machine makes
            another image.
    """
    from pipeline.codecs.recipe import RecipeCodec, unpack
    from pipeline.pixels import png_bytes

    header, _ = unpack(data)
    of = header.making
    remaker = _remaker(of, None, model, trust, device, str(file))
    _tell_needs(of, remaker)
    talk(f"drawing {of.width}x{of.height} in {of.steps} steps")
    picture = RecipeCodec(remaker).decode(data)
    write_file(out, png_bytes(picture))
    tell(f"{out}: {of.width}x{of.height}")


def _remaker(
    making: Making, here: str | None, model: str | None, trust: bool, device: str, where: str
) -> Remaker:
    from pipeline.release.remake import Remaker

    if model is not None and not Path(model).is_dir():
        raise AigiError(f"--model: {model}: no such folder; give a copy of {making.model}")
    folder = model or here
    return Remaker(
        device,
        {} if folder is None else {making.model: folder},
        {making.model, making.vae} if trust else (),
        where,
        "If you trust whoever made it, give --trust. Or name a copy of your own: --model FOLDER.",
    )


def _tell_needs(making: Making, remaker: Remaker) -> None:
    from pipeline.release.remake import needed

    talk(f"decoding needs {needed(making, remaker.folders)}")


def _of_release(recipe: str) -> tuple[RGB, Known]:
    """The image of RELEASE#ID (uint8, H x W x 3), and what is known of it."""
    from pipeline.codecs.recipe import known_of
    from pipeline.collection import Collection, Pictures
    from pipeline.learned.bitstream import MOST_PIXELS
    from pipeline.pixels import decode
    from pipeline.release.making import Known

    place, _, wanted = recipe.rpartition("#")
    collection = Collection(Pictures(place=place))
    found = [
        (part.name, number, image)
        for part in collection.parts
        for number, image in enumerate(
            collection.read(part.name, ["image_id"])["image_id"].to_pylist()
        )
        if wanted and image.startswith(wanted)
    ]
    if len({image for *_, image in found}) != 1:
        count = f"{len(found)} images begin" if found else "no image begins"
        raise AigiError(f"{place}: {count} with {wanted!r}; give more of its image_id")
    part, number, _ = found[0]
    row = collection.read(part, ["image"]).slice(number, 1).to_pylist()[0]
    known = Known.model_validate_json(known_of(collection, part)[number])
    return decode(row["image"]["bytes"], MOST_PIXELS).rgb, known


def _of_row(row: Path, image: Path) -> tuple[RGB, Known]:
    """An image (uint8, H x W x 3) and what a JSON file says that made it."""
    from pipeline.gate import parse
    from pipeline.learned.bitstream import MOST_PIXELS
    from pipeline.pixels import BadPicture, decode
    from pipeline.release.making import known_of_row

    data: dict[str, Any] = parse(read_file(row), str(row), "Correct it.")
    try:
        picture = decode(read_file(image), MOST_PIXELS)
    except BadPicture as error:
        raise AigiError(f"{image}: {error}") from None
    return picture.rgb, known_of_row(data, str(row))
