"""Accuracy with which CrysAE rebuilds crystals that it was not trained on."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from crysxpp_mm.elements import PROPERTIES
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.batch import ATOM_FEATURES, DISTANCE, atom_batches
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.decoder import pair_index

BATCH_ATOMS = 2000


@torch.no_grad()
def measure_reconstruction(model: CrysAE, graphs: CrystalGraphs) -> dict[str, Any]:
    """Rebuild crystals from the embeddings of their full graphs.

    Returns:
        ``bond_existence_accuracy`` over all ordered pairs of sites, with the accuracy on
        ``bonded`` and on ``unbonded`` pairs; ``multiplicity_accuracy`` over bonded pairs;
        ``bond_length_mae`` in Angstrom; ``atom_feature_accuracy`` by property, the share of
        atoms whose bin has the highest probability, over atoms with one known bin.
    """
    right: dict[str, float] = defaultdict(float)
    total: dict[str, int] = defaultdict(int)

    def count(name: str, values: torch.Tensor) -> None:
        right[name] += float(values.double().sum())
        total[name] += len(values)

    model = model.eval()
    for chosen in atom_batches(graphs.n_atoms, BATCH_ATOMS):
        part = graphs.select(chosen)
        graph = model.make_graph(part)
        pairs = pair_index(part).to(model.device)
        rebuilt = model(graph, pairs)
        exists = (rebuilt.existence > 0) == pairs.bonded
        count("bond_existence_accuracy", exists)
        count("bonded_accuracy", exists[pairs.bonded])
        count("unbonded_accuracy", exists[~pairs.bonded])
        count("multiplicity_accuracy", rebuilt.multiplicity.argmax(1) == pairs.multiplicities)
        count("bond_length_mae", (rebuilt.bond_lengths - graph.edata[DISTANCE]).abs())
        for item in PROPERTIES:
            truth = graph.ndata[ATOM_FEATURES][:, item.start : item.stop]
            guess = rebuilt.atom_features[:, item.start : item.stop].argmax(1)
            known = truth.max(1).values == 1
            count(f"features: {item.name}", guess[known] == truth[known].argmax(1))
    measured = {name: right[name] / total[name] if total[name] else None for name in total}
    features = {
        name.removeprefix("features: "): measured.pop(name)
        for name in list(measured)
        if name.startswith("features: ")
    }
    return {**measured, "atom_feature_accuracy": features}
