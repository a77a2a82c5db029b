"""A zoo's list of models in, the one that a row needs out, and where it is; or why it cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyarrow as pa

from pipeline import AigiError
from pipeline.faults import in_short
from pipeline.images.diffusion.places import check_weights
from pipeline.images.diffusion.source import DiffusersSource
from pipeline.models.hub import of_model
from pipeline.pictures.names import escapes
from pipeline.plan.specification import DiffusersSpec, ZooSpec
from pipeline.tables import IMAGES


def copy_in(folder: str, model: str) -> str:
    """Where a folder of models has a copy of one: `FOLDER/ORG/NAME`.

    Raises:
        AigiError: the name leads out of the folder.
    """
    if escapes(model):
        raise AigiError(f"{model}: no name of a model; it leads out of {folder}")
    return os.path.join(folder, *model.split("/"))


def of_member(local: DiffusersSource, member: DiffusersSpec) -> DiffusersSource:
    """How one model of a zoo runs on this machine.

    Args:
        local: how all do; its folder has a copy of each.
    """
    names = {lora.name for lora in member.loras}
    mine: dict[str, object] = {
        "loras": {name: place for name, place in local.loras.items() if name in names},
        "components": {
            name: place for name, place in local.components.items() if name in member.components
        },
    }
    if local.folder is not None:
        model = member.model if member.config is None else member.config.partition("@")[0]
        mine["folder"] = copy_in(local.folder, model)
        if member.file is not None:
            mine["file"] = copy_in(local.folder, member.model) + ".safetensors"
    return local.model_copy(update=mine)


def named(member: DiffusersSpec) -> str:
    """A model, for messages."""
    return f"{member.model}@{member.revision}"


def check_zoo(
    name: str, spec: ZooSpec, local: DiffusersSource, device: str | None = None
) -> list[str]:
    """Look at each model before any work.

    Args:
        device: type of the device that will run them; None: not known here.

    Returns: what is assumed of models, and which make no image; a line each.

    Raises:
        AigiError: no model can be used; or the way to them is broken.
    """
    said: list[str] = []
    bad: list[str] = []
    for member in spec.members:
        try:
            said += check_weights(name, member, of_member(local, member), device)
        except AigiError as error:
            if not of_model(error):
                raise
            bad.append(f"sources.{name}: {unusable(member, error)}")
    if len(bad) == len(spec.members):
        raise AigiError("\n".join([f"sources.{name}: none of its models can be used", *bad]))
    if bad:
        said += [
            f"sources.{name}: {len(bad)} of {len(spec.members)} models make no image; their rows "
            "have an error:",
            *bad,
        ]
    return list(dict.fromkeys(said))


def unusable(member: DiffusersSpec, error: BaseException) -> str:
    """That a model cannot be used, and why, in one line."""
    text = " ".join(str(error).split()) if isinstance(error, AigiError) else in_short(error)
    return f"model {named(member)} cannot be used: {text}"[:500]


def without(rows: pa.Table, why: str) -> Iterator[pa.Table]:
    """Rows of a model that cannot be used, each with the reason."""
    errors = [{"image_id": image, "error": why} for image in rows["image_id"].to_pylist()]
    yield pa.Table.from_pylist(errors, schema=IMAGES)
