"""Losses of labels: numbers that may be unknown or censored, and classes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

LossKind = Literal["l1", "mse"]
LOSSES = ("l1", "mse")


class Objective(nn.Module):
    """A loss, with the tensors that it needs; it moves to a device as a network does."""

    dtype: torch.dtype

    @abstractmethod
    def forward(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Compute the mean loss of a batch, and the number of labels that it is the mean of.

        Args:
            prediction: Shape ``(n_graphs, n_outputs)``.
            targets: Shape ``(n_graphs, n_targets)``, NaN where unknown; classes ``(n_graphs,)``.
        """

    @abstractmethod
    def to_plain(self) -> dict[str, Any]:
        """Write what tells this loss from others as plain JSON data."""


class RegressionObjective(Objective):
    """Error of numbers; unknown ones are left out.

    Args:
        loss: ``"l1"``, the mean absolute error, or ``"mse"``, the mean squared error (Eq. 10).
        floors: Least targets, shape ``(n_targets,)``, ``-inf`` for a target without a
            floor. A prediction below the floor costs nothing if the label is the floor.

    Example:
        >>> error = RegressionObjective("l1")
        >>> error(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.5], [float("nan")]]))
        (tensor(0.5000), 1)
    """

    dtype = torch.float32

    def __init__(self, loss: LossKind = "l1", floors: NDArray[np.floating] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.floors: Tensor | None
        self.register_buffer(
            "floors", None if floors is None else torch.as_tensor(floors, dtype=self.dtype)
        )

    def forward(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Compute the mean error of the known labels, and their number."""
        if self.floors is not None:
            # Where the label is above the floor, a prediction below it keeps its gradient.
            floored = torch.maximum(prediction, self.floors)
            prediction = torch.where(targets > self.floors, prediction, floored)
        known = ~torch.isnan(targets)
        error = prediction[known] - targets[known]
        terms = error.abs() if self.loss == "l1" else error.square()
        return terms.mean(), int(known.sum())

    def to_plain(self) -> dict[str, Any]:
        """Write the kind of the loss and its floors."""
        floors = None if self.floors is None else self.floors.tolist()
        return {"loss": self.loss, "floors": floors}


class ClassificationObjective(Objective):
    """Cross entropy of classes.

    Args:
        class_weights: Weight of each class in the loss, shape ``(n_classes,)``; alike if None.
    """

    dtype = torch.long

    def __init__(self, class_weights: NDArray[np.floating] | None = None) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.as_tensor(class_weights).float()
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights)

    def forward(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Compute the mean cross entropy, and the number of crystals."""
        return functional.cross_entropy(prediction, targets, self.class_weights), len(prediction)

    def to_plain(self) -> dict[str, Any]:
        """Write the weights of the classes."""
        weights = None if self.class_weights is None else self.class_weights.tolist()
        return {"loss": "cross_entropy", "class_weights": weights}
