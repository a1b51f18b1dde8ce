"""Rows by index and their sums, added in the same order in every run.

On CUDA ``index_add`` and the gradient of ``index_select`` add with atomic operations, in the order
in which threads come by: equal calls would differ in the last digit, and equal trainings in more.
What ``index_put`` accumulates is sorted first.
"""

from __future__ import annotations

from torch import Tensor

UNORDERED = frozenset({"cuda"})
"""Types of device that add in any order unless told otherwise."""


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Take ``rows[index]``, with a gradient that is summed in a fixed order.

    Args:
        rows: Shape ``(n, ...)``.
        index: Shape ``(m,)``, int64.

    Returns:
        Shape ``(m, ...)``.

    Example:
        >>> import torch
        >>> take_rows(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0]))
        tensor([3., 1.])
    """
    return rows[index] if rows.device.type in UNORDERED else rows.index_select(0, index)


def add_rows_(total: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """Add each of ``rows`` to the row of ``total`` at its index, in place and in a fixed order.

    Args:
        total: Shape ``(n, ...)``.
        index: Shape ``(m,)``, int64.
        rows: Shape ``(m, ...)``.

    Returns:
        ``total``.

    Example:
        >>> import torch
        >>> add_rows_(torch.zeros(2), torch.tensor([1, 1]), torch.tensor([2.0, 3.0]))
        tensor([0., 5.])
    """
    if total.device.type in UNORDERED:
        return total.index_put_((index,), rows, accumulate=True)
    return total.index_add_(0, index, rows)
