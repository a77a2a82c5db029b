"""Schemas of the tables that building writes; those of readers are beside their stages."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pyarrow as pa

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

LINES = pa.schema(
    # Captions as they were read; exactly one of text and problem is not null.
    [("line", pa.int64()), ("text", pa.string()), ("problem", pa.string())]
)
TEXTS = pa.schema(
    # Captions, normalised, with their scores; these are null where `problem` says why.
    [
        ("line", pa.int64()),
        ("raw", pa.string()),  # as it was read, where that is not `text`
        ("text", pa.string()),  # normalised
        ("problem", pa.string()),  # why it can be no prompt, whatever the filters are
        ("prompt_id", pa.string()),
        ("words", pa.int32()),
        ("ascii_letters", pa.float64()),  # share among the letters; null: there is none
        ("noise", pa.float64()),  # share of the words
        ("repeated", pa.float64()),  # share of the words that are there before
        ("blocked", pa.string()),  # entry of the blocklist
        ("named", pa.string()),  # entry of the list of names
        ("language", pa.string()),  # ISO 639
        ("language_probability", pa.float64()),
        ("personal", pa.list_(pa.string())),  # kinds of personal data
        ("unsafe", pa.map_(pa.string(), pa.float64())),  # 0 to 1, by scorer
        ("unsafe_for", pa.string()),  # what the highest of these is for
        ("meanings", pa.list_(pa.uint64())),  # hashes of what it says; others: a slip corrected
    ]
)
PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),  # first 32 hex digits of sha256(text)
        ("text", pa.string()),
        ("source", pa.string()),
        ("source_ref", pa.string()),  # file:line
        ("split", pa.string()),  # train, validation or test: a function of prompt_id
        ("tokens", pa.int32()),  # CLIP's, begin and end included; without a model of CLIP: READERS'
        ("truncated", pa.bool_()),  # a model of the dataset cuts it; CLIP reads 77
    ]
)
READERS = pa.field(
    # By source whose model has other tokenizers than CLIP's: tokens of the prompt by that which
    # reads most of it, and how many that reads.
    "readers", pa.map_(pa.string(), pa.struct([("tokens", pa.int32()), ("most", pa.int32())]))
)  # fmt: skip
REJECTS = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("text", pa.string()),
    ]
)
PLAN = pa.schema(
    [
        ("image_id", pa.string()),  # hash of every field that decides pixels
        ("prompt_id", pa.string()),
        ("text", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("model", pa.string()),
        ("revision", pa.string()),
        ("seed", pa.int64()),
        ("steps", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("negative_prompt", pa.string()),
        ("scheduler", pa.string()),
        ("dtype", pa.string()),
        ("width", pa.int32()),  # pixels; null where an imported picture keeps its own size
        ("height", pa.int32()),
        ("watermark", pa.string()),
        ("pair_id", pa.string()),  # image_id of the variant without watermark; null: no pair
        ("path", pa.string()),  # imported pictures: name inside the folder, zip or parquet
        ("index", pa.int32()),  # how many images of this prompt and source come before
        ("rank", pa.int32()),  # position in its source and split; below the count: wanted
        ("round", pa.int32()),  # 0: first plan; 1…: top-up
    ]
)
OPTIONS = pa.field("options", pa.string())  # JSON: what else decides pixels; null: nothing


def with_options(schema: pa.Schema, some: bool) -> pa.Schema:
    """PLAN or RELEASE; with the column OPTIONS behind it where a source has `some`.

    Tables without any are what they were before there was this column.
    """
    return schema.append(OPTIONS) if some else schema


PHOTOS = pa.schema(
    [
        ("source", pa.int32()),  # which of prompts.sources
        ("photo", pa.string()),
        ("row", pa.int64()),  # 1-based
    ]
)
CAPTIONS = pa.schema(
    [("photo", pa.string()), ("row", pa.int64()), ("text", pa.string()), ("error", pa.string())]
)
ENDPOINT = "endpoint"
"""The `device` of images of an endpoint, and the entry of their `versions` about the request."""


def without_request(versions: str) -> str:
    """The column `versions` of a row without what is of it alone: a request and its answer."""
    if ENDPOINT not in versions:
        return versions
    try:
        found = json.loads(versions)
        found[ENDPOINT] = str(found[ENDPOINT]["host"])
    except (ValueError, RecursionError, TypeError, KeyError):
        return versions
    return json.dumps(found, sort_keys=True)


IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", IMAGE),  # PNG or lossless WebP; null where `error` says why
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("pixels_sha256", pa.string()),  # of the uint8 RGB array, row by row
        ("error", pa.string()),
        ("batch_size", pa.int32()),  # null for imported pictures and those of an endpoint
        ("device", pa.string()),
        # JSON object of library versions; `weights`: of the model; `endpoint`: request and answer
        ("versions", pa.string()),
        # Pictures that came as files, imported or from an endpoint:
        ("original_sha256", pa.string()),  # of the file as it came
        ("note", pa.string()),  # what changed, and what was left out
    ]
)
QUALITY = pa.schema(
    # All but image_id are null where the image failed.
    [
        ("image_id", pa.string()),
        ("nsfw", pa.float32()),  # above 0: the safety checker flags it; null: none was asked for
        ("concepts", pa.map_(pa.string(), pa.float32())),  # probability of each, 0 to 1
        ("width_ok", pa.bool_()),  # width and height are those of the plan, where it gives them
        ("black", pa.float32()),  # share of nearly black pixels
        ("blank", pa.float32()),  # share of the commonest colour of 16 levels a channel
        ("luminance_mean", pa.float32()),  # 0 to 255
        ("luminance_std", pa.float32()),
        ("entropy", pa.float32()),  # of the luminance histogram: bits, 0 to 8
        ("blockiness", pa.float32()),  # 1: no 8x8 grid; rises as the quality of a JPEG falls
        ("png_bpp", pa.float32()),  # bits a pixel of its PNG, whatever it is stored in
        ("perceptual_hash", pa.uint64()),  # nearly the same after re-encoding or resizing
    ]
)
SELECTION = pa.schema(
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),  # null where kept
        ("duplicate_of", pa.string()),  # image_id of the kept one, where the reason is duplicate
        ("similarity", pa.float32()),  # to it, or to the nearest of the group
    ]
)
DUPLICATES = pa.schema(
    [
        ("image_id", pa.string()),
        ("other_id", pa.string()),  # comes later in the plan
        ("kind", pa.string()),  # pixels, hash or vector
        # 1; share of equal bits; cosine, unrounded, as thresholds are compared with it
        ("similarity", pa.float64()),
    ]
)
RELEASE = pa.schema(
    [
        ("image", IMAGE),
        *(PLAN.field(name) for name in ("text", "image_id", "prompt_id", "source")),
        *(IMAGES.field(name) for name in ("width", "height")),
        *(
            PLAN.field(name)
            for name in (
                "model",
                "revision",
                "seed",
                "steps",
                "guidance_scale",
                "negative_prompt",
                "scheduler",
                "dtype",
                "watermark",
                "pair_id",
                "path",
            )
        ),
        *(
            IMAGES.field(name)
            for name in (
                "pixels_sha256",
                "original_sha256",
                "note",
                "batch_size",
                "device",
                "versions",
            )
        ),
    ]
)


# For the reader of a release, who sees no comments; every column of RELEASE has its words here.
_RELEASE_MEANING = {
    "image": "the picture, as lossless {}: 8-bit RGB",
    "text": "the prompt",
    "image_id": "hash of everything that decides the pixels; the key of a row",
    "prompt_id": "hash of the prompt: the first 32 hex digits of sha256(text)",
    "source": "what made the picture; the same as the config",
    "width": "pixels",
    "height": "pixels",
    "model": "Hub id or name of the model",
    "revision": "commit of the model's repository, or a name; empty: not stated",
    "seed": "of the picture's own random generator: on the CPU, or as it was sent to an endpoint; "
    "null: none was sent. Of an imported picture: what its file states, as in the next two and in "
    "scheduler; null: nothing",
    "steps": "of the scheduler; null: of an endpoint",
    "guidance_scale": "of classifier-free guidance; null: of an endpoint",
    "negative_prompt": "what the guidance leads away from; null: imported, or of an endpoint",
    "scheduler": "the sampler, with its options; own: what the model came with; null: of an "
    "endpoint",
    "dtype": "number format of the model while it drew; null: imported, or of an endpoint",
    "watermark": "which mark the picture carries, `none` where it has none",
    "pair_id": "image_id of the same picture without a mark, where there are both; else null",
    "path": "imported pictures: name of the file that it came from",
    "pixels_sha256": "sha256 of the uint8 RGB array, height x width x 3, row by row",
    "original_sha256": "pictures that came as files, imported or from an endpoint: sha256 of the "
    "file as it came",
    "note": "pictures that came as files: what the conversion to 8-bit RGB changed, and which "
    "metadata was left out; null: nothing",
    "batch_size": "pictures drawn at once, which moves the last bit of some pixels; null: imported "
    "or of an endpoint",
    "device": "what drew the picture, or decoded an imported one; endpoint: a server drew it",
    "versions": "JSON object: versions of the libraries that made the pixels, `weights`: sha256 of "
    "the tensors of each component of the model, as they were loaded, `scheduler`: its class "
    "and all its settings, and `endpoint`: what a server was asked for and what it answered",
}
_OPTIONS_MEANING = (
    "JSON object: what else decides the pixels: arguments of the call of the pipeline, files that "
    "were added to the model; null: nothing"
)


def release_fields(formats: Iterable[str], options: bool = False) -> list[tuple[pa.Field, str]]:
    """Columns of a release, and what each means.

    Args:
        formats: names of what its images are stored in.
        options: whether a source has some.
    """
    images = _RELEASE_MEANING["image"].format(" or ".join(formats) or "WebP or PNG")
    meaning = {**_RELEASE_MEANING, "image": images, OPTIONS.name: _OPTIONS_MEANING}
    return [(column, meaning[column.name]) for column in with_options(RELEASE, options)]


def embeddings_schema(size: int) -> pa.Schema:
    """Schema of the embeddings table of a model whose vectors hold `size` numbers.

    Vectors have length 1, to the rounding of float16; all but image_id is null where the image
    failed.
    """
    vector = pa.list_(pa.float16(), size)
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("image_vector", vector),
            ("text_vector", vector),
            ("clip_score", pa.float32()),  # cosine of the two before that rounding, -1 to 1
        ]
    )
