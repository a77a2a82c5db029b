"""The scheduler of a pipeline: the model's own, or one that fits it, with options that it has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest

from pipeline import AigiError
from pipeline.images.diffusion.schedulers import CONFIG, made, own_of
from pipeline.plan.schedulers import SCHEDULERS, scheduler_of

NOISE = diffusers.DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1)
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def test_own_is_what_the_model_came_with() -> None:
    assert made("x", scheduler_of("own"), NOISE, 20) is NOISE
    assert made("x", scheduler_of("ddim"), NOISE, 20) is NOISE
    trailing = made("x", scheduler_of({"timestep_spacing": "trailing"}), NOISE, 20)
    assert type(trailing) is type(NOISE)
    assert trailing.config.timestep_spacing == "trailing" and trailing.config.steps_offset == 1


@pytest.mark.parametrize("name", [*SCHEDULERS, "DDIMParallelScheduler"])
def test_each_fits_models_of_its_kind(name: str) -> None:
    flow = name.startswith("flow")
    mine, other = (FLOW, NOISE) if flow else (NOISE, FLOW)
    found = made("x", scheduler_of(name), mine, 20)
    assert type(found).__name__ == SCHEDULERS.get(name, name)
    said = f"x: {name} is for models that predict {'a flow' if flow else 'noise'}; "
    with pytest.raises(AigiError, match=re.escape(said)):
        made("x", scheduler_of(name), other, 20)


def test_a_solver_takes_a_flow_by_its_options() -> None:
    options = {"name": "unipc", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    assert made("x", scheduler_of(options), FLOW, 20).config.use_flow_sigmas


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("NoSuchScheduler", {}, r"x: diffusers [\d.]+ has no scheduler NoSuchScheduler; "),
        ("FrozenScheduler", {}, "has no scheduler"),
        ("euler", {"use_karas_sigmas": True}, 'no option use_karas_sigmas; did you mean "use_kar'),
        ("euler", {"use_karras_sigmas": "yes"}, "sigmas: 'yes'; expected a value like False"),
        ("euler", {"beta_end": "big"}, "beta_end: 'big'; expected a value like 0.02"),
        ("euler", {"beta_end": True}, "beta_end: True; expected"),
        ("euler", {"beta_schedule": "x"}, "diffusers refuses it: NotImplementedError"),
        ("euler", {"timestep_spacing": "x"}, "with 20 steps: diffusers refuses it: ValueError"),
        ("euler", {"self": 1}, "no option self"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(AigiError, match=said):
        made("x", scheduler_of({"name": name, **options}), NOISE, 20)


def test_a_shift_that_moves_with_the_size_is_not_lost() -> None:
    moving = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    assert made("x", scheduler_of("flow-lcm"), moving, 20).config.use_dynamic_shifting
    with pytest.raises(AigiError, match="flow-heun with 20 steps: diffusers refuses it"):
        made("x", scheduler_of("flow-heun"), moving, 20)


def test_steps_that_a_scheduler_cannot_take_are_named() -> None:
    with pytest.raises(AigiError, match=r"pndm with 2 steps: diffusers refuses it"):
        made("x", scheduler_of("pndm"), NOISE, 2)


def test_damaged_configurations_are_named(tmp_path: Path) -> None:
    file = tmp_path / CONFIG
    file.parent.mkdir()
    damaged = ["", "[]", "{}", '{"_class_name": "No"}', '{"_class_name": 3}', "[" * 9999]
    for text in damaged:
        file.write_text(text)
        with pytest.raises(AigiError, match=r"^x: ") as error:
            own_of("x", str(tmp_path))
        assert "\n" not in str(error.value)
    NOISE.save_config(file.parent)
    assert own_of("x", str(tmp_path)).config.steps_offset == 1
    file.unlink()
    with pytest.raises(AigiError, match=r"scheduler_config\.json: no configuration of a scheduler"):
        own_of("x", str(tmp_path))
