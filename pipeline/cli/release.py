"""`aigi verify`, `publish` and `diff`: a release in, what differs out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import completion
from pipeline.cli.show import (
    Override,
    Quiet,
    Target,
    Trust,
    explained,
    note,
    rows_out,
    show,
    talk,
    tell,
)

if TYPE_CHECKING:
    from pipeline.audit import Remade


def verify(
    target: Target,
    pixels: Annotated[
        int, typer.Option(min=0, metavar="N", help="Make N rows again and compare the images.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed that draws the N rows.")] = 0,
    min_psnr: Annotated[
        float | None,
        typer.Option(help="Least dB of an image that counts as equal; default: equal pixels."),
    ] = None,
    workflow_file: Annotated[
        str | None,
        typer.Option(
            "--workflow",
            help="Workflow with the places of models and images; default: the run's own.",
        ),
    ] = None,
    overrides: Override = None,
    trust: Trust = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every image, and compare its pixels.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Check every file of a run and of its release, and what the release states of its rows.

    The exit code is 1 if a file is not what was written, if the release differs from its manifest
    or its rows from what they and it state, or if an image that is made again differs.
    """
    with explained():
        from pipeline.manifest import ENTRIES, find_release, open_release
        from pipeline.progress import Progress
        from pipeline.release.claims import digest, wrong_claims
        from pipeline.release.verify import compare
        from pipeline.status import damage, records
        from pipeline.store import RECORDS, Store

        progress, run = Progress(quiet=quiet), Store(target)
        is_run = run.fs.exists(run.path(RECORDS))
        if is_run:
            _refuse(damage(run, progress, deep), "files of the run are not right", run.remedy)
            stages = records(run)
            files = sum(len(r.shards) + len(r.files) + len(r.beside) for r in stages)
            tell(f"{target}: {len(stages)} stages, {files:,} files, all as they were written")
        release = find_release(target, ENTRIES)
        if release is None and is_run and run.record("manifest") is None:
            return
        store, manifest = release or open_release(target, ENTRIES)  # which says that there is none
        differences = compare(store, manifest)
        _refuse(differences, "differences from the manifest", store.remedy)
        rows = sum(file["rows"] for file in manifest["files"])
        tell(
            f"{manifest['name']} {manifest['version']}: {len(manifest['files'])} files, "
            f"{rows:,} rows, all equal to the manifest"
        )
        wrong = wrong_claims(store, manifest, progress, deep)
        _refuse(wrong, "statements of the release are wrong", "Make the release again.")
        tell("ids, splits, models and licences are what the rows give" + ", pixels too" * deep)
        found = digest(store, manifest)
        tell(f"digest: {found}", digest=found, name=manifest["name"], version=manifest["version"])
        if pixels:
            from pipeline import settings
            from pipeline import workflow as workflows
            from pipeline.audit import audit
            from pipeline.release.regenerate import places_of

            if workflow_file is not None:
                mine = workflows.load(workflow_file, overrides or ())
            else:
                known = places_of(target) or {"run": target}
                known = settings.overridden(known, overrides or ())
                mine = settings.check(workflows.Workflow, known, target)
            places = mine.model_dump(mode="json")
            made = audit(store, manifest, places, pixels, seed, talk, trust)
            _print_remade(list(made), min_psnr)


def _refuse(lines: list[str], what: str, remedy: str) -> None:
    """Print what is wrong, and end with exit code 1; with nothing wrong, go on."""
    for line in lines:
        tell(line)
    if lines:
        talk(f"error: {len(lines)} {what}. {remedy}")
        raise typer.Exit(1)


def _print_remade(rows: list[Remade], min_psnr: float | None) -> None:
    from rich.table import Table

    table = Table("image", "source", "made again")
    for heading in ("PSNR, dB", "CLIP similarity"):
        table.add_column(heading, justify="right")
    said = {"bytes": "equal bytes", "pixels": "equal pixels", "different": "different"}
    for row in rows:
        table.add_row(
            row.image_id,
            row.source,
            row.error or said[row.same],
            "" if row.psnr is None else f"{row.psnr:.2f}",
            "" if row.clip_similarity is None else f"{row.clip_similarity:.4f}",
        )
    show(table)
    for there, here in dict.fromkeys((row.there, row.here) for row in rows):
        tell(f"made with:       {there}")
        tell(f"made again with: {here}")
    least = float("inf") if min_psnr is None else min_psnr
    bad = [row for row in rows if row.same == "different" and (row.psnr or 0.0) < least]
    if bad:
        talk(f"error: {len(bad)} of {len(rows)} images differ")
        raise typer.Exit(1)
    tell(f"{len(rows)} images made again, none differs" + (" by more" if min_psnr else ""))


def publish(
    run_folder: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Run or release folder.", autocompletion=completion.places
        ),
    ],
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
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Also over another dataset, a version as high or higher, or configs that vanish.",
        ),
    ] = False,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="NAME",
            help="Add or replace this config alone; the others there stay. May be repeated.",
            autocompletion=completion.sources,
        ),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(help="With --source: of the whole that is then published."),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Of a run at work: publish the sources that are complete, as VERSION-partial.N.",
        ),
    ] = False,
) -> None:
    """Publish a release, compare what arrived with the manifest, tag it, and load it back."""
    with explained():
        from contextlib import ExitStack

        from rich.table import Table

        from pipeline.release.publish import publish as send

        with ExitStack() as stack:
            if partial:
                from pipeline.partial import complete
                from pipeline.progress import Progress

                found = stack.enter_context(
                    complete(run_folder, sources, Progress(), talk, dry_run)
                )
                run_folder, sources = found.folder, list(found.sources)
            changes, published = send(
                run_folder,
                to,
                dry_run=dry_run,
                public=public,
                pull_request=pull_request,
                revision=revision,
                replace=replace,
                sources=sources or None,
                version=version,
                partial=partial,
                say=talk,
            )
        table = Table("files", title="What would change" if dry_run else "What was done")
        for heading in ("number", "MB"):
            table.add_column(heading, justify="right")
        table.add_column("first")
        for what in ("new", "changed", "removed", "same"):
            mine = [change for change in changes if change.what == what]
            size = sum(change.bytes for change in mine) / 1e6
            table.add_row(what, f"{len(mine):,}", f"{size:,.1f}", mine[0].path if mine else "")
        show(table)
        note(changes=[{"what": change.what, "path": change.path, "bytes": change.bytes}
                      for change in changes])  # fmt: skip
        if published is None:
            talk("nothing was sent")
            return
        for (config, split), rows in published.rows.items():
            tell(f"{config}/{split}: {rows:,} rows loaded")
        tell(published.page or published.url, url=published.url, pull_request=published.page)
        if published.page is not None:
            talk(
                "next: merge it, then run the same command without --pull-request and --revision: "
                "it only tags the version"
            )
        elif not published.rows and published.revision is not None:
            talk(
                f"next: when main has what is on {published.revision}, run the same command "
                "without --pull-request and --revision: it only tags the version"
            )
        else:
            talk(f"next: aigi verify {published.url}")


def diff(
    first: Target,
    second: Target,
    limit: Annotated[int, typer.Option(min=0, help="Most rows to list of each kind.")] = 20,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every row as CSV.")] = False,
) -> None:
    """Show the rows that were added, removed or changed between two releases.

    The exit code is 1 if there are any.
    """
    with explained():
        from collections import Counter

        from pipeline.marks.detection import write_csv
        from pipeline.release.diff import Difference
        from pipeline.release.diff import diff as compare

        counts: Counter[tuple[str, str, str]] = Counter()
        named: Counter[str] = Counter()

        def counted() -> Iterator[Difference]:
            for found in compare(first, second):
                counts[found.what, found.config, found.split] += 1
                named[found.what] += 1
                yield found

        if as_csv:
            write_csv(counted(), Difference, rows_out())
        else:
            for found in counted():
                if named[found.what] <= limit:
                    what = f": {found.columns}" if found.columns else ""
                    tell(f"{found.what} {found.config}/{found.split} {found.image_id}{what}")
        note(counts=[{"what": what, "config": config, "split": split, "rows": count}
                     for (what, config, split), count in sorted(counts.items())])  # fmt: skip
        for (what, config, split), count in sorted(counts.items()):
            talk(f"{config}/{split}: {count:,} {what}")
        if counts:
            raise typer.Exit(1)
        talk("no row differs")
