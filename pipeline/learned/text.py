"""Prompts in, text features out: a frozen open_clip text encoder that says the same everywhere.

It runs in float64 and its vectors are snapped to multiples of 1/1024, because they steer what the
decoder reads (see `pipeline.learned.coding`).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline import AigiError
from pipeline.files import file_sha256
from pipeline.learned.networks.layers import Text
from pipeline.learned.sizes import TextSizes
from pipeline.models.clip import CONFIG, WEIGHTS, check_tensors, open_model, read_config
from pipeline.models.hub import Place, check_sha256
from pipeline.models.weights import Part, digest

EMBEDDED = {"tiny": Path(__file__).parents[1] / "tiny" / "weights" / "clip"}
STEPS = 1024
CACHED = 4096


def _place(sizes: TextSizes, folder: str | os.PathLike[str] | None) -> Place:
    """The open_clip model: given, embedded, or a repository of the Hub."""
    found = EMBEDDED.get(sizes.tower) if folder is None else folder
    return Place(
        "text encoder",
        "--text FOLDER",
        None if found is None else str(found),
        sizes.tower,
        sizes.revision,
    )


class TextEncoder:
    """A loaded text encoder; features of each distinct prompt are kept.

    Args:
        sizes: which one, and what to take from it.
        folder: where it is, instead of the place that `sizes` names.
        device: where it computes.

    Attributes:
        loaded: digest of its weights, in float32.

    Raises:
        AigiError: it is incomplete, cannot be loaded, or is of another width.
    """

    def __init__(
        self,
        sizes: TextSizes,
        folder: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sizes, self.device = sizes, torch.device(device)
        place = _place(sizes, folder)
        found = place.fetch(CONFIG, WEIGHTS[0], beside=("*.json", "*.txt"))
        weights, part = os.path.join(found, WEIGHTS[0]), Part(place.where, place)
        if sizes.sha256 is not None:
            check_sha256(place.where, weights, file_sha256(weights), sizes.sha256)
        config = read_config(place)
        check_tensors(part, f"local-dir:{found}", None, weights)
        model, _, self.tokenizer = open_model(
            place.where, f"local-dir:{found}", config, device="cpu"
        )
        tower = getattr(model, "text", model)
        if getattr(tower, "pool_type", getattr(tower, "text_pool_type", None)) != "argmax":
            raise AigiError(
                f"text encoder: {found}: only CLIP's own text encoders are known, whose vector is "
                "that of the last token. Take another one."
            )
        if hasattr(model, "visual"):
            del model.visual
        self.loaded = digest(part, model)
        self.model = model.eval().requires_grad_(False).double().to(self.device)
        self.tower = tower
        self._cache: OrderedDict[str, Tensor] = OrderedDict()  # int16, T x D, on the CPU
        if (width := self._encode([""])[0].shape[1]) != sizes.width:
            raise AigiError(
                f"text encoder: {found}: its vectors have {width} numbers, the codec wants "
                f"{sizes.width}. Give the one that the codec was trained with."
            )

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> list[Tensor]:
        tokens = self.tokenizer(list(prompts)).to(self.device)
        states: list[Tensor] = []
        hook = self.tower.ln_final.register_forward_hook(
            lambda module, given, result: states.append(result)
        )
        try:
            self.model.encode_text(tokens)
        finally:
            hook.remove()
        projection = self.tower.text_projection
        vectors = projection(states[0]) if callable(projection) else states[0] @ projection
        # Root mean square 1, so that no number is over sqrt(D) and int16 holds them.
        vectors = vectors * (vectors.shape[-1] ** 0.5) / vectors.norm(dim=-1, keepdim=True)
        snapped = torch.floor(vectors * STEPS + 0.5).clamp(-32767, 32767).to(torch.int16).cpu()
        ends = tokens.argmax(dim=-1).tolist()  # the end has the highest number
        first = [0 if self.sizes.features == "tokens" else end for end in ends]
        return [row[a : b + 1] for row, a, b in zip(snapped, first, ends, strict=True)]

    def __call__(self, prompts: Sequence[str]) -> Text:
        """Features of prompts: float64, B x T x D, multiples of 1/1024, root mean square 1.

        T is the longest prompt's number of tokens, begin and end included, or 1 for `pooled`. What
        is longer than the encoder reads is cut off. All numbers are within +-32; those that fill a
        shorter prompt up are 0.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        if new:
            self._cache.update(zip(new, self._encode(new), strict=True))
        rows = [self._cache[prompt] for prompt in prompts]
        for prompt in prompts:
            self._cache.move_to_end(prompt)
        while len(self._cache) > CACHED:
            self._cache.popitem(last=False)
        features = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        there = torch.arange(features.shape[1]) < lengths[:, None]
        return Text(features.double() / STEPS, there).to(self.device, torch.float64)

    def state(self) -> dict[str, Tensor]:
        """Its weights by name, in float64: shapes of the parameters, any values."""
        found: dict[str, Tensor] = self.model.state_dict()
        return found
