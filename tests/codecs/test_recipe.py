"""Recipes: the exact image or an error, nothing loaded on a file's word, reasons where none is."""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline import AigiError
from pipeline.benchmark.measurements import Job, Measurer, with_job, with_known
from pipeline.benchmark.recipes import lines
from pipeline.benchmark.settings import Benchmark
from pipeline.cli import app
from pipeline.codecs import recipe as recipes
from pipeline.codecs.codec import CodecSettings, Here
from pipeline.codecs.recipe import (
    MAGIC,
    START,
    VERSION,
    Differs,
    Header,
    RecipeCodec,
    known_of,
    named_models,
    pack,
    prompt_bytes,
    unpack,
)
from pipeline.codecs.residual import decode_residual, encode_residual
from pipeline.codecs.table import digest
from pipeline.collection import Collection, Pictures
from pipeline.learned.range_coder import DamagedStream
from pipeline.pixels import RGB, decode, png_bytes
from pipeline.release.making import Known, Making, NotKnown, known_of_row
from pipeline.release.remake import OtherWeights, Remaker, Untrusted, unconfirmed
from pipeline.store import Store
from tests.benchmark.conftest import execute

MAKING = Making(
    pipeline="sd",
    model="test/tiny-sd",
    revision="seed-0",
    text="one red boat on a calm lake at dawn",
    seed=2**62 + 1,
    scheduler="ddim",
    steps=2,
    guidance_scale=5.0,
    width=64,
    height=64,
)
HEADER = Header(MAKING, bytes(8), bytes(4))


def sealed(body: bytes) -> bytes:
    return MAGIC + bytes([VERSION]) + zlib.crc32(body).to_bytes(4, "big") + body


# --- The format ----------------------------------------------------------------------------------


@given(
    st.builds(
        dict,
        pipeline=st.sampled_from(recipes.PIPELINES),
        options=st.sampled_from(["", '{"true_cfg_scale":2.5}', '{"max_sequence_length":512}']),
        scheduler=st.sampled_from(
            [
                *recipes.SCHEDULERS,
                "deis",
                'euler {"use_karras_sigmas":true}',
                "DDIMParallelScheduler",
            ]
        ),
        dtype=st.sampled_from(recipes.DTYPES),
        device=st.sampled_from(recipes.DEVICES),
        model=st.sampled_from([*recipes.MODELS, "a/b"]),
        revision=st.sampled_from(["v1", "main", "0123456789abcdef" * 2 + "01234567", "ab" * 4]),
        vae=st.sampled_from(["", "a/vae"]),
        text=st.text(st.characters(codec="utf-8"), max_size=40),
        negative_prompt=st.sampled_from(["", "blurred"]),
        seed=st.integers(0, 2**63 - 1),
        steps=st.integers(1, 1000),
        guidance_scale=st.one_of(st.sampled_from([0.0, 7.5, 4.35, 1e300]), st.floats(0, 30)),
        # Multiples of what each family makes; 8 are below.
        width=st.integers(1, 128).map(lambda n: 32 * n),
        height=st.integers(1, 128).map(lambda n: 32 * n),
        watermark=st.sampled_from(["none", "dwt-dct"]),
        tiling=st.booleans(),
        slicing=st.booleans(),
        compiled=st.booleans(),
        threads=st.integers(1, 1024),
        batch=st.just(7),
        place=st.integers(0, 6),
    )
)
@settings(max_examples=25)
def test_what_made_an_image_comes_back_whole(fields: dict[str, Any]) -> None:
    # What another argument of the pipeline sets is refused.
    assume(fields["pipeline"] != "qwen-image" or "true_cfg_scale" not in fields["options"])
    header = Header(Making(**fields), b"12345678", b"abcd")
    assert unpack(pack(header, b"residual")) == (header, b"residual")


def test_options_are_carried_and_others_than_ours_are_refused() -> None:
    fields = MAKING.model_dump() | {"pipeline": "qwen-image", "width": 8 * 6, "height": 8 * 2}
    header = Header(Making(**fields), bytes(8), bytes(4))
    assert pack(header, b"")[START + 12] < 128, "without options a file is what it was before"
    assert unpack(pack(header, b""))[0] == header
    for text in ("[]", '{"b":1,"a":2}', '{"prompt":"x"}', '{"a":{"b":1}}', '{"long":99999}'):
        with pytest.raises(ValueError, match="options"):
            Making(**fields | {"options": text})
        forged = MAKING.model_copy(update={"options": text})
        with pytest.raises(DamagedStream, match="options"):
            unpack(pack(Header(forged, bytes(8), bytes(4)), b""))


def test_some_hundred_bits_suffice() -> None:
    pinned = {"model": recipes.MODELS[0], "revision": "0123456789" * 4, "width": 1024}
    data = pack(Header(MAKING.model_copy(update=pinned), bytes(8), bytes(4)), b"")
    assert 8 * len(data) < 800
    assert 10 < prompt_bytes(data) < 40


@given(st.binary(max_size=120))
@settings(max_examples=40)
def test_other_bytes_are_refused(data: bytes) -> None:
    for forged in (data, MAGIC + data, sealed(data), sealed(bytes(12) + data)):
        try:
            unpack(forged)
        except DamagedStream:
            continue


@given(st.integers(0, 10**6), st.integers(0, 255))
@settings(max_examples=40)
def test_a_changed_file_is_refused_or_a_recipe_again(place: int, byte: int) -> None:
    data = bytearray(pack(HEADER, b"12"))
    data[place % len(data)] ^= byte
    if byte:
        with pytest.raises(DamagedStream):
            unpack(bytes(data))
    try:  # somebody also mended the checksum
        header, _ = unpack(sealed(bytes(data[START:])))
    except DamagedStream:
        return
    assert header.making.steps <= 1000 and header.making.width <= 4096


def test_every_cut_is_refused() -> None:
    data = pack(HEADER, b"")
    for end in range(len(data)):
        with pytest.raises(DamagedStream):
            unpack(data[:end])
        with pytest.raises(DamagedStream):
            unpack(sealed(data[START:end]))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model": "../../etc"}, "ORG/NAME"),
        ({"model": "/root/model"}, "ORG/NAME"),
        ({"vae": "../vae"}, "ORG/NAME"),
        ({"revision": "../x"}, "commit, tag or branch"),
        ({"steps": 1001}, "steps"),
        ({"width": 8192}, "width"),
        ({"batch": 65}, "batch"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"watermark": "visible:logo=../secret.png"}, "logo"),
    ],
)
def test_what_a_file_may_not_ask_for(fields: dict[str, Any], problem: str) -> None:
    data = pack(Header(MAKING.model_copy(update=fields), bytes(8), bytes(4)), b"")
    with pytest.raises(DamagedStream, match=problem):
        unpack(data)


def test_a_later_version_says_so() -> None:
    data = bytearray(pack(HEADER, b""))
    data[4] = 9
    with pytest.raises(DamagedStream, match=r"version 9.*newer"):
        unpack(bytes(data))


# --- The residual --------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_a_residual_corrects_any_prediction(width: int, height: int, kind: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    prediction = random.integers(0, 256, (height, width, 3), np.uint8)
    image = [
        prediction,
        random.integers(0, 256, prediction.shape, np.uint8),
        prediction + np.uint8(128),
        np.where(random.random(prediction.shape) < 0.1, prediction + np.uint8(255), prediction),
    ][kind]
    assert np.array_equal(decode_residual(encode_residual(image, prediction), prediction), image)


def test_a_residual_costs_what_differs() -> None:
    prediction = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    image = prediction.copy()
    assert encode_residual(image, prediction) == b""
    image[7, 9] += np.uint8(1)
    image[70, 90, 1] -= np.uint8(1)
    assert 0 < len(encode_residual(image, prediction)) < 16


@given(st.binary(max_size=60))
@settings(max_examples=40)
def test_a_damaged_residual_is_another_image_or_an_error(data: bytes) -> None:
    prediction = np.zeros((8, 8, 3), np.uint8)
    with suppress(DamagedStream):
        assert decode_residual(data, prediction).shape == (8, 8, 3)


# --- Real images ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(finished: tuple[Path, Path]) -> Path:
    """The release of a small run, its models in folders."""
    return finished[1] / "release"


@pytest.fixture(scope="module")
def images(release: Path) -> list[tuple[RGB, Known]]:
    """Test images of the release with what is known of them: two by sd, and a marked pair."""
    collection = Collection(Pictures(place=str(release), splits=("test",), limit=2))
    found = []
    for part in collection.parts:
        known = known_of(collection, part.name)
        for row, text in zip(collection.read(part.name).to_pylist(), known, strict=True):
            picture = decode(row["image"]["bytes"], 1 << 20).rgb
            found.append((picture, Known.model_validate_json(text)))
    return found


def made_by(known: Known) -> Making:
    assert known.making is not None
    return known.making


@pytest.fixture(scope="module")
def codec(images: list[tuple[RGB, Known]]) -> RecipeCodec:
    folders = {made_by(known).model: known.folder or "" for _, known in images}
    return RecipeCodec(Remaker("cpu", folders))


def test_every_generated_image_comes_back_exactly(
    images: list[tuple[RGB, Known]], codec: RecipeCodec
) -> None:
    assert {made_by(known).watermark for _, known in images} == {"none", "dwt-dct"}
    assert {made_by(known).pipeline for _, known in images} == {"sd", "sdxl"}
    for image, known in images:
        one = codec.of(known.model_dump_json())
        data = one.encode(image)
        assert np.array_equal(one.decode(data), image)
        assert len(data) < 160


def test_a_changed_pixel_is_corrected(images: list[tuple[RGB, Known]], codec: RecipeCodec) -> None:
    image, known = images[0]
    changed = image.copy()
    changed[3, 5] ^= np.uint8(96)
    data = codec.encode_known(changed, known)
    assert unpack(data)[1]
    assert np.array_equal(codec.decode(data), changed)


def test_another_image_than_the_coded_one_is_never_written(
    images: list[tuple[RGB, Known]], codec: RecipeCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, known = images[0]
    data = codec.encode_known(image, known)
    made = codec.remaker.images(unpack(data)[0].making)
    made[0][0, 0, 0] ^= np.uint8(1)
    monkeypatch.setattr(codec.remaker, "images", lambda making: made)
    with pytest.raises(Differs, match=r"makes another image.*nothing is written"):
        codec.decode(data)


def test_an_image_too_far_from_what_is_made_is_refused_with_its_distance(
    images: list[tuple[RGB, Known]], codec: RecipeCodec
) -> None:
    image, known = images[0]
    with pytest.raises(Differs, match=r"\d dB from this one.*lossless WebP"):
        codec.encode_known(np.roll(image, 20, 0)[:, ::-1] ^ np.uint8(255), known)


def test_a_batch_is_drawn_where_a_residual_would_be_dear(
    images: list[tuple[RGB, Known]], codec: RecipeCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, known = images[0]
    several = made_by(known).model_copy(update={"batch": 3})
    image = codec.remaker.images(several)[1]
    real, far = codec.remaker.images, np.random.default_rng(0).integers(0, 2, image.shape, np.uint8)

    def images_of(making: Making) -> list[RGB]:
        return [one ^ far if making.batch == 1 else one for one in real(making)]

    monkeypatch.setattr(codec.remaker, "images", images_of)
    data = codec.encode_known(image, known.model_copy(update={"batch": 3}))
    header, residual = unpack(data)
    assert header.making.batch == 3 and not residual
    assert np.array_equal(codec.decode(data), image)


def test_each_place_of_a_batch_is_told_from_the_others(
    images: list[tuple[RGB, Known]], codec: RecipeCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, known = images[0]
    far = np.random.default_rng(0).integers(0, 2, (4, *plain.shape), np.uint8)

    def images_of(making: Making) -> list[RGB]:
        """Each place of a batch moves other pixels; an image alone has places of its own."""
        found = [plain ^ far[place] for place in range(making.batch)]
        return found if making.batch > 1 else [plain ^ far[3]]

    monkeypatch.setattr(codec.remaker, "images", images_of)
    for place in range(3):
        image = plain ^ far[place]
        data = codec.encode_known(image, known.model_copy(update={"batch": 3}))
        header, residual = unpack(data)
        assert (header.making.batch, header.making.place, residual) == (3, place, b"")
        assert np.array_equal(codec.decode(data), image)


def test_an_image_of_another_size_has_no_recipe(
    images: list[tuple[RGB, Known]], codec: RecipeCodec
) -> None:
    image, known = images[0]
    height, width = image.shape[:2]
    with pytest.raises(NotKnown, match=f"{width}x{height - 8} pixels, but {width}x{height} were"):
        codec.encode_known(image[8:].copy(), known)


def test_a_pipeline_is_loaded_anew_where_its_scheduler_is_another(
    images: list[tuple[RGB, Known]], codec: RecipeCodec
) -> None:
    making = made_by(images[0][1])
    other = making.model_copy(update={"scheduler": "euler-ancestral"})
    first, second, third = (codec.remaker.images(one)[0] for one in (making, other, making))
    assert np.array_equal(first, third) and not np.array_equal(first, second)


def test_threads_are_those_of_the_file_and_stay_as_they_were(
    images: list[tuple[RGB, Known]], codec: RecipeCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    image, known = images[0]
    other = known.model_copy(update={"making": made_by(known).model_copy(update={"threads": 2})})
    before, seen = torch.get_num_threads(), []
    real = codec.remaker._open(made_by(known)).generate

    def generate(rows: list[dict[str, Any]]) -> Any:
        seen.append(torch.get_num_threads())
        return real(rows)

    monkeypatch.setattr(codec.remaker._open(made_by(known)), "generate", generate)
    assert np.array_equal(codec.decode(codec.encode_known(image, other)), image)
    assert seen[0] == 2 and seen[-1] == 2 and torch.get_num_threads() == before


def test_nothing_is_loaded_on_the_word_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.images.diffusion import diffuser

    monkeypatch.setattr(diffuser, "Diffuser", pytest.fail)
    codec = RecipeCodec(Remaker("cpu", where="x.aigi", remedy="Give --trust."))
    vae = MAKING.model_copy(update={"vae": "test/vae"})
    with pytest.raises(Untrusted) as refused:
        codec.decode(pack(Header(vae, bytes(8), bytes(4)), b""))
    for part in ("x.aigi", "model test/tiny-sd@seed-0", "model test/vae@main", "Give --trust."):
        assert part in str(refused.value)
    # Each model is confirmed by its own name, or by a folder.
    assert unconfirmed(vae, {}, {"test/tiny-sd"}) == ["model test/vae@main"]
    assert unconfirmed(vae, {"test/tiny-sd": "/x"}) == ["model test/vae@main"]
    assert unconfirmed(vae, {}, {"test/tiny-sd", "test/vae"}) == []


def test_other_weights_are_named(images: list[tuple[RGB, Known]], codec: RecipeCodec) -> None:
    image, known = images[0]
    with pytest.raises(OtherWeights, match="other weights of test/tiny-sd"):
        codec.encode_known(image, known.model_copy(update={"weights": "01234567"}))
    header, residual = unpack(codec.encode_known(image, known))
    with pytest.raises(OtherWeights, match="Get these"):
        codec.decode(pack(Header(header.making, header.image, b"\0\1\2\3"), residual))


def test_rows_by_hand(images: list[tuple[RGB, Known]]) -> None:
    row = {**MAKING.model_dump(), "image_id": "x", "device": "A GPU", "batch_size": 4}
    found = known_of_row(row, "row.json")
    assert found.making == MAKING and found.batch == 4
    for bad, problem in (
        ({"path": "a.png"}, "an imported image"),
        ({"colour": 1}, "colour: no such field"),
        ({"steps": 0}, "steps"),
        ({"versions": '{"settings": {"quantise": "4bit"}}'}, "made with quantise: 4bit"),
    ):
        with pytest.raises(NotKnown, match=problem):
            known_of_row(row | bad, "row.json")
    moved = row | {"versions": '{"settings": {"offload": "model"}}'}
    assert known_of_row(moved, "row.json") == found, "where weights wait moves no pixel"
    with pytest.raises(NotKnown, match="pipeline"):
        known_of_row({k: v for k, v in row.items() if k != "pipeline"}, "row.json")


# --- The benchmark -------------------------------------------------------------------------------


def measured(collection: Collection, codec: CodecSettings) -> list[dict[str, Any]]:
    found = []
    measurer = Measurer(Here(device="cpu"), 1)
    for part in collection.parts:
        job = Job(codec, 1, part)
        rows = with_known(collection.read(part.name), job, collection)
        found += [row for table in measurer(with_job(rows, job)) for row in table.to_pylist()]
    return found


def test_in_the_benchmark_it_is_a_codec_like_any_other(release: Path) -> None:
    given = CodecSettings(codec="recipe")
    place = Pictures(place=str(release), sources=("sd",), splits=("test",), limit=2)
    rows = measured(Collection(place), given)
    assert len(rows) == 2
    for row in rows:
        assert row["error"] is None and row["psnr"] == 100
        assert row["bpp"] == 8 * row["bytes"] / (row["width"] * row["height"])
        assert row["encode_ms"] > 0 and row["prompt_bytes"] > 5 and row["device"] == "cpu"
    page = "\n".join(lines(Benchmark(codecs=(given,)), Collection(place)))
    assert "- test/tiny-sd" in page and "bytes of weights" in page


def benchmark_of(release: Path, folder: Path, **more: Any) -> Store:
    """A benchmark of the first test image of each source by recipe and JPEG."""
    jpeg = {"codec": "jpeg", "qualities": [50]}
    pictures = {"place": str(release), "splits": ["test"], "limit": 1}
    section = {"pictures": pictures, "codecs": ["recipe", jpeg], "anchor": "jpeg", "strips": None}
    workflow = folder / "w.yaml"
    workflow.write_text(yaml.safe_dump({"run": str(folder / "run"), "benchmark": section | more}))
    return execute(workflow)[0]


def test_a_benchmark_takes_images_of_several_models(release: Path, tmp_path: Path) -> None:
    store = benchmark_of(release, tmp_path)
    rows = [row for row in store.read_all("measurements").to_pylist() if row["codec"] == "recipe"]
    assert {row["source"] for row in rows} == {"sd", "sdxl"}
    assert all(row["error"] is None and row["psnr"] == 100 for row in rows)


@pytest.mark.slow
def test_what_a_recipe_costs_is_counted(release: Path, tmp_path: Path) -> None:
    store = benchmark_of(release, tmp_path, complexity={"sides": [64]})
    (row,) = (r for r in store.read_all("complexity").to_pylist() if r["codec"] == "recipe")
    assert row["error"] is None and row["parameters"] > 1e6
    assert row["encode_kmac_per_pixel"] > 10 and row["decode_kmac_per_pixel"] > 10


def test_imported_images_and_folders_say_why_they_have_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes(np.zeros((8, 8, 3), np.uint8)))
    collection = Collection(Pictures(place=str(tmp_path)))
    (row,) = measured(collection, CodecSettings(codec="recipe"))
    assert "nobody recorded what made it" in row["error"] and row["bytes"] is None
    page = "\n".join(lines(Benchmark(codecs=(CodecSettings(codec="recipe"),)), collection))
    assert "none for 1 of 1 images" in page


def test_models_of_a_workflow(tmp_path: Path) -> None:
    assert named_models(["a/b", "c/d=/x"]) == ({"c/d": "/x"}, {"a/b"})
    for bad in ("../x", "a/b=", "/root/x"):
        with pytest.raises(AigiError, match="expected ORG/NAME"):
            named_models([bad])
    given = CodecSettings.model_validate(
        {"codec": "recipe", "models": ["c/d=models"]}, context={"base": tmp_path}
    )
    assert given.models == (f"c/d={tmp_path / 'models'}",)
    assert digest(given) == digest(CodecSettings(codec="recipe"))


# --- The command ---------------------------------------------------------------------------------


def test_the_command_codes_and_decodes_an_image_of_a_release(
    release: Path, images: list[tuple[RGB, Known]], tmp_path: Path
) -> None:
    image, known = images[0]
    collection = Collection(Pictures(place=str(release), splits=("test",), limit=1))
    image_id = collection.read(collection.parts[0].name, ["image_id"])["image_id"][0].as_py()
    out, png = tmp_path / "x.aigi", tmp_path / "x.png"

    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(each) for each in arguments])
        return f"{done.exit_code} {done.output}"

    said = run("encode", "--recipe", f"{release}#{image_id[:10]}", "-o", out)
    assert said.startswith("0") and "bpp" in said and "needs test/tiny-sd@seed-0" in said
    said = run("decode", out, "-o", png)
    assert said.startswith("1") and "model test/tiny-sd@seed-0" in said and "--trust" in said
    assert not png.exists()
    said = run("decode", out, "-o", png, "--model", known.folder)
    assert said.startswith("0"), said
    assert np.array_equal(decode(png.read_bytes(), 1 << 20).rgb, image)
    row = {**made_by(known).model_dump(), "batch_size": known.batch}
    (tmp_path / "row.json").write_text(json.dumps(row))
    by_hand = ("--recipe", tmp_path / "row.json", "-o", out, "--model", known.folder)
    assert run("encode", png, *by_hand).startswith("0")
    wrong: tuple[tuple[tuple[object, ...], str], ...] = (
        (("encode", "--recipe", f"{release}#zzz", "-o", out), "no image begins with"),
        (("encode", "--recipe", tmp_path / "row.json", "-o", out), "give the image"),
        (("encode", "--recipe", f"{release}#{image_id}", "-o", out, "-q", 2), "takes none"),
        (("encode", "-o", out), "give an image"),
        (("decode", out, "-o", png, "--model", tmp_path / "no"), "no such folder"),
        (("decode", out, "-o", png, "--text", tmp_path), "takes none"),
    )
    for arguments, problem in wrong:
        said = run(*arguments)
        assert said.startswith("1") and problem in said, said
