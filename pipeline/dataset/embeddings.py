"""Pictures and their prompts in, the `embeddings` table out: CLIP vectors of both, and a score."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from pipeline import AigiError
from pipeline.dataset.diffuser import file_sha256
from pipeline.device import pick_device
from pipeline.pixels import RGB, BadPicture, decode
from pipeline.run import Map
from pipeline.tables import Store, embeddings_schema
from pipeline.workflow import Embeddings, Workflow

if TYPE_CHECKING:
    import torch

VERSION = 1
CONFIG = "open_clip_config.json"
# The names that open_clip itself takes before any pickled file of the same folder.
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
HUB = "hf-hub:"
AHEAD = 2  # batches that are decoded before the model asks for them

T = TypeVar("T")
Row = dict[str, Any]
Vectors = npt.NDArray[np.float32]
"""float32, N x D, each row of length 1."""


def hub_file(where: str, repository: str, file: str, revision: str | None = None) -> str:
    """Local path of a file of a Hub repository; downloaded where the cache does not have it.

    Args:
        where: section and key, for messages.

    Raises:
        AigiError: no such repository, revision or file, or no way to get it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

    at = f"{repository}@{revision or 'main'}"
    try:
        return str(hf_hub_download(repository, file, revision=revision))
    except RemoteEntryNotFoundError as error:
        raise AigiError(
            f"{where}: {at} has no {file}. Take another model, or give a copy of this one as "
            "folder (its weights as safetensors; pickle files are not read)."
        ) from error
    except (HFValidationError, OSError) as error:
        raise AigiError(
            f"{where}: cannot get {file} of {at}, and it is not in the cache: "
            f"{str(error).strip().splitlines()[0]}\n"
            "Correct the name, or download the model elsewhere and give it as folder."
        ) from error


def _in_hub(settings: Embeddings) -> str | None:
    """The Hub repository that `model` names, if it names one and no folder replaces it."""
    named = settings.folder is None and settings.model.startswith(HUB)
    return settings.model.removeprefix(HUB) if named else None


def model_config(settings: Embeddings) -> dict[str, Any]:
    """The `model_cfg` of open_clip: sizes and tokenizer. No weights are read.

    Raises:
        AigiError: no such model, or its configuration is damaged.
    """
    repository = _in_hub(settings)
    if settings.folder is None and repository is None:
        import open_clip

        config: dict[str, Any] | None = open_clip.get_model_config(settings.model)
        if config is None:
            raise AigiError(
                f"embeddings.model: {settings.model}: open_clip has no such model. Set it to one "
                f"of {', '.join(open_clip.list_models()[:8])}, … (open_clip.list_models()), or to "
                f"{HUB}ORG/NAME."
            )
        return config
    if repository is not None:
        where, path = "embeddings.model", hub_file("embeddings.model", repository, CONFIG)
    else:
        where, path = "embeddings.folder", os.path.join(str(settings.folder), CONFIG)
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)["model_cfg"]
        int(found["embed_dim"])
        found["text_cfg"].get("hf_tokenizer_name")
    except FileNotFoundError:
        raise AigiError(
            f"{where}: {settings.folder} holds no open_clip model ({CONFIG} is missing)"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AigiError(
            f"{where}: {path}: not a configuration of open_clip ({type(error).__name__}: {error}). "
            "Copy the model anew."
        ) from error
    return found


def _tagged(settings: Embeddings, config: dict[str, Any]) -> str:
    """The weight file of one of open_clip's tags."""
    import open_clip

    model = settings.model
    known = open_clip.get_pretrained_cfg(model, settings.pretrained)
    if not known:
        raise AigiError(
            f"embeddings.pretrained: {settings.pretrained}: open_clip has no such weights of "
            f"{model}. Set it to one of: "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(model)) or '(there are none)'}"
        )
    if bool(known.get("quick_gelu")) != bool(config.get("quick_gelu")):
        other = model.removesuffix("-quickgelu")
        other = f"{other}-quickgelu" if other == model else other
        raise AigiError(
            f"embeddings.model: {model}: the weights {settings.pretrained} were trained with "
            f"another activation (quick_gelu), and would give poor vectors. Set it to {other}."
        )
    repository, file = os.path.split(known.get("hf_hub", ""))
    if not repository:
        raise AigiError(
            f"embeddings.pretrained: {settings.pretrained}: there are only pickled weights of it, "
            "which are not read. Take other weights, or convert these and give them as folder."
        )
    return hub_file(
        "embeddings.pretrained",
        repository,
        f"{os.path.splitext(file)[0]}.safetensors" if file else WEIGHTS[0],
    )


def find_weights(settings: Embeddings) -> str:
    """Path of the safetensors file that open_clip will read; downloaded if need be.

    Raises:
        AigiError: there is none, or it is not the expected one.
    """
    config, repository = model_config(settings), _in_hub(settings)
    if repository is not None:
        path = hub_file("embeddings.model", repository, WEIGHTS[0])
    elif settings.folder is None:
        path = _tagged(settings, config)
    else:
        for name in WEIGHTS:
            path = os.path.join(settings.folder, name)
            if os.path.isfile(path):
                break
        else:
            raise AigiError(
                f"embeddings.folder: {settings.folder} has no {WEIGHTS[0]}; weights in pickle "
                "files are not read. Save them with safetensors.torch.save_file under this name."
            )
    if settings.sha256 is not None and (found := file_sha256(path)) != settings.sha256:
        raise AigiError(
            f"embeddings.sha256: {path} has sha256 {found}, the workflow expects "
            f"{settings.sha256}. Get the right weights, or correct the workflow."
        )
    return path


def folder_sha256(folder: str, weights: str) -> dict[str, str]:
    """Name and sha256 of the weights and of every configuration file beside them."""
    kinds = (".json", ".txt", ".model")
    return {
        name: file_sha256(os.path.join(folder, name))
        for name in sorted(os.listdir(folder))
        if name.endswith(kinds) or name == os.path.basename(weights)
    }


class Clip:
    """A loaded CLIP model: pictures and sentences in, vectors of length 1 out.

    Batches are cut from what is given, in order; float32 sums depend on their size.

    Attributes:
        size: numbers of a vector.
        logit_scale: what the model multiplies cosines with before a softmax.

    Args:
        settings: which model, and how it is run.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        AigiError: no such model or device, or the model cannot be loaded.
    """

    def __init__(self, settings: Embeddings, device: str = "auto") -> None:
        self.settings, self.device = settings, pick_device(device)
        config = model_config(settings)
        find_weights(settings)
        import open_clip
        from safetensors import SafetensorError

        name = settings.model if settings.folder is None else f"local-dir:{settings.folder}"
        named = settings.folder is None and _in_hub(settings) is None
        # A configuration can ask for code of its own; only this tokenizer would listen to it.
        code = {"trust_remote_code": False} if config["text_cfg"].get("hf_tokenizer_name") else {}
        try:
            model, _, self.prepare_image = open_clip.create_model_and_transforms(
                name,
                pretrained=settings.pretrained if named else None,
                device=self.device,
                weights_only=True,
            )
            self.tokenizer = open_clip.get_tokenizer(name, **code)
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            RuntimeError,
            SafetensorError,
        ) as error:
            raise AigiError(
                f"embeddings: {name}: the model cannot be loaded: {error}\n"
                "Copy or download it anew, or set another one."
            ) from error
        words, others = self.tokenizer(["a cat", "two dogs"])
        if words.equal(others):
            # What transformers makes of a folder without a vocabulary.
            raise AigiError(
                f"embeddings: {name}: its tokenizer knows no words: its files are missing or "
                "damaged. Copy or download the model anew."
            )
        self.model: Any = model.eval().requires_grad_(False)
        self.size = int(config["embed_dim"])
        self.logit_scale = float(self.model.logit_scale.exp())

    def prepare(self, rgb: RGB) -> torch.Tensor:
        """A picture as the model takes it: float32, 3 x S x S, normalised. Safe in threads."""
        prepared: torch.Tensor = self.prepare_image(Image.fromarray(rgb))
        return prepared

    def prepared_vectors(self, pictures: Sequence[torch.Tensor]) -> Vectors:
        """Vectors of pictures that went through `prepare`."""
        import torch

        return self._in_batches(
            pictures, lambda part: self.model.encode_image(torch.stack(part).to(self.device))
        )

    def image_vectors(self, pictures: Sequence[RGB]) -> Vectors:
        """Vectors of pictures: uint8, H x W x 3, of any sizes."""
        size = self.settings.batch_size
        parts = [
            self.prepared_vectors([self.prepare(rgb) for rgb in pictures[start : start + size]])
            for start in range(0, len(pictures), size)
        ]
        return np.concatenate(parts) if parts else self.prepared_vectors([])

    def text_vectors(self, texts: Sequence[str]) -> Vectors:
        """Vectors of sentences; what is longer than the model reads is cut off."""
        return self._in_batches(
            texts, lambda part: self.model.encode_text(self.tokenizer(part).to(self.device))
        )

    def _in_batches(self, given: Sequence[T], encode: Callable[[list[T]], torch.Tensor]) -> Vectors:
        import torch

        size, kind = self.settings.batch_size, self.settings.precision
        vectors = np.empty((len(given), self.size), np.float32)
        for start in range(0, len(given), size):
            try:
                with (
                    torch.inference_mode(),
                    torch.autocast(
                        self.device.type, getattr(torch, kind), enabled=kind != "float32"
                    ),
                ):
                    found = encode(list(given[start : start + size]))
            except torch.OutOfMemoryError as error:
                raise AigiError(
                    f"embeddings: {self.device} ran out of memory with batch_size {size}; "
                    "set a smaller one"
                ) from error
            unit = torch.nn.functional.normalize(found.float(), dim=-1)
            vectors[start : start + size] = unit.cpu().numpy()
        if not np.isfinite(vectors).all():
            raise AigiError(
                f"embeddings: not a number in a vector: the model overflows in {kind}, or its "
                "weights are damaged. Set precision to bfloat16 or float32."
            )
        return vectors


def stored_picture(row: Row) -> RGB:
    """Pixels of a row of the images table.

    Raises:
        AigiError: its PNG is damaged or of another size than the row says.
    """
    try:
        return decode(row["image"]["bytes"], row["width"] * row["height"]).rgb
    except BadPicture as error:
        raise AigiError(
            f"images: {row['image_id']}: its PNG cannot be read: {error}. Delete the shard from "
            "the images table and run again to make it anew."
        ) from error


def prepared_batches(
    rows: pa.Table, size: int, threads: int, prepare: Callable[[Row], T]
) -> Iterator[tuple[list[Row], list[T | None]]]:
    """Cut a shard into batches, and prepare their rows in threads ahead of the caller.

    Args:
        rows: a shard; where a row boundary of Arrow lies does not matter.
        size: rows of a batch.
        prepare: what to do with a row, in a thread.

    Yields:
        The rows of a batch, and what `prepare` made of each; None where the image failed.
    """
    pool = ThreadPoolExecutor(threads, "pictures")
    waiting: deque[tuple[list[Row], list[Future[T] | None]]] = deque()

    def first() -> tuple[list[Row], list[T | None]]:
        part, futures = waiting.popleft()
        return part, [None if future is None else future.result() for future in futures]

    try:
        for start in range(0, rows.num_rows, size):
            part = rows.slice(start, size).to_pylist()
            waiting.append(
                (part, [pool.submit(prepare, row) if row["image"] else None for row in part])
            )
            if len(waiting) > AHEAD:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


def decode_threads(wanted: int | None) -> int:
    """Threads that decode pictures: as wanted, or all cores, up to 8."""
    return wanted or min(8, os.cpu_count() or 1)


def _column(vectors: Vectors, there: npt.NDArray[np.bool_]) -> pa.Array:
    """The rows where `there` is true take the vectors in order; the others are null."""
    values = np.zeros((len(there), vectors.shape[1]), np.float16)
    values[there] = vectors
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), vectors.shape[1], mask=pa.array(~there)
    )


def column_vectors(column: pa.ChunkedArray | pa.Array) -> Vectors:
    """A vector column of the embeddings table as float32, N x D; a null is a row of NaN."""
    there = np.asarray(column.is_valid())
    vectors = np.full((len(column), column.type.list_size), np.nan, np.float32)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]  # without nulls
    vectors[there] = np.concatenate([np.empty(0, np.float16), *flat]).reshape(-1, vectors.shape[1])
    return vectors


class Embedder:
    """A worker: rows with an image and a text in, `embeddings` rows out.

    A text that stands in several rows of a shard is encoded once.

    Args:
        settings: which model, and how it is run.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        AigiError: no such model or device.
    """

    def __init__(self, settings: Embeddings, device: str = "auto") -> None:
        self.settings, self.clip = settings, Clip(settings, device)
        self.schema = embeddings_schema(self.clip.size)
        self.threads = decode_threads(settings.decode_threads)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Yield embeddings in row order, a chunk a batch.

        Args:
            rows: image_id, image, width, height and text; the image is null where it failed.

        Raises:
            AigiError: a stored picture is damaged, or the device has too little memory.
        """
        known: dict[str, Vectors] = {}
        for part, prepared in prepared_batches(
            rows,
            self.settings.batch_size,
            self.threads,
            lambda row: self.clip.prepare(stored_picture(row)),
        ):
            there = np.array([picture is not None for picture in prepared])
            texts = [row["text"] for row, good in zip(part, there, strict=True) if good]
            # With their batch, so that the next pictures are decoded meanwhile.
            new = [text for text in dict.fromkeys(texts) if text not in known]
            known.update(zip(new, self.clip.text_vectors(new), strict=True))
            pictures = self.clip.prepared_vectors([p for p in prepared if p is not None])
            sentences = np.array([known[text] for text in texts], np.float32)
            sentences = sentences.reshape(pictures.shape)
            scores = np.zeros(len(part), np.float32)
            # Rounding must not take a cosine over 1.
            scores[there] = (pictures * sentences).sum(axis=1).clip(-1, 1)
            yield pa.table(
                [
                    pa.array([row["image_id"] for row in part], pa.string()),
                    _column(pictures, there),
                    _column(sentences, there),
                    pa.array(scores, pa.float32(), mask=~there),
                ],
                schema=self.schema,
            )


def _make_worker(settings: Embeddings, device: str, threads: int) -> Embedder:
    import torch

    torch.set_num_threads(threads)
    return Embedder(settings, device)


def names(store: Store) -> list[str]:
    """Names of the shards of the images table."""
    return list(store.shards("images"))


def images_and_plan(store: Store, shard: str, columns: dict[str, str]) -> pa.Table:
    """Pictures of one shard, and columns of its plan: name in the plan, name in the result.

    Raises:
        AigiError: the two tables do not have the same rows.
    """
    plan = store.read("plan", shard, ["image_id", *columns])
    images = store.read("images", shard, ["image_id", "image", "width", "height"])
    if plan["image_id"] != images["image_id"]:
        raise AigiError(
            f"{store.path('images', shard)}.parquet does not have the rows of the plan. "
            "Delete it and run again to make it anew."
        )
    for name, renamed in columns.items():
        images = images.append_column(renamed, plan[name])
    return images


def _read(store: Store, shard: str) -> pa.Table:
    return images_and_plan(store, shard, {"text": "text"})


def _check(settings: Embeddings) -> None:
    find_weights(settings)


def stage(workflow: Workflow) -> Map:
    """The embeddings stage of a workflow that has an embeddings section.

    Raises:
        AigiError: the configuration of the model, which the schema needs, cannot be read.
    """
    settings = workflow.embeddings
    assert settings is not None
    which: dict[str, Any]
    if settings.folder is not None:
        # A folder has no name to go by: its content says which model it is.
        which = {"folder": folder_sha256(settings.folder, find_weights(settings))}
    else:
        left_out = {"pretrained"} if _in_hub(settings) else set()
        which = settings.model_dump(
            mode="json", include={"model", "pretrained", "sha256"} - left_out
        )
    return Map(
        table="embeddings",
        version=VERSION,
        schema=embeddings_schema(int(model_config(settings)["embed_dim"])),
        settings={
            **which,
            **settings.model_dump(mode="json", include={"batch_size", "precision"}),
            "threads": workflow.compute.threads,
        },
        inputs=("plan", "images"),
        names=names,
        read=_read,
        make_worker=partial(
            _make_worker, settings, workflow.compute.device, workflow.compute.threads
        ),
        check=partial(_check, settings),
    )
