"""Crystal graphs as a data set of DGL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from crysxpp_mm.data.matminer_tables import load_table, structure_column
from crysxpp_mm.data.store import GraphStore
from crysxpp_mm.errors import DataError
from crysxpp_mm.graph.backend import dgl_dataset_base, import_dgl
from crysxpp_mm.graph.batch import make_batch
from crysxpp_mm.graph.converter import CrystalGraphConverter

if TYPE_CHECKING:
    DGLDataset = object
else:
    DGLDataset = dgl_dataset_base()


class CrystalGraphDataset(DGLDataset):
    """Crystals and their labels for plain PyTorch and DGL code.

    An item is a ``dgl.DGLGraph`` with the fields of ``crysxpp_mm.graph.batch``, and its labels as
    a float32 tensor of shape ``(n_targets,)``; without ``target`` the graph alone.
    ``dgl.dataloading.GraphDataLoader`` makes batches of it, which CrysAE and CrysXPP read. Nothing
    is written to disk.

    Args:
        data: A DataFrame, the name of one of matminer's tables, or a ``GraphStore``.
        structure: Column of the structures; found by what it holds if None.
        target: Column or columns of the labels. For a store, the labels themselves: shape
            ``(n_graphs,)`` or ``(n_graphs, n_targets)``.
        converter: The graph rule; the published one if None. A store has its own.
        data_home: Folder of matminer's tables, for work without a network.
        element_fractions: Add the field that models with an element channel read.

    Raises:
        MissingDependencyError: DGL is not installed.
        DataError: there is no such table or column, or not a label for each crystal.
        StructureTypeError, UnknownElementError, StructureError: a row has no graph; it is named.

    Example:
        >>> import pandas as pd
        >>> from pymatgen.core import Lattice, Structure
        >>> from crysxpp_mm import CrystalGraphDataset
        >>> iron = Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        >>> df = pd.DataFrame({"structure": [iron], "moment": [2.2]})
        >>> graph, label = CrystalGraphDataset(df, target="moment")[0]
        >>> graph.num_nodes(), label.shape
        (2, torch.Size([1]))
    """

    def __init__(
        self,
        data: pd.DataFrame | str | GraphStore,
        structure: str | None = None,
        target: Any = None,
        *,
        converter: CrystalGraphConverter | None = None,
        data_home: str | None = None,
        element_fractions: bool = False,
    ) -> None:
        import_dgl()
        # DGLDataset's own constructor makes a folder in the user's home, which nothing here needs.
        self._name = "crysxpp_mm"
        self.element_fractions = element_fractions
        if isinstance(data, str):
            data = load_table(data, data_home=data_home)
        if isinstance(data, GraphStore):
            self.converter = data.converter
            self.graphs = data.graphs
            labels = target
        else:
            self.converter = converter or CrystalGraphConverter()
            column = _column(data, structure or structure_column(data))
            self.graphs = self.converter.convert_many(list(column))
            labels = None if target is None else _labels(data, target)
        self.labels: Tensor | None = None
        if labels is not None:
            values = np.asarray(labels, dtype=np.float32)
            self.labels = torch.from_numpy(values.reshape(len(values), -1).copy())
            if len(self.labels) != len(self.graphs):
                raise DataError(
                    f"there are {len(self.graphs)} crystals and {len(self.labels)} rows of labels."
                )

    def __len__(self) -> int:
        return len(self.graphs)

    def __repr__(self) -> str:
        n_targets = 0 if self.labels is None else self.labels.shape[1]
        return f"{type(self).__name__}({len(self)} graphs, {n_targets} targets)"

    def process(self) -> None:
        """Do nothing: graphs are made when they are asked for."""

    def __getitem__(self, index: int) -> Any:
        """Return the graph of a crystal, with its labels if there are any."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no crystal {index}; there are {len(self)}.")
        graph = make_batch(
            self.graphs.select(np.array([index % len(self)])),
            backend="dgl",
            element_fractions=self.element_fractions,
        )
        return graph if self.labels is None else (graph, self.labels[index])


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    if name not in table:
        raise DataError(
            f"there is no column {name!r}; there are {', '.join(map(repr, table.columns))}."
        )
    return table[name]


def _labels(table: pd.DataFrame, target: str | Sequence[str]) -> Any:
    wanted = [target] if isinstance(target, str) else list(target)
    return pd.concat([_column(table, name) for name in wanted], axis=1).to_numpy(dtype=np.float32)
