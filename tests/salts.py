"""Rock-salt-like crystals with labels, and estimators that learn them in no time."""

from __future__ import annotations

import numpy as np
from pymatgen.core import Lattice, Structure

from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor
from crysxpp_mm.models.crysae import CrysAE

TINY = CrysAE.random(seed=1, hidden_dim=4, n_convs=1)
FAST = {"pretrained": TINY, "readout_dim": 4, "max_epochs": 1, "min_steps": 0, "pbar": False}


def make_salts(n=16):
    """Rock-salt-like crystals that differ in elements and size."""
    pairs = [("Li", "F"), ("Na", "Cl"), ("K", "Br"), ("Mg", "O"), ("Ca", "S"), ("Ti", "N")]
    return [
        Structure(Lattice.cubic(2.7 + 0.05 * i), list(pairs[i % 6]), [[0, 0, 0], [0.5] * 3])
        for i in range(n)
    ]


SALTS = make_salts()  # never changed here
Y = np.linspace(1.0, 4.0, 16)
Y.setflags(write=False)
CLASSES = ["metal", "non-metal"] * 8


def regressor(**changes):
    return CrysXPPRegressor(**{**FAST, **changes})


def classifier(**changes):
    return CrysXPPClassifier(**{**FAST, **changes})
