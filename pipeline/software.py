"""What runs here in, its files and versions out; and what of them another machine has otherwise.

Workers compare themselves by these functions, which travel to them as they are. So this module uses
the standard library alone: the machine that it looks at may have another aigi, or none.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    "accelerate",
    "datasets",
    "diffusers",
    "huggingface_hub",
    "numpy",
    "open_clip_torch",
    "pillow",
    "pyarrow",
    "ray",
    "torch",
    "transformers",
)
"""Libraries whose versions a manifest states."""
WORKING = (
    *LIBRARIES,
    "constriction",
    "fsspec",
    "ftfy",
    "imageio-ffmpeg",
    "peft",
    "pillow-jxl-plugin",
    "regex",
    "safetensors",
    "scipy",
    "tokenizers",
    "torchmetrics",
    "torchvision",
)
"""Libraries of which all workers of a run must have the same version."""
_SHOWN = 3


def versions_of(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of those of these libraries that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a release."""
    return versions_of(LIBRARIES)


def git_commit() -> str | None:
    """Commit of the checkout that runs, `+changes` where it is not clean; None outside one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True
        )
        changes = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def installed() -> dict[str, str]:
    """What decides the bytes that a worker makes.

    Returns:
        The versions of Python and of the libraries by name, and the sha256 of every code and data
        file of the package that can be imported here by path, for example `pipeline/pixels.py`.
    """
    found = {"Python": platform.python_version(), **versions_of(WORKING)}
    package = importlib.util.find_spec("pipeline")
    for root in (package.submodule_search_locations or ()) if package else ():
        for folder, folders, names in os.walk(root):
            # `data` is in wheels only: what a driver starts from, which no worker reads.
            folders[:] = [name for name in folders if name not in ("__pycache__", "data")]
            for name in names:
                if name.endswith((".py", ".json", ".csv", ".txt", ".safetensors")):
                    path = os.path.join(folder, name)
                    place = "pipeline/" + os.path.relpath(path, root).replace(os.sep, "/")
                    with open(path, "rb") as file:
                        found[place] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """What differs between two machines, in one line; nothing where they are the same.

    Args:
        here: `installed` of the machine of whoever reads the line.
        there: that of the other one.
    """
    versions, files = [], []
    for name in sorted({**here, **there}):
        mine, other = here.get(name), there.get(name)
        if mine == other:
            continue
        if "/" not in name:
            versions.append(f"{name} {mine or 'missing'} here, {other or 'missing'} there")
        elif mine and other:
            files.append(f"{name} differs")
        else:
            files.append(f"{name} is {'missing there' if mine else 'there only'}")
    if not any("/" in name for name in there):
        files = ["aigi is not installed there"]
    found = [*files, *versions]
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more
