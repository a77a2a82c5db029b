"""A workflow in; its stages in order, and what they would cost, out."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import AigiError
from pipeline.run import Stage
from pipeline.workflow import BlipCaptions, Workflow


def stages(workflow: Workflow) -> list[Stage]:
    """The stages whose sections the workflow has, in the order in which they run.

    Raises:
        AigiError: a section needs another one that is missing.
    """
    from pipeline.dataset import captioner, images, plan, prompts, release, selection

    found: list[Stage] = []
    if workflow.prompts is not None:
        if any(isinstance(source, BlipCaptions) for source in workflow.prompts.sources):
            found += captioner.stages(workflow)
        found.append(prompts.stage(workflow))
    if workflow.plan is not None:
        found.append(plan.stage(workflow))
    for name in ("images", "release"):
        if getattr(workflow, name) is not None and workflow.plan is None:
            raise AigiError(f"{name}: this section needs a plan section in the workflow")
    if workflow.images is not None:
        found += [images.stage(workflow), selection.stage(workflow)]
    if workflow.release is not None:
        found += [release.stage(workflow), release.manifest_stage(workflow)]
    return found


@dataclass(frozen=True)
class Estimate:
    """What one source and split will be, and roughly cost (one GPU, PNG)."""

    source: str
    title: str
    split: str
    size: str
    counted: bool  # false: as many as the import finds
    images: int
    planned: int
    prompts: int
    shards: int
    gigabytes: float
    gpu_hours: float


def estimate(workflow: Workflow) -> list[Estimate]:
    """Counts, shards, disk and GPU-hours, from the dataset specification alone.

    GPU-hours are arithmetic: TFLOP of an image (the specification's figures, times steps, twice
    with guidance) over `compute.gpu_tflops`.

    Raises:
        AigiError: the workflow has no plan.
    """
    from pipeline.dataset import plan, specification
    from pipeline.dataset.specification import DiffusersSpec

    if workflow.plan is None:
        raise AigiError("plan: there is no such section, so there is nothing to estimate")
    dataset = specification.load(workflow.plan.dataset)
    found = []
    for quota in plan.quotas(dataset, workflow.plan):
        source, spec = dataset.sources[quota.source], quota.spec
        hours = 0.0
        if isinstance(source, DiffusersSpec) and spec.unet_tflop is not None:
            evaluations = source.steps * (2 if source.guidance_scale > 1 else 1)
            each = spec.unet_tflop * evaluations + (spec.vae_tflop or 0.0)
            hours = quota.planned * each / workflow.compute.gpu_tflops / 3600
        variants = len(spec.watermarks)
        pixels = (spec.width or 1024) * (spec.height or 1024)
        found.append(
            Estimate(
                source=quota.source,
                title=source.title,
                split=quota.split,
                size=f"{spec.width}x{spec.height}" if spec.width and spec.height else "any",
                counted=spec.count is not None,
                images=quota.images,
                planned=quota.planned * variants,
                prompts=quota.prompts if isinstance(source, DiffusersSpec) else 0,
                shards=quota.shards,
                gigabytes=quota.planned * variants * pixels * plan.BYTES_PER_PIXEL / 1e9,
                gpu_hours=hours,
            )
        )
    return found
