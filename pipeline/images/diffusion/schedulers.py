"""A model's own scheduler and one of the specification in, the scheduler of its pipeline out."""

from __future__ import annotations

import inspect
import json
import os
from typing import Any

from pipeline import AigiError
from pipeline.complaints import near
from pipeline.plan.schedulers import OWN, SCHEDULERS, Scheduler

CONFIG = "scheduler/scheduler_config.json"


def own_of(where: str, folder: str) -> Any:
    """The scheduler that the pipeline in a folder came with.

    Raises:
        AigiError: its configuration is missing or damaged, or names no scheduler.
    """
    path = os.path.join(folder, CONFIG)
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        kind = _class(where, config["_class_name"])
        return kind.from_config(config)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise AigiError(
            f"{where}: {path}: no configuration of a scheduler ({type(error).__name__}: "
            f"{str(error)[:200]}). Copy or download the model anew."
        ) from error


def made(where: str, given: Scheduler, own: Any, steps: int) -> Any:
    """The scheduler of a specification, set up as the model's own is, but for its options.

    Args:
        where: names the setting, for errors.
        own: the scheduler of the model.
        steps: that it will take.

    Raises:
        AigiError: diffusers has no such class; it has no such option, or refuses its value or
            these steps; or it takes another kind of prediction than the model makes.
    """
    kind = type(own) if given.kind is None else _class(where, given.kind)
    if kind is type(own) and not given.options:
        return own
    _check_options(where, given, kind)
    try:
        found, trial = (kind.from_config(own.config, **given.options) for _ in range(2))
        if _flow(found) != _flow(own):
            takes = ("noise", "a flow")
            raise AigiError(
                f"{where}: {given.name} is for models that predict {takes[_flow(found)]}; this "
                f"one, which came with {type(own).__name__}, predicts {takes[_flow(own)]}. Name "
                f"{OWN}, or " + ("flow-euler." if _flow(own) else "one without flow.")
            )
        # Some options are read only here.
        trial.set_timesteps(steps, **_shift(trial))
    except AigiError:
        raise
    except Exception as error:  # whatever a scheduler does with what it is not made for
        raise AigiError(
            f"{where}: {given} with {steps} steps: diffusers refuses it: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    return found


def _class(where: str, name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise AigiError(
            f"{where}: diffusers {diffusers.__version__} has no scheduler {name}; "
            f"{near(name, list(SCHEDULERS.values()))}"
        )
    return kind


def _check_options(where: str, given: Scheduler, kind: Any) -> None:
    """Options are arguments of the class, and of the kind of their defaults."""
    arguments = dict(inspect.signature(kind.__init__).parameters)
    arguments.pop("self")
    for option, value in given.options.items():
        if option not in arguments:
            raise AigiError(
                f"{where}: {given.name} has no option {option}; {near(option, list(arguments))}"
            )
        default = arguments[option].default
        if default in (None, inspect.Parameter.empty) or value is None:
            continue
        same = isinstance(value, bool) == isinstance(default, bool)
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if not same or (number and not isinstance(value, int | float)):
            raise AigiError(
                f"{where}: {given.name}: {option}: {value!r}; expected a value like {default!r}"
            )


def _flow(scheduler: Any) -> bool:
    """Whether it takes a velocity from noise to image (flow matching), and no noise."""
    config = scheduler.config
    named = type(scheduler).__name__.startswith("Flow")
    prediction = str(config.get("prediction_type", ""))
    return bool(named or config.get("use_flow_sigmas") or prediction.startswith("flow"))


def _shift(scheduler: Any) -> dict[str, float]:
    """What flow schedulers ask for beside the steps, where they move with the image's size."""
    return {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
