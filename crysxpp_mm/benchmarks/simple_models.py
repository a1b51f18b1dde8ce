"""Simple models on columns, chosen by cross-validation, and the columns of the control."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crysxpp_mm.errors import DataError

if TYPE_CHECKING:
    from matminer.featurizers.composition import ElementProperty
    from pymatgen.core import Composition

Matrix = NDArray[np.float64]

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
    from sklearn import svm
    from sklearn.ensemble import ExtraTreesRegressor

    x, x_test = standardized(train, test)
    center, spread = target.mean(), target.std() or 1.0
    y = (target - center) / spread
    n_columns = x.shape[1]
    squares: tuple[Matrix, Matrix] | None = None
    kernels: dict[float, tuple[Matrix, Matrix]] = {}
    result = np.empty((len(candidates), len(test)))
    ridges = [row for row, candidate in enumerate(candidates) if candidate.regressor == "ridge"]
    result[ridges] = _ridge_predictions([candidates[row].alpha for row in ridges], x, y, x_test)
    for row, candidate in enumerate(candidates):
        if candidate.regressor == "ridge":
            continue
        if candidate.regressor == "svr":
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
            machine = svm.SVR(
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
    guesses: Matrix = result * spread + center
    return guesses


def _ridge_predictions(alphas: Sequence[float], x: Matrix, y: Matrix, x_test: Matrix) -> Matrix:
    """Ridge regressions of all penalties out of one decomposition, ``(n_alphas, n_test)``.

    The columns and the target have zero mean, so there is no intercept.
    """
    if not len(alphas):
        return np.empty((0, len(x_test)))
    wide = x.shape[1] > len(x)
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    basis = x.T @ vectors if wide else vectors  # (n_columns, n_values)
    along = vectors.T @ (y if wide else x.T @ y)
    shrunk = along / (np.maximum(values, 0.0) + np.asarray(alphas)[:, None])
    guesses: Matrix = shrunk @ (x_test @ basis).T
    return guesses


def _squared_distances(rows: Matrix, others: Matrix) -> Matrix:
    squares: Matrix = (
        (rows**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2.0 * rows @ others.T
    )
    return np.maximum(squares, 0.0, out=squares)


def split(
    n_rows: int, n_folds: int, seed: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
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
        by_regressor: Error of each regressor with its settings chosen on the training folds;
            those that were dropped early are absent.
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
    margin: float = np.inf,
) -> list[FoldScore]:
    """Errors over five folds, with regressor and settings chosen within the training folds.

    Args:
        columns: Shape ``(n_rows, n_columns)``.
        target: Shape ``(n_rows,)``; rows with NaN are left out.
        candidates: What to choose from.
        seed: Seed of the folds and of the trees.
        margin: Candidates whose error on the first part of the training folds exceeds the best
            one's by more than this share are dropped, to save time.

    Returns:
        One score a fold.

    Raises:
        DataError: Columns and target have different numbers of rows, columns are not finite, or
            too few rows are known.
    """
    x, y = known_rows(columns, target)
    scores = []
    for fold, (train, test) in enumerate(split(len(y), FOLDS, seed)):
        inner = _inner_errors(x[train], y[train], candidates, seed=seed, margin=margin)
        best: dict[str, int] = {}
        for index, candidate in enumerate(candidates):
            before = best.get(candidate.regressor)
            if np.isfinite(inner[index]) and (before is None or inner[index] < inner[before]):
                best[candidate.regressor] = index
        guesses = predictions(
            [candidates[index] for index in best.values()], x[train], y[train], x[test], seed=seed
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


def known_rows(
    columns: NDArray[np.floating], target: NDArray[np.floating]
) -> tuple[Matrix, NDArray[np.float64]]:
    """The rows whose target is known.

    Raises:
        DataError: Columns and target have different numbers of rows, columns are not finite, or
            too few rows are known.
    """
    if len(columns) != len(target):
        raise DataError(f"there are {len(columns)} rows of columns and {len(target)} targets.")
    known = ~np.isnan(target)
    x = np.asarray(columns, dtype=np.float64)[known]
    y = np.asarray(target, dtype=np.float64)[known]
    if len(y) < FOLDS * INNER_FOLDS:
        raise DataError(
            f"{len(y)} rows have a target; {FOLDS} folds need at least {FOLDS * INNER_FOLDS}."
        )
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise DataError(f"the columns of known row {row} are NaN or infinite; leave the row out.")
    return x, y


def _inner_errors(
    x: Matrix,
    y: NDArray[np.float64],
    candidates: Sequence[Candidate],
    *,
    seed: int,
    margin: float,
) -> NDArray[np.float64]:
    """Mean error of each candidate within the training folds; infinite for those dropped."""
    errors = np.zeros(len(candidates))
    left = np.arange(len(candidates))
    for number, (part, rest) in enumerate(split(len(y), INNER_FOLDS, seed + 1)):
        guesses = predictions(
            [candidates[int(i)] for i in left], x[part], y[part], x[rest], seed=seed
        )
        errors[left] += np.abs(guesses - y[rest]).mean(axis=1) / INNER_FOLDS
        if number == 0:
            close = errors[left] <= (1 + margin) * errors[left].min()
            errors[left[~close]] = np.inf
            left = left[close]
    return errors


def regressor_settings(candidate: Candidate) -> dict[str, str]:
    """The regressor and its settings, as text."""
    settings = {
        "ridge": f"alpha={candidate.alpha:.3g}",
        "svr": f"C={candidate.cost:g} gamma={candidate.gamma:g}/columns",
        "trees": f"{N_TREES} trees",
    }
    return {"chosen": candidate.regressor, "settings": settings[candidate.regressor]}


def candidates_in_words(candidates: Sequence[Candidate]) -> str:
    """The candidates in words."""
    parts = []
    if alphas := _values(candidates, "ridge", "alpha"):
        parts.append(f"ridge (alpha {alphas[0]:g} to {alphas[-1]:g}, {len(alphas)} values)")
    if costs := _values(candidates, "svr", "cost"):
        shown = ", ".join(f"{cost:g}" for cost in costs)
        widths = ", ".join(f"{gamma:g}" for gamma in _values(candidates, "svr", "gamma"))
        parts.append(f"SVR with an RBF kernel (C {shown}; gamma {widths} over the columns)")
    if _values(candidates, "trees", "regressor"):
        parts.append(f"extra trees ({N_TREES})")
    return ", ".join(parts)


def _values(candidates: Sequence[Candidate], regressor: str, setting: str) -> list[Any]:
    """Values of a setting among the candidates of a kind, sorted."""
    return sorted({getattr(c, setting) for c in candidates if c.regressor == regressor})


def one_blas_thread() -> Any:
    """A context in which numpy and scikit-learn compute with one thread."""
    # It comes with scikit-learn, without types.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(limits=1)


def magpie_featurizer() -> ElementProperty:
    """Matminer's Magpie features of compositions, made in this process."""
    from matminer.featurizers.composition import ElementProperty

    magpie = ElementProperty.from_preset("magpie")
    magpie.set_n_jobs(1)
    return magpie


def magpie_columns(compositions: Iterable[Composition]) -> Matrix:
    """Magpie features, shape ``(n_compositions, 132)``."""
    return np.array(
        magpie_featurizer().featurize_many(list(compositions), pbar=False), dtype=np.float64
    )
