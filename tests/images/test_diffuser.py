"""`Diffuser` on real tiny pipelines: the pixels of plain diffusers, provenance, and bad days."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline import AigiError
from pipeline.faults import MachineFault
from pipeline.files import file_sha256
from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.images.diffusion.places import check_weights
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.marks.dwt_dct import embed_dwt_dct
from pipeline.plan.families import FAMILIES, Family
from pipeline.plan.schedulers import SCHEDULERS
from pipeline.plan.specification import DiffusersSpec
from pipeline.tables import IMAGES, PLAN, with_options
from tests.conftest import WorkflowMaker


def spec(**changes: Any) -> DiffusersSpec:
    data: dict[str, Any] = {
        "title": "t",
        "licence": "l",
        "kind": "diffusers",
        "pipeline": "sd",
        "model": "test/sd",
        "revision": "seed-0",
        "scheduler": "ddim",
        "steps": 2,
        "guidance_scale": 5.0,
        "splits": {"train": {"count": 1, "width": 64, "height": 64}},
    }
    return DiffusersSpec.model_validate(data | changes)


def plan_rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {
            "image_id": f"id{i}",
            "text": f"a red boat number {i}",
            "source": "sd",
            "seed": 1000 + i,
            "steps": 2,
            "guidance_scale": 5.0,
            "negative_prompt": "",
            "width": 64,
            "height": 64,
            "watermark": "none",
            **changes,
        }
        for i in range(count)
    ]


def run(diffuser: Diffuser, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    schema = with_options(PLAN, any(row.get("options") for row in rows))
    table = pa.concat_tables(diffuser(pa.Table.from_pylist(rows, schema=schema)))
    assert table.schema == IMAGES
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def pixels(row: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


@pytest.fixture(scope="module")
def diffuser(models: Path) -> Diffuser:
    return Diffuser("sd", spec(), DiffusersSource(folder=str(models / "sd"), batch_size=2), "cpu")


@pytest.fixture
def infer(diffuser: Diffuser, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the model's call, keeping the real one at hand."""
    real = diffuser._infer

    def replace(function: Callable[..., Any]) -> None:
        monkeypatch.setattr(diffuser, "_infer", lambda rows: function(real, rows))

    return replace


@pytest.mark.parametrize(("kind", "folder"), [("sd", "sd"), ("sdxl", "sdxl")])
def test_pixels_are_those_of_plain_diffusers(models: Path, kind: str, folder: str) -> None:
    import diffusers

    ours = Diffuser(
        "x",
        spec(pipeline=kind, scheduler="euler"),
        DiffusersSource(folder=str(models / folder), batch_size=2),
        "cpu",
    )
    rows = plan_rows(4)
    made = run(ours, rows)
    plain: Any = {
        "sd": diffusers.StableDiffusionPipeline,
        "sdxl": diffusers.StableDiffusionXLPipeline,
    }[kind].from_pretrained(models / folder, dtype=torch.float32)
    plain.scheduler = diffusers.EulerDiscreteScheduler.from_config(plain.scheduler.config)
    for start in (0, 2):
        batch = rows[start : start + 2]
        images = plain(
            prompt=[row["text"] for row in batch],
            negative_prompt=["", ""],
            width=64,
            height=64,
            num_inference_steps=2,
            guidance_scale=5.0,
            generator=[torch.Generator("cpu").manual_seed(row["seed"]) for row in batch],
        ).images
        for image, row in zip(images, made[start : start + 2], strict=True):
            np.testing.assert_array_equal(pixels(row), np.asarray(image))


def test_row_says_what_made_it(diffuser: Diffuser) -> None:
    made = run(diffuser, plan_rows(3))
    assert [row["image_id"] for row in made] == ["id0", "id1", "id2"]
    assert [row["batch_size"] for row in made] == [2, 2, 1]
    for row in made:
        assert (row["width"], row["height"], row["error"], row["device"]) == (64, 64, None, "cpu")
        versions = json.loads(row["versions"])
        libraries = {"diffusers", "torch", "transformers"}
        assert set(versions) == {*libraries, "weights", "scheduler"}
        assert versions["weights"] == diffuser.loaded
        assert list(diffuser.loaded) == ["text_encoder", "unet", "vae"]
        assert row["image"]["path"] == f"{row['image_id']}.webp"
        assert Image.open(io.BytesIO(row["image"]["bytes"])).format == "WEBP"
        import hashlib

        assert hashlib.sha256(pixels(row).tobytes()).hexdigest() == row["pixels_sha256"]
    assert len({row["pixels_sha256"] for row in made}) == 3


def test_same_rows_same_bytes(diffuser: Diffuser) -> None:
    assert run(diffuser, plan_rows(3)) == run(diffuser, plan_rows(3))


def test_a_pair_is_generated_once(diffuser: Diffuser, infer: Callable[..., None]) -> None:
    calls: list[int] = []

    def counted(real: Callable[..., Any], rows: list[Any]) -> Any:
        calls.append(len(rows))
        return real(rows)

    infer(counted)
    (base,) = plan_rows(1)
    twin = base | {"image_id": "twin", "watermark": "dwt-dct"}
    other = base | {"image_id": "other", "seed": 9}
    made = run(diffuser, [base | {"pair_id": "id0"}, twin | {"pair_id": "id0"}, other])
    assert calls == [2]
    np.testing.assert_array_equal(pixels(made[1]), embed_dwt_dct(pixels(made[0])))
    assert made[0]["pixels_sha256"] != made[1]["pixels_sha256"]


def test_out_of_memory_halves_the_batch_and_says_so(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = Diffuser("sd", spec(), DiffusersSource(folder=str(models / "sd"), batch_size=4), "cpu")
    real = four._infer

    def small(rows: list[Any]) -> Any:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(rows)

    monkeypatch.setattr(four, "_infer", small)
    made = run(four, plan_rows(5))
    assert [row["batch_size"] for row in made] == [2, 2, 2, 2, 1]
    assert all(row["error"] is None for row in made)


def test_out_of_memory_at_one_is_no_error_of_the_row(
    diffuser: Diffuser, infer: Callable[..., None]
) -> None:
    def small(real: Callable[..., Any], rows: list[Any]) -> Any:
        if any(row["seed"] == 1001 for row in rows):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(rows)

    infer(small)
    with pytest.raises(
        MachineFault, match=r"sources\.sd: cpu: out of memory with one image of 64x"
    ):
        run(diffuser, plan_rows(3))


BROKEN = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: device-side assert triggered", 710),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: str(error)[:30])
def test_a_device_that_fails_costs_no_image(
    make_workflow: WorkflowMaker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A real UNet raises from its second shard on; the same command finds it mended."""
    import diffusers

    from pipeline import workflow as workflows
    from pipeline.build import make
    from pipeline.progress import Progress
    from pipeline.store import Store

    plan = {"dataset": "dataset.yaml", "shard_mb": 0.05, "sources": ["sd"], "limit": 12}
    workflow = workflows.load(make_workflow(plan=plan, release=None))
    store = Store(workflow.run)
    real, calls = diffusers.UNet2DConditionModel.forward, 0

    def forward(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise error
        return real(*given, **options)

    with monkeypatch.context() as broken:
        broken.setattr(diffusers.UNet2DConditionModel, "forward", forward)
        with pytest.raises(AigiError, match=r"images: \d of \d shards failed") as caught:
            make(workflow, store, Progress(quiet=True))
        assert "sources.sd: cpu: " in str(caught.value)
    record = store.read_json("_stages", "images.json") or {}
    assert all("Traceback" not in text and "\n" not in text for text in record["failed"].values())
    made = store.read_all("images", ["error"]).to_pylist()
    assert 0 < len(made) < 14 and all(row["error"] is None for row in made)
    make(workflow, store, Progress(quiet=True))
    made = store.read_all("images", ["error"]).to_pylist()
    assert len(made) == 14 and all(row["error"] is None for row in made)


def test_a_bad_row_fails_alone(diffuser: Diffuser) -> None:
    rows = plan_rows(4)
    rows[1]["text"] = None  # the tokenizer refuses it, and with it the whole batch
    made = run(diffuser, rows)
    assert made[1]["image"] is None
    assert made[1]["error"]
    assert [row["error"] for i, row in enumerate(made) if i != 1] == [None] * 3
    assert [row["batch_size"] for row in made] == [1, 1, 2, 2]


@pytest.mark.parametrize(("value", "part"), [(float("nan"), "not a number"), (0.0, "all black")])
def test_broken_pictures_are_caught(
    diffuser: Diffuser, infer: Callable[..., None], value: float, part: str
) -> None:
    def broken(real: Callable[..., Any], rows: list[Any]) -> Any:
        made = real(rows)
        for image, row in zip(made, rows, strict=True):
            if row["seed"] == 1002:
                image.fill_(value)
        return made

    infer(broken)
    made = run(diffuser, plan_rows(4))
    assert part in made[2]["error"]
    assert made[2]["image"] is None
    assert [row["error"] for i, row in enumerate(made) if i != 2] == [None] * 3


def test_when_all_fail_the_shard_fails(diffuser: Diffuser, infer: Callable[..., None]) -> None:
    infer(lambda real, rows: torch.full((len(rows), 3, 64, 64), float("nan")))
    with pytest.raises(AigiError, match="every image failed: not a number"):
        run(diffuser, plan_rows(3))


def test_float16_overflow_of_a_real_vae_is_caught(models: Path) -> None:
    """A VAE whose activations do not fit into float16, as SDXL's own."""
    loaded = Diffuser(
        "sdxl",
        spec(pipeline="sdxl", scheduler="euler"),
        DiffusersSource(folder=str(models / "sdxl"), batch_size=2),
        "cpu",
    )
    loaded.pipe.vae.decoder.conv_in.weight.data *= 1e38
    with pytest.raises(AigiError, match="every image failed"):
        run(loaded, plan_rows(2))


def test_options_of_the_machine(models: Path) -> None:
    local = DiffusersSource(
        folder=str(models / "sd"),
        batch_size=2,
        vae=str(models / "sd" / "vae"),
        vae_tiling=True,
        attention_slicing=True,
    )
    made = run(Diffuser("sd", spec(dtype="bfloat16"), local, "cpu"), plan_rows(2))
    assert all(row["error"] is None for row in made)


def test_a_family_is_one_row(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another class of diffusers, from its row to pixels; what it does not take is not given."""
    import diffusers

    given: dict[str, Any] = {}

    class Other(diffusers.StableDiffusionPipeline):  # type: ignore[misc]
        """Takes no negative prompt."""

        def __call__(
            self,
            prompt: Any = None,
            height: Any = None,
            width: Any = None,
            num_inference_steps: int = 50,
            guidance_scale: float = 7.5,
            generator: Any = None,
            output_type: str = "pil",
        ) -> Any:
            options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
            given.update(options)
            return super().__call__(**options)

    monkeypatch.setattr(diffusers, "Other", Other, raising=False)
    options = {"safety_checker": None, "requires_safety_checker": False}
    row = Family("Other", options, multiple=32, negative_prompt=False, guided_above=None)
    monkeypatch.setitem(FAMILIES, "other", row)
    other = spec(pipeline="other", guidance_scale=1.0)
    local = DiffusersSource(folder=str(models / "sd"), batch_size=2)
    (made,) = run(Diffuser("x", other, local, "cpu"), plan_rows(1))
    assert made["error"] is None and pixels(made).shape == (64, 64, 3)
    assert given["prompt"] and "negative_prompt" not in given
    assert row.evaluations(20, 5.0) == 20
    with pytest.raises(ValueError, match="negative_prompt: pipeline other takes none"):
        spec(pipeline="other", negative_prompt="blur")
    with pytest.raises(ValueError, match="multiples of 32"):
        spec(pipeline="other", splits={"train": {"count": 1, "width": 72, "height": 64}})


def test_every_scheduler_of_the_specification_runs(models: Path) -> None:
    seen = set()
    for name in ("own", *SCHEDULERS):
        if name.startswith("flow"):
            continue  # for models that predict one
        local = DiffusersSource(folder=str(models / "sd"), batch_size=1)
        loaded = Diffuser("sd", spec(scheduler=name, steps=4), local, "cpu")
        kind = SCHEDULERS.get(name, "DDIMScheduler")
        assert type(loaded.pipe.scheduler).__name__ == kind
        (row,) = run(loaded, plan_rows(1, steps=4))
        assert row["error"] is None, name
        # What the model came with can be read in every row.
        recorded = json.loads(row["versions"])["scheduler"]
        assert recorded["class"] == kind and recorded["num_train_timesteps"] == 1000
        assert not any(key.startswith("_") for key in recorded)
        seen.add(row["pixels_sha256"])
    assert len(seen) > 8


def test_options_of_a_scheduler_move_pixels_and_are_checked_first(models: Path) -> None:
    local = DiffusersSource(folder=str(models / "sd"), batch_size=1)

    def pixels_of(scheduler: object) -> str:
        given = spec(scheduler=scheduler, steps=4)
        check_weights("sd", given, local)
        (row,) = run(Diffuser("sd", given, local, "cpu"), plan_rows(1, steps=4))
        return str(row["pixels_sha256"])

    plain = pixels_of("euler")
    assert pixels_of({"name": "euler", "use_karras_sigmas": True}) != plain
    assert pixels_of({"name": "euler", "use_karras_sigmas": False}) == plain
    with pytest.raises(AigiError, match=r"sources\.sd\.scheduler: euler has no option karras"):
        check_weights("sd", spec(scheduler={"name": "euler", "karras": True}), local)
    with pytest.raises(AigiError, match=r"sources\.sd\.scheduler: flow-euler is for models"):
        check_weights("sd", spec(scheduler="flow-euler"), local)


def test_missing_or_changed_weights_are_named(models: Path, tmp_path: Path) -> None:
    folder = str(models / "sd")
    weights = "unet/diffusion_pytorch_model.safetensors"
    local = DiffusersSource(folder=folder)
    check_weights("sd", spec(sha256={weights: file_sha256(f"{folder}/{weights}")}), local)
    with pytest.raises(AigiError, match=r"sources\.sd\.folder: .*unet/diffusion.* has sha256"):
        check_weights("sd", spec(sha256={weights: "0" * 64}), local)
    with pytest.raises(AigiError, match="has no unet/other"):
        check_weights("sd", spec(sha256={"unet/other.safetensors": "0" * 64}), local)
    empty = DiffusersSource(folder=str(tmp_path))
    with pytest.raises(AigiError, match=r"sources\.sd\.folder: .*has no model_index\.json"):
        check_weights("sd", spec(), empty)


def test_a_hub_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = spec(sha256={"unet/x.safetensors": "0" * 64})
    with pytest.raises(AigiError, match=r"sources\.sd\.model: cannot look up test/sd@seed-0"):
        check_weights("sd", remote, DiffusersSource())
    with pytest.raises(AigiError, match=r"sources\.sd\.model: cannot get test/sd@seed-0, and it"):
        Diffuser("sd", remote, DiffusersSource(), "cpu")


def test_another_vae_is_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()

    def vae(value: str) -> str | None:
        given = {"vae": value}
        return DiffusersSource.model_validate(given, context={"base": tmp_path}).vae

    assert vae("mine") == str(tmp_path / "mine")
    assert vae("./absent") == str(tmp_path / "absent"), "a path, though nothing is there"
    assert vae("ORG/NAME@v1") == "ORG/NAME@v1"
