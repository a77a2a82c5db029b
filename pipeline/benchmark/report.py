"""A run with measurements in; figures, tables and the one page that links them out.

All of it stands in `RUN/benchmark/`, and is written anew each time: it takes seconds, and what it
says is in the tables.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline import markdown
from pipeline.benchmark import figures, prompts, published, recipes
from pipeline.benchmark.cells import (
    cell_of,
    file_names,
    kind_of,
    listed,
    number,
    shortened,
    tile_lines,
)
from pipeline.benchmark.comparisons import chosen_parts, chosen_rows
from pipeline.benchmark.latex import latex_table
from pipeline.benchmark.measurements import MOST_PIXELS, measured, pixels_of
from pipeline.benchmark.metrics import METRICS, Metric, psnr, shown
from pipeline.benchmark.rates import (
    BD_RATES,
    FOLDER,
    REPORTED,
    Curves,
    against,
    curves,
    group_name,
)
from pipeline.benchmark.settings import Benchmark
from pipeline.benchmark.strips import strip
from pipeline.benchmark.versions import at_hand, here_of
from pipeline.codecs.command import CodecFailed
from pipeline.codecs.table import conversion, opened, qualities, row_of
from pipeline.collection import Collection
from pipeline.markdown import escape
from pipeline.marks.dwt_dct import BITS
from pipeline.pixels import CAP_DB, BadPicture, decode
from pipeline.stage import Compute
from pipeline.store import Store

CONVERTED = 4  # pictures whose colour conversion is measured


class Report:
    """Everything that the page is written from.

    Args:
        benchmark, compute: of the workflow.
        store: a run with a measurements table.
        collection: the images that were measured.
    """

    def __init__(
        self, benchmark: Benchmark, compute: Compute, store: Store, collection: Collection
    ) -> None:
        self.benchmark, self.compute, self.store = benchmark, compute, store
        self.collection = collection
        self.labels = [given.label for given in benchmark.codecs]
        self.order = sorted(self.labels, key=lambda label: label != benchmark.anchor)
        self.measurements = measured(benchmark, store, collection.parts)
        self.curves = curves(self.measurements, self.labels)
        wanted = benchmark.clip is not None or benchmark.watermarks
        self.files = file_names(self.curves)
        self.references = store.read_all("references").to_pylist() if wanted else []
        _, self.skipped = at_hand(benchmark, compute)
        self.metrics = shown(self.measurements.column_names)
        self.drawn = [metric for metric in self.metrics if metric.db is not None]
        self.comparisons = {
            metric.name: {
                group: against(benchmark.anchor, found, metric.name, benchmark.interpolation)
                for group, found in self.curves.items()
            }
            for metric in self.drawn
        }

    def write(self) -> str:
        """Write all files; the path of the page."""
        lines = [
            "# Codec benchmark",
            "",
            escape(self._pictures()),
            "",
            *(line for note in self.collection.notes for line in (escape(f"Note: {note}."), "")),
            *self.codecs(),
            *self.bd_rates(),
            *self._prompts(),
            *self._rate_distortion(),
            *self._content(),
            *self._rate_time(),
            *self._complexity(),
            *self._strips(),
            *self._failures(),
            *self._files(),
        ]
        self._put("\n".join(lines).rstrip() + "\n", "README.md")
        return self.store.path(FOLDER, "README.md")

    def _put(self, content: str | bytes, *parts: str) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.store.write_bytes(data, FOLDER, *parts)

    def _figure(self, figure: Any, name: str, shows: str) -> list[str]:
        for kind, data in figures.files(figure).items():
            self._put(data, "figures", f"{name}.{kind}")
        return [f"![{escape(shows)}](figures/{name}.png)", "", f"[SVG](figures/{name}.svg)", ""]

    def _table(
        self, headings: Sequence[str], rows: Sequence[Sequence[str]], name: str, right: int
    ) -> list[str]:
        """Lines of a Markdown table; the same stands in files, in Markdown and LaTeX."""
        lines = markdown.table(
            [escape(heading) for heading in headings],
            [[escape(cell) for cell in row] for row in rows],
            right,
        )
        self._put("\n".join(lines) + "\n", "tables", f"{name}.md")
        self._put(latex_table(headings, rows), "tables", f"{name}.tex")
        return [*lines, "", f"[Markdown](tables/{name}.md), [LaTeX](tables/{name}.tex)", ""]

    def _pictures(self) -> str:
        seen = {
            (row["source"], row["watermark"], row["image_id"], row["width"], row["height"])
            for row in self.measurements.select(
                ["source", "watermark", "image_id", "width", "height"]
            ).to_pylist()
        }
        counts = Counter(
            (group_name(source, mark), f"{width}x{height}" if width else "unreadable")
            for source, mark, _, width, height in seen
        )
        what = ", ".join(
            f"{count} of {group} ({size})" for (group, size), count in sorted(counts.items())
        )
        total = len({image for _, _, image, _, _ in seen})
        return f"{total} images: {what}."

    def codecs(self) -> list[str]:
        """Lines on what was measured by which version, and what could not be."""
        versions: dict[str, set[str]] = {}
        devices: dict[str, set[str]] = {}
        for row in self.measurements.select(["codec", "codec_version", "device"]).to_pylist():
            if row["codec_version"] is not None:
                versions.setdefault(row["codec"], set()).add(row["codec_version"])
            if row["device"] is not None:
                devices.setdefault(row["codec"], set()).add(row["device"])
        rows = []
        conversions, failed = self._conversions()
        for given in self.benchmark.codecs:
            if given.label in self.skipped and given.label not in versions:
                continue
            row = row_of(given)
            rows.append(
                (
                    given.label,
                    row.title,
                    row.format,
                    " ".join(f"{quality:g}" for quality in qualities(given)),
                    "; ".join(sorted(versions.get(given.label, ()))),
                    "; ".join(sorted(devices.get(given.label, ())))
                    + (", a program of its own" if row.external else ""),
                    conversions.get(given.label, ""),
                )
            )
        headings = ("codec", "what", "coded as", "qualities", "version", "runs on")
        lines = ["## Codecs", ""]
        lines += self._table((*headings, "conversion alone, dB"), rows, "codecs", 1)
        lines += [
            "Rates count every byte that decoding needs, prompts and headers too. "
            + "".join(f"{metric.words} " for metric in self.drawn)
            + "Times are wall time, pixels to bytes and back, one image at a time; those of "
            "programs of their own count their start. The last column is the PSNR of the colour "
            f"conversion without any coding, the mean of {CONVERTED} images a source at most: "
            "it is about the best that the codec can reach.",
            "",
        ]
        lines += [*failed, ""] if failed else []
        lines += recipes.lines(self.benchmark, self.collection)
        if self.skipped:
            lines += ["Not measured here, since this machine lacks something:", ""]
            lines += [f"- {escape(label)}: {escape(why)}" for label, why in self.skipped.items()]
            lines.append("")
        return lines

    def _conversions(self) -> tuple[dict[str, str], list[str]]:
        """By codec, the mean PSNR of the colour conversion alone, as a cell; and what failed."""
        images = []
        for part in chosen_parts(self.collection):
            rows = self.collection.read(part.name, ["image"]).slice(0, CONVERTED)
            for row in rows.to_pylist():
                try:
                    images.append(pixels_of(row))
                except BadPicture:
                    continue  # a row of the measurements says so
        cells: dict[str, str] = {}
        failed = []
        for given in self.benchmark.codecs:
            if given.label in self.skipped or not images:
                continue
            if row_of(given).network:
                cells[given.label] = "none"  # RGB is what they code
                continue
            codec = opened(given, qualities(given)[0], here_of(self.benchmark, self.compute))
            pairs = ((image, conversion(codec, image)) for image in images)
            try:
                values = [psnr(image, made) for image, made in pairs if made is not None]
            except CodecFailed as error:
                cells[given.label] = "failed"
                why = f"{given.label}: the conversion failed: {kind_of(str(error))}"
                failed.append(f"- {escape(why)}")
                continue
            mean = float(np.mean(values)) if values else None
            cells[given.label] = (
                "in its library" if mean is None else "none" if mean >= CAP_DB else f"{mean:.2f}"
            )
        return cells, failed

    def bd_rates(self) -> list[str]:
        """Lines on BD-rates, with their tables and figures."""
        anchor = self.benchmark.anchor
        lines = [f"## BD-rate against {escape(anchor)}", ""]
        if not any(self.comparisons["psnr"].values()):
            return [*lines, f"There is none: {escape(anchor)}: {escape(self._alone())}.", ""]
        reasons = []
        for metric in self.drawn:
            title = metric.axis
            groups = {name: of for name, of in self.comparisons[metric.name].items() if of}
            if not groups:
                continue
            labels = [label for label in self.labels if any(label in g for g in groups.values())]
            rows = [
                (label, *(cell_of(groups[group].get(label)) for group in groups))
                for label in labels
            ]
            name = metric.name.replace("_", "-")
            lines += [f"### {escape(title)}", ""]
            lines += self._table(("BD-rate, %", *groups), rows, f"bd-rate-{name}", len(groups))
            figure = figures.bars(f"BD-rate against {anchor}, {title}", groups, self.order)
            lines += self._figure(figure, f"bd-rate-{name}", f"BD-rates by source, {title}")
            for group, found in groups.items():
                for label, one in found.items():
                    if one.reason:
                        reasons.append(f"- {escape(f'{title}, {group}, {label}: {one.reason}')}")
                    elif one.rate is not None and one.rate.overlap < 0.75:
                        reasons.append(
                            f"- {escape(f'{title}, {group}, {label}')}: the curves share "
                            f"{one.rate.overlap:.0%} only, {one.rate.low:.2f} to "
                            f"{one.rate.high:.2f} dB"
                        )
        lines += [
            f"Negative: less rate than {escape(anchor)} at equal quality. "
            f"Interpolation: {self.benchmark.interpolation}. In brackets the 95 % interval over "
            "resampled images. BD-rates are over the images that both codecs coded, "
            "and over the range of quality that both curves have.",
            "",
        ]
        return lines + ([*reasons, ""] if reasons else [])

    def _prompts(self) -> list[str]:
        """What prompts cost and can save, where a codec stores them."""
        found = prompts.spent(self.measurements)
        if not found:
            return []
        lines = ["## What prompts cost, and can save", ""]
        rows = [prompts.cells(one) for one in found]
        lines += self._table(prompts.HEADINGS, rows, "prompts", len(prompts.HEADINGS) - 1)
        lines += [prompts.WORDS, ""]
        groups = prompts.compared(
            self.measurements, self.labels, self.benchmark.anchor, self.benchmark.interpolation
        )
        stored = [label for label in self.labels if label in {one.codec for one in found}]
        cells = [(label, *(cell_of(of.get(label)) for of in groups.values())) for label in stored]
        if not groups:
            return lines  # the anchor coded nothing; the section of BD-rates says so
        lines += [
            f"BD-rates (PSNR) against {escape(self.benchmark.anchor)} without the prompts' bytes:",
            "",
        ]
        bd = ("BD-rate, %", *groups)
        return lines + self._table(bd, cells, "bd-rate-psnr-without-prompts", len(groups))

    def _alone(self) -> str:
        """Why nothing is compared with the anchor."""
        anchor = self.benchmark.anchor
        if anchor not in self.labels:
            return "it is not among the codecs"
        if not any(anchor in found for found in self.curves.values()):
            return self.skipped.get(anchor, "it coded no image at every quality")
        if len(self.labels) == 1:
            return "it is the only codec"
        return "no other codec coded an image at every quality"

    def _rate_distortion(self) -> list[str]:
        lines = ["## Rate and distortion", ""]
        for group, found in self.curves.items():
            rows = []
            metrics = [
                metric
                for metric in self.metrics
                if metric.db or any(metric.name in mine.values for mine in found.values())
            ]
            for label, mine in found.items():
                means = [mine.curve(metric.name).values for metric in metrics]
                for i, quality in enumerate(mine.qualities):
                    rows.append(
                        (
                            label,
                            f"{quality:g}",
                            f"{len(mine.images)}" + (f" (-{mine.failed})" if mine.failed else ""),
                            f"{mine.bpp[:, i].mean():.4f}",
                            *(
                                number(of[i], metric.form)
                                for metric, of in zip(metrics, means, strict=True)
                            ),
                            f"{np.median(mine.encode_s_per_mp[:, i]):.3g}",
                            f"{np.median(mine.decode_s_per_mp[:, i]):.3g}",
                        )
                    )
            lines += [f"### {escape(group)}", ""]
            for metric in self.drawn:
                name = f"rd-{self.files[group]}-{metric.name.replace('_', '-')}"
                behind = self._published(group, metric)
                figure = figures.rate_distortion(group, found, metric.name, behind, self.order)
                lines += self._figure(figure, name, f"{metric.axis} over bits per pixel, {group}")
            headings = (
                *("codec", "quality", "pictures", "bpp"),
                *(metric.heading for metric in metrics),
                *("encode, s/MP", "decode, s/MP"),
            )
            lines += self._table(headings, rows, f"rd-{self.files[group]}", len(headings) - 1)
            self._exchange(group, found)
        if any(self._published(group, metric) for group in self.curves for metric in self.drawn):
            text = published.__doc__ or ""
            lines += ["Thin lines: " + escape(" ".join(text.split("\n\n")[1].split())), ""]
        return lines

    def _content(self) -> list[str]:
        """What the originals say, before any codec, and what becomes of their marks."""
        said = [METRICS[kind].words for kind in self.benchmark.distances]
        learned = (
            [f"{', '.join(said)}, of decoded 8-bit images: 0 for equal ones.", ""] if said else []
        )
        if not self.references:
            return ["## What images show", "", *learned] if learned else []
        clip, marks = self.benchmark.clip, self.benchmark.watermarks
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in self.references:
            groups.setdefault(group_name(row["source"], row["watermark"]), []).append(row)
        rows, figured = [], []
        for group, of in sorted(groups.items()):
            scores, shares = (
                [row[column] for row in of if row[column] is not None]
                for column in ("clip_score", "watermark_accuracy")
            )
            cells = [group, f"{len(of)}"]
            if clip is not None:
                cells.append(f"{np.mean(scores):.4f}" if scores else "-")
            if marks:
                whole = f"{sum(share == 1 for share in shares)} of {len(shares)}"
                cells += [f"{np.mean(shares):.3f}", whole] if shares else ["-", "-"]
            rows.append(cells)
            found = self.curves.get(group, {})
            if any("watermark_accuracy" in mine.values for mine in found.values()):
                shown = float(np.mean(shares)) if shares else None
                title = f"{group}: watermark"
                figure = figures.watermark(title, found, shown, self.order)
                shows = f"Share of the watermark's bits over bits per pixel, {group}"
                figured += self._figure(figure, f"watermark-{self.files[group]}", shows)
        headings = ["before any codec", "pictures"]
        headings += ["clip_score"] * (clip is not None)
        headings += [METRICS["watermark_accuracy"].heading, "all of them right"] * marks
        lines = ["## What images show", ""]
        lines += self._table(headings, rows, "originals", len(headings) - 1)
        lines += learned
        if clip is not None:
            model = f"{clip.model}, {clip.pretrained}"
            if clip.folder is not None:
                model = f"the model of the folder {clip.folder.rstrip('/').rsplit('/', 1)[-1]}"
            lines += [
                f"CLIP is {escape(model)}. Its similarity is the cosine of decoded and original "
                "image; clip_score is the cosine of image and prompt, and its change that of "
                "the decoded image less that of the original. Images without a prompt have "
                "none.",
                "",
            ]
        if marks:
            lines += [
                f"Of the {BITS} bits of a mark's message, each read by majority of the blocks that "
                "hold it; by chance about a half is right. Marks that are seen, and any that are "
                "not known here, hold none.",
                "",
                *figured,
            ]
        errors = Counter(row["error"] for row in self.references if row["error"] is not None)
        for error, count in errors.most_common(20):
            lines.append(f"- {count} without: {escape(error)}")
        return [*lines, ""] if errors else lines

    def _published(self, group: str, metric: Metric) -> Mapping[str, Any]:
        for (source, mark), subset in published.SUBSETS.items():
            if group_name(source, mark) == group:
                return published.curves(subset, metric.published)
        return {}

    def _exchange(self, group: str, found: Mapping[str, Curves]) -> None:
        """One JSON file a codec, in the format that CompressAI's plots read."""
        names = file_names(self.labels)
        for label, mine in found.items():
            data = {
                "name": label,
                "description": f"{len(mine.images)} images of {group}; qualities "
                + " ".join(f"{quality:g}" for quality in mine.qualities),
                "results": {
                    "bpp": mine.bpp.mean(0).tolist(),
                    "encoding_time": mine.encode_s.mean(0).tolist(),
                    "decoding_time": mine.decode_s.mean(0).tolist(),
                    **{
                        metric.exchange: listed(mine.means(metric.name).values)
                        for metric in self.metrics
                        if metric.exchange
                    },
                },
            }
            text = json.dumps(data, indent=2) + "\n"
            self._put(text, "compressai", self.files[group], f"{names[label]}.json")

    def _rate_time(self) -> list[str]:
        group = next(reversed(self.curves), None)
        if group is None or not self.comparisons["psnr"][group]:
            return []
        figure = figures.rate_time(
            f"{group}: BD-rate (PSNR) and median time",
            self.curves[group],
            self.comparisons["psnr"][group],
            self.benchmark.anchor,
            self.order,
        )
        shows = "BD-rate over the time to code and to decode"
        return ["## Rate and time", "", *self._figure(figure, "rate-time", shows)]

    def _complexity(self) -> list[str]:
        if self.benchmark.complexity is None or not self.store.shards("complexity"):
            return []
        found = {
            (row["codec"], row["side"]): row
            for row in self.store.read_all("complexity").to_pylist()
        }
        rows, errors = [], []
        for label in self.labels:
            for side in self.benchmark.complexity.sides:
                row = found.get((label, side))
                if row is None:
                    continue
                if row["error"] is not None:
                    why = f"{label}, {side}x{side}: {row['error']}"
                    errors.append(f"- {escape(why)}")
                    continue
                rows.append(
                    (
                        label,
                        f"{side}x{side}",
                        "" if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f} M",
                        shortened(row["encode_kmac_per_pixel"]),
                        shortened(row["decode_kmac_per_pixel"]),
                        shortened(row["encode_s_per_mp"]),
                        shortened(row["decode_s_per_mp"]),
                        shortened(row["peak_mib"]),
                        shortened(row["device_peak_mib"]),
                    )
                )
        headings = ("codec", "picture", "weights", "encode, kMAC/px", "decode, kMAC/px")
        costs = ("encode, s/MP", "decode, s/MP", "peak, MiB", "on the GPU, MiB")
        lines = ["## Complexity", ""]
        lines += self._table((*headings, *costs), rows, "complexity", 7)
        lines += [
            "Each codec at its middle quality, in a process of its own; one image, cut or "
            "mirrored to a square. Multiplications are those of products and convolutions that "
            "torch counts. Memory of a program is all of it; of a codec in this process it is "
            "what is added by it.",
            "",
        ]
        return lines + ([*errors, ""] if errors else [])

    def _strips(self) -> list[str]:
        wanted = self.benchmark.strips
        if wanted is None or not self.store.shards("comparisons"):
            return []
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.store.read_all("comparisons").to_pylist():
            found.setdefault(f"{row['source']} {row['image_id']}", []).append(row)
        names = file_names(found)
        target = f"{wanted.bpp:g} bpp" if wanted.bpp is not None else f"{wanted.psnr:g} dB"
        lines = [f"## Side by side, each codec as near to {target} as it comes", ""]
        for part in chosen_parts(self.collection):
            for row in chosen_rows(self.collection, part, wanted.count).to_pylist():
                picture = f"{row['source']} {row['image_id']}"
                made = {one["codec"]: one for one in found.get(picture, ())}
                tiles = [
                    ((label, *tile_lines(one)), decode(one["image"]["bytes"], MOST_PIXELS).rgb)
                    for label in self.labels
                    if (one := made.get(label)) is not None and one["error"] is None
                ]
                failed = [
                    (label, one["error"])
                    for label in self.labels
                    if (one := made.get(label)) is not None and one["error"] is not None
                ]
                if not tiles and not failed:
                    continue
                group = group_name(row["source"], row["watermark"])
                lines += [f"### {escape(group)}", ""]
                if tiles:
                    name = f"{names[picture]}.png"
                    self._put(strip(pixels_of(row), tiles, wanted.crop), "strips", name)
                    lines += [f"![{escape(row['text'] or group)}](strips/{name})", ""]
                if row["text"]:
                    lines += [f"Prompt: {escape(row['text'])}", ""]
                alike: dict[str, list[str]] = {}
                for label, error in failed:
                    alike.setdefault(kind_of(error), []).append(label)
                for error, labels in alike.items():
                    lines += [f"Not shown: {escape(', '.join(labels) + ': ' + error)}", ""]
        return lines

    def _failures(self) -> list[str]:
        failed = [
            row
            for row in self.measurements.select(
                ["codec", "image_id", "quality", "error"]
            ).to_pylist()
            if row["error"] is not None
        ]
        if not failed:
            return []
        lines = [f"## {len(failed)} measurements that failed", ""]
        kinds = Counter((row["codec"], kind_of(row["error"])) for row in failed)
        lines += [
            f"- {escape(codec)}, {count} times: {escape(error)}"
            for (codec, error), count in kinds.most_common(20)
        ]
        return [*lines, "", "Every one is a row of measurements.csv.", ""]

    def _bd_csv(self) -> str:
        """Every comparison with the anchor: per cent with its interval, dB, or the reason."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            ["metric", "source", "codec", "anchor", "pictures", "bd_rate", "low", "high", "bd_db",
             "reason"]
        )  # fmt: skip
        for metric, groups in self.comparisons.items():
            for group, found in groups.items():
                for label, one in found.items():
                    rate, interval, quality = one.rate, one.interval, one.quality
                    numbers = [
                        None if rate is None else rate.value,
                        None if interval is None else interval.low,
                        None if interval is None else interval.high,
                        None if quality is None else quality.value,
                    ]
                    writer.writerow(
                        [metric, group, label, self.benchmark.anchor, one.images,
                         *("" if n is None else f"{n:.6g}" for n in numbers), one.reason]
                    )  # fmt: skip
        return out.getvalue()

    def _files(self) -> list[str]:
        out = io.StringIO()
        writer = csv.DictWriter(out, self.measurements.column_names, lineterminator="\n")
        writer.writeheader()
        for batch in self.measurements.to_batches(1 << 14):
            writer.writerows(batch.to_pylist())
        self._put(out.getvalue(), "measurements.csv")
        self.store.write(FOLDER, REPORTED, self.measurements, self.measurements.schema)
        self._put(self._bd_csv(), BD_RATES)
        return [
            "## Files",
            "",
            "- [measurements.csv](measurements.csv): a row an image, codec and quality; the same "
            f"as [parquet]({REPORTED}.parquet)",
            f"- [{BD_RATES}]({BD_RATES}): a row a metric, source and codec",
            "- [compressai/](compressai): means by codec, in the JSON that CompressAI's plots read",
            "- [figures/](figures), [tables/](tables): everything above, as SVG and LaTeX too",
            "",
        ]
