"""Wrong settings: every message names the place as `--set` takes it, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from pipeline import AigiError, complaints
from pipeline.codecs.table import CODECS
from pipeline.learned.shipped import shipped
from pipeline.plan.specification import Dataset
from pipeline.settings import check, overridden
from pipeline.workflow import Workflow

LIBRARY = re.compile(
    r"Extra inputs|Value error|Assertion failed|Input (should|tag)|Field required|Unable to|"
    r"should (be|have|match)|valid (string|integer|number|boolean|tuple|dict)|\[key\]|function-"
)

BASE: dict[str, Any] = {
    "run": "x",
    "prompts": {"sources": [{"kind": "csv", "path": "a.csv", "column": "c"}]},
}

Site = tuple[str, type[BaseModel], Callable[[dict[str, Any]], dict[str, Any]]]


def message(model: type[BaseModel], data: dict[str, Any]) -> str:
    with pytest.raises(AigiError) as error:
        check(model, data, "flow.yaml")
    assert not LIBRARY.search(str(error.value)), error.value
    return str(error.value)


def sites(model: type[BaseModel], place: str, wrap: Callable[[Any], Any]) -> Iterator[Site]:
    """Every model below one, where it is, and the data that puts a mapping there."""
    yield place, model, wrap
    for name, field in model.model_fields.items():

        def here(value: Any, name: str = name) -> Any:
            return wrap({name: value})

        yield from below(field.annotation, f"{place}{name}.", here)


def below(annotation: Any, place: str, wrap: Callable[[Any], Any]) -> Iterator[Site]:
    for kind in complaints._members(annotation):
        if get_origin(kind) is tuple:
            yield from below(get_args(kind)[0], f"{place}0.", lambda value: wrap([value]))
        elif get_origin(kind) is dict:
            keys = [key for one in complaints._members(get_args(kind)[0]) for key in get_args(one)]
            key = keys[0] if keys else "a"

            def under(value: Any, key: str = key) -> Any:
                return wrap({key: value})

            yield from below(get_args(kind)[1], f"{place}{key}.", under)
        elif complaints._is_model(kind):
            tags = complaints._tags(kind)[:1]

            def tagged(value: Any, tags: list[str] = tags) -> Any:
                return wrap({"kind": tags[0], **value} if tags else value)

            yield from sites(kind, place, tagged)


SITES = [
    pytest.param(top, *site, id=f"{top.__name__}: {site[0]}{site[1].__name__}")
    for top in (Workflow, Dataset)
    for site in sites(top, "", lambda value: value)
]


def without_a_letter(name: str) -> list[str]:
    return [name[:cut] + name[cut + 1 :] for cut in range(len(name))]


@pytest.mark.parametrize(("top", "place", "model", "wrap"), SITES)
def test_a_name_without_one_of_its_letters_is_answered_with_the_name(
    top: type[BaseModel], place: str, model: type[BaseModel], wrap: Callable[[Any], Any]
) -> None:
    for name in model.model_fields:
        for wrong in without_a_letter(name):
            lacking = [one for one in model.model_fields if wrong in without_a_letter(one)]
            expected = {
                f'flow.yaml: {place}{wrong}: no such setting; did you mean "{one}"?'
                for one in lacking  # max_blak lacks a letter of max_black and of max_blank
            }
            assert expected & set(message(top, wrap({wrong: 1})).splitlines()), name


@pytest.mark.parametrize(("top", "place", "model", "wrap"), SITES)
def test_a_name_that_is_near_none_is_answered_with_all(
    top: type[BaseModel], place: str, model: type[BaseModel], wrap: Callable[[Any], Any]
) -> None:
    expected = f"{place}0: no such setting; there are {', '.join(model.model_fields)}"
    assert f"flow.yaml: {expected}" in message(top, wrap({"0": 1})).splitlines()


CASES = [
    ("missing", "plan.limit=1", "plan.dataset: needed, but not given"),
    ("int_type", "plan.seed=[]", "plan.seed: expected a whole number, found a list"),
    ("int_parsing", "plan.limit=many", 'plan.limit: expected a whole number, found "many"'),
    ("int_from_float", "plan.limit=1.5", "plan.limit: expected a whole number, found 1.5"),
    ("float_type", "split.test={}", "split.test: expected a number, found a mapping"),
    ("float_parsing", "split.test=x", 'split.test: expected a number, found "x"'),
    ("bool_type", "train.compile=[]", "train.compile: expected true or false, found a list"),
    ("bool_parsing", "train.compile=x", 'train.compile: expected true or false, found "x"'),
    ("string_type", "run=null", "run: expected text, found nothing (null)"),
    ("tuple_type", "prompts.sources=3", "prompts.sources: expected a list, found 3"),
    ("dict_type", "sources=3", "sources: expected a mapping of settings, found 3"),
    ("model_type", "plan=3", "plan: expected a mapping of settings, found 3"),
    (
        "model_attributes_type",
        "prompts.sources=[3]",
        "prompts.sources.0: expected a mapping of settings, found 3",
    ),
    ("greater_than", "plan.shard_mb=0", "plan.shard_mb: expected more than 0, found 0"),
    ("greater_than_equal", "plan.limit=0", "plan.limit: expected 1 or more, found 0"),
    ("less_than", "train.ema=1", "train.ema: expected less than 1, found 1"),
    ("less_than_equal", "split.test=2", "split.test: expected 1 or less, found 2"),
    ("multiple_of", "train.crop=65", "train.crop: expected a multiple of 64, found 65"),
    ("too_short", "prompts.sources=[]", "prompts.sources: expected 1 or more entries, found 0"),
    (
        "string_pattern_mismatch",
        "embeddings.sha256=q",
        'embeddings.sha256: expected text of the pattern ^[0-9a-f]{64}$, found "q"',
    ),
    ("value_error", "benchmark.strips={}", "benchmark.strips: give either bpp or psnr"),
    ("finite_number", "plan.limit=.inf", "plan.limit: expected a finite number, found Infinity"),
    ("extra_forbidden", "plan.limt=1", 'plan.limt: no such setting; did you mean "limit"?'),
    (
        "literal_error",
        "prompts.select.method=randm",
        'prompts.select.method: no "randm"; did you mean "random"?',
    ),
    (
        "literal_error",
        "characteristics.angles=[3]",
        "characteristics.angles.0: expected one of 0, 45, 90, 135, found 3",
    ),
    (
        "union_tag_invalid",
        "prompts.sources.0.kind=cvs",
        'prompts.sources.0.kind: no "cvs"; did you mean "csv"?',
    ),
    (
        "union_tag_invalid",
        "sources.a.kind=imprt",
        'sources.a.kind: no "imprt"; did you mean "import"?',
    ),
    (
        "union_tag_not_found",
        "alignments.models={a: {}}",
        "alignments.models.a.kind: needed, but not given; "
        "there are open_clip, blip_itm, pick_score",
    ),
    ("string_type", "prompts.sources.0.path=3", "prompts.sources.0.path: expected text, found 3"),
    (
        "string_type",
        "train.network=3",
        "train.network: expected text or a mapping of settings, found 3",
    ),
]


@pytest.mark.parametrize(("kind", "override", "expected"), CASES, ids=[case[1] for case in CASES])
def test_every_kind_of_error_is_one_english_line(kind: str, override: str, expected: str) -> None:
    data = overridden(BASE, [override])
    with pytest.raises(ValidationError) as error:
        Workflow.model_validate(data)
    assert kind in [item["type"] for item in error.value.errors()]
    found = message(Workflow, data).splitlines()
    assert [one for one in found if one == f"flow.yaml: {expected}"], found
    places = [one.split(": ")[1] for one in found]
    assert len(places) == len(set(places))


def test_every_sentence_of_the_table_is_tested() -> None:
    elsewhere = {"list_type", "too_long"}  # of files alone: tests/test_gate.py
    assert set(complaints.SENTENCES) - elsewhere <= {kind for kind, _, _ in CASES}


def test_a_wrong_split_of_a_specification_is_answered_with_the_right_one() -> None:
    data = {"sources": {"a": {"kind": "import", "splits": {"trian": {}}}}}
    expected = 'flow.yaml: sources.a.splits.trian: no "trian"; did you mean "train"?'
    assert expected in message(Dataset, data).splitlines()


@pytest.mark.parametrize("wrong", ["jpg", "JPEG"])
def test_an_unknown_codec_is_answered_with_the_nearest(wrong: str) -> None:
    found = message(Workflow, overridden(BASE, [f"benchmark.codecs=[{wrong}]"]))
    assert found == f'flow.yaml: benchmark.codecs: no codec "{wrong}"; did you mean "jpeg"?'


def test_every_codec_and_network_is_known_by_its_bare_name(tmp_path: Path) -> None:
    bare = [name for name in CODECS if name != "learned"]
    names = [*bare, *shipped(), "compressai:bmshj2018-factorized:3"]
    own = {"codec": "learned", "name": "own", "models": ["someone/network", "runs/catc-*"]}
    check(Workflow, BASE | {"benchmark": {"codecs": [*names, own]}}, str(tmp_path / "flow.yaml"))
