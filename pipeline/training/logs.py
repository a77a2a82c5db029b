"""A run with codecs in training in, the contents of their logs out.

No torch here, so that a command that only reads a run answers at once.
"""

from __future__ import annotations

import csv
import math
import posixpath
from dataclasses import dataclass

from pipeline import AigiError
from pipeline.store import RUN_WORKFLOW, Store

FOLDER = "train"


@dataclass(frozen=True)
class Log:
    """The logs of one codec; numbers that were left empty are missing.

    Attributes:
        name: its folder: network, distortion and λ.
        steps: how many are planned; None: the run does not record it.
        curve: step, loss, bpp, psnr, learning_rate and seconds, means since the row before.
        validation: step, quality, loss, bpp, bpp_without_prompt, psnr, ms_ssim and pictures, of
            real files; a row for each quality of the network.
        rates: step, quality, lambda, crops, loss, y_bpp, z_bpp, psnr, calibration and
            gradient_norm, means of the crops of each quality since the row before.
    """

    name: str
    steps: int | None
    curve: list[dict[str, float]]
    validation: list[dict[str, float]]
    rates: list[dict[str, float]]

    def by_quality(self, rows: list[dict[str, float]]) -> dict[str, list[dict[str, float]]]:
        """Rows of each quality, by the codec's name and, where there are several, the quality."""
        found: dict[float, list[dict[str, float]]] = {}
        for row in rows:
            found.setdefault(row.get("quality", 1), []).append(row)
        which = ", quality {:.0f}" if len(found) > 1 else ""
        return {self.name + which.format(quality): rows for quality, rows in found.items()}

    @property
    def step(self) -> int:
        """The last step in the logs."""
        return int(max(rows[-1]["step"] for rows in (self.curve, self.validation) if rows))

    @property
    def progress(self) -> str:
        """The last step, and the number of planned steps."""
        return f"{self.step:,}" + ("" if self.steps is None else f" of {self.steps:,}")

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self.curve[-1]["seconds"] if self.curve else 0.0


def logs(store: Store) -> list[Log]:
    """Logs of all codecs of a run that have any, by name.

    Raises:
        AigiError: a log contains something other than numbers.
    """
    if not store.fs.isdir(store.path(FOLDER)):
        return []
    settings = (store.read_json(RUN_WORKFLOW) or {}).get("train")
    steps = settings.get("steps") if isinstance(settings, dict) else None
    found = []
    for path in sorted(store.fs.ls(store.path(FOLDER), detail=False)):
        name = posixpath.basename(path.rstrip("/"))
        curve, validation, rates = (
            _numbers(store, name, f"{kind}.csv") for kind in ("curve", "validation", "rates")
        )
        if curve or validation:
            known = steps if isinstance(steps, int) else None
            found.append(Log(name, known, curve, validation, rates))
    return found


def _numbers(store: Store, *parts: str) -> list[dict[str, float]]:
    try:
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in store.read_csv(FOLDER, *parts)
        ]
        if any(not math.isfinite(row["step"]) for row in rows):
            raise ValueError("a step is no number")
        return rows
    except (TypeError, ValueError, KeyError, csv.Error) as error:
        raise AigiError(f"{store.path(FOLDER, *parts)}: not a log of training: {error}") from None
