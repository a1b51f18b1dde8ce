"""The crystals of the article's Figs. 4-6, explained by the shipped predictors; the L1 path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from crysxpp_mm.benchmarks.data import load_mp_structures
from crysxpp_mm.benchmarks.methods import PRETRAINED, estimator_of, make_run
from crysxpp_mm.benchmarks.pages import markdown_table, page
from crysxpp_mm.benchmarks.properties import LabelledCrystals, find_property
from crysxpp_mm.benchmarks.runner import HERE, Place, check_names
from crysxpp_mm.benchmarks.small_data import FRACTION
from crysxpp_mm.compute import one_torch_thread
from crysxpp_mm.explain import SparsityPath, sparsity_path
from crysxpp_mm.model_zoo import load_model
from crysxpp_mm.plots import plot_explanation, plot_sparsity_path

FIGURES: Mapping[str, Mapping[str, str]] = {
    "crysxpp-formation-energy": {"BaEr2F8": "mp-12803", "AuC": "mp-1008661"},
    "crysxpp-band-gap": {"GaP": "mp-2490"},
    "crysxpp-magnetic-moment": {"CoPt": "mp-949", "CoNi": "mp-1006883"},
}
"""For each predictor the crystals of its figure, by formula, with their ids."""
PATH_PROPERTY = "bulk modulus"
PATH_SEED = 0
COMMAND = "crysxpp benchmark explanations"


def run_explanations(
    place: Place = HERE,
    *,
    figures: Mapping[str, Mapping[str, str]] = FIGURES,
    path_property: str = PATH_PROPERTY,
) -> pd.DataFrame:
    """Draw what each crystal switches on in the selector, and tabulate what its parts contribute.

    Then one model for each of several weights of the L1 term is learned from a fifth of the labels
    of a property, which takes minutes. Writes ``explanations.csv``, ``explanations.md``, a picture
    a crystal, ``sparsity_path.csv`` and ``sparsity_path.png``.

    Args:
        place: Where data are and results go.
        figures: Names or paths of predictors, each with its crystals.
        path_property: Name of the property of the path.

    Returns:
        One row per crystal: the prediction, the baseline, and what each property contributes.

    Raises:
        DataError: the data are missing, or there is no property of the name.
        SettingsError: there is no figure to draw.
        UnknownModelError: a predictor is not there.
    """
    check_names("figures", list(figures))
    Path(place.out).mkdir(parents=True, exist_ok=True)
    table, sections = _explain(place, figures)
    path, learned = learn_path(place.labelled(), path_property)
    drawn: Any = plot_sparsity_path(path).figure
    drawn.savefig(place.file("sparsity_path.png"), dpi=110)
    text = _page(table, sections, learned, path_property)
    place.write("explanations", text, explanations=table, sparsity_path=learned)
    return table


def _explain(
    place: Place, figures: Mapping[str, Mapping[str, str]]
) -> tuple[pd.DataFrame, list[str]]:
    """Contributions, one row per crystal, and a section of the page with a picture for each."""
    rows, sections = [], []
    for name, shown in figures.items():
        model = load_model(name)
        structures = load_mp_structures(place.root, list(shown.values()))
        for (formula, material_id), structure in zip(shown.items(), structures, strict=True):
            picture = f"explanation-{model.target_names_[0].replace('_', '-')}-{formula}.png"
            figure: Any = plot_explanation(model.explain(structure)).figure
            figure.savefig(place.file(picture), dpi=110)
            parts = model.contributions(structure)
            rows.append(
                {
                    "property": parts.name,
                    "unit": parts.unit,
                    "crystal": formula,
                    "material_id": material_id,
                    "prediction": parts.prediction,
                    "baseline": parts.baseline,
                    **parts.by_property().to_dict(),
                }
            )
            sections += [f"## {parts.name}: {formula} ({material_id})", f"![{formula}]({picture})"]
    return pd.DataFrame(rows), sections


def learn_path(crystals: LabelledCrystals, name: str) -> tuple[SparsityPath, pd.DataFrame]:
    """One model for each weight of the L1 term, on a split of ``small_data``.

    Args:
        crystals: What is learned from and tested on.
        name: The property.

    Returns:
        The path, and a table with the columns that are off, of 92, and R2 on the test crystals.

    Raises:
        DataError: there is no property of the name.
    """
    item = find_property(name)
    labels = crystals.labels(item)
    rows = crystals.split(item, fraction=FRACTION, seed=PATH_SEED)
    with one_torch_thread():
        path = sparsity_path(
            estimator_of(make_run(name, FRACTION, PATH_SEED, PRETRAINED, n_members=1)),
            crystals.graphs.select(rows.train),
            labels[rows.train],
            test=(crystals.graphs.select(rows.test), labels[rows.test]),
        )
    learned = path.results.rename(columns={"n_zero": "columns off", "score": "R2"})
    return path, learned.reset_index()


def _page(
    table: pd.DataFrame, sections: Sequence[str], learned: pd.DataFrame, path_property: str
) -> str:
    return page(
        "Why: crystals of the article's Figs. 4-6",
        "Weights of the feature selector that the elements of a crystal switch on, by the shipped "
        "predictors. A weight says that a column is let through, not in which direction it moves "
        "the prediction; contributions (integrated gradients) do, and sum with the baseline to the "
        "prediction:",
        markdown_table(table),
        *sections,
        f"## The L1 path: {path_property}",
        "The selector's weights against the weight of the L1 term, learned from "
        f"{FRACTION:.0%} of the labels (split {PATH_SEED} of `small_data.md`, one network each), "
        "and R2 on the test crystals. One seed cannot tell such small differences from luck; "
        "`crysxpp benchmark ablations` trains several.",
        "![weights against sparsity](sparsity_path.png)",
        markdown_table(learned),
        command=COMMAND,
    )
