"""A published release in, its rows loaded back as users load them and compared with ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pipeline import AigiError
from pipeline.files import scratch
from pipeline.release.verify import compare
from pipeline.store import Store


def read_back(
    name: str, manifest: Mapping[str, Any], revision: str | None = None
) -> dict[tuple[str, str], int]:
    """Count the rows of every config and split with `datasets`, and compare the first image.

    Only the column of ids is read, so a dataset of any size takes minutes and little memory.

    Raises:
        AigiError: rows are missing, there are too many, or an image differs from its hash.
    """
    with scratch("readback") as cache:
        # `datasets` knows local folders by their last name alone, and remembers their columns.
        options = {"streaming": True, "revision": revision}
        if os.path.isdir(name):
            options["cache_dir"] = cache
        return _counted(name, manifest, options)


def _counted(
    name: str, manifest: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[tuple[str, str], int]:
    import numpy as np
    from datasets import get_dataset_config_names, load_dataset

    from pipeline.pixels import pixels_sha256

    expected: dict[tuple[str, str], int] = {}
    for record in manifest["files"]:
        key = (record["config"], record["split"])
        expected[key] = expected.get(key, 0) + record["rows"]
    found: dict[tuple[str, str], int] = {}
    for config in get_dataset_config_names(name, revision=options["revision"]):
        whole = load_dataset(name, config, **options)
        ids = load_dataset(name, config, columns=["image_id"], **options)
        for split in whole:
            found[config, str(split)] = sum(1 for _ in ids[split])
            first = next(iter(whole[split]))
            rgb = np.asarray(first["image"].convert("RGB"))
            if pixels_sha256(rgb) != first["pixels_sha256"]:
                raise AigiError(f"{name}: {config}/{split}: {first['image_id']}: pixels differ")
    for key in sorted(expected | found):
        if expected.get(key, 0) != found.get(key, 0):
            raise AigiError(
                f"{name}: {'/'.join(key)}: {found.get(key, 0):,} rows load, but the manifest lists "
                f"{expected.get(key, 0):,}"
            )
    return found


def check_here(store: Store, manifest: Mapping[str, Any], others: bool = False) -> None:
    """Refuse a release that differs from its manifest, before anything is sent.

    Files that are not on this machine would have to be fetched for their hashes: that is done when
    they are sent.

    Args:
        others: there may be more parquet files, which are not sent.
    """
    wrong = compare(store, dict(manifest), others, hashes=store.local)
    if wrong:
        raise AigiError(f"{store.url}: differs from its manifest: {wrong[0]}. Nothing was sent.")
