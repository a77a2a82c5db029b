"""What programs state of how they made an image: out of its file, into columns of a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from pipeline.pictures.embedded import PROGRAMS, embedded
from pipeline.pictures.stated import MOST_SEED, Made, stated
from pipeline.release.counts import _kinds
from tests.conftest import ROOT, aigi_here, cmp
from tests.pictures.test_embedded import JOB, commented, graph, hidden, png

T = "a red house"
ALL = Made(123, 20, 7.5, "Euler a", "dream_8.safetensors")
SETTINGS = (
    "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 123, Size: 64x64, "
    'Lora hashes: "a: 1, Seed: 9", Model: dream_8.safetensors'
)
COMFY: dict[str, dict[str, Any]] = {
    "KSampler__1": {
        "positive": ["2", 0], "negative": ["2", 0], "seed": 123, "steps": 20, "cfg": 7.5,
        "sampler_name": "Euler a", "scheduler": "karras",
    },
    "CLIPTextEncode__2": {"text": T},
    "CheckpointLoaderSimple__4": {"ckpt_name": "sd\\\\dream_8.safetensors"},
}  # fmt: skip


def dumped(**values: Any) -> str:
    return json.dumps(values)


FILES: dict[str, list[tuple[bytes, Made]]] = {
    "SwarmUI": [(png(parameters=dumped(sui_image_params={
        "prompt": T, "seed": 123, "steps": 20, "cfgscale": 7.5, "sampler": "Euler a",
        "model": "/home/me/models/dream_8.safetensors"})), ALL)],
    "Fooocus": [
        (commented(dumped(prompt=T, base_model="dream_8.safetensors", seed="123", steps=20,
                          guidance_scale=7.5,
                          sampler="Euler a")), ALL),
        (png(parameters=dumped(Prompt=T, Seed=123, Steps=20, CFG=7.5,
                               base_model_name="dream_8.safetensors",
                               **{"Sampler name": "Euler a"})), ALL),
    ],
    "InvokeAI": [
        (png(invokeai_metadata=dumped(positive_prompt=T, seed=123, steps=20, cfg_scale=7.5,
                                      scheduler="Euler a",
                                      model={"name": "dream_8.safetensors"})), ALL),
        (png(**{"sd-metadata": dumped(image={
            "prompt": T, "seed": 123, "steps": 20, "cfg_scale": 7.5, "sampler": "Euler a"},
            model_weights="dream_8.safetensors")}), ALL),
    ],
    "NovelAI": [
        (png(Description=T, Software="NovelAI", Source="dream_8.safetensors", Comment=dumped(
            prompt=T, seed=123, steps=20, scale=7.5, sampler="Euler a")), ALL),
        (hidden(dumped(Description=T, Software="NovelAI", Comment=dumped(seed=123)), True),
         Made(123)),
    ],
    "AUTOMATIC1111": [
        (png(parameters=f"{T}\nNegative prompt: x\n{SETTINGS}"), ALL),
        (commented(f"{T}\nSteps: 3, Seed: 1\nmore\n{SETTINGS}"), ALL),
        (png(parameters=T), Made()),
    ],
    "EasyDiffusion": [(png(prompt=T, seed="123", num_inference_steps="20", guidance_scale="7.5",
                           sampler_name="Euler a",
                           use_stable_diffusion_model="C:/models/x/dream_8.safetensors"), ALL)],
    "Midjourney": [(png(Description=f"{T} --v 6 --seed 123 {JOB}"),
                    Made(123, model="midjourney-6")),
                   (png(Description=f"{T} --niji 5 {JOB}"), Made(model="niji-5")),
                   (png(Description=f"{T} --ar 1:1 {JOB}"), Made())],
    "mflux": [(commented(dumped(mflux_version="1", prompt=T, seed=123, steps=20, guidance=7.5,
                                model="org/dream")),
               ALL._replace(scheduler=None, model="org/dream"))],
    "Draw Things": [(commented(dumped(c=T, uc="x", seed=123, steps=20, scale=7.5,
                                      sampler="Euler a", model="dream_8.safetensors")), ALL)],
    "ComfyUI": [
        (png(prompt=graph(**COMFY)), ALL),
        # Of two samplers, neither made the image alone.
        (png(prompt=graph(**COMFY, KSampler__3={**COMFY["KSampler__1"], "seed": 5})), Made()),
        (png(prompt=graph(**{**COMFY, "KSampler__1": {**COMFY["KSampler__1"], "seed": ["9", 0]}})),
         ALL._replace(seed=None)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_every_program_states(program: str) -> None:
    for number, (data, made) in enumerate(FILES[program]):
        found = embedded(data)
        assert found.program == program, number
        assert found.made == made, number


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1), ("seed", 2**63), ("seed", "12x"), ("seed", 1.5), ("seed", True),
        ("seed", [3]), ("seed", "9" * 5000), ("steps", 0), ("steps", 10_001), ("cfgscale", "NaN"),
        ("cfgscale", float("inf")), ("cfgscale", 1e9), ("cfgscale", {}), ("sampler", "a\nb"),
        ("sampler", "x" * 61), ("sampler", ""), ("sampler", 7),
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_not_stated(name: str, value: Any) -> None:
    data = png(parameters=json.dumps({"sui_image_params": {"prompt": T, name: value}}))
    assert embedded(data)[:3] == (T, None, "SwarmUI")
    assert embedded(data).made == Made()


@given(
    st.sampled_from(sorted(PROGRAMS)),
    st.dictionaries(
        st.sampled_from(["parameters", "Comment", "UserComment", "prompt", "seed", "Description"]),
        st.one_of(st.text(max_size=80), st.recursive(
            st.none() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=4) | st.lists(inner),
            max_leaves=8,
        ).map(json.dumps)),
    ),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_nothing_that_is_written_there_fails(program: str, texts: dict[str, str]) -> None:
    graph = texts.get("prompt") if program == "ComfyUI" else None
    made = stated(program, texts, graph)
    assert made.seed is None or 0 <= made.seed <= MOST_SEED
    assert made.steps is None or 1 <= made.steps <= 10_000


def test_it_is_in_the_columns_of_a_release_which_is_made_again(tmp_path: Path) -> None:
    """Rows with settings of their own are planned, released, verified and made again."""
    random = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    for number in range(5):
        info = PngImagePlugin.PngInfo()
        text = f"a house with {number} windows\nSteps: {20 + number}, Sampler: Euler a, "
        text += f"Seed: {number}, Model: dream_{number % 2}"
        if number < 4:
            info.add_text("parameters", text)
        else:
            (tmp_path / "p/4.txt").write_text("a boat without settings")
        pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"p/{number}.png", pnginfo=info)
    dataset = yaml.safe_load((ROOT / "manifests/import.yaml").read_text())
    dataset["sources"]["mj52"]["model"] = "stated"
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(dataset))
    given = ["--set", "sources.mj52.kind=import", "--set", f"sources.mj52.path={tmp_path / 'p'}",
             "--set", "sources.mj52.fit=keep"]  # fmt: skip
    one, other = tmp_path / "one", tmp_path / "other"
    splits = ["--set", "split={validation: 0, test: 0}",
              "--set", f"plan.dataset={tmp_path / 'dataset.yaml'}"]  # fmt: skip
    done = aigi_here("run", "workflows/import.yaml", "--set", f"run={one}", *splits, *given)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(one / "release" / "mj52").to_pylist()
    assert sorted((row["path"], row["seed"], row["steps"], row["scheduler"]) for row in rows) == [
        *((f"{n}.png", n, 20 + n, "Euler a") for n in range(4)),
        ("4.png", None, None, None),
    ]
    assert {row["guidance_scale"] for row in rows} == {None}
    models = {row["path"]: row["model"] for row in rows}
    assert models == {
        **{f"{n}.png": f"dream_{n % 2}" for n in range(4)},
        "4.png": "unknown",
    }
    # What is counted of a release is shared by its rows: these differ in the model alone.
    table = pq.read_table(one / "release" / "mj52")
    assert len(_kinds(table, "train")) == 3
    done = aigi_here("verify", str(one / "release"))
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = str(one / "release/manifest.json")
    done = aigi_here("run", manifest, "--set", f"run={other}", *given)
    assert done.returncode == 0, done.stderr
    assert cmp(one / "release", other / "release") == []
