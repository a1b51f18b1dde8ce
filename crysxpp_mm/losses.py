"""The reconstruction loss of CrysAE, Eq. 7, term by term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from monty.json import MSONable
from torch import Tensor
from torch.nn import functional

from crysxpp_mm.elements import PROPERTIES
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.models.decoder import PairIndex, Reconstruction
from crysxpp_mm.models.targets import TargetValues


@dataclass(frozen=True, kw_only=True)
class LossWeights(MSONable):
    """Weights of the terms of Eq. 7; a term of weight zero is switched off.

    Local terms rebuild an atom and its bonds, ``atom_features`` (Eq. 4) and ``bond_lengths``
    (Eq. 3); global terms the connections of the whole crystal, ``existence`` (Eq. 5) and
    ``multiplicity`` (Eq. 6).
    """

    atom_features: float = 1.0
    bond_lengths: float = 1.0
    existence: float = 1.0
    multiplicity: float = 1.0

    def __post_init__(self) -> None:
        for name in ReconstructionLoss._fields:
            weight = getattr(self, name)
            if not 0 <= weight < float("inf"):
                raise SettingsError(f"the loss weight {name} must be 0 or more, got {weight}.")
        if not any(getattr(self, name) for name in ReconstructionLoss._fields):
            raise SettingsError("all loss weights are zero; switch on at least one term.")

    @classmethod
    def local_only(cls) -> LossWeights:
        """Node features and bond lengths only (Table 5)."""
        return cls(existence=0.0, multiplicity=0.0)

    @classmethod
    def global_only(cls) -> LossWeights:
        """Existence and multiplicity of bonds only (Table 5)."""
        return cls(atom_features=0.0, bond_lengths=0.0)


class ReconstructionLoss(NamedTuple):
    """The terms of Eq. 7, each a scalar mean."""

    atom_features: Tensor
    bond_lengths: Tensor
    existence: Tensor
    multiplicity: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """Weighted sum, a scalar."""
        terms = [
            getattr(weights, name) * getattr(self, name)
            for name in self._fields
            if getattr(weights, name) > 0
        ]
        return torch.stack(terms).sum()


def atom_feature_loss(logits: Tensor, features: Tensor) -> Tensor:
    """Cross entropy of the node features, one softmax a property; blank blocks are left out.

    Args:
        logits: Shape ``(n_atoms, 92)``.
        features: Shape ``(n_atoms, 92)``.

    Returns:
        Mean over atoms and known properties, a scalar; zero where nothing is known.
    """
    sizes = [item.stop - item.start for item in PROPERTIES]
    log_probability = torch.cat(
        [functional.log_softmax(block, dim=1) for block in logits.split(sizes, dim=1)], dim=1
    )
    entropy = -(log_probability * features).sum()
    known = features.sum()
    return entropy / known.clamp(min=1e-6)


def target_loss(predicted: TargetValues, true: TargetValues) -> Tensor:
    """Mean squared errors of standardized pretext targets, that of sites and that of crystals.

    Returns:
        Their sum, a scalar; a kind without columns adds nothing.
    """
    errors = [
        functional.mse_loss(guess, truth)
        for guess, truth in zip(predicted, true, strict=True)
        if truth.numel()
    ]
    return torch.stack(errors).sum()


def reconstruction_loss(
    reconstruction: Reconstruction,
    pairs: PairIndex,
    features: Tensor,
    distances: Tensor,
    *,
    hidden: Tensor | None = None,
    visible_weight: float = 1.0,
) -> ReconstructionLoss:
    """The terms of Eq. 7.

    Existence is judged on all ordered pairs of a crystal, multiplicity on bonded pairs, lengths
    on bonds.

    Args:
        reconstruction: Output of the decoder.
        pairs: The pairs of the batch.
        features: True node features, shape ``(n_atoms, 92)``.
        distances: True bond lengths, shape ``(n_bonds,)``, Angstrom.
        hidden: Atoms whose features the encoder did not see, shape ``(n_atoms,)``, bool; none if
            None.
        visible_weight: Weight of the mean over visible atoms, beside 1 for that over hidden ones.
    """
    logits = reconstruction.atom_features
    if hidden is None:
        hidden = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    of_atoms = visible_weight * atom_feature_loss(logits[~hidden], features[~hidden])
    of_atoms = of_atoms + atom_feature_loss(logits[hidden], features[hidden])
    n_bonds = max(len(distances), 1)
    n_bonded = max(len(pairs.bonded_pairs), 1)
    return ReconstructionLoss(
        atom_features=of_atoms,
        bond_lengths=((reconstruction.bond_lengths - distances) ** 2).sum() / n_bonds,
        existence=functional.binary_cross_entropy_with_logits(
            reconstruction.existence, pairs.bonded.to(reconstruction.existence.dtype)
        ),
        multiplicity=functional.cross_entropy(
            reconstruction.multiplicity, pairs.multiplicities, reduction="sum"
        )
        / n_bonded,
    )
