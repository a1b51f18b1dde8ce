"""``crysxpp featurize``."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crysxpp_mm.cli.inputs import OpenCrystals, find_source
from crysxpp_mm.cli.messages import reason
from crysxpp_mm.cli.options import (
    Column,
    DataHome,
    KeepDoubts,
    KeepErrors,
    Model,
    Parsers,
    Source,
    TableOut,
)
from crysxpp_mm.cli.rows import Block, compute_rows, write_rows
from crysxpp_mm.cli.tables import check_output

if TYPE_CHECKING:
    from crysxpp_mm.data.sources import Parsed
    from crysxpp_mm.featurizers import CrysAEFeaturizer


def featurize(
    source: Source,
    out: TableOut = Path("columns.csv"),
    column: Column = None,
    model: Model = None,
    ignore_errors: KeepErrors = False,
    keep_doubts: KeepDoubts = False,
    num_workers: Parsers = 0,
    data_home: DataHome = None,
) -> None:
    """Make learned columns from structures.

    \b
    Examples:
      crysxpp featurize my_cifs/ --out columns.csv
      crysxpp featurize table.csv --column cif --out columns.csv.gz --ignore-errors
      crysxpp featurize crystals.zip --out columns.csv --num-workers 4
      crysxpp featurize elastic_tensor_2015 --data-home matminer_data --out columns.csv
    """
    check_output(out)
    from crysxpp_mm.data.sources import open_structures, parse_blocks

    found, column = find_source(source, column, data_home)
    entries = open_structures(found, column=column)
    from crysxpp_mm.featurizers import CrysAEFeaturizer

    featurizer = CrysAEFeaturizer(model=model) if model else CrysAEFeaturizer()
    labels = featurizer.feature_labels()
    crystals = OpenCrystals(entries, label=entries.label, column=column)
    rows = compute_rows(
        (
            _featurize_block(featurizer, block)
            for block in parse_blocks(entries, num_workers=num_workers, keep_doubts=keep_doubts)
        ),
        crystals,
        ignore_errors=ignore_errors,
        unit="structures",
        done="no structure could be featurized",
    )
    write_rows(
        rows,
        crystals,
        out,
        ignore_errors=ignore_errors,
        unit="structures featurized",
        what=f"{len(labels)} columns each ({labels[0]!r} ... {labels[-1]!r}), by "
        f"{featurizer.model}",
    )


def _featurize_block(featurizer: CrysAEFeaturizer, block: Parsed) -> Block:
    """Featurize the structures of a block that were read."""
    import numpy as np
    import pandas as pd

    found = featurizer.featurize_many(
        block.structures, ignore_errors=True, return_errors=True, pbar=False
    )
    positions = [row for row in range(len(block.names)) if row not in block.errors]
    errors = {
        position: reason(row[-1])
        for position, row in zip(positions, found, strict=True)
        if isinstance(row[-1], str)
    }
    labels = featurizer.feature_labels()
    numbers = np.array([row[:-1] for row in found], dtype=np.float32).reshape(-1, len(labels))
    columns = pd.DataFrame(numbers, index=positions, columns=pd.Index(labels))
    return Block(block.names, columns, {**block.errors, **errors}, block.notes)
