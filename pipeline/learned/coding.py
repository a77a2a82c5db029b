"""Latents and what a network says about them in, bytes out, and back.

What a network says is snapped to a grid first: the mean to multiples of 1/256, the scale to one of
64 steps. In float64, machines differ by some 1e-15 of a number, so the chance that one of them
lands on the other side of a border is some 1e-13 a number, and both sides code with the same
integers. The checksum is over all that decides y_hat: where it ever happens, decoding fails.

`Estimate`, `Write` and `Read` are three ways through the same networks: called with a part
of y, its mean and its scale, they return its y_hat.
"""

from __future__ import annotations

import zlib
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline import AigiError
from pipeline.learned.entropy import Conditional, Factorized, noise, straight_through
from pipeline.learned.range_coder import (
    MISMATCH,
    DamagedStream,
    Indices,
    RangeReader,
    RangeWriter,
    read_scaled,
    write_scaled,
)
from pipeline.learned.tables import BORDERS, LEAST_SCALE, MOST, Ints

MEAN_STEPS = 256


class Step(Protocol):
    """What an entropy model tells of the next latents, in return for what they are."""

    def __call__(
        self, part: slice, mean: Tensor, scale: Tensor, where: Tensor | None = None
    ) -> Tensor:
        """Channels of y, their mean and scale (B x C x H x W) in, their y_hat out.

        Args:
            part: which channels of y.
            mean, scale: float32 in training, float64 once frozen; any finite values, a scale below
                0.11 counts as 0.11.
            where: the positions that are coded now, bool, H x W; None: all.

        Returns:
            Shape and dtype of mean; 0 where nothing is coded now.
        """


def _z_checksum(symbols: Ints) -> int:
    return zlib.crc32(symbols.astype("<i4").tobytes()) & 0xFFFF


def _snapped(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Multiples of 1/256 (int64), and indices into SCALES (int64).

    Raises:
        AigiError: the network does not say a number.
    """
    if mean.dtype != torch.float64:
        raise ValueError("coding wants a network in float64: call freeze() first")
    if not bool(torch.isfinite(mean).all() and torch.isfinite(scale).all()):
        raise AigiError(
            "codec: the network gives no number for a mean or scale: its weights are damaged"
        )
    means = torch.floor(mean * MEAN_STEPS + 0.5).clamp(-MOST * MEAN_STEPS, MOST * MEAN_STEPS)
    borders = torch.from_numpy(BORDERS).to(scale.device)
    return means.long(), torch.bucketize(scale.contiguous(), borders)


def _indices(indices: Tensor) -> Indices:
    return indices.to(torch.uint8).flatten().cpu().numpy()


def _at(where: Tensor | None, x: Tensor) -> Tensor:
    """x, B x C x H x W, at the positions that are coded now: B x C x P, row by row."""
    return x if where is None else x[..., where]


def _back(where: Tensor | None, y_hat: Tensor, like: Tensor) -> Tensor:
    """What `_at` took out, in its place again; 0 elsewhere."""
    if where is None:
        return y_hat
    whole = torch.zeros_like(like)
    whole[..., where] = y_hat
    return whole


class _Checksum:
    """CRC-32 over every y_hat, as multiples of 1/256, in the order of coding."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, steps: Ints) -> None:
        self.value = zlib.crc32(steps.astype("<i4").tobytes(), self.value)


class Estimate:
    """y in, y_hat and the likelihoods of y out: no bits are made.

    Args:
        y: B x M x H x W, any finite values; float64, or a float that is taken as float32.
        training: likelihoods of y with noise, else of rounded y; those by fitted tables, where
            there are any, have no gradient.
        conditional: the distributions of y; None: Gaussians without a tail.

    Attributes:
        likelihoods: of each part in turn, like it, up to 1.
        coded: the channels of these parts.
    """

    def __init__(self, y: Tensor, training: bool, conditional: Conditional | None = None) -> None:
        # bfloat16 could not tell symbols beyond 128 from their neighbours.
        self.y, self.training = y if y.dtype == torch.float64 else y.float(), training
        self.conditional = conditional or Conditional()
        self.likelihoods: list[Tensor] = []
        self.coded: list[slice] = []
        self.squares: list[Tensor] = []

    def spread(self) -> Tensor:
        """Means over each image of ((y - mean) / scale)²: float32, B, at least 0, no gradient."""
        return torch.stack(self.squares).sum(0) / self.y[0].numel()

    def __call__(
        self, part: slice, mean: Tensor, scale: Tensor, where: Tensor | None = None
    ) -> Tensor:
        distance = self.y[:, part] - mean
        squares = (distance.detach() / scale.detach().clamp(min=LEAST_SCALE)).float().square()
        squares = squares if where is None else squares.where(where, 0)
        self.squares.append(squares.flatten(1).sum(1))
        rounded = straight_through(distance)
        if not self.training and self.conditional.table is not None:
            found = self.conditional.tabled(rounded, scale)
        else:
            seen = noise(distance) if self.training else rounded
            found = self.conditional.likelihood(seen, scale)
        y_hat = rounded + mean
        if where is not None:
            found, y_hat = found.where(where, 1), y_hat.where(where, 0)
        if part in self.coded:  # the rest of a part that is coded in two passes
            at = self.coded.index(part)
            self.likelihoods[at] = self.likelihoods[at] * found
        else:
            self.coded.append(part)
            self.likelihoods.append(found)
        return y_hat


class Write:
    """z and y in, a stream out; called part by part it returns y_hat.

    Means and scales are float64, any finite values; y_hat is float64, multiples of 1/256.

    Args:
        y: float32, 1 x M x H x W, any finite values.
        conditional: the distributions of y; None: Gaussians without a tail.

    Attributes:
        writer: gets the symbols.
    """

    def __init__(self, y: Tensor, conditional: Conditional | None = None) -> None:
        self.y, self.writer, self.checksum = y, RangeWriter(), _Checksum()
        self.codes = (conditional or Conditional()).codes()
        self.z_checksum = 0

    def z(self, z: Tensor, prior: Factorized) -> Tensor:
        """Code z, 1 x N x H x W; returns z_hat in float64.

        Args:
            z: float32, 1 x N x H x W; within 32767 of the median, else cut to that.
            prior: with tables.

        Returns:
            float64, 1 x N x H x W: whole steps from the median of each channel.
        """
        median = prior.median.detach().double()[:, None, None]
        symbols = torch.round(z.double() - median).clamp(-MOST, MOST)
        flat = symbols.long()[0].flatten(1).cpu().numpy()
        for channel, code in zip(flat, prior.codes(), strict=True):
            self.writer.write(channel, code)
        self.z_checksum = _z_checksum(flat)
        return symbols + median

    def __call__(
        self, part: slice, mean: Tensor, scale: Tensor, where: Tensor | None = None
    ) -> Tensor:
        means, indices = _snapped(_at(where, mean), _at(where, scale))
        y = _at(where, self.y[:, part]).double()
        symbols = torch.round(y - means / MEAN_STEPS).clamp(-MOST, MOST).long()
        flat = symbols.flatten().cpu().numpy()
        write_scaled(self.writer, flat, _indices(indices), self.codes)
        steps = symbols * MEAN_STEPS + means
        self.checksum.add(steps.cpu().numpy())
        return _back(where, steps.double() / MEAN_STEPS, mean)

    def bytes(self) -> bytes:
        """2 bytes that check z, 4 that check y_hat, then the coder's."""
        head = self.z_checksum.to_bytes(2, "big") + self.checksum.value.to_bytes(4, "big")
        return head + self.writer.bytes()


class Read:
    """A stream in, z_hat and y_hat out: the counterpart of `Write`.

    Called with the same float64 means and scales, 1 x C x H x W, any finite values, it returns the
    same y_hat: float64, multiples of 1/256.

    Args:
        data: what `Write.bytes` returned.
        conditional: as for `Write`.

    Raises:
        DamagedStream: it is too short.
    """

    def __init__(self, data: bytes, conditional: Conditional | None = None) -> None:
        if len(data) < 6:
            raise DamagedStream("bitstream: a tile is cut short. Get the file again.")
        self.z_expected = int.from_bytes(data[:2], "big")
        self.expected = int.from_bytes(data[2:6], "big")
        self.reader, self.checksum = RangeReader(data[6:]), _Checksum()
        self.codes = (conditional or Conditional()).codes()

    def z(self, height: int, width: int, prior: Factorized) -> Tensor:
        """z_hat, 1 x N x height x width, in float64: any whole steps from the median.

        Raises:
            DamagedStream: it is not what was written.
        """
        flat = np.stack([self.reader.read(height * width, code) for code in prior.codes()])
        if _z_checksum(flat) != self.z_expected:
            raise DamagedStream(MISMATCH)
        symbols = torch.from_numpy(flat).to(prior.median.device).view(1, -1, height, width)
        return symbols + prior.median.detach().double()[:, None, None]

    def __call__(
        self, part: slice, mean: Tensor, scale: Tensor, where: Tensor | None = None
    ) -> Tensor:
        means, indices = _snapped(_at(where, mean), _at(where, scale))
        symbols = torch.from_numpy(read_scaled(self.reader, _indices(indices), self.codes))
        steps = symbols.view(means.shape).to(means.device) * MEAN_STEPS + means
        self.checksum.add(steps.cpu().numpy())
        return _back(where, steps.double() / MEAN_STEPS, mean)

    def check(self) -> None:
        """Compare all that was read with the checksum.

        Raises:
            DamagedStream: it is not what was written.
        """
        if self.checksum.value != self.expected:
            raise DamagedStream(MISMATCH)
