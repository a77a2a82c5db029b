"""A pydantic error in; the setting that a user would type, and what is wrong with it, out."""

from __future__ import annotations

import difflib
import json
import os
import re
import types
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

_WHOLE = "expected a whole number, found {found}"
_NUMBER = "expected a number, found {found}"
_TRUTH = "expected true or false, found {found}"
_LIST = "expected a list, found {found}"
_MAPPING = "expected a mapping of settings, found {found}"

SENTENCES = {
    "missing": "needed, but not given",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "bool_type": _TRUTH,
    "bool_parsing": _TRUTH,
    "string_type": "expected text, found {found}",
    "tuple_type": _LIST,
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "greater_than": "expected more than {gt}, found {found}",
    "greater_than_equal": "expected {ge} or more, found {found}",
    "less_than": "expected less than {lt}, found {found}",
    "less_than_equal": "expected {le} or less, found {found}",
    "multiple_of": "expected a multiple of {multiple_of}, found {found}",
    "list_type": _LIST,
    "too_long": "expected {max_length} or fewer entries, found {actual_length}",
    "too_short": "expected {min_length} or more entries, found {actual_length}",
    "string_pattern_mismatch": "expected text of the pattern {pattern}, found {found}",
    "value_error": "{error}",
}
"""Sentences by pydantic error type, but for wrong names, which need the names that exist."""


def near(name: object, names: Iterable[object]) -> str:
    """What to write instead of a wrong name: the nearest one, or where none is near, all."""
    known = {str(one).lower(): str(one) for one in names}
    found = difflib.get_close_matches(str(name).lower(), known, n=1)
    return (
        f'did you mean "{known[found[0]]}"?' if found else f"there are {', '.join(known.values())}"
    )


def hint(name: object, names: Iterable[object]) -> str:
    """The nearest name, for a message that lists all; empty: none is near."""
    found = near(name, names)
    return f"; {found}" if found.startswith("did") else ""


_ENTRIES = 10_000
"""Names of a folder that are compared with a wrong one."""


def near_path(path: str) -> str | None:
    """The path that may be meant where there is none on this machine; None: none is near."""
    where = Path(path)
    while where != where.parent and not where.parent.is_dir():
        where = where.parent
    try:
        names = [one.name for one in islice(os.scandir(where.parent), _ENTRIES)]
    except OSError:
        return None
    suffix = where.suffix
    # By what is before equal endings, which would make every name alike.
    stems = {Path(name).stem: name for name in names if Path(name).suffix == suffix}
    found = difflib.get_close_matches(where.stem, stems, n=1, cutoff=0.7)
    other = found or difflib.get_close_matches(where.name, names, n=1, cutoff=0.8)
    if not other:
        return None
    meant = where.with_name(stems[found[0]] if found else other[0])
    rest = Path(path).relative_to(where) if Path(path) != where else Path()
    return str(meant / rest) if (meant / rest).exists() else str(meant)


def lines(model: type[BaseModel], error: ValidationError, noun: str = "setting") -> list[str]:
    """`SETTING: what is wrong`, one line for each wrong setting.

    Args:
        noun: what an unknown key is called.
    """
    found: dict[str, list[str]] = {}
    items = error.errors()
    for item in items:
        # A list with a wrong entry is also called too short.
        inside = [one for one in items if one["loc"][: len(item["loc"])] == item["loc"]]
        if item["type"] != "too_short" or len(inside) == 1:
            place, text = _complaint(model, dict(item), noun)
            found.setdefault(place, []).append(text)
    return [
        f"{place}: {_joined(texts)}" if place else _joined(texts) for place, texts in found.items()
    ]


def _joined(texts: list[str]) -> str:
    """One sentence of those that the members of a union have for the same value."""
    wanted = [text.removeprefix("expected ").partition(", found ") for text in dict.fromkeys(texts)]
    if len(wanted) == 1 or not all(text.startswith("expected ") for text in texts):
        return "; ".join(dict.fromkeys(texts))
    return f"expected {' or '.join(head for head, _, _ in wanted)}, found {wanted[0][2]}"


def _complaint(model: type[BaseModel], item: dict[str, Any], noun: str) -> tuple[str, str]:
    place, owner, kinds = _walk(model, item["loc"])
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        fields = owner.model_fields if owner else ()
        text = f"no such {noun}; {near(place[-1], fields)}"
    elif kind == "literal_error":
        choices = [one for literal in kinds for one in get_args(literal)]
        text = _choice(item["input"], choices)
    elif kind.startswith("union_tag_"):
        place = [*place, str(context["discriminator"]).strip("'_()")]
        tags = [tag for member in kinds for tag in _tags(member)]
        text = _choice(context["tag"], tags) if "tag" in context else _needed(tags)
    elif kind in SENTENCES:
        values = {
            key: f"{one:g}" if isinstance(one, float) else one for key, one in context.items()
        }
        text = SENTENCES[kind].format(found=shown(item["input"]), **values)
    else:
        text = re.sub("^(Value error|Assertion failed), ", "", item["msg"])
        text = re.sub("^(Input|Value|[A-Z][a-z]+) should (be|have) ", "expected ", text)
        text = f"{text}, found {shown(item['input'])}"
    return ".".join(place), text


def _choice(value: object, choices: list[Any]) -> str:
    if isinstance(value, str):
        return f'no "{value}"; {near(value, choices)}'
    return f"expected one of {', '.join(map(str, choices))}, found {shown(value)}"


def _needed(choices: list[Any]) -> str:
    return f"needed, but not given; there are {', '.join(map(str, choices))}"


def shown(value: object) -> str:
    """A wrong value in a message: short, and in one line."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing (null)"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, null left out."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [one for arg in get_args(annotation) for one in _members(arg)]
    return [] if annotation is type(None) else [annotation]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _tags(member: Any) -> list[str]:
    """The values of `kind` that mean this member of a union."""
    field = member.model_fields.get("kind") if _is_model(member) else None
    return list(get_args(field.annotation)) if field else []


def _is_plain(member: Any, label: str) -> bool:
    """Whether pydantic's `str` or `dict[str,any]` means this member of a union."""
    return label.partition("[")[0] == getattr(get_origin(member) or member, "__name__", "")


def _walk(
    model: type[BaseModel], loc: tuple[int | str, ...]
) -> tuple[list[str], type[BaseModel] | None, list[Any]]:
    """The setting that an error's location means, the model it is in, and what may be there.

    In a location, the name of the chosen member follows a union, and `[key]` a wrong key; nobody
    types these.
    """
    place: list[str] = []
    owner: type[BaseModel] | None = None
    mapping: Any = None
    kinds: list[Any] = [model]
    for part in loc:
        if len(kinds) > 1:
            kinds = [one for one in kinds if part in _tags(one) or _is_plain(one, str(part))]
            continue
        if part == "[key]" and mapping is not None:
            kinds = _members(get_args(mapping)[0])
            continue
        place.append(str(part))
        kind = kinds[0] if kinds else None
        owner = kind if _is_model(kind) else None
        mapping = kind if get_origin(kind) is dict else None
        if owner:
            field = owner.model_fields.get(str(part))
            kinds = _members(field.annotation) if field else []
        elif mapping is not None:
            kinds = _members(get_args(mapping)[1])
        else:
            kinds = _members(get_args(kind)[0]) if get_origin(kind) in (tuple, list) else []
    return place, owner, [one for one in kinds if get_origin(one) is Literal or _is_model(one)]
