"""A trained codec in, its folder in the package out: how the codecs that come with aigi got there.

python -m pipeline.learned.export export NAME RUN/train/FIRST_PART … RUN/train/LAST_PART
python -m pipeline.learned.export fitted NAME IMAGES RUN/train/FIRST_PART … RUN/train/LAST_PART
aigi run …                                                     # a benchmark of it
python -m pipeline.learned.export card NAME RUN/benchmark/measurements.csv …
"""

from __future__ import annotations

import csv
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from pipeline import AigiError
from pipeline.files import file_sha256
from pipeline.learned.shipped import FOLDER, shipped

if TYPE_CHECKING:
    from pipeline.learned.card import RatePoint


LOGS = ("curve", "validation")


def export(name: str, parts: list[Path], images: Path | None = None) -> None:
    """Put the last weights of a trained codec into the package, in half precision.

    The last, not the best: so validation images have chosen nothing. All tables are made after
    rounding, so they are exactly those of the stored weights. The logs of all parts of the
    training lie beside them: `curve-1.csv`, `validation-1.csv`, …

    Args:
        name: of the model, here.
        parts: folders that training made, each of which began with the weights of the one before.
        images: a release or folder of images that no one measures the codec with; tables are fitted
            to them. None: a codec with a tail has those of the mixtures.

    Raises:
        AigiError: the last has no model, or images are given and there is nothing to fit.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from pipeline.learned.codec import load_network
    from pipeline.learned.network import WEIGHTS, Network

    found = load_network(parts[-1] / "last")
    network = Network(**found.sizes.model_copy(update={"name": name}).model_dump())
    network.load_state_dict(found.half().float().state_dict())
    if images is not None:
        from pipeline.collection import Collection, Pictures, pictures_of
        from pipeline.learned.fitting import fit
        from pipeline.learned.text import TextEncoder

        text = None if network.sizes.text is None else TextEncoder(network.sizes.text)
        count = fit(network, pictures_of(Collection(Pictures(place=str(images)))), text)
        print(f"tables: fitted to {count:,} symbols of {images}")
    target = FOLDER / name
    target.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(target)
    (target / "README.md").unlink()  # `write_card` makes it
    stored = {
        key: value.to(torch.float16) if value.is_floating_point() else value
        for key, value in load_file(target / WEIGHTS).items()
    }
    save_file(stored, target / WEIGHTS)
    for number, part in enumerate(parts, 1):
        for log in LOGS:
            shutil.copyfile(part / f"{log}.csv", target / f"{log}-{number}.csv")
    print(f"{target}: {(target / WEIGHTS).stat().st_size:,} bytes")


def rate_points(measurements: Path) -> list[RatePoint]:
    """Means by codec, quality and source of a benchmark's `measurements.csv`.

    Raises:
        AigiError: a measurement failed, or there is none.
    """
    from pipeline.learned.card import RatePoint

    groups: dict[tuple[str, str, float], list[dict[str, str]]] = defaultdict(list)
    with measurements.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["error"]:
                raise AigiError(f"{measurements}: {row['codec']}: {row['error']}")
            groups[row["source"], row["codec"], float(row["quality"])].append(row)
    if not groups:
        raise AigiError(f"{measurements}: has no measurements")
    points = []
    for (source, codec, quality), rows in groups.items():
        pixels = [float(row["width"]) * float(row["height"]) for row in rows]
        plain = [
            8 * (float(row["bytes"]) - float(row["prompt_bytes"])) / size
            for row, size in zip(rows, pixels, strict=True)
        ]
        similar = [float(row["ms_ssim"]) for row in rows if row["ms_ssim"]]
        points.append(
            RatePoint(
                codec=f"{codec} {quality:g}",
                pictures=source,
                count=len(rows),
                bpp=fmean([float(row["bpp"]) for row in rows]),
                bpp_without_prompt=fmean(plain),
                psnr=fmean([float(row["psnr"]) for row in rows]),
                ms_ssim=fmean(similar) if similar else None,
            )
        )
    return points


def write_card(name: str, measurements: list[Path]) -> None:
    """Write a model's card: how it was trained, its hash, and what was measured.

    `TRAINING.md`, by hand, stands beside it.

    Args:
        name: of the model.
        measurements: `measurements.csv` of benchmarks, each of another set of images.

    Raises:
        AigiError: as `rate_points`.
    """
    from pipeline.learned.card import card
    from pipeline.learned.network import CONFIG, WEIGHTS
    from pipeline.learned.sizes import read

    folder = shipped()[name]
    training = (folder / "TRAINING.md").read_text(encoding="utf-8").strip()
    text = card(
        read(folder / CONFIG),
        [point for path in measurements for point in rate_points(path)],
        training=f"{training}\n\nsha256 of `{WEIGHTS}`: `{file_sha256(str(folder / WEIGHTS))}`",
        model=name,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    what, model, *given = sys.argv[1:]
    paths = [Path(path) for path in given]
    if what == "fitted":  # as `export`, with tables of its own
        export(model, paths[1:], images=paths[0])
    elif what == "export":
        export(model, paths)
    else:
        write_card(model, paths)
