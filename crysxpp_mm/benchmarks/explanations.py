"""The crystals of the article's Figs. 4-6, explained by the shipped predictors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from crysxpp_mm.benchmarks.data import load_mp_structures
from crysxpp_mm.benchmarks.report import RESULTS, markdown_table, versions, write_report
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.explain import plot_explanation
from crysxpp_mm.model_zoo import load_model

FIGURES: Mapping[str, Mapping[str, str]] = {
    "crysxpp-formation-energy": {"BaEr2F8": "mp-12803", "AuC": "mp-1008661"},
    "crysxpp-band-gap": {"GaP": "mp-2490"},
    "crysxpp-magnetic-moment": {"CoPt": "mp-949", "CoNi": "mp-1006883"},
}
"""For each predictor the crystals of its figure, by formula, with their ids."""
COMMAND = "crysxpp benchmark explanations"


def run_explanations(
    root: str | Path | None = None,
    *,
    out: str | Path = RESULTS,
    figures: Mapping[str, Mapping[str, str]] = FIGURES,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Draw what each crystal switches on in the selector, and tabulate what its parts contribute.

    Writes ``explanations.csv``, ``explanations.md`` and a picture a crystal.

    Args:
        root: The data root, as for ``crysxpp_mm.benchmarks.data.data_root``.
        out: The folder of the results.
        figures: Names or paths of predictors, each with its crystals.
        say: Where the lines of text go.

    Returns:
        One row a crystal: the prediction, the baseline, and what each property contributes.

    Raises:
        DataError: the data are missing.
        SettingsError: there is no figure to draw.
        UnknownModelError: a predictor is not there.
    """
    if not figures:
        raise SettingsError("figures must not be empty.")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    rows, sections = [], []
    for name, crystals in figures.items():
        model = load_model(name)
        structures = load_mp_structures(root, list(crystals.values()))
        for (formula, material_id), structure in zip(crystals.items(), structures, strict=True):
            picture = f"explanation-{model.target_names_[0].replace('_', '-')}-{formula}.png"
            figure: Any = plot_explanation(model.explain(structure)).figure
            figure.savefig(folder / picture, dpi=110)
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
            title = f"## {parts.name}: {formula} ({material_id})"
            sections += [title, "", f"![{formula}]({picture})", ""]
    table = pd.DataFrame(rows)
    write_report(out, "explanations", tables={"explanations": table}, text=_page(table, sections))
    say(f"explanations: written to {out}")
    return table


def _page(table: pd.DataFrame, sections: Sequence[str]) -> str:
    return "\n".join(
        [
            "# Why: crystals of the article's Figs. 4-6",
            "",
            (
                "Weights of the feature selector that the elements of a crystal switch on, by the "
                "shipped predictors. A weight says that a column is let through, not in which "
                "direction it moves the prediction; contributions (integrated gradients) do, and "
                "sum with the baseline to the prediction:"
            ),
            "",
            markdown_table(table),
            "",
            *sections,
            f"Made by `{COMMAND}`.",
            "",
            f"Versions: {versions()}.",
            "",
        ]
    )
