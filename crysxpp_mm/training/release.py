"""From a finished pretraining to a folder that can be shipped: weights, card, golden outputs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pymatgen.core import Lattice, Structure
from torch import nn

from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.pooling import pool
from crysxpp_mm.serialization import write_document
from crysxpp_mm.training.checkpoints import CURVES, MODEL, PICTURE

CARD = "README.md"
GOLDEN = "golden.json"
SETTINGS = "settings.json"


def golden_crystals() -> dict[str, Structure]:
    """Three crystals whose embeddings are kept beside the weights: rock salt, SrTiO3, copper."""
    fcc = Lattice([[0, 1.805, 1.805], [1.805, 0, 1.805], [1.805, 1.805, 0]])
    return {
        "NaCl, rock salt": Structure.from_spacegroup(
            "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
        ),
        "SrTiO3, cubic perovskite": Structure(
            Lattice.cubic(3.905),
            ["Sr", "Ti", "O", "O", "O"],
            [[0.0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        ),
        "Cu, fcc": Structure(fcc, ["Cu"], [[0, 0, 0]]),
    }


def golden_outputs(model: CrysAE) -> dict[str, list[float]]:
    """All layers and moments of the golden crystals, to seven digits."""
    crystals = golden_crystals()
    graph = model.make_graph(model.converter.convert_many(crystals.values()))
    rows = pool(graph, model.node_embeddings(graph)).cpu().numpy()
    return {
        name: [seven_digits(value) for value in row]
        for name, row in zip(crystals, rows, strict=True)
    }


def seven_digits(value: float) -> float:
    """A number as golden outputs keep it."""
    return float(f"{value:.7g}")


def write_release(
    run: str | os.PathLike[str], out: str | os.PathLike[str], *, title: str, summary: str
) -> Path:
    """Write the folder of a model from the folder of its run.

    It receives ``model.json.gz``, ``README.md`` (the card), ``settings.json`` (to train it again),
    ``golden.json``, and the log of the training as ``curves.csv`` and ``curves.png``.

    Args:
        run: Folder that ``pretrain`` filled.
        out: Folder of the model; its name is the model's.
        title: What the model is, in a line.
        summary: A paragraph for the card: how it differs from others, what it is for.

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
    model.metadata = {**facts, "data": facts["description"], "description": title}
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / MODEL)
    for name in (CURVES, PICTURE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    write_document(facts["config"], folder / SETTINGS)
    write_document({"embeddings": golden_outputs(model)}, folder / GOLDEN)
    card = model_card(folder.name, model, pd.read_csv(source / CURVES), summary)
    (folder / CARD).write_text(card, encoding="utf-8")
    return folder


def model_card(name: str, model: CrysAE, curves: pd.DataFrame, summary: str) -> str:
    """The card of a pretrained model, in Markdown."""
    facts, results = model.metadata, model.metadata["results"]
    config: dict[str, Any] = facts["config"]
    last = curves.iloc[-1]
    lines = [
        f"# {name}",
        "",
        f"{model.metadata['description']}.",
        "",
        summary,
        "",
        "| | |",
        "|---|---|",
        f"| data | {facts['data']} |",
        f"| sha256 of names and graphs | `{facts['data_hash']}` |",
        f"| crystals trained on / held out | {facts['n_train']:,} / {facts['n_validation']:,} |",
        f"| seed (weights, split, order, corruption) | {config['seed']} |",
        f"| epochs, best | {results['epochs']}, {results['best_epoch'] + 1} |",
        f"| seconds since the last start | {results['seconds_of_last_start']:,.0f} |",
        f"| parameters | {n_parameters(model):,} |",
        f"| graph rule | {graph_rule(model.converter)} |",
        f"| network | {items(model.settings)} |",
        f"| version | {facts['version']} |",
        "",
        "## What it rebuilds of held-out crystals",
        "",
        "From embeddings of whole crystals, none of them trained on.",
        "",
        "| quantity | value |",
        "|---|---|",
        *_reconstruction_rows(results.get("reconstruction", {})),
        "",
        "Loss terms of the last epoch, training / validation: "
        + ", ".join(
            f"{column[6:].replace('_', ' ')} {last[column]:.4g} / {last['val_' + column[6:]]:.4g}"
            for column in curves.columns
            if column.startswith("train_") and "val_" + column[6:] in curves
        )
        + ". Every epoch is in `curves.csv`, drawn in `curves.png`.",
        "",
        "## Limits",
        "",
        *limits_of_graphs(model.converter, model.settings["element_channel"]),
        (
            "- Crystals of the Materials Project are mostly ordered and inorganic; disordered "
            "crystals are accepted, but none was trained on."
        ),
        "",
        "## Train it again",
        "",
        f"    crysxpp pretrain DATA --config {SETTINGS} --out runs/{name}",
        "",
        f"`{SETTINGS}` lies beside this card; `DATA` is a zip or folder of the crystals.",
        "",
    ]
    return "\n".join(lines)


def limits_of_graphs(converter: CrystalGraphConverter, element_channel: bool) -> list[str]:
    """What no model of a graph rule can see, as lines of a card."""
    return [
        "- Elements 1 to 100; oxidation states, spins and charges are ignored.",
        (
            f"- Bonds to the {converter.max_neighbors} nearest neighbours within "
            f"{converter.cutoff:g} Angstrom; what lies farther is not seen."
        ),
        "- La and Ce, Sm and Gd, Ho and Er, Th and Np, Am and Cm, and Bk, Cf, Es and Fm have equal "
        "node features: compounds that differ by them alone embed alike"
        + (", but for the element channel." if element_channel else "."),
    ]


def graph_rule(converter: CrystalGraphConverter) -> str:
    """The settings of a graph rule in a line."""
    return items({k: v for k, v in converter.as_dict().items() if not k.startswith("@")})


def items(settings: Mapping[str, Any]) -> str:
    """Names and values in a line."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def n_parameters(network: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def _reconstruction_rows(measured: dict[str, Any]) -> list[str]:
    labels = {
        "bond_existence_accuracy": "bond existence, accuracy over ordered pairs",
        "bonded_accuracy": "... on bonded pairs",
        "unbonded_accuracy": "... on pairs without a bond",
        "multiplicity_accuracy": "bond multiplicity, accuracy on bonded pairs",
        "bond_length_mae": "bond length, mean absolute error, Angstrom",
    }
    rows = [f"| {text} | {measured[key]:.3f} |" for key, text in labels.items() if key in measured]
    features: dict[str, float] = measured.get("atom_feature_accuracy", {})
    rows += [f"| {name}, accuracy of its bin | {value:.3f} |" for name, value in features.items()]
    return rows
