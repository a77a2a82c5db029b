"""Two images in, their perceptual distance out, by networks whose weights are on this machine.

    lpips   AlexNet, version 0.1 (Zhang 2018)
    dists   VGG-16, at the images' own size (Ding 2020)

The weights that people's judgements have given to the layers come with the torchmetrics package. It
would download AlexNet and VGG-16 themselves as pickled data; here these are files of torchvision,
and nothing in them runs.
"""

from __future__ import annotations

import importlib.util
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import AigiError
from pipeline.files import file_sha256
from pipeline.models.device import pick_device
from pipeline.models.weights import Part, differences, digest, shapes
from pipeline.pixels import RGB

if TYPE_CHECKING:
    from torch import Tensor


def _convolutions(*layers: tuple[int, int, int, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of weights and biases: number of the layer, outputs, inputs, pixels a side."""
    found: dict[str, tuple[int, ...]] = {}
    for number, outputs, inputs, side in layers:
        found[f"features.{number}.weight"] = (outputs, inputs, side, side)
        found[f"features.{number}.bias"] = (outputs,)
    return found


class Distance:
    """A loaded network.

    Args:
        file: torchvision's state of it: `.safetensors`, or tensors that torch has saved.
        device: auto, cpu, cuda, cuda:N or mps.

    Attributes:
        kind: its name, in the benchmark section and as a column.
        network, known_as: the network, and torchvision's file of its weights.
        least: pixels a side below which it has nothing to look at.
        needed: shapes of the tensors that it takes from the file, by name.
        loaded: digest of these and of the learned weights of the layers.

    Raises:
        AigiError: the package is not installed; no such file, or it holds something else.
    """

    kind: str
    network: str
    known_as: str
    least: int
    needed: Mapping[str, tuple[int, ...]]

    def __init__(self, file: str, device: str = "auto") -> None:
        check(self.kind, file)
        self.device = pick_device(device)
        with self._reading(file):
            used = self._take(_state(file))
        self.loaded = digest(Part(f"benchmark.{self.kind}", file, self.network), used)

    @classmethod
    def check(cls, file: str) -> None:
        """Compare the tensors of a file with those of the network.

        Raises:
            AigiError: it is no such file, or some are missing, unexpected or of another shape.
        """
        with cls._reading(file):
            # The file has the network's last layers too, which no distance looks at.
            found = {n: s for n, s in _shapes(file).items() if not n.startswith("classifier.")}
            if told := differences(cls.needed, found):
                raise ValueError(f"they {told}")

    @classmethod
    @contextmanager
    def _reading(cls, file: str) -> Iterator[None]:
        from safetensors import SafetensorError

        try:
            yield
        except Exception as error:  # a file from anywhere may break its reader in any way
            kind = "safetensors" if isinstance(error, SafetensorError) else type(error).__name__
            raise AigiError(
                f"benchmark.{cls.kind}: {file}: not torchvision's weights of {cls.network} as "
                f"plain tensors ({kind}: {str(error).strip().splitlines()[0]}). Get "
                f"{cls.known_as}."
            ) from error

    def __call__(self, one: RGB, other: RGB) -> float | None:
        """0 for equal images, rarely above 1; None below `least` pixels a side.

        Args:
            one, other: uint8, H x W x 3, of one size.
        """
        import torch

        if min(one.shape[:2]) < self.least:
            return None
        with torch.inference_mode():
            x, y = (
                torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)[None]))
                .to(self.device)
                .float()
                / 255
                for picture in (one, other)
            )
            return self._distance(x, y)

    def _take(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take tensors of the file; returns all that a distance depends on."""
        raise NotImplementedError

    def _distance(self, x: Tensor, y: Tensor) -> float:
        """Of two images, 1 x 3 x H x W, 0 to 1."""
        raise NotImplementedError


class Lpips(Distance):
    """Differences of unit features, weighted by channel (Zhang 2018, equation 1)."""

    kind, network, known_as, least = "lpips", "AlexNet", "alexnet-owt-7be5be79.pth", 31
    needed = _convolutions((0, 64, 3, 11), (3, 192, 64, 5), (6, 384, 192, 3), (8, 256, 384, 3),
                           (10, 256, 256, 3))  # fmt: skip

    def _take(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        from torchmetrics.functional.image.lpips import _LPIPS

        model = _LPIPS(net="alex", pnet_rand=True)
        # slice2.3.weight there is features.3.weight here.
        model.net.load_state_dict(
            {n: state[f"features.{n.split('.', 1)[1]}"] for n in model.net.state_dict()}
        )
        learned = {n: v for n, v in model.state_dict().items() if not n.startswith("net.")}
        self.model = model.eval().requires_grad_(False).to(self.device)
        return {name: state[name].float() for name in self.needed} | learned

    def _distance(self, x: Tensor, y: Tensor) -> float:
        return float(self.model(2 * x - 1, 2 * y - 1))


class Dists(Distance):
    """Means and covariances of features, compared as SSIM does (Ding 2020, equations 5 to 7).

    The pooling layers of VGG-16 are blurs of squares, so that no feature depends on where an image
    begins; the image itself is a first feature map.
    """

    kind, network, known_as, least = "dists", "VGG-16", "vgg16-397923af.pth", 16
    STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    needed = _convolutions(
        (0, 64, 3, 3), (2, 64, 64, 3),
        (5, 128, 64, 3), (7, 128, 128, 3),
        (10, 256, 128, 3), (12, 256, 256, 3), (14, 256, 256, 3),
        (17, 512, 256, 3), (19, 512, 512, 3), (21, 512, 512, 3),
        (24, 512, 512, 3), (26, 512, 512, 3), (28, 512, 512, 3),
    )  # fmt: skip

    def _take(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        import torch

        used = {name: state[name].float() for name in self.needed}
        self.layers: list[list[tuple[Tensor, Tensor]]] = [
            [
                (
                    used[f"features.{number}.weight"].to(self.device),
                    used[f"features.{number}.bias"].to(self.device),
                )
                for number in numbers
            ]
            for numbers in self.STAGES
        ]
        learned = torch.load(_learned("dists_models", "weights.pt"), "cpu", weights_only=True)
        total = learned["alpha"].sum() + learned["beta"].sum()
        self.alpha, self.beta = (
            (learned[name] / total).flatten().to(self.device) for name in ("alpha", "beta")
        )
        self.mean, self.deviation = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        row = torch.tensor([0.25, 0.5, 0.25], device=self.device)
        self.blur = (row[:, None] * row)[None, None]
        all_of_them: dict[str, Tensor] = used | learned
        return all_of_them

    def _features(self, x: Tensor) -> list[Tensor]:
        from torch.nn.functional import conv2d, relu

        found, h = [x], (x - self.mean) / self.deviation
        for number, stage in enumerate(self.layers):
            if number:
                blur = self.blur.expand(h.shape[1], 1, 3, 3)
                h = (conv2d(h * h, blur, stride=2, padding=1, groups=h.shape[1]) + 1e-12).sqrt()
            for weight, bias in stage:
                h = relu(conv2d(h, weight, bias, padding=1))
            found.append(h)
        return found

    def _distance(self, x: Tensor, y: Tensor) -> float:
        import torch

        textures, structures = [], []
        for one, other in zip(self._features(x), self._features(y), strict=True):
            p, q = one[0].flatten(1), other[0].flatten(1)
            p_mean, q_mean = p.mean(1), q.mean(1)
            covariance = (p * q).mean(1) - p_mean * q_mean
            p_variance, q_variance = p.var(1, correction=0), q.var(1, correction=0)
            textures.append((2 * p_mean * q_mean + 1e-6) / (p_mean**2 + q_mean**2 + 1e-6))
            structures.append((2 * covariance + 1e-6) / (p_variance + q_variance + 1e-6))
        alike = self.alpha * torch.cat(textures) + self.beta * torch.cat(structures)
        return 1 - float(alike.sum())


DISTANCES: dict[str, type[Distance]] = {of.kind: of for of in (Lpips, Dists)}


def identity(kind: str, file: str) -> str:
    """sha256 of a weight file.

    Raises:
        AigiError: there is none.
    """
    _there(kind, file)
    return file_sha256(file)


def _there(kind: str, file: str) -> None:
    if not os.path.isfile(file):
        of = DISTANCES[kind]
        raise AigiError(
            f"benchmark.{kind}: {file}: no such file on this machine. Give torchvision's weights "
            f"of {of.network} ({of.known_as}, or the same as safetensors)."
        )


def check(kind: str, file: str) -> None:
    """Refuse early.

    Raises:
        AigiError: the package is not installed; there is no such file, or it has other tensors.
    """
    if importlib.util.find_spec("torchmetrics") is None:
        raise AigiError("benchmark: LPIPS and DISTS: pip install 'aigi[metrics]'")
    _there(kind, file)
    DISTANCES[kind].check(file)


def _state(file: str) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    if file.endswith(".safetensors"):
        return dict(load_file(file))
    return dict(torch.load(file, map_location="cpu", weights_only=True))


def _shapes(file: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a file, which are not read."""
    import torch
    from safetensors import safe_open

    if file.endswith(".safetensors"):
        with safe_open(file, "np") as opened:
            return {n: tuple(opened.get_slice(n).get_shape()) for n in opened.keys()}  # noqa: SIM118
    mapped = zipfile.is_zipfile(file)  # torchvision's oldest files are of an older kind
    return shapes(torch.load(file, map_location="cpu", weights_only=True, mmap=mapped))


def _learned(*parts: str) -> Path:
    spec = importlib.util.find_spec("torchmetrics")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent.joinpath("functional", "image", *parts)
