"""The log of a training: every term of every epoch, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pandas as pd
from lightning.pytorch.callbacks import Callback

from crysxpp_mm.plots import plot_curves

CURVES = "curves.csv"
PICTURE = "curves.png"


class CurveRecorder(Callback):
    """Write ``curves.csv`` and ``curves.png`` after every epoch."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rows = state_dict["rows"]

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Add the epoch."""
        row: dict[str, float] = {"epoch": trainer.current_epoch}
        row |= {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        row["learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.rows.append(row)
        table = pd.DataFrame(self.rows)
        table.to_csv(self.out / CURVES, index=False)
        plot_curves(table).savefig(self.out / PICTURE, dpi=120)
