"""Fitted networks at work: on which device, with how many threads, batch after batch."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray

from crysxpp_mm.errors import SettingsError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.batch import atom_batches
from crysxpp_mm.models.crysxpp import CrysXPP
from crysxpp_mm.compute import default_device, one_torch_thread

BATCH_ATOMS = 4096
"""Sites that go through a network at once."""


def usable_device(accelerator: object) -> torch.device:
    """The device that Lightning's name of an accelerator stands for.

    Args:
        accelerator: ``"auto"`` for CUDA where it is available, else the CPU, and the CPU in a
            forked child; ``"gpu"`` for CUDA; or a name that torch knows.

    Raises:
        SettingsError: this machine has no such accelerator.
    """
    name = accelerator
    if name == "auto":
        name = default_device()
    elif name == "gpu":
        name = "cuda"
    try:
        if not isinstance(name, str):
            raise TypeError("it is no text")
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise SettingsError(
            f"accelerator={accelerator!r} cannot be used here ({reason}); "
            "accelerator='auto' takes what there is."
        ) from error


def placed(network: CrysXPP, device: torch.device) -> CrysXPP:
    """The network, or a copy on ``device`` if it is elsewhere."""
    return network if device == network.device else deepcopy(network).to(device)


def outputs_of(
    networks: Sequence[CrysXPP], graphs: CrystalGraphs, device: torch.device
) -> NDArray[np.float64]:
    """Outputs of each network, shape ``(n_networks, n_graphs, n_outputs)``."""
    with one_torch_thread():
        return np.stack(
            [
                placed(network, device).predict(graphs, batch_atoms=BATCH_ATOMS).numpy()
                for network in networks
            ]
        )


def embeddings_of(
    network: CrysXPP, graphs: CrystalGraphs, device: torch.device
) -> NDArray[np.float32]:
    """Pooled embeddings (Eq. 8), shape ``(n_graphs, n_columns)``."""
    rows = [np.empty((0, n_columns(network)), dtype=np.float32)]
    with one_torch_thread(), torch.no_grad():
        network = placed(network, device)
        rows += [
            network.embed(network.make_graph(graphs.select(block))).cpu().numpy()
            for block in atom_batches(graphs.n_atoms, BATCH_ATOMS)
        ]
    return np.concatenate(rows)


def n_columns(network: CrysXPP) -> int:
    """Width of the pooled embedding."""
    n_layers = network.encoder.n_convs + 1 if network.layers == "all" else 1
    return n_layers * len(network.moments) * network.encoder.hidden_dim
