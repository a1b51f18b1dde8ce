"""Arguments that every estimator has, declared and documented once."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import TypeVar

from crysxpp_mm.training.options import FitOptions

ClassT = TypeVar("ClassT", bound=type)


@dataclass(kw_only=True, eq=False, repr=False)
class EstimatorOptions(FitOptions):
    """Arguments of every estimator.

    Args:
        n_members: Networks of the ensemble, each with a seed of its own; the prediction is their
            mean. All hold out the same rows.
        target_names: Names of the targets; those of ``y`` if None.
        checkpoint_dir: Folder for checkpoints, curves and tables, a folder a run inside. A fit
            that was killed goes on when it is called again with the same data and settings. It is
            not saved with a model.
        accelerator: Where to train and predict: ``"auto"`` for CUDA where available, else the CPU;
            ``"cpu"``, ``"gpu"``, or another name that Lightning and torch both know. Members stay
            on the CPU; copies of them compute, and outputs come back. It is not saved.
        devices: As Lightning takes it, for the training. It is not saved.
        pbar: Show a progress bar over the epochs.
    """

    n_members: int = 1
    target_names: Sequence[str] | str | None = None
    checkpoint_dir: str | os.PathLike[str] | None = None
    accelerator: str = "auto"
    devices: int | str = 1
    pbar: bool = True


THIS_MACHINE = {"checkpoint_dir": None, "accelerator": "auto", "devices": 1}
"""Settings that belong to a machine; a model file neither keeps nor sets them."""


def with_inherited_arguments(cls: ClassT) -> ClassT:
    """Add the arguments that a dataclass inherits to its docstring, before its attributes."""
    text = inspect.cleandoc(cls.__doc__ or "")
    head, mark, tail = text.partition("\n\nAttributes:\n")
    blocks = []
    for base in cls.__mro__[1:]:
        inherited = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        found = re.search(r"Args:\n(.*?)(?=\n\n|\Z)", inherited, re.DOTALL)
        if found and is_dataclass(base):
            blocks.append(found[1])
    if mark:  # python -OO keeps no docstrings
        start = head if "\n\nArgs:\n" in head else f"{head}\n\nArgs:"
        cls.__doc__ = "\n".join([start, *blocks]) + mark + tail
    return cls
