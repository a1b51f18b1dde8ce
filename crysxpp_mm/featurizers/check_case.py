"""Tools of ``check_featurizer``: a featurizer under test, comparisons that name the culprit."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matminer.featurizers.base import BaseFeaturizer
from numpy.typing import NDArray
from pymatgen.core import IStructure, Structure

from crysxpp_mm.errors import CrysXPPError
from crysxpp_mm.parallel import attempt_each

COLUMN = "structure"


class FeaturizerCheckError(CrysXPPError, AssertionError, ValueError):
    """A featurizer breaks a rule; the message begins with the name of the check."""


@dataclass(frozen=True)
class Case:
    """A featurizer, crystals to try it on, and the rows that it has to give."""

    featurizer: Any
    structures: list[IStructure]
    bad_input: Any
    tolerance: float
    max_pickle_bytes: int | None
    expected: NDArray[np.float64]  # (n_structures, n_columns), from featurize, one by one

    @property
    def name(self) -> str:
        """Class of the featurizer."""
        return type(self.featurizer).__name__

    def frame(self, *, bad: bool = False) -> pd.DataFrame:
        """A table with an index that is not 0..n-1; its second row is bad if asked for."""
        rows: list[Any] = list(self.structures)
        if bad:
            rows.insert(1, self.bad_input)
        frame = pd.DataFrame({"number": np.arange(len(rows))}, index=self.index(len(rows)))
        frame[COLUMN] = pd.Series(rows, index=frame.index, dtype=object)
        return frame

    def index(self, length: int) -> pd.Index:
        """Texts as labels of rows."""
        return pd.Index([f"row {7 * (length - i)}" for i in range(length)], name="key")

    def rows(self, *, bad: bool = False) -> NDArray[np.float64]:
        """The features that ``frame`` has to get."""
        return np.insert(self.expected, 1, np.nan, axis=0) if bad else self.expected

    def compare(self, actual: Any, expected: NDArray[np.float64], what: str) -> None:
        """Raise unless the numbers agree to the tolerance."""
        found = numbers(actual, what)
        require(
            found.shape == expected.shape,
            f"{what} has shape {found.shape}, expected {expected.shape}",
        )
        scale = float(np.nanmax(np.abs(expected), initial=0.0))
        equal = np.isclose(
            found, expected, rtol=self.tolerance, atol=self.tolerance * scale, equal_nan=True
        )
        if not equal.all():
            place = tuple(int(i) for i in np.argwhere(~equal)[0])
            raise FeaturizerCheckError(
                f"{what} differs in {int((~equal).sum())} of {equal.size} numbers, first at "
                f"{place}: {found[place]!r}, expected {expected[place]!r}"
            )

    def compare_table(self, table: pd.DataFrame, on: Container[str], what: str) -> None:
        """Compare index, columns, input, features and texts of errors with what they have to be."""
        before = self.frame(bad="ignore_errors" in on)
        require(table.index.equals(before.index), f"{what} changes the index")
        names = self.featurizer.feature_labels()
        new: list[Any] = names + [f"{self.name} Exceptions"] * ("return_errors" in on)
        old: list[Any] = list(before.columns)
        if "multiindex" in on:
            new = [(self.name, name) for name in new]
            old = [("Input Data", name) for name in old]
        require(list(table.columns) == old + new, f"{what} gives other columns")
        require(list(table[old[0]]) == list(before["number"]), f"{what} changes the input")
        rows = self.rows(bad="ignore_errors" in on)
        self.compare(table[new[: len(names)]].to_numpy(), rows, what)
        if "return_errors" in on:
            is_text = [isinstance(text, str) for text in table[new[-1]]]
            require(
                is_text == [row == 1 for row in range(len(is_text))],
                f"{what} gives the texts of errors in the wrong rows",
            )


class NumberOfSites(BaseFeaturizer):  # type: ignore[misc]
    """A partner for the featurizer in MultipleFeaturizer."""

    def featurize(self, structure: IStructure) -> list[float]:
        """Count the sites."""
        return [float(len(structure))]

    def feature_labels(self) -> list[str]:
        """One name."""
        return ["check_featurizer: number of sites"]

    def citations(self) -> list[str]:
        """None."""
        return []

    def implementors(self) -> list[str]:
        """Authors."""
        return ["crysxpp_mm developers"]


class Interrupting(Structure):
    """A structure at which the user presses Ctrl-C."""

    @property  # type: ignore[misc] # the base class lets it be set as well
    def sites(self) -> Any:
        """Nobody gets to see them."""
        raise KeyboardInterrupt

    def __len__(self) -> int:
        raise KeyboardInterrupt


def require(condition: object, message: str) -> None:
    """Raise with the message unless the condition holds."""
    if not condition:
        raise FeaturizerCheckError(message)


def numbers(values: Any, what: str) -> NDArray[np.float64]:
    """The values as an array of numbers.

    Raises:
        FeaturizerCheckError: one is not a number.
    """
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FeaturizerCheckError(f"{what} is no table of numbers ({error})") from error


def raised(call: Callable[[], Any]) -> Exception | None:
    """The exception that a call raises."""
    _, errors = attempt_each(lambda function: function(), [call])
    return errors.get(0)


def serial(featurizer: Any) -> Any:
    """A copy that uses no pool, so that the one under test keeps its settings."""
    copy = pickle.loads(pickle.dumps(featurizer))
    copy.set_n_jobs(1)
    return copy
