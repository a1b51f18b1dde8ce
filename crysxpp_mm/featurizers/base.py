"""What a featurizer of structures needs whatever its columns are: matminer's contract, in batches.

This is the module that knows matminer, scikit-learn's tags, Dask's text columns, forked children
and torch's threads. A featurizer derives from :class:`BatchedFeaturizer` and says which columns a
network, or several, make of a batch of crystal graphs.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import traceback
import warnings
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from copy import copy, deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, cast, overload

import numpy as np
import pandas as pd
import torch
from joblib.externals.loky import ProcessPoolExecutor
from matminer.featurizers.base import BaseFeaturizer
from monty.json import MontyDecoder, MSONable
from numpy.typing import NDArray
from pandas.api.types import is_object_dtype, is_string_dtype
from pymatgen.core import IStructure
from sklearn.utils import Tags, TransformerTags
from torch import Tensor, nn
from tqdm.auto import tqdm

from crysxpp_mm.compute import default_device, one_torch_thread
from crysxpp_mm.errors import (
    CrysXPPError,
    SettingsError,
    StructureTypeError,
)
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.backend import Graph
from crysxpp_mm.graph.batch import atom_batches
from crysxpp_mm.graph.converter import CrystalGraphConverter, read_structure
from crysxpp_mm.model_zoo import load_model

logger = logging.getLogger(__name__)

HINT = (
    "\nTO SKIP THESE ERRORS when featurizing specific compounds, set 'ignore_errors=True' when "
    "running the batch featurize() operation (e.g., featurize_many(), featurize_dataframe(), etc.)."
)
"""What matminer adds to the error of a row."""


class NetworkOutputError(CrysXPPError, ValueError):
    """The network gave numbers that are not finite for a structure."""


class _Batch(NamedTuple):
    """Consecutive inputs, featurized."""

    start: int  # position of the first
    size: int
    values: dict[int, NDArray[Any]]  # by position; complete with errors
    errors: dict[int, Exception]  # by position


class _Task(NamedTuple):
    """Structures whose graphs a worker builds."""

    structures: list[Any]
    positions: list[int]  # of those that could be read
    errors: dict[int, Exception]  # of the others, by position
    future: Future[tuple[CrystalGraphs, dict[int, Exception]]]


class _PackedModel(NamedTuple):
    """A model object as plain data, inside a pickle."""

    data: dict[str, Any]


Compute = Callable[[Any, Any], Sequence[NDArray[Any]]]
"""What a model makes of its input (see ``_input``): one array for each crystal."""


class BatchedFeaturizer(BaseFeaturizer):  # type: ignore[misc]
    """A matminer featurizer whose rows come out of a network, many at a time.

    A subclass stores ``model``, ``batch_atoms``, ``device`` and ``num_workers`` in its
    constructor and implements ``feature_labels``, ``citations``, ``implementors``,
    ``_check_settings``, ``_check_model`` and ``_columns``. One that has several models overrides
    ``_network``, ``_rules`` and ``_input`` as well.

    What differs from matminer's base class, and nothing else does:

    - ``featurize_many`` runs in this process, in batches of consecutive entries with at most
      ``batch_atoms`` sites, with one torch thread; ``set_n_jobs`` has no effect on it.
      ``num_workers`` processes may build graphs. Memory does not grow with the number of rows
      beyond the rows themselves.
    - Only ``Exception`` is caught: Ctrl-C ends a run.
    - The error of a row begins with its position. If the network fails on a batch, its rows are
      computed one by one to find out whose error it is, and a warning is logged. A row whose
      numbers are not finite is an error as well.
    - Settings that make no sense and a model that cannot be loaded are errors whatever
      ``ignore_errors`` says: they are not a row's fault.
    - ``transform`` returns an array, so that ``ColumnTransformer`` takes it.
    - ``featurize_dataframe(multiindex=True, inplace=False)`` leaves the columns of the caller's
      frame alone, and ``precheck_dataframe`` keeps the index.
    - A column that Dask has turned into text is refused by name.

    The network is loaded on first use and kept in the process, not in the featurizer, so a pickle
    is small. A model that was handed in as an object travels in the pickle.
    """

    model: Any
    batch_atoms: int
    device: str | None
    num_workers: int

    # What a subclass says.

    @abstractmethod
    def feature_labels(self) -> list[str]:
        """Names of the columns; a fresh list, to which matminer appends."""

    @abstractmethod
    def _check_settings(self) -> None:
        """Refuse settings that make no sense, naming the option; call this method's parent.

        Raises:
            SettingsError: ``batch_atoms`` or ``num_workers`` is not a whole number in its range.
        """
        for name, least in (("batch_atoms", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise SettingsError(
                    f"{name} must be a whole number of at least {least}, got {value!r}."
                )

    @abstractmethod
    def _check_model(self, model: object) -> None:
        """Refuse a model of another kind, by name."""

    @abstractmethod
    def _columns(self, model: Any, graph: Any) -> Tensor:
        """The columns of every crystal of a batch, shape ``(n_graphs, n_columns)``.

        Args:
            model: What ``_network`` gave.
            graph: What ``_input`` made of the batch: one batched graph.
        """

    def _rules(self, model: Any) -> Sequence[CrystalGraphConverter]:
        """The graph rules of what ``_network`` gave, each once."""
        return [model.converter]

    def _input(self, model: Any, graphs: Sequence[CrystalGraphs]) -> Any:
        """What ``_columns`` reads, of the crystals of a batch by each of the rules."""
        graph: Graph = model.make_graph(graphs[0])
        return graph

    # matminer's interface.

    def featurize(self, structure: IStructure | Mapping[str, Any]) -> list[float]:
        """The columns of one structure.

        Args:
            structure: A pymatgen Structure, or the dictionary that ``Structure.as_dict`` makes.

        Raises:
            StructureTypeError, UnknownElementError, StructureError: it has no crystal graph.
            SettingsError, UnknownModelError, ModelFileError: the featurizer cannot work.
        """
        return cast("list[float]", self._embed_one(structure, self._rows).tolist())

    def featurize_many(
        self,
        entries: Sequence[Any] | NDArray[Any] | pd.Series | pd.DataFrame,
        ignore_errors: bool = False,
        return_errors: bool = False,
        pbar: bool | dict[str, Any] = True,
    ) -> list[list[Any]]:
        """The columns of many structures, in their order.

        Args:
            entries: Structures, or tuples of one structure, in a list, a tuple, an array, a
                Series or a DataFrame of one column.
            ignore_errors: Give NaN in every column for a structure that fails, instead of raising.
            return_errors: Add to every row the text of its error, NaN where there was none.
            pbar: Show a progress bar; a dictionary has arguments for tqdm.

        Returns:
            A list of Python floats for each entry (see ``return_errors``).

        Raises:
            SettingsError: ``return_errors`` without ``ignore_errors``, or an option of the
                featurizer makes no sense.
            StructureTypeError: ``entries`` is not list-like.
            Exception: the error of the first structure that fails, of its own type.
        """
        if return_errors and not ignore_errors:
            raise SettingsError("Please set ignore_errors to True to use return_errors.")
        if getattr(self, "_gives_arrays", False) and not return_errors:
            return self._array(entries, ignore_errors=ignore_errors, pbar=pbar)  # type: ignore[return-value]
        rows: list[list[Any]] = []
        for matrix, texts in self._matrices(entries, ignore_errors, pbar):
            block = matrix.tolist()
            if return_errors:
                for row, text in zip(block, texts, strict=True):
                    row.append(text)
            rows.extend(block)
        return rows

    def featurize_wrapper(
        self, x: Sequence[Any], return_errors: bool = False, ignore_errors: bool = False
    ) -> list[Any]:
        """One entry with matminer's treatment of errors; what MultipleFeaturizer calls.

        Args:
            x: A tuple of one structure.
            return_errors: As in ``featurize_many``.
            ignore_errors: As in ``featurize_many``.

        Raises:
            Exception: the error of the structure, with matminer's hint.
        """
        structures, refused = _unpack([x])
        (batch,) = self._stream(structures, self._rows, refused)
        if not ignore_errors:
            for error in batch.errors.values():
                _raise_again(error, "", HINT)
        matrix, texts = self._fill(batch)
        row: list[Any] = matrix[0].tolist()
        return row + texts if return_errors else row

    @overload
    def featurize_dataframe(
        self,
        df: pd.DataFrame,
        col_id: str | list[str],
        ignore_errors: bool = False,
        return_errors: bool = False,
        inplace: Literal[False] = False,
        multiindex: bool = False,
        pbar: bool | dict[str, Any] = True,
    ) -> pd.DataFrame: ...

    @overload
    def featurize_dataframe(
        self,
        df: pd.DataFrame,
        col_id: str | list[str],
        ignore_errors: bool = False,
        return_errors: bool = False,
        *,
        inplace: bool,
        multiindex: bool = False,
        pbar: bool | dict[str, Any] = True,
    ) -> pd.DataFrame | None: ...

    def featurize_dataframe(
        self,
        df: pd.DataFrame,
        col_id: str | list[str],
        ignore_errors: bool = False,
        return_errors: bool = False,
        inplace: bool = False,
        multiindex: bool = False,
        pbar: bool | dict[str, Any] = True,
    ) -> pd.DataFrame | None:
        """Add the columns to a DataFrame.

        On a Dask DataFrame, run it over the partitions::

            dask.config.set({"dataframe.convert-string": False})  # before dd.from_pandas
            meta = featurizer.featurize_dataframe(frame._meta, "structure", pbar=False)
            frame.map_partitions(featurizer.featurize_dataframe, "structure", pbar=False, meta=meta)

        Args:
            df: The table.
            col_id: Name of the column of structures.
            ignore_errors: Give NaN in every column for a structure that fails, instead of raising.
            return_errors: Add a column with the text of each error, NaN where there was none.
            inplace: Add the columns to ``df`` itself and return None.
            multiindex: Give the columns two levels, the upper one named after the featurizer.
            pbar: Show a progress bar; a dictionary has arguments for tqdm.

        Returns:
            A new table with the same index, or None with ``inplace``.

        Raises:
            StructureTypeError: the column holds text.
            ValueError: the columns are there already.
            Exception: as ``featurize_many``.
        """
        for column in [col_id] if isinstance(col_id, str) else col_id:
            _refuse_text(df, column)
        if multiindex and not inplace:
            df = df.copy(deep=False)  # matminer renames the columns of what it is given
        frame_featurizer = object.__new__(type(self))
        frame_featurizer.__dict__.update(self.__dict__, _gives_arrays=True)
        with warnings.catch_warnings():
            # pandas advises against what matminer does with many columns in place.
            warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
            table: pd.DataFrame | None = BaseFeaturizer.featurize_dataframe(
                frame_featurizer,
                df,
                col_id,
                ignore_errors=ignore_errors,
                return_errors=return_errors,
                inplace=inplace,
                multiindex=multiindex,
                pbar=pbar,
            )
        return table

    def precheck(self, structure: object) -> bool:
        """Whether the structure has a crystal graph; it is built to find out."""
        return self._have_graphs([structure])[0]

    def precheck_dataframe(
        self,
        df: pd.DataFrame,
        col_id: str | list[str],
        return_frac: bool = True,
        inplace: bool = False,
    ) -> float | pd.DataFrame:
        """Whether each structure of a column has a crystal graph.

        Args:
            df: The table.
            col_id: Name of the column of structures.
            return_frac: Return the share of structures that have one, NaN for an empty table.
            inplace: Without ``return_frac``, add the column to ``df`` itself.

        Returns:
            The share, or the table with one more column of booleans.

        Raises:
            StructureTypeError: the column holds text.
        """
        columns = [col_id] if isinstance(col_id, str) else col_id
        for column in columns:
            _refuse_text(df, column)
        structures, refused = _unpack(list(df[columns].values))
        passed = [
            good and position not in refused
            for position, good in enumerate(self._have_graphs(structures))
        ]
        if return_frac:
            return float(np.mean(passed)) if passed else float("nan")
        if not inplace:
            df = df.copy(deep=False)
        df[f"{type(self).__name__} precheck pass"] = np.array(passed, dtype=bool)
        return df

    def _have_graphs(self, structures: Sequence[object]) -> list[bool]:
        self._check_settings()
        rules = self._rules(self._network())
        passed: list[bool] = []
        for positions in atom_batches(_site_counts(structures), self.batch_atoms):
            part = [structures[position] for position in positions]
            failed = {index for rule in rules for index in _convert(rule, part)[1]}
            passed.extend(index not in failed for index in range(len(positions)))
        return passed

    # scikit-learn's interface.

    def transform(
        self,
        X: Sequence[Any] | NDArray[Any] | pd.Series | pd.DataFrame,  # noqa: N803, scikit-learn's name
    ) -> NDArray[np.float64]:
        """The columns of many structures, NaN for those that fail, shape ``(n, n_columns)``."""
        return self._array(X, ignore_errors=True, pbar=False)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Names of the columns, as scikit-learn asks for them; ``input_features`` is ignored."""
        return np.array(self.feature_labels(), dtype=object)

    def __sklearn_tags__(self) -> Tags:
        # matminer's base class lists scikit-learn's mixins in the order that loses these.
        tags = super().__sklearn_tags__()
        tags.transformer_tags = TransformerTags()
        tags.input_tags.one_d_array = True
        tags.requires_fit = False
        tags.no_validation = True
        return cast(Tags, tags)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {name: _packed(value) for name, value in dict(super().__getstate__()).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with one_torch_thread():
            super().__setstate__({name: _unpacked(value) for name, value in state.items()})

    # The way of a batch.

    def _array(
        self, entries: Any, *, ignore_errors: bool, pbar: bool | dict[str, Any]
    ) -> NDArray[np.float64]:
        """What ``featurize_many`` returns, as an array of shape ``(n_entries, n_columns)``."""
        matrices = self._matrices(entries, ignore_errors, pbar)
        total: NDArray[np.float64] = np.empty((len(entries), len(self.feature_labels())))
        start = 0
        for matrix, _ in matrices:
            total[start : start + len(matrix)] = matrix
            start += len(matrix)
        return total

    def _matrices(
        self, entries: Any, ignore_errors: bool, pbar: bool | dict[str, Any]
    ) -> Iterator[tuple[NDArray[np.float64], list[float | str]]]:
        """Batch after batch: the columns, and the text of each error (NaN where none)."""
        inputs = _inputs(entries)
        if not inputs:
            return
        structures, refused = _unpack(inputs)
        options = pbar if isinstance(pbar, dict) else {}
        options = {
            "desc": type(self).__name__,
            "total": len(inputs),
            "disable": not pbar,
            **options,
        }
        with tqdm(**options) as bar:
            for batch in self._stream(structures, self._rows, refused):
                if batch.errors and not ignore_errors:
                    first = min(batch.errors)
                    _raise_again(batch.errors[first], f"structure {first}: ", HINT)
                yield self._fill(batch)
                for _ in range(batch.size):
                    bar.update()

    def _fill(self, batch: _Batch) -> tuple[NDArray[np.float64], list[float | str]]:
        """Rows of a batch with NaN where there are none, and the texts of the errors."""
        matrix = np.full((batch.size, len(self.feature_labels())), np.nan)
        texts: list[float | str] = [float("nan")] * batch.size
        for position, row in batch.values.items():
            matrix[position - batch.start] = row
        for position, error in batch.errors.items():
            texts[position - batch.start] = "".join(traceback.format_exception(error))
        return matrix, texts

    def _rows(self, model: Any, graph: Any) -> Sequence[NDArray[Any]]:
        """The columns of every crystal of a batch."""
        return list(self._columns(model, graph).cpu().numpy())

    def _embed_one(self, structure: object, compute: Compute) -> NDArray[Any]:
        """What ``compute`` makes of one structure."""
        (batch,) = self._stream([structure], compute)
        for error in batch.errors.values():
            raise error
        return batch.values[0]

    def _embed_each(self, structures: Iterable[object], compute: Compute) -> list[NDArray[Any]]:
        """What ``compute`` makes of each structure.

        Raises:
            StructureTypeError: one structure was given in place of several.
            Exception: the error of the first structure that fails; the message begins with its
                position.
        """
        if isinstance(structures, IStructure | Mapping):
            raise StructureTypeError(
                f"expected several structures, got one {type(structures).__name__}; "
                "put it into a list."
            )
        arrays: list[NDArray[Any]] = []
        for batch in self._stream(list(structures), compute):
            if batch.errors:
                first = min(batch.errors)
                _raise_again(batch.errors[first], f"structure {first}: ")
            arrays.extend(batch.values[position] for position in sorted(batch.values))
        return arrays

    def _stream(
        self,
        structures: Sequence[object],
        compute: Compute,
        refused: Mapping[int, Exception] | None = None,
    ) -> Iterator[_Batch]:
        """Convert and compute, batch after batch.

        Args:
            structures: The inputs.
            compute: What the network makes of a batch.
            refused: Inputs that are not to be looked at, with their errors, by position.
        """
        refused = refused or {}
        self._check_settings()
        model = self._network()
        blocks = atom_batches(_site_counts(structures), self.batch_atoms)
        wanted = [[int(p) for p in block if p not in refused] for block in blocks]
        converted = [self._converted(rule, structures, wanted) for rule in self._rules(model)]
        for block, positions, *by_rule in zip(blocks, wanted, *converted, strict=True):
            graphs, errors = _common(by_rule, len(positions))
            good = [p for index, p in enumerate(positions) if index not in errors]
            values, failed = self._evaluate(model, graphs, compute)
            yield _Batch(
                start=int(block[0]),
                size=len(block),
                values={good[index]: value for index, value in values.items()},
                errors={
                    **{int(p): refused[p] for p in block if p in refused},
                    **{positions[index]: error for index, error in errors.items()},
                    **{good[index]: error for index, error in failed.items()},
                },
            )

    def _converted(
        self,
        converter: CrystalGraphConverter,
        structures: Sequence[object],
        wanted: Sequence[Sequence[int]],
    ) -> Iterator[tuple[CrystalGraphs, dict[int, Exception]]]:
        """The graphs of each batch of positions, built here or by ``num_workers`` processes."""
        parts = ([structures[position] for position in positions] for positions in wanted)
        # A pool cannot start in a pool's own process.
        if self.num_workers == 0 or len(wanted) < 2 or multiprocessing.current_process().daemon:
            for part in parts:
                yield _convert(converter, part)
            return
        build = _builder(converter)
        executor = ProcessPoolExecutor(max_workers=self.num_workers)
        pending: deque[_Task] = deque()
        try:
            for part in parts:
                good, crystals, errors = _read_each(part)
                pending.append(_Task(part, good, errors, executor.submit(build, crystals)))
                if len(pending) > 2 * self.num_workers:
                    yield _result(converter, pending.popleft())
            while pending:
                yield _result(converter, pending.popleft())
        finally:
            executor.shutdown(wait=True, kill_workers=True)

    def _evaluate(
        self,
        model: Any,
        graphs: Sequence[CrystalGraphs],
        compute: Compute,
    ) -> tuple[dict[int, NDArray[Any]], dict[int, Exception]]:
        """The network on one batch, given by each rule: values and errors, both by position."""
        n_graphs = len(graphs[0])
        if not n_graphs:
            return {}, {}
        values: dict[int, NDArray[Any]] = {}
        errors: dict[int, Exception] = {}
        try:
            with one_torch_thread(), torch.inference_mode():
                arrays = compute(model, self._input(model, graphs))
        except Exception as error:  # matminer's contract: any error is the error of a row
            if n_graphs == 1:
                return {}, {0: error}
            logger.warning(
                "%s: the network failed on a batch of %d structures (%s: %s); they are computed "
                "one by one.",
                type(self).__name__,
                n_graphs,
                type(error).__name__,
                error,
            )
            for index in range(n_graphs):
                alone = [part.select([index]) for part in graphs]
                single, failed = self._evaluate(model, alone, compute)
                values.update((index, value) for value in single.values())
                errors.update((index, failure) for failure in failed.values())
            return values, errors
        for index, array in enumerate(arrays):
            if np.isfinite(array).all():
                values[index] = array
            else:
                errors[index] = NetworkOutputError(
                    "the network gave numbers that are not finite; check the weights of the model."
                )
        return values, errors

    # The network.

    def _network(self) -> Any:
        """The model, ready to compute: on its device and in evaluation mode."""
        return self._ready(self.model)

    def _ready(self, model: Any) -> Any:
        """A model by name, by path or as an object: checked, on its device, to evaluate."""
        with one_torch_thread():
            if isinstance(model, str | os.PathLike):
                loaded = _load(model, _usable_device(self.device))
                self._check_model(loaded)
                return loaded
            self._check_model(model)
            device = None if self.device is None else _usable_device(self.device)
            ready = all(_is_ready(network, device) for network in _networks(model))
            if ready and (device is None or isinstance(model, nn.Module)):
                return model
            if isinstance(model, nn.Module):
                return _prepare(deepcopy(model), device)  # the caller's stays as it is
            mine = copy(model)
            if not ready:
                mine.members_ = deepcopy(model.members_)
            return _prepare(mine, device)


# Structures.


def _inputs(entries: Any) -> list[Any]:
    """Entries in matminer's form: each a tuple or an array of arguments.

    Raises:
        StructureTypeError: ``entries`` is not list-like.
    """
    if not isinstance(entries, tuple | list | np.ndarray | pd.Series | pd.DataFrame):
        raise StructureTypeError(
            f"'entries' must be a list-like object, got a {type(entries).__name__}."
        )
    if len(entries) == 0:
        return []
    if isinstance(entries, pd.DataFrame):
        return list(entries.values)
    if isinstance(entries, pd.Series) or not isinstance(entries[0], tuple | list | np.ndarray):
        return [(entry,) for entry in entries]
    return list(entries)


def _unpack(inputs: Sequence[Any]) -> tuple[list[object], dict[int, Exception]]:
    """The structure of each entry, and the errors of entries that are not one structure."""
    structures: list[object] = []
    refused: dict[int, Exception] = {}
    for position, arguments in enumerate(inputs):
        try:
            (structure,) = arguments
        except (TypeError, ValueError):
            structure = None
            refused[position] = StructureTypeError(
                f"an entry must hold one structure, got {_describe(arguments)}. (numpy.array makes "
                "an array of sites of a list of structures; pass the list.)"
            )
        structures.append(structure)
    return structures, refused


def _describe(arguments: Any) -> str:
    name = type(arguments).__name__
    return f"a {name} of {len(arguments)}" if hasattr(arguments, "__len__") else f"a {name}"


def _site_counts(structures: Sequence[object]) -> NDArray[np.int64]:
    """Number of sites of each input, 1 for what is no structure, shape ``(n_structures,)``."""
    return np.array([_n_sites(structure) for structure in structures], dtype=np.int64)


def _n_sites(structure: object) -> int:
    if isinstance(structure, IStructure):
        return len(structure)
    sites = structure.get("sites") if isinstance(structure, dict) else None
    return len(sites) if isinstance(sites, list) else 1


def _convert(
    converter: CrystalGraphConverter, structures: Sequence[Any]
) -> tuple[CrystalGraphs, dict[int, Exception]]:
    """Graphs and errors; an error that the converter does not foresee is a row's as well."""
    try:
        return converter.convert_each(structures)
    except Exception as error:  # matminer's contract: any error is the error of a row
        if len(structures) == 1:
            return CrystalGraphs.empty(), {0: error}
    parts = [_convert(converter, [structure]) for structure in structures]
    graphs = CrystalGraphs.concatenate([part for part, _ in parts])
    return graphs, {i: error for i, (_, errors) in enumerate(parts) for error in errors.values()}


def _common(
    converted: Sequence[tuple[CrystalGraphs, dict[int, Exception]]], n_structures: int
) -> tuple[list[CrystalGraphs], dict[int, Exception]]:
    """The graphs of those structures that have one by every rule, and the errors of the others."""
    errors: dict[int, Exception] = {}
    for _, failed in reversed(converted):
        errors.update(failed)
    parts = []
    for graphs, failed in converted:
        kept = [index for index in range(n_structures) if index not in failed]
        common = [place for place, index in enumerate(kept) if index not in errors]
        parts.append(graphs if len(common) == len(kept) else graphs.select(common))
    return parts, errors


def _read_each(structures: Sequence[Any]) -> tuple[list[int], list[Any], dict[int, Exception]]:
    """Arrays of the structures that have them, their positions, and why the others have none."""
    positions: list[int] = []
    crystals: list[Any] = []
    errors: dict[int, Exception] = {}
    for position, structure in enumerate(structures):
        try:
            crystals.append(read_structure(structure))
            positions.append(position)
        except Exception as error:  # matminer's contract: any error is the error of a row
            errors[position] = error
    return positions, crystals, errors


def _builder(
    converter: CrystalGraphConverter,
) -> Callable[[list[Any]], tuple[CrystalGraphs, dict[int, Exception]]]:
    """The part of the conversion that a worker does.

    Workers get arrays: to pickle structures takes as long as to convert them. The function is
    pickled by value, being nested, so that a worker need not import torch.
    """

    def build(crystals: list[Any]) -> tuple[CrystalGraphs, dict[int, Exception]]:
        kept, pairs = [], []
        errors: dict[int, Exception] = {}
        for position, crystal in enumerate(crystals):
            try:
                pairs.append(converter._neighbors(crystal))
                kept.append(crystal)
            except Exception as error:  # as above
                errors[position] = error
        return converter._assemble(kept, pairs), errors

    return build


def _result(
    converter: CrystalGraphConverter, task: _Task
) -> tuple[CrystalGraphs, dict[int, Exception]]:
    """What a worker made of its structures; made here if the worker failed."""
    try:
        graphs, errors = task.future.result()
    except Exception as error:  # whatever it was, it comes up again here if it is a row's
        logger.warning(
            "a worker failed (%s: %s); its %d structures are converted in this process.",
            type(error).__name__,
            error,
            len(task.structures),
        )
        return _convert(converter, task.structures)
    return graphs, {**task.errors, **{task.positions[i]: error for i, error in errors.items()}}


def _refuse_text(df: pd.DataFrame, column: Any) -> None:
    """Refuse a column that can hold nothing but text.

    Raises:
        StructureTypeError: it does.
    """
    dtype = df.dtypes.get(column)
    if dtype is None or is_object_dtype(dtype) or not is_string_dtype(dtype):
        return
    raise StructureTypeError(
        f"column {column!r} holds text ({dtype}), not structures. Dask turns objects into text "
        "unless dask.config.set({'dataframe.convert-string': False}) comes before "
        "dask.dataframe.from_pandas; text from a file has to be read first, for instance with "
        "pymatgen's Structure.from_str."
    )


def _raise_again(error: Exception, before: str, after: str = "") -> NoReturn:
    """Raise the error of its own type, with more text."""
    try:
        again = type(error)(f"{before}{error}{after}")
    except Exception:  # a class that is not built from one text
        raise error from None
    raise again.with_traceback(error.__traceback__) from None


# Networks.


def _usable_device(device: str | None) -> torch.device:
    """``device``, or CUDA if it is available when this is called; the CPU in a forked child.

    Raises:
        SettingsError: the device is unknown, absent, or CUDA in a forked child.
    """
    if device is None:
        return torch.device(default_device())
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # torch raises RuntimeError, AssertionError and others
        reason = str(error).split("\n", maxsplit=1)[0]
        raise SettingsError(f"device {device!r} cannot be used here: {reason}") from error


def _load(name: str | os.PathLike[str], device: torch.device) -> Any:
    """A saved model; loaded once for each file, device and process."""
    path = Path(name)
    try:
        status = path.stat()
        stamp = (str(path.absolute()), status.st_mtime_ns, status.st_size)
    except OSError:  # a shipped model's name
        stamp = None
    return _loaded(name if isinstance(name, str) else path, stamp, str(device))


@lru_cache(maxsize=64)
def _loaded(name: str | Path, stamp: tuple[str, int, int] | None, device: str) -> Any:
    """``stamp`` tells a file that was written anew from the one loaded before."""
    return _prepare(load_model(name), torch.device(device))


def _networks(model: Any) -> list[nn.Module]:
    """The networks of a model: itself, or the members of an estimator that is fitted."""
    return [model] if isinstance(model, nn.Module) else list(getattr(model, "members_", []))


def _is_ready(network: nn.Module, device: torch.device | None) -> bool:
    """Whether a network is on ``device`` (anywhere if None) and in evaluation mode."""
    here = next(network.parameters()).device
    elsewhere = device is not None and (
        device.type != here.type or device.index not in (None, here.index)
    )
    return not elsewhere and not any(module.training for module in network.modules())


def _prepare(model: Any, device: torch.device | None) -> Any:
    """The model itself, its networks on ``device`` (where they are if None), to evaluate."""
    for network in _networks(model):
        network.to(device).eval()
    if device is not None and not isinstance(model, nn.Module):
        model.accelerator = str(device)  # where an estimator computes
    return model


def _packed(value: Any) -> Any:
    """The model objects in an argument as data, whatever else there is as it is."""
    if type(value) in (list, tuple):
        return type(value)(_packed(item) for item in value)
    return _PackedModel(value.as_dict()) if isinstance(value, MSONable) else value


def _unpacked(value: Any) -> Any:
    """What ``_packed`` was given."""
    if isinstance(value, _PackedModel):
        return MontyDecoder().process_decoded(value.data)
    if type(value) in (list, tuple):
        return type(value)(_unpacked(item) for item in value)
    return value
