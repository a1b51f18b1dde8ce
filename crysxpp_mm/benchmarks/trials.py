"""Methods trained and tested on splits of labelled crystals; finished ones are found again."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crysxpp_mm.benchmarks.methods import (
    CANDIDATES,
    COLUMNS,
    INNER_ROWS,
    MAGPIE,
    PRETRAINED,
    Run,
    Values,
    estimator_of,
    fit_simple_model,
    learned_columns,
    magpie_of_formulas,
)
from crysxpp_mm.benchmarks.pages import versions
from crysxpp_mm.benchmarks.properties import Property, Rows, Split, find_property
from crysxpp_mm.benchmarks.runner import Place, RunTable, key_of, one_thread, settings_of
from crysxpp_mm.elements import N_FEATURES
from crysxpp_mm.estimators.transforms import get_transform

RUNS = "small_data_runs.csv"


class Trials:
    """Methods trained and tested on splits of crystals, each once.

    Args:
        place: What is learned from, and the folder of the results; a run that it has is not made
            again.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.crystals = place.labelled()
        columns = [*(field.name for field in fields(Run)), "mae_with_columns"]
        self.runs = RunTable(place.file(RUNS), columns=columns)
        self._columns: dict[str, NDArray[np.floating]] = {}
        self._simple: dict[Run, tuple[Values, str]] = {}

    def results(self, runs: Iterable[Run]) -> pd.DataFrame:
        """Results of several runs, one per row."""
        with one_thread():
            return pd.DataFrame([self.result(run) for run in runs])

    def result(self, run: Run) -> dict[str, Any]:
        """Result of a run, which is trained and tested now if it was not yet."""
        key = self._inputs(run)[-1]
        return self.runs.rows_of(key, lambda: [self._made(run)])[0]

    def found(self, run: Run) -> dict[str, Any] | None:
        """Result of a run that was made."""
        rows = self.runs.find(self._inputs(run)[-1])
        return rows[0] if rows else None

    def _made(self, run: Run) -> dict[str, Any]:
        """Train and test a method."""
        item, labels, rows, key = self._inputs(run)
        started = time.monotonic()
        scores = (
            self._network(run, item, labels, rows, key)
            if run.n_members
            else self._simple_model(run, item, labels, rows)
        )
        seconds = round(time.monotonic() - started)
        self.place.say(
            f"{run.property}, {run.fraction:.0%}, seed {run.seed}: {run.method}: "
            f"{scores['mae']:.4g} {item.error_unit}   ({seconds} s)"
        )
        counts = {"n_train": len(rows.train), "n_test": len(rows.test)}
        return {**asdict(run), **counts, **scores, "seconds": seconds}

    def _inputs(self, run: Run) -> tuple[Property, Values, Split, str]:
        """Property, labels of all crystals and rows of a run, and the key that they give."""
        item = find_property(run.property)
        labels = self.crystals.labels(item)
        rows = self.crystals.split(item, fraction=run.fraction, seed=run.seed)
        return item, labels, rows, self._key(run, item, rows, labels)

    def _key(self, run: Run, item: Property, rows: Split, labels: Values) -> str:
        """Hash all that a result depends on."""
        estimator = estimator_of(run) if run.n_members else None
        settings = {} if estimator is None else settings_of(estimator)
        simple: list[Any] = [asdict(candidate) for candidate in CANDIDATES.get(run.method, ())]
        if simple and np.isfinite(floor := get_transform(item.transform).floor):
            simple.append(floor)  # predictions are cut there
        facts = [asdict(run), settings, simple, INNER_ROWS, self.crystals.identity, versions()]
        text = json.dumps(facts, sort_keys=True, default=str)
        return key_of(text, (*rows, labels[rows.train], labels[rows.test]))

    def _network(
        self, run: Run, item: Property, labels: Values, rows: Split, key: str
    ) -> dict[str, Any]:
        """Train an ensemble and test it, and each of its networks alone."""
        checkpoints = self.place.file(f"checkpoints-{key}")
        estimator = estimator_of(run).set_params(checkpoint_dir=checkpoints)
        estimator.fit(self.crystals.graphs.select(rows.train), labels[rows.train])
        graphs = self.crystals.graphs.select(rows.test)
        predicted = estimator.predict(graphs)
        alone = [network.predict(graphs)[:, 0].numpy() for network in estimator.members_]
        single = [
            self._errors(item, item.labels_of(learned), labels, rows.test)["mae"]
            for learned in alone
        ]
        shutil.rmtree(checkpoints, ignore_errors=True)
        mixed = np.nan
        if run.method == PRETRAINED and run.n_members > 1:
            other = self._simple_prediction(replace(run, method=COLUMNS, n_members=0))[0]
            mean = (item.learned(predicted) + item.learned(other)) / 2
            mixed = float(np.abs(mean - item.learned(labels[rows.test])).mean())
        selected = "no selector"
        if estimator.selector:
            off = [(network.selector.weight == 0).sum() for network in estimator.members_]
            selected = f"{np.mean(off):.3g} of {N_FEATURES} columns off"
        return {
            **self._errors(item, predicted, labels, rows.test),
            "mae_one_network": float(np.mean(single)),
            "mae_with_columns": mixed,
            "settings": selected,
        }

    def _simple_model(
        self, run: Run, item: Property, labels: Values, rows: Split
    ) -> dict[str, Any]:
        """Choose a simple model on the training rows, fit it on them and test it."""
        predicted, settings = self._simple_prediction(run)
        return {
            **self._errors(item, predicted, labels, rows.test),
            "mae_one_network": np.nan,
            "mae_with_columns": np.nan,
            "settings": settings,
        }

    def _simple_prediction(self, run: Run) -> tuple[Values, str]:
        """Predictions of a simple model on the test rows, and its settings; fitted once."""
        if run not in self._simple:
            item, labels, rows, _ = self._inputs(run)
            self._simple[run] = fit_simple_model(
                self._columns_of(run.method), item, labels, rows, method=run.method, seed=run.seed
            )
        return self._simple[run]

    def _errors(
        self, item: Property, predicted: Values, labels: Values, test: Rows
    ) -> dict[str, float]:
        error = np.abs(item.learned(predicted) - item.learned(labels[test]))
        per_cell = (error * self.crystals.graphs.n_atoms[test]).mean() if item.per_site else np.nan
        return {"mae": float(error.mean()), "mae_per_cell": float(per_cell)}

    def _columns_of(self, method: str) -> NDArray[np.floating]:
        """Columns of all crystals, made once."""
        if method not in self._columns:
            self.place.say(f"columns of {len(self.crystals.table)} crystals: {method}")
            make = magpie_of_formulas if method == MAGPIE else learned_columns
            self._columns[method] = make(self.crystals)
        return self._columns[method]
