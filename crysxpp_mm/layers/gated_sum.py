"""The sum over neighbours of Eq. 1, in chunks of bonds that stay in cache.

For a bond (u, v) the convolution needs ``W [z_u, z_v, s] = W_u z_u + W_v z_v + W_s s``: two
projections an atom and one a distinct bond length, gathered per bond. Written with tensors of all
bonds, memory traffic costs more than the arithmetic, so bonds go through in chunks, forward and
backward. In training the rows of the bonds, which the batch norm needs first, are kept for both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from crysxpp_mm.layers.indexing import add_rows_

CHUNK = 2048
"""Bonds at a time on a CPU; other devices take all at once."""


class Bonds(NamedTuple):
    """The bonds of a batch, as index arrays."""

    centers: Tensor  # (n_bonds,) the atom whose neighbours are summed
    neighbors: Tensor  # (n_bonds,)
    lengths: Tensor  # (n_bonds,) row of the bond's length among the distinct ones
    weights: Tensor  # (n_bonds,)

    def chunks(self) -> list[Bonds]:
        """Consecutive parts of a size that suits the device."""
        total = len(self.weights)
        size = CHUNK if self.weights.device.type == "cpu" else max(total, 1)
        return [
            Bonds(*(array[start : start + size] for array in self))
            for start in range(0, total, size)
        ]


def _sum_by_bond(bonds: Bonds, center: Tensor, neighbor: Tensor, length: Tensor) -> Tensor:
    """Per bond the sum of its three rows, ``(n_bonds, width)``."""
    rows = center.index_select(0, bonds.centers)
    rows += neighbor.index_select(0, bonds.neighbors)
    rows += length.index_select(0, bonds.lengths)
    return rows


def _gated(rows: Tensor, factor: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``sigmoid`` of the first half of ``shift + factor * rows`` times ``softplus`` of the second.

    Both come from one sigmoid, ``softplus(x) = -log(sigmoid(-x))``, which costs less than torch's
    softplus. Where that sigmoid is too small for its logarithm, ``softplus(x)`` is ``x``.

    Args:
        rows: Shape ``(n_bonds, 2 * width)``.
        factor: Shape ``(2 * width,)``, its second half negated.
        shift: Shape ``(2 * width,)``, its second half negated.

    Returns:
        The product, the first sigmoid, and one less the sigmoid of the second half, which is the
        slope of its softplus; each ``(n_bonds, width)``.
    """
    half = rows.shape[1] // 2
    signed = torch.addcmul(shift, rows, factor)
    gate, rest = signed.sigmoid().split(half, dim=1)
    core = rest.clamp(min=torch.finfo(rows.dtype).tiny).log_()
    core = torch.minimum(core, signed[:, half:]).neg_()
    return core.mul_(gate), gate, rest


def weighted_mean(bonds: Bonds, center: Tensor, neighbor: Tensor, length: Tensor) -> Tensor:
    """Weighted mean over bonds of the summed rows, ``(width,)``, without visiting the bonds."""
    total = bonds.weights.sum()

    def share(index: Tensor, rows: Tensor) -> Tensor:
        weight = add_rows_(rows.new_zeros(len(rows)), index, bonds.weights)
        return weight @ rows

    return (
        share(bonds.centers, center)
        + share(bonds.neighbors, neighbor)
        + share(bonds.lengths, length)
    ) / total


def rows_of_bonds(bonds: Bonds, center: Tensor, neighbor: Tensor, length: Tensor) -> list[Tensor]:
    """The summed rows of every bond, chunk by chunk, each ``(n_bonds of the chunk, width)``."""
    return [_sum_by_bond(chunk, center, neighbor, length) for chunk in bonds.chunks()]


def weighted_variance(bonds: Bonds, rows: list[Tensor]) -> Tensor:
    """Weighted mean of squares of ``rows_of_bonds`` whose mean is zero, ``(width,)``."""
    squares = rows[0].new_zeros(rows[0].shape[1])
    for chunk, part in zip(bonds.chunks(), rows, strict=True):
        squares.addmv_(part.square().t(), chunk.weights)
    return squares / bonds.weights.sum()


class GatedNeighborSum(torch.autograd.Function):
    """``sum_bonds w sigmoid(BN(gate)) softplus(BN(core))`` at every atom, inner part of Eq. 1."""

    @staticmethod
    def forward(
        ctx: Any,
        center: Tensor,
        neighbor: Tensor,
        length: Tensor,
        scale: Tensor,
        shift: Tensor,
        mean: Tensor,
        variance: Tensor,
        bonds: Bonds,
        eps: float,
        rows: list[Tensor] | None,
        differentiate: bool,
    ) -> Tensor:
        """Sum over neighbours.

        Args:
            ctx: Autograd's context.
            center: Projection of the central atoms, ``(n_atoms, 2 * hidden_dim)``, gate first.
            neighbor: Projection of the neighbours, same shape.
            length: Projection of the distinct bond lengths, ``(n_lengths, 2 * hidden_dim)``.
            scale: Weight of the batch norm, ``(2 * hidden_dim,)``.
            shift: Bias of the batch norm.
            mean: Mean over bonds.
            variance: Variance over bonds.
            bonds: Which rows each bond sums.
            eps: Added to the variance.
            rows: ``rows_of_bonds`` less their mean, where ``mean`` and ``variance`` are those of
                these very bonds, so that gradients flow through them as well; else None.
            differentiate: Whether there will be a backward pass.

        Returns:
            Shape ``(n_atoms, hidden_dim)``.
        """
        inverse = torch.rsqrt(variance + eps)
        factor = scale * inverse
        half = center.shape[1] // 2
        sign = torch.ones_like(scale)
        sign[half:] = -1
        total = center.new_zeros(center.shape[0], half)
        centered = center - mean
        slopes: list[Tensor] = []
        for index, chunk in enumerate(bonds.chunks()):
            row = _sum_by_bond(chunk, centered, neighbor, length) if rows is None else rows[index]
            product, gate, rest = _gated(row, factor * sign, shift * sign)
            if differentiate:
                slope = torch.empty_like(row)
                torch.addcmul(product, product, gate, value=-1, out=slope[:, :half])
                torch.addcmul(gate, gate, rest, value=-1, out=slope[:, half:])
                slopes.append(slope)
            product *= chunk.weights[:, None]
            add_rows_(total, chunk.centers, product)
        ctx.save_for_backward(center, neighbor, length, scale, mean, inverse)
        ctx.bonds, ctx.rows, ctx.slopes = bonds, rows, slopes
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all inputs but the indices, in two passes over the bonds."""
        center, neighbor, length, scale, mean, inverse = ctx.saved_tensors
        chunks = ctx.bonds.chunks()
        rows = ctx.rows
        if rows is None:
            rows = rows_of_bonds(ctx.bonds, center - mean, neighbor, length)
        grad_center = torch.zeros_like(center)
        grad_neighbor = torch.zeros_like(neighbor)
        grad_length = torch.zeros_like(length)
        grad_scale = torch.zeros_like(scale)
        grad_shift = torch.zeros_like(scale)
        half = center.shape[1] // 2
        # Gradient at the output of the batch norm; kept, being costlier than its memory.
        outer: list[Tensor] = []
        for chunk, row, slope in zip(chunks, rows, ctx.slopes, strict=True):
            message = grad_total.index_select(0, chunk.centers)
            message *= chunk.weights[:, None]
            grad = torch.empty_like(row)
            torch.mul(message, slope[:, :half], out=grad[:, :half])
            torch.mul(message, slope[:, half:], out=grad[:, half:])
            grad_shift += grad.sum(0)
            grad_scale += (row * grad).sum(0)
            outer.append(grad)
        grad_scale *= inverse

        if ctx.rows is not None:
            total = ctx.bonds.weights.sum()
            constant, linear = grad_shift / total, grad_scale / total * inverse
        for chunk, row, grad in zip(chunks, rows, outer, strict=True):
            if ctx.rows is not None:
                through_statistics = torch.addcmul(constant, row, linear)
                grad.addcmul_(through_statistics, chunk.weights[:, None], value=-1)
            add_rows_(grad_center, chunk.centers, grad)
            add_rows_(grad_neighbor, chunk.neighbors, grad)
            add_rows_(grad_length, chunk.lengths, grad)
        factor = scale * inverse
        for grad in (grad_center, grad_neighbor, grad_length):
            grad *= factor
        return (
            grad_center,
            grad_neighbor,
            grad_length,
            grad_scale,
            grad_shift,
            None,
            None,
            None,
            None,
            None,
            None,
        )
