"""A workflow in; its stages in order, and what they would cost, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pipeline import AigiError
from pipeline.intact import USUAL, Checks
from pipeline.plan.rounds import rounds_made, top_up
from pipeline.progress import Progress
from pipeline.running import run_stages
from pipeline.shown import public
from pipeline.stage import Stage
from pipeline.store import RUN_WORKFLOW, Store
from pipeline.workflow import READERS, Workflow

if TYPE_CHECKING:
    from pipeline.images.costs import Costs


def stages(workflow: Workflow) -> list[Stage]:
    """The stages whose sections the workflow has, in the order in which they run.

    Raises:
        AigiError: a section needs another section that is missing.
    """
    from pipeline.duplicates import duplicates
    from pipeline.images import images
    from pipeline.plan import plan, specification
    from pipeline.plan.quotas import chosen
    from pipeline.prompts import captioner, prompts
    from pipeline.release import release
    from pipeline.scores import embeddings, quality
    from pipeline.selection import selection

    found: list[Stage] = []
    if workflow.prompts is not None:
        found += captioner.stages(workflow.prompts.sources, workflow.compute)
        models = None
        if workflow.plan is not None:
            models = images.prompt_models(workflow.plan, workflow.sources)
        found += prompts.stages(
            workflow.prompts, workflow.split, workflow.compute, models, workflow.embeddings
        )
    if workflow.plan is not None:
        found.append(plan.stage(workflow.plan, workflow.sources, workflow.split, workflow.compute))
    if workflow.selection is not None and workflow.images is None:
        raise AigiError("selection: this section needs an images section in the workflow")
    if workflow.images is not None:
        planned = workflow.planned("images")
        stored = images.begun(workflow.images, Store(workflow.run))
        found.append(images.stage(stored, planned, workflow.sources, workflow.compute))
    if workflow.embeddings is not None:
        found.append(embeddings.stage(workflow.embeddings, workflow.compute))
    if workflow.quality is not None:
        found.append(quality.stage(workflow.quality, workflow.embeddings, workflow.compute))
    if workflow.duplicates is not None:
        for name in duplicates.needs(workflow.duplicates):
            if getattr(workflow, name) is None:
                raise AigiError(
                    f"duplicates: this section needs the {name} section in the workflow"
                    + (", or min_similarity: null" if name == "embeddings" else "")
                )
        found.append(duplicates.stage(workflow.duplicates, workflow.compute))
    if workflow.images is not None:
        planned = workflow.planned("selection")
        found.append(selection.stage(workflow.rules, planned, workflow.scored, workflow.compute))
    if workflow.release is not None:
        planned = workflow.planned("release")
        dataset = specification.load(planned.dataset)
        options = specification.some_options(dataset, chosen(dataset, planned))
        moved = release.moves(workflow.release, Store(workflow.run))
        found.append(release.stage(options, moved))
        found.append(release.manifest_stage(workflow, workflow.release))
    return found


def readers(workflow: Workflow) -> list[Stage]:
    """The stages that read a finished release, in order; the benchmark runs after them."""
    found: list[Stage] = []
    if workflow.characteristics is not None or workflow.alignments is not None:
        from pipeline.analysis.stages import stages as analysis_stages

        found += analysis_stages(
            workflow.characteristics, workflow.alignments, workflow.run, workflow.compute
        )
    if workflow.train is not None:
        from pipeline.training import stages as training

        found.append(training.stage(workflow.train, workflow.run, workflow.compute))
    return found


def make(workflow: Workflow, store: Store, progress: Progress, checks: Checks = USUAL) -> None:
    """Run all stages, with as many top-up rounds before the release as the quotas need.

    A round plans new generations (or further images of an import) for what the selection
    dropped, and runs the stages over the new shards alone.

    Args:
        retry: first make rows that have an error again.

    Raises:
        AigiError: as `run_stages`.
    """
    from pipeline.images import images
    from pipeline.selection.tally import shortage

    if workflow.images is not None:
        images.check_format(workflow.images, store)
    found = stages(with_preview(workflow))
    first = _begin(workflow, found, store, progress, checks)
    tables = [stage.table for stage in found]
    cut = tables.index("selection") + 1 if "selection" in tables else len(found)
    run_stages(found[first:cut], store, workflow.compute, progress, checks)
    rounds = workflow.selection.rounds if workflow.selection is not None else 0
    while rounds_made(store) < rounds:
        short = shortage(workflow.planned("selection"), store)
        if not short:
            break
        top_up(store, short)
        progress.say(
            f"round {rounds_made(store)}: "
            + ", ".join(f"{count:,} more of {name}" for name, count in short.items())
        )
        run_stages(found[first:cut], store, workflow.compute, progress, checks)
    run_stages(found[cut:], store, workflow.compute, progress, checks)


def _begin(
    workflow: Workflow,
    found: Sequence[Stage],
    store: Store,
    progress: Progress,
    checks: Checks,
) -> int:
    """Make prompts, let the plan grow, and record the workflow; the place of the next stage."""
    from pipeline import growth

    first = next((n for n, stage in enumerate(found) if stage.table in growth.TABLES), 0)
    run_stages(found[:first], store, workflow.compute, progress, checks)
    growth.grow(workflow, store, found, progress, checks)
    store.write_json(public(workflow.model_dump(mode="json")), RUN_WORKFLOW)
    return first


def with_preview(workflow: Workflow) -> Workflow:
    """The workflow, which takes images of its preview where it can."""
    from pipeline.images.preview import place_of

    place = place_of(workflow.run)
    if workflow.plan is None or workflow.images is None or not Store(place).shards("images"):
        return workflow
    plan = workflow.plan.model_copy(update={"reuse": (*workflow.plan.reuse, place)})
    return workflow.model_copy(update={"plan": plan})


def preview_of(workflow: Workflow, count: int) -> Workflow:
    """The workflow of a preview: the first images of each source, one process, no release.

    Args:
        count: images of each source, over its splits.
    """
    from pipeline.images import images
    from pipeline.images.preview import place_of
    from pipeline.plan import specification
    from pipeline.plan.quotas import chosen

    plan = workflow.planned("preview")
    dataset = specification.load(plan.dataset)
    splits = max(len(dataset.sources[name].splits) for name in chosen(dataset, plan))
    limit = min(plan.limit or count, -(-count // splits))
    begun = images.begun(workflow.images or images.Images(), Store(workflow.run))
    return workflow.model_copy(
        update={
            "run": place_of(workflow.run),
            "compute": workflow.compute.model_copy(update={"ray": None}),
            "plan": plan.model_copy(update={"limit": limit, "margin": 0.0}),
            "images": begun,
            **dict.fromkeys(
                ("embeddings", "quality", "duplicates", "selection", "release", *READERS)
            ),
        }
    )


def preview(few: Workflow, progress: Progress) -> None:
    """Make the images of a preview, and note what they cost. What settings changed is replaced.

    Args:
        few: what `preview_of` made of a workflow.
    """
    from pipeline.images import images
    from pipeline.images.preview import Watched, note

    store, plan = Store(few.run), few.planned("preview")
    found = stages(few)
    cut = [stage.table for stage in found].index("images")
    maker = partial(Watched, partial(note, store))
    settings = few.images or images.Images()
    stage = images.stage(settings, plan, few.sources, few.compute, maker)
    checks = Checks(replace=True)
    first = _begin(few, found, store, progress, checks)
    run_stages([*found[first:cut], stage], store, few.compute, progress, checks)


@dataclass(frozen=True)
class Estimate:
    """The size of one source and split, and its rough cost.

    Attributes:
        counted: false: as many as the import finds.
        gigabytes: of the image files; None: not known.
        gpu_hours: of one device, which may be a CPU; None: not known.
        best_hours: of one device, with the batch that a probe found to be the best.
        measured: by a probe, and not computed from FLOPs.
        endpoint: a server makes them, so no hours are counted here.
    """

    source: str
    title: str
    split: str
    size: str
    counted: bool
    images: int
    planned: int
    prompts: int
    shards: int
    gigabytes: float | None
    gpu_hours: float | None
    best_hours: float | None = None
    measured: bool = False
    endpoint: bool = False


def estimate(workflow: Workflow, costs: Costs | None = None) -> list[Estimate]:
    """Counts, shards, disk and hours of a device, from the dataset specification.

    Hours and bytes are those of a probe where it measured the source at this size. Otherwise hours
    are arithmetic: TFLOP of an image (the specification's figures, times steps, twice with
    guidance) over `compute.gpu_tflops`; and bytes are usual ones of the run's container.

    Raises:
        AigiError: the workflow has no plan, or settings of a source that is not specified.
    """
    from pipeline.images import images
    from pipeline.plan import quotas, specification
    from pipeline.plan.specification import DrawnSpec, HttpSpec, PromptedSpec, ZooSpec

    if workflow.plan is None:
        raise AigiError("plan: the workflow has no plan section, so there is nothing to estimate")
    dataset = specification.load(workflow.plan.dataset)
    specification.check_known(workflow.plan.dataset, workflow.sources)
    known = {} if costs is None else costs.found
    stored = images.begun(workflow.images or images.Images(), Store(workflow.run)).format or "webp"
    found = []
    for quota in quotas.quotas(dataset, workflow.plan):
        source, spec = dataset.sources[quota.source], quota.spec
        prompted = isinstance(source, PromptedSpec)
        cost = known.get((quota.source, spec.width or 0, spec.height or 0))
        hours = quota.planned * cost.seconds / 3600 if cost is not None else 0.0
        unknown = False
        if cost is None and isinstance(source, DrawnSpec):  # others need no device
            members = source.members if isinstance(source, ZooSpec) else (source,)
            parts = quotas.shares(source, quota.split, quota.planned)
            for member, count in zip(members, parts, strict=True):
                if spec.unet_tflop is None or member.evaluations is None:
                    unknown = True
                    continue
                tflop = spec.unet_tflop * member.evaluations + (spec.vae_tflop or 0.0)
                hours += count * tflop / workflow.compute.gpu_tflops / 3600
        variants, counted = len(spec.watermarks), spec.count is not None
        # Imported PNG files keep their bytes; what else there is, nobody has looked at yet.
        usual = quotas.BYTES_PER_PIXEL[stored if prompted else "png"]
        file = (spec.width or 1024) * (spec.height or 1024) * usual
        if cost is not None and cost.file is not None:
            file = cost.file
        found.append(
            Estimate(
                source=quota.source,
                title=source.title,
                split=quota.split,
                size=f"{spec.width}x{spec.height}" if spec.width and spec.height else "any",
                counted=counted,
                images=quota.images,
                planned=quota.planned * variants,
                prompts=quota.prompts if prompted else 0,
                shards=quota.shards,
                gigabytes=quota.planned * variants * file / 1e9 if counted else None,
                gpu_hours=None if unknown else hours,
                best_hours=None if cost is None else quota.planned * cost.best_seconds / 3600,
                measured=cost is not None,
                endpoint=isinstance(source, HttpSpec),
            )
        )
    return found
