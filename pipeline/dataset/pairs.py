"""Vectors or perceptual hashes in; every near-duplicate pair, groups, and the kept member out.

Two rows are a pair if their dot product is at least tau. The rows are L2-normalised, so that this
is their cosine; where their type rounded the norm (float16: by some 1e-4), it is the dot product
of the rows as they are given, taken as a real number, without any rounding. So the pairs are a
function of the rows alone: no block, device or number of threads can add or lose one.

Nothing is missed, because what is cheap to compute is an upper bound:

    x ──▶ rotated, k coordinates | norm of the rest ──▶ int8 codes ──▶ products >= limit ──▶ exact
          z, one vector of k + 1                        and an offset   (candidates)        pairs

1. Rotate by the principal axes of a sample and fold all but k coordinates into their norm:
   x·y <= z_x·z_y (Cauchy-Schwarz). z has the length of x, and no distance grows.
2. Write z = m + s q + e with the sample's mean m and integers q in -127..127. With N = |s q| and
   E = |e|, z_x·z_y <= s² q_x·q_y + o_x + o_y, where o = m·(z - m) + |m|²/2 + (l N² + E²/l + E²)/2
   for any l > 0, since N_x E_y <= (l N_x² + E_y²/l)/2. Offsets are integers of two digits in four
   more columns of the code, so that a bound is one int8 product; integers know no rounding.
   A row that no code of this range bounds is a candidate with every other row.
3. Candidates are decided by their own rows: float32 with a margin, float64, and where that is
   within its error of tau, the exact sum.

k and s come from the sample: the cheapest by counted candidates, nothing is timed. Rows are put in
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
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline import AigiError
from pipeline.device import pick_device

if TYPE_CHECKING:
    import torch

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Real = TypeVar("Real", np.float32, np.float64)

SPLIT_RANK = {"test": 0, "validation": 1, "train": 2}
"""First of the keys for `kept`: what is held out stays, and training gives way."""

# Columns of a code: k coordinates, the norm of the rest, and four for the offset. Below 1,040
# columns the products are exact in float32 as well.
COLUMNS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_EXTRA = 5
# In units of one int8 column of one pair: the rest of the work on a pair, and a candidate.
_PAIR_COST, _CANDIDATE_COST = 36, 1 << 18
# The greatest offset of two digits to the base 127: 127 * 127 + 63.
_OFFSET = 16_192
_NORM_SLACK = 0.01
# For what float64 rounds in step 1; the real error is below 1e-12.
_SLACK = 1e-9
_SAMPLE, _SAMPLE_PAIRS = 8192, 2048
_SEGMENT = 128
_CHUNK_VALUES = 1 << 21
_BATCH = 1 << 15


class Vectors(Protocol):
    """Rows that numpy can slice and pick from: an array, `np.memmap`, or what looks like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True)
class Pairs:
    """Some pairs of rows.

    Attributes:
        first: int64, row of the one.
        second: int64, row of the other; greater than `first`.
        measure: float64, the cosine (`near_pairs`) or the number of bits that differ
            (`hash_pairs`).
    """

    first: Int64
    second: Int64
    measure: Float64

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Frame:
    """How a row becomes a code; any values give valid bounds, good ones give few candidates."""

    rotation: Float64  # d x k, orthonormal columns
    mean: Float64  # k + 1
    scale: float  # s
    blend: float  # l
    base: float  # an offset of this size is the integer 0
    limit: int  # products of codes from here on are candidates
    columns: int


@dataclass(frozen=True)
class Block:
    """Rows that stand together: all old or none, all held out or none."""

    start: int  # of its codes; their number is a multiple of 128
    stop: int
    old: bool
    held: bool
    scopes: tuple[int, int]  # the least and the greatest


@dataclass(frozen=True)
class Join:
    """All that a unit of work needs; made by `prepare`."""

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
) -> Iterator[Pairs]:
    """Every pair whose dot product is at least `tau`, once each, in no particular order.

    A pair counts if both rows are of one scope, or exactly one of them is held out.

    Args:
        vectors: n x d, float16 or float32, rows of norm 1 (within 0.01).
        tau: above 0, at most 1.
        scopes: n integers; None: one scope, all pairs count.
        held: n booleans; None: none is held out. To join only a set with another one, give
            `scopes=np.arange(n)` and the other one here.
        old: so many first rows were joined before: pairs of two of them are left out.
        device: as in `pipeline.device`.
        block: rows of a block; None: 2,048, on CUDA 16,384. Changes no pair.

    Raises:
        AigiError: rows that are not finite or not normalised, or arguments out of range.
    """
    join = prepare(vectors, tau, scopes=scopes, held=held, old=old, device=device, block=block)
    for unit in range(len(join)):
        yield from unit_pairs(join, unit)


def gathered(pairs: Iterable[Pairs]) -> Pairs:
    """All pairs in one, by first and second row."""
    parts = list(pairs)
    first = np.concatenate([part.first for part in parts] or [np.empty(0, np.int64)])
    second = np.concatenate([part.second for part in parts] or [np.empty(0, np.int64)])
    measure = np.concatenate([part.measure for part in parts] or [np.empty(0)])
    order = np.lexsort((second, first))
    return Pairs(first[order], second[order], measure[order])


# --- Codes -------------------------------------------------------------------------------------


def prepare(
    vectors: Vectors,
    tau: float,
    *,
    scopes: NDArray[Any] | None = None,
    held: NDArray[np.bool_] | None = None,
    old: int = 0,
    device: str = "cpu",
    block: int | None = None,
) -> Join:
    """Read the vectors once and code them; arguments and errors as of `near_pairs`."""
    import torch

    n = _check(vectors, tau, scopes, held, old, block)
    where = pick_device(device)
    block = block or (16_384 if where.type == "cuda" else 2_048)
    scopes = np.zeros(n, np.int64) if scopes is None else scopes.astype(np.int64)
    held = np.zeros(n, np.bool_) if held is None else held.astype(np.bool_)
    frame = _choose_frame(vectors, tau)
    codes = np.empty((n, frame.columns), np.int8)
    error = np.empty(n, np.float32)
    longest = 0.0
    for start, rows in _pieces(vectors):
        piece, far, lengths = _encode(frame, rows)
        wrong = np.flatnonzero(~(np.abs(np.sqrt(lengths) - 1) <= _NORM_SLACK))
        if len(wrong):
            norm = math.sqrt(lengths[wrong[0]])
            raise AigiError(
                f"near pairs: row {start + wrong[0]} has norm {norm:g}, not 1. Divide every row "
                "by its norm, and leave out rows that have none."
            )
        codes[start : start + len(rows)] = piece
        error[start : start + len(rows)] = np.nextafter(far.astype(np.float32), np.float32(np.inf))
        longest = max(longest, float(lengths.max()))
    order, blocks = _arrange(codes, scopes, held, old, block)
    box = frame.mean.shape[0]
    low = np.array([codes[_rows(order, b), :box].min(0) for b in blocks], np.int16)
    high = np.array([codes[_rows(order, b), :box].max(0) for b in blocks], np.int16)
    worst = np.array([error[_rows(order, b)].max() for b in blocks], np.float64)
    laid = codes[order]
    laid[order < 0] = _digits(np.zeros((1, box)), np.array([-_OFFSET]), frame.columns)
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
        reach=math.sqrt(max(0.0, 2 * longest - 2 * tau) + 4 * _SLACK),
        exact_int8=_int8_is_exact(where, frame.columns),
    )


def _check(
    vectors: Vectors,
    tau: float,
    scopes: NDArray[Any] | None,
    held: NDArray[np.bool_] | None,
    old: int,
    block: int | None,
) -> int:
    """The number of rows, once the arguments fit one another."""
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


def _pieces(vectors: Vectors) -> Iterator[tuple[int, Float64]]:
    """Rows in float64, some at a time, each with the number of its first row."""
    n, d = vectors.shape
    step = max(1, _CHUNK_VALUES // max(1, d))
    for start in range(0, n, step):
        yield start, _floats(vectors[start : start + step], np.float64)


def _floats(rows: NDArray[Any], kind: type[Real]) -> NDArray[Real]:
    """A copy in another type; torch, since numpy takes four times as long over float16."""
    import torch

    wide = torch.float64 if kind is np.float64 else torch.float32
    copy: NDArray[Real] = torch.from_numpy(np.array(rows)).to(wide).numpy()
    return copy


def _choose_frame(vectors: Vectors, tau: float) -> Frame:
    """The frame with the least expected cost among those of `COLUMNS`, by an even sample."""
    n, d = vectors.shape
    if n == 0:
        return Frame(np.zeros((d, 0)), np.zeros(1), 1.0, 1.0, 1.0, 0, COLUMNS[0])
    sample = np.empty((min(n, _SAMPLE, max(1024, 2 * _CHUNK_VALUES // max(1, d))), d))
    rows = np.linspace(0, n - 1, len(sample)).astype(np.int64)
    step = max(1, _CHUNK_VALUES // max(1, d))
    for start in range(0, len(rows), step):
        sample[start : start + step] = _floats(vectors[rows[start : start + step]], np.float64)
    # What is not finite is refused with its row when all rows are read.
    sample[~np.isfinite(sample).all(1)] = 0
    rough = sample.astype(np.float32)
    _, axes = np.linalg.eigh((rough.T @ rough).astype(np.float64))
    axes = axes[:, ::-1]
    few = sample[np.linspace(0, len(sample) - 1, min(len(sample), _SAMPLE_PAIRS)).astype(np.int64)]
    best: tuple[float, int] | None = None
    for columns in COLUMNS:
        if best is not None and columns + _PAIR_COST >= best[0]:
            break
        frame = _frame(few, axes[:, : columns - _EXTRA], tau, columns)
        codes, _, _ = _encode(frame, few)
        left, right = codes[:, _swap(columns)].astype(np.float32), codes.astype(np.float32)
        found = int(np.count_nonzero(left @ right.T >= frame.limit)) - len(few)
        share = max(0, found) / max(1, len(few) * (len(few) - 1))
        cost = columns + _PAIR_COST + _CANDIDATE_COST * share
        if best is None or cost < best[0]:
            best = cost, columns
        if columns - _EXTRA >= d:
            break
    assert best is not None
    return _frame(sample, axes[:, : best[1] - _EXTRA], tau, best[1])


def _compress(rotation: Float64, rows: Float64) -> tuple[Float64, Float64]:
    """z of each row, n x (k + 1), its last coordinate rounded up; and the squared norms."""
    with np.errstate(invalid="ignore"):  # rows that are not finite are refused by their length
        leading = rows @ rotation
        lengths = np.einsum("ij,ij->i", rows, rows)
    rest = np.maximum(lengths - np.einsum("ij,ij->i", leading, leading), 0) + _SLACK / 10
    return np.concatenate([leading, np.sqrt(rest)[:, None]], axis=1), lengths


def _frame(sample: Float64, axes: Float64, tau: float, columns: int) -> Frame:
    rotation = np.ascontiguousarray(axes)
    z, _ = _compress(rotation, sample)
    mean = z.mean(0)
    u = z - mean
    # Seen from the mean, a row of norm 1 has the offset (1 - |u|²)/2; none above tau / 2 may lie
    # below the integer 0, so that a row with the greatest offset is a candidate with any other.
    half = 0.5 * np.einsum("ij,ij->i", u, u)
    base = max(tau / 2, float(0.5 - half.min()))
    lowest = float(0.5 - half.max())
    scale = max(
        1.05 * float(np.abs(u).max()) / 127,
        math.sqrt(max(0.0, base - lowest) / _OFFSET),
        1e-4,
    )
    q = np.rint(u / scale)
    error = float(np.linalg.norm(u - scale * q, axis=1).mean())
    length = float(np.linalg.norm(scale * q, axis=1).mean())
    blend = max(error, 1e-6) / max(length, 1e-3)
    limit = min(0, math.floor((tau - _SLACK - 2 * base) / scale**2))
    return Frame(rotation, mean, scale, blend, base, limit, columns)


def _encode(frame: Frame, rows: Float64) -> tuple[NDArray[np.int8], Float64, Float64]:
    """Codes n x columns, errors E and squared norms of float64 rows n x d."""
    z, lengths = _compress(frame.rotation, rows)
    u = np.nan_to_num(z - frame.mean, posinf=0, neginf=0)
    q = np.clip(np.rint(u / frame.scale), -127, 127)
    error = np.linalg.norm(u - frame.scale * q, axis=1)
    squares = frame.scale**2 * np.einsum("ij,ij->i", q, q)
    offset = u @ frame.mean + 0.5 * float(frame.mean @ frame.mean)
    offset += 0.5 * (frame.blend * squares + error**2 / frame.blend + error**2)
    steps = np.ceil((offset - frame.base + _SLACK) / frame.scale**2)
    unbounded = steps > _OFFSET
    q[unbounded] = 0
    error[unbounded] = np.linalg.norm(u[unbounded], axis=1)
    return _digits(q, np.clip(steps, -_OFFSET, _OFFSET), frame.columns), error, lengths


def _digits(q: Float64, offset: Float64 | Int64, columns: int) -> NDArray[np.int8]:
    """Columns: q, zeros, 127, 1, and the two digits of the offset to the base 127."""
    codes = np.zeros((len(q), columns), np.int8)
    codes[:, : q.shape[1]] = q
    codes[:, -4], codes[:, -3] = 127, 1
    tens = np.rint(offset / 127)
    codes[:, -2], codes[:, -1] = tens, offset - 127 * tens
    return codes


def _swap(columns: int) -> Int64:
    """Order of columns that puts the digits of one code on the weights of the other."""
    order = np.arange(columns)
    order[-4:] = order[[-2, -1, -4, -3]]
    return order


# --- Blocks ------------------------------------------------------------------------------------


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
    """The pairs of one block with itself and with later blocks, in batches."""
    import torch

    partners = _partners(join, unit)
    if not partners:
        return
    mine = join.blocks[unit]
    swap = torch.from_numpy(_swap(join.frame.columns)).to(join.codes.device)
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


def _int8_is_exact(device: torch.device, columns: int) -> bool:
    """Whether int8 products can be had here: some processors saturate their partial sums."""
    import torch

    signs = torch.ones((_SEGMENT, columns), dtype=torch.int8, device=device)
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
    if dense and len(first) >= 1024 and (len(a) + len(b)) * d <= 4 * _CHUNK_VALUES:
        if half:
            products = _floats(vectors[a], np.float64) @ _floats(vectors[b], np.float64).T
            cosine: Float64 = products[place_a, place_b]
            near = cosine >= tau
            if near.any():
                yield _ordered(first[near], second[near], cosine[near])
            return
        x, y = np.asarray(vectors[a], np.float32), np.asarray(vectors[b], np.float32)
        near = (x @ y.T)[place_a, place_b] >= tau - margin
        first, second = first[near], second[near]
    step = max(1, _CHUNK_VALUES // max(1, d))
    for start in range(0, len(first), step):
        some, others = first[start : start + step], second[start : start + step]
        x, y = _floats(vectors[some], np.float32), _floats(vectors[others], np.float32)
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
            yield _ordered(some[near][decided], others[near][decided], cosine[decided])


def _ordered(first: Int64, second: Int64, measure: Float64) -> Pairs:
    return Pairs(np.minimum(first, second), np.maximum(first, second), measure)


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


# --- Groups ------------------------------------------------------------------------------------


def components(n: int, pairs: Iterable[Pairs]) -> Int64:
    """Connected components.

    Args:
        n: number of rows.
        pairs: as they come; they are not kept.

    Returns: int64 of n, the least row that is connected with each row.
    """
    parent = np.arange(n)
    for some in pairs:
        a, b = _roots(parent, some.first), _roots(parent, some.second)
        while True:
            apart = a != b
            if not apart.any():
                break
            a, b = a[apart], b[apart]
            # The least root wins, so that parents never grow and no ring can close.
            np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
            a, b = _roots(parent, a), _roots(parent, b)
        parent[some.first] = _roots(parent, some.first)
        parent[some.second] = _roots(parent, some.second)
    return _roots(parent, parent)


def _roots(parent: Int64, rows: Int64) -> Int64:
    while True:
        above = parent[rows]
        if np.array_equal(above, rows):
            return above
        rows = above


def same(keys: Iterable[Hashable | None]) -> Int64:
    """Groups of equal keys, for example the sha256 of pixels: the first row that has the key.

    A row whose key is None is alone.
    """
    seen: dict[Hashable, int] = {}
    return np.array(
        [row if key is None else seen.setdefault(key, row) for row, key in enumerate(keys)],
        np.int64,
    )


def kept(groups: NDArray[Any], keys: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Which rows stay: of each group, the one with the least keys.

    Args:
        groups: n labels.
        keys: arrays of n, the first one decides first; NaN is greater than any number. For
            images: `SPLIT_RANK` of the split, minus the CLIP score, the id. Where all are
            equal, the first row stays.

    Returns: booleans of n, true once in each group.
    """
    ranks = [np.unique(key, return_inverse=True)[1] for key in reversed(keys)]
    order = np.lexsort([*ranks, groups])
    first = np.ones(len(groups), np.bool_)
    first[1:] = groups[order[1:]] != groups[order[:-1]]
    result = np.zeros(len(groups), np.bool_)
    result[order[first]] = True
    return result


# --- Perceptual hashes -------------------------------------------------------------------------


def perceptual_hash(rgb: NDArray[np.uint8]) -> int:
    """64 bits that stay nearly the same when a picture is encoded again or resized.

    Luma 0.299 R + 0.587 G + 0.114 B is averaged over 32 x 32 equal areas (pixels on a border
    count by their share), and goes through an orthonormal two-dimensional DCT-II. Of the 64
    frequencies (v, u) after the mean, by v + u and then v, each rounded to a multiple of 1/16, a
    bit is 1 if it is above their median; the first is the highest bit.

    Args:
        rgb: uint8 H x W x 3, at least 1 x 1.

    Returns: 0 to 2**64 - 1; 0 for a picture of one colour.

    Raises:
        ValueError: another type or shape.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"perceptual_hash: {rgb.dtype} {rgb.shape}; expected uint8 H x W x 3")
    luma = rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    small = _areas(luma.shape[0]) @ luma @ _areas(luma.shape[1]).T
    angles = np.pi / 32 * np.outer(np.arange(32), np.arange(32) + 0.5)
    dct = np.cos(angles) * math.sqrt(2 / 32)
    dct[0] /= math.sqrt(2)
    spectrum = dct @ small @ dct.T
    frequencies = sorted(((v, u) for v in range(11) for u in range(11)), key=lambda f: (sum(f), f))
    values = np.rint([16 * spectrum[f] for f in frequencies[1:65]])
    bits = values > np.median(values)
    return int("".join("1" if bit else "0" for bit in bits), 2)


def _areas(size: int) -> Float64:
    """32 x size weights: the mean over each of 32 equal parts of a line of pixels."""
    edges = np.arange(33) * (size / 32)
    pixels = np.arange(size)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: Float64 = np.maximum(shared, 0) * (32 / size)
    return weights


def hash_pairs(hashes: NDArray[np.uint64], distance: int) -> Iterator[Pairs]:
    """Every pair of hashes that differ in at most `distance` of 64 bits, once each.

    Of distance + 1 bands of bits, two such hashes share one: rows are sorted by each band in
    turn, and rows of one band are compared. Where the bands hold so little that this compares
    more than all pairs are, all pairs are compared. Memory: 60 bytes a row.

    Args:
        hashes: uint64 of n.
        distance: 0 to 64.

    Raises:
        ValueError: another distance.
    """
    if not 0 <= distance <= 64:
        raise ValueError(f"hash_pairs: distance {distance}; expected 0 to 64")
    n = len(hashes)
    edges = [64 * i // (distance + 1) for i in range(distance + 2)]
    masks = [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]
    work = 0
    for mask in masks:
        sizes = np.unique(hashes & mask, return_counts=True)[1].astype(np.float64)
        work += int((sizes * (sizes - 1) / 2).sum())
    if work >= n * (n - 1) // 2:
        masks = [np.uint64(0)]
    for number, mask in enumerate(masks):
        order = np.argsort(hashes & mask, kind="stable")
        ranked = hashes[order]
        band = ranked & mask
        ends = np.searchsorted(band, band, side="right")
        active = np.arange(n)
        step = 0
        while True:
            step += 1
            active = active[active + step < ends[active]]
            if not len(active):
                break
            other = active + step
            bits = np.bitwise_count(ranked[active] ^ ranked[other])
            near = np.flatnonzero(bits <= distance)
            first, second = active[near], other[near]
            differ = ranked[first] ^ ranked[second]
            # A pair that shares an earlier band came with that band.
            fresh = np.ones(len(near), np.bool_)
            for earlier in masks[:number]:
                fresh &= (differ & earlier) != 0
            if fresh.any():
                yield _ordered(
                    order[first[fresh]], order[second[fresh]], bits[near[fresh]].astype(np.float64)
                )
