"""Colours and axes that all pictures share; matplotlib's global state is left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#222255",
    "#aaaaaa",
)
"""Eight colours that stay apart for colour-blind readers (Paul Tol's bright scheme, extended)."""


def new_axes(axes: Axes | None, *, width: float = 5.0, height: float = 4.0) -> Axes:
    """``axes``, or those of a figure of its own; in a notebook that figure shows itself."""
    if axes is not None:
        return axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis with 20, 50, 100 instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
