"""How much a simple model learns from columns: five folds, three regressors, two controls.

For every target and every kind of columns the better of a ridge regression, a support vector
regression (RBF kernel) and extremely randomized trees is chosen on the training folds only, and
scored on the fold that was left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Structure

from crysxpp_mm.benchmarks.data import (
    EXTRA_TARGETS,
    MP_CRYSTALS,
    MP_SEED,
    TARGETS,
    BenchmarkTable,
    data_root,
    load_tables,
)
from crysxpp_mm.benchmarks.report import (
    RESULTS,
    markdown_table,
    model_name,
    versions,
    write_report,
)
from crysxpp_mm.benchmarks.runs import read_runs, write_runs
from crysxpp_mm.errors import DataError, SettingsError

if TYPE_CHECKING:
    from crysxpp_mm.models.crysae import CrysAE

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
MARGIN = 0.1
"""How far behind the best a candidate may be on the first part of the training folds."""
RANDOM_SEEDS = (0, 1, 2)
"""Seeds of the networks with random weights."""
CALIBRATION_CRYSTALS = 500
"""Crystals that give a network with random weights the statistics of its batch norms."""
RANDOM, MAGPIE = "random weights", "Magpie"
CONTROLS = (RANDOM, MAGPIE)
"""The controls that the columns have to beat."""
COMMAND = "crysxpp benchmark columns"


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


# The whole benchmark.


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of columns.

    Attributes:
        name: Name in the tables; several seeds of one kind share it.
        what: What the columns are, for the page.
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


def magpie_columns(structures: list[Structure]) -> NDArray[np.float64]:
    """Magpie features (matminer) of the compositions, shape ``(n_structures, 132)``."""
    from matminer.featurizers.composition import ElementProperty

    magpie = ElementProperty.from_preset("magpie")
    magpie.set_n_jobs(1)
    rows = magpie.featurize_many([structure.composition for structure in structures], pbar=False)
    return np.array(rows, dtype=np.float64)


def learned_columns(structures: list[Structure], **options: Any) -> NDArray[np.float32]:
    """Columns of ``CrysAEFeaturizer(**options)``, shape ``(n_structures, n_columns)``."""
    from crysxpp_mm.featurizers import CrysAEFeaturizer

    return CrysAEFeaturizer(device="cpu", **options).structure_embeddings(structures)


def random_columns(
    structures: list[Structure], *, like: CrysAE, seed: int, calibration: list[Structure]
) -> NDArray[np.float32]:
    """The default columns of an untrained network of the same shape as ``like``.

    Its batch norms get the statistics of ``calibration``; without them it would be no fair
    control.
    """
    network = type(like).random(seed=seed, converter=like.converter, **like.settings)
    network.calibrated(network.structure_graphs(calibration))
    return learned_columns(structures, model=network)


def column_kinds(
    root: Path,
    models: Sequence[str | os.PathLike[str]],
    seeds: Sequence[int],
    calibration: list[Structure],
) -> list[Kind]:
    """The kinds of columns that are compared: the models, then the controls.

    Raises:
        SettingsError: No model is given, or two are called alike.
        UnknownModelError: There is no model of a name.
        DataError: The authors' weights are missing from the data root.
    """
    from crysxpp_mm.model_zoo import load_model
    from crysxpp_mm.models.crysae import CrysAE

    names = [model_name(model) for model in models]
    if not names or len(set(names)) < len(names):
        raise SettingsError(
            "models must name at least one model, and none twice, got "
            f"{', '.join(names) or 'none'}."
        )
    released_file = root / "released_crysae_weights.npz"
    if not released_file.is_file():
        raise DataError(f"{released_file} is missing; put it there, nothing is downloaded.")
    like = load_model(models[0])
    released = CrysAE.from_released(released_file)
    return [
        *(
            Kind(
                name=model_name(model),
                what="the default columns of that model",
                embed=partial(learned_columns, model=model),
            )
            for model in models
        ),
        *(
            Kind(
                name=RANDOM,
                what=(
                    f"the default columns of the network of {model_name(models[0])} with random "
                    f"weights (batch norms calibrated on {len(calibration)} crystals), mean of "
                    f"the seeds {', '.join(map(str, seeds))}"
                ),
                embed=partial(random_columns, like=like, seed=seed, calibration=calibration),
                seed=seed,
            )
            for seed in seeds
        ),
        Kind(
            name=MAGPIE,
            what="matminer's ElementProperty.from_preset('magpie') of the composition",
            embed=magpie_columns,
        ),
        Kind(
            name="released, all layers",
            what="the weights that the authors of CrysXPP released, read out as ours are",
            embed=partial(learned_columns, model=released),
        ),
        Kind(
            name="released, last layer",
            what="the same weights, mean of the last layer, as published",
            embed=partial(learned_columns, model=released, layers=(-1,), moments=("mean",)),
        ),
    ]


def run_columns(
    root: str | Path | None = None,
    *,
    out: str | Path = RESULTS,
    models: Sequence[str | os.PathLike[str]] | None = None,
    say: Callable[[str], None] = print,
    seeds: Sequence[int] = RANDOM_SEEDS,
    candidates: Sequence[Candidate] = ALL,
    rows: int | None = None,
) -> pd.DataFrame:
    """Compare kinds of columns and write the tables; some twenty minutes.

    Writes ``columns.csv`` and ``columns.md``, ``columns_differences.csv`` and
    ``columns_folds.csv``, and what :func:`run_choice` writes. A run that was stopped goes on:
    rows of ``columns_folds.csv`` that were made of the same numbers with the same settings and
    versions are not computed again.

    Args:
        root: The data root, as for ``crysxpp_mm.benchmarks.data.data_root``.
        out: The folder of the results.
        models: Names or paths of models, the one that is compared with the controls first; the
            shipped ones without it.
        say: Where the lines of text go.
        seeds: Seeds of the networks with random weights.
        candidates: Regressors to choose from, the same for every kind of columns.
        rows: Only the first rows of every table, for a quick try; all for results that count.

    Returns:
        One row a target and kind of columns, as in ``columns.csv``.

    Raises:
        DataError: The data are missing.
        SettingsError: No model, no seed or no candidate is given.
        UnknownModelError: There is no model of a name.
    """
    for name, given in (("seeds", seeds), ("candidates", candidates)):
        if not given:
            raise SettingsError(f"{name} must not be empty.")
    started = time.monotonic()
    chosen = shipped_models() if models is None else list(models)
    tables = first_rows(load_tables(root), rows)
    calibration = tables["mp2000"].structures[:CALIBRATION_CRYSTALS]
    kinds = column_kinds(data_root(root), chosen, seeds, calibration)
    cache = FoldCache(Path(out) / "columns_folds.csv", candidates)
    with one_blas_thread():
        for kind in kinds:
            score_kind(kind, tables, cache, say)
    folds = cache.finish()
    summary = summarize(folds)
    differences = compare(folds, ours=kinds[0].name, controls=CONTROLS)
    minutes = (time.monotonic() - started) / 60
    write_report(
        out,
        "columns",
        tables={"columns": summary, "columns_differences": differences},
        text=_page(summary, differences, kinds, tables, candidates),
    )
    say(f"columns: {minutes:.1f} minutes; written to {out}")
    run_choice(root, out=out, model=chosen[0], say=say, tables=tables)
    return summary


def shipped_models() -> list[str]:
    """The names of the shipped autoencoders, the default one first."""
    from crysxpp_mm.model_zoo import DEFAULT_MODEL, list_models

    models = list_models()
    names = models["name"][models["kind"] == "CrysAE"]
    return sorted(names, key=lambda name: (name != DEFAULT_MODEL, name))


def first_rows(tables: Mapping[str, BenchmarkTable], rows: int | None) -> dict[str, BenchmarkTable]:
    """The tables with their first rows only; whole without a number."""
    return {
        name: BenchmarkTable(
            name=name,
            structures=table.structures[:rows],
            targets=table.targets[:rows],
            notes=table.notes,
        )
        for name, table in tables.items()
    }


def score_kind(
    kind: Kind,
    tables: Mapping[str, BenchmarkTable],
    cache: FoldCache,
    say: Callable[[str], None],
) -> None:
    """Score a kind of columns on every target, through the cache."""
    columns = {name: kind.embed(table.structures) for name, table in tables.items()}
    for target in TARGETS:
        if target.table not in tables:
            continue
        values = tables[target.table].targets[target.name].to_numpy(dtype=np.float64)
        start = time.monotonic()
        folds = cache.scores(kind, target.name, columns[target.table], values)
        say(
            f"{target.name}: {kind.label}: {folds['mae'].mean():.4g} "
            f"+- {folds['mae'].std(ddof=0):.2g} {target.unit}"
            f"   ({time.monotonic() - start:.0f} s)"
        )


class FoldCache:
    """Errors fold by fold in a CSV file, kept as they come."""

    def __init__(
        self, path: Path, candidates: Sequence[Candidate], *, margin: float = MARGIN
    ) -> None:
        self.path = path
        self.candidates = tuple(candidates)
        self.margin = margin
        self.before = _frame(read_runs(path, _FOLD_COLUMNS))
        self.done: list[dict[str, Any]] = []

    def scores(
        self,
        kind: Kind,
        target: str,
        columns: NDArray[np.floating],
        values: NDArray[np.float64],
    ) -> pd.DataFrame:
        """One row a fold; computed only if the file has none of the same key."""
        key = self._key(columns, values)
        folds = self.before[self.before["key"] == key]
        if len(folds) == FOLDS:
            folds = folds.assign(kind=kind.name, seed=kind.seed, target=target)
        else:
            found = cross_validate(columns, values, candidates=self.candidates, margin=self.margin)
            folds = pd.DataFrame(
                [
                    {
                        "target": target,
                        "kind": kind.name,
                        "seed": kind.seed,
                        "n_rows": int((~np.isnan(values)).sum()),
                        "n_columns": columns.shape[1],
                        "fold": score.fold,
                        "mae": score.mae,
                        **regressor_settings(score.chosen),
                        **{name: score.by_regressor.get(name, np.nan) for name in _REGRESSORS},
                        "key": key,
                    }
                    for score in found
                ]
            )
        self.done += _records(folds)
        keys = {row["key"] for row in self.done}
        kept = [row for row in _records(self.before) if row["key"] not in keys]
        write_runs(self.path, _records(_frame(self.done + kept)))
        return folds

    def finish(self) -> pd.DataFrame:
        """All rows of this run; those of earlier ones leave the file."""
        folds = _frame(self.done)
        write_runs(self.path, _records(folds))
        return folds

    def _key(self, columns: NDArray[np.floating], values: NDArray[np.float64]) -> str:
        """A hash of all that the errors depend on: numbers, settings, versions."""
        total = sha256()
        settings = (
            [asdict(candidate) for candidate in self.candidates],
            (FOLDS, INNER_FOLDS, SEED, N_TREES, TREE_COLUMNS, self.margin),
            versions(),
        )
        total.update(repr(settings).encode())
        for array in (columns, values):
            total.update(f"{array.dtype}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()[:16]


_REGRESSORS = ("ridge", "svr", "trees")
_FOLD_COLUMNS = [
    *("target", "kind", "seed", "n_rows", "n_columns", "fold", "mae", "chosen", "settings"),
    *_REGRESSORS,
    "key",
]


def _records(folds: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): row[name] for name in _FOLD_COLUMNS} for row in folds.to_dict("records")]


def _frame(records: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(records, columns=_FOLD_COLUMNS).astype({"seed": "Int64"})


def regressor_settings(candidate: Candidate) -> dict[str, str]:
    """The regressor and its settings, as text."""
    settings = {
        "ridge": f"alpha={candidate.alpha:.3g}",
        "svr": f"C={candidate.cost:g} gamma={candidate.gamma:g}/columns",
        "trees": f"{N_TREES} trees",
    }
    return {"chosen": candidate.regressor, "settings": settings[candidate.regressor]}


def one_blas_thread() -> Any:
    """A context in which numpy and scikit-learn compute with one thread."""
    # It comes with scikit-learn, without types.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(limits=1)


def _mean_over_seeds(folds: pd.DataFrame) -> pd.DataFrame:
    """Error of each target, kind and fold; the mean where a kind has several seeds."""
    return folds.groupby(["target", "kind", "fold"], sort=False)["mae"].mean().reset_index()


def summarize(folds: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread of the errors.

    Args:
        folds: One row a target, kind, seed and fold.

    Returns:
        One row a target and kind: ``mae``, its standard deviation ``std`` over the folds (of the
        means over the seeds) and ``std_seeds`` over the seeds (of the means over the folds), the
        regressors' own errors where they were in all folds, and how often each was chosen.
    """
    units = {target.name: target.unit for target in TARGETS}
    rows = []
    for (target, kind), group in folds.groupby(["target", "kind"], sort=False):
        by_fold = group.groupby("fold")["mae"].mean()
        by_seed = group.groupby("seed")["mae"].mean()
        counts = group["chosen"].value_counts()
        rows.append(
            {
                "target": target,
                "unit": units.get(str(target), ""),
                "n_rows": int(group["n_rows"].iloc[0]),
                "kind": kind,
                "n_columns": int(group["n_columns"].iloc[0]),
                "mae": by_fold.mean(),
                "std": by_fold.std(ddof=0),
                "std_seeds": by_seed.std(ddof=0) if len(by_seed) > 1 else np.nan,
                **{name: group[name].mean(skipna=False) for name in _REGRESSORS},
                "chosen": ", ".join(f"{name} {count}" for name, count in counts.items()),
            }
        )
    return pd.DataFrame(rows)


def compare(folds: pd.DataFrame, *, ours: str, controls: Sequence[str]) -> pd.DataFrame:
    """Differences of the errors fold by fold, ours minus the control's.

    The folds share their training rows, so the standard error of the mean difference is that of
    Nadeau and Bengio (Machine Learning 52, 239 (2003)): the variance over the folds times
    ``1 / n_folds + n_test / n_train``.

    Args:
        folds: One row a target, kind, seed and fold.
        ours: The kind that is compared.
        controls: The kinds that it is compared with; seeds are averaged first.

    Returns:
        One row a target and control: ``difference``, its standard deviation ``std`` over the
        folds, ``standard_error``, ``folds_better``, and ``verdict``: "better" or "worse" where
        the mean difference exceeds its standard error, else "equal".
    """
    means = _mean_over_seeds(folds)
    rows = []
    for target in means["target"].unique():
        wide = means[means["target"] == target].pivot(index="fold", columns="kind", values="mae")
        for control in controls:
            difference = (wide[ours] - wide[control]).to_numpy()
            mean, spread = difference.mean(), difference.std(ddof=1)
            error = spread * np.sqrt(1 / len(difference) + 1 / (len(difference) - 1))
            rows.append(
                {
                    "target": target,
                    "control": control,
                    "ours": wide[ours].mean(),
                    "theirs": wide[control].mean(),
                    "difference": mean,
                    "std": difference.std(ddof=0),
                    "standard_error": error,
                    "folds_better": int((difference < 0).sum()),
                    "verdict": "equal"
                    if abs(mean) <= error
                    else ("better" if mean < 0 else "worse"),
                }
            )
    return pd.DataFrame(rows)


def wide_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Error and spread as text, one row a target, one column a kind; the least error in bold."""
    rows = []
    for target, group in summary.groupby("target", sort=False):
        row = {"target": target, "unit": group["unit"].iloc[0], "rows": group["n_rows"].iloc[0]}
        for _, item in group.iterrows():
            text = f"{item['mae']:.4g} ± {item['std']:.2g}"
            row[item["kind"]] = f"**{text}**" if item["mae"] == group["mae"].min() else text
        rows.append(row)
    return pd.DataFrame(rows)


def _page(
    summary: pd.DataFrame,
    differences: pd.DataFrame,
    kinds: Sequence[Kind],
    tables: Mapping[str, BenchmarkTable],
    candidates: Sequence[Candidate],
) -> str:
    """The page of the benchmark."""
    names = dict.fromkeys(kind.name for kind in kinds)
    what = {kind.name: kind.what for kind in kinds}
    widths = summary.drop_duplicates("kind").set_index("kind")["n_columns"]
    claims = differences[~differences["target"].isin(EXTRA_TARGETS)]
    verdicts = []
    for control in CONTROLS:
        of_control = claims[claims["control"] == control]
        better = list(of_control[of_control["verdict"] == "better"]["target"])
        others = [
            f"{row['target']} ({row['verdict']})"
            for _, row in of_control.iterrows()
            if row["verdict"] != "better"
        ]
        verdicts.append(
            f"- against {control}: better on {', '.join(better) or 'none'}; "
            f"not better on {', '.join(others) or 'no other'}."
        )
    shown = differences.assign(
        difference=[
            f"{mean:+.4g} ± {std:.2g}"
            for mean, std in zip(differences["difference"], differences["std"], strict=True)
        ],
        folds_better=[f"{count} of {FOLDS}" for count in differences["folds_better"]],
    )[["target", "control", "difference", "standard_error", "folds_better", "verdict"]]
    seeds = summary[summary["std_seeds"].notna()]
    spread = "; ".join(f"{row['target']} {row['std_seeds']:.2g}" for _, row in seeds.iterrows())
    notes = [note for table in tables.values() for note in table.notes]
    return "\n".join(
        [
            "# Columns",
            "",
            (
                "What a simple model learns from columns: mean absolute error over "
                f"{FOLDS} folds ± its standard deviation over the folds; the least in bold."
            ),
            "",
            markdown_table(wide_table(summary)),
            "",
            *(f"- **{name}** ({widths[name]} columns): {what[name]}." for name in names),
            "",
            f"## {kinds[0].name} against the controls, fold by fold",
            "",
            (
                "The difference of the errors on the same folds, mean ± standard deviation; "
                "negative where ours is less. *Better* and *worse* are said where the mean "
                "exceeds its standard error, which is corrected for the folds' common training "
                "rows (Nadeau and Bengio 2003)."
            ),
            "",
            markdown_table(shown),
            "",
            *verdicts,
            f"- {', '.join(EXTRA_TARGETS)}: shown, but no claim rests on it.",
            "",
            "## Which regressor was chosen",
            "",
            (
                "Errors of the regressors, each with its settings chosen on the training folds; "
                "blank where it was dropped early in a fold."
            ),
            "",
            markdown_table(summary[["target", "kind", *_REGRESSORS, "chosen"]]),
            "",
            "## How it was made",
            "",
            (
                f"`{COMMAND}`. {FOLDS} shuffled folds (seed {SEED}), the same rows for every kind. "
                f"Within the training folds, {INNER_FOLDS} folds (seed {SEED + 1}) choose among "
                f"{len(candidates)} candidates, the same for every kind: "
                f"{_grid(candidates)}; candidates more than {MARGIN:.0%} behind the best on the "
                "first of the inner folds are dropped. Columns and target are standardized with "
                "training rows only. The errors of every fold are in `columns_folds.csv`."
            ),
            "",
            (
                f"mp2000 is {MP_CRYSTALS} crystals of `mp_properties.csv`, drawn with seed "
                f"{MP_SEED}. Crystals of the tables may be among those that the networks were "
                "pretrained on; no property of any crystal was used there."
            ),
            *([f"Standard deviation over the seeds of {RANDOM}: {spread}."] if spread else []),
            *(["", "Rows left out:", *(f"- {note}" for note in notes)] if notes else []),
            "",
            f"Versions: {versions()}.",
            "",
        ]
    )


def _grid(candidates: Sequence[Candidate]) -> str:
    """The candidates in words."""
    parts = []
    if alphas := sorted({c.alpha for c in candidates if c.regressor == "ridge"}):
        parts.append(f"ridge (alpha {alphas[0]:g} to {alphas[-1]:g}, {len(alphas)} values)")
    machines = [c for c in candidates if c.regressor == "svr"]
    if machines:
        costs = ", ".join(f"{cost:g}" for cost in sorted({c.cost for c in machines}))
        widths = ", ".join(f"{gamma:g}" for gamma in sorted({c.gamma for c in machines}))
        parts.append(f"SVR with an RBF kernel (C {costs}; gamma {widths} over the columns)")
    if any(c.regressor == "trees" for c in candidates):
        parts.append(f"extra trees ({N_TREES})")
    return ", ".join(parts)


# Which columns are the default ones.

CHOICES: Mapping[str, tuple[bool, tuple[str, ...]]] = {
    f"{'all layers' if all_layers else 'last layer'}, {', '.join(moments)}": (all_layers, moments)
    for all_layers in (False, True)
    for moments in (("mean",), ("mean", "std"), ("mean", "std", "max"))
}
"""Layers (all, or the last) and moments that could be the default columns."""


def run_choice(
    root: str | Path | None = None,
    *,
    out: str | Path = RESULTS,
    model: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] = print,
    tables: Mapping[str, BenchmarkTable] | None = None,
    rows: int | None = None,
) -> pd.DataFrame:
    """Measure which layers and which moments make the best default columns.

    Ridge or SVR of a small grid, chosen on the training folds. Writes ``column_choice.csv`` and
    ``column_choice.md``, and the errors fold by fold, from which a stopped run goes on.

    Args:
        root: The data root.
        out: The folder of the results.
        model: Name or path of the model; the default one without it.
        say: Where the lines of text go.
        tables: Tables that are loaded already, in place of ``root``.
        rows: Only the first rows of every table, for a quick try.

    Returns:
        One row a target and choice, as in ``column_choice.csv``.

    Raises:
        DataError: The data are missing.
        UnknownModelError: There is no such model.
    """
    from crysxpp_mm.featurizers import CrysAEFeaturizer
    from crysxpp_mm.model_zoo import DEFAULT_MODEL

    name = DEFAULT_MODEL if model is None else model
    loaded = first_rows(load_tables(root) if tables is None else tables, rows)
    featurizer = CrysAEFeaturizer(model=name, device="cpu")
    labels = [label.split() for label in featurizer.feature_labels()]  # CrysAE L2 mean 17
    last = max(label[1] for label in labels)
    embedded = {
        table.name: featurizer.structure_embeddings(table.structures) for table in loaded.values()
    }
    cache = FoldCache(Path(out) / "column_choice_folds.csv", QUICK, margin=np.inf)
    with one_blas_thread():
        for choice, (all_layers, moments) in CHOICES.items():
            wanted = [
                (all_layers or layer == last) and moment in moments
                for _, layer, moment, _ in labels
            ]
            blocks = iter([block[:, wanted] for block in embedded.values()])
            kind = Kind(name=choice, what="", embed=lambda _, blocks=blocks: next(blocks))  # type: ignore[misc]
            score_kind(kind, loaded, cache, say)
    summary = summarize(cache.finish()).drop(columns=["std_seeds", "trees"])
    default = list(CHOICES)[-1]
    wide = summary.pivot(index="target", columns="kind", values="mae")[list(CHOICES)]
    relative = (wide.div(wide[default], axis=0)).mean()
    shown = pd.concat(
        [
            wide_table(summary),
            pd.DataFrame(
                [
                    {
                        "target": f"mean ratio to {default}",
                        **{choice: f"{relative[choice]:.3f}" for choice in CHOICES},
                    }
                ]
            ),
        ]
    )
    write_report(
        out,
        "column_choice",
        tables={"column_choice": summary},
        text="\n".join(
            [
                "# Which layers and which moments become the default columns",
                "",
                (
                    f"Mean absolute error over {FOLDS} folds ± its standard deviation over the "
                    f"folds, model {model_name(name)}; the least in bold."
                ),
                "",
                markdown_table(shown),
                "",
                (
                    f"Made by `{COMMAND}`: {_grid(QUICK)}, chosen on the training folds. Folds, "
                    "seeds, tables and rows left out as in `columns.md`; the errors of every fold "
                    "are in `column_choice_folds.csv`."
                ),
                "",
                f"Versions: {versions()}.",
                "",
            ]
        ),
    )
    return summary
