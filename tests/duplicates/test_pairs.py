"""The join against exact brute force, whatever the data, in any blocks; and its memory."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import AigiError
from pipeline.duplicates import bounds, pairs
from pipeline.duplicates.pairs import Pairs, gathered, near_pairs, prepare, unit_pairs
from tests.perf.pairs import clip_like

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("gauss", "clusters", "equal", "axes", "steps", "outlier", "clip")
Rows = NDArray[Any]


def made(kind: str, n: int, d: int, seed: int, dtype: type) -> Rows:
    """Rows of norm 1 that are hard in some way."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, d))
    if kind == "clusters":  # in chains of small steps
        centres = random.standard_normal((3, d))
        x = centres[random.integers(0, 3, n)] + 0.1 * x
    elif kind == "equal":
        x[:] = random.standard_normal(d)
    elif kind == "axes":
        x = np.eye(d)[np.arange(n) % d] * random.choice([-1, 1], n)[:, None]
    elif kind == "steps":  # many cosines are alike
        x = np.rint(x)
        x[:, 0] += ~x.any(1)
    elif kind == "outlier":  # near one another, and a few far off
        x = 5 * np.eye(d)[0] + 0.3 * x
        x[random.random(n) < 0.1] *= -1
    elif kind == "clip":
        x = clip_like(n, d).astype(np.float64)
    result: Rows = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)
    return result


def exact(x: Rows) -> Iterator[tuple[int, int, list[float]]]:
    """All pairs, with the products that the cosine is the sum of; they have no error."""
    wide = x.astype(np.float64)
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            yield i, j, (wide[i] * wide[j]).tolist()


def brute(
    x: Rows,
    tau: float,
    scopes: NDArray[np.int64] | None = None,
    held: NDArray[np.bool_] | None = None,
    old: int = 0,
) -> set[tuple[int, int]]:
    """By the definition; `fsum` rounds only once, so that the sign is right."""
    return {
        (i, j)
        for i, j, terms in exact(x)
        if math.fsum([*terms, -tau]) >= 0
        and j >= old
        and (
            (scopes is None or scopes[i] == scopes[j]) or (held is not None and held[i] != held[j])
        )
    }


def as_set(found: Pairs) -> set[tuple[int, int]]:
    rows = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert len(set(rows)) == len(rows), "a pair came twice"
    return set(rows)


@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(0, 40),
    d=st.integers(1, 40),
    dtype=st.sampled_from([np.float16, np.float32]),
    tau=st.floats(0, 1, exclude_min=True) | st.sampled_from([0.9, 0.95, 0.99, 1.0]),
    pick=st.none() | st.integers(0, 1000),
    block=st.none() | st.integers(1, 50),
    scopes=st.none() | st.integers(1, 5),
    held=st.booleans(),
    old=st.integers(0, 40),
    sample=st.sampled_from([8192, 8192, 5, 1]),
    seed=st.integers(0, 1000),
)
@example("equal", 40, 7, np.float32, 0.5, 3, 7, None, False, 0, 8192, 0)
@example("steps", 40, 3, np.float16, 0.5, 40, 8, 2, True, 11, 8192, 1)
@example("outlier", 40, 30, np.float32, 0.9, 300, 16, None, False, 0, 3, 2)
@settings(max_examples=200, deadline=None)
def test_join_is_brute_force(
    kind: str,
    n: int,
    d: int,
    dtype: type,
    tau: float,
    pick: int | None,
    block: int | None,
    scopes: int | None,
    held: bool,
    old: int,
    sample: int,
    seed: int,
) -> None:
    x = made(kind, n, d, seed, dtype)
    random = np.random.default_rng(seed)
    labels = None if scopes is None else random.integers(-2, scopes, n)
    out = random.random(n) < 0.3 if held else None
    old = min(old, n)
    if pick is not None:  # tau is a cosine of the data, to the last bit or next to it
        cosines = sorted({math.fsum(terms) for _, _, terms in exact(x)})
        cosines = [value for value in cosines if 0 < value <= 1]
        if cosines:
            tau = cosines[pick % len(cosines)]
            tau = [tau, math.nextafter(tau, 0), min(1.0, math.nextafter(tau, 2))][pick % 3]
    with mock.patch.object(bounds, "_SAMPLE", sample):  # a frame that fits few rows is valid too
        found = gathered(near_pairs(x, tau, scopes=labels, held=out, old=old, block=block))
    assert as_set(found) == brute(x, tau, labels, out, old)
    assert (found.first < found.second).all()
    for i, j, cosine in zip(found.first, found.second, found.measure, strict=True):
        assert cosine == pytest.approx(float(x[i].astype(np.float64) @ x[j]), abs=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d", "dtype"), [(2, np.float16), (24, np.float32), (200, np.float16)])
def test_blocks_and_units_change_nothing(kind: str, d: int, dtype: type) -> None:
    x = made(kind, 700, d, 5, dtype)
    wide = x.astype(np.float64)
    dots = wide @ wide.T
    # Of 700 rows no brute force by exact sums: tau where no cosine is near.
    values = np.unique(dots[np.triu_indices(700, 1)])
    middle = (values[1:] + values[:-1]) / 2
    gaps = np.where((middle > 0.3) & (middle < 1), np.diff(values), 0)
    tau = float(middle[gaps.argmax()]) if len(gaps) and gaps.max() > 1e-9 else 0.5
    expected = np.nonzero(np.triu(dots >= tau, 1))  # sorted, as what is gathered
    whole = gathered(near_pairs(x, tau))
    np.testing.assert_array_equal((whole.first, whole.second), expected)
    for block in (60, 128, 333):
        join = prepare(x, tau, block=block)
        # Units in any order, each by itself.
        parts = [gathered(unit_pairs(join, unit)) for unit in reversed(range(len(join)))]
        for found in (
            gathered(parts),
            gathered(near_pairs(x, tau, block=block, threads=1)),
            gathered(near_pairs(x, tau, block=block, threads=3)),
        ):
            np.testing.assert_array_equal((found.first, found.second), expected)
            assert (found.measure == whole.measure).all()


def test_threads_of_torch_are_left_as_they_were() -> None:
    import torch

    x = made("equal", 600, 4, 0, np.float32)
    before = torch.get_num_threads()
    found = near_pairs(x, 0.9, block=64, threads=2)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:  # a new thread takes what was set last by any
        assert pool.submit(torch.get_num_threads).result() == before


def test_far_blocks_are_skipped_and_no_pair_is_lost() -> None:
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 6000)
    x = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    join = prepare(x, 0.99999, block=128)
    looked_at = sum(len(pairs._partners(join, unit)) for unit in range(len(join)))
    assert looked_at < 0.2 * len(join) ** 2 / 2
    found = gathered(part for unit in range(len(join)) for part in unit_pairs(join, unit))
    wide = x.astype(np.float64)
    near = np.triu(wide @ wide.T >= 0.99999, 1)
    assert len(found) == near.sum() and near[found.first, found.second].all()


def test_few_candidates_are_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    decide = pairs._decide

    def counting(join: Any, first: Any, second: Any) -> Iterator[Pairs]:
        looked_at.append(len(first))
        return decide(join, first, second)

    monkeypatch.setattr(pairs, "_decide", counting)
    x = clip_like(8192)
    found = gathered(near_pairs(x, 0.95))
    planted = 2 * (4096 * 3 // 100) / 2
    assert 0.8 * planted < len(found) < 1.4 * planted
    assert sum(looked_at) < 1e-3 * 8192**2 / 2


def test_int8_and_float32_products_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clip_like(3000, 100)
    whole = gathered(near_pairs(x, 0.9))
    assert len(whole)
    join = prepare(x, 0.9)
    other = replace(join, exact_int8=not join.exact_int8)
    assert gathered(unit_pairs(other, 0)).first.tolist() == (
        gathered(unit_pairs(join, 0)).first.tolist()
    )


def test_rows_unlike_the_sample_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    x = 5 * np.eye(20)[0] + 0.05 * random.standard_normal((600, 20))
    far = random.choice(600, 60, replace=False)
    x[far] = random.standard_normal((6, 20))[np.arange(60) % 6]
    x[far] += 0.1 * random.standard_normal((60, 20))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    rows = x.astype(np.float16)
    wide = rows.astype(np.float64)
    monkeypatch.setattr(bounds, "_SAMPLE", 4)
    join = prepare(rows, 0.99, block=200)
    assert (join.codes[:, -2] == 127).sum() > 20, "else no row is unbounded"
    found = as_set(gathered(part for unit in range(len(join)) for part in unit_pairs(join, unit)))
    expected = np.nonzero(np.triu(wide @ wide.T >= 0.99, 1))
    assert found == set(zip(*map(np.ndarray.tolist, expected), strict=True))
    assert any(i in far for i, _ in found)


def test_a_set_against_another_one() -> None:
    x = made("clusters", 60, 8, 0, np.float16)
    other = np.arange(60) >= 40
    found = as_set(gathered(near_pairs(x, 0.9, scopes=np.arange(60), held=other)))
    assert found == {(i, j) for i, j in brute(x, 0.9) if i < 40 <= j}
    assert found


def test_joining_day_by_day_is_joining_once() -> None:
    x = made("clusters", 90, 16, 1, np.float32)
    days = [
        as_set(gathered(near_pairs(x[:30], 0.97))),
        as_set(gathered(near_pairs(x[:50], 0.97, old=30))),
        as_set(gathered(near_pairs(x, 0.97, old=50))),
    ]
    assert sum(map(len, days)) == len(set().union(*days))
    assert set().union(*days) == brute(x, 0.97)
    assert all(days)


def test_a_memory_map_is_joined(tmp_path: Path) -> None:
    x = clip_like(500, 64)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert as_set(gathered(near_pairs(mapped, 0.9))) == brute(x, 0.9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x * 2, "row 0 has norm 2, not 1"),
        (lambda x: np.where(np.arange(9)[:, None] == 7, 0, x), "row 7 has norm 0, not 1"),
        (lambda x: np.where(np.arange(9)[:, None] == 3, np.nan, x), "row 3 has norm nan"),
        (lambda x: np.where(np.arange(9)[:, None] == 3, np.inf, x), "row 3 has norm inf"),
        (lambda x: x.astype(np.float64), "expected n x d of float16 or float32"),
        (lambda x: x[0], "expected n x d of float16 or float32"),
    ],
)
def test_vectors_are_refused(change: Any, words: str) -> None:
    x = made("gauss", 9, 4, 0, np.float32)
    with pytest.raises(AigiError, match=words):
        list(near_pairs(change(x), 0.9))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau": 0}, "tau is 0"),
        ({"tau": 1.1}, "tau is 1.1"),
        ({"tau": math.nan}, "tau is nan"),
        ({"scopes": np.zeros(8, np.int64)}, "scopes has shape"),
        ({"held": np.zeros((9, 1), np.bool_)}, "held has shape"),
        ({"old": 10}, "old is 10"),
        ({"block": 0}, "block is 0"),
        ({"device": "abacus"}, "device: abacus"),
    ],
)
def test_arguments_are_refused(options: dict[str, Any], words: str) -> None:
    x = made("gauss", 9, 4, 0, np.float32)
    with pytest.raises(AigiError, match=words):
        list(near_pairs(x, **{"tau": 0.9, **options}))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Stated: the file itself, 250 bytes a row and 128 MiB; a float32 copy alone is more."""
    rows, d = 60_000, 640
    x = clip_like(4096, 64).astype(np.float32)
    out = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float16, (rows, d))
    random = np.random.default_rng(0)
    for start in range(0, rows, 4096):
        some = out[start : start + 4096]
        mixed = x[: len(some)] @ random.standard_normal((64, d), np.float32)
        mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
        some[:] = mixed
    out.flush()
    del out
    code = """
        import json, re, sys
        import numpy as np
        import torch
        from pipeline.duplicates.pairs import gathered, near_pairs

        def resident(name):
            return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

        x = np.load(sys.argv[1], mmap_mode="r")
        list(near_pairs(x[:300], 0.98))
        before = resident("VmRSS")
        found = sum(map(len, near_pairs(x, 0.98)))
        print(json.dumps({"found": found, "grown": 1024 * (resident("VmHWM") - before)}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "x.npy")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    grown = json.loads(done.stdout)["grown"]
    allowed = rows * (2 * d + 250) + (128 << 20)
    assert allowed < rows * d * (2 + 4), "else the test could not tell"
    assert grown < allowed, (grown, allowed)


# Made-up embeddings.


def test_embeddings_are_like_those_of_clip() -> None:
    x = clip_like(9000, 512)
    again = clip_like(4096, 512, start=4096)
    assert (x[4096:8192] == again).all()
    wide = x[:4096].astype(np.float64)
    assert np.abs(np.linalg.norm(wide, axis=1) - 1).max() < 1e-3
    cosines = (wide @ wide.T)[np.triu_indices(4096, 1)]
    assert 0.5 < cosines.mean() < 0.6 and 0.03 < cosines.std() < 0.1
    assert (cosines > 0.95).sum() == pytest.approx(61, abs=25)
