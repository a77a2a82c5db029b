"""`aigi report`, `review` and `merge-reviews`: a run in, a page or a table of decisions out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline import AigiError
from pipeline.cli import completion
from pipeline.cli.show import explained, talk, tell
from pipeline.files import write_file
from pipeline.outside import on_this_machine, reached


def report(
    run_folder: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Run directory or URL.", autocompletion=completion.places
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Also write the charts to this folder, as SVG files.")
    ] = None,
) -> None:
    """Write one page that shows a run: counts, images, scores, dropped images and reasons."""
    with explained():
        from pipeline.pages.page import write
        from pipeline.pages.report import charts
        from pipeline.pages.report import report as build
        from pipeline.store import Store

        page, sections = build(Store(run_folder))
        write(page, out)
        tell(f"{out}: {out.stat().st_size / 1e6:.1f} MB", page=str(out))
        if figures is not None:
            files = charts(sections)
            with reached(on_this_machine(figures)):
                figures.mkdir(parents=True, exist_ok=True)
            for name, svg in files.items():
                write(svg, figures / name)
            tell(f"{figures}: {len(files):,} charts")


class Reviewed(StrEnum):
    """What a page of review is about."""

    images = "images"
    prompts = "prompts"


_USUAL = {
    Reviewed.images: "nsfw,concept,clip_score,duplicate",
    Reviewed.prompts: "unsafe,language,personal,near duplicate,kept",
}


def review(
    run_folder: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Run directory or URL.", autocompletion=completion.places
        ),
    ],
    of: Annotated[
        Reviewed, typer.Option(help="What to review: the images of a run, or its prompts.")
    ] = Reviewed.images,
    reason: Annotated[
        str | None,
        typer.Option(
            help="Reasons why they were left out, or `kept`, separated by commas; by default those "
            "that people see better than scores."
        ),
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Most images or prompts to show.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed that draws them.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file.")] = Path("review.html"),
) -> None:
    """Write a page on which a person decides what to keep; it needs no server.

    The page exports a CSV file for selection.review, or prompts.review.
    """
    with explained():
        from pipeline.decisions import SETTINGS
        from pipeline.pages.page import write
        from pipeline.pages.prompt_review import prompt_review
        from pipeline.pages.review import review as image_review
        from pipeline.store import Store

        asked = _USUAL[of] if reason is None else reason
        reasons = [name.strip() for name in asked.split(",") if name.strip()]
        build = prompt_review if of is Reviewed.prompts else image_review
        page, shown = build(Store(run_folder), reasons, sample, seed)
        write(page, out)
        size = f"{out.stat().st_size / 1e6:.1f} MB"
        tell(f"{out}: {shown:,} {of.value}, {size}", page=str(out), shown=shown)
        setting = SETTINGS["prompt_id" if of is Reviewed.prompts else "image_id"]
        talk(
            "next: open it in a browser, export decisions.csv, then "
            f"aigi run WORKFLOW --set {setting}=decisions.csv"
        )


def merge_reviews(
    files: Annotated[
        list[str], typer.Argument(help="CSV files, each with the decisions of one person.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file.")] = Path("decisions.csv"),
) -> None:
    """Merge the decisions of several people, and print disagreements and Cohen's kappa.

    Where people disagree, the decision is `unsure`, so that the scores decide.
    """
    with explained():
        from pipeline.decisions import read_any
        from pipeline.selection.agreement import as_csv, merge

        if len(set(files)) < 2:
            raise AigiError("merge-reviews: give the files of at least two people")
        reviews = {name: read_any(name) for name in files}
        subject, _ = reviews[files[0]]
        for name, (other, _) in reviews.items():
            if other != subject:
                raise AigiError(
                    f"merge-reviews: {name} has decisions about {other}, and {files[0]} about "
                    f"{subject}: merge files of one kind"
                )
        found = merge({name: decisions for name, (_, decisions) in reviews.items()})
        for image, said in found.disagreements.items():
            tell(image + "".join(f"  {name}: {what}" for name, what in said.items() if what))
        write_file(out, as_csv(found.decisions, subject).encode())
        for pair in found.pairs:
            kappa = "undefined" if pair.kappa is None else f"{pair.kappa:.3f}"
            tell(
                f"{pair.one}, {pair.other}: {pair.same:,} of {pair.both:,} decisions agree, "
                f"Cohen's kappa {kappa}"
            )
        tell(
            f"{out}: {len(found.decisions):,} {subject.removesuffix('_id')}s, "
            f"{len(found.disagreements):,} unsure because people disagree",
            decisions=len(found.decisions),
            disagreements=len(found.disagreements),
            pairs=[{"one": pair.one, "other": pair.other, "both": pair.both, "same": pair.same,
                    "kappa": pair.kappa} for pair in found.pairs],
        )  # fmt: skip
