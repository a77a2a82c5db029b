"""The `aigi` command: arguments in, a run, a table or an error with its remedy out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import AigiError, __version__

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.dataset.audit import Remade
    from pipeline.dataset.detection import Found
    from pipeline.workflow import Workflow

app = typer.Typer(
    help="Build, publish and measure datasets of AI-generated images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one value, e.g. plan.limit=8."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print failures only.")]


@contextmanager
def _explained() -> Iterator[None]:
    """Print errors that the user can act on without a traceback."""
    try:
        yield
    except AigiError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("\nstopped. Finished shards are kept; run again to go on.", file=sys.stderr)
        raise typer.Exit(130) from None


def _print(table: Table) -> None:
    from rich.console import Console

    # A pipe has no width of its own; never cut a number there.
    Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True).print(table)


def _execute(workflow: Workflow, quiet: bool) -> None:
    from pipeline.run import alone

    # Of several processes that train together, the first holds the directory for all.
    with alone(workflow.run) if os.environ.get("RANK", "0") == "0" else nullcontext():
        _make(workflow, quiet)


def _make(workflow: Workflow, quiet: bool) -> None:
    from pipeline.dataset.stages import make, stages
    from pipeline.progress import Progress
    from pipeline.run import run_stages
    from pipeline.tables import Store

    progress = Progress(quiet=quiet)
    looks = (workflow.characteristics, workflow.alignments, workflow.benchmark_here())
    others = bool(stages(workflow)) or any(section is not None for section in looks)
    if others and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AigiError(
            "run: a launcher started several processes, and only training is made for them. "
            "Run the other sections in a workflow of their own, without it."
        )
    if stages(workflow):
        make(workflow, Store(workflow.run), progress)
    elif os.environ.get("RANK", "0") == "0":
        _record(workflow)
    if workflow.characteristics is not None or workflow.alignments is not None:
        from pipeline.analysis.stages import stages as analysis_stages

        store = Store(workflow.run)
        run_stages(analysis_stages(workflow), store, workflow.compute, progress)
    if workflow.train is not None:
        from pipeline.learned.train import train

        train(workflow, progress)
    if (benchmark := workflow.benchmark_here()) is not None:
        from pipeline.benchmark.stages import make as measure

        store = Store(workflow.run)
        print(f"benchmark: {measure(benchmark, workflow.compute, store, progress)}")


def _record(workflow: Workflow) -> None:
    """Keep a workflow of readers alone in its run, unless that has the one which built it."""
    from pipeline.run import RUN_WORKFLOW
    from pipeline.tables import Store

    store = Store(workflow.run)
    if (store.read_json(RUN_WORKFLOW) or {}).get("plan") is None:
        store.write_json(workflow.model_dump(mode="json"), RUN_WORKFLOW)


@app.command()
def run(
    workflow_file: Annotated[str, typer.Argument(help="Workflow file, see workflows/.")],
    overrides: Override = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print counts, disk and GPU-hours, then stop.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run the stages of a workflow; finished work is kept, so the same command resumes."""
    with _explained():
        from pipeline import workflow as workflows

        workflow = workflows.load(workflow_file, overrides or ())
        if dry_run:
            from pipeline.dry_run import parts

            for part in parts(workflow):
                print(part, flush=True) if isinstance(part, str) else _print(part)
            return
        _execute(workflow, quiet)
        if workflow.release is not None:
            folder = workflow.run.rstrip("/") + "/release"
            print(f"release: {folder}", flush=True)
            print(f"next: aigi verify {folder}", file=sys.stderr)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/demo"),
    overrides: Override = None,
    quiet: Quiet = False,
) -> None:
    """Make a small dataset with embedded models: no network, no GPU, a few minutes."""
    with _explained():
        from pipeline.demo import run_demo

        run_demo(out, overrides or (), lambda workflow: _execute(workflow, quiet), _print)


@app.command()
def status(
    run_folder: Annotated[str, typer.Argument(metavar="RUN", help="Run directory or URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every stage of a run: shards done, failed and missing, rows, bytes, time.

    Of codecs in training: the step, and what the last steps came to.
    """
    with _explained():
        from dataclasses import asdict

        from pipeline.learned.logs import logs
        from pipeline.progress import duration
        from pipeline.run import status as stage_status
        from pipeline.tables import Store

        store = Store(run_folder)
        found, codecs = stage_status(store), logs(store)
        if as_json:
            rows = [asdict(stage) for stage in found]
            rows += [
                {"table": f"train/{log.name}", "step": log.step, "steps": log.steps,
                 "seconds": log.seconds}
                for log in codecs
            ]  # fmt: skip
            print(json.dumps(rows, indent=1))
            return
        from rich.markup import escape
        from rich.table import Table

        table = Table("stage", "state")
        for heading in ("done", "failed", "missing", "rows", "MB", "time"):
            table.add_column(heading, justify="right")
        for stage in found:
            table.add_row(
                stage.table,
                stage.state,
                f"{stage.done:,}",
                f"{stage.failed:,}",
                f"{stage.missing:,}",
                f"{stage.rows:,}",
                f"{stage.bytes / 1e6:,.1f}",
                duration(stage.seconds),
            )
        if found:
            _print(table)
        table = Table("codec in training")
        for heading in ("step", "loss", "bpp", "PSNR, dB", "time"):
            table.add_column(heading, justify="right")
        for log in codecs:
            last = log.curve[-1] if log.curve else {}
            numbers = (
                f"{last[name]:{form}}" if name in last else ""
                for name, form in (("loss", ".4g"), ("bpp", ".4f"), ("psnr", ".2f"))
            )
            table.add_row(escape(log.name), log.progress, *numbers, duration(log.seconds))
        if codecs:
            _print(table)


Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="Release folder, run, or hf://datasets/ORG/NAME@REVISION.",
    ),
]


@app.command()
def verify(
    target: Target,
    pixels: Annotated[
        int, typer.Option(min=0, metavar="N", help="Make N rows again and compare the pictures.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Which N rows.")] = 0,
    min_psnr: Annotated[
        float | None,
        typer.Option(help="dB from which a picture counts as the same; default: equal pixels."),
    ] = None,
    workflow_file: Annotated[
        str | None,
        typer.Option(
            "--workflow",
            help="Says where models and pictures lie here; default: the run's own.",
        ),
    ] = None,
    overrides: Override = None,
) -> None:
    """Compare a release with its manifest, and rows of it with rows made again.

    Exit code 1 where a file, its rows or its columns differ, or a picture does.
    """
    with _explained():
        from pipeline.dataset.manifest import compare, open_release

        store, manifest = open_release(target)
        differences = compare(store, manifest)
        for line in differences:
            print(line)
        if differences:
            print(f"error: {len(differences)} differences from the manifest", file=sys.stderr)
            raise typer.Exit(1)
        rows = sum(file["rows"] for file in manifest["files"])
        print(
            f"{manifest['name']} {manifest['version']}: {len(manifest['files'])} files, "
            f"{rows:,} rows, all as in the manifest"
        )
        if pixels:
            from pipeline import workflow as workflows
            from pipeline.dataset.audit import audit, places_of

            if workflow_file is not None:
                mine = workflows.load(workflow_file, overrides or ())
            else:
                known = places_of(target) or {"run": target}
                known = workflows.overridden(known, overrides or ())
                mine = workflows.check(workflows.Workflow, known, target)
            places = mine.model_dump(mode="json")
            made = audit(store, manifest, places, pixels, seed, _talk)
            _print_remade(list(made), min_psnr)


def _talk(text: str) -> None:
    print(text, file=sys.stderr)


def _print_remade(rows: list[Remade], min_psnr: float | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("image", "source", "made again")
    for heading in ("PSNR, dB", "CLIP similarity"):
        table.add_column(heading, justify="right")
    said = {"bytes": "equal bytes", "pixels": "equal pixels", "different": "different"}
    for row in rows:
        table.add_row(
            row.image_id,
            row.source,
            escape(row.error or said[row.same]),
            "" if row.psnr is None else f"{row.psnr:.2f}",
            "" if row.clip_similarity is None else f"{row.clip_similarity:.4f}",
        )
    _print(table)
    for there, here in dict.fromkeys((row.there, row.here) for row in rows):
        print(f"made with:       {there}\nmade again with: {here}")
    least = float("inf") if min_psnr is None else min_psnr
    bad = [row for row in rows if row.same == "different" and (row.psnr or 0.0) < least]
    if bad:
        print(f"error: {len(bad)} of {len(rows)} pictures differ", file=sys.stderr)
        raise typer.Exit(1)
    print(f"{len(rows)} pictures made again, none differs" + (" by more" if min_psnr else ""))


@app.command()
def publish(
    run_folder: Annotated[str, typer.Argument(metavar="RUN", help="Run or release folder.")],
    to: Annotated[str, typer.Option(help="hf://datasets/ORG/NAME, a folder, or an fsspec URL.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change there, then stop.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Create a public repository; default: private.")
    ] = False,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Open a pull request instead of committing.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch or refs/pr/N to commit to; default: main.")
    ] = None,
) -> None:
    """Publish a release, compare what arrived with the manifest, tag it, and load it back."""
    with _explained():
        from rich.table import Table

        from pipeline.dataset.publish import publish as send

        changes, published = send(
            run_folder,
            to,
            dry_run=dry_run,
            public=public,
            pull_request=pull_request,
            revision=revision,
            say=_talk,
        )
        table = Table("files", title="What would change" if dry_run else "What was done")
        for heading in ("number", "MB"):
            table.add_column(heading, justify="right")
        table.add_column("first")
        for what in ("new", "changed", "removed", "same"):
            mine = [change for change in changes if change.what == what]
            size = sum(change.bytes for change in mine) / 1e6
            table.add_row(what, f"{len(mine):,}", f"{size:,.1f}", mine[0].path if mine else "")
        _print(table)
        if published is None:
            print("nothing was sent", file=sys.stderr)
            return
        for (config, split), rows in published.rows.items():
            print(f"{config}/{split}: {rows:,} rows load")
        print(published.page or published.url)
        if published.revision is not None and not published.rows:
            print(
                "next: merge it, then run the same command without --pull-request and --revision: "
                "it sends nothing again, and tags the version",
                file=sys.stderr,
            )
        else:
            print(f"next: aigi verify {published.url}", file=sys.stderr)


@app.command()
def diff(
    first: Target,
    second: Target,
    limit: Annotated[int, typer.Option(min=0, help="Rows named of each kind.")] = 20,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every row as CSV.")] = False,
) -> None:
    """Show the rows that were added, removed or changed between two releases.

    Exit code 1 where there are any.
    """
    with _explained():
        from collections import Counter

        from pipeline.dataset.detection import write_csv
        from pipeline.dataset.diff import Difference
        from pipeline.dataset.diff import diff as compare

        counts: Counter[tuple[str, str, str]] = Counter()
        named: Counter[str] = Counter()

        def counted() -> Iterator[Difference]:
            for found in compare(first, second):
                counts[found.what, found.config, found.split] += 1
                named[found.what] += 1
                yield found

        if as_csv:
            write_csv(counted(), Difference, sys.stdout)
        else:
            for found in counted():
                if named[found.what] <= limit:
                    what = f": {found.columns}" if found.columns else ""
                    print(f"{found.what} {found.config}/{found.split} {found.image_id}{what}")
        for (what, config, split), count in sorted(counts.items()):
            print(f"{config}/{split}: {count:,} {what}", file=sys.stderr)
        if counts:
            raise typer.Exit(1)
        print("no row differs", file=sys.stderr)


@app.command()
def sweep(
    workflow_file: Annotated[str, typer.Argument(help="Workflow of a run with scores.")],
    overrides: Override = None,
    examples: Annotated[int, typer.Option(min=0, help="Images shown for each threshold.")] = 3,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet of the examples (.jpg, .png).")
    ] = None,
) -> None:
    """Show how many images each threshold of the selection would drop, with examples."""
    with _explained():
        from rich.markup import escape
        from rich.table import Table

        from pipeline import workflow as workflows
        from pipeline.dataset.sweep import sweep as sweep_run
        from pipeline.tables import Store

        loaded = workflows.load(workflow_file, overrides or ())
        table = Table("setting", title=f"What thresholds would drop in {escape(loaded.run)}")
        table.add_column("threshold", justify="right")
        table.add_column("dropped", justify="right")
        for heading in ("by source", "nearest to the threshold"):
            table.add_column(heading)
        lines = list(sweep_run(loaded, Store(loaded.run), examples))
        for line in lines:
            table.add_row(
                escape(line.setting),
                f"{line.threshold:.4g}" + (" (now)" if line.current else ""),
                f"{line.dropped:,} of {line.scored:,}",
                ", ".join(f"{name} {count:,}" for name, count in line.sources.items()),
                " ".join(line.examples),
            )
        _print(table)
        if sheet is not None:
            from pipeline.dataset.sweep_sheet import draw

            draw(Store(loaded.run), lines, sheet)
            print(f"sheet: {sheet}")


@app.command()
def report(
    run_folder: Annotated[str, typer.Argument(metavar="RUN", help="Run directory or URL.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Folder for its charts, as SVG files.")
    ] = None,
) -> None:
    """Write one page that shows a run: counts, pictures, scores, what was dropped and why."""
    with _explained():
        from pipeline.pages.page import write
        from pipeline.pages.report import charts
        from pipeline.pages.report import report as build
        from pipeline.tables import Store

        page, sections = build(Store(run_folder))
        write(page, out)
        print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
        if figures is not None:
            files = charts(sections)
            figures.mkdir(parents=True, exist_ok=True)
            for name, svg in files.items():
                write(svg, figures / name)
            print(f"{figures}: {len(files):,} charts")


@app.command()
def review(
    run_folder: Annotated[str, typer.Argument(metavar="RUN", help="Run directory or URL.")],
    reason: Annotated[
        str, typer.Option(help="Reasons of the selection, or `kept`, with commas between.")
    ] = "nsfw,concept,clip_score,duplicate",
    sample: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 500,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file.")] = Path("review.html"),
) -> None:
    """Write a page on which a person decides what stays; it needs no server.

    Its CSV file is what selection.review takes.
    """
    with _explained():
        from pipeline.pages.page import write
        from pipeline.pages.review import review as build
        from pipeline.tables import Store

        reasons = [name.strip() for name in reason.split(",") if name.strip()]
        page, images = build(Store(run_folder), reasons, sample, seed)
        write(page, out)
        print(f"{out}: {images:,} images, {out.stat().st_size / 1e6:.1f} MB")
        print(
            "next: open it in a browser, export decisions.csv, then "
            "aigi run WORKFLOW --set selection.review=decisions.csv",
            file=sys.stderr,
        )


@app.command()
def merge_reviews(
    files: Annotated[list[Path], typer.Argument(help="Decisions of one person each (CSV).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file.")] = Path("decisions.csv"),
) -> None:
    """Merge the decisions of several people; print where they disagree, and Cohen's kappa.

    Where people disagree the decision is `unsure`: the scores decide.
    """
    with _explained():
        from pipeline.dataset.selection import read_review
        from pipeline.pages.agreement import as_csv, merge

        names = [str(file) for file in files]
        if len(set(names)) < 2:
            raise AigiError("merge-reviews: give the files of two people or more")
        found = merge({name: read_review(name) for name in names})
        for image, said in found.disagreements.items():
            print(image + "".join(f"  {name}: {what}" for name, what in said.items() if what))
        _write(out, as_csv(found.decisions).encode())
        for pair in found.pairs:
            kappa = "undefined" if pair.kappa is None else f"{pair.kappa:.3f}"
            print(
                f"{pair.one}, {pair.other}: {pair.same:,} of {pair.both:,} decisions the same, "
                f"Cohen's kappa {kappa}"
            )
        print(
            f"{out}: {len(found.decisions):,} images, {len(found.disagreements):,} unsure "
            "for want of agreement"
        )


watermarks = typer.Typer(
    help="Read watermarks, and measure what they survive.", no_args_is_help=True
)
app.add_typer(watermarks, name="watermark")
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]


@watermarks.command()
def detect(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Pictures, folders, .zip, .parquet, releases."),
    ],
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            help="Look for this one, e.g. 'visible:text=AI'; default: dwt-dct, dwt-dct-svd and "
            "what a release states.",
        ),
    ] = None,
    logos: Annotated[
        list[Path] | None,
        typer.Option("--logo", help="PNG of a visible mark that a release states."),
    ] = None,
    as_csv: Csv = False,
) -> None:
    """Look for watermarks: bit accuracy, and the chance of it without a mark.

    Exit code 1 where a file could not be read.
    """
    with _explained():
        from pipeline.dataset.detection import Found, search, write_csv
        from pipeline.dataset.visible import read_logo
        from pipeline.dataset.watermark import parse
        from pipeline.dwt_dct import READ

        try:
            for logo in logos or ():
                read_logo(logo)
            wanted = tuple(str(parse(name, Path.cwd())) for name in variants or READ)
        except ValueError as error:
            raise AigiError(str(error)) from None
        failed = total = 0

        def counted() -> Iterator[Found]:
            nonlocal failed, total
            for found in search(paths, wanted):
                total, failed = total + 1, failed + bool(found.error)
                yield found

        if as_csv:
            write_csv(counted(), Found, sys.stdout)
        else:
            _print_found(counted())
        if failed:
            print(f"error: {failed} of {total} lines have an error", file=sys.stderr)
            raise typer.Exit(1)


def _print_found(lines: Iterator[Found]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("file", "stated", "variant")
    for heading in ("bit accuracy", "match", "p-value"):
        table.add_column(heading, justify="right")
    table.add_column("whole message")
    for found in lines:
        numbers = (
            "" if number is None else f"{number:{form}}"
            for number, form in (
                (found.bit_accuracy, ".3f"),
                (found.match, ".3f"),
                (found.p_value, ".2g"),
            )
        )
        whole = {True: "yes", False: "no", None: found.error}[found.whole]
        texts = (escape(text) for text in (found.file, found.stated, found.variant))
        table.add_row(*texts, *numbers, escape(whole))
    _print(table)


@watermarks.command()
def robustness(
    folder: Annotated[str, typer.Argument(help="Folder, .zip or .parquet of pictures.")],
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many, spread evenly over the folder.")
    ] = None,
    as_csv: Csv = False,
) -> None:
    """Mark pictures, harm them, and count how many messages are still read back whole."""
    with _explained():
        from pipeline.dataset.detection import Survival, write_csv
        from pipeline.dataset.detection import robustness as measure

        lines = measure(folder, limit, lambda text: print(text, file=sys.stderr))
        if as_csv:
            write_csv(lines, Survival, sys.stdout)
            return
        from rich.table import Table

        table = Table("variant", "after")
        for heading in ("pictures", "read back whole", "mean bit accuracy"):
            table.add_column(heading, justify="right")
        for line in lines:
            table.add_row(
                line.variant,
                line.after,
                f"{line.pictures:,}",
                f"{line.whole:.1%}",
                f"{line.bit_accuracy:.3f}",
            )
        _print(table)


Codec = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Name, folder or Hub id of a codec.", show_default="catc-small"
    ),
]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of the model.")]
TextFolder = Annotated[
    Path | None, typer.Option("--text", help="Folder of the text encoder, instead of the Hub's.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.command()
def encode(
    image: Annotated[Path, typer.Argument(help="PNG, JPEG, WebP, … ; alpha is laid over white.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    model: Codec = None,
    prompt: Annotated[str, typer.Option(help="What it shows; it is stored in the file.")] = "",
    quality: Annotated[
        int | None,
        typer.Option(
            "--quality", "-q", help="1, 2, …, from low to high rate.", show_default="the highest"
        ),
    ] = None,
    revision: Revision = None,
    text_folder: TextFolder = None,
    device: Device = "auto",
) -> None:
    """Code a picture to an .aigi file with a learned codec."""
    with _explained():
        from pipeline.learned.bitstream import MOST_PIXELS, rates
        from pipeline.learned.codec import load
        from pipeline.learned.shipped import DEFAULT, shipped
        from pipeline.pixels import BadPicture
        from pipeline.pixels import decode as decode_picture

        try:
            picture = decode_picture(_read(image), MOST_PIXELS)
        except BadPicture as error:
            raise AigiError(f"{image}: {error}") from None
        codec = load(DEFAULT if model is None else model, revision, device, text_folder)
        data = codec.encode(picture.rgb, prompt, quality)
        _write(out, data)
        found = rates(data)
        note = f" ({picture.note})" if picture.note else ""
        print(
            f"{out}: {len(data):,} bytes, {found.bpp:.4f} bpp, "
            f"{found.bpp_without_prompt:.4f} without the prompt{note}"
        )
        if prompt and codec.text is None:
            print(f"{codec.name} does not read prompts; none is stored", file=sys.stderr)
        which = "" if model is None or model in shipped() else f" --model {model}"
        # Not the name of the picture itself, which may lie beside the file.
        decoded = out.with_name(f"{out.stem}-decoded.png")
        print(f"next: aigi decode {out}{which} -o {decoded}", file=sys.stderr)


@app.command()
def decode(
    file: Annotated[Path, typer.Argument(help="An .aigi file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file to write.")],
    model: Codec = None,
    revision: Revision = None,
    text_folder: TextFolder = None,
    device: Device = "auto",
) -> None:
    """Decode an .aigi file to a PNG file, with the model that coded it."""
    with _explained():
        from pipeline.learned.bitstream import unpack
        from pipeline.learned.codec import load
        from pipeline.learned.shipped import shipped
        from pipeline.pixels import png_bytes

        data = _read(file)
        header, _ = unpack(data)
        if model is None and header.model in shipped():
            model = header.model
        if model is None:
            raise AigiError(
                f"{file}: made with model {header.model} (weights {header.weights.hex()}). Give "
                "its folder or Hub id as --model."
            )
        picture = load(model, revision, device, text_folder).decode(data)
        _write(out, png_bytes(picture))
        print(f"{out}: {header.width}x{header.height}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AigiError(f"{path}: cannot be read: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    """Write a whole file or none."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise AigiError(f"{path}: cannot be written: {error.strerror}") from error


@app.command()
def schema() -> None:
    """Print the JSON schema of a workflow file, for editors."""
    from pipeline.workflow import Workflow

    print(json.dumps(Workflow.model_json_schema(), indent=1))


def _version(value: bool) -> None:
    if value:
        print(f"aigi {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Build, publish and measure datasets of AI-generated images."""


if __name__ == "__main__":
    app()
