"""Prompts in, vectors of what they are about out: by static vectors of words, or a CLIP model.

The numbers are integers, and so small that float32 adds up the product of two vectors exactly, in
whatever order: what is chosen by them depends on no thread, block or library of matrices.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import AigiError
from pipeline.files import file_sha256
from pipeline.models.clip import Clip, Embeddings, identity

LENGTH = 2_048
"""Of a vector, but for rounding: its square, the largest product of two, is below 2**24."""
_BLOCK = 4_096
_WORDLLAMA = ("weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json")
_ANEW = "Install the package anew: pip install --force-reinstall wordllama"
Vectors = npt.NDArray[np.float32]
"""float32, N x D, integers; rows of length LENGTH, or 0 where a text has nothing known in it."""


def recorded(clip: Embeddings | None) -> dict[str, Any]:
    """What decides the vectors, as JSON values; arguments are those of `vectors_of`.

    Raises:
        AigiError: files of the model are missing.
    """
    if clip is not None:
        return identity(clip)
    # Another version of the package may have the same vectors, or others.
    return {"wordllama": [file_sha256(path) for path in _files()]}


def vectors_of(
    texts: Sequence[str], clip: Embeddings | None = None, device: str = "auto"
) -> Vectors:
    """Vectors of normalised prompts.

    Args:
        clip: a CLIP model, whose text model makes them; None: they are the means of the vectors of
            their pieces of words, which the wordllama package has (256 numbers, English).
        device: for CLIP.

    Raises:
        AigiError: the model is missing or damaged, or does not fit into memory.
    """
    if clip is not None:
        return rounded(Clip(clip, device).text_vectors(texts))
    weights, tokenizer = _wordllama()
    found = np.zeros((len(texts), weights.shape[1]), np.float32)
    for start in range(0, len(texts), _BLOCK):
        encoded = tokenizer.encode_batch(
            list(texts[start : start + _BLOCK]), add_special_tokens=False
        )
        found[start : start + len(encoded)] = rounded(_means(weights, [one.ids for one in encoded]))
    return found


def _means(weights: npt.NDArray[np.float64], ids: Sequence[Sequence[int]]) -> npt.NDArray[Any]:
    from scipy.sparse import csr_array

    ends = np.concatenate([[0], np.cumsum([len(some) for some in ids])])
    flat = np.fromiter((one for some in ids for one in some), np.int64, ends[-1])
    counts = csr_array((np.ones(len(flat)), flat, ends), shape=(len(ids), len(weights)))
    sums: npt.NDArray[Any] = counts @ weights
    return sums  # of the same direction as the means


def rounded(vectors: npt.NDArray[Any]) -> Vectors:
    """Vectors of any length, N x D, as integers; see `Vectors`."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    integers: Vectors = np.rint(vectors * (LENGTH / np.maximum(lengths, 1e-12))).astype(np.float32)
    return integers


def _files() -> tuple[str, str]:
    """The weights and the tokenizer."""
    spec = find_spec("wordllama")
    folder = "" if spec is None else next(iter(spec.submodule_search_locations or ()), "")
    weights, words = (os.path.join(folder, *name.split("/")) for name in _WORDLLAMA)
    for path in (weights, words):
        if not os.path.isfile(path):
            raise AigiError(f"wordllama: {path}: no such file. {_ANEW}")
    return weights, words


@cache
def _wordllama() -> tuple[npt.NDArray[np.float64], Any]:
    """The vectors of all pieces of words, and the tokenizer.

    Files of the package are read: its own loader wants one of them from the Hub.
    """
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    weights, words = _files()
    try:
        table = load_file(weights)["embedding.weight"].astype(np.float64)
        tokenizer = Tokenizer.from_file(words)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise AigiError(f"wordllama: a file is damaged ({error}). {_ANEW}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return table, tokenizer
