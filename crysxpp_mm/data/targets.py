"""The pretext targets of a data set, in a file beside its graph store."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from crysxpp_mm.data.sources import STRUCTURE, open_structures, parse
from crysxpp_mm.data.store import GraphStore
from crysxpp_mm.errors import DataError
from crysxpp_mm.graph.arrays import CrystalGraphs, ranges
from crysxpp_mm.graph.targets import crystal_targets, find_targets, site_targets, surroundings

SUFFIX = ".targets.npz"
"""What the names of these files end in."""


@dataclass(frozen=True)
class TargetTable:
    """Pretext targets of all sites and crystals of a graph store, in its order.

    Attributes:
        names: Names of the targets, keys of ``crysxpp_mm.graph.targets.TARGETS``.
        sites: Columns of the site targets, shape ``(n_atoms, n_site_columns)``.
        crystals: Columns of the crystal targets, shape ``(n_graphs, n_crystal_columns)``.
        data_hash: ``data_hash`` of the store.
    """

    names: tuple[str, ...]
    sites: NDArray[np.float32]
    crystals: NDArray[np.float32]
    data_hash: str

    def select(self, graphs: CrystalGraphs, indices: NDArray[np.int64]) -> TargetTable:
        """The targets of some crystals of ``graphs``, which are those of the table."""
        rows = ranges(graphs.atom_offsets[indices], graphs.n_atoms[indices])
        return TargetTable(self.names, self.sites[rows], self.crystals[indices], self.data_hash)

    def check(self, graphs: CrystalGraphs, names: Sequence[str], *, data_hash: str) -> None:
        """Refuse a table that does not fit.

        Raises:
            DataError: it is of other crystals, or of other targets than ``names``.
        """
        if self.data_hash != data_hash or (len(self.sites), len(self.crystals)) != (
            int(graphs.atom_offsets[-1]),
            len(graphs),
        ):
            raise DataError("the pretext targets are of other crystals; compute them again.")
        if self.names != tuple(names):
            raise DataError(
                f"the pretext targets are {', '.join(self.names)}, the settings name "
                f"{', '.join(names)}; compute them again."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table, usually to ``<name>.targets.npz``; it is complete or not there."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}")
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                names=np.array(self.names, dtype=np.str_),
                sites=self.sites,
                crystals=self.crystals,
                data_hash=np.array(self.data_hash),
            )
        temporary.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TargetTable:
        """Read a table; nothing is unpickled.

        Raises:
            DataError: the file is absent, damaged or holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(
                    tuple(str(name) for name in file["names"]),
                    file["sites"].astype(np.float32, copy=False),
                    file["crystals"].astype(np.float32, copy=False),
                    str(file["data_hash"]),
                )
        except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path} holds no pretext targets, or it is damaged ({error}); compute them again."
            ) from error


def compute_targets(
    source: str | os.PathLike[str] | pd.DataFrame | pd.Series | list[Any],
    store: GraphStore,
    names: Sequence[str],
    *,
    column: str = STRUCTURE,
    pbar: bool = True,
) -> TargetTable:
    """Compute the pretext targets of the structures that a graph store was built from.

    Args:
        source: What the store was built from, as ``crysxpp_mm.data.store.build_store`` takes it.
        store: The graphs, which say which crystals are wanted.
        names: Names of the targets, keys of ``crysxpp_mm.graph.targets.TARGETS``.
        column: In a table, the column of structures.
        pbar: Show a progress bar.

    Raises:
        SettingsError: there is no target of a name, or one is named twice.
        DataError: the source holds other crystals than the store.
    """
    widths = [sum(t.size for t in find_targets(names, "site"))]
    widths.append(sum(t.size for t in find_targets(names, "crystal")))
    sites = np.empty((int(store.graphs.atom_offsets[-1]), widths[0]), dtype=np.float32)
    crystals = np.empty((len(store), widths[1]), dtype=np.float32)
    done = 0
    for payload in tqdm(open_structures(source, column=column), desc="targets", disable=not pbar):
        if payload.name in store.errors:
            continue
        rows = slice(*store.graphs.atom_offsets[done : done + 2])
        if done == len(store) or payload.name != store.names[done]:
            raise DataError(f"the graph store has no crystal {payload.name!r} at place {done}.")
        around = surroundings(parse(payload))
        if len(around.offsets) - 1 != rows.stop - rows.start:
            raise DataError(f"{payload.name}: the graph store has another number of sites.")
        sites[rows] = site_targets(around, names)
        crystals[done] = crystal_targets(around, names)
        done += 1
    if done < len(store):
        raise DataError(f"the source has no crystal {store.names[done]!r}, but the store has.")
    return TargetTable(tuple(names), sites, crystals, store.data_hash)
