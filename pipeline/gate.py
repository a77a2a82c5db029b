"""JSON that others may have written in, checked records out; or one line: file, field, what to do.

A manifest, the state files of a run and the configuration of a codec come from other machines,
other versions and other people. None of them is believed before it is parsed and checked here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline import AigiError, complaints

DEEPEST = 40
"""Levels of objects and lists; no file of ours has ten."""
_LONGEST = 120, 400  # characters of a field's name in a message, and of a message


def matching(pattern: str, meaning: str) -> AfterValidator:
    """A check that a whole text is of a pattern; `meaning` is what a person would call it."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"expected {meaning}, found {complaints.shown(text)}")
        return text

    return AfterValidator(check)


Number = Annotated[int, Field(ge=0, le=2**63 - 1)]
Sha256 = Annotated[str, matching("[0-9a-f]{64}", "a sha256, 64 digits 0-9 and a-f")]


class Checked(BaseModel):
    """Base of what a file of ours contains: no value is converted, and an unknown key is an error.

    Settings that a user types are `pipeline.settings.Settings`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


R = TypeVar("R", bound=BaseModel)


class _Twice(ValueError):
    """A key that one object has twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return found


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def parse(data: bytes | str, where: str, remedy: str) -> dict[str, Any]:
    """A JSON object: every key once, every number finite, every text valid Unicode.

    Args:
        where: the file, for the message.
        remedy: what to do if it is damaged: a sentence.

    Raises:
        AigiError: in one line; it is something else.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise refused(where, "", "objects or lists in one another, too deep", remedy) from None
    except UnicodeDecodeError as error:
        raise refused(where, "", f"not JSON: invalid UTF-8 at byte {error.start}", remedy) from None
    except _Twice as error:
        raise refused(where, str(error), "this key is given twice", remedy) from None
    except ValueError as error:
        # Of a long number, Python advises on its own limits.
        why = "a number of too many digits" if "integer string" in str(error) else error
        raise refused(where, "", f"not JSON: {why}", remedy) from None
    if not isinstance(value, dict):
        raise refused(where, "", f"expected an object, found {complaints.shown(value)}", remedy)
    if (problem := _problem(value, 1)) is not None:
        place, what = problem
        raise refused(where, ".".join(reversed(place)), what, remedy)
    return value


def _problem(value: Any, depth: int) -> tuple[list[str], str] | None:
    """The place, innermost key first, and the problem of the first value that cannot be used."""
    if isinstance(value, str):
        return None if value.isascii() or _encodes(value) else ([], "a half of a character")
    if isinstance(value, float):
        return None if math.isfinite(value) else ([], "a number that is too large")
    if not isinstance(value, dict | list):
        return None
    if depth > DEEPEST:
        return [], f"more than {DEEPEST} objects or lists in one another"
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(key, str) and not key.isascii() and not _encodes(key):
            return [str(key)], "a half of a character in a key"
        if (found := _problem(item, depth + 1)) is not None:
            found[0].append(str(key))
            return found
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check(
    model: type[R],
    data: object,
    where: str,
    remedy: str,
    within: str = "",
    context: Mapping[str, Any] | None = None,
) -> R:
    """Check an object of a file against a pydantic model.

    Args:
        where, remedy: as for `parse`.
        within: dotted name of the object in the file.
        context: for validators.

    Raises:
        AigiError: in one line; it names the first wrong field, and how many more there are.
    """
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        lines = complaints.lines(model, error, "entry")
    except (RecursionError, OverflowError, ArithmeticError) as error:
        lines = [f"cannot be used ({type(error).__name__})"]
    more = f" ({len(lines) - 1} more like this)" if len(lines) > 1 else ""
    place, colon, text = lines[0].partition(": ")
    if not colon:
        place, text = "", place
    text = text.replace("a mapping of settings", "an object")
    raise refused(where, ".".join(filter(None, (within, place))), text + more, remedy)


def refused(where: str, field: str, problem: str, remedy: str) -> AigiError:
    """The error about one field of a file, in one line that can be printed whatever it contains."""
    name, message = _LONGEST
    field = field if len(field) <= name else f"{field[:name]}…"
    what = ": ".join(filter(None, (field, problem)))
    what = what if len(what) <= message else f"{what[:message]}…"
    what = "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in what)
    return AigiError(f"{where}: {what}. {remedy}")
