"""`aigi watermark detect` and `robustness`: images in, the watermarks read from them out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import AigiError
from pipeline.cli.show import explained, rows_out, show, talk

if TYPE_CHECKING:
    from pipeline.marks.detection import Found


watermarks = typer.Typer(
    help="Detect watermarks, and measure what they survive.", no_args_is_help=True
)


Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]


@watermarks.command()
def detect(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Images, folders, .zip, .parquet, releases."),
    ],
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            help="Look for this mark, e.g. 'visible:text=AI'; default: dwt-dct, dwt-dct-svd and "
            "the marks that a release states.",
        ),
    ] = None,
    logos: Annotated[
        list[Path] | None,
        typer.Option("--logo", help="PNG of a visible mark that a release states."),
    ] = None,
    as_csv: Csv = False,
) -> None:
    """Look for watermarks: print the bit accuracy, and its probability without a mark.

    The exit code is 1 if a file could not be read.
    """
    with explained():
        from pipeline.marks.detection import Found, search, write_csv
        from pipeline.marks.dwt_dct import READ
        from pipeline.marks.names import parse
        from pipeline.marks.visible import read_logo

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
            write_csv(counted(), Found, rows_out())
        else:
            _print_found(counted())
        if failed:
            talk(f"error: {failed} of {total} lines have an error")
            raise typer.Exit(1)


def _print_found(lines: Iterator[Found]) -> None:
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
        table.add_row(found.file, found.stated, found.variant, *numbers, whole)
    show(table)


@watermarks.command()
def robustness(
    folder: Annotated[str, typer.Argument(help="Folder, .zip or .parquet with images.")],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most images to use, spread evenly over the folder.")
    ] = None,
    as_csv: Csv = False,
) -> None:
    """Watermark images, degrade them, and count the recovered messages."""
    with explained():
        from pipeline.marks.detection import Survival, write_csv
        from pipeline.marks.detection import robustness as measure

        lines = measure(folder, limit, talk)
        if as_csv:
            write_csv(lines, Survival, rows_out())
            return
        from rich.table import Table

        table = Table("variant", "after")
        for heading in ("images", "recovered", "mean bit accuracy"):
            table.add_column(heading, justify="right")
        for line in lines:
            table.add_row(
                line.variant,
                line.after,
                f"{line.pictures:,}",
                f"{line.whole:.1%}",
                f"{line.bit_accuracy:.3f}",
            )
        show(table)
