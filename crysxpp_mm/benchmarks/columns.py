"""How much a simple model learns from columns: five folds, three regressors, two controls.

For every target and every kind of columns the better of a ridge regression, a support vector
regression (RBF kernel) and extremely randomized trees is chosen on the training folds only, and
scored on the fold that was left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Structure

from crysxpp_mm.benchmarks.data import TARGETS, BenchmarkTable, load_tables

Matrix = NDArray[np.float64]
Features = Mapping[str, NDArray[np.floating]]
"""Columns of each table by its name, shape ``(n_rows, n_columns)``."""

FOLDS = 5
INNER_FOLDS = 3
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One regressor with its settings.

    Attributes:
        regressor: ``"ridge"``, ``"svr"`` or ``"trees"``.
        alpha: Ridge: the penalty.
        cost: SVR: the penalty C, for a target of unit variance.
        gamma: SVR: width of the kernel, in units of one over the number of columns.
        epsilon: SVR: half width of the tube, in standard deviations of the target.
    """

    regressor: str
    alpha: float = 0.0
    cost: float = 0.0
    gamma: float = 0.0
    epsilon: float = 0.0


RIDGE = tuple(Candidate(regressor="ridge", alpha=10.0**k) for k in np.arange(-1, 5.1, 0.5))
SVR = tuple(
    Candidate(regressor="svr", cost=cost, gamma=gamma, epsilon=0.01)
    for gamma in (0.05, 0.1, 0.2, 0.4, 1.0)
    for cost in (1.0, 3.0, 10.0, 30.0)
)
TREES = (Candidate(regressor="trees"),)
ALL = RIDGE + SVR + TREES
QUICK = RIDGE[1::2] + tuple(c for c in SVR if c.cost in (3.0, 10.0) and c.gamma < 1.0)
N_TREES = 100
TREE_COLUMNS = 64  # columns tried at a split, or a third of them where that is fewer


def standardized(train: Matrix, *others: Matrix) -> list[Matrix]:
    """Scale columns to zero mean and unit variance of the training rows; constant ones to zero."""
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
    scale = np.where(constant, np.inf, deviation)
    return [(block - mean) / scale for block in (train, *others)]


def predictions(
    candidates: Sequence[Candidate],
    train: Matrix,
    target: Matrix,
    test: Matrix,
    *,
    seed: int = SEED,
) -> Matrix:
    """Fit every candidate on the same rows and predict others.

    Args:
        candidates: What to fit.
        train: Columns of the training rows, shape ``(n_train, n_columns)``.
        target: Shape ``(n_train,)``.
        test: Columns of the rows to predict, shape ``(n_test, n_columns)``.
        seed: Seed of the trees.

    Returns:
        Shape ``(n_candidates, n_test)``, in the target's unit.
    """
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.linear_model import Ridge
    from sklearn.svm import SVR as SupportVectorRegression

    x, x_test = standardized(train, test)
    center, spread = target.mean(), target.std() or 1.0
    y = (target - center) / spread
    n_columns = x.shape[1]
    squares: tuple[Matrix, Matrix] | None = None
    kernels: dict[float, tuple[Matrix, Matrix]] = {}
    result = np.empty((len(candidates), len(test)))
    for row, candidate in enumerate(candidates):
        if candidate.regressor == "ridge":
            ridge = Ridge(alpha=candidate.alpha, solver="cholesky").fit(x, y)
            result[row] = ridge.predict(x_test)
        elif candidate.regressor == "svr":
            if squares is None:
                squares = _squared_distances(x, x), _squared_distances(x_test, x)
            if candidate.gamma not in kernels:
                kernels = {  # one width at a time: they are large
                    candidate.gamma: (
                        np.exp(squares[0] * (-candidate.gamma / n_columns)),
                        np.exp(squares[1] * (-candidate.gamma / n_columns)),
                    )
                }
            kernel, kernel_test = kernels[candidate.gamma]
            machine = SupportVectorRegression(
                kernel="precomputed", C=candidate.cost, epsilon=candidate.epsilon
            ).fit(kernel, y)
            result[row] = machine.predict(kernel_test)
        else:
            trees = ExtraTreesRegressor(
                n_estimators=N_TREES,
                max_features=max(1, min(TREE_COLUMNS, n_columns // 3)),
                min_samples_leaf=1,
                random_state=seed,
                n_jobs=1,
            ).fit(train, y)
            result[row] = trees.predict(test)
    return result * spread + center


def _squared_distances(rows: Matrix, others: Matrix) -> Matrix:
    squares = (rows**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2.0 * rows @ others.T
    return np.maximum(squares, 0.0)


def split(n_rows: int, n_folds: int, seed: int) -> Iterator[tuple[NDArray, NDArray]]:
    """Shuffled folds: pairs of the positions to train on and the positions to test on."""
    from sklearn.model_selection import KFold

    yield from KFold(n_folds, shuffle=True, random_state=seed).split(np.empty(n_rows))


@dataclass(frozen=True, kw_only=True)
class FoldScore:
    """Errors of one fold.

    Attributes:
        fold: Number of the fold, from 0.
        mae: Mean absolute error of the candidate that the training folds chose.
        chosen: That candidate.
        by_regressor: Error of each regressor with its settings chosen on the training folds.
    """

    fold: int
    mae: float
    chosen: Candidate
    by_regressor: dict[str, float]


def cross_validate(
    columns: NDArray[np.floating],
    target: NDArray[np.floating],
    *,
    candidates: Sequence[Candidate] = ALL,
    seed: int = SEED,
) -> list[FoldScore]:
    """Errors over five folds, with regressor and settings chosen within the training folds.

    Args:
        columns: Shape ``(n_rows, n_columns)``.
        target: Shape ``(n_rows,)``; rows with NaN are left out.
        candidates: What to choose from.
        seed: Seed of the folds and of the trees.

    Returns:
        One score a fold.
    """
    known = ~np.isnan(target)
    x = np.asarray(columns, dtype=np.float64)[known]
    y = np.asarray(target, dtype=np.float64)[known]
    scores = []
    for fold, (train, test) in enumerate(split(len(y), FOLDS, seed)):
        inner = np.zeros(len(candidates))
        for part, rest in split(len(train), INNER_FOLDS, seed + 1):
            guesses = predictions(
                candidates, x[train[part]], y[train[part]], x[train[rest]], seed=seed
            )
            inner += np.abs(guesses - y[train[rest]]).mean(axis=1)
        regressors = list(dict.fromkeys(c.regressor for c in candidates))
        best = {
            name: min(
                (i for i, c in enumerate(candidates) if c.regressor == name),
                key=lambda i: float(inner[i]),
            )
            for name in regressors
        }
        guesses = predictions(
            [candidates[i] for i in best.values()], x[train], y[train], x[test], seed=seed
        )
        errors = dict(zip(best, np.abs(guesses - y[test]).mean(axis=1).tolist(), strict=True))
        chosen = min(best, key=lambda name: float(inner[best[name]]))
        scores.append(
            FoldScore(
                fold=fold,
                mae=errors[chosen],
                chosen=candidates[best[chosen]],
                by_regressor=errors,
            )
        )
    return scores


def quick_table(features: Features, targets: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A fast comparison of columns: ridge or SVR, a small grid, the same five folds.

    Args:
        features: Columns of each table by its name; tables without columns are left out.
        targets: Targets of each table by its name.

    Returns:
        One row a target: ``mae`` with its ``std`` over the folds, the regressors' own errors, and
        how often each was chosen.
    """
    rows = []
    for target in TARGETS:
        if target.table not in features or target.table not in targets:
            continue
        scores = cross_validate(
            features[target.table],
            targets[target.table][target.name].to_numpy(dtype=np.float64),
            candidates=QUICK,
        )
        rows.append(
            {
                "target": target.name,
                "mae": np.mean([s.mae for s in scores]),
                "std": np.std([s.mae for s in scores]),
                "ridge": np.mean([s.by_regressor["ridge"] for s in scores]),
                "svr": np.mean([s.by_regressor["svr"] for s in scores]),
                "svr_chosen": sum(s.chosen.regressor == "svr" for s in scores),
            }
        )
    return pd.DataFrame(rows).set_index("target")


def quick_score(
    embed: Callable[[list[Structure]], NDArray[np.floating]],
    root: str | Path | None = None,
    *,
    tables: Mapping[str, BenchmarkTable] | None = None,
) -> pd.DataFrame:
    """Score a function that makes columns of structures; about a minute.

    Args:
        embed: Structures to columns, shape ``(n_structures, n_columns)``.
        root: The data root.
        tables: Tables that are loaded already, in place of ``root``.

    Returns:
        See :func:`quick_table`.
    """
    loaded = load_tables(root) if tables is None else tables
    features = {name: embed(table.structures) for name, table in loaded.items()}
    return quick_table(features, {name: table.targets for name, table in loaded.items()})
