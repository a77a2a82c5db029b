"""`python -m pipeline.cli` is `aigi`."""

from pipeline.cli import app

app()
