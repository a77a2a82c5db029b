"""Vectors in; clusters that are joined one by one, each with its rows and those near to it, out.

For more vectors than one machine compares in a day. It finds what `pairs.near_pairs` finds, none
missed, whatever the centres of the clusters are:

Let x belong to the cluster with centre a, y to that with centre b. From the plane half-way between
a and b they have the signed distances s(x) = (|x - b|² - |x - a|²) / (2 |a - b|) and s(y), the same
with a and b exchanged. A pair is no farther apart than r = sqrt(2 - 2 tau), and s(x) + s(y) <=
|x - y| <= r: so s(x) <= r/2 or s(y) <= r/2. Rows with s(x) <= r/2 are the halo of b's cluster. Each
cluster joins its members with one another and with its halo; of a pair that lies in two halos the
cluster with the lower number keeps it. A cluster needs its own rows alone: it is a unit of work for
any machine (`compute.ray`).

What it saves is a matter of the data, and `Clusters.share` tells it before the work: with rows in
m clusters of n/m and halos of f n/m, the share of all products is (1 + 2 f)/m. CLIP-like rows
(tests.perf.pairs: half of what varies lies in 2,000 themes) have, at tau 0.95, f = 61 and a share
of 0.57 in 256 clusters, 56 and 0.23 in 1,024, 25 and 0.05 in 2,000; at tau 0.98 18 and 0.18, 12 and
0.06, 4 and 0.01. Rows without themes have halos of nearly everything, and nothing is saved.

Cost of n rows of d coordinates in m clusters: some 256 m rows go ten times through k-means; n m d
multiplications find members and halos; the clusters' joins are `share` of the plain one, and 0.2 s
a cluster to choose its code, so that clusters below some thousand members are too small. Memory: 4
bytes a row and 8 bytes a row of a halo, m² distances of 4 bytes, and in a join 2 d bytes for every
row of a cluster and its halo.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.duplicates.bounds import SLACK, Int64, Vectors, floats, pieces
from pipeline.duplicates.pairs import Pairs, check, check_norms, gathered, near_pairs
from pipeline.models.device import pick_device

Arguments = tuple[NDArray[Any], float, Int64, NDArray[np.bool_], int, str]
"""Of `part_pairs`, which says what they are."""

ROUNDS = 10
SAMPLE = 256  # rows of the sample for each cluster
_AT_ONCE = 1 << 23  # distances


@dataclass(frozen=True)
class Clusters:
    """Where the rows are.

    Attributes:
        home: int32, shape (n,), cluster of each row, 0 to count - 1.
        halo: int64, shape (H,), cluster x n + row of every row of a halo, ascending.
        count: number of clusters.
    """

    home: NDArray[np.int32]
    halo: Int64
    count: int

    def near(self, cluster: int) -> Int64:
        """Rows of the halo of a cluster, ascending: int64, shape (h,), 0 to n - 1."""
        n = len(self.home)
        start, stop = np.searchsorted(self.halo, (cluster * n, (cluster + 1) * n))
        rows: Int64 = self.halo[start:stop] - cluster * n
        return rows

    def is_near(self, rows: Int64, clusters: Int64) -> NDArray[np.bool_]:
        """Whether each of some rows is in the halo of the cluster beside it.

        Args:
            rows: int64, shape (m,), 0 to n - 1.
            clusters: int64, shape (m,), 0 to count - 1.

        Returns: bool, shape (m,).
        """
        keys = clusters * len(self.home) + rows
        at = np.searchsorted(self.halo, keys)
        found = np.zeros(len(keys), np.bool_)
        inside = at < len(self.halo)
        found[inside] = self.halo[at[inside]] == keys[inside]
        return found

    @property
    def share(self) -> float:
        """Products of the clusters' joins, as a share of those of all pairs."""
        n = len(self.home)
        members = np.bincount(self.home, minlength=self.count).astype(np.float64)
        near = np.bincount(self.halo // max(n, 1), minlength=self.count)
        return float((members * (members / 2 + near)).sum() / max(1.0, n * n / 2))


def divide(vectors: Vectors, tau: float, count: int, *, device: str = "cpu") -> Clusters:
    """Find clusters by k-means on an even sample, and the halo of each.

    Args:
        vectors: n x d, float16 or float32, rows of norm 1 (within 0.01).
        tau: as for `near_pairs`.
        count: clusters; fewer if some stay empty.
        device: as in `pipeline.device`.

    Raises:
        AigiError: as `near_pairs`.
    """
    import torch

    n = check(vectors, tau)
    where = pick_device(device)
    longest = 0.0
    for piece in pieces(vectors):
        rows = floats(vectors[piece], np.float64)
        longest = max(longest, check_norms(np.einsum("ij,ij->i", rows, rows), piece.start))
    if n == 0:
        return Clusters(np.empty(0, np.int32), np.empty(0, np.int64), 0)
    centres = _centres(vectors, count, where)
    d, count = vectors.shape[1], len(centres)
    reach = math.sqrt(max(0.0, 2 * longest - 2 * tau) + 4 * SLACK)
    # 2 |a - b| s(x) is at most this in a halo. The last terms are more than float32 can lose in
    # four sums of d products.
    wide = centres.double()
    limit = (reach * torch.cdist(wide, wide) + (d + 16) * 2.0**-20).float()
    squares = (wide * wide).sum(1).float()
    home = np.empty(n, np.int32)
    halos: list[Int64] = [np.empty(0, np.int64)]
    step = max(1, _AT_ONCE // max(count, d))
    for start in range(0, n, step):
        x = torch.from_numpy(floats(vectors[start : start + step], np.float32)).to(where)
        nearness = 2 * (x @ centres.T) - squares  # |x|² less the squared distance
        best, own = nearness.max(1)
        near = best[:, None] - nearness <= limit[own]
        near[torch.arange(len(x), device=where), own] = False
        row, cluster = near.nonzero().cpu().numpy().T
        halos.append(cluster.astype(np.int64) * n + row + start)
        home[start : start + len(x)] = own.cpu().numpy()
    return Clusters(home, np.sort(np.concatenate(halos)), count)


def _centres(vectors: Vectors, count: int, where: Any) -> Any:
    """Means of Lloyd's clusters, float32 count x d; any would do, good ones have small halos."""
    import torch

    n = vectors.shape[0]
    rows = np.unique(np.linspace(0, n - 1, min(n, SAMPLE * count)).astype(np.int64))
    sample = torch.from_numpy(floats(vectors[rows], np.float32)).to(where)
    order = np.random.default_rng(0).permutation(len(rows))[:count]
    centres = sample[torch.from_numpy(order).to(where)]
    step = max(1, _AT_ONCE // max(count, vectors.shape[1]))
    for _ in range(ROUNDS):
        squares = (centres * centres).sum(1)
        own = torch.cat(
            [
                (2 * (sample[start : start + step] @ centres.T) - squares).argmax(1)
                for start in range(0, len(sample), step)
            ]
        )
        sizes = torch.bincount(own, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, own, sample)
        centres = (sums / sizes.clamp(min=1)[:, None])[sizes > 0]
    return centres


@dataclass(frozen=True)
class Part:
    """Rows that are joined: the first `old` of them with the others, not with one another.

    Attributes:
        cluster: whose part it is.
        rows: int64, shape (m,), row numbers of all vectors, 0 to n - 1, each once.
        old: how many of them are not joined with one another.
    """

    cluster: int
    rows: Int64
    old: int


def parts(clusters: Clusters, old: int = 0) -> Iterator[Part]:
    """The joins that find all pairs; those of two of the first `old` rows are left out."""
    order = np.argsort(clusters.home, kind="stable")
    ends = np.cumsum(np.bincount(clusters.home, minlength=clusters.count))
    for cluster, stop in enumerate(ends.tolist()):
        members = order[ends[cluster - 1] if cluster else 0 : stop]
        halo = clusters.near(cluster)
        before, fresh = members[members < old], members[members >= old]
        if len(fresh):
            rows = np.concatenate([halo, before, fresh])
            yield Part(cluster, rows, len(rows) - len(fresh))
        late = halo[halo >= old]
        if len(before) and len(late):
            yield Part(cluster, np.concatenate([before, late]), len(before))


def own_pairs(clusters: Clusters, part: Part, found: Pairs, old: int = 0) -> Pairs:
    """What the cluster keeps of the pairs of a part: rows of all, no pair that another keeps.

    Args:
        clusters: as `divide` returned them.
        part: one of `parts`.
        found: its pairs by its own row numbers, 0 to m - 1.
        old: as for `parts`.
    """
    pairs = Pairs.ordered(part.rows[found.first], part.rows[found.second], found.measure)
    one, other = (clusters.home[rows].astype(np.int64) for rows in (pairs.first, pairs.second))
    here, there = one == part.cluster, other == part.cluster
    # The member, the row of the halo, and the cluster of that row.
    member = np.where(here, pairs.first, pairs.second)
    elsewhere = np.where(here, other, one)
    taken = (elsewhere < part.cluster) & clusters.is_near(member, elsewhere)
    keep = (here | there) & ((here & there) | ~taken) & (pairs.second >= old)
    return Pairs(pairs.first[keep], pairs.second[keep], pairs.measure[keep])


def clustered_pairs(
    vectors: Vectors,
    tau: float,
    clusters: Clusters,
    *,
    scopes: NDArray[Any] | None = None,
    held: NDArray[np.bool_] | None = None,
    old: int = 0,
    device: str = "cpu",
    join: Callable[[Iterator[Arguments]], Iterator[Pairs]] | None = None,
) -> Iterator[Pairs]:
    """The pairs of `near_pairs`, each once, cluster by cluster.

    Args:
        vectors: n x d, float16 or float32, rows of norm 1 (within 0.01).
        scopes: int64 of n; None: one scope.
        held: bool of n; None: none is held out.
        tau, old, device: as for `near_pairs`.
        clusters: of the same vectors and tau.
        join: how `part_pairs` is called with its arguments; the answers come in order. None: here,
            one after the other.

    Raises:
        AigiError: as `near_pairs`.
    """
    n = check(vectors, tau, scopes, held, old)
    scopes = np.zeros(n, np.int64) if scopes is None else scopes.astype(np.int64)
    held = np.zeros(n, np.bool_) if held is None else held.astype(np.bool_)
    asked: deque[Part] = deque()

    def arguments() -> Iterator[Arguments]:
        for part in parts(clusters, old):
            asked.append(part)
            rows = part.rows
            yield vectors[rows], tau, scopes[rows], held[rows], part.old, device

    answers = (part_pairs(*given) for given in arguments()) if join is None else join(arguments())
    for found in answers:
        yield own_pairs(clusters, asked.popleft(), found, old)


def part_pairs(
    vectors: NDArray[Any],
    tau: float,
    scopes: Int64,
    held: NDArray[np.bool_],
    old: int,
    device: str,
) -> Pairs:
    """The pairs of one part, by its own row numbers; needs nothing else, so it runs anywhere.

    Args:
        vectors: n x d, float16 or float32, the rows of the part, of norm 1 (within 0.01).
        scopes, held: int64 and booleans of n.
        tau, old, device: as for `near_pairs`.
    """
    return gathered(near_pairs(vectors, tau, scopes=scopes, held=held, old=old, device=device))
