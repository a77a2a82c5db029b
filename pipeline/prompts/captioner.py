"""Photos in, captions of a BLIP model out: the captions table, one row per photo."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import AigiError
from pipeline.complaints import hint
from pipeline.faults import MachineFault, of_a_name
from pipeline.models.device import pick_device
from pipeline.models.hub import Place, loading
from pipeline.models.weights import Part, check_transformers, digest
from pipeline.pictures.container import Container
from pipeline.pictures.names import Absent, Escapes
from pipeline.pictures.pictures import open_pictures
from pipeline.pixels import BadPicture, decode
from pipeline.progress import Progress
from pipeline.prompts.captions import BlipCaptions, CaptionSource
from pipeline.stage import Build, Compute, Map, Stage
from pipeline.store import Shard, Store
from pipeline.tables import CAPTIONS, PHOTOS
from pipeline.threads import ahead, workers

VERSION = 1
MAX_PIXELS = 64_000_000
THREADS = 4  # photos decoded at once, ahead of the model

Pixels = npt.NDArray[np.float32]
"""A photo as the model takes it: float32, 3 x S x S, normalised."""


class DatasetPhotos:
    """Photos in the image column of a `datasets` dataset, named `row-00000000` and so on.

    Raises:
        AigiError: no such dataset, split or column.
    """

    def __init__(self, dataset: str, split: str, column: str) -> None:
        import datasets

        try:
            rows = datasets.load_dataset(dataset, split=split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise AigiError(
                f"dataset: {dataset}, split {split}: cannot be loaded: {error}"
            ) from error
        if column not in rows.column_names:
            raise AigiError(
                f"dataset: {dataset}: {column}: no such column. Set column to one of: "
                f"{', '.join(rows.column_names)}{hint(column, rows.column_names)}"
            )
        if not isinstance(rows.features[column], datasets.Image):
            raise AigiError(
                f"dataset: {dataset}: {column}: expected images, found {rows.features[column]}"
            )
        # Bytes, not decoded images: one damaged photo must not end the run.
        self.rows = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self.column = column

    def names(self) -> list[str]:
        """Names of all rows, in order."""
        return [f"row-{row:08d}" for row in range(len(self.rows))]

    def read(self, name: str) -> bytes:
        """Bytes of one photo. Raises BadPicture, MachineFault."""
        number = name.removeprefix("row-")
        if not number.isdecimal() or int(number) >= len(self.rows):
            raise Absent
        value = self.rows[int(number)][self.column] or {}
        data: bytes | None = value.get("bytes")
        if data is None and value.get("path"):
            try:
                data = Path(value["path"]).read_bytes()
            except OSError as error:
                if not of_a_name(error):
                    raise MachineFault(f"{value['path']}: {error.strerror}") from error
                raise Absent from error
        if data is None:
            raise BadPicture("the row holds no bytes")
        return data


def _open_photos(source: BlipCaptions) -> Container | DatasetPhotos:
    if source.photos is not None:
        return open_pictures(source.photos, column=source.column)
    return DatasetPhotos(str(source.dataset), source.dataset_split, source.column)


def photo_names(source: BlipCaptions) -> list[str]:
    """Names of all photos, in the order in which they are captioned.

    Raises:
        AigiError: no such folder, file, dataset, split or column; or no photo in it.
    """
    names = _open_photos(source).names()
    if not names:
        raise AigiError(f"{source.photos or source.dataset}: no images in it")
    return names


FILES = ("config.json", "*.safetensors")
BESIDE = ("*.json", "*.txt")
"""Files of a model that captions photos; the second is what else there may be."""


def place_of(source: BlipCaptions) -> Place:
    """Where the model is that captions photos."""
    return Place.of("prompts.sources", source.folder, source.model, source.revision)


def check_weights(source: BlipCaptions) -> tuple[Part, str]:
    """Check that the model is there and complete, before any work.

    Returns: how errors name it, and its folder on this machine.

    Raises:
        AigiError: there is none, or its file does not have its tensors.
    """
    from transformers import BlipForConditionalGeneration

    place = place_of(source)
    folder = place.fetch(*FILES, beside=BESIDE)
    part = Part(place.where, place)
    check_transformers(part, BlipForConditionalGeneration, folder)
    return part, folder


def _load(source: BlipCaptions) -> tuple[Any, Any, Any, str]:
    """Model, tokenizer and image processor of `source`, on the CPU; digest of the weights."""
    import torch
    import transformers
    from transformers import AutoTokenizer, BlipForConditionalGeneration

    part, folder = check_weights(source)
    with loading(part.where, part.model):
        model: Any = BlipForConditionalGeneration.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=getattr(torch, source.dtype),
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        # Pillow's resize, as BLIP was trained with; torchvision's gives other pixels. Releases
        # without this name have Pillow's under the plain one.
        plain = transformers.BlipImageProcessor
        kind = getattr(transformers, "BlipImageProcessorPil", plain)
        processor = kind.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer, processor, digest(part, model)


class Captioner:
    """A worker: rows with `photo` and `row` in, the same rows with `text` or `error` out.

    Beam search without sampling: the same photos, batch size, device and versions give the
    same captions.

    Args:
        source: the photos, the model, and the search.
        device: auto, cpu, cuda, cuda:N or mps.

    Attributes:
        loaded: digest of the weights of the model, in its dtype.

    Raises:
        AigiError: photos, model or device are missing, or the model is incomplete.
    """

    def __init__(self, source: BlipCaptions, device: str = "auto") -> None:
        self.source, self.device = source, pick_device(device)
        self.photos = _open_photos(source)
        model, self.tokenizer, self.processor, self.loaded = _load(source)
        self.model = model.to(self.device)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Caption the photos of `rows`, one batch per chunk.

        Yields:
            `CAPTIONS` chunks in the order of `rows`. A photo that cannot be read is a row
            with a null `text` and the reason in `error`; other photos are not affected.

        Raises:
            AigiError: the device has too little memory for the batch size, or the folder or
                archive of the photos cannot be read, or is gone.
        """
        photos, numbers = rows["photo"].to_pylist(), rows["row"].to_pylist()
        size = self.source.batch_size
        with workers(THREADS, "photos") as pool:
            prepared = ahead(photos, self._prepare, pool, size)
            for start in range(0, len(photos), size):
                ready = list(islice(prepared, size))
                texts = iter(self._describe([item for item in ready if not isinstance(item, str)]))
                found = [item if isinstance(item, str) else None for item in ready]
                chunk = [None if error else next(texts) for error in found]
                errors = [
                    error or (None if text else "the model wrote nothing")
                    for error, text in zip(found, chunk, strict=True)
                ]
                yield pa.table(
                    {
                        "photo": photos[start : start + size],
                        "row": numbers[start : start + size],
                        "text": [text or None for text in chunk],
                        "error": errors,
                    },
                    schema=CAPTIONS,
                )

    def _prepare(self, name: str) -> Pixels | str:
        """The photo as the model takes it, or why it cannot be used."""
        try:
            rgb = decode(self.photos.read(name), MAX_PIXELS).rgb
        except (BadPicture, Escapes) as error:
            return str(error)
        pixels: Pixels = self.processor(
            images=rgb, input_data_format="channels_last", return_tensors="np"
        )["pixel_values"][0]
        return pixels

    def _describe(self, photos: list[Pixels]) -> list[str]:
        import torch

        if not photos:
            return []
        pixels = torch.from_numpy(np.stack(photos)).to(self.device, self.model.dtype)
        try:
            tokens = self.model.generate(
                pixel_values=pixels,
                num_beams=self.source.num_beams,
                max_new_tokens=self.source.max_new_tokens,
                do_sample=False,
            )
        except torch.OutOfMemoryError as error:
            raise AigiError(
                f"captions: {self.device} ran out of memory with batch_size "
                f"{self.source.batch_size}; set a smaller one"
            ) from error
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


class _Captioners:
    """Rows of one `photos` shard in, captions out; holds the model of one source at a time."""

    def __init__(self, sources: dict[int, BlipCaptions], device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.sources, self.device = sources, device
        self.held: int | None = None
        self.captioner: Captioner | None = None

    @property
    def loaded(self) -> dict[str, str]:
        """Digest of the weights of the model that it holds, by the number of its source."""
        held = self.captioner
        return {} if held is None else {f"prompts.sources.{self.held}": held.loaded}

    def __call__(self, rows: pa.Table, start: int = 0) -> Iterator[pa.Table]:
        number = rows["source"][0].as_py()
        if self.captioner is None or self.held != number:
            self.captioner = None
            self.captioner, self.held = Captioner(self.sources[number], self.device), number
        yield from self.captioner(rows.slice(start))


def _list_photos(sources: dict[int, BlipCaptions], store: Store, progress: Progress) -> list[Shard]:
    made = []
    for number, source in sources.items():
        names = photo_names(source)
        for shard, start in enumerate(range(0, len(names), source.shard_rows)):
            part = names[start : start + source.shard_rows]
            rows = pa.table(
                [
                    pa.array([number] * len(part), pa.int32()),
                    pa.array(part, pa.string()),
                    pa.array(range(start + 1, start + len(part) + 1), pa.int64()),
                ],
                schema=PHOTOS,
            )
            made.append(store.write("photos", f"{number:02d}-{shard:05d}", rows, PHOTOS))
    return made


def _check(sources: dict[int, BlipCaptions]) -> None:
    for source in sources.values():
        check_weights(source)


def _names(store: Store) -> list[str]:
    return list(store.shards("photos"))


def _read(store: Store, shard: str) -> pa.Table:
    return store.read("photos", shard)


def _adds(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether sources came behind the others, which are as they were."""
    return old.items() <= new.items()


def stages(sources: Sequence[CaptionSource], compute: Compute) -> list[Stage]:
    """The photos of every `blip` caption source, listed; then their captions, shard by shard.

    No stages without such a source.
    """
    blip = {n: source for n, source in enumerate(sources) if isinstance(source, BlipCaptions)}
    if not blip:
        return []
    where = {"photos", "dataset", "dataset_split", "column", "shard_rows"}
    # The folder is only where a copy of the model is stored.
    how = {"model", "revision", "batch_size", "max_new_tokens", "num_beams", "dtype"}
    return [
        Build(
            table="photos",
            version=VERSION,
            schema=PHOTOS,
            settings={str(n): s.model_dump(mode="json", include=where) for n, s in blip.items()},
            inputs=(),
            build=partial(_list_photos, blip),
            extends=_adds,
        ),
        Map(
            table="captions",
            version=VERSION,
            schema=CAPTIONS,
            settings={
                "threads": compute.threads,
                **{str(n): s.model_dump(mode="json", include=how) for n, s in blip.items()},
            },
            inputs=("photos",),
            names=_names,
            read=_read,
            make_worker=partial(_Captioners, blip, compute.device, compute.threads),
            check=partial(_check, blip),
            keeps=(),
            extends=_adds,
        ),
    ]
