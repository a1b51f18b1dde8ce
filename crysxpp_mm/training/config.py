"""Settings of a pretraining as one frozen object, and settings from files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from monty.json import MSONable
from monty.serialization import loadfn
from ruamel.yaml.error import YAMLError

from crysxpp_mm.errors import SettingsError
from crysxpp_mm.graph.targets import find_targets
from crysxpp_mm.losses import LossWeights
from crysxpp_mm.settings import flag, not_negative, number, one_of, positive, share, whole_number


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read settings by name from a YAML or JSON file.

    Raises:
        SettingsError: the file is absent or unreadable.
    """
    try:
        content = loadfn(Path(path), cls=None) or {}
    except (OSError, ValueError, TypeError, YAMLError) as error:
        raise SettingsError(f"{path} cannot be read as YAML or JSON: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must map names of settings to values.")
    return {str(key): value for key, value in content.items() if not str(key).startswith("@")}


def refuse_unknown(
    path: str | os.PathLike[str], settings: Iterable[str], *, known: Iterable[str]
) -> None:
    """Raise if a file names an unknown setting.

    Raises:
        SettingsError: it does; the message lists the known ones.
    """
    if unknown := sorted(set(settings) - set(known)):
        raise SettingsError(
            f"{path} has unknown settings: {', '.join(unknown)}; "
            f"there are {', '.join(sorted(known))}."
        )


_COUNTS = (
    *("hidden_dim", "n_convs", "n_gaussians", "pair_dim"),
    *("batch_size", "max_epochs", "patience", "max_epoch_crystals"),
)
_FRACTIONS = ("masked", "mask_fraction", "mask_species", "visible_weight", "strained")
_POSITIVE = ("learning_rate", "gradient_clip", "target_weight")


def _targets(names: object) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise SettingsError(f"targets must be a list of names, got {names!r}.")
    find_targets(names, "site")
    return tuple(names)


def _fraction(name: str, value: object) -> float:
    if not 0 <= (plain := number(name, value)) <= 1:
        raise SettingsError(f"{name} must lie in 0 to 1, got {plain}.")
    return plain


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(MSONable):
    """Settings of the pretraining of a CrysAE.

    The defaults are those of ``crysae-mp-v1``; ``published`` gives the settings of the paper.

    Attributes:
        hidden_dim: Width of the node embeddings.
        n_convs: Number of convolutions.
        n_gaussians: Gaussians of a bond length.
        element_channel: Whether every element has a learned vector beside its 92 columns.
        pair_dim: Components of the pair embedding, Eq. 2.
        normalize: Whether the decoder normalizes the embeddings that it reads.
        loss_weights: Weights of the terms of Eq. 7.
        masked: Share of crystals in which the features of some atoms are hidden from the encoder;
            the others stay whole, as the crystals are that will be embedded.
        mask_fraction: Share of atoms that are hidden in such a crystal.
        mask_species: Share of those crystals in which all atoms of one element are hidden instead.
        visible_weight: Weight of rebuilding a visible atom's features, where a hidden atom's have
            weight 1.
        strain: Standard deviation of the logarithm by which the bond lengths of a crystal are
            scaled, all alike, before the encoder sees them; the true lengths are rebuilt.
        strained: Share of crystals that are strained.
        learning_rate: Peak rate.
        schedule: ``"one_cycle"`` or ``"constant"``.
        weight_decay: Of AdamW.
        batch_size: Crystals a step.
        max_epochs: Epochs at most.
        patience: Epochs without a better validation loss after which training stops.
        gradient_clip: Largest norm of the gradient.
        targets: Names of pretext targets (``crysxpp_mm.graph.targets.TARGETS``) that are predicted
            beside the terms of Eq. 7.
        target_weight: Weight of their squared error, in standard deviations.
        validation_fraction: Share of the crystals that is held out to measure reconstruction.
        max_epoch_crystals: An epoch, and so the time between checkpoints, has no more crystals;
            a larger set is passed through in several epochs.
        seed: Of weights, split, order and corruption.
    """

    hidden_dim: int = 64
    n_convs: int = 3
    n_gaussians: int = 41
    element_channel: bool = False
    pair_dim: int = 6
    normalize: bool = True
    loss_weights: LossWeights = field(default_factory=LossWeights)
    masked: float = 0.5
    mask_fraction: float = 0.3
    mask_species: float = 0.0
    visible_weight: float = 0.1
    strain: float = 0.0
    strained: float = 0.5
    learning_rate: float = 3e-3
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    weight_decay: float = 0.01
    batch_size: int = 64
    max_epochs: int = 60
    patience: int = 20
    gradient_clip: float = 5.0
    targets: tuple[str, ...] = ()
    target_weight: float = 1.0
    validation_fraction: float = 0.05
    max_epoch_crystals: int = 50_000
    seed: int = 0

    def __post_init__(self) -> None:
        plain: dict[str, Any] = {
            **{name: whole_number(name, getattr(self, name), at_least=1) for name in _COUNTS},
            **{name: flag(name, getattr(self, name)) for name in ("element_channel", "normalize")},
            **{name: _fraction(name, getattr(self, name)) for name in _FRACTIONS},
            **{name: positive(name, getattr(self, name)) for name in _POSITIVE},
            "seed": whole_number("seed", self.seed, at_least=0),
            "validation_fraction": share("validation_fraction", self.validation_fraction),
            "strain": number("strain", self.strain),
            "weight_decay": not_negative("weight_decay", self.weight_decay),
            "targets": _targets(self.targets),
        }
        if not 0 <= plain["strain"] <= 0.5:
            raise SettingsError(f"strain must lie in 0 to 0.5, got {self.strain}.")
        one_of("schedule", self.schedule, ("one_cycle", "constant"))
        if not isinstance(self.loss_weights, LossWeights):
            raise SettingsError(
                f"loss_weights must name the weights of terms, got {self.loss_weights!r}."
            )
        for name, value in plain.items():  # plain numbers, also where they came from numpy
            object.__setattr__(self, name, value)

    @classmethod
    def published(cls) -> PretrainConfig:
        """The loss and the settings of Das et al. (2022)."""
        return cls(
            normalize=False,
            masked=0.0,
            visible_weight=1.0,
            learning_rate=0.003,
            schedule="constant",
            weight_decay=0.0,
            batch_size=512,
            max_epochs=200,
        )

    @property
    def model_settings(self) -> dict[str, Any]:
        """Arguments for the constructor of CrysAE."""
        names = ("hidden_dim", "n_convs", "n_gaussians", "element_channel", "pair_dim", "normalize")
        settings = {name: getattr(self, name) for name in names}
        return {**settings, "targets": self.targets} if self.targets else settings

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> PretrainConfig:
        """Read settings from a YAML or JSON file; what it does not name keeps its default.

        Raises:
            SettingsError: the file is absent or unreadable, or names an unknown setting.
        """
        settings = read_settings(path)
        refuse_unknown(path, settings, known=[item.name for item in fields(cls)])
        weights = settings.get("loss_weights")
        try:
            if isinstance(weights, dict):
                terms = {key: value for key, value in weights.items() if not key.startswith("@")}
                settings["loss_weights"] = LossWeights(**terms)
            return cls(**settings)
        except TypeError as error:
            raise SettingsError(f"{path}: {error}") from error

    def to_plain(self) -> dict[str, Any]:
        """All settings as plain JSON data; those of targets only where there are any."""
        settings = {**asdict(self), "targets": list(self.targets)}
        if not self.targets:
            del settings["targets"], settings["target_weight"]
        return settings
