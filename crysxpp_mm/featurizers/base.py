"""Matminer's and scikit-learn's contract for featurizers of structures, whatever their columns.

A featurizer derives from :class:`BatchedFeaturizer` and says which columns a network, or several,
make of a batch of crystal graphs.
"""

from __future__ import annotations

import traceback
import warnings
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal, NoReturn, cast, overload

import numpy as np
import pandas as pd
from matminer.featurizers.base import BaseFeaturizer
from matminer.utils.utils import homogenize_multiindex
from numpy.typing import NDArray
from pandas.api.types import is_object_dtype, is_string_dtype
from pymatgen.core import IStructure
from sklearn.utils import Tags, TransformerTags
from torch import Tensor
from tqdm.auto import tqdm

from crysxpp_mm.deprecation import moved_names
from crysxpp_mm.errors import DataError, SettingsError, StructureTypeError
from crysxpp_mm.featurizers.resident import pack, ready_model, unpack
from crysxpp_mm.featurizers.stream import Batch, have_graphs, stream_rows
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.backend import Graph
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.parallel import attempt_each
from crysxpp_mm.settings import whole_number

__getattr__ = moved_names(__name__, {"NetworkOutputError": "crysxpp_mm.errors"})

HINT = (
    "\nTO SKIP THESE ERRORS when featurizing specific compounds, set 'ignore_errors=True' when "
    "running the batch featurize() operation (e.g., featurize_many(), featurize_dataframe(), etc.)."
)
"""What matminer adds to the error of a row."""

Compute = Callable[[Any, Any], Sequence[NDArray[Any]]]
"""Function of a model and its input (see ``_input``); it gives one array for each crystal."""


class BatchedFeaturizer(BaseFeaturizer):  # type: ignore[misc]
    """A matminer featurizer whose rows come out of a network, many at a time.

    A subclass stores ``model``, ``batch_atoms``, ``device`` and ``num_workers`` in its
    constructor and implements ``feature_labels``, ``citations``, ``implementors``,
    ``_check_model`` and ``_columns``. One that has several models overrides
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

    def _check_settings(self) -> None:
        """Refuse settings that make no sense, naming the option; a subclass may add its own.

        Raises:
            SettingsError: ``batch_atoms`` or ``num_workers`` is not a whole number in its range.
        """
        whole_number("batch_atoms", self.batch_atoms, at_least=1)
        whole_number("num_workers", self.num_workers, at_least=0)

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
        """Make what ``_columns`` reads from the graphs of a batch, by each of the rules."""
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
        matrix, texts = self._table(entries, ignore_errors, return_errors, pbar)
        rows: list[list[Any]] = matrix.tolist()
        if return_errors:
            for row, text in zip(rows, texts, strict=True):
                row.append(text)
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
                raise_again(error, "", HINT)
        no_row = np.full(len(self.feature_labels()), np.nan)
        row: list[Any] = batch.values.get(0, no_row).tolist()
        return row + _texts(batch) if return_errors else row

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
            SettingsError: ``return_errors`` without ``ignore_errors``, or the columns of the table
                have several levels and ``multiindex`` is not set.
            DataError: the columns are there already.
            Exception: as ``featurize_many``.
        """
        columns = _columns_of(df, col_id)
        labels = self._new_labels(df, return_errors=return_errors, multiindex=multiindex)
        matrix, texts = self._table(df[columns].values, ignore_errors, return_errors, pbar)
        features = pd.DataFrame(matrix, index=df.index, columns=labels[: matrix.shape[1]])
        if return_errors:
            features[labels[-1]] = texts
        if multiindex:  # matminer renames the columns of what it is given
            df = homogenize_multiindex(df if inplace else df.copy(deep=False), "Input Data")
        if not inplace:
            return pd.concat([df, features], axis=1)
        with warnings.catch_warnings():
            # pandas advises against adding many columns in place.
            warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
            df[labels] = features
        return None

    def _new_labels(self, df: pd.DataFrame, *, return_errors: bool, multiindex: bool) -> Any:
        """Names of the new columns, none of which the table has yet."""
        labels: Any = self.feature_labels()
        if return_errors:
            labels.append(f"{type(self).__name__} Exceptions")
        if multiindex:
            labels = pd.MultiIndex.from_product([[type(self).__name__], labels])
        elif isinstance(df.columns, pd.MultiIndex):
            raise SettingsError(
                "the columns of the table have several levels; set multiindex=True."
            )
        if taken := [column for column in df.columns if column in labels]:
            raise DataError(f'"{taken[0]}" exists in input dataframe; drop or rename it.')
        return labels

    def precheck(self, structure: object) -> bool:
        """Tell if the structure has a crystal graph, by building it."""
        return self._have_graphs([structure])[0]

    def precheck_dataframe(
        self,
        df: pd.DataFrame,
        col_id: str | list[str],
        return_frac: bool = True,
        inplace: bool = False,
    ) -> float | pd.DataFrame:
        """Tell which structures of a column have a crystal graph.

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
        structures, refused = _unpack(list(df[_columns_of(df, col_id)].values))
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
        return have_graphs(structures, self._rules(self._network()), self.batch_atoms)

    # scikit-learn's interface.

    def transform(
        self,
        X: Sequence[Any] | NDArray[Any] | pd.Series | pd.DataFrame,  # noqa: N803, scikit-learn's name
    ) -> NDArray[np.float64]:
        """The columns of many structures, NaN for those that fail, shape ``(n, n_columns)``."""
        return self._table(X, ignore_errors=True, return_errors=False, pbar=False)[0]

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
        return {name: pack(value) for name, value in dict(super().__getstate__()).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({name: unpack(value) for name, value in state.items()})

    # The way of a batch.

    def _table(
        self,
        entries: Any,
        ignore_errors: bool,
        return_errors: bool,
        pbar: bool | dict[str, Any],
    ) -> tuple[NDArray[np.float64], list[float | str]]:
        """Compute all columns, shape ``(n_entries, n_columns)``, and the texts of the errors."""
        if return_errors and not ignore_errors:
            raise SettingsError("Please set ignore_errors to True to use return_errors.")
        inputs = _inputs(entries)
        total = np.full((len(inputs), len(self.feature_labels())), np.nan)
        texts: list[float | str] = []
        structures, refused = _unpack(inputs)
        options: dict[str, Any] = {
            "desc": type(self).__name__,
            "total": len(inputs),
            "disable": not pbar,
        }
        options |= pbar if isinstance(pbar, dict) else {}
        rows = self._stream(structures, self._rows, refused)
        with tqdm(**options) as bar, closing(rows):
            for batch in rows:
                if batch.errors and not ignore_errors:
                    first = min(batch.errors)
                    raise_again(batch.errors[first], f"structure {first}: ", HINT)
                for position, row in batch.values.items():
                    total[position] = row
                texts.extend(_texts(batch))
                for _ in range(batch.size):
                    bar.update()
        return total, texts

    def _rows(self, model: Any, graph: Any) -> Sequence[NDArray[Any]]:
        """Compute the columns of every crystal of a batch."""
        return list(self._columns(model, graph).cpu().numpy())

    def _embed_one(self, structure: object, compute: Compute) -> NDArray[Any]:
        """Apply ``compute`` to one structure."""
        (batch,) = self._stream([structure], compute, {})
        for error in batch.errors.values():
            raise error
        return batch.values[0]

    def _stream(
        self, structures: Sequence[object], compute: Compute, refused: Mapping[int, Exception]
    ) -> Generator[Batch, None, None]:
        """Convert structures and compute their rows, batch after batch.

        ``refused`` holds the errors, by position, of inputs that are not to be looked at.
        """
        self._check_settings()
        model = self._network()
        return stream_rows(
            structures,
            lambda graphs: compute(model, self._input(model, graphs)),
            rules=self._rules(model),
            batch_atoms=self.batch_atoms,
            num_workers=self.num_workers,
            refused=refused,
        )

    # The network.

    def _network(self) -> Any:
        """Get the model, ready to compute: on its device and in evaluation mode."""
        return self._ready(self.model)

    def _ready(self, model: Any) -> Any:
        """Get a model by name, by path or as an object: checked, on its device, to evaluate."""
        return ready_model(model, self.device, self._check_model)


# Entries and errors.


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


def _texts(batch: Batch) -> list[float | str]:
    """The text of the error of each row of a batch, NaN where the row has none."""
    texts: list[float | str] = [float("nan")] * batch.size
    for position, error in batch.errors.items():
        texts[position - batch.start] = "".join(traceback.format_exception(error))
    return texts


def _columns_of(df: pd.DataFrame, col_id: str | list[str]) -> list[str]:
    """The columns of the input in a list.

    Raises:
        StructureTypeError: one can hold nothing but text.
    """
    columns = [col_id] if isinstance(col_id, str) else col_id
    for column in columns:
        _refuse_text(df, column)
    return columns


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


def raise_again(error: Exception, before: str, after: str = "") -> NoReturn:
    """Raise the error of its own type, with more text."""
    again, _ = attempt_each(type(error), [f"{before}{error}{after}"])
    if not again:  # a class that is not built from one text
        raise error from None
    raise again[0].with_traceback(error.__traceback__) from None
