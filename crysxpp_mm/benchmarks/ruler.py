"""The ruler of columns: kinds of columns on the same rows, folds and simple models, kept as found.

For every kind and target, ridge, SVR and extra trees are tuned on the training folds only. The
error of each is given apart, beside that of the one that the training folds chose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Structure

from crysxpp_mm.benchmarks.data import TARGETS, BenchmarkTable, data_root, load_tables
from crysxpp_mm.benchmarks.pages import markdown_table, model_name, versions, write_report
from crysxpp_mm.benchmarks.runner import RunTable, key_of
from crysxpp_mm.benchmarks.simple_models import (
    RIDGE,
    TREES,
    Candidate,
    cross_validate,
    magpie_columns,
    one_blas_thread,
)
from crysxpp_mm.errors import DataError, SettingsError

SEED = 18012019
"""Of the folds: matbench's."""
CANDIDATES = (
    *RIDGE,
    *(
        Candidate(regressor="svr", cost=cost, gamma=gamma, epsilon=0.01)
        for gamma in (0.2, 1.0)
        for cost in (3.0, 30.0)
    ),
    *TREES,
)
QUICK = ("log10 K_VRH", "log10 G_VRH", "Poisson ratio", "log10 eps_electronic")
"""Targets that choices look at first; with the next one they are the rows of the comparison."""
FIVE = (*QUICK, "exfoliation energy")
MAGPIE, MAGPIE_STRUCTURE = "Magpie", "Magpie + structure"
PEERS = {"CHGNet": "chgnet-0.4.2", "SevenNet-0": "sevennet-0"}
"""Kinds of columns that lie in the data root, by the ends of their files' names."""

Columns = NDArray[np.float64]
ColumnsOfTable = Callable[[BenchmarkTable], Columns]


@dataclass(frozen=True, kw_only=True)
class RulerKind:
    """One kind of columns.

    Attributes:
        name: Its name in the tables.
        columns: The columns of a table, shape ``(n_rows, n_columns)``.
        tables: The tables that it has columns for; all if None.
    """

    name: str
    columns: ColumnsOfTable
    tables: tuple[str, ...] | None = None


def model_columns(table: BenchmarkTable, *, model: str | Path, moments: Sequence[str]) -> Columns:
    """Columns of a pretrained model."""
    from crysxpp_mm.featurizers import CrysAEFeaturizer

    featurizer = CrysAEFeaturizer(model=model, moments=moments, device="cpu")
    return featurizer.structure_embeddings(table.structures).astype(np.float64)


def random_network_columns(table: BenchmarkTable, *, like: str | Path, seed: int) -> Columns:
    """Means of a network of the same shape with random weights, calibrated on the table."""
    from crysxpp_mm.featurizers import CrysAEFeaturizer
    from crysxpp_mm.model_zoo import load_model

    shape = load_model(like)
    network = type(shape).random(seed=seed, converter=shape.converter, **shape.settings)
    network.calibrated(network.structure_graphs(table.structures[:500]))
    featurizer = CrysAEFeaturizer(model=network, device="cpu")
    return featurizer.structure_embeddings(table.structures).astype(np.float64)


def structure_columns(structures: Iterable[Structure]) -> Columns:
    """Ten columns of matminer's, less the one that is text: density, symmetry, complexity.

    What a featurizer cannot compute of a crystal is zero.
    """
    from matminer.featurizers.base import MultipleFeaturizer
    from matminer.featurizers.structure import (
        DensityFeatures,
        GlobalSymmetryFeatures,
        StructuralComplexity,
    )

    parts = [DensityFeatures(), GlobalSymmetryFeatures(), StructuralComplexity()]
    featurizer = MultipleFeaturizer(parts)
    featurizer.set_n_jobs(1)
    rows = pd.DataFrame(
        featurizer.featurize_many(list(structures), ignore_errors=True, pbar=False),
        columns=featurizer.feature_labels(),
    )
    numbers = rows.drop(columns=[name for name in rows if name == "crystal_system"])
    columns: Columns = numbers.apply(pd.to_numeric, errors="coerce").fillna(0.0).to_numpy(float)
    return columns


def magpie_of_table(table: BenchmarkTable, *, structure: bool) -> Columns:
    """Magpie columns of the compositions, with or without ten columns of the structures."""
    magpie = magpie_columns(crystal.composition for crystal in table.structures)
    return np.hstack([magpie, structure_columns(table.structures)]) if structure else magpie


def peer_columns(table: BenchmarkTable, *, folder: Path, ending: str) -> Columns:
    """Means of all layers of another model, kept beside the data.

    Raises:
        DataError: the file has other rows than the table.
    """
    path = folder / f"{table.name}-{ending}.npz"
    with np.load(path, allow_pickle=False) as file:
        names = [str(name) for name in file["names"]]
        means = [row for row, name in enumerate(names) if name.split()[1] == "mean"]
        columns: Columns = file["columns"][:, means].astype(np.float64)
    if len(columns) != len(table):
        raise DataError(f"{path} has {len(columns)} rows, the table has {len(table)}.")
    return columns


def control_kinds(root: Path, *, like: str | Path, seeds: Sequence[int]) -> list[RulerKind]:
    """Columns to beat, and what lies beside the data for comparison."""
    kinds = [
        RulerKind(name=MAGPIE, columns=partial(magpie_of_table, structure=False)),
        RulerKind(
            name=MAGPIE_STRUCTURE,
            columns=partial(magpie_of_table, structure=True),
            tables=("elastic_tensor_2015", "phonon_dielectric_mp", "matbench_jdft2d"),
        ),
        *(
            RulerKind(
                name=f"random weights {seed}",
                columns=partial(random_network_columns, like=like, seed=seed),
            )
            for seed in seeds
        ),
    ]
    folder = root / "peers"
    for name, ending in PEERS.items():
        files = sorted(folder.glob(f"*-{ending}.npz"))
        tables = tuple(file.name.removesuffix(f"-{ending}.npz") for file in files)
        if tables:
            columns = partial(peer_columns, folder=folder, ending=ending)
            kinds.append(RulerKind(name=name, columns=columns, tables=tables))
    return kinds


def model_kinds(models: Sequence[str | Path]) -> list[RulerKind]:
    """Two kinds a model: all moments of all layers, and the means alone."""
    return [
        RulerKind(
            name=f"{model_name(model)}{ending}",
            columns=partial(model_columns, model=model, moments=moments),
        )
        for model in models
        for ending, moments in (("", ("mean", "std", "max")), (", means", ("mean",)))
    ]


def run_ruler(
    kinds: Sequence[RulerKind],
    tables: Mapping[str, BenchmarkTable],
    out: str | Path,
    *,
    targets: Sequence[str] = FIVE,
    candidates: Sequence[Candidate] = CANDIDATES,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Measure kinds of columns; what was measured before is taken from ``ruler_folds.csv``.

    Args:
        kinds: What to measure.
        tables: The rows, as ``crysxpp_mm.benchmarks.data.load_tables`` gives them.
        out: The folder of the results: ``ruler.csv``, ``ruler.md`` and ``ruler_folds.csv``.
        targets: Names of targets.
        candidates: Simple models to choose from, the same for every kind.
        say: Where the lines of text go.

    Returns:
        One row a target and kind: ``mae`` of the model that the training folds chose, and the
        error of each model apart.

    Raises:
        SettingsError: there is no target of a name in the tables.
    """
    known = {target.name: target for target in TARGETS if target.table in tables}
    if unknown := [name for name in targets if name not in known]:
        raise SettingsError(f"no target {unknown[0]!r}; there are {', '.join(known)}.")
    done = RunTable(Path(out) / "ruler_folds.csv", ("kind", "target", "fold", "mae"))
    rows = []
    with one_blas_thread():
        for kind in kinds:
            cache: dict[str, Columns] = {}
            for name in targets:
                target = known[name]
                if kind.tables is not None and target.table not in kind.tables:
                    continue
                table = tables[target.table]
                values = table.targets[name].to_numpy(dtype=np.float64)
                if target.table not in cache:
                    cache[target.table] = kind.columns(table)
                started = time.monotonic()
                found = _scores(done, kind.name, name, cache[target.table], values, candidates)
                rows += found
                say(
                    f"{name}: {kind.name}: {np.mean([row['mae'] for row in found]):.4g}"
                    f"   ({time.monotonic() - started:.0f} s)"
                )
    folds = pd.DataFrame(rows)
    measured = [*("mae", *dict.fromkeys(c.regressor for c in candidates))]
    summary = folds.groupby(["target", "kind"], sort=False)[measured].mean().reset_index()
    write_report(out, "ruler", tables={"ruler": summary}, text=_page(summary))
    return summary


def _scores(
    done: RunTable,
    kind: str,
    target: str,
    columns: Columns,
    values: NDArray[np.float64],
    candidates: Sequence[Candidate],
) -> list[dict[str, object]]:
    def measure() -> list[dict[str, object]]:
        scores = cross_validate(columns, values, candidates=candidates, seed=SEED)
        return [
            {
                "kind": kind,
                "target": target,
                "n_columns": columns.shape[1],
                "fold": score.fold,
                "mae": score.mae,
                **score.by_regressor,
                "chosen": score.chosen.regressor,
            }
            for score in scores
        ]

    facts = repr(([asdict(candidate) for candidate in candidates], SEED, versions()))
    rows = done.rows_of(key_of(facts, (columns, values), shapes=True), measure)
    return [{**row, "kind": kind} for row in rows]


def _page(summary: pd.DataFrame) -> str:
    wide = summary.pivot(index="target", columns="kind", values="mae")
    wide = wide.loc[list(dict.fromkeys(summary["target"])), list(dict.fromkeys(summary["kind"]))]
    trees = summary.pivot(index="target", columns="kind", values="trees").loc[wide.index]
    return "\n".join(
        [
            "# The ruler of columns",
            "",
            (
                f"Mean absolute error over five folds (seed {SEED}). Ridge, SVR (C 3 and 30) or "
                "extra trees, chosen on the training folds for every kind of columns."
            ),
            "",
            markdown_table(wide.reset_index()),
            "",
            "With extra trees alone:",
            "",
            markdown_table(trees[wide.columns].reset_index()),
            "",
            f"Versions: {versions()}.",
            "",
        ]
    )


def quick_ruler(
    models: Sequence[str | Path],
    root: str | Path | None = None,
    *,
    out: str | Path,
    targets: Sequence[str] = FIVE,
    candidates: Sequence[Candidate] = CANDIDATES,
    controls: bool = True,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Measure models on the rows that choices look at, beside the controls.

    Args:
        models: Names or files of pretrained models.
        root: The data root, as for ``crysxpp_mm.benchmarks.data.data_root``.
        out: The folder of the results, as for ``run_ruler``.
        targets: Names of targets.
        candidates: Simple models to choose from, as for ``run_ruler``.
        controls: Whether to measure the controls as well.
        say: Where the lines of text go.

    Raises:
        SettingsError: no model is given, or there is no target of a name.
        DataError: the data are missing.
    """
    if not models:
        raise SettingsError("models must name at least one model.")
    wanted = [target.table for target in TARGETS if target.name in targets]
    tables = load_tables(root, names=list(dict.fromkeys(wanted)))
    kinds = model_kinds(models)
    if controls:
        kinds += control_kinds(data_root(root), like=models[0], seeds=(0,))
    return run_ruler(kinds, tables, out, targets=targets, candidates=candidates, say=say)
