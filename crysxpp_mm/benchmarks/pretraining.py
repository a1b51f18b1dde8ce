"""Choices of the pretraining: short pretrainings, judged by their columns.

Every variant starts from the settings of ``crysae-mp-v1`` and changes what its name says. They are
trained on the same crystals for the same number of epochs, and a simple model learns the targets
of ``columns.md`` from their columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from crysxpp_mm.benchmarks.data import BenchmarkTable, load_tables
from crysxpp_mm.benchmarks.folds import (
    CALIBRATION_CRYSTALS,
    RANDOM,
    Folds,
    Kind,
    first_rows,
    learned_columns,
    random_columns,
    summarize,
    table_with_ratios,
)
from crysxpp_mm.benchmarks.pages import bullets, markdown_table, page
from crysxpp_mm.benchmarks.properties import load_graphs
from crysxpp_mm.benchmarks.runner import HERE, Place, check_names, one_thread
from crysxpp_mm.benchmarks.simple_models import FOLDS, QUICK
from crysxpp_mm.data.store import GraphStore
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.losses import LossWeights
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.training.config import PretrainConfig
from crysxpp_mm.training.pretrain import pretrain

EPOCHS = 5
COMMAND = "crysxpp benchmark pretraining"
SHIPPED = "crysae-mp-v1"

_V1 = PretrainConfig()
VARIANTS: Mapping[str, PretrainConfig] = {
    SHIPPED: _V1,
    "element channel": replace(_V1, element_channel=True),
    "15 % hidden everywhere": replace(_V1, masked=1.0, mask_fraction=0.15, visible_weight=0.0),
    "nothing hidden": replace(_V1, masked=0.0, visible_weight=1.0),
    "local terms only": replace(_V1, loss_weights=LossWeights.local_only()),
    "global terms only": replace(_V1, loss_weights=LossWeights.global_only()),
    "published": PretrainConfig.published(),
}
"""Settings of each variant but for the number of epochs."""
WHAT = {
    SHIPPED: (
        "the settings of the shipped model: the features of 30 % of the atoms hidden in half of "
        "the crystals, visible ones rebuilt with weight 0.1"
    ),
    "element channel": "a learned vector of each element beside its 92 columns",
    "15 % hidden everywhere": "15 % of the atoms hidden in every crystal, only they rebuilt",
    "nothing hidden": "every crystal whole, as in the paper",
    "local terms only": "node features and bond lengths (Table 5)",
    "global terms only": "existence and multiplicity of bonds (Table 5)",
    "published": "loss, rate and batches of the paper",
    RANDOM: "the network of the first variant, its batch norms calibrated, not trained",
}


def run_pretraining(
    place: Place = HERE,
    *,
    runs: str | Path = "pretraining-runs",
    variants: Sequence[str] | None = None,
    epochs: int = EPOCHS,
    store: GraphStore | None = None,
    rows: int | None = None,
) -> pd.DataFrame:
    """Pretrain every variant for a few epochs and compare their columns; an hour on one core.

    Writes ``pretraining.csv``, ``pretraining.md`` and ``pretraining_folds.csv``. A run that was
    stopped goes on.

    Args:
        place: Where data are and results go.
        runs: The folder of the pretrainings, one folder each.
        variants: Names of the variants, the one that the others are compared with first; all
            without it.
        epochs: Epochs of each.
        store: The crystals to pretrain on, if they are in memory.
        rows: Only the first rows of every table, for a quick try.

    Returns:
        One row per target and variant, as in ``pretraining.csv``.

    Raises:
        DataError: The data are missing.
        SettingsError: There is no variant of a name, or too few epochs.
    """
    names = list(VARIANTS) if variants is None else list(variants)
    check_names("variants", names, VARIANTS)
    if epochs < 1:
        raise SettingsError(f"epochs must be at least 1, got {epochs}.")
    crystals = store or load_graphs(place.root, graphs=place.graphs)
    tables = first_rows(load_tables(place.root), rows)
    cache = Folds(place.file("pretraining_folds.csv"), QUICK, margin=np.inf)
    with one_thread():
        for number, name in enumerate(names):
            model = _pretrained(name, crystals, Path(runs), epochs)
            place.say(f"{name}: {epochs} epochs, validation loss {model.metadata['results']}")
            if number == 0:
                cache.score(_random_kind(model, tables), tables, place.say)
            embed = partial(learned_columns, model=model)
            cache.score(Kind(name=name, what=WHAT[name], embed=embed), tables, place.say)
    summary, text = tabulate(cache.finish(), names, epochs, len(crystals))
    place.write("pretraining", text, pretraining=summary)
    return summary


def tabulate(
    folds: pd.DataFrame, names: Sequence[str], epochs: int, n_crystals: int
) -> tuple[pd.DataFrame, str]:
    """Make the table and the page from finished folds.

    Args:
        folds: One row per target, variant and fold.
        names: Variants, the one that the others are compared with first.
        epochs: Epochs of each.
        n_crystals: Crystals that they were pretrained on.
    """
    summary = summarize(folds).drop(columns=["std_seeds", "trees"])
    kinds = [*names, RANDOM]
    shown = table_with_ratios(summary, names[0])[["target", "unit", "rows", *kinds]]
    text = page(
        "What each choice of the pretraining is worth",
        f"Mean absolute error over {FOLDS} folds ± its standard deviation over the folds, of a "
        f"simple model on the columns after {epochs} epochs of pretraining on {n_crystals:,} "
        "crystals, one seed; the least in bold.",
        markdown_table(shown),
        bullets(f"{kind}: {WHAT[kind]}." for kind in kinds),
        command=COMMAND,
        where=": the better of ridge and SVR, chosen on the training folds. Folds, tables and rows "
        "left out as in `columns.md`; the errors of every fold are in `pretraining_folds.csv`",
    )
    return summary, text


def _pretrained(name: str, crystals: GraphStore, runs: Path, epochs: int) -> CrysAE:
    """Pretrain a variant, or read it back."""
    return pretrain(
        crystals.graphs,
        replace(VARIANTS[name], max_epochs=epochs, patience=epochs),
        runs / f"{name.replace(' ', '-').replace('%', 'percent')}-{epochs}",
        converter=crystals.converter,
        data_hash=crystals.data_hash,
        pbar=False,
    )


def _random_kind(like: CrysAE, tables: Mapping[str, BenchmarkTable]) -> Kind:
    structures = tables["mp2000"].structures[:CALIBRATION_CRYSTALS]
    return Kind(
        name=RANDOM,
        what=WHAT[RANDOM],
        embed=partial(random_columns, like=like, seed=0, calibration=structures),
        seed=0,
    )
