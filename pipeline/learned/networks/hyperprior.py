"""Sizes in, the networks of `hyperprior` (Ballé 2018) and `mean-scale` (Minnen 2018) out.

    x ─▶ g_a ─▶ y ──┬─▶ Q ─▶ AE ─▶ bits ─▶ AD ─▶ y_hat ─▶ g_s ─▶ x_hat
                    │         ▲             ▲
                   h_a        └─ N(mu, s) ──┘
                    │                ▲
                    z ─▶ Q ─▶ AE ─▶ bits ─▶ AD ─▶ z_hat ─▶ h_s
                               ▲             ▲
                               └─ factorized ┘

    x, x_hat        B x 3 x H x W, 0 to 1; 64 divides H and W
    y, y_hat        B x M x H/16 x W/16
    z, z_hat        B x N x H/64 x W/64
    h_s(z_hat)      scale s (hyperprior; mu is 0), or mu and s (mean-scale), each like y

Minnen's autoregressive part is left out: it decodes latent by latent.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.learned.coding import Step
from pipeline.learned.networks.layers import Gdn, Text, conv, deconv
from pipeline.learned.sizes import HyperpriorSizes


class Analysis(nn.Module):
    """g_a: x in, y out. The text is not looked at.

    x is float32, B x 3 x H x W, 0 to 1; y is float32, B x M x H/16 x W/16, any finite values.
    """

    def __init__(self, sizes: HyperpriorSizes) -> None:
        super().__init__()
        n, m = sizes.n, sizes.m
        self.layers = nn.Sequential(
            *(conv(3, n, 5, 2), Gdn(n), conv(n, n, 5, 2), Gdn(n)),
            *(conv(n, n, 5, 2), Gdn(n), conv(n, m, 5, 2)),
        )

    def forward(self, x: Tensor, text: Text | None) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Synthesis(nn.Module):
    """g_s: y_hat in, x_hat out. The text is not looked at.

    y_hat is float32, B x M x h x w, any finite values; x_hat is float32, B x 3 x 16h x 16w, about
    0 to 1, not clamped.
    """

    def __init__(self, sizes: HyperpriorSizes) -> None:
        super().__init__()
        n, m = sizes.n, sizes.m
        self.layers = nn.Sequential(
            *(deconv(m, n), Gdn(n, inverse=True), deconv(n, n), Gdn(n, inverse=True)),
            *(deconv(n, n), Gdn(n, inverse=True), deconv(n, 3)),
        )

    def forward(self, y_hat: Tensor, text: Text | None) -> Tensor:
        x_hat: Tensor = self.layers(y_hat)
        return x_hat


class HyperAnalysis(nn.Module):
    """h_a: y in, z out.

    y is float32, B x M x h x w, and z float32, B x N x h/4 x w/4; any finite values.
    """

    def __init__(self, sizes: HyperpriorSizes) -> None:
        super().__init__()
        n, m = sizes.n, sizes.m
        self.magnitudes = sizes.kind == "hyperprior"  # without means, signs say nothing
        rectifier = nn.ReLU if self.magnitudes else nn.LeakyReLU
        self.layers = nn.Sequential(
            *(conv(m, n), rectifier(), conv(n, n, 5, 2), rectifier(), conv(n, n, 5, 2)),
        )

    def forward(self, y: Tensor, text: Text | None = None) -> Tensor:
        z: Tensor = self.layers(y.abs() if self.magnitudes else y)
        return z


class EntropyModel(nn.Module):
    """h_s: z_hat in, distributions of y to `step`, y_hat out.

    z_hat is B x N x h x w, y_hat B x M x 4h x 4w; float32 in training, float64 once frozen; any
    finite values. The text is not looked at.
    """

    def __init__(self, sizes: HyperpriorSizes) -> None:
        super().__init__()
        n, m = sizes.n, sizes.m
        self.has_mean = sizes.kind == "mean-scale"
        if self.has_mean:
            layers = [deconv(n, m), nn.LeakyReLU(), deconv(m, 3 * m // 2), nn.LeakyReLU()]
            self.h_s = nn.Sequential(*layers, conv(3 * m // 2, 2 * m))
        else:
            layers = [deconv(n, n), nn.ReLU(), deconv(n, n), nn.ReLU()]
            self.h_s = nn.Sequential(*layers, conv(n, m), nn.ReLU())

    def forward(self, z_hat: Tensor, text: Text | None, step: Step) -> Tensor:
        said: Tensor = self.h_s(z_hat)
        if self.has_mean:
            mean, scale = said.chunk(2, dim=1)
        else:
            mean, scale = said.new_zeros(()).expand_as(said), said
        return step(slice(None), mean, scale)

    def freeze(self) -> None:
        """Go to float64: all of it decides which bits are read."""
        self.double()
