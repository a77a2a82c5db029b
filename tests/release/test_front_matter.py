"""The head of the card is what the Hub and `datasets` take it for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import AigiError
from pipeline.manifest import CARD
from pipeline.release import front_matter
from tests.release.conftest import SPECIFICATION, dataset_with, some_files


def test_the_hub_client_takes_the_card_as_it_is(small: tuple[Path, str]) -> None:
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, metadata_load

    folder, text = small
    loaded: Any = DatasetCard(text)
    assert str(loaded) == text
    data = loaded.data.to_dict()
    assert metadata_load(folder / CARD) == data
    configs = MetadataConfigs.from_dataset_card_data(loaded.data)
    assert list(configs) == ["sd", "mj"]
    assert configs.get_default_config_name() == "sd"
    assert configs["sd"]["data_files"] == [
        {"split": "train", "path": "sd/train-*.parquet"},
        {"split": "test", "path": "sd/test-*.parquet"},
    ]
    del data["configs"]
    assert data == {
        "pretty_name": "Small | set",
        "license": "other",
        "license_name": "see-the-sources",
        "license_link": "https://example.org/licence",
        "language": ["en"],
        "size_categories": ["n<1K"],
        "task_categories": ["text-to-image"],
        "tags": ["image-compression", "ai-generated-images", "synthetic"],
    }


@pytest.mark.parametrize(
    ("rows", "category"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (528_000, "100K<n<1M"),
        (10**12 - 1, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_size_category(rows: int, category: str) -> None:
    meta = yaml.safe_load(
        front_matter.front_matter(dataset_with(), some_files(("sd", "train", rows)))
    )
    assert meta["size_categories"] == [category]


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CreativeML OpenRAIL++-M", {"license": "openrail++"}),
        (
            "Terms: of\nmine!",
            {"license": "other", "license_name": "terms-of-mine", "license_link": "https://e.org"},
        ),
        (
            "许可",
            {"license": "other", "license_name": "see-the-card", "license_link": "https://e.org"},
        ),
    ],
)
def test_licence_fields(licence: str, expected: dict[str, str]) -> None:
    dataset = dataset_with(licence=licence, licence_url="https://e.org")
    meta = yaml.safe_load(front_matter.front_matter(dataset, some_files(("sd", "train", 1))))
    assert {key: value for key, value in meta.items() if key.startswith("license")} == expected


def test_a_config_called_default_is_the_only_default() -> None:
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    sources: Any = SPECIFICATION["sources"]
    dataset = dataset_with(sources={"sd": sources["sd"], "default": sources["mj"]})
    files = some_files(("sd", "train", 1), ("default", "train", 1))
    data = DatasetCardData(**yaml.safe_load(front_matter.front_matter(dataset, files)))
    assert MetadataConfigs.from_dataset_card_data(data).get_default_config_name() == "default"


def test_an_address_that_is_none_is_refused() -> None:
    for url in ("javascript:alert(1)", "https://e.org/a b", "https://e.org/>", "https://e.org/|"):
        with pytest.raises(AigiError, match="licence_url"):
            dataset_with(licence_url=url)
