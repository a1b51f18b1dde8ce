"""CrysXPP for classes, such as metal and non-metal."""

# ruff: noqa: N803 (X is the name that scikit-learn gives)
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin

from crysxpp_mm.errors import DataError, ModelFileError, SettingsError
from crysxpp_mm.estimators.base import CrysXPPEstimator
from crysxpp_mm.estimators.inputs import Crystals, check_length
from crysxpp_mm.estimators.learning import Problem
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.training.finetune import Task


class CrysXPPClassifier(ClassifierMixin, CrysXPPEstimator):  # type: ignore[misc]
    """Predict classes of crystals, such as metal and non-metal, from few labels.

    As :class:`CrysXPPRegressor`, with cross entropy as the loss. Labels may be texts, whole
    numbers or booleans; None and NaN are unknown. A class that appears once stays in training.

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
        n_members: Networks of the ensemble; their probabilities are averaged.
        class_weight: ``"balanced"`` to let every class count alike in the loss, or None.
        target_names: Name of the target, in a sequence of one; that of ``y`` if None.
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
        sparsity: Weight lambda_1 of the L1 norm of the selector (Eq. 10); it makes exact zeros.
        patience: Epochs without a better validation loss after which training stops, with the best
            epoch so far; None to let the rate run its whole cycle and keep the best of the last
            epochs. It needs validation crystals, see ``validation_fraction``.
        validation_fraction: Share of the training crystals that chooses the best epoch; fewer
            than 200 labels are all learned from, and the last epoch is kept.
        seed: Of weights, splits and order. Equal seeds give equal models on one machine.
        checkpoint_dir: Folder for checkpoints, curves and tables, a folder a run inside.
        accelerator: Where to train and predict: ``"auto"`` for CUDA where available, else the CPU;
            ``"cpu"``, ``"gpu"``, or another name that Lightning and torch both know. Members stay
            on the CPU; copies of them compute, and outputs come back.
        devices: As Lightning takes it, for the training.
        pbar: Whether to show a progress bar over the epochs.

    Attributes:
        classes_: The classes, sorted.
        members_: The networks.
        target_names_: Name of the target.
        feature_weights_: Weights of the selector as a table.
        learning_curve_: Losses by epoch, member and stage: 0 is ``fit``, 1 and on ``fine_tune``.
        left_out_: Rows that were not learned from in the last stage, and why.
        n_train_: Rows that were, in all stages, those that chose the best epoch included.
        data_hash_: sha256 of the graphs and labels learned from.
        history_: For each stage how many rows it learned from, their sha256 and the settings.
        domain_: What ``domain`` compares with.
        converter_: The graph rule.
    """

    _task: Task = "classification"

    classes_: NDArray[Any]

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
        class_weight: Literal["balanced"] | None = None,
        target_names: Sequence[str] | None = None,
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
        self.class_weight = class_weight
        self.target_names = target_names
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
        self.sparsity = sparsity
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.checkpoint_dir = checkpoint_dir
        self.accelerator = accelerator
        self.devices = devices
        self.pbar = pbar

    def predict_proba(self, X: Any, *, ignore_errors: bool = False) -> NDArray[np.float64]:
        """Probability of every class.

        Args:
            X: Crystals, as ``fit`` takes them.
            ignore_errors: Give NaN for a row that is no crystal, instead of raising.

        Returns:
            Shape ``(n, n_classes)``, in the order of ``classes_``; an array for pandas as well,
            because scikit-learn's scorers need one. As a table:
            ``pd.DataFrame(model.predict_proba(X), index=X.index, columns=model.classes_)``.

        Raises:
            NotFittedError: nothing was learned yet.
            StructureTypeError, UnknownElementError, StructureError: a row is no crystal; it is
                named.
        """
        return self._probabilities(X, ignore_errors=ignore_errors)[0]

    def predict(self, X: Any, *, ignore_errors: bool = False) -> NDArray[Any] | pd.Series:
        """The most probable class of each crystal.

        Args:
            X: Crystals, as ``fit`` takes them.
            ignore_errors: Give None for a row that is no crystal, instead of raising.

        Returns:
            Shape ``(n,)``; a Series with the index of ``X`` if ``X`` is of pandas.

        Raises:
            NotFittedError: nothing was learned yet.
            StructureTypeError, UnknownElementError, StructureError: a row is no crystal; it is
                named.
        """
        probabilities, crystals = self._probabilities(X, ignore_errors=ignore_errors)
        bad = np.asarray(np.isnan(probabilities).any(axis=1))
        best = np.where(bad[:, None], 0.0, probabilities).argmax(axis=1)
        chosen: NDArray[Any] = self.classes_[best]
        if bad.any():
            chosen = chosen.astype(object)
            chosen[bad] = None
        if crystals.labels is None:
            return chosen
        return pd.Series(chosen, index=crystals.labels, name=self._columns[0])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of the crystals whose class is right; those of unknown class are left out.

        Args:
            X: Crystals.
            y: Their classes; None or NaN where unknown.
            sample_weight: Weight of each row.

        Raises:
            DataError: no row has a class, or what it has is none.
        """
        probabilities, crystals = self._probabilities(X, ignore_errors=False)
        known, classes, _ = self._read_classes(y, crystals)
        if not known.any():
            raise DataError("y has no class.")
        right = self.classes_[probabilities.argmax(axis=1)].astype(object) == classes
        weight = None if sample_weight is None else np.asarray(sample_weight)[known]
        return float(np.average(right[known], weights=weight))

    def _probabilities(
        self, X: Any, *, ignore_errors: bool
    ) -> tuple[NDArray[np.float64], Crystals]:
        """Mean over the members, shape ``(n_rows, n_classes)``."""
        logits, crystals = self._predict_members(X, ignore_errors=ignore_errors)
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (exponentials / exponentials.sum(axis=-1, keepdims=True)).mean(axis=0), crystals

    # What the labels mean.

    def _read_labels(self, y: Any, crystals: Crystals) -> tuple[NDArray[np.bool_], Any]:
        known, classes, name = self._read_classes(y, crystals)
        if self.target_names is None:
            self._columns = ["class" if name is None else name]
        else:
            given = self.target_names
            self._columns = [given] if isinstance(given, str) else list(given)
            if len(self._columns) != 1:
                raise SettingsError(f"target_names must hold one name, got {given!r}.")
        self.target_names_ = [str(self._columns[0])]
        return known, classes

    def _match_labels(self, y: Any, crystals: Crystals) -> tuple[NDArray[np.bool_], Any]:
        known, classes, _ = self._read_classes(y, crystals)
        kind = type(self.classes_.tolist()[0])
        for position in np.flatnonzero(known):
            # True equals 1, so the kind is looked at as well.
            if type(classes[position]) is not kind or classes[position] not in self.classes_:
                raise DataError(
                    f"y holds {classes[position]!r} at {crystals.row_name(int(position))}; the "
                    f"model knows the classes {', '.join(map(repr, self.classes_.tolist()))}."
                )
        return known, classes

    def _read_classes(
        self, y: Any, crystals: Crystals
    ) -> tuple[NDArray[np.bool_], NDArray[np.object_], Any]:
        """Which rows have a class, the classes, and the name of ``y``."""
        if self.class_weight not in (None, "balanced"):
            raise SettingsError(
                f"class_weight must be 'balanced' or None, got {self.class_weight!r}."
            )
        if y is None:
            raise DataError("y is missing: a property predictor needs labels.")
        if isinstance(y, pd.DataFrame):
            if y.shape[1] != 1:
                raise DataError(f"y must be one column of classes, got {y.shape[1]}.")
            y = y.iloc[:, 0]
        name = getattr(y, "name", None)
        values = y if isinstance(y, pd.Series) else pd.Series(_column(y), dtype=object)
        check_length(len(values), crystals)
        known = values.notna().to_numpy(dtype=bool)
        plain = np.array([_class(value) for value in values], dtype=object)
        for position in np.flatnonzero(known):
            if not isinstance(plain[position], str | bool | int):
                raise DataError(
                    f"y holds {plain[position]!r} at {crystals.row_name(int(position))}; classes "
                    "are texts, whole numbers or booleans. For numbers use CrysXPPRegressor."
                )
        return known, plain, name

    def _settle(self, labels: Any) -> None:
        kinds = {type(value).__name__ for value in labels}
        if len(kinds) > 1:
            raise DataError(f"y mixes labels of the kinds {', '.join(sorted(kinds))}.")
        self.classes_ = np.unique(np.array(list(labels)))
        if len(self.classes_) < 2:
            raise DataError(
                f"all labels are {labels[0]!r}; a classifier needs at least two classes."
            )

    def _problem(self, labels: Any) -> Problem:
        codes = np.searchsorted(self.classes_, np.array(list(labels)))
        weights = None
        if self.class_weight == "balanced":
            counts = np.bincount(codes, minlength=len(self.classes_))
            present = counts > 0
            weights = np.zeros(len(counts))
            weights[present] = len(codes) / (present.sum() * counts[present])
        return Problem(codes.astype(np.int64), len(self.classes_), weights)

    def _strata(self, problem: Problem) -> NDArray[np.int64] | None:
        strata: NDArray[np.int64] = problem.targets
        return strata

    def _output(self, target: Any) -> tuple[int, str, str]:
        if target is None and len(self.classes_) == 2:
            target = self.classes_[1]
        if target is None or target not in self.classes_:
            raise SettingsError(
                f"target must be a class, one of {', '.join(map(repr, self.classes_.tolist()))}; "
                f"got {target!r}."
            )
        number = int(np.flatnonzero(self.classes_ == target)[0])
        return number, f"logit of {target}", ""

    def _n_outputs(self) -> int:
        return len(self.classes_)

    def _state(self) -> dict[str, Any]:
        return {"classes": self.classes_.tolist()}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        if unknown := sorted(set(state) - {"classes"}):
            raise ModelFileError(f"the state of the model has unknown keys: {', '.join(unknown)}.")
        self.classes_ = np.array(state["classes"])
        if self.classes_.ndim != 1 or len(self.target_names_) != 1:
            raise ModelFileError("the classes or the target are no list.")


def _column(y: Any) -> list[Any]:
    """Labels in a list; a column of shape ``(n, 1)`` is flattened."""
    if isinstance(y, np.ndarray):
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1:
            raise DataError(f"y must be one column of classes, got the shape {y.shape}.")
    try:
        return list(y)
    except TypeError as error:
        raise DataError(f"y must be list-like, got a {type(y).__name__}.") from error


def _class(value: Any) -> Any:
    """A label as plain Python; whole floats, which pandas makes of integers, are integers."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
