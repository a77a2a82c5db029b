"""An untrained tiny CLIP: pictures and prompts in, the vectors that plain open_clip gives out."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import AigiError
from pipeline.files import file_sha256
from pipeline.models.clip import Clip, Embeddings, find_weights
from pipeline.pixels import RGB, png_bytes
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.scores import embeddings
from pipeline.scores.embeddings import Embedder, column_vectors
from pipeline.settings import check
from pipeline.stage import Build, Compute, Map
from pipeline.store import Shard, Store
from pipeline.tables import IMAGES, PLAN, embeddings_schema
from pipeline.workflow import Workflow
from tests.conftest import PROMPTS

WEIGHTS = "open_clip_model.safetensors"
# Half a step of float16 for numbers below 1, and what another batch size moves.
STORED = 2**-12 + 5e-5
SUMS = 5e-5

INPUT = pa.schema([*(IMAGES.field(i) for i in range(4)), PLAN.field("text")])


def picture(seed: int, width: int = 80, height: int = 64) -> RGB:
    """Coarse noise: pictures that even an untrained model tells apart."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def clip_folder(folder: Path) -> Path:
    """Save an untrained CLIP that tells pictures apart: the mean of its vectors is taken off."""
    import torch

    from pipeline.tiny.models import CLIP_SIZE, clip, save_clip, tokenizer

    torch.manual_seed(0)
    tokens = tokenizer(PROMPTS)
    model = clip(tokens).eval()
    seen = np.stack([picture(seed, CLIP_SIZE, CLIP_SIZE) for seed in range(8)])
    with torch.no_grad():
        pixels = torch.from_numpy(seen).permute(0, 3, 1, 2) / 64 - 2
        model.visual.attnpool.c_proj.bias -= model.encode_image(pixels).mean(0)
    save_clip(folder, model, tokens)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip"))


def rows_of(pictures: list[RGB | None], texts: list[str]) -> pa.Table:
    rows = [
        {"image_id": f"id-{i}", "text": text}
        | (
            {}
            if rgb is None
            else {
                "image": {"bytes": png_bytes(rgb), "path": f"{i}.png"},
                "width": rgb.shape[1],
                "height": rgb.shape[0],
            }
        )
        for i, (rgb, text) in enumerate(zip(pictures, texts, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=INPUT)


def settings_of(model: Path, **values: Any) -> Embeddings:
    return Embeddings.model_validate({"folder": str(model), "batch_size": 3, **values})


def embedded(settings: Embeddings, rows: pa.Table) -> pa.Table:
    chunks = list(Embedder(settings, "cpu")(rows))
    assert all(chunk.schema == embeddings_schema(96) for chunk in chunks)
    assert all(chunk.num_rows <= settings.batch_size for chunk in chunks)
    return pa.concat_tables(chunks)


PICTURES = [
    picture(seed, width, height)
    for seed, (width, height) in enumerate([(80, 64), (64, 64), (200, 40), (9, 33), (1, 1)] * 2)
]
TEXTS = [*PROMPTS[:5], *PROMPTS[2:7]]
FAILED = (0, 3, 7, 8)


def some_failed() -> pa.Table:
    given = [None if i in FAILED else rgb for i, rgb in enumerate(PICTURES)]
    return rows_of(given, TEXTS)


def test_vectors_are_those_of_plain_open_clip(model: Path) -> None:
    import open_clip
    import torch

    name = f"local-dir:{model}"
    plain, _, transform = open_clip.create_model_and_transforms(name)
    plain.eval()
    words = open_clip.get_tokenizer(name)
    with torch.inference_mode():
        images = [
            plain.encode_image(transform(Image.fromarray(rgb))[None], normalize=True)[0].numpy()
            for rgb in PICTURES
        ]
        texts = [plain.encode_text(words([text]), normalize=True)[0].numpy() for text in TEXTS]
    expected, sentences = np.stack(images), np.stack(texts)
    assert np.ptp(expected, axis=0).max() > 0.1  # the picture matters
    assert np.ptp(sentences, axis=0).max() > 0.2

    clip = Clip(settings_of(model), "cpu")
    assert clip.logit_scale == pytest.approx(float(plain.logit_scale.exp().detach()))
    np.testing.assert_allclose(clip.image_vectors(PICTURES), expected, rtol=0, atol=SUMS)
    np.testing.assert_allclose(clip.text_vectors(TEXTS), sentences, rtol=0, atol=SUMS)
    assert clip.image_vectors([]).shape == clip.text_vectors([]).shape == (0, clip.size)

    table = embedded(settings_of(model), rows_of([*PICTURES], TEXTS))
    for column, vectors in (("image_vector", expected), ("text_vector", sentences)):
        stored = column_vectors(table[column])
        np.testing.assert_allclose(stored, vectors, rtol=0, atol=STORED)
        np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, rtol=0, atol=1e-3)
    scores = np.asarray(table["clip_score"])
    np.testing.assert_allclose(scores, (expected * sentences).sum(axis=1), rtol=0, atol=SUMS)
    assert scores.dtype == np.float32 and np.abs(scores).max() <= 1


def test_failed_images_are_null_and_the_order_stays(model: Path) -> None:
    whole = embedded(settings_of(model, batch_size=1), rows_of([*PICTURES], TEXTS)).to_pylist()
    table = embedded(settings_of(model), some_failed())
    for i, (row, good) in enumerate(zip(table.to_pylist(), whole, strict=True)):
        assert row["image_id"] == f"id-{i}"
        if i in FAILED:
            assert row == {
                "image_id": f"id-{i}",
                "image_vector": None,
                "text_vector": None,
                "clip_score": None,
            }
        else:
            assert row["clip_score"] == pytest.approx(good["clip_score"], abs=SUMS)
            for column in ("image_vector", "text_vector"):
                np.testing.assert_allclose(
                    np.float32(row[column]), np.float32(good[column]), rtol=0, atol=2 * STORED
                )
    vectors = column_vectors(table["image_vector"])
    assert [i for i in range(len(PICTURES)) if np.isnan(vectors[i]).all()] == list(FAILED)
    assert not np.isnan(np.delete(vectors, FAILED, axis=0)).any()
    np.testing.assert_array_equal(column_vectors(table["image_vector"][2:9]), vectors[2:9])
    none = embedded(settings_of(model), rows_of([None, None], TEXTS[:2]))
    assert none.num_rows == none["clip_score"].null_count == 2
    assert list(Embedder(settings_of(model), "cpu")(some_failed().slice(0, 0))) == []


def test_a_text_is_encoded_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Embedder(settings_of(model), "cpu")
    asked: list[str] = []
    encode = worker.clip.text_vectors

    def noted(texts: list[str]) -> Any:
        asked.extend(texts)
        return encode(texts)

    monkeypatch.setattr(worker.clip, "text_vectors", noted)
    texts = [TEXTS[i] for i in (0, 1, 0, 0, 1, 2, 3, 3, 2, 4)]
    rows = rows_of([None, *PICTURES[1:9], None], texts)
    table = pa.concat_tables(worker(rows))
    assert asked == [TEXTS[1], TEXTS[0], TEXTS[2], TEXTS[3]]  # not of the failed last row
    vectors = column_vectors(table["text_vector"])
    expected = encode(TEXTS)
    for i in range(1, 9):
        np.testing.assert_allclose(vectors[i], expected[TEXTS.index(texts[i])], atol=STORED)
    asked.clear()
    # Nothing is kept for the next shard, or its batches would depend on who made the last one.
    assert pa.concat_tables(worker(rows)).equals(table)
    assert len(asked) == 4


def test_only_the_batch_size_moves_a_batch(model: Path) -> None:
    rows = some_failed()
    expected = embedded(settings_of(model), rows)
    pieces = pa.concat_tables([rows.slice(0, 1), rows.slice(1, 6), rows.slice(7)])
    assert pieces["image"].num_chunks == 3
    assert embedded(settings_of(model), pieces).equals(expected)
    for threads in (1, 5):
        assert embedded(settings_of(model, decode_threads=threads), rows).equals(expected)


# Pictures differ little in this model, and the mean that was taken off was rounded as well.
@pytest.mark.parametrize(("precision", "least"), [("float16", 0.98), ("bfloat16", 0.7)])
def test_low_precision_is_near(model: Path, precision: str, least: float) -> None:
    rows = some_failed()
    exact = embedded(settings_of(model), rows)
    near = embedded(settings_of(model, precision=precision), rows)
    assert not near.equals(exact)
    for column in ("image_vector", "text_vector"):
        a, b = (column_vectors(table[column]) for table in (exact, near))
        assert np.nanmin((a * b).sum(axis=1)) > least


def test_a_local_model_needs_no_network(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert embedded(settings_of(model), some_failed()).num_rows == len(PICTURES)


def copy_of(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    return folder


def test_pickles_are_never_read(tmp_path: Path, model: Path) -> None:
    import torch

    both = copy_of(model, tmp_path / "both")
    for name in ("open_clip_pytorch_model.bin", "pytorch_model.bin", "a.pth"):
        (both / name).write_bytes(b"would break whoever reads it")
    assert embedded(settings_of(both), some_failed()).equals(
        embedded(settings_of(model), some_failed())
    )
    (both / WEIGHTS).unlink()
    torch.save({}, both / "open_clip_pytorch_model.bin")
    with pytest.raises(AigiError, match=f"has no {WEIGHTS}; weights in pickle files are not read"):
        find_weights(settings_of(both))
    with pytest.raises(AigiError, match="pickle"):
        Clip(settings_of(both), "cpu")


def test_code_in_a_model_is_not_run(tmp_path: Path, model: Path) -> None:
    folder = copy_of(model, tmp_path / "m")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    path.write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: pass\n")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    path.write_text(json.dumps(config))
    with pytest.raises(AigiError, match="the model cannot be loaded"):
        Clip(settings_of(folder), "cpu")
    assert not ran.exists()


def _unlink(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (shutil.rmtree, r"embeddings\.folder: .*no such folder"),
        (
            _unlink("open_clip_config.json"),
            r"embeddings\.folder: .* has no open_clip_config\.json\.",
        ),
        (_write("open_clip_config.json", b"{"), "not a configuration of open_clip"),
        (_write("open_clip_config.json", b"[]"), "not a configuration of open_clip"),
        (_write("open_clip_config.json", b'{"model_cfg": {}}'), "not a configuration"),
        (_unlink(WEIGHTS), "has no open_clip_model.safetensors"),
        (_write(WEIGHTS, b"\x00" * 64), f"{WEIGHTS} is damaged or cut short"),
        (_write("tokenizer.json", b"{"), "the model cannot be loaded"),
        (_unlink("tokenizer.json"), "its tokenizer knows no words"),
    ],
)
def test_a_damaged_folder(
    tmp_path: Path, model: Path, harm: Callable[[Path], object], reason: str
) -> None:
    folder = copy_of(model, tmp_path / "m")
    harm(folder)
    with pytest.raises(AigiError, match=reason):
        Clip(settings_of(folder), "cpu")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model": "ViT-Q-1"}, "open_clip has no such model"),
        ({"pretrained": "mine"}, "no such weights of ViT-B-32.*laion2b_s34b_b79k"),
        ({"pretrained": "openai"}, "Set it to ViT-B-32-quickgelu"),
        ({"model": "ViT-L-14-quickgelu", "pretrained": "laion2b_s32b_b82k"}, "no such weights"),
        ({"model": "RN50", "pretrained": "/tmp/a.pt"}, "no such weights of RN50"),
        ({}, r"laion/CLIP-ViT-B-32-laion2B-s34B-b79K@main.*its folder as embeddings.folder"),
        ({"model": "hf-hub:aigi-test/none"}, "model: cannot get aigi-test/none@main"),
        ({"model": "hf-hub:not/a/name"}, "model: cannot get not/a/name@main"),
    ],
)
def test_models_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, str], reason: str
) -> None:
    # The names of the environment are read at import.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(AigiError, match=reason):
        find_weights(Embeddings.model_validate(values))


def test_a_hub_model_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", lacking)
    with pytest.raises(AigiError, match=f"b79K@main has no {WEIGHTS}.*pickle files are not read"):
        find_weights(Embeddings())


def test_other_weights_than_expected(model: Path) -> None:
    sha256 = file_sha256(str(model / WEIGHTS))
    assert find_weights(settings_of(model, sha256=sha256)) == str(model / WEIGHTS)
    with pytest.raises(AigiError, match=f"has sha256 {sha256}, expected is 0000"):
        find_weights(settings_of(model, sha256="0" * 64))


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    for section, reason in (
        ({"model": "local-dir:/models/clip"}, "give a model on this machine as folder"),
        ({"precision": "int8"}, "embeddings.precision"),
        ({"sha256": "abc"}, "embeddings.sha256"),
        ({"revision": "main"}, "embeddings.revision"),
    ):
        with pytest.raises(AigiError, match=reason):
            check(Workflow, {"run": "r", "embeddings": section}, str(tmp_path / "w.yaml"))


def test_not_a_number_and_a_full_device_are_errors(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    clip = Clip(settings_of(model), "cpu")
    clip.model.text_projection.fill_(torch.nan)
    with pytest.raises(AigiError, match=r"not a number in a vector.*Set precision"):
        clip.text_vectors(TEXTS)

    def full(_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(clip.model, "encode_image", full)
    with pytest.raises(AigiError, match="batch_size 3; set a smaller one"):
        clip.image_vectors(PICTURES)


def test_a_damaged_stored_picture_is_named(model: Path) -> None:
    rows = rows_of([*PICTURES[:4]], TEXTS[:4]).to_pylist()
    for harm in (
        {"image": rows[2]["image"] | {"bytes": rows[2]["image"]["bytes"][:-20]}},
        {"width": 1},
    ):
        table = pa.Table.from_pylist([*rows[:2], rows[2] | harm, rows[3]], schema=INPUT)
        with pytest.raises(AigiError, match=r"id-2: its image cannot be read: (trunc|too).*Delete"):
            list(Embedder(settings_of(model), "cpu")(table))


def write_shards(table: str, made: pa.Table, store: Store, progress: Progress) -> list[Shard]:
    return [
        store.write(table, name, made.slice(start, 4), made.schema)
        for name, start in (("a", 0), ("b", 4), ("c", 8))
    ]


def made_before(store: Store) -> None:
    """Plan and images of three shards."""
    rows = some_failed()
    tables = {
        "plan": rows.select(["image_id", "text"]),
        "images": rows.select(["image_id", "image", "width", "height"]),
    }
    for name, table in tables.items():
        build = Build(name, 1, table.schema, {}, (), partial(write_shards, name, table))
        run_stages([build], store, Compute(), Progress(quiet=True))


def bytes_of(store: Store) -> dict[str, str]:
    return {name: store.sha256("embeddings", f"{name}.parquet") for name in ("a", "b", "c")}


def test_the_stage_goes_on_where_it_was(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def workflow(folder: Path, **values: Any) -> Workflow:
        section = {"folder": str(folder), "batch_size": 3, **values}
        data = {"run": "run", "compute": {"device": "cpu"}, "embeddings": section}
        return check(Workflow, data, str(tmp_path / "w.yaml"))

    def staged(flow: Workflow) -> Map:
        assert flow.embeddings is not None
        return embeddings.stage(flow.embeddings, flow.compute)

    def run(flow: Workflow) -> None:
        run_stages([staged(flow)], store, flow.compute, Progress(quiet=True))

    store = Store(str(tmp_path / "run"))
    with pytest.raises(AigiError, match="needs the plan table"):
        run(workflow(model))
    made_before(store)
    stage = staged(workflow(model))

    class Breaking:
        def __init__(self) -> None:
            made: Any = stage.make_worker()
            self.worker, self.loaded = made, made.loaded

        def __call__(self, rows: pa.Table) -> Any:
            if rows["image_id"][0].as_py() == "id-4":
                raise AigiError("broken here")
            return self.worker(rows)

    with pytest.raises(AigiError, match="1 of 3 shards failed, first b: broken here"):
        run_stages([replace(stage, make_worker=Breaking)], store, Compute(), Progress(quiet=True))
    assert list(store.shards("embeddings")) == ["a", "c"]
    run(workflow(model))
    first = bytes_of(store)
    table = store.read_all("embeddings")
    assert table.schema.equals(embeddings_schema(96))
    assert table["image_id"].to_pylist() == [f"id-{i}" for i in range(10)]
    store.remove("embeddings", "c.parquet")
    run(workflow(model))
    assert bytes_of(store) == first

    # Where the folder lies does not matter, nor do threads; what is in it does.
    moved = copy_of(model, tmp_path / "moved")
    monkeypatch.setattr(embeddings, "_make_worker", lambda *_: pytest.fail("nothing was to do"))
    run(workflow(moved, decode_threads=3))
    config = moved / "open_clip_config.json"
    config.write_text(config.read_text().replace("0.48145466", "0.5"))
    with pytest.raises(AigiError, match=r"folder.open_clip_config.json: \w+ -> "):
        run(workflow(moved))
    with pytest.raises(AigiError, match="batch_size: 3 -> 4"):
        run(workflow(model, batch_size=4))
    with pytest.raises(AigiError, match="precision: float32 -> bfloat16"):
        run(workflow(model, precision="bfloat16"))


def test_named_models_are_known_without_their_weights() -> None:
    stage = embeddings.stage(Embeddings(), Compute())
    assert stage.schema.field("image_vector").type == pa.list_(pa.float16(), 512)
    assert stage.settings["model"] == "ViT-B-32"
    assert stage.settings["pretrained"] == "laion2b_s34b_b79k"
