"""Options of a training on labels, declared once for estimators and training alike."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from crysxpp_mm.settings import not_negative, positive, share, whole_number

CONTINUED_RATE = 1 / 16
"""Rate at which a fitted estimator goes on learning, as a multiple of that of its fit.

Measured on log10 K of elastic_tensor_2015, learned from 600 crystals without Al and Si and then
from 60 with them, 10 epochs; mean absolute errors of other crystals with Al or Si, and of others
without: before 0.041 and 0.047; at 1/4 of the rate 0.032 and 0.070, at 1/16 0.029 and 0.058, at
1/64 0.028 and 0.053. With log10 G as the new label 0.084, 0.083 and 0.101 for the former. More
epochs help neither.
"""


@dataclass(kw_only=True, eq=False, repr=False)
class FitOptions:
    """Options that every model learns by.

    An estimator inherits them as its arguments, so they are stored unchecked; see
    ``checked_options``.

    Args:
        max_epochs: Epochs at most.
        min_steps: With few labels an epoch passes over them several times, to make this many
            steps in all.
        batch_size: Crystals a step; at most a quarter of the training crystals.
        learning_rate: Peak of the one-cycle rate.
        weight_decay: Of AdamW.
        gradient_clip: Largest norm of the gradient.
        patience: Epochs without a better validation loss after which training stops, with the best
            epoch so far. None lets the rate run its whole cycle and keeps the best of the last
            epochs. It needs validation crystals, see ``validation_fraction``.
        validation_fraction: Share of the training crystals that chooses the best epoch. Fewer than
            200 labels are all learned from, and the last epoch is kept.
        seed: Of weights, splits and order. Equal seeds give equal models on one machine.
    """

    max_epochs: int = 40
    min_steps: int = 600
    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    gradient_clip: float = 5.0
    patience: int | None = None
    validation_fraction: float = 0.1
    seed: int = 0

    def _check(self) -> None:
        """Check every option and make it a plain value, also where it came from numpy."""
        for name, least in (("max_epochs", 1), ("min_steps", 0), ("batch_size", 1), ("seed", 0)):
            setattr(self, name, whole_number(name, getattr(self, name), at_least=least))
        if self.patience is not None:
            self.patience = whole_number("patience", self.patience, at_least=1)
        self.learning_rate = positive("learning_rate", self.learning_rate)
        self.gradient_clip = positive("gradient_clip", self.gradient_clip)
        self.weight_decay = not_negative("weight_decay", self.weight_decay)
        self.validation_fraction = share("validation_fraction", self.validation_fraction)

    def _rescale(self, factor: float) -> None:
        """Change rates that follow ``learning_rate`` by a factor, when learning goes on."""


OptionsT = TypeVar("OptionsT", bound=FitOptions)


def checked_options(kind: type[OptionsT], source: Any, **changes: Any) -> OptionsT:
    """Copy the options of ``source`` as plain values, and check them.

    Args:
        kind: The class of the copy.
        source: An object that has its fields, such as an estimator.
        changes: Options that differ.

    Raises:
        SettingsError: an option has a value that makes no sense; it is named.

    Example:
        >>> checked_options(FitOptions, FitOptions(), max_epochs=5).max_epochs
        5
    """
    options = kind(**{item.name: getattr(source, item.name) for item in fields(kind)} | changes)
    options._check()
    return options


def continued_options(
    options: OptionsT, *, learning_rate: float | None, max_epochs: int
) -> OptionsT:
    """Derive the options of a further training after a fit with ``options``.

    Args:
        options: Of the fit.
        learning_rate: Peak rate; ``CONTINUED_RATE`` of that of the fit if None. Other rates change
            in proportion.
        max_epochs: Epochs at most, each with as many steps as one of the fit has at least.

    Raises:
        SettingsError: one of them makes no sense.
    """
    before = options.learning_rate
    changed = checked_options(
        type(options),
        options,
        learning_rate=before * CONTINUED_RATE if learning_rate is None else learning_rate,
        max_epochs=max_epochs,
    )
    changed.min_steps = round(options.min_steps * changed.max_epochs / options.max_epochs)
    changed._rescale(changed.learning_rate / before)
    return changed
