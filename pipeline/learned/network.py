"""Sizes in, a network out that trains (`forward`) and codes (`compress`, `decompress`).

All networks are four parts and a prior of z: g_a, h_a, the entropy model, g_s. Their diagrams stand
in `hyperprior.py`, `catc.py`, `light.py`, `tcm.py` and `elic.py`.

Trained weights are a folder or a repository of the Hub with `config.json` and `model.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn

from pipeline import AigiError
from pipeline.learned.bitstream import STRIDE
from pipeline.learned.card import card
from pipeline.learned.coding import Estimate, Read, Write
from pipeline.learned.entropy import Conditional, Factorized
from pipeline.learned.networks import catc, elic, hyperprior, light, tcm
from pipeline.learned.networks.layers import CrossAttention, Gains, Text
from pipeline.learned.sizes import Sizes, parse
from pipeline.models.weights import Part, compare, digest, header, shapes

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TABLE = "conditional.table"
"""Weights that only a codec with fitted tables has."""

PARTS: dict[str, Any] = {
    "hyperprior": hyperprior, "mean-scale": hyperprior, "catc": catc, "catc-light": light,
    "tcm": tcm, "elic": elic,
}  # fmt: skip
"""Where the parts of each kind of network are."""
HALO = 128
"""Pixels around a tile that the transforms see too, of networks that do not tell their reach.
CATC's is below it: 115 in g_a, 96 in g_s; see test_tiles."""


class Output(NamedTuple):
    """What `forward` returns.

    Attributes:
        x_hat: float32, B x 3 x H x W, about 0 to 1.
        y_likelihoods, z_likelihoods: of every latent, in (0, 1]: B x M x H/16 x W/16 and
            B x N x H/64 x W/64, float32; the first float64 once frozen.
        spread: float32, B, at least 0, without a gradient: means of ((y - mean) / scale)²; where
            scales are right it is 1. None: not known.
    """

    x_hat: Tensor
    y_likelihoods: Tensor
    z_likelihoods: Tensor
    spread: Tensor | None = None

    def bits(self) -> Tensor:
        """Estimated bits of the whole batch, a scalar: dtype of the likelihoods, at least 0."""
        return -self.y_likelihoods.log2().sum() - self.z_likelihoods.log2().sum()

    def bits_of_each(self) -> tuple[Tensor, Tensor]:
        """Estimated bits of y and of z of each image, each of shape (B,).

        They have the dtype of the likelihoods and are at least 0.
        """
        y, z = (-p.log2().flatten(1).sum(1) for p in (self.y_likelihoods, self.z_likelihoods))
        return y, z


class Network(nn.Module, PyTorchModelHubMixin):
    """A learned codec without its container.

    Args:
        sizes: fields of one of the classes in `sizes.py`, for example
            `**NETWORKS["catc-small"].model_dump()`.

    Attributes:
        frozen: whether it is ready to code and not to be trained.

    Raises:
        AigiError: a field is unknown, missing or out of range.
    """

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.sizes: Sizes = parse(sizes)
        parts = PARTS[self.sizes.kind]
        self.g_a = parts.Analysis(self.sizes)
        self.h_a = parts.HyperAnalysis(self.sizes)
        self.tail = self.sizes.tail != "none"
        self.prior = Factorized(self.sizes.n, self.tail)
        self.conditional = Conditional(self.tail)
        self.entropy = parts.EntropyModel(self.sizes)
        self.g_s = parts.Synthesis(self.sizes)
        several = self.sizes.qualities > 1
        self.gains = Gains(self.sizes.qualities, self.sizes.m) if several else None
        self.frozen = False

    @property
    def halo(self) -> int:
        """Pixels around a tile that the transforms must see too, so that tiles leave no seams.

        A multiple of 64: what is seen begins where windows and latents of z do.
        """
        reach = getattr(PARTS[self.sizes.kind], "reach", None)
        return HALO if reach is None else -(-reach(self.sizes) // STRIDE) * STRIDE

    def forward(self, x: Tensor, text: Text | None = None, quality: Tensor | None = None) -> Output:
        """Pass pictures through, with noise in place of rounding where it trains.

        Args:
            x: float32, B x 3 x H x W, 0 to 1; 64 divides H and W.
            text: features of the B prompts, for networks with text.
            quality: int64 or, between two qualities, float32, B, from 1, for networks of several;
                None: the highest.
        """
        y = self.g_a(x, text)
        if self.gains is not None:
            y = self.gains.scale(y, quality)
        z_hat, z_likelihoods = self.prior(self.h_a(y, text))
        step = Estimate(y, self.training, self.conditional)
        y_bar = self.entropy(*self._exact(z_hat, text), step)
        if self.gains is not None:
            y_bar = self.gains.restore(y_bar, quality)
        return Output(
            self.g_s(y_bar.to(x.dtype), text),
            torch.cat(step.likelihoods, 1),
            z_likelihoods,
            step.spread(),
        )

    def compress(self, x: Tensor, text: Text | None = None, quality: float | None = None) -> bytes:
        """Code one picture, 1 x 3 x H x W, of a frozen network.

        Args:
            x: float32, 1 x 3 x H x W, 0 to 1; 64 divides H and W.
            text: features of its prompt, for networks with text.
            quality: from 1, for networks of several, also between two; None: the highest.
        """
        return self.write(self.analyse(x, text, quality), text)[0]

    def decompress(
        self,
        data: bytes,
        height: int,
        width: int,
        text: Text | None = None,
        quality: float | None = None,
    ) -> Tensor:
        """The picture (float32, 1 x 3 x height x width, about 0 to 1) that `compress` coded.

        Raises:
            DamagedStream: the data are not what `compress` made.
        """
        return self.synthesise(self.read(data, height, width, text), text, quality)

    @torch.no_grad()
    def analyse(self, x: Tensor, text: Text | None, quality: float | None = None) -> Tensor:
        """g_a: 1 x 3 x H x W in, y out as it is coded at a quality (None: the highest).

        Args:
            x: float32, 1 x 3 x H x W, 0 to 1; 64 divides H and W.
            text: features of its prompt, for networks with text.

        Returns:
            float32, 1 x M x H/16 x W/16, any finite values.
        """
        y: Tensor = self.g_a(x, _single(text))
        return y if self.gains is None else self.gains.scale(y, _one(quality, y))

    @torch.no_grad()
    def hyper(self, y: Tensor, text: Text | None) -> Tensor:
        """h_a: y as it is coded in, z out.

        Args:
            y: float32, 1 x M x H/16 x W/16, any finite values.
            text: features of its prompt, for networks with text.

        Returns:
            float32, 1 x N x H/64 x W/64, any finite values.
        """
        z: Tensor = self.h_a(y, _single(text))
        return z

    @torch.no_grad()
    def write(self, y: Tensor, text: Text | None, z: Tensor | None = None) -> tuple[bytes, Tensor]:
        """Code y; the data, and the y_bar that `read` will return.

        Args:
            y: float32, 1 x M x H/16 x W/16, any finite values.
            text: features of its prompt, for networks with text.
            z: float32, 1 x N x H/64 x W/64, any finite values; None: what h_a makes of y.

        Returns:
            y_bar is float32, of y's shape, any finite values.
        """
        step = Write(y, self.conditional)
        z_hat = step.z(self.hyper(y, text) if z is None else z, self.prior)
        y_bar = self.entropy(*self._exact(z_hat, text), step).float()
        return step.bytes(), y_bar

    @torch.no_grad()
    def read(self, data: bytes, height: int, width: int, text: Text | None) -> Tensor:
        """y_bar of a picture of that size: float32, 1 x M x height/16 x width/16.

        Raises:
            DamagedStream: the data are not what `write` made.
        """
        step = Read(data, self.conditional)
        z_hat = step.z(height // STRIDE, width // STRIDE, self.prior)
        y_bar: Tensor = self.entropy(*self._exact(z_hat, text), step).float()
        step.check()
        return y_bar

    @torch.no_grad()
    def synthesise(self, y_bar: Tensor, text: Text | None, quality: float | None = None) -> Tensor:
        """g_s: y_bar that was coded at a quality (None: the highest) in, the picture out.

        Args:
            y_bar: float32, 1 x M x h x w, any finite values.
            text: features of its prompt, for networks with text.

        Returns:
            float32, 1 x 3 x 16h x 16w, about 0 to 1, not clamped.
        """
        return self.shown(y_bar, text, quality)

    def shown(self, y_bar: Tensor, text: Text | None, quality: float | None) -> Tensor:
        """`synthesise`, with gradients for y_bar: the same shapes and values."""
        if self.gains is not None:
            y_bar = self.gains.restore(y_bar, _one(quality, y_bar))
        x_hat: Tensor = self.g_s(y_bar, _single(text))
        return x_hat

    def _exact(self, z_hat: Tensor, text: Text | None) -> tuple[Tensor, Text | None]:
        """What the entropy model is given, in its precision."""
        kind = next(self.entropy.parameters()).dtype
        return z_hat.to(kind), None if text is None else text.to(z_hat.device, kind)

    def silence_text(self) -> None:
        """Let the text say nothing until trained."""
        for part in self.modules():
            if isinstance(part, CrossAttention):
                part.silence()

    def aux_loss(self) -> Tensor:
        """Loss of `prior.median` alone, for an optimiser of its own: float32, a scalar from 0."""
        return self.prior.aux_loss()

    def freeze(self) -> Network:
        """Make it ready to code, in place: no gradients, and float64 where bits are decided.

        It can be trained no further; take a copy (`copy.deepcopy`) of a network in training.

        Raises:
            AigiError: there are no tables of z, see `update`.
        """
        if not self.prior.ready():
            raise AigiError(
                f"codec: {self.sizes.name} has no tables for coding. Call update() once it is "
                "trained; save_pretrained does so."
            )
        if not self.conditional.ready():
            raise AigiError(
                f"codec: the tables of {self.sizes.name} cannot be coded with: its weights are "
                "damaged. Copy the model anew."
            )
        self.entropy.freeze()
        self.frozen = True
        return self.eval().requires_grad_(False)

    def update(self) -> None:
        """Make the integer tables of z from what was learned. They are part of the weights."""
        if self.frozen:
            raise ValueError("a frozen network keeps its tables: other ones would be another codec")
        self.prior.update()

    def weights(self) -> dict[str, Tensor]:
        """All weights by name, as they are stored: float32, and int32 tables.

        Shapes and values are those of the parameters and buffers, on the CPU.
        """
        return {
            name: (value.float() if value.is_floating_point() else value).contiguous().cpu()
            for name, value in self.state_dict().items()
        }

    def fingerprint(self, text_weights: dict[str, Tensor] | None = None) -> bytes:
        """sha256 of all that decides what bits mean: weights, the text encoder's, and sizes.

        Args:
            text_weights: of the text encoder by name, any shapes and values; floats are taken as
                float32.

        Returns:
            32 bytes.
        """
        sizes = self.sizes.model_dump(mode="json", exclude={"name", "text"})
        if sizes["qualities"] == 1:
            del sizes["qualities"]  # as it was before there were networks of several
        if sizes["tail"] == "none":
            del sizes["tail"]  # as it was before there were tails
        sizes["features"] = None if self.sizes.text is None else self.sizes.text.features
        sha = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
        for weights in (self.weights(), text_weights or {}):
            for name in sorted(weights):
                value = weights[name].cpu()
                value = value.float() if value.is_floating_point() else value
                sha.update(f"{name} {tuple(value.shape)}".encode())
                sha.update(value.contiguous().numpy().data)
        return sha.digest()

    def _save_pretrained(self, save_directory: Path) -> None:
        from safetensors.torch import save_file

        if not self.frozen:
            self.update()
        save_file(self.weights(), save_directory / WEIGHTS)

    def generate_model_card(self, *_: Any, **given: Any) -> ModelCard:
        """The card that `save_pretrained` and `push_to_hub` write where there is none.

        Args:
            given: arguments of `pipeline.learned.card.card`, through `model_card_kwargs`.
        """
        return ModelCard(card(self.sizes, **given))

    @classmethod
    def _from_pretrained(  # what `from_pretrained` calls with the content of config.json
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        **sizes: Any,
    ) -> Network:
        if Path(model_id).is_dir():
            path = Path(model_id) / WEIGHTS
        else:
            path = Path(
                hf_hub_download(
                    model_id,
                    WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        network = cls(**sizes)
        network.load_weights(path)
        return network.to(map_location).eval()

    def load_weights(self, path: Path) -> None:
        """Take weights from a safetensors file, of any precision.

        Raises:
            AigiError: it is damaged, or holds the weights of another network.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        part = Part("codec", path, self.sizes.name)
        found = header(part, str(path))
        if TABLE in found:
            self.conditional.expect()
        compare(part, shapes(self.state_dict()), found)
        try:
            weights = load_file(path)
            digest(part, weights)  # for its check that all of them are numbers
            self.load_state_dict(weights)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise AigiError(
                f"codec: {path}: not the weights of {self.sizes.name}: "
                f"{' '.join(str(error).split())[:300]}. Copy the model anew."
            ) from error


def _one(quality: float | None, near: Tensor) -> Tensor | None:
    return None if quality is None else torch.tensor([quality], device=near.device)


def _single(text: Text | None) -> Text | None:
    return None if text is None else text.to(text.features.device, torch.float32)
