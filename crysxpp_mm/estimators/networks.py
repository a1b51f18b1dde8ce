"""Fitted networks at work, on the device that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.models.property import PropertyModel

ModelT = TypeVar("ModelT", bound=PropertyModel[Any])


def on_device(network: ModelT, device: torch.device) -> ModelT:
    """Return the network, or a copy of it on ``device`` if it is elsewhere."""
    return network if device == network.device else deepcopy(network).to(device)


def outputs_of(
    networks: Sequence[PropertyModel[Any]], graphs: CrystalGraphs, device: torch.device
) -> NDArray[np.float64]:
    """Predict with each network, shape ``(n_networks, n_graphs, n_outputs)``."""
    return np.stack([on_device(network, device).predict(graphs).numpy() for network in networks])


def embeddings_of(
    network: PropertyModel[Any], graphs: CrystalGraphs, device: torch.device
) -> NDArray[np.float32]:
    """Embed crystals, shape ``(n_graphs, n_columns)``."""
    embeddings: NDArray[np.float32] = on_device(network, device).embed_many(graphs).numpy()
    return embeddings
