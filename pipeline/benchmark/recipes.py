"""A benchmark and its images in, what decoders of recipes need beside the files out, in words."""

from __future__ import annotations

from pipeline.benchmark.settings import Benchmark
from pipeline.codecs import recipe
from pipeline.codecs.table import row_of
from pipeline.collection import Collection
from pipeline.markdown import escape


def lines(benchmark: Benchmark, collection: Collection) -> list[str]:
    """Lines of the page: the generators by name and size, and why images have no recipe."""
    given = next((one for one in benchmark.codecs if row_of(one).rows), None)
    if given is None:
        return []
    parts = collection.parts
    known = [text for part in parts for text in recipe.known_of(collection, part.name)]
    models = recipe.needs(known, recipe.named_models(given.models)[0])
    without = sorted(recipe.unrecorded(known).items())
    return [
        f"{escape(given.label)} codes what made an image, not its pixels. Beside the file its "
        "decoder needs the generator, which no rate contains, as that of CATC needs its text "
        "encoder, and it draws the image again, in the seconds that tables and figures show:",
        "",
        *(f"- {escape(model)}" for model in models),
        *(f"- none for {count} of {len(known)} images: {escape(why)}" for why, count in without),
        "",
    ]
