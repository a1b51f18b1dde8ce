"""From a finished pretraining to a folder that can be shipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.pooling import pool
from crysxpp_mm.release.cards import (
    CARD,
    GOLDEN,
    SETTINGS,
    golden_crystals,
    n_parameters,
    render_card,
    seven_digits,
)
from crysxpp_mm.serialization import write_document
from crysxpp_mm.training.checkpoints import CURVES, MODEL, PICTURE

REBUILT = {
    "bond_existence_accuracy": "bond existence, accuracy over ordered pairs",
    "bonded_accuracy": "... on bonded pairs",
    "unbonded_accuracy": "... on pairs without a bond",
    "multiplicity_accuracy": "bond multiplicity, accuracy on bonded pairs",
    "bond_length_mae": "bond length, mean absolute error, Angstrom",
}
"""What is measured of the reconstruction, in words."""


def golden_outputs(model: CrysAE) -> dict[str, list[float]]:
    """All layers and moments of the golden crystals, to seven digits."""
    crystals = golden_crystals()
    graph = model.make_graph(model.converter.convert_many(crystals.values()))
    rows = pool(graph, model.node_embeddings(graph)).cpu().numpy()
    return {
        name: [seven_digits(value) for value in row]
        for name, row in zip(crystals, rows, strict=True)
    }


def write_release(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    columns: pd.DataFrame | None = None,
) -> Path:
    """Write the folder of a model from the folder of its run.

    It receives ``model.json.gz``, ``README.md`` (the card), ``settings.json`` (to train it again),
    ``golden.json``, and the log of the training as ``curves.csv`` and ``curves.png``.

    Args:
        run: Folder that ``pretrain`` filled.
        out: Folder of the model; its name is the model's.
        title: What the model is, in a line.
        summary: A paragraph for the card: how it differs from others, what it is for.
        columns: Errors of simple models for the card, one row per target (the index names it),
            one column per kind of columns; NaN where nothing was measured.

    Returns:
        ``out``.

    Raises:
        DataError: the run has no model or no curves.
        SettingsError: the run has not ended, so that its results are not known.
    """
    source, folder = Path(run), Path(out)
    for name in (MODEL, CURVES):
        if not (source / name).is_file():
            raise DataError(f"{source} has no {name}; it is no folder of a pretraining.")
    model = CrysAE.load(source / MODEL)
    if "results" not in model.metadata:
        raise SettingsError(f"the run in {source} has not ended; run the same command again.")
    facts = dict(model.metadata)
    if columns is not None:
        rows = [
            [str(target), *(None if error != error else float(error) for error in errors)]
            for target, *errors in columns.itertuples(name=None)
        ]
        measured = {"kinds": list(map(str, columns)), "rows": rows}
        facts["results"] = {**facts["results"], "columns": measured}
    model.metadata = {**facts, "data": facts["description"], "description": title}
    card = model_card(folder.name, model, pd.read_csv(source / CURVES), summary)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / MODEL)
    for name in (CURVES, PICTURE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    write_document(facts["config"], folder / SETTINGS)
    write_document({"embeddings": golden_outputs(model)}, folder / GOLDEN)
    (folder / CARD).write_text(card, encoding="utf-8")
    return folder


def model_card(name: str, model: CrysAE, curves: pd.DataFrame, summary: str) -> str:
    """Card of a pretrained model, in Markdown.

    Args:
        name: The model's.
        model: The model, with the facts of its training as ``metadata``.
        curves: Losses, one row per epoch.
        summary: A paragraph.
    """
    return render_card(
        "autoencoder",
        name=name,
        summary=summary,
        facts=model.metadata,
        network=model.settings,
        n_parameters=n_parameters(model),
        converter=model.converter,
        reads_elements=model.reads_elements,
        rebuilt=_rebuilt(model.metadata["results"]),
        losses=_last_losses(curves),
    )


def _rebuilt(results: Mapping[str, Any]) -> dict[str, float]:
    """Quality of the reconstruction and of the pretext targets, by its names on the card.

    What the crystals held out have no example of was not measured, and is left out.
    """
    measured: dict[str, Any] = results.get("reconstruction", {})
    targets: dict[str, float] = results.get("targets", {})
    features: dict[str, Any] = measured.get("atom_feature_accuracy", {})
    rows = {
        **{text: measured.get(key) for key, text in REBUILT.items()},
        **{f"{name}, accuracy of its bin": value for name, value in features.items()},
        **{f"{name}, share of the variance not predicted": v for name, v in targets.items()},
    }
    return {text: value for text, value in rows.items() if value is not None}


def _last_losses(curves: pd.DataFrame) -> str:
    """Loss terms of the last epoch that training and validation share, in a line."""
    last = curves.iloc[-1]
    terms = [name.removeprefix("train_") for name in map(str, curves) if name.startswith("train_")]
    return ", ".join(
        f"{term.replace('_', ' ')} {last[f'train_{term}']:.4g} / {last[f'val_{term}']:.4g}"
        for term in terms
        if f"val_{term}" in curves
    )
