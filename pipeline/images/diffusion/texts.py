"""Prompts of a shard in, what a pipeline's text encoders make of them out: each prompt once.

A pipeline encodes the prompts of every batch, and as many negative prompts. `Texts` takes the
place of its `encode_prompt`: a prompt that comes again is not encoded again, nor is a negative
prompt, and a batch that has room is filled with prompts to come.

No bit may change by that. Encoders always get batches of the size that they would have got, because
the size decides the last bits. That neither neighbours nor the place in a batch do is not assumed
but compared, on the device, before anything is kept; where it is not so (a family that pads prompts
to the longest of a batch, a kernel that treats rows differently), everything is as without this.
"""

from __future__ import annotations

import inspect
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Waiting = tuple[torch.Tensor, torch.device]

_GUIDED, _NEGATIVE = "do_classifier_free_guidance", "negative_prompt"
_LONG = "a long text of many words that no prompt of the batch is likely to equal " * 4
_STRAY = 16
"""Texts that are kept though no shard announced them: negative prompts that a family encodes as it
does prompts."""


@dataclass
class _Plan:
    """What is known of the outputs of `encode_prompt` for one size of batches.

    Attributes:
        rest: its other arguments, for which that is known.
        positive, negative: places of outputs with a row for each prompt, and negative prompt.
        constant: outputs that are the same for all.
    """

    rest: Mapping[str, Any]
    positive: tuple[int, ...] = ()
    negative: tuple[int, ...] = ()
    constant: Mapping[int, Any] = field(default_factory=dict)
    safe: bool = False


class Texts:
    """In the place of `encode_prompt` of a pipeline.

    Args:
        pipe: whose text encoders these are; its `encode_prompt` is replaced.
        size: prompts in a whole batch. Other batches are encoded as they are.

    Attributes:
        encoded: batches that went through the encoders.
    """

    def __init__(self, pipe: Any, size: int) -> None:
        self.encode = pipe.encode_prompt
        self.signature = inspect.signature(self.encode)
        self.encoded = 0
        self.plan: _Plan | None = None
        self.size = size
        self.kept: dict[str, dict[int, Waiting]] = {}
        self.kept_negative: dict[str, dict[int, Waiting]] = {}
        self.expect(size, ())
        pipe.encode_prompt = self

    @classmethod
    def of(cls, pipe: Any, size: int) -> Texts | None:
        """For a pipeline that has such a method with a list of prompts; None for any other."""
        method = getattr(pipe, "encode_prompt", None)
        if method is None or "prompt" not in inspect.signature(method).parameters:
            return None
        return cls(pipe, size)

    def expect(self, size: int, texts: Iterable[str]) -> None:
        """Begin a shard.

        Args:
            size: prompts in its whole batches.
            texts: prompts of its generations, in their order.
        """
        if size != self.size:
            self.plan = None
        self.size = size
        known = [text for text in texts if isinstance(text, str)]
        self.left = Counter(known)
        self.coming = dict.fromkeys(known)
        self.kept.clear()
        if len(self.kept_negative) > _STRAY:
            self.kept_negative.clear()

    def __call__(self, *given: Any, **options: Any) -> Any:
        """What `encode_prompt` returns, bit for bit."""
        arguments = dict(self.signature.bind(*given, **options).arguments)
        prompts = arguments.get("prompt")
        if not self._takes(arguments) or not isinstance(prompts, list):
            return self._run(arguments)
        rest = {key: value for key, value in arguments.items() if key not in ("prompt", _NEGATIVE)}
        negatives = arguments.get(_NEGATIVE) if self._guided(rest) else None
        if self.plan is None or self.plan.rest != rest:
            self.kept.clear()
            self.kept_negative.clear()
            made = self._run(arguments)
            self.plan = self._compared(rest, prompts, negatives, made)
            self._use(prompts)
            return made
        if not self.plan.safe:
            return self._run(arguments)
        try:
            made = self._assembled(self.plan, prompts, negatives)
        except (TypeError, ValueError):  # a prompt that comes later, which fails in its own batch
            return self._run(arguments)
        self._use(prompts)
        return made

    def _run(self, arguments: Mapping[str, Any]) -> Any:
        self.encoded += 1
        bound = inspect.BoundArguments(self.signature, OrderedDict(arguments))
        return self.encode(*bound.args, **bound.kwargs)

    def _takes(self, arguments: Mapping[str, Any]) -> bool:
        """Whether these are prompts alone, a whole batch of them."""
        prompts = arguments.get("prompt")
        texts = isinstance(prompts, list) and all(isinstance(text, str) for text in prompts)
        other = [
            key
            for key, value in arguments.items()
            if value is not None
            and ("embeds" in key or key.startswith(("prompt_", f"{_NEGATIVE}_")))
        ]
        single = arguments.get("num_images_per_prompt", 1) in (None, 1)
        known = self.signature.parameters
        negative = _NEGATIVE not in known or (_GUIDED in known and not self._guided(arguments))
        if not negative:  # without one, some families take zeros and not an empty text
            given = arguments.get(_NEGATIVE)
            negative = _GUIDED in known and isinstance(given, list) and len(given) == self.size
        return bool(texts and not other and single and negative and len(prompts or ()) == self.size)

    def _guided(self, arguments: Mapping[str, Any]) -> bool:
        if _GUIDED not in self.signature.parameters:
            return False
        return bool(arguments.get(_GUIDED, self.signature.parameters[_GUIDED].default))

    def _positive(self, rest: Mapping[str, Any], prompts: Sequence[str]) -> tuple[Any, ...]:
        """Outputs for prompts alone."""
        alone = {_GUIDED: False} if _GUIDED in self.signature.parameters else {}
        return _outputs(self._run({"prompt": list(prompts), **rest, **alone}))

    def _compared(
        self,
        rest: Mapping[str, Any],
        prompts: list[str],
        negatives: list[str] | None,
        made: Any,
    ) -> _Plan:
        """Encode the same prompts one place further, beside another one, and compare."""
        import torch

        plan = _Plan(rest)
        if not isinstance(made, tuple):
            return plan
        moved = [_LONG, *prompts[:-1]] if len(prompts) > 1 else prompts
        first, second = _outputs(made), self._positive(rest, moved)
        shift, count = int(len(prompts) > 1), len(prompts)
        positive: list[int] = []
        negative: list[int] = []
        constant: dict[int, Any] = {}
        if len(first) != len(second):
            return plan
        for place, (one, other) in enumerate(zip(first, second, strict=True)):
            if one is None:
                constant[place] = None
            elif other is None and negatives is not None and _same_where(one, negatives):
                negative.append(place)
            elif not _alike(one, other):
                return plan
            elif len(one) == count and torch.equal(one[: count - shift], other[shift:]):
                positive.append(place)
            elif torch.equal(one, other):
                constant[place] = one
            else:
                return plan
        plan = _Plan(rest, tuple(positive), tuple(negative), constant, bool(positive))
        for row, text in enumerate(prompts):
            self.kept[text] = {place: _row(first[place], row) for place in positive}
        for row, text in enumerate(negatives or ()):
            self.kept_negative[text] = {place: _row(first[place], row) for place in negative}
        return plan

    def _assembled(self, plan: _Plan, prompts: list[str], negatives: list[str] | None) -> Any:
        missing = [text for text in dict.fromkeys(prompts) if text not in self.kept]
        if missing:
            self._keep(plan, missing)
        lacking = [
            text for text in dict.fromkeys(negatives or ()) if text not in self.kept_negative
        ]
        if lacking:
            filled = [*lacking, *lacking[-1:] * (self.size - len(lacking))]
            outputs = _outputs(self._run({"prompt": prompts, _NEGATIVE: filled, **plan.rest}))
            for row, text in enumerate(lacking):
                self.kept_negative[text] = {
                    place: _row(outputs[place], row) for place in plan.negative
                }
        found: dict[int, Any] = dict(plan.constant)
        for places, kept, texts in (
            (plan.positive, self.kept, prompts),
            (plan.negative, self.kept_negative, negatives or []),
        ):
            for place in places:
                found[place] = _stacked([kept[text][place] for text in texts])
        return tuple(found[place] for place in sorted(found))

    def _keep(self, plan: _Plan, missing: list[str]) -> None:
        """Encode prompts that are missing, and with them as many as a batch has room for."""
        more = [
            text
            for text in self.coming
            if self.left[text] > 0 and text not in self.kept and text not in missing
        ]
        texts = [*missing, *more][: self.size]
        outputs = self._positive(plan.rest, [*texts, *texts[-1:] * (self.size - len(texts))])
        for row, text in enumerate(texts):
            self.kept[text] = {place: _row(outputs[place], row) for place in plan.positive}

    def _use(self, prompts: Iterable[str]) -> None:
        """Forget prompts that do not come again."""
        for text in prompts:
            self.left[text] -= 1
        done = [text for text in self.kept if self.left[text] <= 0]
        stray = [text for text in done if text not in self.coming]
        for text in done:
            if text not in stray[-_STRAY:]:
                del self.kept[text]


def _outputs(made: Any) -> tuple[Any, ...]:
    return made if isinstance(made, tuple) else (made,)


def _row(output: torch.Tensor, row: int) -> Waiting:
    """One row in the memory of the CPU, where it waits, and the device that it is from."""
    return output[row].detach().to("cpu", copy=True), output.device


def _stacked(rows: Sequence[Waiting]) -> torch.Tensor:
    import torch

    return torch.stack([row for row, _ in rows]).to(rows[0][1])


def _alike(one: Any, other: Any) -> bool:
    """Whether both are tensors of one shape."""
    import torch

    tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return tensors and one.shape == other.shape


def _same_where(output: Any, texts: Sequence[str]) -> bool:
    """Whether equal texts have equal rows, wherever they are in the batch."""
    import torch

    if not isinstance(output, torch.Tensor) or len(output) != len(texts):
        return False
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    return all(torch.equal(output[row], output[first[text]]) for row, text in enumerate(texts))
