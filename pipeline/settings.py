"""YAML and `KEY=VALUE` in, checked and frozen settings out; the base of every section.

Settings contain parameters only. Unknown keys are errors. Relative paths are taken from the folder
of the YAML file. `--set a.b=c` replaces one value; a relative path given that way is taken from the
current folder, as a shell user expects.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from pipeline import AigiError, complaints, gate
from pipeline.outside import opened
from pipeline.shown import public_url

Split = Literal["train", "validation", "test"]


SPLITS: tuple[Split, ...] = ("train", "validation", "test")


M = TypeVar("M", bound=BaseModel)


Share = Annotated[float, Field(ge=0, le=1)]


Count = Annotated[int, Field(ge=1)]


class _FromCommandLine(str):
    """A `--set` value: relative paths in it start at the current folder."""


@dataclass(frozen=True)
class Shipped:
    """In place of the folder of a workflow that came with aigi and was given by its name.

    Files that came with it are found there. All else, such as run directories and captions, is
    looked for from the current folder, as if that was the root of a checkout.

    Attributes:
        root: folder that contains `workflows/`, `manifests/` and `prompts/`.
    """

    root: Path

    def __fspath__(self) -> str:
        return str(self.root / "workflows")

    def __truediv__(self, path: Path) -> Path:
        if path.is_absolute():
            return path
        inside = Path(os.path.normpath(Path("workflows") / path))
        if (self.root / inside).is_file():
            return self.root / inside
        return Path.cwd().joinpath(*(part for part in inside.parts if part != ".."))


Base = Path | Shipped
"""Where relative paths of a file of settings start."""


def located(value: str, base: Base | None) -> str:
    """The location that `value` means in a workflow file in the folder `base`."""
    if "://" in value:
        return value
    start = Path.cwd() if base is None or isinstance(value, _FromCommandLine) else base
    try:
        return str((start / Path(value).expanduser()).resolve())
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{value}: no such place: {error}") from None


def _locate(value: object, info: ValidationInfo) -> object:
    return located(value, (info.context or {}).get("base")) if isinstance(value, str) else value


Location = Annotated[str, BeforeValidator(_locate)]
"""A local path (made absolute) or an fsspec URL (`s3://…`, kept as written)."""


def folder_or_hub(value: str, base: Base | None) -> str:
    """A folder where there is one or a path is written as one; else a Hub id as it stands."""
    place = located(value, base)
    local = value.startswith((".", "/", "~")) or "*" in value or Path(place).exists()
    return place if local else str(value)


def _locate_model(value: object, info: ValidationInfo) -> object:
    return (
        folder_or_hub(value, (info.context or {}).get("base")) if isinstance(value, str) else value
    )


Model = Annotated[str, BeforeValidator(_locate_model)]
"""A folder (made absolute), or a Hub id: ORG/NAME, and @REVISION behind it if one is wanted."""


class Settings(BaseModel):
    """Base of every section: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Loader(yaml.SafeLoader):
    """YAML without silent loss: a key that is given twice in one mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> Mapping[str, Any]:
    """Read a YAML mapping from a local path or fsspec URL.

    Raises:
        AigiError: no such file, not readable, not YAML, not a mapping, or a key that is given
            twice.
    """
    try:
        with opened(path) as file:
            content: bytes = file.read()
        if public_url(path).endswith(".json"):
            # A manifest is JSON, and of a size for which YAML takes seconds.
            return gate.parse(content, path, "Get this file again, or correct it.")
        data = yaml.load(content.decode(), _Loader)
    except FileNotFoundError:
        raise AigiError(f"{path}: no such file") from None
    except RecursionError:
        raise AigiError(f"{path}: mappings or lists in one another, too deep") from None
    except (yaml.YAMLError, ValueError) as error:
        raise AigiError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise AigiError(f"{path}: expected a mapping of sections, found {type(data).__name__}")
    return data


def folder_of(path: str) -> Path | None:
    """Where relative paths in a file start; None: it is at a URL."""
    return None if "://" in path else Path(path).resolve().parent


def check(model: type[M], data: Mapping[str, Any], path: str, base: Base | None = None) -> M:
    """Check `data`, read from `path`, against a pydantic model.

    Args:
        base: where relative paths start; None: at the file.

    Raises:
        AigiError: names the file and every wrong field.
    """
    base = base or folder_of(path)
    try:
        return model.model_validate(data, context={"base": base})
    except ValidationError as error:
        lines = [f"{path}: {line}" for line in complaints.lines(model, error)]
        raise AigiError("\n".join(lines)) from None


def _from_command_line(value: Any) -> Any:
    """A `--set` value whose texts, also those in lists and mappings, are known to be from there."""
    match value:
        case str():
            return _FromCommandLine(value)
        case list():
            return [_from_command_line(item) for item in value]
        case dict():
            return {key: _from_command_line(item) for key, item in value.items()}
    return value


def _with_override(data: Any, override: str) -> Any:
    """Return `data` with one `a.b=value` (value in YAML) replaced; missing sections are made."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise AigiError(f"--set {override}: expected KEY=VALUE, for example plan.limit=8")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise AigiError(f"--set {override}: the value is not YAML: {error}") from error
    value = _from_command_line(value)

    def replaced(node: Any, keys: list[str]) -> Any:
        if not keys:
            return value
        key, rest = keys[0], keys[1:]
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise AigiError(
                    f"--set {override}: {key!r} is not an index below {len(node)} of the list"
                )
            return [replaced(item, rest) if i == int(key) else item for i, item in enumerate(node)]
        if node is not None and not isinstance(node, dict):
            raise AigiError(f"--set {override}: {key!r} is below a plain value")
        return {**(node or {}), key: replaced((node or {}).get(key), rest)}

    return replaced(data, dotted.split("."))


def read(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read a workflow file and apply `KEY=VALUE` overrides, unchecked.

    Raises:
        AigiError: the file cannot be read, or an override has no place in it.
    """
    return overridden(read_yaml(str(path)), overrides)


def overridden(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """An unchecked workflow with `KEY=VALUE` overrides applied."""
    found: Any = data
    for override in overrides:
        found = _with_override(found, override)
    return dict(found)
