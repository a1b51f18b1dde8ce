"""Names of the targets and what their labels mean: numbers or classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from crysxpp_mm.errors import DataError, ModelFileError, SettingsError
from crysxpp_mm.estimators.crystals import CrystalRows
from crysxpp_mm.estimators.labels import (
    LabelRows,
    class_column,
    label_columns,
    read_classes,
    read_numbers,
)
from crysxpp_mm.estimators.transforms import (
    TRANSFORMS,
    choose_transforms,
    get_transform,
    one_per_target,
)
from crysxpp_mm.notices import warn_user


class Targets(ABC):
    """Names of the targets and what their labels mean.

    ``describe`` of a subclass looks at ``y`` before the crystals are read; ``read`` reads the
    labels that ``fit`` learns from, ``settled`` looks at those that are left, and from then on
    ``match`` reads labels that have to mean the same.
    """

    columns: list[Any]
    """Names as pandas has them, in predictions as in ``y``."""

    @property
    def names(self) -> list[str]:
        """Names of the targets as texts."""
        return [str(column) for column in self.columns]

    @property
    @abstractmethod
    def n_outputs(self) -> int:
        """Outputs of a network."""

    @abstractmethod
    def read(self, y: Any, crystals: CrystalRows, *, ignore_errors: bool) -> LabelRows:
        """Read the labels of ``fit``.

        Args:
            y: As the user gave them.
            crystals: The rows, for messages.
            ignore_errors: Leave a label without sense out, with its reason, instead of raising.

        Raises:
            DataError: the labels are unusable; the message says which and why.
        """

    @abstractmethod
    def settled(self, values: NDArray[Any]) -> Self:
        """Complete the description with the labels that are learned from.

        Raises:
            DataError: nothing can be learned from them.
        """

    @abstractmethod
    def match(self, y: Any, crystals: CrystalRows) -> LabelRows:
        """Read labels that have to mean what those of ``fit`` mean.

        Raises:
            DataError: they do not, or they are unusable; the message says which and why.
        """

    @abstractmethod
    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn labels into what networks learn, in the units of training.

        Raises:
            DataError: a target has no label.
        """

    @abstractmethod
    def strata(self, encoded: NDArray[Any]) -> NDArray[np.int64] | None:
        """Name the class of every row; each class keeps at least one row in training."""

    @abstractmethod
    def check_learnable(self, encoded: NDArray[Any]) -> None:
        """Raise if the rows that are left for training say nothing of a target.

        Raises:
            DataError: they do; the message names the target.
        """

    def clip(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raise outputs of networks to what the targets can be."""
        return outputs

    @abstractmethod
    def output(self, target: Any) -> tuple[int, str, str]:
        """Find a target: number of the network's output, its name and its unit.

        Raises:
            SettingsError: there is no such target, or several and none is named.
        """

    @abstractmethod
    def texts(self) -> list[str]:
        """Names for people, with units."""

    @abstractmethod
    def to_plain(self) -> dict[str, Any]:
        """Write everything but ``columns`` as JSON-ready data."""

    @classmethod
    @abstractmethod
    def from_plain(cls, columns: list[Any], state: Mapping[str, Any]) -> Self:
        """Read what ``to_plain`` wrote.

        Raises:
            ModelFileError: it makes no sense.
        """


@dataclass(frozen=True, kw_only=True)
class NumberTargets(Targets):
    """Numbers, each with a transform and a unit.

    Attributes:
        columns: Names as pandas has them.
        transforms: Name of the transform of each target, None for none.
        units: Unit of each target, empty where not given.
        one_dimensional: True if ``y`` was, and predictions are, of shape ``(n,)``.
    """

    columns: list[Any]
    transforms: list[str | None]
    units: list[str]
    one_dimensional: bool

    @classmethod
    def describe(cls, y: Any, *, target_names: Any, transform: Any, units: Any) -> Self:
        """Describe the targets of ``y`` by an estimator's arguments.

        Raises:
            DataError: ``y`` is not a table.
            SettingsError: names, transforms or units do not fit its columns.
        """
        found = label_columns(y)
        columns = _column_names(found.names, len(found.columns), target_names)
        names = [str(column) for column in columns]
        return cls(
            columns=columns,
            transforms=choose_transforms(transform, names),
            units=[str(unit or "") for unit in one_per_target("units", units, names)],
            one_dimensional=found.one_dimensional,
        )

    @property
    def n_outputs(self) -> int:
        """One output a target."""
        return len(self.columns)

    @property
    def floors(self) -> NDArray[np.float64]:
        """Least values in training units, shape ``(n_targets,)``, ``-inf`` where there is none."""
        return np.array([get_transform(kind).floor for kind in self.transforms])

    def read(self, y: Any, crystals: CrystalRows, *, ignore_errors: bool) -> LabelRows:
        """Read numbers; ``ignore_errors`` leaves out those that a transform refuses."""
        return self._accept(read_numbers(y, crystals), crystals, ignore_errors=ignore_errors)

    def _accept(
        self, values: NDArray[np.float64], crystals: CrystalRows, *, ignore_errors: bool
    ) -> LabelRows:
        """Check that the transforms take the labels, shape ``(n_rows, n_targets)``."""
        errors: dict[int, str] = {}
        for target, name, refused, reason in self._refused(values):
            if not ignore_errors:
                first = int(np.flatnonzero(refused)[0])
                raise DataError(
                    f"{name} is {values[first, target]:g} at {crystals.row_name(first)}, but "
                    f"transform {reason}."
                )
            errors |= {
                int(position): f"{name} unfit for transform: {reason}"
                for position in np.flatnonzero(refused)
            }
            values[refused, target] = np.nan
        return LabelRows(values, np.asarray(~np.isnan(values).all(axis=1)), errors)

    def _refused(self, values: NDArray[np.float64]) -> list[tuple[int, str, NDArray[Any], str]]:
        """List the targets with labels that their transform refuses, with a mask of the rows."""
        found = []
        for target, (name, kind) in enumerate(zip(self.names, self.transforms, strict=True)):
            transform = get_transform(kind)
            refused = ~np.isnan(values[:, target]) & ~transform.accepts(values[:, target])
            if refused.any():
                found.append((target, name, refused, f"{kind} takes {transform.domain}"))
        return found

    def settled(self, values: NDArray[Any]) -> Self:
        """Check that every target has a label; warn where all are equal."""
        self.encode(values)
        for name, column in zip(self.names, values.T, strict=True):
            if np.nanmin(column) == np.nanmax(column):
                warn_user(
                    f"all labels of {name!r} are equal; the model will predict that value for "
                    "every crystal."
                )
        return self

    def match(self, y: Any, crystals: CrystalRows) -> LabelRows:
        """Read numbers of these targets that their transforms take."""
        return self._accept(self.match_numbers(y, crystals), crystals, ignore_errors=False)

    def match_numbers(self, y: Any, crystals: CrystalRows) -> NDArray[np.float64]:
        """Read numbers of these targets, in their order; columns are found by name if possible.

        Raises:
            DataError: there are more or fewer targets, or some have the names of others.
        """
        values = read_numbers(y, crystals)
        if values.shape[1] != self.n_outputs:
            raise DataError(
                f"y has {values.shape[1]} targets, the model predicts {self.n_outputs}."
            )
        theirs, ours = [str(name) for name in label_columns(y).names or []], self.names
        if set(theirs) == set(ours):
            values = values[:, [theirs.index(name) for name in ours]]
        elif len(ours) > 1 and set(theirs) & set(ours):
            raise DataError(
                f"y has the targets {', '.join(map(repr, theirs))}, the model predicts "
                f"{', '.join(map(repr, ours))}."
            )  # a nameless y, or one named otherwise, is taken in its order
        return values

    def encode(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Transform the labels, shape ``(n_rows, n_targets)``."""
        encoded = np.empty_like(values)
        for target, (name, kind) in enumerate(zip(self.names, self.transforms, strict=True)):
            if np.isnan(values[:, target]).all():
                raise DataError(f"the target {name!r} has no label at all.")
            encoded[:, target] = get_transform(kind).forward(values[:, target])
        return encoded

    def decode(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Undo the transforms, shape ``(n_rows, n_targets)``."""
        columns = [
            get_transform(kind).inverse(outputs[:, target])
            for target, kind in enumerate(self.transforms)
        ]
        return np.stack(columns, axis=1)

    def clip(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raise outputs below a floor to it."""
        return np.maximum(outputs, self.floors)

    def strata(self, encoded: NDArray[Any]) -> NDArray[np.int64] | None:
        """Take the rarest target of a row as its class, so that every target keeps a label."""
        counts = (~np.isnan(encoded)).sum(axis=0)
        if (counts == len(encoded)).all():
            return None
        strata = np.full(len(encoded), -1)
        for target in np.argsort(-counts):
            strata[~np.isnan(encoded[:, target])] = target
        return strata

    def check_learnable(self, encoded: NDArray[Any]) -> None:
        """Raise if a target has no label among the rows that are left for training."""
        without = np.isnan(encoded).all(axis=0)
        if without.any():
            raise DataError(
                f"the rows that are left to learn from have no label of "
                f"{self.names[int(without.argmax())]!r}; choose other groups or another "
                "seed, or set validation_fraction=0."
            )

    def output(self, target: Any) -> tuple[int, str, str]:
        """Find a target; with a transform, its name and unit are those of the transformed one."""
        names = self.names
        if target is None and len(names) > 1:
            raise SettingsError(f"name the target: {', '.join(map(repr, names))}.")
        if target is not None and target not in names:
            raise SettingsError(
                f"there is no target {target!r}; there are {', '.join(map(repr, names))}."
            )
        number = 0 if target is None else names.index(target)
        kind, unit = self.transforms[number], self.units[number]
        if kind is None:
            return number, names[number], unit
        if kind == "nonnegative":
            return number, f"{names[number]} (0 where negative)", unit
        return number, f"{kind}({names[number]}{f' / {unit}' if unit else ''})", ""

    def texts(self) -> list[str]:
        """Names with units."""
        pairs = zip(self.names, self.units, strict=True)
        return [name + (f" ({unit})" if unit else "") for name, unit in pairs]

    def to_plain(self) -> dict[str, Any]:
        """Write units, transforms and the dimension of ``y``."""
        return {
            "units": self.units,
            "transforms": self.transforms,
            "one_dimensional": self.one_dimensional,
        }

    @classmethod
    def from_plain(cls, columns: list[Any], state: Mapping[str, Any]) -> Self:
        """Read what ``to_plain`` wrote."""
        _refuse_unknown_keys(state, {"units", "transforms", "one_dimensional"})
        units, transforms = list(state["units"]), list(state["transforms"])
        if not len(units) == len(transforms) == len(columns):
            raise ModelFileError("the units or transforms are not those of the targets.")
        if any(kind is not None and kind not in TRANSFORMS for kind in transforms):
            raise ModelFileError(f"the model has an unknown transform: {transforms}.")
        return cls(
            columns=columns,
            transforms=transforms,
            units=units,
            one_dimensional=bool(state["one_dimensional"]),
        )


@dataclass(frozen=True, kw_only=True)
class ClassTargets(Targets):
    """One target with classes: texts, whole numbers or booleans.

    Attributes:
        columns: Its name, as pandas has it.
        classes: The classes, sorted; empty until ``settled``.
    """

    columns: list[Any]
    classes: NDArray[Any]

    @classmethod
    def describe(cls, y: Any, *, target_names: Any) -> Self:
        """Describe the target of ``y``.

        Raises:
            DataError: ``y`` is not one column.
            SettingsError: ``target_names`` holds several names.
        """
        name = class_column(y).name
        columns = ["class" if name is None else name]
        if target_names is not None:
            columns = [target_names] if isinstance(target_names, str) else list(target_names)
        if len(columns) != 1:
            raise SettingsError(f"target_names must hold one name, got {target_names!r}.")
        return cls(columns=columns, classes=np.array([]))

    @property
    def n_outputs(self) -> int:
        """One output a class."""
        return len(self.classes)

    def read(self, y: Any, crystals: CrystalRows, *, ignore_errors: bool) -> LabelRows:
        """Read classes; one of another kind is an error in any case."""
        return read_classes(y, crystals)

    def settled(self, values: NDArray[Any]) -> Self:
        """Find the classes.

        Raises:
            DataError: kinds of labels are mixed, or there is only one class.
        """
        kinds = {type(value).__name__ for value in values}
        if len(kinds) > 1:
            raise DataError(f"y mixes labels of the kinds {', '.join(sorted(kinds))}.")
        classes = np.unique(np.array(list(values)))
        if len(classes) < 2:
            raise DataError(
                f"all labels are {values[0]!r}; a classifier needs at least two classes."
            )
        return replace(self, classes=classes)

    def match(self, y: Any, crystals: CrystalRows) -> LabelRows:
        """Read classes that have to be among those known."""
        labels = read_classes(y, crystals)
        kind = type(self.classes.tolist()[0])
        for position in np.flatnonzero(labels.known):
            label = labels.values[position]
            # True equals 1, so the kind is looked at as well.
            if type(label) is not kind or label not in self.classes:
                raise DataError(
                    f"y holds {label!r} at {crystals.row_name(int(position))}; the "
                    f"model knows the classes {', '.join(map(repr, self.classes.tolist()))}."
                )
        return labels

    def encode(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Number the classes from 0, shape ``(n_rows,)``."""
        return np.searchsorted(self.classes, np.array(list(values))).astype(np.int64)

    def strata(self, encoded: NDArray[Any]) -> NDArray[np.int64] | None:
        """Keep every class in training."""
        strata: NDArray[np.int64] = encoded
        return strata

    def check_learnable(self, encoded: NDArray[Any]) -> None:
        """Do nothing: ``strata`` keeps every class in training."""

    def output(self, target: Any) -> tuple[int, str, str]:
        """Find a class; of two the second one if none is named."""
        if target is None and len(self.classes) == 2:
            target = self.classes[1]
        if target is None or target not in self.classes:
            raise SettingsError(
                f"target must be a class, one of {', '.join(map(repr, self.classes.tolist()))}; "
                f"got {target!r}."
            )
        return int(np.flatnonzero(self.classes == target)[0]), f"logit of {target}", ""

    def texts(self) -> list[str]:
        """Its name."""
        return self.names

    def to_plain(self) -> dict[str, Any]:
        """Write the classes."""
        return {"classes": self.classes.tolist()}

    @classmethod
    def from_plain(cls, columns: list[Any], state: Mapping[str, Any]) -> Self:
        """Read what ``to_plain`` wrote."""
        _refuse_unknown_keys(state, {"classes"})
        classes = np.array(state["classes"])
        if classes.ndim != 1 or len(columns) != 1:
            raise ModelFileError("the classes or the target are not a list.")
        return cls(columns=columns, classes=classes)


def _refuse_unknown_keys(state: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(state) - known):
        raise ModelFileError(f"the state of the model has unknown keys: {', '.join(unknown)}.")


def _column_names(found: list[Any] | None, n_targets: int, target_names: Any) -> list[Any]:
    """Name the targets: as given, as in ``y``, or by number."""
    default = ["target"] if n_targets == 1 else [f"target {i}" for i in range(n_targets)]
    columns = found or default
    if target_names is not None:
        columns = [target_names] if isinstance(target_names, str) else list(target_names)
        if len(columns) != n_targets:
            raise SettingsError(f"target_names has {len(columns)} names for {n_targets} targets.")
    names = [str(column) for column in columns]
    if len(set(names)) < len(names):
        raise SettingsError(f"two targets have one name: {', '.join(names)}.")
    return columns
