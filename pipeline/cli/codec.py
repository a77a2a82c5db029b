"""`aigi encode` and `decode`: an image in, an .aigi file out, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import AigiError
from pipeline.cli import completion
from pipeline.cli.recipe import Recipe, Trust, decode_recipe, encode_recipe, refuse
from pipeline.cli.show import explained, read_file, talk, tell
from pipeline.files import write_file

if TYPE_CHECKING:
    from pipeline.learned.refine import Gain
    from pipeline.learned.targets import Met

Codec = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Name, folder or Hub id of a codec.",
        show_default="catc-small",
        autocompletion=completion.codecs,
    ),
]


Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of the model.")]


TextFolder = Annotated[
    Path | None, typer.Option("--text", help="Folder with the text encoder; default: from the Hub.")
]


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def encode(
    image: Annotated[
        Path | None, typer.Argument(help="PNG, JPEG, WebP or similar; alpha is blended over white.")
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write.", show_default="IMAGE.aigi"),
    ] = None,
    model: Codec = None,
    prompt: Annotated[
        str, typer.Option(help="What the image shows; it is stored in the file.")
    ] = "",
    quality: Annotated[
        float | None,
        typer.Option(
            "--quality",
            "-q",
            help="1, 2, …, from low to high rate, or between two, as 2.5.",
            show_default="the highest",
        ),
    ] = None,
    bpp: Annotated[
        float | None,
        typer.Option(help="Instead: the largest file of at most so many bits a pixel."),
    ] = None,
    psnr: Annotated[
        float | None, typer.Option(help="Instead: the smallest file of at least so many dB.")
    ] = None,
    effort: Annotated[
        int,
        typer.Option(
            min=0,
            max=2,
            help="1, 2: search for a cheaper file; takes some 30 and 100 times as long.",
        ),
    ] = 0,
    revision: Revision = None,
    text_folder: TextFolder = None,
    device: Device = "auto",
    recipe: Recipe = None,
    trust: Trust = False,
) -> None:
    """Code an image to an .aigi file with a learned codec, or as what made it."""
    with explained():
        if out is None:
            if image is None:
                raise AigiError("encode: --out FILE is needed beside --recipe without an image")
            out = image.with_suffix(".aigi")
        if recipe is not None:
            asked: dict[str, object] = {"--prompt": prompt, "--quality": quality, "--bpp": bpp}
            asked |= {"--psnr": psnr, "--effort": effort}
            asked |= {"--revision": revision, "--text": text_folder}
            refuse(asked, "a recipe")
            return encode_recipe(recipe, image, out, model, trust, device)
        refuse({"--trust": trust}, "a learned codec")
        if image is None:
            raise AigiError("encode: give an image, or what made one: --recipe RELEASE#IMAGE_ID")
        from pipeline.learned.bitstream import MOST_PIXELS, is_lossless, rates
        from pipeline.pixels import BadPicture
        from pipeline.pixels import decode as decode_picture
        from pipeline.progress import Progress

        if sum(given is not None for given in (quality, bpp, psnr)) > 1:
            raise AigiError("encode: --quality, --bpp and --psnr exclude each other. Give one.")
        try:
            picture = decode_picture(read_file(image), MOST_PIXELS)
        except BadPicture as error:
            raise AigiError(f"{image}: {error}") from None
        # Only now what takes seconds to import.
        from pipeline.learned.codec import load
        from pipeline.learned.shipped import DEFAULT, shipped
        from pipeline.learned.targets import coded, meet

        codec = load(DEFAULT if model is None else model, revision, device, text_folder)
        progress = Progress()
        with progress.steps(f"{image.name}: search") as told:
            target = bpp if psnr is None else psnr
            if target is not None:
                found = meet(
                    codec,
                    picture.rgb,
                    prompt,
                    "bpp" if psnr is None else "psnr",
                    target,
                    effort,
                    lambda met: talk(
                        f"quality {met.quality:g}: {met.bpp:.4f} bpp, {_decibels(met)}"
                    ),
                    told,
                )
            else:
                found = coded(codec, picture.rgb, prompt, quality, effort, told)
        data = found.data
        write_file(out, data)
        said = f" ({picture.note})" if picture.note else ""
        tell(
            f"{out}: {len(data):,} bytes, {found.bpp:.4f} bpp, "
            f"{rates(data).bpp_without_prompt:.4f} without the prompt, "
            f"{_decibels(found)}, quality {found.quality:g}{_gain(found.gain)}{said}",
            file=str(out),
            bytes=len(data),
            bpp=found.bpp,
            bpp_without_prompt=rates(data).bpp_without_prompt,
            psnr=None if is_lossless(data) else found.psnr,
            quality=found.quality,
        )
        if prompt and is_lossless(data):
            talk("a lossless file has no prompt")
        elif prompt and codec.text is None:
            talk(f"{codec.name} does not use prompts, so the prompt is not stored")
        which = "" if model is None or model in shipped() else f" --model {model}"
        talk(f"next: aigi decode {out}{which}")


def _decibels(met: Met) -> str:
    from pipeline.learned.bitstream import is_lossless

    return "lossless" if is_lossless(met.data) else f"{met.psnr:.2f} dB"


def _gain(gain: Gain | None) -> str:
    """What a search came to, for the line of the result."""
    if gain is None:
        return ""
    if not gain.kept:
        return f"; search of {gain.steps} steps: nothing better"
    return (
        f"; search of {gain.steps} steps: {gain.bytes_before:,} to {gain.bytes_after:,} bytes, "
        f"{gain.psnr_before:.2f} to {gain.psnr_after:.2f} dB"
    )


def decode(
    file: Annotated[Path, typer.Argument(help="An .aigi file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="PNG file to write.", show_default="FILE-decoded.png"),
    ] = None,
    model: Codec = None,
    revision: Revision = None,
    text_folder: TextFolder = None,
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Decode an .aigi file to a PNG file, with the model that coded it."""
    with explained():
        from pipeline.codecs.recipe import is_recipe
        from pipeline.learned import lossless
        from pipeline.learned.bitstream import is_lossless, unpack
        from pipeline.learned.shipped import shipped
        from pipeline.pixels import png_bytes

        # Not the name of the image itself, which may be beside the file.
        out = out or file.with_name(f"{file.stem}-decoded.png")
        data = read_file(file)
        if is_recipe(data):
            refuse({"--revision": revision, "--text": text_folder}, "a recipe")
            return decode_recipe(file, data, out, model, trust, device)
        refuse({"--trust": trust}, "a learned codec")
        if is_lossless(data):
            picture = lossless.decode(data)
            write_file(out, png_bytes(picture))
            tell(f"{out}: {picture.shape[1]}x{picture.shape[0]}, lossless")
            if model is not None:
                talk("a lossless file needs no model")
            return
        try:
            header, _ = unpack(data)
        except AigiError as error:
            raise AigiError(f"{file}: {error}") from None
        if model is None and header.model in shipped():
            model = header.model
        if model is None:
            raise AigiError(
                f"{file}: this file was made with model {header.model} (weights "
                f"{header.weights.hex()}). Give its folder or Hub id as --model."
            )
        from pipeline.learned.codec import load

        picture = load(model, revision, device, text_folder).decode(data)
        write_file(out, png_bytes(picture))
        size = {"width": header.width, "height": header.height}
        tell(f"{out}: {header.width}x{header.height}", file=str(out), **size)
