"""A scheduler as a specification names it in, one text for it out: the same in rows and hashes.

    own                                         what the model came with
    euler                                       a name of SCHEDULERS
    DDIMParallelScheduler                       a class of diffusers
    dpm-solver++ {"use_karras_sigmas":true}     options of diffusers, as compact JSON, sorted

No diffusers here: whether a class and its options exist is looked at where a model is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.complaints import near
from pipeline.plan.options import simple

OWN = "own"
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "dpm-solver++-singlestep": "DPMSolverSinglestepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
    "flow-heun": "FlowMatchHeunDiscreteScheduler",
    "flow-lcm": "FlowMatchLCMScheduler",
    "heun": "HeunDiscreteScheduler",
    "ipndm": "IPNDMScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2-ancestral": "KDPM2AncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "sa-solver": "SASolverScheduler",
    "tcd": "TCDScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Short names, and the class of diffusers of each; other classes are named in full."""
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*Scheduler")
_OPTION = re.compile(r"[a-z][a-z0-9_]*")
_MOST = 1000
"""Characters of the options: they are in every row."""


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of a specification.

    Attributes:
        name: `OWN`, one of `SCHEDULERS`, or a class of diffusers.
        options: arguments of the class in place of those of the model's configuration: JSON
            values, but no objects.
    """

    name: str = OWN
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str | None:
        """The class of diffusers; None: that of the model."""
        return None if self.name == OWN else SCHEDULERS.get(self.name, self.name)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name} {json.dumps(self.options, sort_keys=True, separators=(',', ':'))}"


def scheduler_of(given: object) -> Scheduler:
    """The scheduler that a specification or a row names.

    Args:
        given: a name, the text of a `Scheduler`, or a mapping of `name` and options.

    Raises:
        ValueError: it names none.
    """
    options: object = {}
    name = given
    if isinstance(given, Mapping):
        options = {key: value for key, value in given.items() if key != "name"}
        name = given.get("name", OWN)
    elif isinstance(given, str) and " " in given:
        name, _, text = given.partition(" ")
        try:
            options = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"options of {name}: not JSON: {error}") from None
    if not isinstance(name, str) or not (
        name == OWN or name in SCHEDULERS or _CLASS.fullmatch(name)
    ):
        known = [OWN, *SCHEDULERS]
        raise ValueError(f'no "{name}"; {near(str(name), known)}, or a class of diffusers')
    if not isinstance(options, dict):
        raise ValueError(f"options of {name}: expected names and values")
    for option, value in options.items():
        if not isinstance(option, str) or not _OPTION.fullmatch(option):
            raise ValueError(f"options of {name}: {option!r} is no name of an option")
        if not simple(value):
            raise ValueError(f"options of {name}: {option}: expected a number, text, or a list")
    found = Scheduler(name, options)
    if len(str(found)) > _MOST:
        raise ValueError(f"options of {name}: more than {_MOST} characters")
    return found
