"""`manifests/aigi-next.yaml`: what it takes is planned, and tiny stand-ins go through all of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from pipeline.plan import specification
from pipeline.plan.specification import DiffusersSpec
from tests.conftest import ROOT, WorkflowMaker, aigi_here
from tests.families import flux, sana, save

NEXT = ROOT / "manifests" / "aigi-next.yaml"
OPEN = {
    "flux-schnell": "flux",
    "sd35-medium": "sd3",
    "pixart-sigma": "pixart-sigma",
    "sana": "sana",
    "qwen-image": "qwen-image",
    "z-image-turbo": "z-image",
}


def test_it_has_the_published_sources_and_the_open_models_of_today() -> None:
    old = specification.load(str(ROOT / "manifests" / "pku-aigi-500k.yaml"))
    new = specification.load(str(NEXT))
    assert {name: new.sources[name] for name in old.sources} == old.sources
    added = {name: new.sources[name] for name in new.sources if name not in old.sources}
    assert {name: getattr(spec, "pipeline", None) for name, spec in added.items()} == OPEN
    assert all(spec.licence_url and set(spec.splits) == set(old.sources["sdxl"].splits)
               for spec in added.values())  # fmt: skip


def test_a_dry_run_plans_it() -> None:
    done = aigi_here(
        "run", str(ROOT / "workflows" / "regenerate.yaml"), "--dry-run",
        f"--set=plan.dataset={NEXT}", f"--set=plan.sources=[{','.join(OPEN)}]",
    )  # fmt: skip
    assert done.returncode == 1 and "cc12m.tsv: no such file" in done.stderr
    for title in ("FLUX.1-schnell", "SD3.5M", "PixArt-Sigma", "Sana-1.6B", "Qwen-Image"):
        assert title in done.stdout
    assert "120,360" in done.stdout, "six times 20,000 and 20 and 40"


def test_tiny_stand_ins_go_through_the_same_specification(
    make_workflow: WorkflowMaker, family: Callable[[str], Path], tmp_path: Path, models: Path
) -> None:
    """Everything but sizes, steps and counts is as it is: dtypes, guidance, options, variants."""
    data: dict[str, Any] = yaml.safe_load(NEXT.read_text())
    for spec in data["sources"].values():
        spec.pop("captions", None)
        size = {"width": 64, "height": 64}
        spec["splits"] = {"train": {"count": 1, **size}}
        if "steps" in spec:
            spec["steps"] = 2
    (tmp_path / "next.yaml").write_text(yaml.safe_dump(data))
    own = {
        "flux-schnell": save(tmp_path / "schnell", lambda: flux(guidance=False)),
        "sana": save(tmp_path / "sana", lambda: sana(16), variant="bf16"),
        "sd21": models / "sd",
        "sdxl": models / "sdxl",
    }
    places = {**{name: family(kind) for name, kind in OPEN.items() if name not in own}, **own}
    names = [name for name in data["sources"] if name in places]
    path = make_workflow(
        plan={"dataset": "next.yaml", "sources": names, "shard_mb": 0.05},
        sources={name: {"folder": str(place), "batch_size": 1} for name, place in places.items()},
    )
    done = aigi_here("run", str(path))
    assert done.returncode == 0, done.stderr
    for name in names:
        (file,) = (tmp_path / "run" / "release" / name).glob("train-*.parquet")
        (row,) = pq.read_table(file).to_pylist()
        spec = specification.load(str(NEXT)).sources[name]
        assert isinstance(spec, DiffusersSpec)
        stated = (row["dtype"], row["guidance_scale"], row["negative_prompt"], row["options"])
        assert stated == (spec.dtype, spec.guidance_scale, spec.negative_prompt, spec.row_options)
        assert (row["width"], row["height"]) == (64, 64)
    assert row["options"] is None and spec.family is not None
