"""`aigi status`: a run in; the state of its stages and its signs of life out, once or watched."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import completion
from pipeline.cli.show import Json, clear, dump, explained, show, talk, tell
from pipeline.execute import Stopped

if TYPE_CHECKING:
    from pipeline.alive import Seen
    from pipeline.status import Status
    from pipeline.store import Store
    from pipeline.training.logs import Log

_LOCAL, _REMOTE, _LINES = 5.0, 10.0, 60.0
"""Seconds between two looks at a run here and elsewhere; between two lines off a terminal, and
between two looks at the files of a run elsewhere."""


def status(
    run_folder: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Run directory or URL.", autocompletion=completion.places
        ),
    ],
    as_json: Json = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Go on until the run ends, with its exit code; 4: it is gone."
        ),
    ] = False,
) -> None:
    """Show every stage of a run: shards done, failed and missing, rows, bytes, time.

    Of a run at work, show what each process does, at which rate, the time left, and how long ago it
    gave its last sign of life. For codecs in training, show the step and the latest means.
    """
    with explained():
        from pipeline.alive import Watcher
        from pipeline.status import status as stage_status
        from pipeline.store import Store
        from pipeline.training.logs import logs

        store = Store(run_folder)
        if watch:
            raise typer.Exit(_watched(store, as_json))
        seen, wrong = Watcher(store).look()
        found, codecs = stage_status(store, seen), logs(store)
        if as_json:
            dump(_as_json(found, seen, codecs))
            return
        _show(found, seen, wrong, codecs)


def _as_json(
    found: Sequence[Status], seen: Sequence[Seen], codecs: Sequence[Log]
) -> list[dict[str, Any]]:
    from dataclasses import asdict

    rows = [asdict(stage) | {"alive": []} for stage in found]
    for one in seen:
        sign = one.sign.model_dump(mode="json", exclude={"lines"})
        ages = {"age": one.age, "measured": one.measured, "gone": one.gone, "silent": one.silent}
        mine = [row for row in rows if row["table"] == one.sign.stage]
        if not mine:
            mine = [{"table": one.sign.stage, "state": "running", "alive": []}]
            rows += mine
        mine[0]["alive"].append(sign | ages)
    return rows + [
        {"table": f"train/{log.name}", "step": log.step, "steps": log.steps, "seconds": log.seconds}
        for log in codecs
    ]


def _show(
    found: Sequence[Status], seen: Sequence[Seen], wrong: Sequence[str], codecs: Sequence[Log]
) -> None:
    from rich.table import Table

    from pipeline.progress import duration

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
        show(table)
    for stage in found:
        if stage.note:
            tell(f"{stage.table}: {stage.note}")
        if stage.kept_rows:
            tell(
                f"{stage.table}: {stage.kept_rows:,} finished rows of unfinished shards are kept "
                f"({stage.kept_bytes / 1e6:,.1f} MB)"
            )
    for line in (*_lines(seen), *wrong):
        tell(line)
    table = Table("codec in training")
    for heading in ("step", "loss", "bpp", "PSNR, dB", "time"):
        table.add_column(heading, justify="right")
    for log in codecs:
        last = log.curve[-1] if log.curve else {}
        numbers = (
            f"{last[name]:{form}}" if name in last else ""
            for name, form in (("loss", ".4g"), ("bpp", ".4f"), ("psnr", ".2f"))
        )
        table.add_row(log.name, log.progress, *numbers, duration(log.seconds))
    if codecs:
        show(table)


def _lines(seen: Sequence[Seen]) -> list[str]:
    """A line for each process: what it does, and its last sign of life."""
    from pipeline.progress import duration

    found = []
    for one in seen:
        sign = one.sign
        # Between two signs the time since the last batch goes on.
        batch = f"last batch {duration(sign.idle + (one.age or 0.0))} ago" if sign.unit else ""
        clocks = "" if one.measured or one.gone else "by the clocks of this machine and the storage"
        what = str(sign.doing()) if sign.stage else "starts"
        if sign.role == "worker":
            what = f"worker {sign.process.host}/{sign.process.pid}: {sign.stage}/{sign.shard}: " + (
                f"{sign.done:,} rows made"
            )
        else:
            what += f" [{sign.process.host}/{sign.process.pid}]"
        found.append("; ".join(filter(None, (what, batch, str(one), clocks))))
    return found


def _watched(store: Store, as_json: bool) -> int:
    """Show a run until it ends; the exit code of its command, or that it is gone."""
    from pipeline.alive import Watcher
    from pipeline.status import status as stage_status
    from pipeline.status import verdict
    from pipeline.training.logs import logs

    live = sys.stdout.isatty() and not as_json
    watcher, started = Watcher(store), time.monotonic()
    looked = shown = -_LINES
    found: list[Status] = []
    before: list[str] = []
    try:
        while True:
            now = time.monotonic()
            seen, wrong = watcher.look()
            working = any(one.sign.role == "driver" and not one.dead for one in seen)
            if store.local or not working or now - looked >= _LINES:
                found, looked = stage_status(store, seen), now
            ended = verdict(store, found, seen, now - started)
            stages = [one.sign.stage for one in seen if one.sign.role == "driver"]
            if live:
                clear()
                _show(found, seen, wrong, logs(store))
            elif now - shown >= _LINES or stages != before or ended is not None:
                shown, before = now, stages
                if as_json:
                    dump(_as_json(found, seen, logs(store)), line=True)
                else:
                    for line in (*_lines(seen), *wrong):
                        tell(line)
            if ended is not None:
                talk(ended[1])
                return ended[0]
            time.sleep(_LOCAL if store.local else _REMOTE)
    except KeyboardInterrupt as error:
        talk("no longer watched; the run itself is not stopped")
        return 128 + (error.number if isinstance(error, Stopped) else 2)
