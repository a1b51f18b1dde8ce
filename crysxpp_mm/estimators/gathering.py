"""Gather what can be learned from: rows with a crystal and a label."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.estimators.crystals import CrystalRows, read_crystals
from crysxpp_mm.estimators.labels import LabelRows
from crysxpp_mm.estimators.splits import group_codes
from crysxpp_mm.estimators.targets import Targets
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.notices import warn_user


class LearningInput(NamedTuple):
    """Arguments of ``fit`` or ``fine_tune``."""

    X: Any
    y: Any
    groups: Any = None
    validation: tuple[Any, Any] | None = None
    ignore_errors: bool = False  # leave bad rows out instead of raising


class Gathered(NamedTuple):
    """Crystals and labels to learn from; rows without a crystal or a label are left out."""

    graphs: CrystalGraphs  # of X, then those of validation
    encoded: NDArray[Any]  # what is learned of the same rows, in the units of training
    n_rows: int  # of X
    groups: NDArray[np.int64] | None  # of the rows of X
    left_out: pd.DataFrame  # columns row, reason
    targets: Targets
    names: list[Any]  # of the rows of X: of their store, index labels, else positions


def gather(
    given: LearningInput,
    converter: CrystalGraphConverter,
    targets: Targets,
    *,
    anew: bool,
) -> Gathered:
    """Gather the crystals and labels that can be learned from, and those of validation.

    Args:
        given: What the user handed in.
        converter: The graph rule of the model.
        targets: Meaning of the labels.
        anew: True for a first fit, whose labels complete that meaning; later ones have to agree.

    Raises:
        SettingsError: both groups and validation are given, or validation is not a pair.
        DataError: the labels are unusable; the message says which and why.
        StructureTypeError, UnknownElementError, StructureError: a crystal has no graph; the
            message names the row.
    """
    crystals = read_crystals(given.X, converter)
    if not given.ignore_errors:
        crystals.refuse_errors()
    if given.validation is not None and given.groups is not None:
        raise SettingsError("give groups or validation, not both.")
    if anew:
        labels = targets.read(given.y, crystals, ignore_errors=given.ignore_errors)
    else:
        labels = targets.match(given.y, crystals)
    used, left_out = _choose_rows(crystals, labels)
    graphs = crystals.graphs.select(np.flatnonzero(np.isin(crystals.rows, used)))
    values = labels.values[used]
    if anew:
        targets = targets.settled(values)
    if given.validation is not None:
        more_graphs, more_values = _read_validation(given.validation, converter, targets)
        graphs = CrystalGraphs.concatenate([graphs, more_graphs])
        values = np.concatenate([values, more_values])
    codes = None if given.groups is None else group_codes(given.groups, crystals, used)
    names = [crystals.name(row) for row in used.tolist()]
    return Gathered(graphs, targets.encode(values), len(used), codes, left_out, targets, names)


def _choose_rows(
    crystals: CrystalRows, labels: LabelRows
) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """Choose the rows to learn from, and list the others with the reason."""
    reasons = {row: f"{type(error).__name__}: {error}" for row, error in crystals.errors.items()}
    for row in np.flatnonzero(~labels.known).tolist():
        reasons.setdefault(row, labels.errors.get(row, "no label"))
    used = np.setdiff1d(np.arange(crystals.n_rows), list(reasons)).astype(np.int64)
    order = sorted(reasons)
    table = pd.DataFrame(
        {"row": [crystals.label(row) for row in order], "reason": [reasons[row] for row in order]}
    )
    if len(used) < 2:
        raise DataError(
            f"learning needs at least 2 rows with a crystal and a label, got {len(used)} of "
            f"{crystals.n_rows}."
        )
    if reasons:
        counts = Counter(reason.split(":")[0] for reason in reasons.values())
        summary = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        warn_user(
            f"{len(reasons)} of {crystals.n_rows} rows are left out ({summary}); left_out_ "
            "lists them."
        )
    return used, table


def _read_validation(
    validation: Any, converter: CrystalGraphConverter, targets: Targets
) -> tuple[CrystalGraphs, NDArray[Any]]:
    """Read graphs and labels of those validation rows that have a label."""
    if not isinstance(validation, tuple) or len(validation) != 2:
        raise SettingsError("validation must be a tuple of crystals and labels.")
    crystals = read_crystals(validation[0], converter)
    crystals.refuse_errors()
    try:
        labels = targets.match(validation[1], crystals)
    except DataError as error:
        raise DataError(f"validation: {error}") from error
    if not labels.known.any():
        raise DataError("no row of validation has a label.")
    known = labels.known
    return crystals.graphs.select(np.flatnonzero(known)), labels.values[known]
