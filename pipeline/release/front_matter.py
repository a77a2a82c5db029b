"""A dataset and its files in, the YAML at the head of its card out: licence, size, configs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pipeline.manifest import FileRecord
from pipeline.markdown import plain
from pipeline.plan.specification import Dataset
from pipeline.settings import SPLITS

NOT_STATED = "not stated"


TAGS = ("image-compression", "ai-generated-images", "synthetic")


# Licences that the Hub has a name for: https://huggingface.co/docs/hub/repositories-licenses
_HUB_LICENCES = {
    "apache-2.0": "apache-2.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc0-1.0": "cc0-1.0",
    "creativeml openrail++-m": "openrail++",
    "mit": "mit",
}


_ROWS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


def _size_category(images: int) -> str:
    """The Hub's name for a number of rows."""
    for power, upper in enumerate(_ROWS):
        if images < 10 ** (3 + power):
            return f"{_ROWS[power - 1]}<n<{upper}" if power else f"n<{upper}"
    return f"n>{_ROWS[-1]}"


def _hub_licence(dataset: Dataset) -> dict[str, str]:
    text = plain(dataset.licence).lower()
    if text in _HUB_LICENCES:
        return {"license": _HUB_LICENCES[text]}
    name = re.sub(r"[^a-z0-9.+-]+", "-", text).strip("-") or "see-the-card"
    where = {} if dataset.licence_url is None else {"license_link": dataset.licence_url}
    return {"license": "other", "license_name": name, **where}


def configs_of(dataset: Dataset, files: Iterable[FileRecord]) -> dict[str, dict[str, int]]:
    """Rows of every config and split that has files, in the order of the specification."""
    rows: Counter[tuple[str, str]] = Counter()
    for file in files:
        rows[file["config"], file["split"]] += file["rows"]
    found: dict[str, dict[str, int]] = {}
    for config in dataset.sources:
        for split in SPLITS:
            if rows[config, split]:
                found.setdefault(config, {})[split] = rows[config, split]
    return found


def front_matter(dataset: Dataset, files: list[FileRecord]) -> str:
    """Metadata of the dataset card: YAML, without the lines around it.

    Files are globs and no size is stated but its order of magnitude, so nothing can go stale.
    """
    from huggingface_hub import DatasetCardData

    configs = configs_of(dataset, files)
    # `datasets` takes a config of this name for the default, and refuses a second one.
    default = "default" if "default" in configs else next(iter(configs), None)
    data: dict[str, Any] = {
        "pretty_name": plain(dataset.title),
        **_hub_licence(dataset),
        "language": list(dataset.language) or None,
        "size_categories": [_size_category(sum(file["rows"] for file in files))],
        "task_categories": ["text-to-image"],
        "tags": list(TAGS),
        "configs": [
            {
                "config_name": config,
                "data_files": [
                    {"split": split, "path": f"{config}/{split}-*.parquet"} for split in splits
                ],
                **({"default": True} if config == default else {}),
            }
            for config, splits in configs.items()
        ],
    }
    return DatasetCardData(**data).to_yaml(original_order=list(data))
