"""The log of a training: every term of every epoch, as a table and a picture."""

from __future__ import annotations

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

CURVES = "curves.csv"
PICTURE = "curves.png"


def plot_curves(table: pd.DataFrame) -> Figure:
    """Draw one panel a loss term, training and validation."""
    terms = [name[6:] for name in table.columns if name.startswith("train_")]
    figure = Figure(figsize=(3.2 * len(terms), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, term in zip(figure.subplots(1, len(terms), squeeze=False)[0], terms, strict=True):
        for prefix, label in (("train", "training"), ("val", "validation")):
            if f"{prefix}_{term}" in table:
                axes.plot(table["epoch"] + 1, table[f"{prefix}_{term}"], label=label)
        axes.set(xlabel="epoch", title=term.replace("_", " "), yscale="log")
        axes.legend(frameon=False)
    return figure
