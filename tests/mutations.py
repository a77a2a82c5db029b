"""Seeded damage to files of ours: JSON with another structure, and bytes that were changed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

DEEP: Any = "deep"
"""Stands for lists in lists, which `json` itself could not write."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, "", " ", "x", "0",
    "../../outside", "/etc/passwd", "a/../../outside", "a\\..\\outside", "C:\\outside", "a\0b",
    "\ud800", "\x1b[31mred", "two\nlines", "~nobody-here/x", "hf://datasets/a/b", "file:///etc",
    "x" * 5000, "a" * 64, "0" * 64, [], {}, [None], [[[[]]]], {"": ""}, {"a": {"b": "c"}},
    {"kind": "pku"}, ["../outside"], DEEP,
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to every value in `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in inner:
        found.append((*at, key))
        if isinstance(item, dict | list):
            found += places(item, (*at, key))
    return found


def _holder(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        value = value[key]
    return value


def _mutated(value: Any, draw: random.Random) -> Any:
    """A copy with one change somewhere; every level of depth is as likely."""
    value = copy.deepcopy(value)
    known = places(value)
    if not known:
        return value
    depth = draw.choice(sorted({len(place) for place in known}))
    place = draw.choice([place for place in known if len(place) == depth])
    holder, key = _holder(value, place), place[-1]
    what = draw.choice(("replace", "replace", "replace", "remove", "add", "swap", "near", "rename"))
    if what == "replace":
        holder[key] = copy.deepcopy(draw.choice(VALUES))
    elif what == "remove":
        del holder[key]
    elif what == "add" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(draw.choice([*VALUES, holder[key]])))
    elif what == "add":
        name = draw.choice(("a", "", "ray", "path", "benchmark", "__class__", "\x1b[1m", "kind"))
        holder[name] = copy.deepcopy(draw.choice(VALUES))
    elif what == "swap":
        other = draw.choice(known)
        try:
            there = _holder(value, other)
            holder[key], there[other[-1]] = there[other[-1]], holder[key]
            json.dumps(value)
        except (KeyError, IndexError, TypeError, ValueError):  # one held the other
            return _mutated(_without(value, draw), draw)
    elif what == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    else:
        holder[key] = _near(holder[key], draw)
    return value


def _without(value: Any, draw: random.Random) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (ValueError, RecursionError):
        return {"files": draw.random()}


def _near(value: Any, draw: random.Random) -> Any:
    """A value of the same type that is a little another one."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + draw.choice((-1, 1, 1000))
    if isinstance(value, str):
        at = draw.randrange(len(value) + 1)
        return value[:at] + draw.choice("0aZ/.-_ é") + value[at + draw.randrange(2) :]
    return list(reversed(value)) if isinstance(value, list) else dict(list(value.items())[1:])


def json_bytes(value: Any, draw: random.Random) -> bytes:
    """A JSON file with one to three changes of structure, or with changed bytes."""
    if draw.random() < 0.25:
        return changed_bytes(json.dumps(value, indent=1).encode(), draw)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        value = _mutated(value, draw)
    text = json.dumps(value)
    return text.replace('"deep"', "[" * 3000 + "]" * 3000).encode()


def changed_bytes(data: bytes, draw: random.Random) -> bytes:
    """Bytes that were flipped, cut, doubled, or written over."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(changed)) if changed else 0
        what = draw.choice(("flip", "flip", "flip", "cut", "double", "number", "noise"))
        if what == "flip" and changed:
            changed[at] ^= 1 << draw.randrange(8)
        elif what == "cut":
            del changed[at : at + draw.choice((1, 10, len(changed)))]
        elif what == "double":
            changed[at:at] = changed[at : at + draw.choice((1, 30, 300))]
        elif what == "number":
            changed[at : at + 4] = draw.choice((b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"))
        else:
            changed[at:at] = draw.randbytes(draw.choice((1, 4, 16)))
    return bytes(changed)
