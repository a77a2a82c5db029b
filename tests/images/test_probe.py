"""`aigi probe` on real tiny pipelines: what it measures, when it ends, and whose figures count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import AigiError
from pipeline import workflow as workflows
from pipeline.build import estimate
from pipeline.dry_run.tables import parts
from pipeline.images import costs as figures
from pipeline.images import probe as probes
from pipeline.images.costs import PROBE, Costs, Measured, Probe, Trial, costs, read_probe
from pipeline.images.diffusion.diffuser import Diffuser
from pipeline.images.images import Images
from pipeline.images.probe import probe
from pipeline.progress import Progress
from pipeline.running import alone
from pipeline.store import Store
from pipeline.workflow import Workflow
from tests.conftest import WorkflowMaker, aigi_here

SD = ("plan.sources=[sd]", "sources.sd.batch_size=2")


def measure(workflow: Workflow, seconds: float = 600.0, most: int = 4) -> Probe:
    plan = workflow.planned("probe")
    images = workflow.images or Images()
    quiet = Progress(quiet=True)
    return probe(plan, workflow.sources, images, workflow.compute, quiet, seconds, most)


def keep(workflow: Workflow, found: Probe) -> Store:
    store = Store(workflow.run)
    store.write_json(found.model_dump(mode="json"), PROBE)
    return store


def costs_of(workflow: Workflow) -> Costs:
    plan = workflow.planned("probe")
    images = workflow.images or Images()
    return costs(plan, workflow.sources, images, workflow.compute, Store(workflow.run))


def lines_of(workflow: Workflow) -> str:
    return "\n".join(part for part in parts(workflow) if isinstance(part, str))


@pytest.fixture
def flow(make_workflow: WorkflowMaker) -> Path:
    return make_workflow()


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, models: Path
) -> tuple[Callable[..., Workflow], Probe]:
    """A workflow, by overrides, and one probe of it."""
    from tests.conftest import make_workflow

    folder = tmp_path_factory.mktemp("probe")
    path = make_workflow.__wrapped__(folder, models)()  # type: ignore[attr-defined]

    def load(*overrides: str) -> Workflow:
        return workflows.load(path, [*SD, *overrides])

    return load, measure(load())


def test_a_probe_measures_every_size_of_a_source_at_growing_batches(
    measured: tuple[Callable[..., Workflow], Probe],
) -> None:
    _, found = measured
    assert [(one.source, one.width, one.height) for one in found.sources] == [
        ("sd", 64, 64), ("sd", 96, 64),
    ]  # fmt: skip
    for one in found.sources:
        sizes = [trial.size for trial in one.trials]
        assert sizes[:2] == [1, 2] and sizes == sorted(sizes) and not one.error
        assert one.memory == "process" and one.held is not None and one.held > 1 << 28
        for trial in one.trials:
            assert trial.steps == [2, 2] and trial.peak is not None and trial.file is not None
            assert trial.peak >= one.held * 0.9 and 1_000 < trial.file < 64 * 96 * 4
    # No shard of the test split has more than its two images; of train, --most is 4.
    # On a busy machine two may be no faster an image than one.
    assert found.sources[1].stopped in ("shard", "no gain")
    assert found.sources[1].trials[-1].size == 2
    assert found.sources[0].stopped in ("limit", "no gain", "time")


def test_hours_disk_and_money_of_the_plan_are_those_that_were_measured(
    measured: tuple[Callable[..., Workflow], Probe], tmp_path: Path
) -> None:
    load, found = measured
    ray = ("compute.ray=local", "compute.workers=2", "compute.price_per_hour=36000")
    workflow = load(f"run={tmp_path / 'run'}", *ray)
    keep(workflow, found)
    train, test = estimate(workflow, costs_of(workflow))
    at = found.sources[0].at(2)
    assert at is not None and at.file is not None and train.measured and test.measured
    assert train.gpu_hours == pytest.approx(24 * at.image(2) / 3600)
    assert train.gigabytes == pytest.approx(24 * at.file / 1e9)
    assert train.gpu_hours is not None and test.gpu_hours is not None
    money = 36000 * (train.gpu_hours + test.gpu_hours)
    said = lines_of(workflow)
    assert f"(compute.price_per_hour): {money:,.2f}" in said
    assert "with 2 workers: " in said and "measured by aigi probe on cpu" in said
    assert "unknown" not in said and "at least" not in said


def test_without_a_probe_hours_are_unknown_and_not_zero(flow: Path) -> None:
    workflow = workflows.load(flow)
    assert [line.gpu_hours for line in estimate(workflow)] == [None] * 4
    said = lines_of(workflow)
    assert "nothing states what sd, sdxl take" in said and "unknown hours" in said


def test_a_total_that_lacks_a_source_says_at_least(
    measured: tuple[Callable[..., Workflow], Probe], flow: Path
) -> None:
    _, found = measured
    workflow = workflows.load(flow, ["sources.sd.batch_size=2", "compute.price_per_hour=1e6"])
    keep(workflow, found)
    said = lines_of(workflow)
    assert "with 1 worker: at least " in said and "price_per_hour): at least " in said
    assert "not used of the probe: sdxl 64x64: not measured" in said


CHANGES = [
    ("sources.sd.attention_slicing=true", "sources.attention_slicing: (absent) -> True"),
    ("sources.sd.vae_tiling=true", "sources.vae_tiling: (absent) -> True"),
    ("images.format=png", "images.format: (absent) -> png"),
    ("compute.threads=2", "threads: 1 -> 2"),
]


@pytest.mark.parametrize(("change", "why"), CHANGES, ids=[change for change, _ in CHANGES])
def test_figures_of_other_settings_are_not_used(
    measured: tuple[Callable[..., Workflow], Probe], tmp_path: Path, change: str, why: str
) -> None:
    load, found = measured
    workflow = load(f"run={tmp_path / 'run'}", change)
    keep(workflow, found)
    assert not costs_of(workflow).found
    assert f"not used of the probe: sd 64x64: measured with {why}" in lines_of(workflow)


def test_figures_of_another_device_or_another_model_are_not_used(
    measured: tuple[Callable[..., Workflow], Probe],
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shutil

    load, found = measured
    here = load(f"run={tmp_path / 'run'}")
    keep(here, found)
    assert len(costs_of(here).found) == 2
    with monkeypatch.context() as other:
        other.setattr(figures, "device_of", lambda compute: "NVIDIA H100")
        assert "sd 64x64: measured with device: cpu -> NVIDIA H100" in lines_of(here)
    copy = tmp_path / "sd"
    shutil.copytree(models / "sd", copy)
    moved = load(f"run={tmp_path / 'run'}", f"sources.sd.folder={copy}")
    assert len(costs_of(moved).found) == 2, "the same files at another place"
    (copy / "unet" / "diffusion_pytorch_model.safetensors").touch()
    assert "measured with content.folder: " in costs_of(moved).unused[0]


def test_a_batch_that_was_not_measured_gets_the_figures_of_a_smaller_one_and_says_so(
    measured: tuple[Callable[..., Workflow], Probe], tmp_path: Path
) -> None:
    load, found = measured
    one = found.sources[0]
    one = one.model_copy(update={"trials": one.trials[:2]})
    workflow = load(f"run={tmp_path / 'run'}", "sources.sd.batch_size=3")
    keep(workflow, found.model_copy(update={"sources": [one, found.sources[1]]}))
    cost = costs_of(workflow).found["sd", 64, 64]
    assert (cost.asked, cost.size) == (3, 2)
    assert "sd 64x64: figures are those of a batch of 2" in lines_of(workflow)


def test_growth_ends_where_memory_does(flow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Diffuser._infer

    def small(self: Diffuser, rows: list[Any]) -> Any:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, rows)

    monkeypatch.setattr(Diffuser, "_infer", small)
    monkeypatch.setattr(probes, "GAIN", 0.0)
    found = measure(workflows.load(flow, [*SD, "plan.limit=8", "sources.sd.batch_size=4"]))
    one = found.sources[0]
    assert [trial.size for trial in one.trials] == [1, 2] and one.stopped == "memory"


def test_memory_that_the_next_batch_would_exceed_is_not_asked_for(
    flow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the kernel would end the process: nothing could be caught."""
    monkeypatch.setattr(probes, "GAIN", 0.0)
    monkeypatch.setattr(probes.Memory, "room", lambda self: 0)
    monkeypatch.setattr(probes.Memory, "now", lambda self: 1000)
    (one,) = measure(workflows.load(flow, [*SD, "plan.limit=2"])).sources[:1]
    assert len(one.trials) == 2, "no more memory than before: nothing forbids the second batch"
    seen = iter(range(1000, 10**9, 1000))
    monkeypatch.setattr(probes.Memory, "now", lambda self: next(seen))
    (one,) = measure(workflows.load(flow, [*SD, "plan.limit=2"])).sources[:1]
    assert len(one.trials) == 1 and one.stopped == "memory"


def test_of_many_steps_only_some_are_made_and_the_record_says_so(flow: Path) -> None:
    path = flow.parent / "dataset.yaml"
    path.write_text(path.read_text().replace("steps: 2", "steps: 999", 1))
    (one, _) = measure(workflows.load(flow, SD), seconds=2.0, most=1).sources
    (trial, *_) = one.trials
    few, more = trial.steps
    assert one.steps == 999 and 2 <= few < more < 999 and trial.file is None
    assert trial.image(999) > trial.seconds[1]


def test_a_batch_that_takes_too_long_is_ended(flow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_LONGEST", 0.0)
    found = measure(workflows.load(flow, SD), seconds=5.0)
    assert all(one.trials == [] and "takes longer than" in one.error for one in found.sources)


def test_a_source_that_fails_is_named_and_ends_the_command_with_1(
    flow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Diffuser._infer

    def broken(self: Diffuser, rows: list[Any]) -> Any:
        made = real(self, rows)
        return made * float("nan") if self.name == "sdxl" else made

    monkeypatch.setattr(Diffuser, "_infer", broken)
    given = ("--seconds", "600", "--most", "1", "--set", "plan.limit=1")
    done = aigi_here("probe", str(flow), *given)
    assert done.returncode == 1
    assert "not measured: sdxl 64x64: not a number in the decoded picture" in done.stdout
    run = flow.parent / "run"
    assert {path.name for path in run.iterdir()} == {".lock", PROBE}, "and no image is left"
    kept = read_probe(Store(str(run)))
    assert kept is not None
    assert [bool(one.trials) for one in kept.sources] == [True, True, False, False]


def test_a_run_that_works_there_is_not_disturbed(flow: Path) -> None:
    run = flow.parent / "run"
    with alone(str(run)):
        done = aigi_here("probe", str(flow), "--seconds", "1")
        assert done.returncode == 1 and "another run is using it" in done.stderr
    assert not (run / PROBE).exists()
    with alone(str(run)):
        pass  # nothing holds it any more


def test_a_plan_of_imports_has_nothing_to_measure(flow: Path) -> None:
    specification = flow.parent / "dataset.yaml"
    specification.write_text(
        "name: a\ntitle: A\nlicence: x\nsources:\n  mj:\n    title: MJ\n    licence: x\n"
        "    kind: import\n    model: mj\n    splits: {train: {width: 64, height: 64}}\n"
    )
    with pytest.raises(AigiError, match="no generated source among mj"):
        measure(workflows.load(flow, ["sources={}"]))


DAMAGE: list[tuple[tuple[Any, ...], Any, str]] = [
    (("version",), 2, "version: "),
    (("sources", 0, "trials", 0, "size"), 0, r"sources\.0\.trials\.0\.size: expected 1 or more"),
    (("sources", 0, "trials", 0, "seconds"), [1.0], r"sources\.0\.trials\.0\.seconds: "),
    (
        ("sources", 0, "trials", 0, "seconds", 1),
        0,
        r"sources\.0\.trials\.0\.seconds\.1: expected more than 0",
    ),
    (
        ("sources", 0, "trials", 0, "seconds", 1),
        "x",
        r"sources\.0\.trials\.0\.seconds\.1: expected a number",
    ),
    (("sources", 0, "stopped"), "boredom", r"sources\.0\.stopped: "),
    (("sources", 0, "peek"), 1, r"sources\.0\.peek: no such entry"),
]


@pytest.mark.parametrize(("place", "value", "why"), DAMAGE)
def test_a_damaged_record_is_named_with_its_field(
    measured: tuple[Callable[..., Workflow], Probe],
    tmp_path: Path,
    place: tuple[Any, ...],
    value: Any,
    why: str,
) -> None:
    load, found = measured
    workflow = load(f"run={tmp_path / 'run'}")
    store = keep(workflow, found)
    data: Any = json.loads((tmp_path / "run" / PROBE).read_text())
    part = data
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    store.write_json(data, PROBE)
    with pytest.raises(AigiError, match=rf"_probe\.json: {why}.*run aigi probe again"):
        costs_of(workflow)
    (tmp_path / "run" / PROBE).write_text('{"made"')
    with pytest.raises(AigiError, match=r"_probe\.json: not JSON"):
        list(parts(workflow))


@given(
    rest=st.floats(0, 100),
    each=st.floats(0.01, 10),
    few=st.integers(2, 20),
    full=st.integers(40, 99),
)
def test_seconds_of_all_steps_follow_from_those_of_few(
    rest: float, each: float, few: int, full: int
) -> None:
    seconds = [rest + few * each, rest + 2 * few * each]
    trial = Trial(size=4, steps=[few, 2 * few], seconds=seconds, peak=None, file=None)
    assert trial.image(full) == pytest.approx((rest + full * each) / 4)


def test_the_best_batch_is_the_smallest_of_those_that_are_about_as_fast() -> None:
    def trial(size: int, each: float) -> Trial:
        seconds = [each * size, each * size]
        return Trial(size=size, steps=[2, 2], seconds=seconds, peak=None, file=None)

    one = Measured(
        source="a", width=8, height=8, steps=2, conditions={}, held=None, memory="",
        trials=[trial(1, 1.0), trial(2, 0.61), trial(4, 0.6), trial(8, 0.7)],
    )  # fmt: skip
    best = one.best()
    assert best is not None and best.size == 2
    slow = one.model_copy(update={"trials": [trial(1, 1.0), trial(2, 0.65), trial(4, 0.6)]})
    best = slow.best()
    assert best is not None and best.size == 4
