"""The tables that the benchmarks learn from: structures in memory and the properties to predict.

Nothing is downloaded. The data root is a folder with ``matminer/*.json.gz`` (matminer's own file
format), ``mp_structures.zip`` and ``mp_properties.csv``.
"""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Structure

from crysxpp_mm.errors import DataError

DATA_VARIABLE = "CRYSXPP_DATA"
"""The environment variable that names the data root."""

DISTRUSTED = ("mp-690564", "mp-693892", "mp-775201", "mp-778012")
"""Crystals whose formation energies disagree with the Materials Project's later releases."""

MP_CRYSTALS = 2000
MP_SEED = 0

Validity = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One property to predict.

    Attributes:
        name: Short unique name, a column of :attr:`BenchmarkTable.targets`.
        table: Name of the table it is in.
        column: Name of the property in the table's file.
        unit: Unit of the errors.
        log10: Whether the decimal logarithm of the property is learned.
        low: Values at or below this are invalid.
        high: Values above this are invalid.
        reason: Why the limits are what they are; empty without limits.
    """

    name: str
    table: str
    column: str
    unit: str
    log10: bool = False
    low: float = -np.inf
    high: float = np.inf
    reason: str = ""

    def transform(self, values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Values to learn, shape ``(n_rows,)``; NaN where the property is not valid.

        The logarithm is the C library's: the last digit of numpy's depends on the processor, and
        finished rows are found by a hash of these values.
        """
        learned = np.array(values, dtype=np.float64)
        learned[~((learned > self.low) & (learned <= self.high))] = np.nan
        return np.array([math.log10(value) for value in learned]) if self.log10 else learned


TARGETS = (
    Target(
        name="log10 K_VRH",
        table="elastic_tensor_2015",
        column="K_VRH",
        unit="log10 GPa",
        log10=True,
        low=0.0,
    ),
    Target(
        name="log10 G_VRH",
        table="elastic_tensor_2015",
        column="G_VRH",
        unit="log10 GPa",
        log10=True,
        low=0.0,
    ),
    Target(name="Poisson ratio", table="elastic_tensor_2015", column="poisson_ratio", unit="-"),
    Target(
        name="log10 eps_electronic",
        table="phonon_dielectric_mp",
        column="eps_electronic",
        unit="-",
        log10=True,
        low=1.0,
        high=1000.0,
        reason="a dielectric constant in the millions is a closed gap, not an insulator",
    ),
    Target(
        name="exfoliation energy",
        table="matbench_jdft2d",
        column="exfoliation_en",
        unit="meV/atom",
    ),
    Target(
        name="log10 eij_max",
        table="piezoelectric_tensor",
        column="eij_max",
        unit="log10 C/m2",
        log10=True,
        low=1e-3,
        reason="below the noise of the calculation, where the logarithm has no meaning",
    ),
    Target(
        name="formation energy",
        table="mp2000",
        column="formation_energy_per_atom",
        unit="eV/atom",
    ),
    Target(name="band gap", table="mp2000", column="band_gap", unit="eV"),
)
"""Every target of the benchmarks, in the order of the tables."""

EXTRA_TARGETS = ("log10 eij_max",)
"""Targets that are shown but that no claim rests on."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkTable:
    """One table in memory.

    Attributes:
        name: Name of the table.
        structures: The crystals, in the table's order.
        targets: One row per crystal, one column per target; NaN where the value is not valid.
        notes: What was left out and why, one sentence a target.
    """

    name: str
    structures: list[Structure]
    targets: pd.DataFrame
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.structures)


def data_root(path: str | Path | None = None) -> Path:
    """The folder with the data: ``path``, or what ``CRYSXPP_DATA`` names.

    Raises:
        DataError: Neither is given, or the folder does not exist.
    """
    chosen = path or os.environ.get(DATA_VARIABLE)
    if not chosen:
        raise DataError(
            f"No data folder: give one with --data or set {DATA_VARIABLE} to the folder that "
            f"holds mp_structures.zip, mp_properties.csv and matminer/."
        )
    root = Path(chosen).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; {DATA_VARIABLE} or --data must name one.")
    return root


def load_tables(
    root: str | Path | None = None, *, names: Sequence[str] | None = None
) -> dict[str, BenchmarkTable]:
    """Load the benchmark tables by name.

    Args:
        root: The data root, as for :func:`data_root`.
        names: Which tables; all of them without it.

    Returns:
        The tables, in the order of :data:`TARGETS`.

    Raises:
        DataError: A file is missing, or there is no table of a name.
    """
    folder = data_root(root)
    known = list(dict.fromkeys(target.table for target in TARGETS))
    wanted = known if names is None else list(names)
    if unknown := sorted(set(wanted) - set(known)):
        raise DataError(f"No benchmark table {', '.join(unknown)}; there are {', '.join(known)}.")
    return {
        name: _load_mp_crystals(folder) if name == "mp2000" else _load_matminer(folder, name)
        for name in known
        if name in wanted
    }


def load_mp_structures(root: str | Path | None, material_ids: Sequence[str]) -> list[Structure]:
    """Read crystals of ``mp_structures.zip``, in the order of their ids.

    Raises:
        DataError: The file or a crystal is missing.
    """
    path = data_root(root) / "mp_structures.zip"
    _require(path)
    structures = []
    with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen's notes on rounded CIF coordinates
        for material_id in material_ids:
            try:
                text = archive.read(f"{material_id}.cif").decode()
            except KeyError:
                raise DataError(f"{path}: there is no {material_id}.cif in it.") from None
            structures.append(Structure.from_str(text, fmt="cif"))
    return structures


def _require(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing; put it there, nothing is downloaded.")


def _table(name: str, structures: list[Structure], values: pd.DataFrame) -> BenchmarkTable:
    """Pick and transform the targets of a table, and say what was invalid."""
    targets, notes = {}, []
    for target in (t for t in TARGETS if t.table == name):
        raw = values[target.column].to_numpy(dtype=np.float64)
        targets[target.name] = target.transform(raw)
        n_invalid = int(np.isnan(targets[target.name]).sum())
        if n_invalid:
            limits = [f"above {target.low:g}"] if np.isfinite(target.low) else []
            limits += [f"at most {target.high:g}"] if np.isfinite(target.high) else []
            notes.append(
                f"{target.name}: {n_invalid} of {len(raw)} rows left out; valid are values "
                f"{' and '.join(limits) or 'that are known'}"
                f"{f' ({target.reason})' if target.reason else ''}."
            )
    return BenchmarkTable(
        name=name, structures=structures, targets=pd.DataFrame(targets), notes=tuple(notes)
    )


def _load_matminer(root: Path, name: str) -> BenchmarkTable:
    from matminer.datasets import load_dataset

    folder = root / "matminer"
    _require(folder / f"{name}.json.gz")
    frame = load_dataset(name, data_home=str(folder), download_if_missing=False, pbar=False)
    return _table(name, list(frame["structure"]), frame)


def _load_mp_crystals(root: Path) -> BenchmarkTable:
    path = root / "mp_properties.csv"
    _require(path)
    frame = pd.read_csv(path)
    known = frame.dropna(subset=["formation_energy_per_atom", "band_gap"])
    known = known[~known["material_id"].isin(DISTRUSTED)].sort_values("material_id")
    chosen = np.sort(np.random.default_rng(MP_SEED).choice(len(known), MP_CRYSTALS, replace=False))
    sample = known.iloc[chosen].reset_index(drop=True)
    return _table("mp2000", load_mp_structures(root, list(sample["material_id"])), sample)
