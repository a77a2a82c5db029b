"""The `aigi` command: arguments in, a run, a table or an error with its remedy out."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline import __version__
from pipeline.cli.codec import decode, encode
from pipeline.cli.options import scripted
from pipeline.cli.pages import merge_reviews, report, review
from pipeline.cli.preview import preview
from pipeline.cli.probe import probe
from pipeline.cli.release import diff, publish, verify
from pipeline.cli.run import demo, run, schema, sweep
from pipeline.cli.show import guard, tell
from pipeline.cli.start import generate, new, workflows
from pipeline.cli.status import status
from pipeline.cli.watermark import watermarks

app = typer.Typer(
    help="Build, publish and measure datasets of AI-generated images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# In this order the help lists them.
VERBS = (
    generate, new, preview, run, workflows, probe, demo, status, verify, publish, diff, sweep,
    report, review, merge_reviews, encode, decode, schema,
)  # fmt: skip
for verb in VERBS:
    app.command()(scripted(verb))
app.add_typer(watermarks, name="watermark")


def _version(value: bool) -> None:
    if value:
        tell(f"aigi {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Build, publish and measure datasets of AI-generated images."""
    guard()
