"""A scheduler has one text, however it was written; what names none is answered with near names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline.plan import specification
from pipeline.plan.schedulers import SCHEDULERS, Scheduler, scheduler_of
from tests.conftest import ROOT

VALUES = st.recursive(
    st.booleans() | st.integers(-1000, 1000) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.none(),
    lambda values: st.lists(values, max_size=3),
    max_leaves=3,
)  # fmt: skip


def test_every_name_is_a_scheduler_of_diffusers() -> None:
    import diffusers

    for name, kind in SCHEDULERS.items():
        assert issubclass(getattr(diffusers, kind), diffusers.SchedulerMixin), name


@given(
    st.sampled_from(["own", *SCHEDULERS, "DDIMParallelScheduler"]),
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True), VALUES, max_size=3),
)
def test_one_text_for_each(name: str, options: dict[str, Any]) -> None:
    options.pop("name", None)
    try:
        found = scheduler_of({"name": name, **options})
    except ValueError as error:
        assert "expected a number" in str(error) or "characters" in str(error)
        return
    assert found == Scheduler(name, options)
    again = scheduler_of(str(found))
    assert (again, str(again)) == (found, str(found))
    turned = dict(reversed(list(options.items())))
    assert str(scheduler_of({**turned, "name": name})) == str(found)
    assert str(found).isprintable() and ("\n" not in str(found))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("eular", r'no "eular"; did you mean "euler"\?, or a class of diffusers'),
        ("__import__Scheduler", "no "),
        ("euler {", "options of euler: not JSON"),
        ("euler []", "options of euler: expected names and values"),
        ('euler {"A b":1}', "'A b' is no name of an option"),
        ('euler {"a":{"b":1}}', "a: expected a number, text, or a list"),
        ('euler {"a":NaN}', "a: expected a number, text, or a list"),
        ('euler {"a":' + "[" * 5000, "not JSON"),
        ({"use_karras_sigmas": True, "name": 3}, 'no "3"'),
        ({"name": "euler", "a": "x" * 2000}, "more than 1000 characters"),
        (None, 'no "None"'),
    ],
)
def test_what_names_none_is_refused(given: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scheduler_of(given)


def test_a_specification_takes_names_options_or_nothing(tmp_path: Any) -> None:
    text = (ROOT / "manifests" / "demo.yaml").read_text()
    line = next(line for line in text.splitlines() if line.strip().startswith("scheduler:"))
    indent = line[: len(line) - len(line.lstrip())]

    def loaded(new: str) -> str:
        (tmp_path / "spec.yaml").write_text(text.replace(f"{line}\n", new))
        sources = specification.load(str(tmp_path / "spec.yaml")).sources
        found = next(s for s in sources.values() if isinstance(s, specification.DiffusersSpec))
        # As a manifest records it, too.
        again = specification.DiffusersSpec.model_validate(found.model_dump(mode="json"))
        assert again == found
        return found.scheduler

    assert loaded("") == "own"
    assert loaded(f"{indent}scheduler: unipc\n") == "unipc"
    options = f"{indent}scheduler: {{timestep_spacing: trailing, name: euler, steps_offset: 1}}\n"
    assert loaded(options) == 'euler {"steps_offset":1,"timestep_spacing":"trailing"}'
    with pytest.raises(AigiError, match=r'scheduler: no "unipcc"; did you mean "unipc"'):
        loaded(f"{indent}scheduler: unipcc\n")
