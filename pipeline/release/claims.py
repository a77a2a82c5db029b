"""Rows of a release in; what its manifest, card and metadata claim that is not so, out.

Hashes of files show that nothing changed since the release was made. Here what was claimed then is
computed again from the rows: ids, splits, models, counts and licences; on request, every pixel.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import yaml

from pipeline import AigiError
from pipeline.intact import wrong_pixels
from pipeline.manifest import CARD, MANIFEST, PLAN_FILE, ordered
from pipeline.plan.copied import shards_in, specified
from pipeline.plan.ids import image_id_of
from pipeline.plan.rounds import summary_of
from pipeline.plan.specification import Dataset, HttpSpec, of_row
from pipeline.progress import Progress
from pipeline.prompts.text import prompt_id
from pipeline.release.croissant import CROISSANT, licences
from pipeline.release.diff import narrow
from pipeline.release.front_matter import front_matter
from pipeline.store import Store
from pipeline.tables import OPTIONS

_MOST = 3  # lines of one kind; the last says how many there are


@dataclass
class _Found:
    """What is wrong, by kind: a few lines of each, and how many there are."""

    lines: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, line: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= _MOST:
            self.lines.setdefault(kind, []).append(line)

    def all(self) -> Iterator[str]:
        for kind, lines in self.lines.items():
            yield from lines
            if (more := self.counts[kind] - len(lines)) > 0:
                yield f"{kind}: {more:,} more like this"


def digest(store: Store, manifest: Mapping[str, Any]) -> str:
    """One sha256 of a whole release, in hex.

    It is that of a list as `sha256sum` prints it, of all files of the release, the manifest
    included, sorted by path: `find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n'
    sha256sum | sha256sum` in its folder says the same.
    """
    hashes = {record["path"]: record["sha256"] for record in manifest["files"]}
    hashes |= {record["path"]: record["sha256"] for record in manifest["documents"]}
    hashes[MANIFEST] = hashlib.sha256(store.fs.cat_file(store.path(MANIFEST))).hexdigest()
    paths = sorted(hashes, key=lambda path: path.encode())
    text = "".join(f"{hashes[path]}  {path}\n" for path in paths)
    return hashlib.sha256(text.encode()).hexdigest()


def _planned(store: Store, manifest: Mapping[str, Any], found: _Found) -> dict[str, dict[str, Any]]:
    """Rows of the plan by image id; what the manifest says of them is compared."""
    rows: dict[str, dict[str, Any]] = {}
    shards: list[tuple[str, pa.ChunkedArray]] = []
    listed = any(document["path"] == PLAN_FILE for document in manifest["documents"])
    if not listed:  # releases of before had none
        return rows
    try:
        with store.fs.open(store.path(PLAN_FILE), "rb") as file:
            for shard in shards_in(PLAN_FILE, file):
                planned = shard.to_pylist()
                shards.append((planned[0]["shard"], shard["image_id"]))
                for row in planned:
                    if row["image_id"] in rows:
                        found.add("plan", f"{PLAN_FILE}: {row['image_id']} is planned twice")
                    rows[row["image_id"]] = row
    except AigiError as error:
        found.add("plan", str(error))
        return {}
    for name, value in summary_of(shards).items():
        if manifest["plan"][name] != value:
            stated = manifest["plan"][name]
            found.add("plan", f"{PLAN_FILE}: {name} {value}; the manifest states {stated}")
    return rows


def _row(
    row: Mapping[str, Any],
    plan: Mapping[str, Any] | None,
    where: str,
    config: str,
    dataset: Dataset | None,
    found: _Found,
) -> None:
    image = row["image_id"]
    if plan is not None:
        shared = plan.keys() & row.keys() - {"width", "height"}
        for name in {*shared, OPTIONS.name}:
            here, planned = row.get(name), plan.get(name)
            if planned != here:
                found.add(name, f"{where} ({image}): {name} {here!r}; planned {planned!r}")
    sized = plan if plan is not None else row
    index = None if plan is None else plan["index"]
    facts = {**row, "width": sized["width"], "height": sized["height"], "index": index}
    spec = None if dataset is None else dataset.sources.get(config)
    # The number of an image of an endpoint is in the plan alone.
    known = plan is not None or not isinstance(spec, HttpSpec)
    if known and image_id_of(facts) != image:
        found.add(
            "image_id", f"{where}: image_id {image}, but its columns give {image_id_of(facts)}"
        )
    if prompt_id(row["text"]) != row["prompt_id"]:
        expected = prompt_id(row["text"])
        found.add(
            "prompt_id", f"{where} ({image}): prompt_id {row['prompt_id']}, its text has {expected}"
        )
    if row["source"] != config:
        found.add("source", f"{where} ({image}): source {row['source']!r} in config {config}")
    if spec is None:
        return
    mine = of_row(spec, row)
    if mine is None:
        found.add("model", f"{where} ({image}): the manifest lists no model {row['model']!r} so")
        return
    for name, stated in specified(mine).items():
        if row.get(name) != stated:
            found.add(
                name, f"{where} ({image}): {name} {row.get(name)!r}; the manifest states {stated!r}"
            )


def _configs(head: Mapping[str, Any]) -> dict[str, Any]:
    """Data files by config, in the order of the card."""
    listed = head.get("configs")
    configs = listed if isinstance(listed, list) else []
    return {
        str(one.get("config_name")): one.get("data_files")
        for one in configs
        if isinstance(one, dict)
    }


def _licences(store: Store, manifest: Mapping[str, Any], dataset: Dataset, found: _Found) -> None:
    there = {document["path"] for document in manifest["documents"]}
    if CARD in there:
        text = store.fs.cat_file(store.path(CARD)).decode(errors="replace")
        expected = yaml.safe_load(front_matter(dataset, manifest["files"]))
        try:
            stated = yaml.safe_load(text.split("---\n")[1])
        except (IndexError, yaml.YAMLError):
            stated = None
        stated = stated if isinstance(stated, dict) else {}
        for name in ("license", "license_name", "license_link"):
            one, other = stated.get(name), expected.get(name)
            if one != other:
                found.add("card", f"{CARD}: {name} {one!r}; by the manifest {other!r}")
        one, other = _configs(stated), _configs(expected)
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                found.add("card", f"{CARD}: config {name} does not list the files of the manifest")
        if ordered(manifest) and one.keys() == other.keys() and list(one) != list(other):
            stated, own = ", ".join(one), ", ".join(other)  # the first one loads by default
            found.add("card", f"{CARD}: configs {stated}; by the manifest {own}")
    if CROISSANT in there:
        try:
            data = json.loads(store.fs.cat_file(store.path(CROISSANT)))
            stated_licences, version = sorted(data["license"]), data["version"]
        except (ValueError, KeyError, TypeError):
            stated_licences, version = [], None
        ours = sorted(licences(dataset, manifest["files"]))
        for name, one, other in (
            ("license", stated_licences, ours),
            ("version", version, manifest["version"]),
        ):
            if one != other:
                found.add("croissant", f"{CROISSANT}: {name} {one!r}; by the manifest {other!r}")


def wrong_claims(
    store: Store, manifest: Mapping[str, Any], progress: Progress, deep: bool = False
) -> list[str]:
    """Lines about everything that a release claims and its rows do not bear out.

    Args:
        deep: decode every image, and compare its pixels with the hash in its row.

    Raises:
        AigiError: a file is missing or damaged.
    """
    found = _Found()
    try:
        dataset = Dataset.model_validate(manifest["specification"])
    except ValueError:
        dataset = None
        found.add("specification", f"{MANIFEST}: specification: not one of this version of aigi")
    plan = _planned(store, manifest, found)
    split_of: dict[str, str] = {}
    seen: set[str] = set()
    pairs: list[tuple[str, str]] = []
    with progress.stage("verify", len(manifest["files"]), 0, 0) as bar:
        for record in manifest["files"]:
            path, config, split = record["path"], record["config"], record["split"]
            name = path.removesuffix(".parquet")
            rows = narrow(store, path).to_pylist()
            for number, row in enumerate(rows):
                where = f"{path}: row {number + 1}"
                image, prompt = row["image_id"], row["prompt_id"]
                planned = plan.get(image)
                if plan and planned is None:
                    found.add("planned", f"{where}: {image} is not in {PLAN_FILE}")
                if planned is not None and planned["split"] != split:
                    found.add("split", f"{where} ({image}): planned for {planned['split']}")
                _row(row, planned, where, config, dataset, found)
                if image in seen:
                    found.add("twice", f"{where}: {image} is in the release twice")
                seen.add(image)
                if row["pair_id"] is not None:
                    pairs.append((where, row["pair_id"]))
                if (other := split_of.setdefault(prompt, split)) != split:
                    found.add("splits", f"{where}: prompt {prompt} is in {other} and in {split}")
            if deep:
                for why in wrong_pixels(store, "", name):
                    found.add("pixels", f"{path}: {why}")
            bar.advance(len(rows))
    for where, pair in pairs:
        if pair not in (plan or seen):
            found.add("pair_id", f"{where}: pair_id {pair} is no image")
    if dataset is not None:
        _licences(store, manifest, dataset, found)
    return list(found.all())
