"""Names of benchmarks in, their figures beside those of a peer out, in Markdown.

    python -m tests.perf [NAME ...] [--quick] [--rows N] [--json FILE]

A target that is not met is reported, not an error: these figures depend on the machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.perf import (
    benchmark,
    captions,
    checks,
    codecs,
    containers,
    crops,
    doors,
    embeddings,
    images,
    pairs,
    parts,
    publish,
    scale,
    texture,
    watermark,
)
from tests.perf.report import Measurement, machine, machine_line, table

BENCHMARKS: dict[str, Callable[[argparse.Namespace], list[Measurement]]] = {
    "benchmark": lambda given: benchmark.run(given.quick),
    "captions": lambda given: captions.run(given.quick, given.rows),
    "checks": lambda given: checks.run(given.quick),
    "codecs": lambda given: codecs.run(given.quick),
    "containers": lambda given: containers.run(given.quick),
    "crops": lambda given: crops.run(given.quick),
    "doors": lambda given: doors.run(given.quick),
    "images": lambda given: images.run(given.quick),
    "embeddings": lambda given: embeddings.run(given.quick),
    "pairs": lambda given: pairs.run(given.quick),
    "parts": lambda given: parts.run(given.quick),
    "publish": lambda given: publish.run(given.quick),
    "scale": lambda given: scale.run(given.quick),
    "texture": lambda given: texture.run(given.quick),
    "watermark": lambda given: watermark.run(given.quick),
}


def main() -> None:
    """Run the benchmarks that the command line names; an exception ends it with 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute or two")
    parser.add_argument("--rows", type=int, help="captions: another number of rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    for name in given.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    found: dict[str, Any] = {"machine": machine(), "quick": given.quick, "benchmarks": {}}
    for name in given.names or BENCHMARKS:
        measurements = BENCHMARKS[name](given)
        found["benchmarks"][name] = [m.to_json() for m in measurements]
        print(f"\n### {name}\n\n{machine_line(found['machine'])}\n\n{table(measurements)}\n")
        if given.json is not None:  # after each, so that a crash in the next loses nothing
            given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
