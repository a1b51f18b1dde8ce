"""How a model is trained, as one frozen object."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

from monty.json import MSONable
from monty.serialization import loadfn

from crysxpp_mm.errors import SettingsError
from crysxpp_mm.graph.targets import find_targets
from crysxpp_mm.losses import LossWeights


def whole_number(name: str, value: object, *, at_least: int) -> int:
    """The value of a setting as a plain whole number.

    Raises:
        SettingsError: it is none, or less than ``at_least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise SettingsError(f"{name} must be a whole number of at least {at_least}, got {value!r}.")
    return int(value)


def number(name: str, value: object) -> float:
    """The value of a setting as a plain number.

    Raises:
        SettingsError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise SettingsError(f"{name} must be a number, got {value!r}.")
    return float(value)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings by name, from a YAML or JSON file.

    Raises:
        SettingsError: the file is absent or unreadable.
    """
    try:
        content = loadfn(Path(path), cls=None) or {}
    except Exception as error:
        raise SettingsError(f"{path} cannot be read as YAML or JSON: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must map names of settings to values.")
    return {str(key): value for key, value in content.items() if not str(key).startswith("@")}


def refuse_unknown(
    path: str | os.PathLike[str], settings: Iterable[str], *, known: Iterable[str]
) -> None:
    """Refuse settings of a file that there are not.

    Raises:
        SettingsError: as said; the message lists those there are.
    """
    if unknown := sorted(set(settings) - set(known)):
        raise SettingsError(
            f"{path} has unknown settings: {', '.join(unknown)}; "
            f"there are {', '.join(sorted(known))}."
        )


class _Checked:
    """Settings that are kept as plain numbers, also where they came from numpy."""

    def _whole_number(self, name: str, *, at_least: int) -> None:
        value = whole_number(name, getattr(self, name), at_least=at_least)
        object.__setattr__(self, name, value)

    def _number(self, name: str) -> float:
        value = number(name, getattr(self, name))
        object.__setattr__(self, name, value)
        return value


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(_Checked, MSONable):
    """How to pretrain a CrysAE.

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
        for name in (
            *("hidden_dim", "n_convs", "n_gaussians", "pair_dim"),
            *("batch_size", "max_epochs", "patience", "max_epoch_crystals"),
        ):
            self._whole_number(name, at_least=1)
        self._whole_number("seed", at_least=0)
        for name in ("element_channel", "normalize"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if not isinstance(self.loss_weights, LossWeights):
            raise SettingsError(
                f"loss_weights must name the weights of terms, got {self.loss_weights!r}."
            )
        for name in ("masked", "mask_fraction", "mask_species", "visible_weight", "strained"):
            if not 0 <= self._number(name) <= 1:
                raise SettingsError(f"{name} must lie in 0 to 1, got {getattr(self, name)}.")
        if not 0 <= self._number("validation_fraction") < 1:
            raise SettingsError(
                "validation_fraction must be at least 0 and less than 1, "
                f"got {self.validation_fraction}."
            )
        if not 0 <= self._number("strain") <= 0.5:
            raise SettingsError(f"strain must lie in 0 to 0.5, got {self.strain}.")
        self._check_targets()
        for name in ("learning_rate", "gradient_clip", "target_weight"):
            if not 0 < self._number(name) < float("inf"):
                raise SettingsError(f"{name} must be positive, got {getattr(self, name)}.")
        if not 0 <= self._number("weight_decay") < float("inf"):
            raise SettingsError(f"weight_decay must be 0 or more, got {self.weight_decay}.")
        if self.schedule not in ("one_cycle", "constant"):
            raise SettingsError(
                f"schedule must be 'one_cycle' or 'constant', got {self.schedule!r}."
            )

    def _check_targets(self) -> None:
        if isinstance(self.targets, str) or not isinstance(self.targets, Sequence):
            raise SettingsError(f"targets must be a list of names, got {self.targets!r}.")
        object.__setattr__(self, "targets", tuple(self.targets))
        find_targets(self.targets, "site")

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
        """What the constructor of CrysAE takes."""
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


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(_Checked, MSONable):
    """How to train a CrysXPP on labels.

    Attributes:
        max_epochs: Epochs at most.
        min_steps: With few labels an epoch passes over them as often as it takes to make
            ``max_epochs`` epochs this many steps.
        batch_size: Crystals a step; at most a quarter of the training crystals.
        learning_rate: Peak of the one-cycle rate of the readout.
        encoder_rate: Rate of the encoder, as a multiple of ``learning_rate``.
        selector_rate: Peak of the one-cycle rate of the selector. A weight falls from 1 to 0 only
            if the rates of all steps sum to more than 1.
        frozen_epochs: Epochs at the start in which the readout alone learns.
        element_start: Share of the epochs at the start in which the vectors of elements, if there
            are any, rest; then they learn and the selector rests. At 0 both learn all the time.
        weight_decay: Of AdamW; it does not act on the selector.
        gradient_clip: Largest norm of the gradient.
        loss: ``"l1"``, the mean absolute error of the standardized targets, or ``"mse"``, their
            squared error (Eq. 10); classes are always learned by cross entropy.
        sparsity: Weight lambda_1 of the L1 norm of the selector, Eq. 10.
        patience: Epochs without a better validation loss after which training stops, with the
            best epoch so far; None to let the rate run its whole cycle and keep the best of the
            last epochs.
        validation_fraction: Share of the training crystals that chooses the best epoch.
        seed: Of weights, split and order.

    Raises:
        SettingsError: an option has a value that makes no sense; it is named.
    """

    max_epochs: int = 40
    min_steps: int = 600
    batch_size: int = 64
    learning_rate: float = 4e-3
    encoder_rate: float = 1.0
    selector_rate: float = 6e-3
    frozen_epochs: int = 0
    element_start: float = 0.0
    weight_decay: float = 0.01
    gradient_clip: float = 5.0
    loss: Literal["l1", "mse"] = "l1"
    sparsity: float = 0.001
    patience: int | None = None
    validation_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"max_epochs": 1, "min_steps": 0, "batch_size": 1, "frozen_epochs": 0, "seed": 0}
        for name, minimum in least.items():
            self._whole_number(name, at_least=minimum)
        if self.patience is not None:
            self._whole_number("patience", at_least=1)
        for name in ("learning_rate", "gradient_clip"):
            value = self._number(name)
            if not 0 < value < float("inf"):
                raise SettingsError(f"{name} must be positive, got {value!r}.")
        for name in ("encoder_rate", "selector_rate", "weight_decay", "sparsity"):
            value = self._number(name)
            if not 0 <= value < float("inf"):
                raise SettingsError(f"{name} must be 0 or more, got {value!r}.")
        for name in ("validation_fraction", "element_start"):
            value = self._number(name)
            if not 0 <= value < 1:
                raise SettingsError(f"{name} must be at least 0 and less than 1, got {value!r}.")
        if self.loss not in ("l1", "mse"):
            raise SettingsError(f"loss must be 'l1' or 'mse', got {self.loss!r}.")

    def to_plain(self) -> dict[str, Any]:
        """All settings as plain JSON data."""
        return asdict(self)
