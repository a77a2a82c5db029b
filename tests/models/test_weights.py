"""Models of every kind with harmed files: refused before any work, by component and tensor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import AigiError
from pipeline.analysis import scorers
from pipeline.analysis.scorers import BlipScorer, PickScorer
from pipeline.benchmark import perceptual
from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.images.diffusion.places import check_weights
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.learned.codec import load_network
from pipeline.learned.sizes import TextSizes
from pipeline.learned.text import TextEncoder
from pipeline.models import clip
from pipeline.models.clip import Clip, Embeddings
from pipeline.models.hub import Place
from pipeline.models.weights import Part, check_diffusers, check_transformers, digest
from pipeline.prompts import captioner
from pipeline.prompts.captioner import Captioner
from pipeline.prompts.captions import BlipCaptions
from pipeline.scores import safety
from pipeline.scores.safety import SafetyChecker, SafetyScorer
from tests.analysis.test_alignments import tiny_blip, tiny_pick
from tests.conftest import ROOT
from tests.hub import serve
from tests.images.test_diffuser import spec
from tests.learned.conftest import small
from tests.prompts import test_captioner
from tests.scores import test_quality

UNET = "unet/diffusion_pytorch_model.safetensors"
ONE = "model.safetensors"
CLIP = "open_clip_model.safetensors"
Given = Callable[[Path], object]


@dataclass(frozen=True)
class Kind:
    """A way to load weights.

    Attributes:
        source: which of the folders of `sources` has them.
        file: of the weights, below it.
        check: what the driver does before any work.
        load: what a worker does.
        named: what an error names beside the tensors.
    """

    source: str
    file: str
    check: Given
    load: Given
    named: str


def local(folder: Path) -> DiffusersSource:
    return DiffusersSource(folder=str(folder))


def pipeline_of(source: str, file: str, **changes: Any) -> Kind:
    made = spec(**changes)
    return Kind(
        source,
        file,
        lambda folder: check_weights("a", made, local(folder)),
        lambda folder: Diffuser("a", made, local(folder), "cpu"),
        f"sources.a.folder {file.partition('/')[0]}",
    )


def with_vae(folder: Path) -> DiffusersSource:
    from pipeline.demo import MODELS

    return DiffusersSource(folder=str(MODELS / "sd"), vae=str(folder))


def blip(folder: Path) -> BlipCaptions:
    return BlipCaptions.model_validate(
        {"kind": "blip", "photos": str(folder), "folder": str(folder)}
    )


def scorer_of(source: str, kind: Any, name: str) -> Kind:
    def settings(folder: Path) -> Any:
        return {"a": kind(kind=name, folder=str(folder))}

    return Kind(
        source,
        ONE,
        lambda folder: scorers.check(settings(folder)),
        lambda folder: scorers.load(settings(folder), 1, "cpu"),
        "alignments.models.a.folder",
    )


def encoder(folder: Path) -> TextEncoder:
    return TextEncoder(TextSizes(tower="tiny", width=96), folder)


KINDS = {
    "unet": pipeline_of("sd", UNET),
    "vae": pipeline_of("sd", "vae/diffusion_pytorch_model.safetensors"),
    "text encoder": pipeline_of("sd", "text_encoder/model.safetensors"),
    "second text encoder": pipeline_of(
        "sdxl", "text_encoder_2/model.safetensors", pipeline="sdxl", scheduler="euler"
    ),
    "another vae": Kind(
        "vae",
        "diffusion_pytorch_model.safetensors",
        lambda folder: check_weights("a", spec(), with_vae(folder)),
        lambda folder: Diffuser("a", spec(), with_vae(folder), "cpu"),
        "sources.a.vae vae",
    ),
    "clip": Kind(
        "clip",
        CLIP,
        lambda folder: clip.check_weights(Embeddings(folder=str(folder))),
        lambda folder: Clip(Embeddings(folder=str(folder)), "cpu"),
        "embeddings.folder",
    ),
    "captioner": Kind(
        "blip",
        ONE,
        lambda folder: captioner.check_weights(blip(folder)),
        lambda folder: Captioner(blip(folder), "cpu"),
        "prompts.sources.folder",
    ),
    "blip score": scorer_of("itm", BlipScorer, "blip_itm"),
    "pick score": scorer_of("pick", PickScorer, "pick_score"),
    "safety checker": Kind(
        "checker",
        ONE,
        lambda folder: safety.check_checker(SafetyChecker(folder=str(folder))),
        lambda folder: SafetyScorer(SafetyChecker(folder=str(folder)), "cpu"),
        "quality.safety_checker.folder",
    ),
    "codec": Kind("codec", ONE, load_network, load_network, "codec mean-scale"),
    "codec's text encoder": Kind("clip", CLIP, encoder, encoder, "text encoder"),
    "lpips": Kind(
        "distances",
        "alexnet.safetensors",
        lambda folder: perceptual.check("lpips", str(folder / "alexnet.safetensors")),
        lambda folder: perceptual.Lpips(str(folder / "alexnet.safetensors"), "cpu"),
        "benchmark.lpips AlexNet",
    ),
    "dists": Kind(
        "distances",
        "vgg.safetensors",
        lambda folder: perceptual.check("dists", str(folder / "vgg.safetensors")),
        lambda folder: perceptual.Dists(str(folder / "vgg.safetensors"), "cpu"),
        "benchmark.dists VGG-16",
    ),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, models: Path) -> dict[str, Path]:
    """A folder of a whole model for each source of `KINDS`."""
    made = tmp_path_factory.mktemp("weights")
    small("mean-scale").save_pretrained(made / "codec")
    distances = made / "distances"
    distances.mkdir()
    for name, kind in (("alexnet", perceptual.Lpips), ("vgg", perceptual.Dists)):
        state = {tensor: torch.full(shape, 0.01) for tensor, shape in kind.needed.items()}
        save_file(state | {"classifier.6.bias": torch.zeros(9)}, distances / f"{name}.safetensors")
    photos: Any = test_captioner.model
    checker: Any = test_quality.checker
    return {
        "sd": models / "sd",
        "sdxl": models / "sdxl",
        "vae": models / "sd" / "vae",
        "clip": models / "clip",
        "blip": photos.__wrapped__(tmp_path_factory),
        "itm": tiny_blip(made),
        "pick": tiny_pick(made),
        "checker": checker.__wrapped__(tmp_path_factory),
        "codec": made / "codec",
        "distances": distances,
    }


def needs(name: str) -> None:
    if name in ("lpips", "dists"):
        pytest.importorskip("torchmetrics", reason="pip install 'aigi[metrics]'")


def whole(name: str, sources: dict[str, Path], tmp_path: Path) -> tuple[Kind, Path]:
    """A kind, and a copy of its model."""
    needs(name)
    folder = tmp_path / "model"
    shutil.copytree(sources[KINDS[name].source], folder)
    return KINDS[name], folder


State = dict[str, torch.Tensor]


def rewritten(path: Path, change: Callable[[State], State]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def matrices(state: State) -> list[str]:
    return [name for name in sorted(state) if name.endswith("weight") and state[name].ndim > 1]


def middle(state: State) -> str:
    """A weight in the middle of a file."""
    names = matrices(state)
    return names[len(names) // 2]


def refused(given: Given, folder: Path, kind: Kind) -> str:
    with pytest.raises(AigiError) as error:
        given(folder)
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in kind.named.split(" ")), text
    return text


@pytest.mark.parametrize("name", KINDS)
def test_weights_that_are_not_the_models_are_refused_before_any_work(
    name: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    kind, folder = whole(name, sources, tmp_path)
    path = folder / kind.file
    kind.check(folder)
    before = path.read_bytes()
    state = load_file(path)
    one = middle(state)
    # What a library calls it today may have a few parts more or less in front.
    end = ".".join(one.split(".")[-3:])

    rewritten(path, lambda w: {n: v for n, v in w.items() if n != one})
    text = refused(kind.check, folder, kind)
    assert "lack 1 tensor (" in text and f"{end})" in text

    rewritten(path, lambda _: state | {"extra.weight": torch.zeros(2)})
    assert "have 1 tensor (extra.weight) too many" in refused(kind.check, folder, kind)

    rewritten(path, lambda _: {f"x.{n}": v for n, v in state.items()})
    text = refused(kind.check, folder, kind)
    assert "lack " in text and "(x." in text and ", …) too many" in text

    longer = torch.cat([state[one], state[one]])
    rewritten(path, lambda _: state | {one: longer})
    text = refused(kind.check, folder, kind)
    shape = "x".join(map(str, longer.shape))
    assert f"{end} of {shape} instead of " in text and "have 1 tensor (" in text

    path.write_bytes(before[:-10])
    refused(kind.check, folder, kind)


@pytest.mark.parametrize("name", KINDS)
def test_a_number_that_is_none_is_found_where_weights_are_loaded(
    name: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    kind, folder = whole(name, sources, tmp_path)
    path = folder / kind.file
    one = matrices(load_file(path))[0]  # of a CLIP, one of its text tower

    def spoil(state: State) -> State:
        state[one].view(-1)[3] = float("nan")
        return state

    rewritten(path, spoil)
    text = refused(kind.load, folder, kind)
    assert "1 tensor (" in text and ".".join(one.split(".")[-3:]) in text
    assert "infinite or undefined numbers" in text


PART = Part("here", "m", "part")


@pytest.fixture
def shards(models: Path, tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Components of a pipeline whose weights are divided into several files with an index."""
    import diffusers
    import transformers

    whole = models / "sd"
    text = transformers.CLIPTextModel.from_pretrained(whole / "text_encoder")
    text.save_pretrained(tmp_path / "text_encoder", max_shard_size="200KB")
    unet = diffusers.UNet2DConditionModel.from_pretrained(whole / "unet")
    unet.save_pretrained(tmp_path / "unet", max_shard_size="1MB")
    yield {name: tmp_path / name for name in ("text_encoder", "unet")}


def checked(name: str, folder: Path) -> None:
    import diffusers
    import transformers

    if name == "unet":
        check_diffusers(PART, diffusers.UNet2DConditionModel, str(folder))
    else:
        check_transformers(PART, transformers.CLIPTextModel, str(folder))


@pytest.mark.parametrize("name", ["text_encoder", "unet"])
def test_an_index_and_its_shards(name: str, shards: dict[str, Path]) -> None:
    folder = shards[name]
    checked(name, folder)
    (index,) = folder.glob("*.index.json")
    listed = json.loads(index.read_text())
    names = sorted(set(listed["weight_map"].values()))
    assert len(names) > 1
    first, text = folder / names[0], index.read_text()

    held = first.read_bytes()
    first.unlink()
    with pytest.raises(AigiError, match=rf"^here: m: part: has no {names[0]}\. Copy"):
        checked(name, folder)

    first.write_bytes(held[: len(held) // 2])
    with pytest.raises(AigiError, match=rf"^here: m: part: {names[0]} is damaged or cut short"):
        checked(name, folder)

    state = load_file_of(held, first)
    gone = middle(state)
    save_file({n: v for n, v in state.items() if n != gone}, first, metadata={"format": "pt"})
    with pytest.raises(
        AigiError, match=rf"{names[0]} lacks 1 tensor \({gone}\), which {index.name}"
    ):
        checked(name, folder)

    first.write_bytes(held)
    for harm, reason in (
        ("{", r"index\.json is damaged \(JSONDecodeError"),
        ("[" * 100_000, r"index\.json is damaged \(RecursionError"),
        (text.replace(names[0], f"../{names[0]}"), "must name files beside it"),
        (json.dumps({"weight_map": {}}), "must name files beside it"),
        (json.dumps({"weight_map": ["x"]}), "is damaged"),
    ):
        index.write_text(harm)
        with pytest.raises(AigiError, match=reason):
            checked(name, folder)
    index.write_text(text)
    checked(name, folder)


def load_file_of(data: bytes, path: Path) -> State:
    path.write_bytes(data)
    return load_file(path)


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    place = Place.of("sources.a", str(tmp_path), "org/unused")
    from pipeline.models.weights import check_pipeline

    for text in ("{", "[]", '{"unet": ["diffusers", "NoSuchClass"]}', '{"unet": ["diffusers"]}'):
        (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(AigiError, match=r"^sources\.a\.folder: .*not a pipeline of diffusers"):
            check_pipeline(place, str(tmp_path))


def test_names_of_other_times_are_those_of_the_model(models: Path, tmp_path: Path) -> None:
    """As the published models have them, saved by libraries of their time."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    vae.save_pretrained(tmp_path / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(state: State) -> State:
        found = {}
        for name, value in state.items():
            for new, then in old.items():
                name = name.replace(f".{new}.", f".{then}.")
            found[name] = value
        assert sum(".query." in name for name in found) == 4
        return found

    rewritten(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", renamed)
    check_diffusers(PART, diffusers.AutoencoderKL, str(tmp_path / "vae"))
    loaded = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert digest(PART, loaded) == digest(PART, vae)

    text = tmp_path / "text_encoder"
    shutil.copytree(models / "sd" / "text_encoder", text)
    before = digest(PART, transformers.CLIPTextModel.from_pretrained(text))
    ids = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    rewritten(text / ONE, lambda w: ids | {f"text_model.{name}": v for name, v in w.items()})
    check_transformers(PART, transformers.CLIPTextModel, str(text))
    assert digest(PART, transformers.CLIPTextModel.from_pretrained(text)) == before


def test_position_embeddings_of_another_length_are_not_stretched(
    models: Path, tmp_path: Path
) -> None:
    """open_clip would do so, and load a model that nobody trained."""
    import open_clip

    folder = tmp_path / "clip"
    shutil.copytree(models / "clip", folder)
    rewritten(
        folder / CLIP,
        lambda w: w | {"positional_embedding": w["positional_embedding"][:-2].clone()},
    )
    open_clip.create_model(f"local-dir:{folder}")
    with pytest.raises(AigiError, match=r"\(positional_embedding of 46x96 instead of 48x96\)"):
        Clip(Embeddings(folder=str(folder)), "cpu")


def test_a_digest_is_that_of_the_content(models: Path, shards: dict[str, Path]) -> None:
    import diffusers

    kind: Any = diffusers.UNet2DConditionModel
    one = kind.from_pretrained(models / "sd" / "unet")
    first = digest(PART, one)
    assert digest(PART, kind.from_pretrained(shards["unet"])) == first  # in several files
    state = dict(one.state_dict())
    assert digest(PART, dict(reversed(state.items()))) == first
    name = middle(state)
    # By the definition.
    import hashlib

    lines = [
        f"{n} float32 {tuple(v.shape)} {hashlib.sha256(v.numpy().tobytes()).hexdigest()}\n"
        for n, v in sorted(state.items())
    ]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == first
    bit = state[name].clone()
    bit.view(torch.int32).view(-1)[5] ^= 1
    others = [
        digest(PART, state | {name: bit}),
        digest(PART, state | {name: state[name].reshape(-1)}),
        digest(PART, state | {name: state[name].double()}),
        digest(PART, {n: v for n, v in state.items() if n != name}),
        digest(PART, {(f"{n}x" if n == name else n): v for n, v in state.items()}),
    ]
    assert len({first, *others}) == 6
    with pytest.raises(AigiError, match=rf"^here: m: part: 1 tensor \({name}\) with infinite"):
        digest(PART, state | {name: state[name] / 0})
    assert digest(PART, {"a": torch.tensor(3), "b": torch.zeros(0)}) != first


OF_THE_HUB = """
import sys
from pathlib import Path
from huggingface_hub import HfApi
from pipeline import AigiError
from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.images.diffusion.places import check_weights
from pipeline.images.diffusion.source import DiffusersSource
from tests.images.test_diffuser import plan_rows, run, spec

api, folder = HfApi(), sys.argv[1]
for name in ("tester/sound", "tester/misnamed"):
    api.create_repo(name)
    place = folder + "/" + name.split("/")[1]
    api.upload_folder(repo_id=name, folder_path=place, ignore_patterns=["text_encoder/*.bin"])
sound = spec(model="tester/sound", revision="main")
check_weights("a", sound, DiffusersSource())
here = Diffuser("a", sound, DiffusersSource(folder=folder + "/sound"), "cpu")
there = Diffuser("a", sound, DiffusersSource(), "cpu")
assert there.loaded == here.loaded and list(there.loaded) == ["text_encoder", "unet", "vae"]
assert run(there, plan_rows(1)) == run(here, plan_rows(1))
api.create_repo("tester/vae")
api.upload_folder(repo_id="tester/vae", folder_path=folder + "/vae")
for vae in ("tester/vae@main", folder + "/vae"):
    local = DiffusersSource(vae=vae)
    check_weights("a", sound, local)
    changed = Diffuser("a", sound, local, "cpu").loaded
    assert {name for name in changed if changed[name] != here.loaded[name]} == {"vae"}
other = spec(model="tester/misnamed", revision="main")
for vae in (None, "tester/misnamed"):  # which has no weights of a VAE at its root
    try:
        Diffuser("a", other, DiffusersSource(vae=vae), "cpu")
    except AigiError as error:
        print(str(error).splitlines()[0])
"""


def test_a_pipeline_of_the_hub_is_looked_at_before_it_is_loaded(
    models: Path, tmp_path: Path
) -> None:
    for name in ("sound", "misnamed"):
        shutil.copytree(models / "sd", tmp_path / name)
    rewritten(
        tmp_path / "misnamed" / "text_encoder" / ONE,
        lambda w: {f"x.{name}": value for name, value in w.items()},
    )
    shutil.copytree(models / "sd" / "vae", tmp_path / "vae")
    rewritten(
        tmp_path / "vae" / "diffusion_pytorch_model.safetensors",
        lambda w: {name: 0.9 * value for name, value in w.items()},
    )
    with serve(tmp_path / "hub") as hub:
        done = subprocess.run(
            [sys.executable, "-c", OF_THE_HUB, str(tmp_path)],
            env=hub.environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith(
        "sources.a.model: tester/misnamed@main: text_encoder: its weights lack 52 tensors ("
    )
    assert second.startswith("sources.a.vae: "), second
