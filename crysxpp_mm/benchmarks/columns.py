"""Columns as input of simple models: five folds, three regressors, two controls.

For every target and every kind of columns the better of a ridge regression, a support vector
regression (RBF kernel) and extremely randomized trees is chosen on the training folds only, and
scored on the fold that was left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from pymatgen.core import Structure

from crysxpp_mm.benchmarks.data import (
    EXTRA_TARGETS,
    MP_CRYSTALS,
    MP_SEED,
    BenchmarkTable,
    data_root,
    load_tables,
)
from crysxpp_mm.benchmarks.folds import (
    CALIBRATION_CRYSTALS,
    MARGIN,
    RANDOM,
    Folds,
    Kind,
    first_rows,
    learned_columns,
    random_columns,
    summarize,
    table_with_ratios,
)
from crysxpp_mm.benchmarks.pages import (
    bullets,
    markdown_table,
    model_name,
    page,
    plus_minus,
)
from crysxpp_mm.benchmarks.runner import HERE, Place, check_names
from crysxpp_mm.benchmarks.simple_models import (
    ALL,
    FOLDS,
    INNER_FOLDS,
    SEED,
    Candidate,
    candidates_in_words,
    magpie_columns,
    one_blas_thread,
)
from crysxpp_mm.benchmarks.statistics import REGRESSORS, differences_by_fold
from crysxpp_mm.errors import DataError, SettingsError

RANDOM_SEEDS = (0, 1, 2)
"""Seeds of the networks with random weights."""
MAGPIE = "Magpie"
CONTROLS = (RANDOM, MAGPIE)
"""The controls that the columns have to beat."""
COMMAND = "crysxpp benchmark columns"


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
    place: Place = HERE,
    *,
    models: Sequence[str | os.PathLike[str]] | None = None,
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
        place: Where data are and results go.
        models: Names or paths of models, the one that is compared with the controls first; the
            shipped ones without it.
        seeds: Seeds of the networks with random weights.
        candidates: Regressors to choose from, the same for every kind of columns.
        tables: Tables that are loaded already, in place of those of ``root``.
        rows: Only the first rows of every table, for a quick try; all for results that count.

    Returns:
        One row per target and kind of columns, as in ``columns.csv``.

    Raises:
        DataError: The data are missing.
        SettingsError: No model, no seed or no candidate is given.
        UnknownModelError: There is no model of a name.
    """
    check_names("seeds", seeds)
    check_names("candidates", candidates)
    chosen = shipped_models() if models is None else list(models)
    tables = first_rows(load_tables(place.root) if tables is None else tables, rows)
    calibration = tables["mp2000"].structures[:CALIBRATION_CRYSTALS]
    kinds = column_kinds(data_root(place.root), chosen, seeds, calibration)
    cache = Folds(place.file("columns_folds.csv"), candidates)
    with one_blas_thread():
        for kind in kinds:
            cache.score(kind, tables, place.say)
    folds = cache.finish()
    notes = [note for table in tables.values() for note in table.notes]
    summary, differences, text = tabulate(folds, kinds, notes, candidates)
    place.write("columns", text, columns=summary, columns_differences=differences)
    return summary


def shipped_models() -> list[str]:
    """The names of the shipped autoencoders, the default one first."""
    from crysxpp_mm.shipped import DEFAULT_MODEL, list_models

    models = list_models()
    names = models["name"][models["kind"] == "CrysAE"]
    return sorted(names, key=lambda name: (name != DEFAULT_MODEL, name))


def tabulate(
    folds: pd.DataFrame,
    kinds: Sequence[Kind],
    notes: Sequence[str],
    candidates: Sequence[Candidate],
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Make the tables of errors and of differences, and the page, from finished folds.

    Args:
        folds: One row per target, kind, seed and fold.
        kinds: Kinds of columns, the one that is compared with the controls first.
        notes: Sentences on rows that were left out.
        candidates: Regressors to choose from.
    """
    summary = summarize(folds)
    differences = differences_by_fold(folds, ours=kinds[0].name, controls=CONTROLS)
    what = {kind.name: kind.what for kind in kinds}
    widths = summary.drop_duplicates("kind").set_index("kind")["n_columns"]
    shown = differences.assign(
        difference=plus_minus(differences["difference"], differences["std"], "+.4g ± .2g"),
        folds_better=[f"{count} of {FOLDS}" for count in differences["folds_better"]],
    )[["target", "control", "difference", "standard_error", "folds_better", "verdict"]]
    text = page(
        "Columns",
        "What a simple model learns from columns: mean absolute error over "
        f"{FOLDS} folds ± its standard deviation over the folds; the least in bold.",
        markdown_table(table_with_ratios(summary, kinds[0].name)),
        bullets(f"**{name}** ({widths[name]} columns): {text}." for name, text in what.items()),
        f"## {kinds[0].name} against the controls, fold by fold",
        "The difference of the errors on the same folds, mean ± standard deviation; negative where "
        "ours is less. *Better* and *worse* are said where the mean exceeds its standard error, "
        "which is corrected for the folds' common training rows (Nadeau and Bengio 2003).",
        markdown_table(shown),
        bullets(_verdicts(differences)),
        "## Which regressor was chosen",
        "Errors of the regressors, each with its settings chosen on the training folds; blank "
        "where it was dropped early in a fold.",
        markdown_table(summary[["target", "kind", *REGRESSORS, "chosen"]]),
        "## How it was made",
        f"`{COMMAND}`. {FOLDS} shuffled folds (seed {SEED}), the same rows for every kind. Within "
        f"the training folds, {INNER_FOLDS} folds (seed {SEED + 1}) choose among "
        f"{len(candidates)} candidates, the same for every kind: "
        f"{candidates_in_words(candidates)}; candidates more than {MARGIN:.0%} behind the best on "
        "the first of the inner folds are dropped. Columns and target are standardized with "
        "training rows only. The errors of every fold are in `columns_folds.csv`.",
        f"mp2000 is {MP_CRYSTALS} crystals of `mp_properties.csv`, drawn with seed {MP_SEED}. "
        "Crystals of the tables may be among those that the networks were pretrained on; no "
        f"property of any crystal was used there.{_spread_over_seeds(summary)}",
        "Rows left out:\n" + bullets(notes) if notes else "",
    )
    return summary, differences, text


def _verdicts(differences: pd.DataFrame) -> Iterator[str]:
    """Targets on which the columns beat a control, and others."""
    for control in CONTROLS:
        rows = differences[differences["control"] == control]
        claims = rows[~rows["target"].isin(EXTRA_TARGETS)].set_index("target")["verdict"]
        better = ", ".join(claims.index[claims == "better"])
        rest = claims[claims != "better"]
        others = ", ".join(f"{target} ({verdict})" for target, verdict in rest.items())
        yield (
            f"against {control}: better on {better or 'none'}; not better on "
            f"{others or 'no other'}."
        )
    yield f"{', '.join(EXTRA_TARGETS)}: shown, but no claim rests on it."


def _spread_over_seeds(summary: pd.DataFrame) -> str:
    seeds = summary.dropna(subset=["std_seeds"])
    spread = "; ".join(
        f"{target} {std:.2g}"
        for target, std in zip(seeds["target"], seeds["std_seeds"], strict=True)
    )
    return f"\nStandard deviation over the seeds of {RANDOM}: {spread}." if spread else ""
