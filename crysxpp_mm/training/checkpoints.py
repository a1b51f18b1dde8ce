"""The folder of a run: its record, its checkpoint, and how it stops."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from crysxpp_mm.errors import SettingsError
from crysxpp_mm.serialization import write_whole

MODEL = "model.json.gz"
CHECKPOINT = "last.ckpt"
RUN = "run.json"
CURVES = "curves.csv"
PICTURE = "curves.png"
TERMINATED = 143
"""Exit code after SIGTERM, as shells have it."""


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``, complete or not at all."""
    write_whole(folder / RUN, json.dumps(record, indent=1).encode())


def check_run(folder: Path, record: Mapping[str, Any]) -> bool:
    """Tell whether the folder, made if absent, holds a checkpoint of this very run.

    Args:
        folder: Of the run.
        record: What tells the run from others; written to a new folder. ``run.json`` may hold
            more.

    Raises:
        SettingsError: the folder holds another run, or is damaged.
    """
    path = folder / RUN
    advice = "choose another folder, or remove it to start afresh"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder, record)
    else:
        try:
            before = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{path} cannot be read ({error}); {advice}.") from error
        plain = json.loads(json.dumps(record))
        if differing := [key for key in plain if before.get(key) != plain[key]]:
            raise SettingsError(
                f"{folder} holds another run (differing: {', '.join(differing)}); {advice}."
            )
    checkpoint = folder / CHECKPOINT
    if not checkpoint.exists():
        return False
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in torch in any way
        raise SettingsError(f"{checkpoint} is damaged; {advice}.") from error
    return True


@contextmanager
def stopped_as_usual() -> Iterator[None]:
    """Turn Lightning's exits after a signal back into what the signal is elsewhere.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM, as batch systems send it; with the code 143, where Lightning exits as
            if all had gone well.
    """
    try:
        yield
    except SIGTERMException as stop:
        raise SystemExit(TERMINATED) from stop
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
