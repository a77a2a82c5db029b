"""MS-SSIM against the package that the field measures with."""

from __future__ import annotations

import pytest
import torch
from pytorch_msssim import ms_ssim as theirs

from pipeline.training.distortion import LEAST_SIDE, WEIGHTS, ms_ssim


@pytest.mark.parametrize("size", [(161, 161), (192, 256), (201, 333)])
def test_ms_ssim_equals_the_package(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(3, 3, 12, 12), size=size, mode="bicubic")
    x = (x + 0.05 * torch.randn_like(x)).clamp(0, 1)
    strength = torch.tensor([0.01, 0.1, 0.5]).view(3, 1, 1, 1)
    y = (x + strength * torch.randn_like(x)).clamp(0, 1)
    ours = ms_ssim(x, y)
    assert ours.shape == (3,)
    assert torch.allclose(ours, theirs(x, y, data_range=1.0, size_average=False), atol=2e-5)
    assert ours[0] > ours[1] > ours[2]
    assert torch.allclose(ms_ssim(x, x), torch.ones(3))


def test_fewer_scales_have_exponents_of_the_same_sum() -> None:
    torch.manual_seed(1)
    x = torch.nn.functional.interpolate(torch.rand(2, 3, 20, 20), size=(170, 190), mode="bicubic")
    x, y = x.clamp(0, 1), (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    for scales in (2, 4):
        shares = [weight / sum(WEIGHTS[:scales]) for weight in WEIGHTS[:scales]]
        found = theirs(x, y, data_range=1.0, size_average=False, weights=shares)
        assert torch.allclose(ms_ssim(x, y, scales), found, atol=2e-5)


def test_ms_ssim_leads_back_from_a_negative_scale() -> None:
    x = torch.rand(1, 3, 176, 176)
    y = (1 - x).requires_grad_()
    found = ms_ssim(x, y)
    assert found.item() == 0
    torch.autograd.backward(found.sum())
    assert y.grad is not None
    assert torch.isfinite(y.grad).all()


def test_small_pictures_are_refused() -> None:
    short = torch.rand(1, 3, LEAST_SIDE - 1, 300)
    with pytest.raises(ValueError, match="161"):
        ms_ssim(short, short)
    enough = torch.rand(1, 3, LEAST_SIDE, 300)
    ms_ssim(enough, enough)
    assert ms_ssim(short, short, 4).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="scales"):
        ms_ssim(short, short, 0)


def test_gradients_come_after_measuring_without_them() -> None:
    x = torch.rand(1, 3, 161, 161)
    with torch.inference_mode():
        ms_ssim(x, x)
    y = (x * 0.9).requires_grad_()
    torch.autograd.backward(ms_ssim(x, y).sum())
    assert y.grad is not None and y.grad.abs().max() > 0
