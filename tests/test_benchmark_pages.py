"""Committed results: their rows give their pages, and are found again by their keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_tables import rock_salts

from crysxpp_mm.benchmarks import (
    ablations,
    column_choice,
    columns,
    experiment,
    folds,
    label_curves,
    methods,
    pages,
    predictors,
    pretraining,
    reliability,
    small_data,
    trials,
)
from crysxpp_mm.benchmarks.folds import Folds, Kind
from crysxpp_mm.benchmarks.properties import PROPERTIES, LabelledCrystals
from crysxpp_mm.benchmarks.runner import Place
from crysxpp_mm.benchmarks.simple_models import ALL, QUICK
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.shipped import pretrained_folder

RESULTS = Path(pages.__file__).parent / "results"
SEEDS = (0, 1, 2)


def committed(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / name, dtype={"key": str, "seed": "Int64"})


def page_of(name: str) -> str:
    return (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def runs_of(wanted: list[methods.Run]) -> pd.DataFrame:
    """Committed rows of some runs, in their order."""
    names = ["property", "fraction", "seed", "method", "n_members"]
    rows = committed("small_data_runs.csv")
    by_run = {tuple(row[name] for name in names): row for row in rows.to_dict("records")}
    return pd.DataFrame([by_run[tuple(getattr(run, name) for name in names)] for run in wanted])


def of_small_data() -> tuple[pd.DataFrame, str]:
    wanted: list[methods.Run] = []
    for item, seed in product(PROPERTIES, SEEDS):
        longer = methods.LONGER_NETWORKS if item.name in methods.LONGER_PROPERTIES else ()
        other = methods.WITHOUT_ELEMENTS if item.element_channel else methods.WITH_ELEMENTS
        names = (*methods.METHODS, *longer, other)
        wanted += [methods.make_run(item.name, 0.2, seed, name, 3) for name in names]
    return small_data.tabulate(runs_of(wanted), SEEDS)


def of_label_curves() -> tuple[pd.DataFrame, str]:
    points = product(label_curves.PROPERTY_NAMES, label_curves.FRACTIONS, SEEDS, methods.METHODS)
    return label_curves.tabulate(runs_of([methods.make_run(*point, 1) for point in points]))


def of_ablations() -> tuple[pd.DataFrame, str]:
    points = product(ablations.PROPERTY_NAMES, SEEDS, methods.NETWORKS)
    runs = [methods.make_run(name, 0.2, seed, method, 1) for name, seed, method in points]
    return ablations.tabulate(runs_of(runs), SEEDS)


def of_columns() -> tuple[pd.DataFrame, str]:
    written = page_of("columns")
    named = re.findall(r"^- \*\*(.+)\*\* \(\d+ columns\): (.+)\.$", written, re.MULTILINE)
    kinds = [Kind(name=name, what=what, embed=np.array) for name, what in named]
    left_out = written.split("Rows left out:\n")[1].split("\n\n")[0]
    notes = [line.removeprefix("- ") for line in left_out.splitlines()]
    summary, _, text = columns.tabulate(committed("columns_folds.csv"), kinds, notes, ALL)
    return summary, text


def of_experiment() -> tuple[pd.DataFrame, str]:
    named = committed("experiment_named.csv")
    tables, text = experiment.tabulate(committed("experiment_runs.csv"), named, SEEDS)
    return tables["experiment"], text


MADE: dict[str, Callable[[], tuple[pd.DataFrame, str]]] = {
    "small_data": of_small_data,
    "label_curves": of_label_curves,
    "ablations": of_ablations,
    "columns": of_columns,
    "column_choice": lambda: column_choice.tabulate(
        committed("column_choice_folds.csv"), "crysae-mp-v1"
    ),
    "pretraining": lambda: pretraining.tabulate(
        committed("pretraining_folds.csv"), list(pretraining.VARIANTS), 5, 36_737
    ),
    "reliability": lambda: reliability.tabulate(
        committed("reliability_crystals.csv"), committed("calibrated.csv")
    ),
    "experiment": of_experiment,
    "predictors": lambda: predictors.tabulate(pretrained_folder()),
}


@pytest.mark.parametrize("name", MADE)
def test_committed_rows_give_the_committed_page(name, monkeypatch, tmp_path):
    expected = page_of(name)
    made_with = re.search(r"^Versions: (.+)\.$", expected, re.MULTILINE)
    assert made_with is not None
    monkeypatch.setattr(pages, "versions", lambda: made_with[1])
    table, text = MADE[name]()
    assert text == expected
    table.to_csv(tmp_path / "table.csv", index=False)
    found = pd.read_csv(tmp_path / "table.csv")
    pd.testing.assert_frame_equal(found, pd.read_csv(RESULTS / f"{name}.csv"), rtol=1e-10)


@pytest.fixture
def crystals(monkeypatch) -> LabelledCrystals:
    """Crystals whose keys are those of every machine."""
    for module in (trials, folds, experiment):
        monkeypatch.setattr(module, "versions", lambda: "versions")
    facts: dict[str, Any] = {item.column: np.arange(60.0) for item in PROPERTIES}
    ids = [f"mp-{i}" for i in range(60)]
    table = pd.DataFrame({"material_id": ids, "formula": ["X"] * 60, **facts})
    graphs = CrystalGraphConverter().convert_many(rock_salts(60))
    return LabelledCrystals(graphs, table, np.arange(60) < 6, "0" * 64)


@pytest.mark.parametrize(
    ("run", "key"),
    [
        (("bulk modulus", 0.5, 1, methods.PRETRAINED, 3), "ad8a0a0ee739bbbe"),
        (("magnetic moment", 0.2, 0, methods.UNTRAINED, 1), "0ab557de608cb075"),
        (("band gap", 0.2, 0, methods.MAGPIE, 1), "7477b98c1f826c6f"),
    ],
)
def test_a_finished_run_keeps_its_key(crystals, run, key, tmp_path):
    """The keys are those under which the committed rows were written."""
    done = dict.fromkeys(("property", "fraction", "seed", "method", "n_members"))
    row = {**done, "mae_with_columns": None, "mae": 7.0, "key": key}
    pd.DataFrame([row]).to_csv(tmp_path / trials.RUNS, index=False)
    found = trials.Trials(Place(crystals=crystals, out=tmp_path)).result(methods.make_run(*run))
    assert found["mae"] == 7.0


def test_finished_folds_keep_their_keys(crystals, tmp_path, monkeypatch):
    monkeypatch.setattr(folds, "TARGETS", [t for t in folds.TARGETS if t.name == "band gap"])
    row = dict.fromkeys(folds.FOLD_COLUMNS, 1) | {"chosen": "ridge", "settings": "alpha=1"}
    rows = [{**row, "fold": fold, "key": "c61311f76a8f5451"} for fold in range(5)]
    pd.DataFrame(rows).to_csv(tmp_path / "folds.csv", index=False)
    done = Folds(tmp_path / "folds.csv", QUICK, margin=np.inf)
    table = folds.BenchmarkTable(
        name="mp2000", structures=[], targets=pd.DataFrame({"band gap": np.arange(3.0)})
    )
    kind = Kind(name="mine", what="", embed=lambda _: np.arange(6.0).reshape(3, 2))
    done.score(kind, {"mp2000": table}, print)
    assert done.finish()["kind"].tolist() == ["mine"] * 5


def test_finished_experiments_keep_their_keys(crystals, tmp_path, monkeypatch):
    measured = np.where(np.arange(60) % 2, np.nan, 1.0)
    data = experiment.Experiments(crystals, np.arange(60.0), measured, np.array([], dtype=int))
    monkeypatch.setattr(experiment, "load_experiments", lambda *_: data)
    facts = {"property": "formation energy", "unit": "eV/atom", "method": "x", "n_learned": 1}
    row = {**facts, "seed": 1, "dft": 0.2, "experiments": 0.2, "n_test": 1, "mae": 7.0}
    pd.DataFrame([{**row, "key": "5ce8ea4acb5f803b"}]).to_csv(
        tmp_path / experiment.RUNS, index=False
    )
    summary = experiment.run_experiment(
        Place(crystals=crystals, out=tmp_path), properties=["formation energy"], seeds=(1,)
    )
    assert summary["mae"].tolist() == [7.0]
