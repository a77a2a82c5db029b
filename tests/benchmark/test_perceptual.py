"""LPIPS and DISTS by their definitions, from weights that lie on this machine."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline import AigiError
from pipeline.benchmark.measurements import measurements_schema
from pipeline.benchmark.perceptual import Dists, Lpips, identity
from pipeline.pixels import RGB
from tests.benchmark.conftest import execute, write_workflow
from tests.benchmark.test_measurements import rows_of
from tests.benchmark.test_metrics import pair

needed = pytest.mark.skipif(
    importlib.util.find_spec("torchmetrics") is None, reason="pip install 'aigi[metrics]'"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet with random weights, as torchvision saves it."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save(alexnet(weights=None).state_dict(), path)
    return path


def defined(weights: Path, one: RGB, other: RGB) -> float:
    """Zhang 2018, equation 1: differences of unit features, weighted by channel, averaged."""
    import torchmetrics
    from torchvision.models import alexnet

    network = alexnet(weights=None)
    network.load_state_dict(torch.load(weights, weights_only=True))
    folder = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
    linear = torch.load(folder / "alex.pth", "cpu", weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]

    def features(rgb: RGB) -> list[Any]:
        x = (torch.from_numpy(rgb.copy()).permute(2, 0, 1) / 127.5 - 1 - shift) / scale
        found = []
        for number, layer in enumerate(network.features[:12]):
            x = layer(x[None])[0]
            if number in (1, 4, 7, 9, 11):
                found.append(x.clone() / (1e-8 + (x * x).sum(0)).sqrt())
        return found

    total = 0.0
    with torch.inference_mode():
        for i, (x, y) in enumerate(zip(features(one), features(other), strict=True)):
            weight = linear[f"lin{i}.model.1.weight"][0]
            total += float((weight * (x - y) ** 2).sum(0).mean())
    return total


@needed
def test_it_is_its_definition(weights: Path, tmp_path: Path) -> None:
    distance = Lpips(str(weights), "cpu")
    for seed, size in ((1, (96, 80)), (2, (Lpips.least, 200))):
        one, other = pair(seed, *size)
        assert distance(one, other) == pytest.approx(defined(weights, one, other), rel=1e-4)
        assert distance(one, other) == pytest.approx(distance(other, one)) != 0
        assert distance(one, one) == 0
    small = np.zeros((Lpips.least - 1, 80, 3), np.uint8)
    assert distance(small, small) is None
    # The same weights without pickle give the same distance.
    copy = tmp_path / "alexnet.safetensors"
    save_file(torch.load(weights, weights_only=True), copy)
    assert Lpips(str(copy), "cpu")(one, other) == distance(one, other)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The convolutions of VGG-16 with random weights, as torchvision names them."""
    from torchvision.models import vgg16

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    state = vgg16(weights=None).features.state_dict()
    save_file({f"features.{name}": value for name, value in state.items()}, path)
    return path


@needed
def test_dists_is_that_of_the_package(vgg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own network, given the same weights in place of its download."""
    from safetensors.torch import load_file
    from torchmetrics.functional.image import dists as package
    from torchvision.models import vgg16

    def local(weights: object) -> Any:
        network = vgg16(weights=None)
        network.load_state_dict(load_file(vgg), strict=False)
        return network

    monkeypatch.setattr(package, "vgg16", local)
    theirs, ours = package.DISTSNetwork().eval(), Dists(str(vgg), "cpu")
    for seed, size in ((1, (96, 80)), (2, (Dists.least, 75)), (3, (33, 64))):
        one, other = pair(seed, *size)
        x, y = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None] / 255 for p in (one, other))
        found = ours(one, other)
        assert found == pytest.approx(float(theirs(x, y).detach()), rel=1e-3, abs=1e-6)
        assert found is not None and found > 1e-3
        assert ours(one, one) == pytest.approx(0, abs=1e-6)
        assert found == pytest.approx(ours(other, one), rel=1e-4)
    small = np.zeros((Dists.least - 1, 80, 3), np.uint8)
    assert ours(small, small) is None


@needed
def test_dists_refuses_other_weights(vgg: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(AigiError, match=r"^benchmark\.dists: .*weights of VGG-16 .*vgg16-397923af"):
        Dists(str(weights), "cpu")  # AlexNet's
    with pytest.raises(AigiError, match=r"^benchmark\.dists: .*absent: no such file.*VGG-16"):
        Dists(str(tmp_path / "absent"), "cpu")


class Bomb:
    """It writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@needed
def test_other_files_are_refused_and_run_nothing(weights: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    hostile = tmp_path / "hostile.pth"
    torch.save({"features.0.weight": Bomb(mark)}, hostile)
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Bomb(mark)))
    part = tmp_path / "part.pth"
    state = torch.load(weights, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "features.8.bias"}, part)
    other = tmp_path / "other.pth"
    torch.save(state | {"features.0.weight": torch.zeros(64, 3, 7, 7)}, other)
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"noise")
    for path in (hostile, plain, part, other, noise):
        with pytest.raises(AigiError, match=rf"^benchmark\.lpips: {path}: not torchvision's"):
            Lpips(str(path), "cpu")
    assert not mark.exists()


def test_a_missing_file_or_package_is_refused_before_any_work(
    weights: Path, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = tmp_path / "w.yaml"
    few = {"codecs": ["jpeg"], "strips": None}
    write_workflow(workflow, pictures, {}, **few, lpips=str(tmp_path / "absent.pth"))
    with pytest.raises(AigiError, match=r"benchmark\.lpips: .*absent\.pth: no such file"):
        execute(workflow)
    write_workflow(workflow, pictures, {}, **few, lpips=str(weights))
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(AigiError, match=r"pip install 'aigi\[metrics\]'"):
        execute(workflow)
    assert not (tmp_path / "run" / "measurements").exists()
    assert not (tmp_path / "run" / "_stages" / "measurements.json").exists()


@needed
def test_rows_and_page_have_it_where_it_is_asked_for(
    weights: Path, vgg: Path, tmp_path: Path, pictures: Path
) -> None:
    workflow = tmp_path / "w.yaml"
    codecs = [{"codec": "jpeg", "qualities": [20, 95]}]
    both = {"lpips": str(weights), "dists": str(vgg)}
    write_workflow(workflow, pictures, {}, codecs=codecs, strips=None, **both)
    store, _ = execute(workflow)
    table = store.read_all("measurements")
    assert table.schema == measurements_schema(False, False, ["lpips", "dists"])
    assert not store.shards("references")
    rows = [row for row in rows_of(store) if row["error"] is None]
    low, high = ([r["lpips"] for r in rows if r["quality"] == q] for q in (20, 95))
    assert all(r["dists"] > 0 for r in rows)
    assert len(low) == 3 and all(0 < b < a for a, b in zip(low, high, strict=True))
    page = Path(store.path("benchmark", "README.md")).read_text()
    assert f"| {np.mean(low):.4f} |" in page
    assert "| LPIPS | DISTS |" in page
    assert "LPIPS is that of AlexNet, version 0.1, DISTS is that of VGG-16, of decoded" in page
    # Other weights are another distance.
    state = torch.load(weights, weights_only=True)
    changed = tmp_path / "changed.pth"
    torch.save(state | {"features.0.bias": state["features.0.bias"] + 1}, changed)
    assert identity("lpips", str(changed)) != identity("lpips", str(weights))
    write_workflow(
        workflow, pictures, {}, codecs=codecs, strips=None, **both | {"lpips": str(changed)}
    )
    with pytest.raises(AigiError, match=r"(?s)measurements: made with other.*lpips: "):
        execute(workflow)
