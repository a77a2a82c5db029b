"""Options of sources: a column of their own where there are any, and nothing new without any."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.build import estimate, stages
from pipeline.manifest import MANIFEST, read_manifest
from pipeline.plan import specification
from pipeline.plan.copied import read_plan
from pipeline.plan.ids import image_id_of
from pipeline.plan.options import FILES, checked, options_of, parsed, text_of
from pipeline.progress import Progress
from pipeline.prompts.tokens import count_tokens
from pipeline.running import run_stages
from pipeline.stage import fingerprint
from pipeline.store import Store
from tests.conftest import PROMPTS, ROOT, SPECIFICATION, WorkflowMaker, aigi_here, listed
from tests.families import MAKERS

Folder = Callable[[str], Path]
VALUES = st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text(max_size=9)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True), VALUES | st.lists(VALUES, max_size=3)
    )
)
def test_options_come_back_from_their_text(options: dict[str, Any]) -> None:
    text = text_of(options)
    assert (text is None) == (not options)
    assert parsed(text) == options and text_of(parsed(text)) == text
    assert options_of(text).keys() == options.keys() - set(FILES)


@pytest.mark.parametrize("text", ["[]", "{", '{"b":1,"a":2}', '{"a": 1}', "{}", "[" * 99999, "1"])
def test_another_text_is_none_of_ours(text: str) -> None:
    with pytest.raises(ValueError):
        options_of(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": "x"}, "prompt: aigi gives this argument itself; it is set by the prompts"),
        ({"latents": 1}, "set by plan.seed"),
        ({"callback_on_step_end": 1}, "gives this argument itself; remove it"),
        ({"a": {"b": 1}}, "a: expected a number, text, true, false, null, or a list"),
        ({"a": [[1]]}, "a: expected"),
        ({"a": float("nan")}, "a: expected"),
        ({"loras": []}, "loras: no argument of a call; it is a key of the source itself"),
        ({"A b": 1}, "'A b' is no name of an argument"),
        ({"a": "x" * 2000}, "more than 2000 characters"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked(options)


def test_what_has_no_options_is_what_it_was_before(make_workflow: WorkflowMaker) -> None:
    """Digests that aigi had before there were options; a finished run stays finished."""
    before = {"format": "png", "fill_batches": False}
    workflow = workflows.load(str(make_workflow(images=before)))
    found = {one.table: fingerprint(one, {}) for one in stages(workflow)}
    assert found["plan"] == "f48bbb196bbc85d05111a18b647ad413e9f217eee8bbce4c4c7c11145a73ae0f"
    assert found["images"] == "d07798a9d110be01cdd7a7c9f7d83250397a9b220f68bc7f7b5a996ab59d35bf"
    assert found["release"] == "976f48961f34b24f42b5a27f4a75dc1ce182e25e68374c5c7db43a11454060f9"
    digests = {
        "pku-aigi-500k": "916a920054aaba61b5d557f91d2fc428ec731f7ead285c5439272befa76663f0",
        "demo": "978f3f587b3f1e3e291ba9c99e4336685b22a1c1abfafd52c55b971e7aabc3ec",
    }
    for name, expected in digests.items():
        dataset = specification.load(str(ROOT / "manifests" / f"{name}.yaml"))
        text = json.dumps(dataset.model_dump(mode="json"), sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == expected


# --- From prompts to a release, and back ---------------------------------------------------------

LIST: dict[str, dict[str, Any]] = {
    "pixart-sigma": {"use_resolution_binning": False},
    "sana": {"use_resolution_binning": False},
    "flux": {"true_cfg_scale": 2.0},
}


def dataset_of(family: Folder, names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A specification of these families, and where their models are."""
    one = yaml.safe_load(SPECIFICATION)["sources"]["sd"]
    size = {"width": 64, "height": 64}
    sources = {
        name: {
            **one,
            "pipeline": "auto" if number % 2 else name,
            "model": f"test/{name}",
            "scheduler": "own",
            "images_per_prompt": 1,
            "splits": {"train": {"count": 3, **size}, "test": {"count": 1, **size}},
            **({"options": LIST[name]} if name in LIST else {}),
        }
        for number, name in enumerate(names)
    }
    data = {"name": "families", "title": "Families", "licence": "MIT", "sources": sources}
    places = {name: {"folder": str(family(name)), "batch_size": 2} for name in names}
    return data, places


def train(release: Path, source: str) -> Path:
    """The one file of a source's train split."""
    (file,) = (release / source).glob("train-*.parquet")
    return file


@pytest.fixture
def eight(
    make_workflow: WorkflowMaker, family: Folder, tmp_path: Path
) -> Callable[..., tuple[Path, Store]]:
    """A workflow over families, and the store of its run."""

    def made(names: list[str], **sections: Any) -> tuple[Path, Store]:
        data, places = dataset_of(family, names)
        (tmp_path / "families.yaml").write_text(yaml.safe_dump(data))
        plan = {"dataset": "families.yaml", "shard_mb": 0.05}
        path = make_workflow(plan=plan, sources=places, **sections)
        return path, Store(str(tmp_path / "run"))

    return made


def test_eight_families_from_prompts_to_a_release_that_is_made_again(
    eight: Callable[..., tuple[Path, Store]], tmp_path: Path, family: Folder
) -> None:
    names = list(MAKERS)
    path, _ = eight(names)
    done = aigi_here("run", str(path))
    assert done.returncode == 0, done.stderr
    release = tmp_path / "run" / "release"
    rows = {name: pq.read_table(train(release, name)).to_pylist() for name in names}
    for name, found in rows.items():
        assert len(found) == 3
        for row in found:
            assert row["options"] == text_of(LIST.get(name, {}))
            assert row["image_id"] == image_id_of(row)
            assert (row["width"], row["height"]) == (64, 64)
    assert len({row["pixels_sha256"] for found in rows.values() for row in found}) == 24
    card = html.unescape((release / "README.md").read_text()).replace("\\", "")
    assert '{"true_cfg_scale":2.0}' in card
    done = aigi_here("verify", str(release), "--deep")
    assert done.returncode == 0, done.stdout + done.stderr
    # The same release from its manifest alone, and where the models are.
    places = [f"--set=sources.{name}.folder={family(name)}" for name in names]
    again = tmp_path / "again"
    done = aigi_here(
        "run", str(ROOT / "workflows" / "regenerate.yaml"), f"--set=run={again}",
        f"--set=plan.manifest={release / MANIFEST}", "--set=release.version=1.2.3",
        "--set=release.record=null", *places,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in names:
        assert train(again / "release", name).read_bytes() == train(release, name).read_bytes()


def test_sources_without_options_are_copied_without_the_column(
    eight: Callable[..., tuple[Path, Store]], tmp_path: Path, family: Folder
) -> None:
    path, _ = eight(["sd", "flux"])
    assert aigi_here("run", str(path)).returncode == 0
    manifest = tmp_path / "run" / "release" / MANIFEST
    table = next(rows for _, rows in read_plan(str(manifest), read_manifest(str(manifest))))
    assert "options" in table.column_names
    for source, has in (("sd", False), ("flux", True)):
        again = tmp_path / f"again-{source}"
        done = aigi_here(
            "run", str(ROOT / "workflows" / "regenerate.yaml"), f"--set=run={again}",
            f"--set=plan.manifest={manifest}", f"--set=plan.sources=[{source}]",
            "--set=release.version=1.2.3", "--set=release.record=null",
            f"--set=sources.{source}.folder={family(source)}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        file = train(again / "release", source)
        assert ("options" in pq.read_schema(file).names) == has
        assert (
            pq.read_table(file)["image_id"]
            == pq.read_table(train(tmp_path / "run" / "release", source))["image_id"]
        )
    # A release that claims other options than its ids are hashes of is no release of ours.
    release = tmp_path / "run" / "release"
    specified = json.loads(manifest.read_text())
    specified["specification"]["sources"]["flux"]["options"] = {"true_cfg_scale": 3.0}
    manifest.write_text(json.dumps(specified))
    done = aigi_here("verify", str(release))
    assert done.returncode == 1
    assert "options '{\"true_cfg_scale\":2.0}'; the manifest states" in done.stdout
    with pytest.raises(AigiError, match=r"row 1: options: '{\"true_cfg"):
        list(read_plan(str(manifest), read_manifest(str(manifest))))
    file = train(release, "flux")
    pq.write_table(pq.read_table(file).drop_columns(["options"]), file)
    listed(release, f"flux/{file.name}")
    done = aigi_here("verify", str(release))
    assert done.returncode == 1 and "column options: string: missing" in done.stdout


def test_the_estimate_knows_guidance_of_each_family(
    eight: Callable[..., tuple[Path, Store]], tmp_path: Path
) -> None:
    path, _ = eight(["sd", "flux", "sd3"])
    data = yaml.safe_load((tmp_path / "families.yaml").read_text())
    for source in data["sources"].values():
        source["splits"]["train"]["unet_tflop"] = 100.0
    data["sources"]["sd3"]["options"] = {}
    data["sources"]["flux"]["pipeline"] = "flux"
    (tmp_path / "families.yaml").write_text(yaml.safe_dump(data))
    hours = {line.source: line.gpu_hours or 0.0 for line in estimate(workflows.load(str(path)))
             if line.split == "train"}  # fmt: skip
    assert hours["flux"] == hours["sd"] == hours["sd3"] > 0
    data["sources"]["flux"]["options"] = {}
    (tmp_path / "families.yaml").write_text(yaml.safe_dump(data))
    hours = {line.source: line.gpu_hours or 0.0 for line in estimate(workflows.load(str(path)))
             if line.split == "train"}  # fmt: skip
    assert 2 * hours["flux"] == hours["sd"]


def test_prompts_are_counted_by_the_tokenizers_of_the_models(
    eight: Callable[..., tuple[Path, Store]], tmp_path: Path, family: Folder
) -> None:
    """T5 reads 64 tokens of FLUX here, Qwen 512 with its template, CLIP 77."""
    from transformers import AutoTokenizer

    path, store = eight(["sd", "flux", "z-image"])
    data = yaml.safe_load((tmp_path / "families.yaml").read_text())
    data["sources"]["flux"]["options"] = {"max_sequence_length": 64}
    (tmp_path / "families.yaml").write_text(yaml.safe_dump(data))
    long = "one red boat on a calm lake at dawn " * 8
    prompts = [*PROMPTS, long.strip()]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    workflow = workflows.load(
        str(path), ["prompts.filters.max_words=99", "prompts.filters.max_repeated=null"]
    )
    run_stages(stages(workflow)[:3], store, workflow.compute, Progress(quiet=True))
    rows = {row["text"]: row for row in store.read_all("prompts").to_pylist()}
    assert rows.keys() == set(prompts)
    folders = {"flux": family("flux") / "tokenizer_2", "z-image": family("z-image") / "tokenizer"}
    tokenizers = {name: AutoTokenizer.from_pretrained(place) for name, place in folders.items()}
    for text, row in rows.items():
        found = dict(row["readers"])
        assert found["flux"] == {"tokens": len(tokenizers["flux"](text)["input_ids"]), "most": 64}
        chat = tokenizers["z-image"].apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        expected = len(tokenizers["z-image"](chat)["input_ids"])
        assert found["z-image"] == {"tokens": expected, "most": 512}
        assert row["tokens"] == count_tokens([text])[0], "a model of CLIP reads them, too"
        assert row["truncated"] == (row["tokens"] > 77 or found["flux"]["tokens"] > 64)
    assert rows[long.strip()]["truncated"] and not rows[PROMPTS[0]]["truncated"]
    # Without a model of CLIP, the counts are those of the models alone.
    alone = stages(workflows.load(str(path), ["plan.sources=[z-image]", f"run={tmp_path / 'z'}"]))
    other = Store(str(tmp_path / "z"))
    run_stages(alone[:3], other, workflow.compute, Progress(quiet=True))
    for row in other.read_all("prompts").to_pylist():
        assert row["tokens"] == dict(row["readers"])["z-image"]["tokens"]
        assert not row["truncated"]
