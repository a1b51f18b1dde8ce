"""From what was typed to structures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from crysxpp_mm.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def find_source(
    source: str, column: str | None, data_home: Path | None
) -> tuple[Path | pd.DataFrame, str]:
    """A path or a table, and the column of structures, from what was typed.

    Raises:
        DataError: there is neither a file nor a data set of that name.
    """
    from crysxpp_mm.data.sources import STRUCTURE

    path = Path(source)
    if path.exists():
        return path, column or STRUCTURE
    if not re.fullmatch(r"\w+", source):
        raise DataError(f"{source}: there is no such file or folder.")
    from crysxpp_mm.datasets import load_table, structure_column

    try:
        table = load_table(source, data_home=data_home)
    except DataError as error:
        raise DataError(f"{source} is no file or folder here, and {error}") from error
    if column is None:
        column = STRUCTURE if STRUCTURE in table.columns else structure_column(table)
    return table, column
