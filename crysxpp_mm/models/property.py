"""The contract between a network that predicts properties, its training and its estimator."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from crysxpp_mm.compute import one_torch_thread
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.backend import Graph
from crysxpp_mm.graph.batch import atom_batches
from crysxpp_mm.models.base import CrystalGraphModel

BATCH_ATOMS = 4096
"""Sites that go through a network at once."""


class FitSettings(Protocol):
    """Settings of a training that any model may ask for; a model names further ones of its own."""

    @property
    def learning_rate(self) -> float:
        """Peak of the one-cycle rate."""

    @property
    def max_epochs(self) -> int:
        """Epochs at most."""


SettingsT = TypeVar("SettingsT", bound=FitSettings, contravariant=True)


class PropertyModel(CrystalGraphModel, Generic[SettingsT]):
    """A network that predicts properties of crystals.

    Training, estimators and intervals ask for what stands here, and for nothing else. A subclass
    implements ``settings``, ``n_columns``, ``embed`` and ``forward``. Its constructor takes
    ``converter``, ``n_targets`` and ``metadata`` beside the ``settings``, sets ``_converter`` and
    ``metadata``, and calls ``_register_targets``. It overrides the other methods where it reads
    elements, or where its training differs from plain gradient descent.

    The network is trained on standardized targets; it carries the mean and the scale that
    ``predict`` undoes.
    """

    n_targets: int
    target_mean: Tensor
    target_scale: Tensor

    def _register_targets(self, n_targets: int) -> None:
        self.n_targets = n_targets
        self.register_buffer("target_mean", torch.zeros(n_targets, dtype=torch.float64))
        self.register_buffer("target_scale", torch.ones(n_targets, dtype=torch.float64))

    @property
    @abstractmethod
    def n_columns(self) -> int:
        """Width of the embedding of a crystal."""

    @abstractmethod
    def embed(self, graph: Graph) -> Tensor:
        """Embed every crystal of a batch, shape ``(n_graphs, n_columns)``.

        Distances between these rows tell whether a crystal is like those learned from.

        Raises:
            GraphError: the graph lacks a field.
        """

    @abstractmethod
    def forward(self, graph: Graph) -> Tensor:
        """Predict the standardized targets (for classes, their logits).

        Returns:
            Shape ``(n_graphs, n_targets)``.

        Raises:
            GraphError: the graph lacks a field.
        """

    # The training asks for these; the defaults are those of a network that simply learns.

    def prepare(self, graphs: CrystalGraphs) -> None:
        """Measure on training crystals what the network needs before its first step."""

    def parameter_groups(self, settings: SettingsT) -> list[dict[str, Any]]:
        """Group the parameters for the optimizer, each group with its peak rate ``lr``."""
        return [{"params": list(self.parameters()), "lr": settings.learning_rate}]

    def at_epoch(self, epoch: int, settings: SettingsT, *, continuing: bool) -> None:
        """Set what learns in this epoch; the model is in training mode.

        Args:
            epoch: Its number, from 0.
            settings: Of the training.
            continuing: True if the model has learned from labels before, so that its running
                statistics must stay as they are.
        """

    def after_step(self, optimizer: torch.optim.Optimizer, settings: SettingsT) -> None:
        """Finish a step of the optimizer, such as with a proximal step."""

    # Everybody may use these.

    def set_target_scale(self, mean: Any, scale: Any) -> None:
        """Set the mean and the scale of the targets, each of shape ``(n_targets,)``."""
        self.target_mean.copy_(torch.as_tensor(mean))
        self.target_scale.copy_(torch.as_tensor(scale))

    def predict(self, graphs: CrystalGraphs, *, batch_atoms: int = BATCH_ATOMS) -> Tensor:
        """Predict the targets of many crystals, batch after batch.

        Args:
            graphs: Graphs of this model's converter.
            batch_atoms: Sites that go through the network at once.

        Returns:
            Shape ``(n_graphs, n_targets)``, float64, on the CPU.

        Raises:
            SettingsError: the model is in training mode.
        """
        standardized = self._in_batches(self, graphs, batch_atoms, self.n_targets)
        return standardized.double() * self.target_scale.cpu() + self.target_mean.cpu()

    def embed_many(self, graphs: CrystalGraphs, *, batch_atoms: int = BATCH_ATOMS) -> Tensor:
        """Embed many crystals, batch after batch.

        Args:
            graphs: Graphs of this model's converter.
            batch_atoms: Sites that go through the network at once.

        Returns:
            Shape ``(n_graphs, n_columns)``, on the CPU.

        Raises:
            SettingsError: the model is in training mode.
        """
        return self._in_batches(self.embed, graphs, batch_atoms, self.n_columns)

    @torch.no_grad()
    def _in_batches(
        self, compute: Any, graphs: CrystalGraphs, batch_atoms: int, width: int
    ) -> Tensor:
        """Rows of ``compute`` for every crystal, shape ``(n_graphs, width)``, on the CPU."""
        if self.training:
            raise SettingsError("the model is in training mode; call eval() before predicting.")
        with one_torch_thread():
            rows: list[Tensor] = [
                compute(self.make_graph(graphs.select(chosen))).cpu()
                for chosen in atom_batches(graphs.n_atoms, batch_atoms)
            ]
        return torch.cat(rows) if rows else torch.empty(0, width, device="cpu")
