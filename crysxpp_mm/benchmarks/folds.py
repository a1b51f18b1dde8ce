"""Kinds of columns, scored fold by fold on every target; finished folds are found again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Structure

from crysxpp_mm.benchmarks.data import TARGETS, BenchmarkTable
from crysxpp_mm.benchmarks.pages import one_column_each, versions
from crysxpp_mm.benchmarks.runner import RunTable, key_of
from crysxpp_mm.benchmarks.simple_models import (
    FOLDS,
    INNER_FOLDS,
    N_TREES,
    SEED,
    TREE_COLUMNS,
    Candidate,
    cross_validate,
    regressor_settings,
)
from crysxpp_mm.benchmarks.statistics import REGRESSORS, mean_ratios, over_folds

if TYPE_CHECKING:
    from crysxpp_mm.models.crysae import CrysAE

MARGIN = 0.1
"""How far behind the best a candidate may be on the first part of the training folds."""
CALIBRATION_CRYSTALS = 500
"""Crystals that give a network with random weights the statistics of its batch norms."""
RANDOM = "random weights"
FOLD_COLUMNS = (
    *("target", "kind", "seed", "n_rows", "n_columns", "fold", "mae", "chosen", "settings"),
    *REGRESSORS,
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of columns.

    Attributes:
        name: Name in the tables; several seeds of one kind share it.
        what: Its columns in words, for the page.
        embed: Structures to columns, shape ``(n_structures, n_columns)``.
        seed: Seed of the weights, where they are random.
    """

    name: str
    what: str
    embed: Callable[[list[Structure]], NDArray[np.floating]]
    seed: int | None = None

    @property
    def label(self) -> str:
        """The name with the seed."""
        return self.name if self.seed is None else f"{self.name} {self.seed}"


def learned_columns(structures: list[Structure], **options: Any) -> NDArray[np.float32]:
    """Columns of ``CrysAEFeaturizer(**options)``, shape ``(n_structures, n_columns)``."""
    from crysxpp_mm.featurizers import CrysAEFeaturizer

    return CrysAEFeaturizer(device="cpu", **options).structure_embeddings(structures)


def random_columns(
    structures: list[Structure], *, like: CrysAE, seed: int, calibration: list[Structure]
) -> NDArray[np.float32]:
    """Default columns of an untrained network of the same shape as ``like``.

    Its batch norms get the statistics of ``calibration``; without them it would be no fair
    control.
    """
    network = type(like).random(seed=seed, converter=like.converter, **like.settings)
    network.calibrated(network.structure_graphs(calibration))
    return learned_columns(structures, model=network)


def first_rows(tables: Mapping[str, BenchmarkTable], rows: int | None) -> dict[str, BenchmarkTable]:
    """Cut the tables to their first rows; whole without a number."""
    return {
        name: replace(table, structures=table.structures[:rows], targets=table.targets[:rows])
        for name, table in tables.items()
    }


class Folds:
    """Errors fold by fold in a CSV file, kept as they come.

    Args:
        path: The file.
        candidates: Simple models to choose from.
        margin: As ``cross_validate`` takes it.
    """

    def __init__(
        self, path: Path, candidates: Sequence[Candidate], *, margin: float = MARGIN
    ) -> None:
        self.candidates = tuple(candidates)
        self.margin = margin
        self._table = RunTable(path, FOLD_COLUMNS)
        self._done: list[dict[str, Any]] = []

    def score(
        self, kind: Kind, tables: Mapping[str, BenchmarkTable], say: Callable[[str], None]
    ) -> None:
        """Score a kind of columns on every target of the tables."""
        columns = {name: kind.embed(table.structures) for name, table in tables.items()}
        for target in TARGETS:
            if target.table not in tables:
                continue
            values = tables[target.table].targets[target.name].to_numpy(dtype=np.float64)
            start = time.monotonic()
            errors = self._scores(kind, target.name, columns[target.table], values)
            say(
                f"{target.name}: {kind.label}: {np.mean(errors):.4g} +- {np.std(errors):.2g} "
                f"{target.unit}   ({time.monotonic() - start:.0f} s)"
            )

    def finish(self) -> pd.DataFrame:
        """All rows of this run; those of earlier ones leave the file."""
        self._table.write(self._done)
        return pd.DataFrame(self._done).astype({"seed": "Int64"})

    def _scores(
        self,
        kind: Kind,
        target: str,
        columns: NDArray[np.floating],
        values: NDArray[np.float64],
    ) -> list[float]:
        """Errors of the folds; computed only if the file has none of the same key."""
        key = self._key(columns, values)
        found = self._table.find(key)
        if len(found) != FOLDS:
            found = self._table.add(key, self._computed(kind, target, columns, values))
        names = {"target": target, "kind": kind.name, "seed": kind.seed}
        self._done += [{**row, **names} for row in found]
        return [row["mae"] for row in found]

    def _computed(
        self,
        kind: Kind,
        target: str,
        columns: NDArray[np.floating],
        values: NDArray[np.float64],
    ) -> Iterator[dict[str, Any]]:
        for score in cross_validate(
            columns, values, candidates=self.candidates, margin=self.margin
        ):
            yield {
                "target": target,
                "kind": kind.name,
                "seed": kind.seed,
                "n_rows": int((~np.isnan(values)).sum()),
                "n_columns": columns.shape[1],
                "fold": score.fold,
                "mae": score.mae,
                **regressor_settings(score.chosen),
                **{name: score.by_regressor.get(name, np.nan) for name in REGRESSORS},
            }

    def _key(self, columns: NDArray[np.floating], values: NDArray[np.float64]) -> str:
        """Hash all that the errors depend on: numbers, settings, versions."""
        settings = (
            [asdict(candidate) for candidate in self.candidates],
            (FOLDS, INNER_FOLDS, SEED, N_TREES, TREE_COLUMNS, self.margin),
            versions(),
        )
        return key_of(repr(settings), (columns, values), shapes=True)


def summarize(folds: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread of the errors, one row per target and kind, as ``over_folds`` gives them."""
    return over_folds(folds, {target.name: target.unit for target in TARGETS})


def table_with_ratios(summary: pd.DataFrame, ours: str) -> pd.DataFrame:
    """Errors as text, one column per kind, and below them as multiples of those of ``ours``."""
    table = one_column_each(
        summary,
        "kind",
        lambda group: {
            "target": group["target"].iloc[0],
            "unit": group["unit"].iloc[0],
            "rows": group["n_rows"].iloc[0],
        },
        index=["target"],
        form=".4g ± .2g",
    )
    ratios = mean_ratios(summary, ours)
    last = {kind: f"{ratios[kind]:.3f}" for kind in summary["kind"].unique()}
    return pd.concat([table, pd.DataFrame([{"target": f"mean ratio to {ours}", **last}])])
