"""What a fitted estimator says of itself, as JSON has it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from monty.json import MSONable


def plain_setting(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, MSONable):
        return {k: v for k, v in value.as_dict().items() if k != "@version"}
    if isinstance(value, Mapping):
        return {str(key): plain_setting(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray | pd.Index | pd.Series):
        return [plain_setting(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def plain_label(label: Any) -> Any:
    """What pandas calls a column, as JSON has it: a text, a number, a list for a tuple."""
    if isinstance(label, tuple):
        return [plain_label(part) for part in label]
    if isinstance(label, np.generic):
        label = label.item()
    return label if isinstance(label, str | int | float) else str(label)


def table_to_dict(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns of a table as lists, None in place of NaN."""
    return {
        str(name): [None if pd.isna(value) else value for value in column.tolist()]
        for name, column in table.items()
    }


def document_hash(document: Mapping[str, Any]) -> str:
    """sha256 over everything that a document says, whatever the order of its keys."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
