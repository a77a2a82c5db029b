"""A published release in, its rows loaded back as users load them and compared with ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import AigiError
from pipeline.release.verify import compare
from pipeline.store import Store


def read_back(
    name: str, manifest: Mapping[str, Any], revision: str | None = None
) -> dict[tuple[str, str], int]:
    """Load every config and split with `datasets` and count; the first image is compared, too.

    Only the column of ids is read, so a dataset of any size takes minutes and little memory.

    Raises:
        AigiError: rows are missing or too many, or an image is not the one of its hash.
    """
    import numpy as np
    from datasets import get_dataset_config_names, load_dataset

    from pipeline.pixels import pixels_sha256

    expected: dict[tuple[str, str], int] = {}
    for record in manifest["files"]:
        key = (record["config"], record["split"])
        expected[key] = expected.get(key, 0) + record["rows"]
    found: dict[tuple[str, str], int] = {}
    for config in get_dataset_config_names(name, revision=revision):
        whole = load_dataset(name, config, revision=revision, streaming=True)
        ids = load_dataset(name, config, revision=revision, streaming=True, columns=["image_id"])
        for split in whole:
            found[config, str(split)] = sum(1 for _ in ids[split])
            first = next(iter(whole[split]))
            rgb = np.asarray(first["image"].convert("RGB"))
            if pixels_sha256(rgb) != first["pixels_sha256"]:
                raise AigiError(f"{name}: {config}/{split}: {first['image_id']}: other pixels")
    for key in sorted(expected | found):
        if expected.get(key, 0) != found.get(key, 0):
            raise AigiError(
                f"{name}: {'/'.join(key)}: {found.get(key, 0):,} rows load, the manifest says "
                f"{expected.get(key, 0):,}"
            )
    return found


def check_here(store: Store, manifest: Mapping[str, Any]) -> None:
    """Before anything is sent: a damaged shard must not get out under a good name."""
    wrong = compare(store, dict(manifest))
    if wrong:
        raise AigiError(f"{store.url}: not as its manifest says: {wrong[0]}. Nothing was sent.")
