"""`aigi report`, `review` and `merge-reviews`: a run in, a page or a table of decisions out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import AigiError
from pipeline.cli.show import explained, talk, tell
from pipeline.files import write_file
from pipeline.outside import on_this_machine, reached


def report(
    run_folder: Annotated[str, typer.Argument(metavar="RUN", help="Run directory or URL.")],
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
        tell(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
        if figures is not None:
            files = charts(sections)
            with reached(on_this_machine(figures)):
                figures.mkdir(parents=True, exist_ok=True)
            for name, svg in files.items():
                write(svg, figures / name)
            tell(f"{figures}: {len(files):,} charts")


def review(
    run_folder: Annotated[str, typer.Argument(metavar="RUN", help="Run directory or URL.")],
    reason: Annotated[
        str, typer.Option(help="Reasons of the selection, or `kept`, separated by commas.")
    ] = "nsfw,concept,clip_score,duplicate",
    sample: Annotated[int, typer.Option(min=1, help="Most images to show.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed that draws the images.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file.")] = Path("review.html"),
) -> None:
    """Write a page on which a person decides which images to keep; it needs no server.

    The page exports a CSV file for selection.review.
    """
    with explained():
        from pipeline.pages.page import write
        from pipeline.pages.review import review as build
        from pipeline.store import Store

        reasons = [name.strip() for name in reason.split(",") if name.strip()]
        page, images = build(Store(run_folder), reasons, sample, seed)
        write(page, out)
        tell(f"{out}: {images:,} images, {out.stat().st_size / 1e6:.1f} MB")
        talk(
            "next: open it in a browser, export decisions.csv, then "
            "aigi run WORKFLOW --set selection.review=decisions.csv"
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
        from pipeline.selection.agreement import as_csv, merge
        from pipeline.selection.review import read_review

        if len(set(files)) < 2:
            raise AigiError("merge-reviews: give the files of at least two people")
        found = merge({name: read_review(name) for name in files})
        for image, said in found.disagreements.items():
            tell(image + "".join(f"  {name}: {what}" for name, what in said.items() if what))
        write_file(out, as_csv(found.decisions).encode())
        for pair in found.pairs:
            kappa = "undefined" if pair.kappa is None else f"{pair.kappa:.3f}"
            tell(
                f"{pair.one}, {pair.other}: {pair.same:,} of {pair.both:,} decisions agree, "
                f"Cohen's kappa {kappa}"
            )
        tell(
            f"{out}: {len(found.decisions):,} images, {len(found.disagreements):,} unsure "
            "because people disagree"
        )
