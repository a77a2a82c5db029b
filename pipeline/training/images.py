"""The `train` section in, which images are for training and which for validation out."""

from __future__ import annotations

from pipeline.collection import Pictures, asked_or_own
from pipeline.manifest import find_release
from pipeline.pictures.pictures import packed
from pipeline.training.settings import Train


def to_train_on(settings: Train, run: str) -> Pictures:
    """The train split of a release, or all images of a folder."""
    return _of(asked_or_own(settings.data, run), "train")


def to_validate_with(settings: Train, run: str) -> Pictures:
    """The validation split of a release, or images of a folder that is for validation alone."""
    limit = settings.validation_pictures
    if settings.validation_data is None:
        own = asked_or_own(settings.data, run)
        return own.model_copy(update={"splits": ("validation",), "limit": limit})
    return _of(settings.validation_data, "validation").model_copy(update={"limit": limit})


def _of(pictures: Pictures, split: str) -> Pictures:
    if packed(pictures.place) or find_release(pictures.place) is None:
        return pictures  # images without a split
    return pictures.model_copy(update={"splits": (split,)})
