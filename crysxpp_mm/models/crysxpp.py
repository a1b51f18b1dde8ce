"""CrysXPP, the property predictor that starts from CrysAE's encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from crysxpp_mm.elements import N_FEATURES
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.backend import Graph
from crysxpp_mm.graph.batch import ATOM_FEATURES, atom_batches, check_graph
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.encoder import CrystalGraphEncoder, PlainGraphEncoder
from crysxpp_mm.models.pooling import MOMENTS, pool
from crysxpp_mm.models.property import FitSettings, PropertyModel
from crysxpp_mm.settings import one_of, whole_number

EncoderKind = Literal["cgcnn", "gcn"]
ENCODERS = ("cgcnn", "gcn")
"""Encoders of Table 7."""
LAYERS = ("last", "all")
"""Layers that the readout may see."""
Pooled = Literal["embeddings", "hidden"]
POOLED = ("embeddings", "hidden")
"""What may be pooled over the sites for the readout."""
PREPARATION_ATOMS = 16384
"""Sites at most of the training crystals on which the readout measures its input."""


class CrysXPPSettings(FitSettings, Protocol):
    """Settings of a training that CrysXPP asks for."""

    @property
    def encoder_rate(self) -> float:
        """Rate of the encoder, as a multiple of ``learning_rate``; 0 freezes it."""

    @property
    def selector_rate(self) -> float:
        """Peak rate of the selector."""

    @property
    def sparsity(self) -> float:
        """Weight lambda_1 of the L1 norm of the selector, Eq. 10."""

    @property
    def frozen_epochs(self) -> int:
        """Epochs at the start in which the readout alone learns."""

    @property
    def element_start(self) -> float:
        """Share of the epochs before the element channel learns and the selector rests."""


class FeatureSelector(nn.Module):
    """One weight per column of the node features, ``x' = zeta * x``; all start at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(N_FEATURES, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """Weigh the columns of ``features``, shape ``(n_atoms, 92)``."""
        return features * self.weight

    @torch.no_grad()
    def shrink(self, optimizer: torch.optim.Optimizer, sparsity: float) -> None:
        """Take the proximal step of ``sparsity * |zeta|_1``, in the metric of Adam's last step.

        Adam divides the gradient g of a weight by a running root mean square, v. The proximal step
        that belongs to it is the soft threshold ``zeta <- sign(zeta) max(|zeta| - t, 0)`` with
        ``t = rate * sparsity / sqrt(v^2 + sparsity^2)``: a weight rests at exactly zero where the
        error pulls on it with less than ``sparsity``, as Eq. 10 asks, and no step is longer than
        ``rate``.

        Args:
            optimizer: An Adam, one of whose groups holds the weight.
            sparsity: Weight lambda_1 of the L1 norm.
        """
        weight, state = self.weight, optimizer.state[self.weight]
        (group,) = [
            group
            for group in optimizer.param_groups
            if any(parameter is weight for parameter in group["params"])
        ]
        squares = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])
        threshold = group["lr"] * sparsity / torch.sqrt(squares + sparsity**2)
        weight.copy_(weight.sign() * (weight.abs() - threshold).clamp(min=0))


class Readout(nn.Module):
    """From embeddings to the targets, ``P = MLP(Z_G)`` (Eq. 9).

    The embeddings' columns differ in size by orders of magnitude, so they are first brought to a
    mean of 0 and a standard deviation of 1; ``calibrate`` measures both once, on training crystals.

    Args:
        input_dim: Width of the embeddings that come in.
        readout_dim: Width of a hidden layer.
        n_targets: Number of outputs.
        n_moments: Where the embeddings are those of sites, how many moments of their hidden layer
            come back; None where those of crystals come in.
    """

    input_mean: Tensor
    input_scale: Tensor

    def __init__(
        self, *, input_dim: int, readout_dim: int, n_targets: int, n_moments: int | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("input_mean", torch.zeros(input_dim, dtype=torch.float32))
        self.register_buffer("input_scale", torch.ones(input_dim, dtype=torch.float32))
        self.site_hidden = (
            None if n_moments is None else nn.Linear(input_dim, readout_dim, dtype=torch.float32)
        )
        pooled_dim = input_dim if n_moments is None else readout_dim * n_moments
        self.hidden = nn.Linear(pooled_dim, readout_dim, dtype=torch.float32)
        self.output = nn.Linear(readout_dim, n_targets, dtype=torch.float32)

    @torch.no_grad()
    def calibrate(self, columns: Tensor) -> None:
        """Measure mean and standard deviation on ``columns``, shape ``(n_rows, input_dim)``."""
        self.input_mean.copy_(columns.mean(0))
        scale = columns.std(0, correction=0)
        # A column that hardly varies among the training crystals must not be blown up for others.
        self.input_scale.copy_(torch.where(scale > 1e-3, scale, torch.ones_like(scale)))

    def scaled(self, columns: Tensor) -> Tensor:
        """Columns of mean 0 and standard deviation 1, ``(n_rows, input_dim)``."""
        return (columns - self.input_mean) / self.input_scale

    def sites(self, columns: Tensor) -> Tensor:
        """Hidden layer of each site, ``(n_atoms, readout_dim)``, of ``(n_atoms, input_dim)``."""
        assert self.site_hidden is not None
        return nn.functional.softplus(self.site_hidden(self.scaled(columns)))

    def forward(self, pooled: Tensor) -> Tensor:
        """Targets, ``(n_graphs, n_targets)``, of what was pooled, ``(n_graphs, pooled_dim)``."""
        prediction: Tensor = self.output(nn.functional.softplus(self.hidden(pooled)))
        return prediction


class CrysXPP(PropertyModel[CrysXPPSettings]):
    """Predict properties of crystals (Das et al., npj Comput. Mater. 8, 43 (2022), Eqs. 8-9).

    The feature selector weighs the columns of the node features, the encoder embeds every atom,
    the embeddings are pooled and a small network maps them to the targets. The network is trained
    on standardized targets; it carries the mean and the scale that ``predict`` undoes.

    Args:
        converter: The graph rule; the published cutoff and neighbours if None.
        encoder: ``"cgcnn"``, the convolution of Eq. 1, or ``"gcn"``, a plain one (Table 7).
        hidden_dim: Width of the node embeddings.
        n_convs: Number of convolutions.
        n_gaussians: Gaussians of a bond length.
        element_channel: Whether every element has a learned vector beside its 92 columns.
        selector: Whether there is a feature selector.
        layers: What is pooled: ``"last"``, the last layer, as in Eq. 8, or ``"all"`` layers.
        moments: What is taken over the atoms, of ``"mean"`` (Eq. 8), ``"std"`` and ``"max"``.
        pooled: What is pooled for the readout: the ``"embeddings"`` (Eq. 8), or a ``"hidden"``
            layer that acts on the embedding of every site.
        readout_dim: Width of the hidden layer of the readout.
        n_targets: Number of outputs.
        metadata: JSON-ready facts about the training, kept with the weights.

    Raises:
        SettingsError: an option has a value that makes no sense.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> iron = Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        >>> model = CrysXPP.random(seed=0, hidden_dim=8, n_convs=1, readout_dim=4)
        >>> graphs = model.converter.convert_many([iron, iron])
        >>> model(model.make_graph(graphs)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        *,
        converter: CrystalGraphConverter | None = None,
        encoder: EncoderKind = "cgcnn",
        hidden_dim: int = 64,
        n_convs: int = 3,
        n_gaussians: int = 41,
        element_channel: bool = False,
        selector: bool = True,
        layers: Literal["last", "all"] = "last",
        moments: Sequence[str] = ("mean",),
        pooled: Pooled = "embeddings",
        readout_dim: int = 128,
        n_targets: int = 1,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        one_of("encoder", encoder, ENCODERS)
        one_of("layers", layers, LAYERS)
        one_of("pooled", pooled, POOLED)
        whole_number("readout_dim", readout_dim, at_least=1)
        whole_number("n_targets", n_targets, at_least=1)
        _check_moments(moments)
        self._converter = converter or CrystalGraphConverter()
        self.kind = encoder
        self.layers = layers
        self.moments = tuple(moments)
        self.pooled = pooled
        self.readout_dim = readout_dim
        self.selector = FeatureSelector() if selector else None
        make_encoder = CrystalGraphEncoder if encoder == "cgcnn" else PlainGraphEncoder
        self.encoder = make_encoder(
            hidden_dim=hidden_dim,
            n_convs=n_convs,
            cutoff=self._converter.cutoff,
            n_gaussians=n_gaussians,
            element_channel=element_channel,
        )
        of_sites = pooled == "hidden"
        self.readout = Readout(
            input_dim=self.n_columns // len(self.moments) if of_sites else self.n_columns,
            readout_dim=readout_dim,
            n_targets=n_targets,
            n_moments=len(self.moments) if of_sites else None,
        )
        self._register_targets(n_targets)
        self.metadata: dict[str, Any] = dict(metadata or {})

    @property
    def n_columns(self) -> int:
        """Width of the pooled embedding: layers times moments times channels."""
        n_layers = self.encoder.n_convs + 1 if self.layers == "all" else 1
        return n_layers * len(self.moments) * self.encoder.hidden_dim

    @property
    def reads_elements(self) -> bool:
        """True with an element channel."""
        return self.encoder.element_channel

    @classmethod
    def from_autoencoder(
        cls, autoencoder: CrysAE, *, seed: int = 0, element_channel: bool = False, **settings: Any
    ) -> Self:
        """Start from a copy of the whole encoder of a CrysAE, its input layer included.

        Args:
            autoencoder: Where the encoder and the graph rule come from.
            seed: Seed of the readout's weights.
            element_channel: Whether to add a vector of each element, zero at first, where the
                encoder has none.
            settings: ``selector``, ``layers``, ``moments``, ``pooled``, ``readout_dim``,
                ``n_targets`` and ``metadata``, as the constructor takes them.
        """
        sizes = dict(autoencoder.encoder.settings)
        del sizes["cutoff"]  # the converter's
        model = cls.random(seed=seed, converter=autoencoder.converter, **sizes, **settings)
        model.encoder = deepcopy(autoencoder.encoder).cpu()
        if element_channel:
            model.encoder.add_element_channel()
        model.requires_grad_(True)
        return model.eval()

    @property
    def settings(self) -> dict[str, Any]:
        """Sizes and switches, as the constructor takes them."""
        sizes = dict(self.encoder.settings)
        del sizes["cutoff"]  # the converter's
        return {
            "encoder": self.kind,
            **sizes,
            "selector": self.selector is not None,
            "layers": self.layers,
            "moments": list(self.moments),
            "pooled": self.pooled,
            "readout_dim": self.readout_dim,
            "n_targets": self.n_targets,
        }

    def embed_sites(self, graph: Graph) -> list[Tensor]:
        """Node embeddings of the selected features, layer by layer, those that the readout sees.

        Returns:
            Each of shape ``(n_atoms, hidden_dim)``.

        Raises:
            GraphError: the graph lacks a field.
        """
        check_graph(graph, element_fractions=self.reads_elements)
        features = graph.ndata[ATOM_FEATURES]
        if self.selector is not None:
            features = self.selector(features)
        layers = self.encoder(graph, features)
        return list(layers if self.layers == "all" else layers[-1:])

    def embed(self, graph: Graph) -> Tensor:
        """Pooled node embeddings ``Z_G`` (Eq. 8) of the selected features.

        Returns:
            Shape ``(n_graphs, n_columns)``.

        Raises:
            GraphError: the graph lacks a field.
        """
        return pool(graph, self.embed_sites(graph), self.moments)

    def readout_input(self, graph: Graph) -> Tensor:
        """The embeddings that go into the readout, of crystals or of sites.

        Returns:
            Shape ``(n_graphs, n_columns)``, or ``(n_atoms, n_columns)`` with ``pooled="hidden"``.

        Raises:
            GraphError: the graph lacks a field.
        """
        layers = self.embed_sites(graph)
        if self.pooled == "hidden":
            return torch.cat(layers, dim=1)
        return pool(graph, layers, self.moments)

    def forward(self, graph: Graph) -> Tensor:
        """The standardized targets of every crystal (for classes, their logits).

        Args:
            graph: Batched crystal graph with the fields of ``crysxpp_mm.graph.batch``.

        Returns:
            Shape ``(n_graphs, n_targets)``.

        Raises:
            GraphError: the graph lacks a field.
        """
        columns = self.readout_input(graph)
        if self.pooled == "hidden":
            pooled = pool(graph, [self.readout.sites(columns)], self.moments)
        else:
            pooled = self.readout.scaled(columns)
        prediction: Tensor = self.readout(pooled)
        return prediction

    # How it learns.

    @torch.no_grad()
    def prepare(self, graphs: CrystalGraphs) -> None:
        """Let the readout measure its input on crystals, as training will show it to them first.

        The batch norms use the statistics of these crystals and keep their own.
        """
        first = atom_batches(graphs.n_atoms, PREPARATION_ATOMS)[0]
        before = {name: value.clone() for name, value in self.encoder.state_dict().items()}
        self.train()
        self.readout.calibrate(self.readout_input(self.make_graph(graphs.select(first))))
        self.encoder.load_state_dict(before)

    def parameter_groups(self, settings: CrysXPPSettings) -> list[dict[str, Any]]:
        """Group the readout, the encoder at its own rate, and the selector without decay."""
        rate = settings.learning_rate
        groups: list[dict[str, Any]] = [{"params": list(self.readout.parameters()), "lr": rate}]
        if settings.encoder_rate > 0:
            encoder = list(self.encoder.parameters())
            groups.append({"params": encoder, "lr": rate * settings.encoder_rate})
        if self.selector is not None and settings.selector_rate > 0:
            selector = list(self.selector.parameters())
            groups.append({"params": selector, "lr": settings.selector_rate, "weight_decay": 0.0})
        return groups

    def at_epoch(self, epoch: int, settings: CrysXPPSettings, *, continuing: bool) -> None:
        """Freeze or thaw what stands before the readout, as ``settings`` say."""
        frozen = epoch < settings.frozen_epochs
        fixed = frozen or settings.encoder_rate == 0
        self.encoder.requires_grad_(not fixed)
        selected = False
        if self.encoder.element_channel and settings.element_start > 0:
            selected = epoch >= settings.element_start * settings.max_epochs
            self.encoder.element_embedding.requires_grad_(selected and not fixed)
        if self.selector is not None:
            self.selector.requires_grad_(not (frozen or selected))
        self.encoder.train(not (fixed or continuing))

    def after_step(self, optimizer: torch.optim.Optimizer, settings: CrysXPPSettings) -> None:
        """Take the proximal step of the L1 term of Eq. 10."""
        selector = self.selector
        if selector is None or not selector.weight.requires_grad:
            return
        if settings.selector_rate > 0 and settings.sparsity > 0:
            selector.shrink(optimizer, settings.sparsity)


def _check_moments(moments: Sequence[str]) -> None:
    unknown = [moment for moment in moments if moment not in MOMENTS]
    if isinstance(moments, str) or unknown or not len(moments):
        raise SettingsError(
            f"moments must be a sequence of {', '.join(map(repr, MOMENTS))}, got {moments!r}."
        )
