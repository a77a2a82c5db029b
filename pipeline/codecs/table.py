"""The table of codecs: a name in; how it codes, its qualities, version and digest out."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from pipeline import AigiError
from pipeline.codecs import color, ffmpeg, learned, pillow, programs, zoo
from pipeline.codecs.codec import Codec, CodecSettings, Here, Row
from pipeline.codecs.command import EncoderSettings, ffmpeg_version, find_ffmpeg
from pipeline.complaints import near
from pipeline.files import file_sha256
from pipeline.learned.shipped import DEFAULT, shipped
from pipeline.models.hub import Place
from pipeline.pixels import RGB


def _steps(coarsest: float, finest: float, factor: float) -> tuple[float, ...]:
    """A geometric grid from low to high rate, of numbers with three digits."""
    grid = [coarsest]
    while grid[-1] > finest:
        grid.append(max(float(f"{grid[-1] / factor:.3g}"), finest))
    return tuple(grid)


def _pillow(name: str) -> Callable[[EncoderSettings, CodecSettings, float, Here], Codec]:
    return lambda settings, given, quality, here: pillow.PillowCodec(name, quality, settings)


def _pillow_version(name: str) -> Callable[[CodecSettings, Here], str]:
    return lambda given, here: pillow.version(name)


def _preset(given: CodecSettings) -> str | None:
    """The preset that is given, or the usual one; None: the codec has none."""
    return given.preset or next(iter(CODECS[given.codec].presets), None)


def _ffmpeg_version(encoder: str) -> Callable[[CodecSettings, Here], str]:
    def version(given: CodecSettings, here: Here) -> str:
        preset = _preset(given)
        program = ffmpeg_version(find_ffmpeg(encoder, here.programs))
        return f"{encoder} in {program}" + (f", {preset}" if preset else "")

    return version


def _hevc(settings: EncoderSettings, given: CodecSettings, quality: float, here: Here) -> Codec:
    program = find_ffmpeg("libx265", here.programs)
    preset = given.preset or ffmpeg.HEVC_PRESETS[0]
    return ffmpeg.Hevc(program, quality, preset, settings)


def _vvc(settings: EncoderSettings, given: CodecSettings, quality: float, here: Here) -> Codec:
    program = find_ffmpeg("libvvenc", here.programs)
    preset = given.preset or ffmpeg.VVC_PRESETS[0]
    return ffmpeg.Vvc(program, quality, preset, settings)


def _jxl(settings: EncoderSettings, given: CodecSettings, quality: float, here: Here) -> Codec:
    return ffmpeg.JpegXl(find_ffmpeg("libjxl", here.programs), quality, settings)


def _vtm(settings: EncoderSettings, given: CodecSettings, quality: float, here: Here) -> Codec:
    return programs.vtm(quality, here.programs, settings)


def _vtm_version(given: CodecSettings, here: Here) -> str:
    encoder = programs.vtm(32, here.programs, {}).encoder
    return f"VTM {programs.said_version(encoder, r'Encoder Version (?:VTM-)?([0-9.]+)')}"


def _bpg(settings: EncoderSettings, given: CodecSettings, quality: float, here: Here) -> Codec:
    return programs.bpg(quality, here.programs, settings)


def _bpg_version(given: CodecSettings, here: Here) -> str:
    encoder = programs.bpg(32, here.programs, {}).encoder
    return f"BPG {programs.said_version(encoder, r'BPG Image Encoder version ([0-9.]+)')}"


def models_of(given: CodecSettings) -> tuple[str, ...]:
    """Of a learned codec, lowest rate first: those given, or the one that is used unasked.

    Raises:
        AigiError: a pattern of folders that training made fits none.
    """
    if not given.models:
        return (str(shipped()[DEFAULT]),)
    found: list[str] = []
    for model in given.models:
        if "*" not in model:
            found.append(_best_in(str(shipped().get(model, model))))
            continue
        made = [p for p in glob.glob(model) if re.search(r"-[0-9.e-]+$", p)]
        if not made:
            raise AigiError(
                f"benchmark.codecs: {given.label}: {model}: no such folders. Train codecs first; "
                "they lie in RUN/train, as catc-mse-0.013."
            )
        made.sort(key=lambda path: float(path.rpartition("-")[2]))
        found += [_best_in(path) for path in made]
    return tuple(found)


def _best_in(folder: str) -> str:
    """The model in a folder that training made; any other place as it is."""
    made = (f"{folder}/best", f"{folder}/last")
    return next((place for place in made if Path(place).is_dir()), folder)


def _points(given: CodecSettings) -> list[tuple[str, int]]:
    """Of a learned codec, what its qualities count: every model at each of its own."""
    return learned.points(models_of(given))


def _learned(settings: EncoderSettings, given: CodecSettings, quality: float, here: Here) -> Codec:
    model, own = learned.point(_points(given), quality)
    return learned.learned(model, own, here.device, given.text, given.prompts, given.effort)


def _weights(given: CodecSettings) -> list[tuple[str, str]]:
    """Models of a learned codec by name, each with the sha256 of its weights; of a Hub id: none.

    Raises:
        AigiError: there is no such model, or its weights cannot be read.
    """
    found = []
    for model in models_of(given):
        place = Path(model)
        if place.is_absolute():
            where = f"benchmark.codecs: {given.label}"
            weights = Place(where, "models", str(place)).file("model.safetensors")
            trained = place.name in ("best", "last")
            found.append((place.parent.name if trained else place.name, file_sha256(weights)))
        elif "/" in model:
            found.append((model, ""))
        else:
            raise AigiError(
                f'benchmark.codecs: {given.label}: no model "{model}" comes with aigi (else give a '
                f"folder, or ORG/NAME[@REVISION] of the Hub); {near(model, shipped())}"
            )
    return found


def _learned_version(given: CodecSettings, here: Here) -> str:
    from pipeline import __version__

    models = (f"{name} {sha256[:8]}".rstrip() for name, sha256 in _weights(given))
    return ", ".join((f"aigi {__version__}", *models))


def _zoo(settings: EncoderSettings, given: CodecSettings, quality: float, here: Here) -> Codec:
    return zoo.zoo(given.models[0], quality, here.device)


def _zoo_version(given: CodecSettings, here: Here) -> str:
    return f"{zoo.version()}, {given.models[0]}"


def _recipe(settings: EncoderSettings, given: CodecSettings, quality: float, here: Here) -> Codec:
    from pipeline.codecs.recipe import recipe

    return recipe(given.models, here.device)


def _recipe_version(given: CodecSettings, here: Here) -> str:
    from pipeline import __version__
    from pipeline.codecs.recipe import named_models

    named_models(given.models)
    found = ", ".join(f"{name} {metadata.version(name)}" for name in ("diffusers", "torch"))
    return f"aigi {__version__}, {found}"


def _recipe_prompt_bytes(data: bytes) -> int:
    from pipeline.codecs.recipe import prompt_bytes

    return prompt_bytes(data)


_PERCENT = tuple(float(quality) for quality in range(1, 101))


_QP = tuple(float(qp) for qp in range(51, 0, -1))


_VVC_QP = tuple(float(qp) for qp in range(63, 0, -1))


CODECS: dict[str, Row] = {
    "jpeg": Row(
        title="JPEG",
        format="YCbCr BT.601, 4:2:0, 8 bits",
        qualities=(5, 15, 30, 50, 75, 90, 95),
        grid=_PERCENT,
        open=_pillow("JPEG"),
        version=_pillow_version("JPEG"),
        settings={"subsampling": "4:2:0"},  # baseline, with the standard Huffman tables
    ),
    "jpeg-444": Row(
        title="JPEG 4:4:4",
        format="YCbCr BT.601, 4:4:4, 8 bits",
        qualities=(5, 15, 30, 50, 75, 90, 95),
        grid=_PERCENT,
        open=_pillow("JPEG"),
        version=_pillow_version("JPEG"),
        settings={"subsampling": "4:4:4"},
    ),
    "jpeg2000": Row(
        title="JPEG 2000",
        format="YCbCr (irreversible transform), 4:4:4, 8 bits; quality: 1 to how many",
        qualities=(160, 80, 40, 20, 10),
        grid=_steps(1000, 2, 1.1),
        open=_pillow("JPEG2000"),
        version=_pillow_version("JPEG2000"),
        settings={"irreversible": True, "mct": 1, "no_jp2": True, "quality_mode": "rates"},
    ),
    "webp": Row(
        title="WebP",
        format="YCbCr BT.601 limited, 4:2:0, 8 bits",
        qualities=(2, 15, 40, 70, 85, 95),
        grid=_PERCENT,
        open=_pillow("WEBP"),
        version=_pillow_version("WEBP"),
        settings={"method": 4},
    ),
    "avif": Row(
        title="AVIF",
        format="YCbCr BT.601, 4:4:4, 8 bits",
        qualities=(10, 25, 45, 65, 80),
        grid=_PERCENT,
        open=_pillow("AVIF"),
        version=_pillow_version("AVIF"),
        # In one thread, so that the bytes are the same on every machine.
        settings={"subsampling": "4:4:4", "range": "full", "speed": 6, "max_threads": 1},
    ),
    "jpegxl": Row(
        title="JPEG XL",
        format="XYB, 4:4:4, float; quality: Butteraugli distance",
        qualities=(12, 6, 3, 1.5, 0.75),
        grid=_steps(25, 0.05, 1.1),
        open=_jxl,
        version=_ffmpeg_version("libjxl"),
        settings={"effort": 7, "threads": 1},
        external=True,
    ),
    "hevc": Row(
        title="HEVC",
        format="YCbCr BT.709, 4:4:4, 10 bits; quality: QP",
        qualities=(42, 37, 32, 27, 22),
        grid=_QP,
        open=_hevc,
        version=_ffmpeg_version("libx265"),
        # Adaptive quantisation and psychovisual decisions are off: both lose PSNR (1 dB at equal
        # rate on kodim05), and other codecs are not measured with theirs.
        settings={
            "planes": color.PLANES,
            "pix_fmt": "yuv444p10le",
            "x265-params": {
                "keyint": 1,
                "aq-mode": 0,
                "psy-rd": 0,
                "psy-rdoq": 0,
                "info": 0,  # no text about the encoder in the stream
                "log-level": "none",
                "pools": "none",
                "frame-threads": 1,
                "wpp": 0,
            },
        },
        external=True,
        presets=ffmpeg.HEVC_PRESETS,
    ),
    "bpg": Row(
        title="BPG",
        format="YCbCr BT.601, 4:4:4, 8 bits; quality: QP",
        qualities=(42, 37, 32, 27, 22),
        grid=_QP,
        open=_bpg,
        version=_bpg_version,
        settings={"e": "x265", "f": 444, "c": "ycbcr", "b": 8},
        external=True,
    ),
    "vvc": Row(
        title="VVC (libvvenc)",
        format="YCbCr BT.709 limited, 4:2:0, 10 bits; quality: QP",
        qualities=(42, 37, 32, 27, 22),
        grid=_VVC_QP,
        open=_vvc,
        version=_ffmpeg_version("libvvenc"),
        # This encoder has 4:2:0 alone. Its perceptual adaptation of the QP is off, and ffmpeg's
        # scaler converts with rounding.
        settings={
            "pix_fmt": "yuv420p10le",
            "matrix": "bt709",
            "range": "tv",
            "flags": "lanczos+accurate_rnd+full_chroma_int+full_chroma_inp",
            "libvvenc": {"qpa": 0, "period": 1, "threads": 1},
        },
        external=True,
        presets=ffmpeg.VVC_PRESETS,
    ),
    "vtm": Row(
        title="VVC (VTM)",
        format="YCbCr BT.709, 4:4:4, 10 bits; quality: QP",
        qualities=(42, 37, 32, 27, 22),
        grid=_VVC_QP,
        open=_vtm,
        version=_vtm_version,
        settings={
            "planes": color.PLANES,
            "options": {
                "InputChromaFormat": 444,
                "InputBitDepth": color.BITS,
                "ConformanceWindowMode": 1,
            },
        },
        external=True,
    ),
    "learned": Row(
        title="learned",
        format="RGB, 4:4:4, 8 bits; quality: which of the models",
        qualities=(),
        grid=(),
        open=_learned,
        version=_learned_version,
        settings={},  # they are in the files of a network, whose hash counts
        network=True,
        prompt_bytes=learned.prompt_bytes,
    ),
    "compressai": Row(
        title="CompressAI",
        format="RGB, 4:4:4, 8 bits",
        qualities=(1, 2, 3, 4, 5, 6),
        grid=(),
        open=_zoo,
        version=_zoo_version,
        settings={},
        network=True,
    ),
    "recipe": Row(
        title="recipe (what made it)",
        format="RGB, 4:4:4, 8 bits, lossless; generated images alone",
        qualities=(1,),
        grid=(1.0,),
        open=_recipe,
        version=_recipe_version,
        settings={},
        network=True,
        prompt_bytes=_recipe_prompt_bytes,
        rows=True,
    ),
}


_FIRST = {
    "jpeg": "d60719ce",
    "jpeg-444": "50440c39",
    "jpeg2000": "646c8669",
    "webp": "30f466b7",
    "avif": "a87fa2cc",
    "jpegxl": "7552779f",
    "hevc": "13580a02",
    "bpg": "f063c52f",
    "vvc": "99a55929",
    "vtm": "cc4c3a53",
}
"""Digests of the settings that encoders had when names of measurements did not say them. Those of
runs of that time are found as long as their codec still has them; this table never changes."""


def no_codec(name: str) -> str:
    """What is wrong with a name that no codec has."""
    return f'no codec "{name}"; {near(name, [*CODECS, *shipped()])}'


def row_of(given: CodecSettings) -> Row:
    """The row of a codec, with its settings checked.

    Raises:
        AigiError: there is no such codec, or a setting is none of it.
    """
    row = CODECS.get(given.codec)
    if row is None:
        raise AigiError(f"benchmark.codecs: {no_codec(given.codec)}")
    if given.codec == "compressai" and not given.models:
        raise AigiError(f"benchmark.codecs: {given.label}: give one network as models")
    for name, of in (
        ("models", ("learned", "compressai", "recipe")),
        ("text", ("learned",)),
        ("effort", ("learned",)),
        ("preset", [name for name, one in CODECS.items() if one.presets]),
    ):
        if getattr(given, name) and given.codec not in of:
            raise AigiError(f"benchmark.codecs: {given.label}: {given.codec} takes no {name}")
    if given.preset and given.preset not in row.presets:
        raise AigiError(
            f'benchmark.codecs: {given.label}: no preset "{given.preset}"; '
            f"{near(given.preset, row.presets)}"
        )
    if not given.prompts and given.codec != "learned":
        raise AigiError(f"benchmark.codecs: {given.label}: {given.codec} takes no prompts")
    if given.qualities is None:
        return row  # nothing to hold to the ends: models are not looked for
    points = _points(given) if given.codec == "learned" else []
    ends = (1, len(points)) if points else (1, 8)
    low, high = (min(row.grid), max(row.grid)) if row.grid else ends
    for quality in given.qualities:
        if not low <= quality <= high:
            raise AigiError(
                f"benchmark.codecs: {given.label}: quality {quality:g} is not in {low:g} to "
                f"{high:g} ({row.format})"
            )
        if points:
            try:
                learned.point(points, quality)
            except AigiError as error:
                raise AigiError(f"benchmark.codecs: {given.label}: {error}") from None
        elif quality % 1 and not any(step % 1 for step in row.grid):
            raise AigiError(
                f"benchmark.codecs: {given.label}: quality {quality:g} is no whole number "
                f"({row.format})"
            )
    return row


def qualities(given: CodecSettings) -> tuple[float, ...]:
    """The qualities to measure, each once, from low to high rate.

    Raises:
        AigiError: as `row_of`.
    """
    row = row_of(given)
    if given.qualities is not None:
        falling = len(row.grid) > 0 and row.grid[0] > row.grid[-1]
        return tuple(sorted(set(given.qualities), reverse=falling))
    if given.codec == "learned":
        return tuple(float(i + 1) for i in range(len(_points(given))))
    return row.qualities


def searchable(given: CodecSettings) -> tuple[float, ...]:
    """The qualities that a search for a rate may try, from low to high rate.

    Raises:
        AigiError: as `row_of`.
    """
    row = row_of(given)
    if given.codec == "learned":
        return learned.grid(_points(given))
    return row.grid or qualities(given)


def _hashed(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def digest(given: CodecSettings) -> str:
    """8 hex digits that change with every setting that decides the bytes, but name and qualities.

    Settings are those of the workflow and of the encoder. The version of the codec is not in here:
    a machine that lacks it would not find what was measured. It is in every row.

    Raises:
        AigiError: there is no such model, or its weights cannot be read.
    """
    settings = given.model_dump(exclude={"name", "qualities", "models", "text"})
    if not given.effort:
        del settings["effort"]  # as it was before there were efforts
    facts: list[object] = [settings | {"preset": _preset(given)}]
    if given.codec == "learned":
        facts += [sha256 or name for name, sha256 in _weights(given)]
    elif given.codec != "recipe":  # where its models are decides no byte
        facts += given.models
    encoder = _hashed(dict(CODECS[given.codec].settings))
    if encoder != _FIRST.get(given.codec, _hashed({})):
        facts.append({"encoder": encoder})
    return _hashed(facts)


def opened(given: CodecSettings, quality: float, here: Here) -> Codec:
    """The codec at one quality, ready to code.

    Raises:
        Missing: this machine lacks a program or package; the text says how to get it.
        AigiError: there is no such codec or model.
    """
    row = row_of(given)
    return row.open(row.settings, given, quality, here)


def conversion(codec: Codec, image: RGB) -> RGB | None:
    """The uint8 H x W x 3 image after colour conversions alone; None where a library hides them."""
    convert: Callable[[RGB], RGB] | None = getattr(codec, "convert", None)
    return None if convert is None else convert(image)
