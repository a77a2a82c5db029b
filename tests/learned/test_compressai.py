"""Likelihoods beside CompressAI's on the same weights.

It wants numpy < 2, so it has an environment of its own: `pip install .[compressai] pytest`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.learned.entropy import Factorized, gaussian_likelihood

models: Any = pytest.importorskip("compressai.entropy_models", reason="extra compressai")


def test_factorized_likelihoods_are_compressais() -> None:
    torch.manual_seed(0)
    theirs = models.EntropyBottleneck(6).eval()
    ours = Factorized(6).eval()
    with torch.no_grad():
        for name in ("matrices", "biases", "factors"):
            for index, mine in enumerate(getattr(ours, name)):
                their = getattr(theirs, name)[index]
                their.add_(torch.randn_like(their) * 0.3)
                mine.copy_(their)
        theirs.quantiles[:, 0, 1] = torch.randn(6)
        ours.median.copy_(theirs.quantiles[:, 0, 1])
    z = torch.randn(2, 6, 16, 16) * 8
    z_hat, likelihoods = theirs(z)
    mine_hat, mine_likelihoods = ours(z)
    torch.testing.assert_close(mine_hat, z_hat)
    torch.testing.assert_close(mine_likelihoods, likelihoods, rtol=1e-4, atol=1e-7)


def test_gaussian_likelihoods_are_compressais() -> None:
    torch.manual_seed(0)
    theirs = models.GaussianConditional(None).eval()
    scale = torch.rand(2, 4, 16, 16) * 5
    mean = torch.randn_like(scale) * 3
    y = mean + torch.randn_like(scale) * scale
    y_hat, likelihoods = theirs(y, scale, means=mean)
    mine = gaussian_likelihood(y_hat - mean, scale)
    torch.testing.assert_close(mine, likelihoods, rtol=1e-4, atol=1e-7)
