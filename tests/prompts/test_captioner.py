"""A tiny BLIP with random weights: photos in, captions or reasons out, the same every time."""

from __future__ import annotations

import io
import shutil
import socket
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import AigiError
from pipeline.models.device import device_name, pick_device
from pipeline.prompts.captioner import Captioner, _Captioners, photo_names
from pipeline.prompts.captions import BlipCaptions
from pipeline.tables import CAPTIONS

# As in the published models, the two last rows of the vocabulary are unknown to the tokenizer.
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(57))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP of 32 x 32 pixels and 64 words, saved as the Hub holds them."""
    import torch
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 1.0,  # or all photos would get one caption
    }
    ends = {"bos_token_id": 62, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    config = BlipConfig(
        text_config=shape | ends | {"vocab_size": 64, "encoder_hidden_size": 32},
        vision_config=shape | {"image_size": 32, "patch_size": 8},
    )
    torch.manual_seed(3)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    processor = BlipProcessor(
        BlipImageProcessor(size={"height": 32, "width": 32}),
        BertTokenizer(str(folder / "vocab.txt")),
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_cache_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def photo(seed: int, kind: str = "JPEG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(np.kron(noise, np.ones((9, 9, 1), np.uint8))).save(out, kind)
    return out.getvalue()


GOOD = {f"{n}.jpg": photo(n) for n in range(5)}
BAD = {"1b.jpg": photo(9)[:400], "2b.jpg": b"", "3b.jpg": b"text"}
FILES = dict(sorted((GOOD | BAD).items()))


def folder_of(root: Path, files: dict[str, bytes]) -> str:
    (root / "photos").mkdir()
    for name, data in files.items():
        (root / "photos" / name).write_bytes(data)
    return str(root / "photos")


def source(model: Path, **settings: Any) -> BlipCaptions:
    values = {"kind": "blip", "folder": str(model), "batch_size": 3, "max_new_tokens": 8}
    return BlipCaptions.model_validate(values | settings)


def rows_of(names: list[str]) -> pa.Table:
    schema = pa.schema([CAPTIONS.field("photo"), CAPTIONS.field("row")])
    return pa.table({"photo": names, "row": range(len(names))}, schema=schema)


def captions(settings: BlipCaptions) -> list[dict[str, Any]]:
    chunks = list(Captioner(settings, "cpu")(rows_of(photo_names(settings))))
    assert all(chunk.schema == CAPTIONS for chunk in chunks)
    assert all(chunk.num_rows <= settings.batch_size for chunk in chunks)
    rows: list[dict[str, Any]] = pa.concat_tables(chunks).to_pylist()
    return rows


def test_good_and_bad_photos(tmp_path: Path, model: Path) -> None:
    settings = source(model, photos=folder_of(tmp_path, FILES))
    rows = captions(settings)
    assert [row["photo"] for row in rows] == list(FILES)
    assert [row["row"] for row in rows] == list(range(8))
    errors = {row["photo"]: row["error"] for row in rows if row["error"]}
    assert errors == {"1b.jpg": "truncated", "2b.jpg": "empty", "3b.jpg": "not a picture"}
    assert all((row["text"] is None) == (row["photo"] in BAD) for row in rows)
    texts = [row["text"] for row in rows if row["text"]]
    assert len(set(texts)) > 1  # the photo matters
    assert all(set(text.split()) <= set(WORDS[5:]) for text in texts)  # no control words
    assert captions(settings) == rows


def test_captions_go_on_at_any_batch(tmp_path: Path, model: Path) -> None:
    """As after a kill: `captions` keeps its finished batches."""
    settings = source(model, photos=folder_of(tmp_path, FILES))
    names = photo_names(settings)
    rows = rows_of(names).append_column("source", pa.array([0] * len(names)))
    worker = _Captioners({0: settings}, "cpu", 1)
    chunks = list(worker(rows))
    assert len(chunks) == 3
    assert list(worker(rows, start=3)) == chunks[1:]
    assert list(worker(rows, start=6)) == chunks[2:]


def test_folder_zip_parquet_and_dataset_give_the_same(tmp_path: Path, model: Path) -> None:
    folder = folder_of(tmp_path, FILES)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as file:
        for name, data in FILES.items():
            file.writestr(name, data)
    images = [{"bytes": data, "path": name} for name, data in FILES.items()]
    pq.write_table(pa.table({"photo": images, "n": range(8)}), tmp_path / "p.parquet")
    expected = captions(source(model, photos=folder))
    assert captions(source(model, photos=str(tmp_path / "p.zip"))) == expected
    table = source(model, photos=str(tmp_path / "p.parquet"), column="photo")
    assert captions(table) == expected
    with pytest.raises(AigiError, match="image: no such column of images"):
        photo_names(source(model, photos=str(tmp_path / "p.parquet")))
    listed = captions(source(model, dataset=folder))
    assert [row["photo"] for row in listed] == [f"row-{n:08d}" for n in range(8)]
    assert [row["text"] for row in listed] == [row["text"] for row in expected]
    assert [row["error"] for row in listed] == [row["error"] for row in expected]
    with pytest.raises(AigiError, match=r"photo: no such column\. Set column to one of: image"):
        photo_names(source(model, dataset=folder, column="photo"))
    with pytest.raises(AigiError, match="split test: cannot be loaded"):
        photo_names(source(model, dataset=folder, dataset_split="test"))


def test_a_bad_photo_does_not_touch_the_others(tmp_path: Path, model: Path) -> None:
    both = captions(source(model, photos=folder_of(tmp_path, FILES), batch_size=8))
    (tmp_path / "good").mkdir()
    alone = captions(source(model, photos=folder_of(tmp_path / "good", GOOD), batch_size=8))
    assert [row["text"] for row in both if not row["error"]] == [row["text"] for row in alone]
    (tmp_path / "bad").mkdir()
    assert all(
        row["error"] for row in captions(source(model, photos=folder_of(tmp_path / "bad", BAD)))
    )


def test_the_layout_of_older_models(tmp_path: Path, model: Path) -> None:
    from transformers import BlipImageProcessor

    photos = folder_of(tmp_path, GOOD)
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "processor_config.json").unlink()
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "m")
    assert (tmp_path / "m" / "preprocessor_config.json").exists()
    assert captions(source(tmp_path / "m", photos=photos)) == captions(source(model, photos=photos))


def test_a_local_model_needs_no_network(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    settings = source(model, photos=folder_of(tmp_path, FILES), dtype="bfloat16")
    worker = Captioner(settings, "cpu")
    assert str(worker.model.dtype) == "torch.bfloat16"
    assert sum(chunk.num_rows for chunk in worker(rows_of(list(FILES)))) == 8
    assert list(worker(rows_of([]))) == []


def test_next_photos_are_read_while_the_model_runs(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Captioner(source(model, photos=folder_of(tmp_path, GOOD), batch_size=2), "cpu")
    started: list[str] = []
    prepare = worker._prepare

    def noted(name: str) -> Any:
        started.append(name)
        return prepare(name)

    monkeypatch.setattr(worker, "_prepare", noted)
    seen: list[set[str]] = []

    def describe(photos: list[Any]) -> list[str]:
        # The pool has its tasks; give it a moment to begin them.
        for _ in range(200):
            if len(started) >= min(5, 2 * len(seen) + 4):
                break
            time.sleep(0.01)
        seen.append(set(started))
        return ["words"] * len(photos)

    monkeypatch.setattr(worker, "_describe", describe)
    list(worker(rows_of(list(GOOD))))
    assert [len(names) for names in seen] == [4, 5, 5]


def test_missing_models_and_photos(tmp_path: Path, model: Path) -> None:
    photos = folder_of(tmp_path, GOOD)
    with pytest.raises(AigiError, match=r"prompts\.sources\.folder: .*gone: no such folder"):
        Captioner(source(tmp_path / "gone", photos=photos), "cpu")
    with pytest.raises(AigiError, match=r"photos has no config\.json"):
        Captioner(source(tmp_path / "photos", photos=photos), "cpu")
    with pytest.raises(AigiError, match="no such file or folder"):
        photo_names(source(model, photos=str(tmp_path / "gone")))
    (tmp_path / "none").mkdir()
    with pytest.raises(AigiError, match="no images in it"):
        photo_names(source(model, photos=str(tmp_path / "none")))


def test_weights_that_can_run_code_are_refused(tmp_path: Path, model: Path) -> None:
    import torch

    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(
        AigiError, match=r"has no .*safetensors; weights in pickle files are not read"
    ):
        Captioner(source(tmp_path / "m", photos=folder_of(tmp_path, GOOD)), "cpu")


def test_out_of_memory_names_the_remedy(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    worker = Captioner(source(model, photos=folder_of(tmp_path, GOOD)), "cpu")

    def full(**_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(worker.model, "generate", full)
    with pytest.raises(AigiError, match="batch_size 3; set a smaller one"):
        list(worker(rows_of(list(GOOD))))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == pick_device("cpu") == torch.device("cpu")
    assert device_name(pick_device("cpu")) == "cpu"
    for name in ("cuda", "cuda:0"):
        with pytest.raises(AigiError, match="torch sees 0 CUDA devices"):
            pick_device(name)
    for name in ("gpu", "cuda:x", "cpu:1", ""):
        with pytest.raises(AigiError, match="expected auto, cpu, cuda"):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert pick_device("auto") == torch.device("cuda")
    assert device_name(pick_device("cuda:1")) == "GPU 1"
    with pytest.raises(AigiError, match="cuda:2: torch sees 2 CUDA devices"):
        pick_device("cuda:2")


def test_captions_become_prompts_through_the_workflow(tmp_path: Path, model: Path) -> None:
    """Photos, three of them broken, to captions to prompts: shards, rejects, order and all."""
    from pipeline import settings
    from pipeline import workflow as workflows
    from pipeline.build import stages
    from pipeline.progress import Progress
    from pipeline.running import run_stages
    from pipeline.store import Store

    given = source(model, photos=folder_of(tmp_path, FILES), shard_rows=3)
    text = tmp_path / "more.txt"
    text.write_text("a red boat on a calm lake\n")
    data = {
        "run": str(tmp_path / "run"),
        "prompts": {
            "sources": [{"kind": "text", "path": str(text)}, given.model_dump(mode="json")],
            "filters": {
                "min_words": 1,
                "max_noise": 1.0,
                "min_ascii_letters": 0.0,
                "languages": None,
                "max_repeated": None,
            },
            "near_duplicates": None,
        },
    }
    workflow = settings.check(workflows.Workflow, data, str(tmp_path / "flow.yaml"))
    store = Store(workflow.run)
    run_stages(stages(workflow), store, workflow.compute, Progress(quiet=True))
    assert list(store.shards("captions")) == ["01-00000", "01-00001", "01-00002"]
    expected = {row["text"]: row["row"] for row in captions(given)[::-1] if row["text"]}
    prompts = {row["text"]: row for row in store.read_all("prompts").to_pylist()}
    assert set(prompts) == {*expected, "a red boat on a calm lake"}
    for caption, number in expected.items():
        assert prompts[caption]["source"] == "blip"
        assert prompts[caption]["source_ref"] == f"photos:{number + 1}"
    bad = [row for row in store.read("rejects", "prompts").to_pylist() if row["source"] == "blip"]
    lines = {row["line"]: row["reason"] for row in bad if row["reason"] != "duplicate"}
    names = list(FILES)
    assert {names[line - 1] for line in lines} == set(BAD)
