"""Compiled loops over the bonds of a batch, in float32; ``fused`` says what they are for.

Arrays are contiguous: ``center`` and ``neighbor`` of shape ``(n_atoms, width)`` and ``length`` of
shape ``(n_lengths, width)``, whose rows a bond sums; ``centers``, ``neighbors``, ``lengths`` and
``weights`` of shape ``(n_bonds,)``. The first half of the columns are the gate's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from crysxpp_mm.compiled import compiled, inlined

BLOCK = 256
"""Bonds whose sums are added in float32, before they are added to the others in float64."""

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
LOG2E = np.float32(1.44269504)
LN2_HIGH, LN2_LOW = np.float32(0.693145752), np.float32(1.42860682e-6)
SMALLEST = np.float32(-87)
"""Where its exponential is still a normal number."""


@inlined
def _decay(x: Any) -> Any:
    """``exp(-|x|)``: a power of two times a polynomial, fitted on ``[-ln 2, 0]``."""
    r = x if x < ZERO else -x
    r = SMALLEST if r < SMALLEST else r  # what is not a number stays so
    n = np.int32(r * LOG2E)
    r = (r - np.float32(n) * LN2_HIGH) - np.float32(n) * LN2_LOW
    p = np.float32(0.00100218144)
    p = p * r + np.float32(0.00800964236)
    p = p * r + np.float32(0.0415339544)
    p = p * r + np.float32(0.166640848)
    p = p * r + np.float32(0.499998152)
    p = p * r + ONE
    p = p * r + ONE
    return p * np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)


@inlined
def _log1p(z: Any) -> Any:
    """``log(1 + z)`` for ``0 <= z <= 1``: the series of ``2 artanh(z / (2 + z))``."""
    u = z / (TWO + z)
    q = u * u
    p = np.float32(1 / 13)
    p = p * q + np.float32(1 / 11)
    p = p * q + np.float32(1 / 9)
    p = p * q + np.float32(1 / 7)
    p = p * q + np.float32(1 / 5)
    p = p * q + np.float32(1 / 3)
    p = p * q + ONE
    return TWO * u * p


@inlined
def _add_rows(center: Any, neighbor: Any, length: Any, row: Any) -> None:
    """Write the sum of three rows to ``row``."""
    for k in range(row.shape[0]):
        row[k] = center[k] + neighbor[k] + length[k]


@inlined
def _add_to(total: Any, row: Any) -> None:
    """Add a row to ``total``."""
    for k in range(row.shape[0]):
        total[k] += row[k]


@compiled
def squares(
    centers: Any,
    neighbors: Any,
    lengths: Any,
    weights: Any,
    center: Any,
    neighbor: Any,
    length: Any,
    total: Any,
) -> None:
    """Add ``w r^2`` of all bonds to ``total``."""
    width = center.shape[1]
    row = np.empty(width, np.float32)
    part = np.zeros(width, np.float32)
    for b in range(len(weights)):
        _add_rows(center[centers[b]], neighbor[neighbors[b]], length[lengths[b]], row)
        w = weights[b]
        for k in range(width):
            part[k] += w * row[k] * row[k]
        if b % BLOCK == BLOCK - 1 or b == len(weights) - 1:
            for k in range(width):
                total[k] += part[k]
                part[k] = ZERO


@compiled
def forward(
    centers: Any,
    neighbors: Any,
    lengths: Any,
    weights: Any,
    center: Any,
    neighbor: Any,
    length: Any,
    factor: Any,
    shift: Any,
    total: Any,
) -> None:
    """Add ``w sigmoid(y) softplus(y')`` of all bonds to ``total`` at their centers."""
    width = center.shape[1]
    half = width // 2
    row = np.empty(width, np.float32)
    gate, core = row[:half], row[half:]
    for b in range(len(weights)):
        _add_rows(center[centers[b]], neighbor[neighbors[b]], length[lengths[b]], row)
        for k in range(width):
            row[k] = row[k] * factor[k] + shift[k]
        for k in range(half):
            z = _decay(gate[k])
            gate[k] = (ONE if gate[k] > ZERO else z) / (ONE + z)
        for k in range(half):
            core[k] = (core[k] if core[k] > ZERO else ZERO) + _log1p(_decay(core[k]))
        w = weights[b]
        sums = total[centers[b]]
        for k in range(half):
            sums[k] += w * gate[k] * core[k]


@compiled
def backward(
    centers: Any,
    neighbors: Any,
    lengths: Any,
    weights: Any,
    center: Any,
    neighbor: Any,
    length: Any,
    factor: Any,
    shift: Any,
    grad_total: Any,
    grad_center: Any,
    grad_neighbor: Any,
    grad_length: Any,
    row_center: Any,
    row_neighbor: Any,
    row_length: Any,
    grad_factor: Any,
) -> None:
    """Add the gradients ``g`` at the output of the batch norm to the first three sums.

    ``w r`` is added to the next three where they have rows, and ``g r`` to the last.
    """
    width = center.shape[1]
    half = width // 2
    through_statistics = len(row_center) > 0
    row = np.empty(width, np.float32)
    grad = np.empty(width, np.float32)
    part = np.zeros(width, np.float32)
    gate, core = grad[:half], grad[half:]
    for b in range(len(weights)):
        u, v, s = centers[b], neighbors[b], lengths[b]
        w = weights[b]
        _add_rows(center[u], neighbor[v], length[s], row)
        for k in range(width):
            grad[k] = row[k] * factor[k] + shift[k]
        message = grad_total[u]
        for k in range(half):
            z = _decay(gate[k])
            y = _decay(core[k])
            opened = (ONE if gate[k] > ZERO else z) / (ONE + z)
            slope = (ONE if core[k] > ZERO else y) / (ONE + y)
            value = (core[k] if core[k] > ZERO else ZERO) + _log1p(y)
            m = w * message[k] * opened
            gate[k] = m * (ONE - opened) * value
            core[k] = m * slope
        for k in range(width):
            part[k] += grad[k] * row[k]
        if b % BLOCK == BLOCK - 1 or b == len(weights) - 1:
            for k in range(width):
                grad_factor[k] += part[k]
                part[k] = ZERO
        _add_to(grad_center[u], grad)
        _add_to(grad_neighbor[v], grad)
        _add_to(grad_length[s], grad)
        if through_statistics:
            for k in range(width):
                row[k] *= w
            _add_to(row_center[u], row)
            _add_to(row_neighbor[v], row)
            _add_to(row_length[s], row)
