"""The sum over neighbours of Eq. 1 as compiled loops, for float32 on a CPU.

One pass over the bonds makes the rows, the gates and the sums of a bond while they are in the
registers and the first cache, where tensor operations write each to memory. In training the pass
back makes them again, so that nothing of the size of the bonds is kept.

The batch norm of the bonds sees ``r = c_u + n_v + l_s``, the rows less their mean. With ``g`` the
gradient at its output, ``W`` the sum of the weights and ``i = 1 / sqrt(var + eps)``, the gradient
of a row is ``scale i (g - w (sum(g) + r i^2 sum(g r)) / W)``. The sums over all bonds are known at
the end only, but the gradient is linear in them: it is enough to add up ``g`` and ``w r`` at every
atom and every length.

numba compiles the loops (``kernels``) on first use and keeps them in its cache. The same as tensor
operations, for other devices and types, is ``gated_sum``.
"""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crysxpp_mm.layers.gated_sum import Bonds


def is_fused(rows: Tensor) -> bool:
    """Tell whether the compiled loops take this tensor: float32, on a CPU, where numba works."""
    if rows.dtype != torch.float32 or rows.device.type != "cpu":
        return False
    return compiled_kernels() is not None


@cache
def compiled_kernels() -> ModuleType | None:
    """The module of the compiled loops; None, with a warning, where numba does not work."""
    try:
        from crysxpp_mm.layers import kernels
    except ImportError as error:  # it is absent, or does not know this Python or numpy yet
        warnings.warn(
            f"numba cannot be used; networks take longer without it: {error}",
            stacklevel=2,
        )
        return None
    return kernels


def _kernels() -> ModuleType:
    kernels = compiled_kernels()
    assert kernels is not None  # ``is_fused`` was asked
    return kernels


def _arrays(bonds: Bonds) -> tuple[Any, ...]:
    return tuple(array.numpy() for array in bonds)


def fused_variance(bonds: Bonds, center: Tensor, neighbor: Tensor, length: Tensor) -> Tensor:
    """Weighted mean over bonds of the squares of their summed rows, ``(2 * hidden_dim,)``."""
    total = np.zeros(center.shape[1])
    rows = (part.detach().numpy() for part in (center, neighbor, length))
    _kernels().squares(*_arrays(bonds), *rows, total)
    return (torch.from_numpy(total) / bonds.weights.sum(dtype=torch.float64)).to(center.dtype)


class FusedNeighborSum(torch.autograd.Function):
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
        of_batch: bool,
    ) -> Tensor:
        """Sum over neighbours, shape ``(n_atoms, hidden_dim)``.

        The arguments are those of ``GatedNeighborSum``, but for the last: ``of_batch`` says whether
        ``mean`` and ``variance`` are those of these very bonds, so that gradients flow through
        them as well.
        """
        inverse = torch.rsqrt(variance + eps)
        factor = scale * inverse
        centered = center - mean
        total = center.new_zeros(center.shape[0], center.shape[1] // 2)
        rows = (part.numpy() for part in (centered, neighbor, length, factor, shift, total))
        _kernels().forward(*_arrays(bonds), *rows)
        ctx.save_for_backward(centered, neighbor, length, factor, shift, inverse)
        ctx.bonds, ctx.of_batch = bonds, of_batch
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all inputs but the indices, in one pass over the bonds."""
        centered, neighbor, length, factor, shift, inverse = ctx.saved_tensors
        bonds = ctx.bonds
        parts = (centered, neighbor, length)
        grads = [torch.zeros_like(part) for part in parts]
        rows = [torch.zeros_like(part) if ctx.of_batch else part[:0] for part in parts]
        grad_factor = torch.zeros(len(factor), dtype=torch.float64, device=factor.device)
        given = (*parts, factor, shift, grad_total.contiguous(), *grads, *rows, grad_factor)
        _kernels().backward(*_arrays(bonds), *(part.numpy() for part in given))
        grad_shift = grads[0].sum(0)
        grad_scale = grad_factor.to(factor.dtype) * inverse
        if ctx.of_batch:
            total = bonds.weights.sum()
            constant, linear = grad_shift / total, grad_scale / total * inverse
            indices = (bonds.centers, bonds.neighbors, bonds.lengths)
            for grad, row, index in zip(grads, rows, indices, strict=True):
                counts = grad.new_zeros(len(grad)).index_add_(0, index, bonds.weights)
                grad.addr_(counts, constant, alpha=-1).addcmul_(row, linear, value=-1)
        for grad in grads:
            grad *= factor
        return (*grads, grad_scale, grad_shift, None, None, None, None, None)
