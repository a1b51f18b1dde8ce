"""CrysXPP for properties that are numbers."""

# ruff: noqa: N803 (X is the name that scikit-learn gives)
from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags

from crysxpp_mm.errors import DataError, ModelFileError, SettingsError
from crysxpp_mm.estimators.base import CrysXPPEstimator
from crysxpp_mm.estimators.inputs import Crystals, Labels, read_crystals, read_labels
from crysxpp_mm.estimators.intervals import Calibration, check_confidence
from crysxpp_mm.estimators.learning import Problem
from crysxpp_mm.estimators.splits import MIN_VALIDATED
from crysxpp_mm.estimators.transforms import TRANSFORMS, choose_transforms, get_transform
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.crysxpp import CrysXPP
from crysxpp_mm.training.finetune import Task

Values = NDArray[np.float64] | pd.Series | pd.DataFrame
"""What ``predict`` gives: pandas for pandas, else an array."""


class CrysXPPRegressor(RegressorMixin, CrysXPPEstimator):  # type: ignore[misc]
    """Predict numbers, such as a formation energy, of crystals from few labels.

    The encoder of a CrysAE, pretrained on structures alone, is fine-tuned on the labels behind a
    feature selector whose weights say which properties of the elements matter (Das et al., npj
    Comput. Mater. 8, 43 (2022), Eqs. 8-10).

    Args:
        pretrained: Where the encoder starts: the name of a shipped CrysAE, the path of a saved
            one, a CrysAE object, or None for random weights.
        encoder: ``"cgcnn"``, or ``"gcn"``, a plain graph convolution without pretraining.
        hidden_dim: Width of the node embeddings; None for the pretrained model's, or 64.
        n_convs: Number of convolutions; None for the pretrained model's, or 3.
        element_channel: Whether every element has a learned vector beside its 92 columns, which
            some lanthanides and actinides share; it starts at zero, and a pretrained model that
            has one keeps it. The selector does not weigh it; ``contributions`` gives its part.
        selector: Whether there is a feature selector.
        layers: What the readout sees, ``"all"`` layers or the ``"last"`` (Eq. 8).
        moments: What is taken over the atoms, of ``"mean"``, ``"std"`` and ``"max"``.
        pooled: What is pooled for the readout: a ``"hidden"`` layer that acts on every site, or
            the ``"embeddings"`` themselves (Eq. 8).
        readout_dim: Width of the hidden layer of the readout.
        n_members: Networks of the ensemble, each with a seed of its own; the prediction is their
            mean. All hold out the same rows.
        transform: ``"log10"``, ``"log"``, ``"log1p"``, ``"sqrt"`` or None: what is learned in
            place of the label; undone on predicting. ``"nonnegative"`` is for labels that cannot
            be negative and are often zero, such as band gaps: what a network says below zero counts
            as zero, in the loss and on predicting (regression with censored labels: Powell, J.
            Econom. 25, 303 (1984)). For several targets also a sequence, or a dictionary by name.
        target_names: Names of the targets; those of ``y`` if None.
        units: Unit of the targets, kept with the model: one for all, one for each in a sequence,
            or a dictionary by name.
        max_epochs: Epochs at most.
        min_steps: With few labels an epoch passes over them several times, to make this many
            steps in all.
        batch_size: Crystals a step.
        learning_rate: Peak of the one-cycle rate of the readout.
        encoder_rate: Rate of the encoder, as a multiple of ``learning_rate``; 0 freezes it.
        selector_rate: Peak of the one-cycle rate of the selector.
        frozen_epochs: Epochs at the start in which the readout alone learns.
        element_start: Share of the epochs of ``fit`` in which the vectors of ``element_channel``
            rest while the selector learns; then they learn and the selector rests, so that its
            weights stand for what the properties can say. At 0 both learn all the time, and
            vectors may take the place of the properties.
        weight_decay: Of AdamW; the selector has none.
        gradient_clip: Largest norm of the gradient.
        loss: ``"l1"`` or ``"mse"`` of the standardized targets.
        sparsity: Weight lambda_1 of the L1 norm of the selector (Eq. 10); it makes exact zeros.
        patience: Epochs without a better validation loss after which training stops, with the best
            epoch so far; None to let the rate run its whole cycle and keep the best of the last
            epochs. It needs validation crystals, see ``validation_fraction``.
        validation_fraction: Share of the training crystals that chooses the best epoch; fewer
            than 200 labels are all learned from, and the last epoch is kept.
        seed: Of weights, splits and order. Equal seeds give equal models on one machine.
        checkpoint_dir: Folder for checkpoints, curves and tables, a folder a run inside. A fit
            that was killed goes on when it is called again with the same data and settings.
        accelerator: Where to train and predict: ``"auto"`` for CUDA where available, else the CPU;
            ``"cpu"``, ``"gpu"``, or another name that Lightning and torch both know. Members stay
            on the CPU; copies of them compute, and outputs come back.
        devices: As Lightning takes it, for the training.
        pbar: Whether to show a progress bar over the epochs.

    Attributes:
        members_: The networks.
        target_names_: Names of the targets.
        units_: Their units, empty where not given.
        feature_weights_: Weights of the selector as a table.
        learning_curve_: Losses by epoch, member and stage: 0 is ``fit``, 1 and on ``fine_tune``.
        left_out_: Rows that were not learned from in the last stage, and why.
        n_train_: Rows that were, in all stages, those that chose the best epoch included.
        data_hash_: sha256 of the graphs and labels learned from.
        history_: For each stage how many rows it learned from, their sha256 and the settings.
        calibration_: Errors that ``predict_interval`` goes by; None if no rows were held out.
        domain_: What ``domain`` compares with.
        converter_: The graph rule.
    """

    _task: Task = "regression"

    def __init__(
        self,
        *,
        pretrained: str | os.PathLike[str] | CrysAE | None = "crysae-mp-v1",
        encoder: Literal["cgcnn", "gcn"] = "cgcnn",
        hidden_dim: int | None = None,
        n_convs: int | None = None,
        element_channel: bool = False,
        selector: bool = True,
        layers: Literal["last", "all"] = "all",
        moments: Sequence[str] = ("mean",),
        pooled: Literal["embeddings", "hidden"] = "hidden",
        readout_dim: int = 128,
        n_members: int = 1,
        transform: str | Sequence[str | None] | Mapping[str, str | None] | None = None,
        target_names: Sequence[str] | None = None,
        units: str | Sequence[str] | Mapping[str, str] | None = None,
        max_epochs: int = 40,
        min_steps: int = 600,
        batch_size: int = 64,
        learning_rate: float = 4e-3,
        encoder_rate: float = 1.0,
        selector_rate: float = 6e-3,
        frozen_epochs: int = 0,
        element_start: float = 0.0,
        weight_decay: float = 0.01,
        gradient_clip: float = 5.0,
        loss: Literal["l1", "mse"] = "l1",
        sparsity: float = 0.001,
        patience: int | None = None,
        validation_fraction: float = 0.1,
        seed: int = 0,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        accelerator: str = "auto",
        devices: int | str = 1,
        pbar: bool = True,
    ) -> None:
        self.pretrained = pretrained
        self.encoder = encoder
        self.hidden_dim = hidden_dim
        self.n_convs = n_convs
        self.element_channel = element_channel
        self.selector = selector
        self.layers = layers
        self.moments = moments
        self.pooled = pooled
        self.readout_dim = readout_dim
        self.n_members = n_members
        self.transform = transform
        self.target_names = target_names
        self.units = units
        self.max_epochs = max_epochs
        self.min_steps = min_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.encoder_rate = encoder_rate
        self.selector_rate = selector_rate
        self.frozen_epochs = frozen_epochs
        self.element_start = element_start
        self.weight_decay = weight_decay
        self.gradient_clip = gradient_clip
        self.loss = loss
        self.sparsity = sparsity
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.checkpoint_dir = checkpoint_dir
        self.accelerator = accelerator
        self.devices = devices
        self.pbar = pbar

    def predict(
        self, X: Any, *, return_std: bool = False, ignore_errors: bool = False
    ) -> Values | tuple[Values, Values]:
        """Predict the targets of crystals.

        Args:
            X: Crystals, as ``fit`` takes them.
            return_std: Also give the standard deviation over the members of the ensemble.
            ignore_errors: Give NaN for a row that is no crystal, instead of raising.

        Returns:
            In the units of the labels: a Series or DataFrame with the index of ``X`` and the
            names of the targets if ``X`` is of pandas, else an array, ``(n,)`` or
            ``(n, n_targets)`` as ``y`` was. (scikit-learn's stacking needs arrays: give it
            ``list(X)``.)

        Raises:
            NotFittedError: nothing was learned yet.
            SettingsError: ``return_std`` with a single member.
            StructureTypeError, UnknownElementError, StructureError: a row is no crystal; it is
                named.
        """
        if return_std and len(getattr(self, "members_", [0, 0])) < 2:
            raise SettingsError("return_std needs an ensemble; fit with n_members of 2 or more.")
        outputs, crystals = self._predict_members(X, ignore_errors=ignore_errors)
        values = self._wrap(self._invert(outputs.mean(axis=0)), crystals)
        if not return_std:
            return values
        spread = np.stack([self._invert(output) for output in outputs]).std(axis=0, ddof=1)
        return values, self._wrap(spread, crystals)

    def predict_interval(
        self, X: Any, *, confidence: float = 0.9, ignore_errors: bool = False
    ) -> pd.DataFrame:
        """Predict the targets of crystals, with intervals that hold the truth as often as asked.

        Split conformal prediction: the errors on crystals that were not learned from are sorted,
        and the ``ceil((n + 1) * confidence)``-th of ``n`` says how far an interval reaches (Lei
        et al., J. Am. Stat. Assoc. 113, 1094 (2018)). The errors are those of what is learned, so
        that the interval of a ``"log10"`` target is a factor. With an ensemble they are divided
        by its standard deviation for the crystal (Papadopoulos et al., J. Artif. Intell. Res. 40,
        815 (2011)): where the members disagree, the interval is wider.

        What is promised is a mean: of many crystals that are drawn as the calibration crystals
        were, the share ``confidence`` lies inside, target by target. Crystals of another kind
        (see ``domain``) may lie outside more often, and so may those of a new chemical system,
        unless ``groups`` kept whole systems apart.

        The calibration crystals are those that the last ``fit`` or ``fine_tune`` held out, or
        those of ``calibrate``. Held-out crystals have chosen the best epoch, so that their errors
        are a little too small. As only the last epochs are chosen from, while the one-cycle rate
        goes to zero and they hardly differ, that matters little (more with ``patience``).
        ``calibrate`` with further crystals is free of it.

        Args:
            X: Crystals, as ``fit`` takes them.
            confidence: Share of the crystals whose truth is to lie inside, between 0 and 1.
            ignore_errors: Give NaN for a row that is no crystal, instead of raising.

        Returns:
            Columns ``prediction``, ``lower`` and ``upper`` in the units of the labels, with the
            index of ``X`` if it is of pandas; for several targets two levels of columns, the
            target above these.

        Raises:
            NotFittedError: nothing was learned yet.
            SettingsError: no crystals were held out, or too few for this confidence, or the
                confidence is no share.
            StructureTypeError, UnknownElementError, StructureError: a row is no crystal; it is
                named.
        """
        self._check_fitted()
        check_confidence(confidence)
        if self.calibration_ is None:
            raise SettingsError(
                "there are no calibration crystals, because none were held out; call "
                "calibrate(X, y) with crystals that were not learned from. (Training holds out "
                f"validation=(X, y), or a share of at least {MIN_VALIDATED} labels unless "
                "validation_fraction is 0.)"
            )
        outputs, crystals = self._predict_members(X, ignore_errors=ignore_errors)
        widths = self.calibration_.half_widths(
            outputs, confidence=confidence, names=self.target_names_
        )
        center = outputs.mean(axis=0)
        bounds = [self._invert(center + shift) for shift in (0.0, -widths, widths)]
        values = np.stack(bounds, axis=2).reshape(len(center), 3 * center.shape[1])
        names = ["prediction", "lower", "upper"]
        columns: Any = names
        if len(self.target_names_) > 1:
            columns = pd.MultiIndex.from_product([self.target_names_, names])
        return pd.DataFrame(values, index=crystals.labels, columns=columns)

    def calibrate(self, X: Any, y: Any) -> Self:
        """Measure the errors that ``predict_interval`` goes by on these crystals.

        They take the place of earlier ones. The networks stay as they are.

        Args:
            X: Crystals that were not learned from, as ``fit`` takes them; drawn as those to be
                predicted.
            y: Their labels, NaN where unknown.

        Returns:
            Itself.

        Raises:
            NotFittedError: nothing was learned yet.
            DataError: the labels are unusable, or not those of the model's targets.
            StructureTypeError, UnknownElementError, StructureError: a row is no crystal; it is
                named.
        """
        self._check_fitted()
        crystals = read_crystals(X, self.converter_)
        crystals.refuse_errors()
        _, labels = self._match_labels(y, crystals)
        problem = self._problem(labels)
        self.calibration_ = self._calibrated(
            self.members_, crystals.graphs, problem, "the rows given to calibrate"
        )
        return self

    def _calibrated(
        self, members: list[CrysXPP], graphs: CrystalGraphs, problem: Problem, source: str
    ) -> Calibration:
        outputs = self._outputs(members, graphs)
        return Calibration.measure(outputs, problem.targets, source=source)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R2, the mean over the targets; unknown labels are left out.

        Args:
            X: Crystals.
            y: Labels, NaN where unknown.
            sample_weight: Weight of each row.

        Raises:
            DataError: a target has no label.
        """
        outputs, crystals = self._predict_members(X, ignore_errors=False)
        predicted = self._invert(outputs.mean(axis=0))
        truth = self._matched(read_labels(y, crystals))
        scores = []
        for target, name in enumerate(self.target_names_):
            known = ~np.isnan(truth[:, target])
            if not known.any():
                raise DataError(f"y has no label of {name!r}.")
            weight = None if sample_weight is None else np.asarray(sample_weight)[known]
            scores.append(
                r2_score(truth[known, target], predicted[known, target], sample_weight=weight)
            )
        return float(np.mean(scores))

    # What the labels mean.

    def _read_labels(
        self, y: Any, crystals: Crystals
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        labels = read_labels(y, crystals)
        values = labels.values
        columns = self._column_labels(labels.columns, values.shape[1])
        names = [str(column) for column in columns]
        transforms = choose_transforms(self.transform, names)
        for target, (name, kind) in enumerate(zip(names, transforms, strict=True)):
            transform = get_transform(kind)
            refused = ~np.isnan(values[:, target]) & ~transform.accepts(values[:, target])
            if not refused.any():
                continue
            reason = f"{kind} takes {transform.domain}"
            if not self._ignore_bad_labels:
                _refuse_label(name, reason, values[:, target], refused, crystals)
            for position in np.flatnonzero(refused):
                self._label_errors[int(position)] = f"{name} unfit for transform: {reason}"
            values[refused, target] = np.nan
        self.target_names_ = names
        self._columns = columns
        self._transforms = transforms
        self._one_dimensional = labels.one_dimensional
        self.units_ = self._unit_list(names)
        return np.asarray(~np.isnan(values).all(axis=1)), values

    def _match_labels(
        self, y: Any, crystals: Crystals
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        values = self._matched(read_labels(y, crystals))
        for target, kind in enumerate(self._transforms):
            transform = get_transform(kind)
            refused = ~np.isnan(values[:, target]) & ~transform.accepts(values[:, target])
            if refused.any():
                reason = f"{kind} takes {transform.domain}"
                name = self.target_names_[target]
                _refuse_label(name, reason, values[:, target], refused, crystals)
        return np.asarray(~np.isnan(values).all(axis=1)), values

    def _matched(self, labels: Labels) -> NDArray[np.float64]:
        """Labels of the fitted targets, in their order; columns are found by name if they can be.

        Raises:
            DataError: there are more or fewer targets, or some have the names of others.
        """
        names, values = self.target_names_, labels.values
        if values.shape[1] != len(names):
            raise DataError(f"y has {values.shape[1]} targets, the model predicts {len(names)}.")
        found = [str(column) for column in labels.columns or []]
        if set(found) == set(names):
            return values[:, [found.index(name) for name in names]]
        if len(names) > 1 and set(found) & set(names):
            raise DataError(
                f"y has the targets {', '.join(map(repr, found))}, the model predicts "
                f"{', '.join(map(repr, names))}."
            )
        return values  # nameless, or named otherwise

    def _settle(self, labels: NDArray[np.float64]) -> None:
        self._problem(labels)  # every target has a label
        for name, column in zip(self.target_names_, labels.T, strict=True):
            if np.nanmin(column) == np.nanmax(column):
                warnings.warn(
                    f"all labels of {name!r} are equal; the model will predict that value for "
                    "every crystal.",
                    stacklevel=5,
                )

    def _problem(self, labels: NDArray[np.float64]) -> Problem:
        targets = np.empty_like(labels)
        for target, kind in enumerate(self._transforms):
            if np.isnan(labels[:, target]).all():
                raise DataError(f"the target {self.target_names_[target]!r} has no label at all.")
            targets[:, target] = get_transform(kind).forward(labels[:, target])
        return Problem(targets, targets.shape[1], floors=self._floors)

    @property
    def _floors(self) -> NDArray[np.float64]:
        """What lower outputs of a network are taken for, target by target."""
        return np.array([get_transform(kind).floor for kind in self._transforms])

    def _outputs(self, networks: Sequence[CrysXPP], graphs: CrystalGraphs) -> NDArray[np.float64]:
        return np.maximum(super()._outputs(networks, graphs), self._floors)

    def _check_learnable(self, problem: Problem, train: NDArray[np.int64]) -> None:
        without = np.isnan(problem.targets[train]).all(axis=0)
        if without.any():
            raise DataError(
                f"the rows that are left to learn from have no label of "
                f"{self.target_names_[int(without.argmax())]!r}; choose other groups or another "
                "seed, or set validation_fraction=0."
            )

    def _strata(self, problem: Problem) -> NDArray[np.int64] | None:
        """Every target keeps a label in training: its rarest one is a class of its own."""
        counts = (~np.isnan(problem.targets)).sum(axis=0)
        if (counts == len(problem.targets)).all():
            return None
        strata = np.full(len(problem.targets), -1)
        for target in np.argsort(-counts):
            strata[~np.isnan(problem.targets[:, target])] = target
        return strata

    def _column_labels(self, found: list[Any] | None, n_targets: int) -> list[Any]:
        """What the targets are called: given, as in ``y``, or by number."""
        if self.target_names is None:
            default = ["target"] if n_targets == 1 else [f"target {i}" for i in range(n_targets)]
            labels = found or default
        else:
            given = self.target_names
            labels = [given] if isinstance(given, str) else list(given)
            if len(labels) != n_targets:
                raise SettingsError(
                    f"target_names has {len(labels)} names for {n_targets} targets."
                )
        names = [str(label) for label in labels]
        if len(set(names)) < len(names):
            raise SettingsError(f"two targets have one name: {', '.join(names)}.")
        return labels

    def _unit_list(self, names: list[str]) -> list[str]:
        units = self.units
        if units is None:
            return [""] * len(names)
        if isinstance(units, Mapping):
            if unknown := [name for name in units if name not in names]:
                raise SettingsError(f"units names the target {unknown[0]!r}, which y has not.")
            return [str(units.get(name, "")) for name in names]
        if isinstance(units, str):
            return [units] * len(names)
        listed = [str(unit) for unit in units]
        if len(listed) != len(names):
            raise SettingsError(f"units has {len(listed)} entries for {len(names)} targets.")
        return listed

    def _invert(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """From the networks' units to those of the labels, shape ``(n_rows, n_targets)``."""
        columns = [
            get_transform(kind).inverse(outputs[:, target])
            for target, kind in enumerate(self._transforms)
        ]
        return np.stack(columns, axis=1)

    def _wrap(self, values: NDArray[np.float64], crystals: Crystals) -> Values:
        single = values.shape[1] == 1
        if crystals.labels is not None:
            if single:
                return pd.Series(values[:, 0], index=crystals.labels, name=self._columns[0])
            return pd.DataFrame(values, index=crystals.labels, columns=self._columns)
        return values[:, 0] if single and self._one_dimensional else values

    def _output(self, target: Any) -> tuple[int, str, str]:
        names = self.target_names_
        if target is None and len(names) > 1:
            raise SettingsError(f"name the target: {', '.join(map(repr, names))}.")
        if target is not None and target not in names:
            raise SettingsError(
                f"there is no target {target!r}; there are {', '.join(map(repr, names))}."
            )
        number = 0 if target is None else names.index(target)
        kind, unit = self._transforms[number], self.units_[number]
        if kind is None:
            return number, names[number], unit
        if kind == "nonnegative":
            return number, f"{names[number]} (0 where negative)", unit
        return number, f"{kind}({names[number]}{f' / {unit}' if unit else ''})", ""

    def _target_texts(self) -> list[str]:
        return [
            name + (f" ({unit})" if unit else "")
            for name, unit in zip(self.target_names_, self.units_, strict=True)
        ]

    def _n_outputs(self) -> int:
        return len(self.target_names_)

    def _state(self) -> dict[str, Any]:
        return {
            "units": self.units_,
            "transforms": self._transforms,
            "one_dimensional": self._one_dimensional,
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        if unknown := sorted(set(state) - {"units", "transforms", "one_dimensional"}):
            raise ModelFileError(f"the state of the model has unknown keys: {', '.join(unknown)}.")
        self.units_ = list(state["units"])
        self._transforms = list(state["transforms"])
        self._one_dimensional = bool(state["one_dimensional"])
        if not len(self.units_) == len(self._transforms) == len(self.target_names_):
            raise ModelFileError("the units or transforms are not those of the targets.")
        if any(kind is not None and kind not in TRANSFORMS for kind in self._transforms):
            raise ModelFileError(f"the model has an unknown transform: {self._transforms}.")

    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _refuse_label(
    name: str,
    reason: str,
    values: NDArray[np.float64],
    refused: NDArray[np.bool_],
    crystals: Crystals,
) -> None:
    first = int(np.flatnonzero(refused)[0])
    raise DataError(
        f"{name} is {values[first]:g} at {crystals.row_name(first)}, but transform {reason}."
    )
