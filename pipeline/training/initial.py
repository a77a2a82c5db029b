"""An untrained network in, a transform coder out: where training begins.

With random weights, a short training only finds some transform. A good one is known: the
Karhunen-Loève transform of images in which near pixels are similar, which the DCT of JPEG
approximates. It is written to the strided convolutions of the analysis, halving by halving, each of
which keeps the components of greatest variance of the one before; its transpose is written to those
of the synthesis. Everything else begins small or at zero, and the entropy model begins with the
variances of the transform:

    x ─▶ K_1 ─▶ K_2 ─▶ K_3 ─▶ K_4 ─▶ y               K_s   c_s x 4 c_(s-1), orthonormal rows
    x_hat ◀─ K_1ᵀ ◀─ K_2ᵀ ◀─ K_3ᵀ ◀─ K_4ᵀ ◀─ y       c     3, N, N, N, M, or all that exist

The model of images: a correlation of 0.95 to the power of the distance in pixels (the
nonseparable exponential of Jain, Fundamentals of Digital Image Processing, 1989, chapter 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.learned.network import Network
from pipeline.learned.networks.layers import Bottleneck, CatBlock, Gated
from pipeline.learned.networks.light import Down, Residual, Up
from pipeline.learned.networks.tcm import Mixture

CORRELATION = 0.95
COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
"""Orthogonal axes of RGB, lightness first."""
SHARES = (1.0, 0.06, 0.03)
"""Variances along them, over that of lightness, roughly as in photographs."""
DEVIATION = 0.25
"""Standard deviation of a pixel."""
AMPLITUDE = 0.25
"""Scale of pixels in the networks: so small that GDN, which divides large values, does little."""
LEAST_DEVIATION = 0.2
"""Deviation of a latent in steps: rounding alone changes it by more."""
LATENT = 2.0
"""Standard deviation of z."""
SMALL = 0.01
"""Share of the random weights that remains beside the transform, to tell channels apart."""
CLOSED = -6.0
"""Logit of a gate that is all but closed: what it lets through is one in 400."""


def transforms(channels: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """K_s of each halving, and the standard deviations of the last components.

    Args:
        channels: c_1, c_2, …: how many components to keep at most.

    Returns:
        float64, c_s x c_(s-1) x 2 x 2 (component, input, row, column), components of greater
        variance first; and c_4 deviations for pixels of deviation 1 in lightness.
    """
    axes = nn.functional.normalize(torch.tensor(COLOURS, dtype=torch.float64), dim=1)
    colour = axes.T @ torch.diag(torch.tensor(SHARES, dtype=torch.float64)) @ axes
    found: list[Tensor] = []
    kept = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)  # components x 3 x size x size
    place = torch.eye(2, dtype=torch.float64)
    deviations = torch.ones(3, dtype=torch.float64)
    for count in channels:
        size = 2 * kept.shape[-1]
        # Each component at each of the four places of a block of twice the size.
        inputs = torch.einsum("kcij,ra,sb->krscaibj", kept, place, place)
        inputs = inputs.reshape(4 * len(kept), 3 * size * size)
        variances, vectors = torch.linalg.eigh(inputs @ _covariance(colour, size) @ inputs.T)
        rows = vectors.T.flip(0)[:count]
        found.append(rows.view(-1, len(kept), 2, 2))
        deviations = variances.flip(0)[:count].clamp(min=0).sqrt()
        kept = (rows @ inputs).view(-1, 3, size, size)
    return found, deviations


def _covariance(colour: Tensor, size: int) -> Tensor:
    """Covariance of the pixels of a block: float64, 3 size² x 3 size²."""
    at = torch.arange(size, dtype=torch.float64)
    rows, columns = (g.flatten() for g in torch.meshgrid(at, at, indexing="ij"))
    # Rows are a little more alike than columns: else components come in pairs of one variance, in
    # which every rotation is as good, and machines would differ.
    off = ((rows[:, None] - rows) ** 2 + 0.94 * (columns[:, None] - columns) ** 2).sqrt()
    return torch.kron(colour, CORRELATION**off)


def step_of(weight: float) -> float:
    """The best quantisation step at λ for pixels from 0 to 1: a finer one costs more than it saves.

    At high rate a step d leaves a squared error D = d² / 12, and three samples a pixel take
    -3/2 log2 D bits and a constant: λ 255² D - 3/2 log2 D is least at D = 3 / (2 ln 2 λ 255²).
    """
    return math.sqrt(12 * 3 / (2 * math.log(2) * weight * 255**2))


@torch.no_grad()
def begin(network: Network, step: float) -> None:
    """Make an untrained network a transform coder, in place.

    Args:
        step: quantisation step for pixels from 0 to 1; with several qualities, that of the
            qualities whose gain is 1 so far.
    """
    sizes = network.sizes
    if sizes.kind == "catc-light":
        widths = sizes.widths
    else:
        widths = [2 * sizes.width if sizes.kind == "tcm" else sizes.n] * 3
    found, spread = transforms([*widths, sizes.m])
    matrices = [matrix.float() for matrix in found]
    deviations = torch.full([sizes.m], LEAST_DEVIATION)
    deviations[: len(spread)] = (spread * DEVIATION / step).clamp(min=LEAST_DEVIATION)
    last, first = BEGUN[sizes.kind](network, matrices)
    _expect(network, deviations)
    scale = AMPLITUDE * step
    if network.gains is not None:
        # Here the optimiser, whose steps do not know how large weights are, moves it by its share.
        network.gains.log_gain.sub_(math.log(scale))
        network.gains.log_inverse.add_(math.log(scale))
    else:
        last.weight /= scale
        last.bias /= scale
        first.weight *= scale


def _begin_catc(network: Any, matrices: list[Tensor]) -> tuple[Any, Any]:
    """Write the transform to g_a and g_s; return the layers that make and take y."""
    bound = AMPLITUDE * math.sqrt(3) / 2  # of a component of 3 pixels from -1/2 to 1/2
    for down, matrix in zip(network.g_a.down, matrices, strict=False):
        first, _, second, _ = down.body
        bound *= 2
        count = len(matrix)
        _shrink(first, second, down.skip)
        _down(first, matrix)
        # Far from the kink of the rectifier, and back.
        first.bias[:count] += bound
        second.weight[:count] = 0
        second.weight[range(count), range(count), 1, 1] = 1
        second.bias[:count] = -bound
    _center(network.g_a.down[0].body[0], matrices[0])
    _shrink(network.g_a.last)
    _down(network.g_a.last, matrices[-1])
    for up in network.g_s.up:
        _zero(up.body[2])
    ups = [*(up.skip[0] for up in network.g_s.up), network.g_s.last[0]]
    for layer, matrix in zip(ups, reversed(matrices), strict=True):
        _shrink(layer)
        _up(layer, matrix)
    _uncenter(ups[-1])
    _silence(network)
    return network.g_a.last, ups[0]


def _begin_light(network: Any, matrices: list[Tensor]) -> tuple[Any, Any]:
    """The same for a light CATC, whose 1x1 convolutions take the transform; all else adds to it."""
    downs = [*(down.skip[1] for down in network.g_a.down), network.g_a.last[1]]
    ups = [network.g_s.first[0], *(up.skip[0] for up in network.g_s.up), network.g_s.last.skip]
    _shrink(*downs, *ups)
    for layer, matrix in zip(downs, matrices, strict=True):
        layer.weight[: len(matrix), : 4 * matrix.shape[1], 0, 0] += matrix.flatten(1)
    _center(downs[0], matrices[0])
    for layer, matrix in zip(ups, reversed(matrices), strict=True):
        _up(layer, matrix)
    _uncenter(ups[-1])
    _zero(network.g_s.last.body)
    for part in network.modules():
        if isinstance(part, Down):
            _zero(part.body[2])
        elif isinstance(part, Up):
            _zero(part.body[3])
        elif isinstance(part, Residual):
            _zero(part.body[2])
    _silence(network)
    return downs[-1], ups[0]


def _silence(network: Any) -> None:
    """Let blocks of the transforms, and all that is said of the text, add nothing until trained."""
    for part in (*network.g_a.modules(), *network.g_s.modules()):
        if isinstance(part, CatBlock):
            _zero(part.window.out, part.mlp[2])
        elif isinstance(part, Mixture):
            _zero(part.last)
        elif isinstance(part, Bottleneck) and not part.rectified:
            _zero(part.body[4])
        elif isinstance(part, Gated):
            last: Any = part.mask[-1]
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, CLOSED)
    network.silence_text()


def _begin_hyperprior(network: Any, matrices: list[Tensor]) -> tuple[Any, Any]:
    """The same for networks whose transforms are convolutions one after the other."""
    return _strided(network.g_a.layers[::2], network.g_s.layers[::2], matrices)


def _begin_elic(network: Any, matrices: list[Tensor]) -> tuple[Any, Any]:
    """The same for ELIC, whose blocks add to what its convolutions make."""
    _silence(network)
    return _strided(network.g_a.down, network.g_s.up, matrices)


def _strided(downs: Any, ups: Any, matrices: list[Tensor]) -> tuple[Any, Any]:
    """Write the transform to convolutions of stride 2 and transposed ones."""
    _shrink(*downs, *ups)
    for layer, matrix in zip(downs, matrices, strict=True):
        _down(layer, matrix)
    _center(downs[0], matrices[0])
    for layer, matrix in zip(ups, reversed(matrices), strict=True):
        layer.weight[: len(matrix), : matrix.shape[1], 2:4, 2:4] += matrix
    _uncenter(ups[-1])
    return downs[-1], ups[0]


BEGUN = {
    "hyperprior": _begin_hyperprior, "mean-scale": _begin_hyperprior, "catc": _begin_catc,
    "catc-light": _begin_light, "tcm": _begin_catc, "elic": _begin_elic,
}  # fmt: skip
"""How the transform is written to each kind of network."""


def _up(layer: Any, matrix: Tensor) -> None:
    """Add a matrix's transpose to the middle of a convolution before a PixelShuffle."""
    at = layer.weight.shape[-1] // 2
    weight = layer.weight.view(-1, 2, 2, *layer.weight.shape[1:])  # as PixelShuffle takes them
    weight[: matrix.shape[1], :, :, : len(matrix), at, at] += matrix.permute(1, 2, 3, 0)


def _down(layer: Any, matrix: Tensor) -> None:
    """Add a matrix to a convolution of stride 2."""
    at = layer.weight.shape[-1] // 2
    layer.weight[: len(matrix), : matrix.shape[1], at : at + 2, at : at + 2] += matrix


def _center(layer: Any, matrix: Tensor) -> None:
    """Let the first convolution subtract 1/2 from pixels and scale them to `AMPLITUDE`."""
    layer.weight *= AMPLITUDE
    layer.bias[: len(matrix)] -= AMPLITUDE * matrix.sum((1, 2, 3)) / 2


def _uncenter(layer: Any) -> None:
    """Let the last convolution undo that."""
    layer.weight /= AMPLITUDE
    nn.init.constant_(layer.bias, 0.5)


def _expect(network: Any, deviations: Tensor) -> None:
    """Give the entropy model the deviations of y at a gain of 1."""
    kind, layers, entropy = network.sizes.kind, network.h_a.layers, network.entropy
    firsts = [layers[0].body[0], layers[0].skip] if kind == "tcm" else [layers[0]]
    for first in firsts:
        _calm(first.weight, _both(deviations) if kind == "catc-light" else deviations)
    # Without this z rounds to 0, and h_s would learn nothing until it has grown.
    y = torch.randn(1, len(deviations), 64, 64) * deviations[:, None, None]
    # Of CATC the layers alone: what they may be told of the text is silent.
    speaks = LATENT / (layers(y) if kind == "catc" else network.h_a(y)).std()
    for weights in layers[-1].parameters():
        weights *= speaks
    EXPECTED[kind](entropy, deviations)


def _expect_scales(entropy: Any, deviations: Tensor) -> None:
    """The scales of `hyperprior`."""
    entropy.h_s[-2].bias += deviations


def _expect_means_and_scales(entropy: Any, deviations: Tensor) -> None:
    """Those of `mean-scale`."""
    entropy.h_s[-1].bias[len(deviations) :] += deviations


def _expect_slices(entropy: Any, deviations: Tensor) -> None:
    """Those of the slices of CATC, which one or two states carry on."""
    parts = torch.split(deviations, entropy.depth)
    two = entropy.states == 2
    for gru in (entropy.gru, entropy.scale_gru) if two else (entropy.gru,):
        for gate in (gru.gates, gru.candidate):
            _calm(gate.weight[:, : entropy.depth], torch.stack(parts).mean(0))
    heads = entropy.scale_e if two else entropy.e
    for part, e, lrp in zip(parts, heads, entropy.lrp, strict=True):
        e[-1].bias[-entropy.depth :] += part
        _calm(lrp[0].weight[:, -entropy.depth :], part)
        _zero(lrp[-1])


def _expect_tcm(entropy: Any, deviations: Tensor) -> None:
    """Those of the slices of TCM, each of which sees all earlier ones."""
    known = deviations[:0]
    for index, part in enumerate(torch.split(deviations, entropy.depth)):
        for look in (entropy.look_mean[index], entropy.look_scale[index]):
            _calm(look[0].weight[:, len(deviations) :], known)
        entropy.scale[index][-1].bias += part
        lrp = entropy.lrp[index]
        _calm(lrp[0].weight[:, -entropy.depth :], part)
        _zero(lrp[-1])
        known = torch.cat([known, part])


def _expect_elic(entropy: Any, deviations: Tensor) -> None:
    """Those of the groups of ELIC."""
    for index, part in enumerate(torch.split(deviations, entropy.groups)):
        if index:
            known = deviations[: sum(entropy.groups[:index])]
            _calm(entropy.channels[index - 1][0].weight, known)
        _calm(entropy.around[index].weight, part)
        entropy.together[index][-1].bias[len(part) :] += part


def _expect_groups(entropy: Any, deviations: Tensor) -> None:
    """Those of the groups of a light CATC."""
    for index, part in enumerate(torch.split(deviations, entropy.groups)):
        known = deviations[: sum(entropy.groups[:index])]
        if index:
            _calm(entropy.c[index - 1][0].weight, _both(known))
        if index < entropy.checkered:
            _calm(entropy.s[index].weight, _both(part))
        entropy.e[index][-1].bias[len(part) :] += part.log()
        lrp = entropy.lrp[index]
        seen = torch.cat([known, part])
        _calm(lrp[0].weight[:, -len(seen) :], seen)
        _zero(lrp[-1])


EXPECTED = {
    "hyperprior": _expect_scales, "mean-scale": _expect_means_and_scales, "catc": _expect_slices,
    "catc-light": _expect_groups, "tcm": _expect_tcm, "elic": _expect_elic,
}  # fmt: skip
"""How the entropy model of each kind of network is told the deviations."""


def _both(deviations: Tensor) -> Tensor:
    """Deviations of what `context.both` makes of latents with these, roughly."""
    return torch.cat([deviations, torch.asinh(deviations)])


def _calm(weight: Tensor, deviations: Tensor) -> None:
    """Scale weights as if none of their inputs were much larger than 1."""
    weight /= deviations.clamp(min=1)[:, None, None]


def _shrink(*layers: Any) -> None:
    for layer in layers:
        layer.weight *= SMALL
        nn.init.zeros_(layer.bias)


def _zero(*layers: nn.Module) -> None:
    for layer in layers:
        for weights in layer.parameters():
            nn.init.zeros_(weights)
