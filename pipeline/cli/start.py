"""`aigi generate`, `new` and `workflows`: a few words in, a workflow of one's own out."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from pipeline.cli import completion
from pipeline.cli.run import AllowFewer, carry_out, what_it_takes
from pipeline.cli.show import Json, Quiet, dump, explained, note, show, talk, tell


def generate(
    model: Annotated[
        str,
        typer.Option(
            metavar="ID|FOLDER|FILE",
            help="Hub id (ORG/NAME, and @REVISION behind it), a folder, one .safetensors file, or "
            "the name of a source of aigi's specifications, such as sdxl.",
            autocompletion=completion.models,
        ),
    ],
    prompts: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="A .txt with a prompt a line, or a table of prompts.",
            autocompletion=completion.places,
        ),
    ],
    count: Annotated[
        int | None, typer.Option(min=1, help="Images to make; default: one of each prompt.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Run directory or URL; default: runs/MODEL."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE|ID[@SCALE]", help="LoRA to fuse into the model; repeatable."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Pixels; default: what the model is for.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="num_inference_steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0)] = None,
    negative_prompt: Annotated[str, typer.Option(help="What images must not show.")] = "",
    scheduler: Annotated[
        str | None, typer.Option(help="Of diffusers, such as euler; default: the model's own.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16; default: by the device.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images made at once.")] = None,
    seed: Annotated[int, typer.Option(help="From which all seeds of images are hashed.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="GPUs of this machine, by Ray.")] = 1,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="ID|FOLDER", help="Configurations of a .safetensors file: of its base model."
        ),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Of the prompts in a table.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the images; default: what the model's card states.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would take; write and make nothing.")
    ] = False,
    replace_images: Annotated[
        bool,
        typer.Option("--replace", help="Remove images that changed settings cannot keep."),
    ] = False,
    allow_fewer: AllowFewer = False,
    quiet: Quiet = False,
) -> None:
    """Make images of a list of prompts by one model: a release that loads, in one command.

    The workflow that it runs is written beside the run, as RUN.yaml. The same command resumes; a
    higher --count extends the run; and everything else is a matter of editing that file.
    """
    with explained():
        import yaml

        from pipeline.intact import Checks
        from pipeline.settings import check
        from pipeline.starts.generate import Wanted, named
        from pipeline.starts.generate import generate as workflow_of
        from pipeline.starts.written import write
        from pipeline.workflow import Workflow, load

        wanted = Wanted(
            model=model, prompts=prompts, out=out or "", count=count, loras=tuple(lora or ()),
            size=size, steps=steps, guidance_scale=guidance_scale,
            negative_prompt=negative_prompt, scheduler=scheduler, dtype=dtype,
            batch_size=batch_size, seed=seed, workers=workers, config=config, column=column,
            licence=licence,
        )  # fmt: skip
        if out is None:
            stem = model.rstrip("/").rpartition("/")[2].partition("@")[0]
            wanted = replace(wanted, out=f"runs/{named(stem.removesuffix('.safetensors'))}")
        made = workflow_of(wanted)
        workflow = check(Workflow, yaml.safe_load(made.text), str(made.file))
        for line in made.said:
            talk(line)
        if dry_run:
            what_it_takes(workflow)
            return
        write(made.file, made.text, over=True)
        note(workflow=str(made.file))
        talk(f"workflow: {made.file}")
        carry_out(load(made.file), quiet, allow_fewer, Checks(replace=replace_images))
        talk(f"other settings: edit {made.file}, and aigi run {made.file}")


def new(
    name: Annotated[str, typer.Argument(help="Of the workflow file to write: NAME.yaml.")],
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="generate, import, train or benchmark.",
            autocompletion=completion.kinds,
        ),
    ],
) -> None:
    """Write a commented workflow, with its specification in it, ready to be edited."""
    with explained():
        from pipeline.starts.new import new as write_new

        file = write_new(name, kind)
        tell(f"workflow: {file}", workflow=str(file))
        talk(f"next: edit it, then aigi run {file} --dry-run")


def workflows(as_json: Json = False) -> None:
    """List the workflows that came with aigi, which `aigi run NAME` runs from any folder."""
    with explained():
        from pipeline.workflow import shipped

        if as_json:
            dump([{"name": name, "does": does} for name, does in shipped().items()])
            return
        from rich.table import Table

        table = Table("workflow", "what it does")
        for name, does in shipped().items():
            table.add_row(name, does)
        show(table)
        talk("See what one would take: aigi run NAME --dry-run; write one of your own: aigi new")
