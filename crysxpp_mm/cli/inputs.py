"""From what was typed to structures, graphs and labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import compress, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from crysxpp_mm.errors import DataError, SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from crysxpp_mm.data.sources import Parsed, StructureSource
    from crysxpp_mm.data.store import GraphStore
    from crysxpp_mm.graph.arrays import CrystalGraphs
    from crysxpp_mm.graph.converter import CrystalGraphConverter

UNKNOWN = {"", "nan", "na", "n/a", "null", "none"}
"""Texts in a column of numbers that stand for no number."""


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
    from crysxpp_mm.data.matminer_tables import load_table, structure_column

    try:
        table = load_table(source, data_home=data_home)
    except DataError as error:
        raise DataError(f"{source} is no file or folder here, and {error}") from error
    if column is None:
        column = STRUCTURE if STRUCTURE in table.columns else structure_column(table)
    return table, column


class OpenCrystals:
    """Input of a command: structures, or the graphs of a store.

    Attributes:
        names: Name of each crystal.
        label: Where they come from, for messages.
        table: The other columns of their table, if they have one.
        column: The column of structures of that table.
    """

    def __init__(self, source: StructureSource | GraphStore, *, label: str, column: str) -> None:
        self.names = source.names
        self.label = label
        self.table: pd.DataFrame | None = getattr(source, "table", None)
        self.column = column
        self._source = source

    def __len__(self) -> int:
        return len(self.names)

    def graphs(
        self,
        converter: CrystalGraphConverter,
        *,
        keep: Sequence[bool] | None = None,
        num_workers: int = 0,
        keep_doubts: bool = False,
    ) -> Iterator[GraphBlock]:
        """The graphs, block after block.

        Args:
            converter: The rule of the model.
            keep: Which crystals are wanted; all if None.
            num_workers: Processes that parse files.
            keep_doubts: Use crystals whose files leave something open, with a note.

        Raises:
            DataError: a graph store was built by another rule.
        """
        from crysxpp_mm.data.sources import BLOCK, StructureSource, parse_blocks

        wanted = [True] * len(self) if keep is None else keep
        if isinstance(self._source, StructureSource):
            payloads = compress(self._source, wanted)
            for block in parse_blocks(payloads, num_workers=num_workers, keep_doubts=keep_doubts):
                yield _convert(block, converter)
            return
        if self._source.converter != converter:
            raise DataError(
                f"{self.label} was built by {self._source.converter}, the model needs {converter}; "
                "give the structures themselves."
            )
        rows = iter(list(compress(range(len(self)), wanted)))
        while part := list(islice(rows, BLOCK)):
            names = [self.names[row] for row in part]
            noted = self._source.notes
            notes = {place: noted[name] for place, name in enumerate(names) if name in noted}
            graphs = self._source.graphs.select(part)
            yield GraphBlock(names, graphs, list(range(len(part))), {}, notes)


class GraphBlock(NamedTuple):
    """Some crystals with the graphs of those that have one."""

    names: list[str]
    graphs: CrystalGraphs
    rows: list[int]  # position of each graph in ``names``
    errors: dict[int, str]  # why the others have none, by position
    notes: dict[int, str]  # what was made of their files


def _convert(block: Parsed, converter: CrystalGraphConverter) -> GraphBlock:
    parsed = [position for position in range(len(block.names)) if position not in block.errors]
    graphs, failed = converter.convert_each(block.structures)
    errors = {**block.errors, **{parsed[index]: str(error) for index, error in failed.items()}}
    rows = [position for position in parsed if position not in errors]
    return GraphBlock(block.names, graphs, rows, errors, block.notes)


def open_crystals(source: str, column: str | None, data_home: Path | None) -> OpenCrystals:
    """Open what a command takes as SOURCE; a graph store too.

    Raises:
        DataError: there is nothing of that name, or it holds no structure.
        GraphStoreError: the graph store is absent or damaged.
    """
    from crysxpp_mm.data.sources import open_structures
    from crysxpp_mm.data.store import SUFFIX, GraphStore

    if source.endswith(SUFFIX):
        return OpenCrystals(GraphStore.load(source), label=source, column="")
    found, column = find_source(source, column, data_home)
    entries = open_structures(found, column=column)
    label = entries.label if isinstance(found, Path) else source
    return OpenCrystals(entries, label=label, column=column)


# Labels.


def read_labels(
    crystals: OpenCrystals,
    targets: Sequence[str],
    *,
    labels: Path | None,
    id_column: str | None,
) -> pd.DataFrame:
    """The columns to learn, one row per crystal, in the order of the crystals.

    They are columns of the crystals' own table, or of a table of labels whose ids are the names of
    the files without folder and suffix. What does not match is counted and told.

    Raises:
        DataError: there is no such column, an id or a name occurs twice, or nothing matches.
        SettingsError: a table of labels is missing, or is one too many.
    """
    if crystals.table is not None:
        if labels is not None or id_column is not None:
            raise SettingsError(
                f"{crystals.label} is a table, and the targets are columns of it; --labels and "
                "--id-column go with a folder, a zip or a graph store."
            )
        _require_columns(crystals.table, targets, crystals.label)
        return crystals.table[list(targets)].reset_index(drop=True)
    if labels is None:
        raise SettingsError(
            f"{crystals.label} holds crystals without labels; name a table of them with --labels."
        )
    return _match(crystals, targets, labels, id_column)


def _match(
    crystals: OpenCrystals, targets: Sequence[str], path: Path, id_column: str | None
) -> pd.DataFrame:
    """The rows of a table of labels, in the order of the crystals.

    Raises:
        DataError: there is no such table or column, an id or a name occurs twice, or nothing
            matches.
    """
    import pandas as pd

    from crysxpp_mm.data.sources import bare_name

    table, id_column = _read_label_table(path, id_column)
    _require_columns(table, [id_column, *targets], str(path))
    table = table[table[id_column].notna()]
    table = table.assign(**{id_column: table[id_column].astype(str)})
    if (twice := table[id_column].duplicated()).any():
        raise DataError(
            f"{path} has the id {table.loc[twice, id_column].iloc[0]!r} twice in {id_column!r}."
        )
    names = pd.Index([bare_name(name) for name in crystals.names])
    if names.has_duplicates:
        raise DataError(
            f"{crystals.label} has two crystals with the id {names[names.duplicated()][0]!r}."
        )
    ids = pd.Index(table[id_column])
    alone, absent = names.difference(ids, sort=False), ids.difference(names, sort=False)
    if len(alone) == len(names):
        raise DataError(
            f"no name of a file in {crystals.label}, such as {names[0]!r}, is an id in "
            f"{id_column!r} of {path}."
        )
    _tell_unmatched(f"crystals of {crystals.label} have no row in {path}", list(alone))
    _tell_unmatched(f"rows of {path} have no crystal in {crystals.label}", list(absent))
    matched = table.set_index(id_column, drop=False)[list(targets)].reindex(names)
    return matched.reset_index(drop=True)


def _read_label_table(path: Path, id_column: str | None) -> tuple[pd.DataFrame, str]:
    """A table with its ids as text, and the name of their column, the first if not given."""
    import pandas as pd

    from crysxpp_mm.data.sources import is_table, read_table

    if not path.is_file() or not is_table(path):
        raise DataError(f"{path}: there is no such CSV or JSON table.")
    table = read_table(path, text=() if id_column is None else (id_column,))
    if not isinstance(table, pd.DataFrame):
        raise DataError(f"{path} holds one structure, not a table of labels.")
    if id_column is not None:
        return table, id_column
    id_column = str(table.columns[0])
    return pd.DataFrame(read_table(path, text=(id_column,))), id_column


def _tell_unmatched(what: str, left: Sequence[str]) -> None:
    if left:
        shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        typer.echo(f"{len(left)} {what} ({shown}).")


def _require_columns(table: pd.DataFrame, names: Sequence[str], label: str) -> None:
    if missing := [name for name in names if name not in table.columns]:
        raise DataError(
            f"{label} has no column {missing[0]!r}; it has "
            f"{', '.join(map(str, table.columns[:20]))}."
        )


def as_numbers(labels: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Labels as numbers, NaN where unknown.

    Raises:
        DataError: one is no finite number; the crystal is named.
    """
    import numpy as np
    import pandas as pd

    columns = {}
    for target, cells in labels.items():
        texts = cells.astype(str).str.strip().str.lower()
        cells = cells.mask(texts.isin(UNKNOWN))
        numbers = pd.to_numeric(cells, errors="coerce").astype(float)
        wrong = (numbers.isna() & cells.notna()) | np.isinf(numbers)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            value = cells.tolist()[row]
            raise DataError(
                f"{names[row]}: {target} is {value!r}, which is no number; correct it or "
                "leave it empty. (--classify learns classes.)"
            )
        columns[target] = numbers
    return pd.DataFrame(columns)


def as_classes(labels: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Labels that are classes, None or NaN where unknown.

    Raises:
        DataError: one is a number with a fraction; the crystal is named.
    """
    for target, cells in labels.items():
        for name, value in zip(names, cells, strict=True):
            if isinstance(value, float) and value == value and not value.is_integer():
                raise DataError(
                    f"{name}: {target} is {value!r}; classes are texts, whole numbers or booleans. "
                    "(Without --classify numbers are learned.)"
                )
    return labels
