"""Weights, averages and optimisers in, one file that appears whole or not at all out, and back.

A checkpoint is one safetensors file; its metadata contains everything that is not a tensor. Pickle,
which could run code, is not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import AigiError
from pipeline.files import replaced

KEPT = 2
_NAME = re.compile(r"state-(\d{8})\.safetensors")


def path_of(folder: Path, step: int) -> Path:
    """The file of the checkpoint after `step` steps."""
    return folder / f"state-{step:08d}.safetensors"


def found(folder: Path) -> list[Path]:
    """All checkpoints, the newest last."""
    return sorted(path for path in folder.glob("state-*") if _NAME.fullmatch(path.name))


def flatten(optimizer: torch.optim.Optimizer, names: list[str], prefix: str) -> dict[str, Tensor]:
    """State tensors of an optimiser (float32, as the parameters), by prefix, key and name.

    Each has the shape of its parameter, but the numbers of steps, which are scalars; any finite
    values.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{key}.{names[index]}": value
        for index, values in state.items()
        for key, value in values.items()
    }


def restore(
    optimizer: torch.optim.Optimizer, names: list[str], prefix: str, tensors: Mapping[str, Tensor]
) -> None:
    """Give an optimiser the state that `flatten` returned.

    Args:
        tensors: float32, shape of each parameter or scalar, finite, by `PREFIX.KEY.NAME`; those of
            other prefixes are left alone.
    """
    number = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            _, field, name = key.split(".", 2)
            state.setdefault(number[name], {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a checkpoint, then remove all but the newest `KEPT`.

    Args:
        tensors: by name, of any shape, any dtype and any values: kept bit by bit.
        facts: all else, as JSON knows it.
    """
    from safetensors.torch import save_file

    final = path_of(folder, step)
    held = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    with replaced(final) as part:
        save_file(held, part, {"aigi": json.dumps({**facts, "step": step})})
    for old in found(folder)[:-KEPT]:
        old.unlink()


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts that `save` was given, and the step.

    Tensors are on the CPU, of any shape, any dtype and any values: those that they had.

    Raises:
        AigiError: the file is damaged.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["aigi"])


def facts(path: Path) -> dict[str, Any]:
    """The facts and the step alone, of which no tensor needs to be read.

    Raises:
        AigiError: the file is damaged.
    """
    with _opened(path) as file:
        return dict(json.loads(file.metadata()["aigi"]))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise AigiError(
            f"{path}: damaged ({error}). Delete it: training resumes from the checkpoint before."
        ) from error
