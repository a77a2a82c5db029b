"""Vectors in; every pair of them above a cosine out, none missed.

Two rows are a pair if their dot product is at least tau. The rows are L2-normalised, so that this
is their cosine; where their type rounded the norm (float16: by some 1e-4), it is the dot product
of the rows as they are given, taken as a real number, without any rounding. So the pairs are a
function of the rows alone: no block, device or number of threads can add or lose one.

Nothing is missed, because what is cheap to compute is an upper bound of the product (`bounds`):
pairs of int8 codes that reach a limit are candidates, and candidates are decided by their own
rows: float32 with a margin, float64, and where that is within its error of tau, the exact sum.

Rows are put in
order by halving the widest coordinate, so that a block has a small box of codes; two blocks whose
boxes are farther apart than sqrt(2 - 2 tau) are skipped. A block against all later blocks is a
unit of work that needs no other: `prepare` once, then `unit_pairs` anywhere.

Cost of n rows of d coordinates with c columns of code: n d k multiplications once; then at most
n²/2 products of c int8 columns, whatever d is; then about 1 µs a candidate. c is 48 to 96 for 512
CLIP-like coordinates at tau 0.95, which is 0.3 to 0.5 ns a pair on one core with AVX-512 VNNI.
Memory: c + 20 bytes a row, twice that while sorting, and block² products of 4 bytes; vectors are
read in pieces. So, reckoned and not run, for n = 100 million in one scope: 5e15 pairs, 2e6
core-seconds (9 hours on 64 cores), 12 to 21 GB, and 50,000 units of a minute a core; a GPU would
be bound by writing and reading the products, 8 bytes a pair, which at 3 TB/s are 4 hours. Scopes
divide that: it is the sum over scopes of the square of their sizes. Skipping of blocks helps where
few coordinates hold the data or tau is near 1; CLIP-like rows at 0.95 have no blocks far enough
apart, and it is quadratic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import AigiError
from pipeline.duplicates.bounds import (
    CHUNK_VALUES,
    COLUMNS,
    OFFSET,
    SLACK,
    Float64,
    Frame,
    Int64,
    Vectors,
    choose_frame,
    digits,
    encode,
    floats,
    pieces,
    swapped,
    times,
)
from pipeline.models.device import pick_device
from pipeline.threads import ahead

if TYPE_CHECKING:
    import torch

BLOCK, CUDA_BLOCK = 512, 16_384
"""Rows of a block: the products of two lie in a core's second cache; a GPU wants large ones."""
_SEGMENT = 128
_NORM_SLACK = 0.01
_BATCH = 1 << 15


@dataclass(frozen=True)
class Pairs:
    """Some pairs of rows: three arrays of shape (P,) for P pairs.

    Attributes:
        first: int64, row of the one, 0 to n - 1.
        second: int64, row of the other; greater than `first`.
        measure: float64, the cosine (`near_pairs`), from tau, or the number of bits that differ
            (`hashes.hash_pairs`), 0 to 64.
    """

    first: Int64
    second: Int64
    measure: Float64

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def ordered(cls, one: Int64, other: Int64, measure: Float64) -> Pairs:
        """Pairs whose rows are in any order, with their measures.

        Args:
            one, other: int64, shape (P,), rows from 0; those of a pair differ.
            measure: float64, shape (P,).
        """
        return cls(np.minimum(one, other), np.maximum(one, other), measure)


@dataclass(frozen=True)
class Block:
    """Rows that are kept together: all old or none, all held out or none."""

    start: int  # of its codes; their number is a multiple of 128
    stop: int
    old: bool
    held: bool
    scopes: tuple[int, int]  # the least and the greatest


@dataclass(frozen=True)
class Join:
    """All that a unit of work needs; made by `prepare`.

    `vectors`, `scopes` (int64 of n) and `held` (bool of n) are those of `near_pairs`; `codes` are
    positions x columns, -127 to 127, and `order` gives the row of each position.
    """

    vectors: Vectors
    tau: float
    scopes: Int64
    held: NDArray[np.bool_]
    frame: Frame
    codes: torch.Tensor  # int8, in order, padded
    order: Int64  # row of each code; -1: padding
    blocks: list[Block]
    low: NDArray[np.int16]  # blocks x (k + 1): the box of the q
    high: NDArray[np.int16]
    error: Float64  # greatest E of each block
    reach: float  # no pair is farther apart than this
    exact_int8: bool

    def __len__(self) -> int:
        """Number of units."""
        return len(self.blocks)


def near_pairs(
    vectors: Vectors,
    tau: float,
    *,
    scopes: NDArray[Any] | None = None,
    held: NDArray[np.bool_] | None = None,
    old: int = 0,
    device: str = "cpu",
    block: int | None = None,
    threads: int | None = None,
) -> Iterator[Pairs]:
    """Every pair whose dot product is at least `tau`, once each, in no particular order.

    A pair counts if both rows are of one scope, or exactly one of them is held out.

    Args:
        vectors: n x d, float16 or float32, rows of norm 1 (within 0.01).
        tau: above 0, at most 1.
        scopes: n integers (int64); None: one scope, all pairs count.
        held: n booleans; None: none is held out. To join only a set with another one, give
            `scopes=np.arange(n)` and the other one here.
        old: so many first rows were joined before: pairs of two of them are left out.
        device: as in `pipeline.device`.
        block: rows of a block; None: 512, or 1,024 for more than 8 threads; on CUDA
            16,384. Changes no pair.
        threads: blocks worked on at once; None: as many as torch has threads. Not for CUDA.

    Raises:
        AigiError: rows that are not finite or not normalised, or arguments out of range.
    """
    import torch

    threads = threads or torch.get_num_threads()
    if block is None and threads > 8 and pick_device(device).type == "cpu":
        block = 2 * BLOCK  # Python does some 20 µs of each product, and one thread at a time
    join = prepare(
        vectors,
        tau,
        scopes=scopes,
        held=held,
        old=old,
        device=device,
        block=block,
        threads=threads,
    )
    with _workers(threads) as pool:
        # A GPU does one product after the other, whoever asks.
        most = 2 * threads if join.codes.device.type == "cpu" else 0
        for found in ahead(range(len(join)), lambda u: list(unit_pairs(join, u)), pool, most):
            yield from found


@contextmanager
def _workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads of ours, in which torch has one thread.

    A product is too small to be shared: its threads would wait for the last of them, thousands of
    times. On a machine that has other work, that takes ten times as long.
    """
    import torch

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "pairs", torch.set_num_threads, (1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def gathered(pairs: Iterable[Pairs]) -> Pairs:
    """All pairs in one, by first and second row; empty arrays of shape (0,) for none."""
    parts = list(pairs)
    first = np.concatenate([part.first for part in parts] or [np.empty(0, np.int64)])
    second = np.concatenate([part.second for part in parts] or [np.empty(0, np.int64)])
    measure = np.concatenate([part.measure for part in parts] or [np.empty(0)])
    order = np.lexsort((second, first))
    return Pairs(first[order], second[order], measure[order])


# --- Blocks ------------------------------------------------------------------------------------


def prepare(
    vectors: Vectors,
    tau: float,
    *,
    scopes: NDArray[Any] | None = None,
    held: NDArray[np.bool_] | None = None,
    old: int = 0,
    device: str = "cpu",
    block: int | None = None,
    threads: int = 1,
) -> Join:
    """Read the vectors once and code them; arguments and errors as for `near_pairs`.

    Args:
        vectors: n x d, float16 or float32, rows of norm 1 (within 0.01).
        scopes: int64 of n; None: one scope.
        held: bool of n; None: none is held out.
        tau, old, device, block, threads: as for `near_pairs`.
    """
    import torch

    n = check(vectors, tau, scopes, held, old, block)
    where = pick_device(device)
    block = block or (CUDA_BLOCK if where.type == "cuda" else BLOCK)
    scopes = np.zeros(n, np.int64) if scopes is None else scopes.astype(np.int64)
    held = np.zeros(n, np.bool_) if held is None else held.astype(np.bool_)
    error = np.empty(n, np.float32)

    def code(piece: slice) -> float:
        codes[piece], far, lengths = encode(frame, floats(vectors[piece], np.float64))
        error[piece] = np.nextafter(far.astype(np.float32), np.float32(np.inf))
        return check_norms(lengths, piece.start)

    with _workers(threads) as pool:
        exact = pool.submit(_int8_is_exact, where)
        frame = pool.submit(choose_frame, vectors, tau).result()
        codes = np.empty((n, frame.columns), np.int8)
        longest = max(ahead(pieces(vectors), code, pool, 2 * threads), default=0.0)
    order, blocks = _arrange(codes, scopes, held, old, block)
    box = frame.mean.shape[0]
    low = np.array([codes[_rows(order, b), :box].min(0) for b in blocks], np.int16)
    high = np.array([codes[_rows(order, b), :box].max(0) for b in blocks], np.int16)
    worst = np.array([error[_rows(order, b)].max() for b in blocks], np.float64)
    laid = codes[order]
    laid[order < 0] = digits(np.zeros((1, box)), np.array([-OFFSET]), frame.columns)
    return Join(
        vectors=vectors,
        tau=tau,
        scopes=scopes,
        held=held,
        frame=frame,
        codes=torch.from_numpy(laid).to(where),
        order=order,
        blocks=blocks,
        low=low,
        high=high,
        error=worst,
        reach=math.sqrt(max(0.0, 2 * longest - 2 * tau) + 4 * SLACK),
        exact_int8=exact.result(),
    )


def check(
    vectors: Vectors,
    tau: float,
    scopes: NDArray[Any] | None = None,
    held: NDArray[np.bool_] | None = None,
    old: int = 0,
    block: int | None = None,
) -> int:
    """The number of rows, once the arguments of `near_pairs` fit one another.

    Args:
        vectors: n x d, float16 or float32; norms are not looked at.
        scopes, held: int64 and bool, shape (n,), or None.
        tau, old, block: as for `near_pairs`.

    Raises:
        AigiError: a shape, dtype or number is another one.
    """
    if len(vectors.shape) != 2 or vectors.dtype not in (np.float16, np.float32):
        raise AigiError(
            f"near pairs: vectors are {vectors.dtype} of shape {vectors.shape}; expected n x d of "
            "float16 or float32"
        )
    n = int(vectors.shape[0])
    if not 0 < tau <= 1:
        raise AigiError(f"near pairs: tau is {tau}; expected above 0 and at most 1")
    for name, labels in (("scopes", scopes), ("held", held)):
        if labels is not None and labels.shape != (n,):
            raise AigiError(f"near pairs: {name} has shape {labels.shape}; there are {n} rows")
    if not 0 <= old <= n:
        raise AigiError(f"near pairs: old is {old}; there are {n} rows")
    if block is not None and block < 1:
        raise AigiError(f"near pairs: block is {block}; expected at least 1")
    return n


def check_norms(lengths: Float64, start: int) -> float:
    """The greatest squared norm of the rows from `start` on, once all are near 1.

    Args:
        lengths: float64, shape (n,), n from 1: squared norms.
        start: number of the first row, for messages.

    Raises:
        AigiError: a norm is not within 0.01 of 1, or no number.
    """
    wrong = np.flatnonzero(~(np.abs(np.sqrt(lengths) - 1) <= _NORM_SLACK))
    if len(wrong):
        raise AigiError(
            f"near pairs: row {start + wrong[0]} has norm {math.sqrt(lengths[wrong[0]]):g}, not 1. "
            "Divide every row by its norm, and leave out rows that have none."
        )
    return float(lengths.max())


def _arrange(
    codes: NDArray[np.int8], scopes: Int64, held: NDArray[np.bool_], old: int, block: int
) -> tuple[Int64, list[Block]]:
    """Rows in the order of their codes, -1 for padding, and the blocks of that order."""
    n = len(codes)
    is_old = np.arange(n) < old
    rows = np.lexsort((scopes, held, ~is_old))
    kinds = np.stack([is_old[rows], held[rows], scopes[rows]])
    new = np.any(kinds[:, 1:] != kinds[:, :-1], axis=0)
    starts = np.concatenate([[0], np.flatnonzero(new) + 1, [n]]) if n else np.zeros(1, np.int64)
    parts: list[Int64] = []
    waiting: list[Int64] = []  # small scopes of one kind, to share a block
    together = 0  # their rows

    def flush() -> None:
        if waiting:
            parts.append(np.concatenate(waiting))
            waiting.clear()

    def kind(row: int) -> tuple[bool, bool]:
        return bool(is_old[row]), bool(held[row])

    for start, stop in pairwise(starts.tolist()):
        run = rows[start:stop]
        if waiting and (together + len(run) > block or kind(waiting[0][0]) != kind(run[0])):
            flush()
            together = 0
        if len(run) > block:
            parts.extend(_halved(codes, run, block))
        else:
            waiting.append(run)
            together += len(run)
    flush()
    blocks: list[Block] = []
    order = np.full(sum(-(-len(part) // _SEGMENT) * _SEGMENT for part in parts), -1, np.int64)
    start = 0
    for part in parts:
        stop = start + -(-len(part) // _SEGMENT) * _SEGMENT
        order[start : start + len(part)] = part
        ends = int(scopes[part].min()), int(scopes[part].max())
        blocks.append(Block(start, stop, *kind(part[0]), ends))
        start = stop
    return order, blocks


def _halved(codes: NDArray[np.int8], rows: Int64, block: int) -> list[Int64]:
    """Rows in parts of at most `block`, halved along the coordinate that varies most."""
    if len(rows) <= block:
        return [rows]
    # The leading coordinates vary most; a part of the rows shows which of them.
    seen = codes[rows[:: max(1, len(rows) // 4096)], :11].astype(np.float32)
    axis = int(seen.var(0).argmax())
    half = block * (-(-len(rows) // block) // 2)
    ranked = rows[np.argsort(codes[rows, axis], kind="stable")]
    return _halved(codes, ranked[:half], block) + _halved(codes, ranked[half:], block)


def _rows(order: Int64, block: Block) -> Int64:
    rows = order[block.start : block.stop]
    return rows[rows >= 0]


def _partners(join: Join, unit: int) -> list[int]:
    """Later blocks, and the block itself, that can hold a pair with one of this block."""
    mine = join.blocks[unit]
    apart = np.maximum(join.low[unit:] - join.high[unit], join.low[unit] - join.high[unit:])
    gap = join.frame.scale * np.sqrt((np.maximum(apart, 0).astype(np.float64) ** 2).sum(1))
    near = gap - join.error[unit:] - join.error[unit] <= join.reach
    return [
        other
        for other in (unit + np.flatnonzero(near)).tolist()
        if not (mine.old and join.blocks[other].old)
        and (
            mine.held != join.blocks[other].held
            or (
                mine.scopes[0] <= join.blocks[other].scopes[1]
                and join.blocks[other].scopes[0] <= mine.scopes[1]
            )
        )
    ]


# --- Candidates --------------------------------------------------------------------------------


def unit_pairs(join: Join, unit: int) -> Iterator[Pairs]:
    """The pairs of one block with itself and with later blocks, in batches.

    Args:
        join: as `prepare` returned it.
        unit: number of the block, 0 to len(join) - 1.
    """
    import torch

    partners = _partners(join, unit)
    if not partners:
        return
    mine = join.blocks[unit]
    swap = torch.from_numpy(swapped(join.frame.columns)).to(join.codes.device)
    left = join.codes[mine.start : mine.stop][:, swap].contiguous()
    widest = max(join.blocks[other].stop - join.blocks[other].start for other in partners)
    kind = torch.int32 if join.exact_int8 else torch.float32
    room = torch.empty(len(left) * widest, dtype=kind, device=join.codes.device)
    waiting: list[tuple[Int64, Int64]] = []
    for other in partners:
        theirs = join.blocks[other]
        right = join.codes[theirs.start : theirs.stop]
        products = room[: len(left) * len(right)].view(len(left), len(right))
        if join.exact_int8:
            torch._int_mm(left, right.T, out=products)
        else:
            torch.mm(left.float(), right.float().T, out=products)
        for i, j in _candidates(products, join.frame.limit):
            first, second = join.order[mine.start + i], join.order[theirs.start + j]
            use = (first >= 0) & (second >= 0)
            if other == unit:
                use &= i < j
            use &= (join.scopes[first] == join.scopes[second]) | (
                join.held[first] != join.held[second]
            )
            first, second = first[use], second[use]
            if len(first) >= _BATCH:
                yield from _decide(join, first, second)
            elif len(first):
                waiting.append((first, second))
        if sum(len(first) for first, _ in waiting) >= _BATCH:
            yield from _decide_all(join, waiting)
            waiting.clear()
    if waiting:
        yield from _decide_all(join, waiting)


def _candidates(products: torch.Tensor, limit: int) -> Iterator[tuple[Int64, Int64]]:
    """Positions (row, column) of what is at least `limit`.

    The greatest of each segment is looked at first: hardly any segment holds a candidate.
    """
    width = products.shape[1]
    segments = products.view(-1, _SEGMENT)
    hit = (segments.amax(1) >= limit).nonzero().flatten()
    step = 4 * _BATCH // _SEGMENT
    for start in range(0, len(hit), step):
        some = hit[start : start + step]
        inside = (segments[some] >= limit).nonzero()
        flat = (some[inside[:, 0]] * _SEGMENT + inside[:, 1]).cpu().numpy()
        yield flat // width, flat % width


def _int8_is_exact(device: torch.device) -> bool:
    """Whether int8 products can be had here: some processors saturate their partial sums."""
    import torch

    signs = torch.ones((_SEGMENT, COLUMNS[-1]), dtype=torch.int8, device=device)
    signs[1::2] = -1
    signs[::3, ::2] *= -1
    a, b = 127 * signs, 127 * signs.flip(0)
    try:
        found = torch._int_mm(a, b.T)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return bool((found.double() == a.double() @ b.double().T).all())


# --- Decisions ---------------------------------------------------------------------------------


def _decide_all(join: Join, waiting: list[tuple[Int64, Int64]]) -> Iterator[Pairs]:
    yield from _decide(
        join,
        np.concatenate([first for first, _ in waiting]),
        np.concatenate([second for _, second in waiting]),
    )


def _decide(join: Join, first: Int64, second: Int64) -> Iterator[Pairs]:
    """The candidates that are pairs."""
    vectors, tau, d = join.vectors, join.tau, join.vectors.shape[1]
    margin = (d + 2) * 2.0**-23
    # Of float16 all float64 sums are exact in any order: multiples of 2**-48 below 2.
    half = vectors.dtype == np.float16
    a, place_a = np.unique(first, return_inverse=True)
    b, place_b = np.unique(second, return_inverse=True)
    # Many candidates among few rows: one matrix product is cheaper than a dot product each.
    dense = len(a) * len(b) <= min(32 * len(first), 1 << 23)
    if dense and len(first) >= 1024 and (len(a) + len(b)) * d <= 16 * CHUNK_VALUES:
        if half:
            products = times(floats(vectors[a], np.float64), floats(vectors[b], np.float64).T)
            cosine: Float64 = products[place_a, place_b]
            near = cosine >= tau
            if near.any():
                yield Pairs.ordered(first[near], second[near], cosine[near])
            return
        x, y = floats(vectors[a], np.float32), floats(vectors[b], np.float32)
        near = times(x, y.T)[place_a, place_b] >= tau - margin
        first, second = first[near], second[near]
    step = max(1, CHUNK_VALUES // max(1, d))
    for start in range(0, len(first), step):
        some, others = first[start : start + step], second[start : start + step]
        x, y = floats(vectors[some], np.float32), floats(vectors[others], np.float32)
        near = np.einsum("ij,ij->i", x, y) >= tau - margin
        x, y = x[near], y[near]
        cosine = _dots(x, y)
        decided = cosine >= tau
        # Products of float32 are exact in float64, and fsum rounds only once: its sign is right.
        close = [] if half else np.flatnonzero(np.abs(cosine - tau) <= 2.0**-46).tolist()
        for k in close:
            terms = x[k].astype(np.float64) * y[k].astype(np.float64)
            decided[k] = math.fsum([*terms.tolist(), -tau]) >= 0
        if decided.any():
            yield Pairs.ordered(some[near][decided], others[near][decided], cosine[decided])


def _dots(x: NDArray[np.float32], y: NDArray[np.float32]) -> Float64:
    """Dot products of rows in float64, added in an order that depends on d alone."""
    terms = x.astype(np.float64) * y
    while terms.shape[1] > 1:
        half = -(-terms.shape[1] // 2)
        rest = terms.shape[1] - half
        terms[:, :rest] += terms[:, half:]
        terms = terms[:, :half]
    result: Float64 = terms.sum(1)
    return result
