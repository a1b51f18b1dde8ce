"""How much a simple model learns from columns: five folds, three regressors, two controls.

For every target and every kind of columns the better of a ridge regression, a support vector
regression (RBF kernel) and extremely randomized trees is chosen on the training folds only, and
scored on the fold that was left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
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
from crysxpp_mm.benchmarks.simple_models import (
    ALL,
    FOLDS,
    INNER_FOLDS,
    N_TREES,
    SEED,
    TREE_COLUMNS,
    Candidate,
    candidates_in_words,
    cross_validate,
    magpie_columns,
    one_blas_thread,
    regressor_settings,
)
from crysxpp_mm.errors import DataError, SettingsError

if TYPE_CHECKING:
    from crysxpp_mm.models.crysae import CrysAE

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
            embed=lambda structures: magpie_columns(crystal.composition for crystal in structures),
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
    tables: Mapping[str, BenchmarkTable] | None = None,
    rows: int | None = None,
) -> pd.DataFrame:
    """Compare kinds of columns and write the tables; some twenty minutes.

    Writes ``columns.csv`` and ``columns.md``, ``columns_differences.csv`` and
    ``columns_folds.csv``. A run that was stopped goes on: rows of ``columns_folds.csv`` that were
    made of the same numbers with the same settings and versions are not computed again.

    Args:
        root: The data root, as for ``crysxpp_mm.benchmarks.data.data_root``.
        out: The folder of the results.
        models: Names or paths of models, the one that is compared with the controls first; the
            shipped ones without it.
        say: Where the lines of text go.
        seeds: Seeds of the networks with random weights.
        candidates: Regressors to choose from, the same for every kind of columns.
        tables: Tables that are loaded already, in place of those of ``root``.
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
    tables = first_rows(load_tables(root) if tables is None else tables, rows)
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
    return summary


def shipped_models() -> list[str]:
    """The names of the shipped autoencoders, the default one first."""
    from crysxpp_mm.shipped import DEFAULT_MODEL, list_models

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


def table_with_ratios(summary: pd.DataFrame, ours: str) -> pd.DataFrame:
    """``wide_table``, and below it the errors as multiples of those of ``ours``, mean of all."""
    kinds = list(summary["kind"].unique())
    wide = summary.pivot(index="target", columns="kind", values="mae")
    ratios = wide.div(wide[ours], axis=0).mean()
    last = {"target": f"mean ratio to {ours}", **{kind: f"{ratios[kind]:.3f}" for kind in kinds}}
    return pd.concat([wide_table(summary), pd.DataFrame([last])])


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
            markdown_table(table_with_ratios(summary, kinds[0].name)),
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
                f"{candidates_in_words(candidates)}; candidates more than {MARGIN:.0%} behind the "
                "best on the first of the inner folds are dropped. Columns and target are "
                "standardized with training rows only. The errors of every fold are in "
                "`columns_folds.csv`."
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
