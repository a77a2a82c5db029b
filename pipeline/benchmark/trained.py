"""A `train` section whose codecs are trained in, the benchmark of them beside its anchors out."""

from __future__ import annotations

from pathlib import Path

from pipeline.benchmark.settings import Benchmark
from pipeline.codecs.codec import CodecSettings
from pipeline.training.images import to_validate_with
from pipeline.training.settings import Train


def benchmark_of(train: Train, run: str) -> Benchmark:
    """What is measured after training: the validation images, coded by anchors and trained codecs.

    BD-rates are against the first anchor.

    Raises:
        AigiError: the network of the section does not exist.
    """
    from pipeline.training.fit import codecs_of
    from pipeline.training.trainer import sizes_of

    sizes = sizes_of(train)
    codecs = sorted(codecs_of(train, sizes).items(), key=lambda item: item[1])
    folder = Path(run).absolute() / "train"
    trained = CodecSettings(
        codec="learned",
        name=sizes.name,
        models=tuple(str(folder / name) for name, _ in codecs),
        text=train.text_folder,
    )
    return Benchmark(
        pictures=to_validate_with(train, run),
        codecs=(*(CodecSettings(codec=name) for name in train.anchors), trained),
        anchor=train.anchors[0],
        strips=None,
    )
