"""check_featurizer: fair to matminer's own featurizers, strict with ours, and able to fail."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matminer.featurizers.base import BaseFeaturizer
from matminer.featurizers.structure import DensityFeatures
from pymatgen.core import Structure

from crysxpp_mm import CrysAEFeaturizer, check_featurizer
from crysxpp_mm.errors import CrysXPPError, SettingsError
from crysxpp_mm.featurizers.check import BASIC_CHECKS, STRICT_CHECKS, FeaturizerCheckError


class SizeFeaturizer(BaseFeaturizer):
    """What matminer asks for and nothing more; subclasses break a rule each."""

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def featurize(self, structure: Any) -> list[float]:
        if not isinstance(structure, Structure):
            raise TypeError(f"no structure: {structure!r}")
        return [len(structure) ** self.power, structure.volume]

    def feature_labels(self) -> list[str]:
        return ["sites", "volume"]

    def citations(self) -> list[str]:
        return []

    def implementors(self) -> list[str]:
        return ["nobody"]


class OneList(SizeFeaturizer):
    names = ["sites", "volume"]  # noqa: RUF012 - that is the mistake

    def feature_labels(self) -> list[str]:
        return self.names


class EqualLabels(SizeFeaturizer):
    def feature_labels(self) -> list[str]:
        return ["size", "size"]


class TooManyLabels(SizeFeaturizer):
    def feature_labels(self) -> list[str]:
        return ["sites", "volume", "density"]


class NoCitations(SizeFeaturizer):
    def citations(self) -> str:
        return "ask me"


class ChangedArgument(SizeFeaturizer):
    def __init__(self, power: float = 1.0) -> None:
        self.power = float(power) * 2


class Counting(SizeFeaturizer):
    calls = 0

    def featurize(self, structure: Any) -> list[float]:
        type(self).calls += 1
        return [float(self.calls), *super().featurize(structure)[1:]]


class ChangingInput(SizeFeaturizer):
    def featurize(self, structure: Any) -> list[float]:
        row = super().featurize(structure)
        structure.translate_sites([0], [0.1, 0, 0])
        return row


class Sorting(SizeFeaturizer):
    def featurize_many(self, entries: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return sorted(super().featurize_many(entries, *args, **kwargs))


class Swallowing(SizeFeaturizer):
    def featurize_many(self, entries: Any, ignore_errors: bool = False, **kwargs: Any) -> list[Any]:
        return super().featurize_many(entries, ignore_errors=True, **kwargs)


class AnotherError(SizeFeaturizer):
    def featurize_wrapper(self, x: Any, **kwargs: Any) -> list[Any]:
        try:
            return super().featurize_wrapper(x, **kwargs)
        except TypeError as error:
            raise RuntimeError(str(error)) from error


class LosingRows(SizeFeaturizer):
    def featurize_dataframe(self, df: pd.DataFrame, *args: Any, **kwargs: Any) -> Any:
        table = super().featurize_dataframe(df, *args, **kwargs)
        return table if table is None else table.reset_index(drop=True)


class PickyPrecheck(SizeFeaturizer):
    def precheck(self, x: Any) -> bool:
        return False


BROKEN = {
    "labels: .*same list": OneList,
    "labels: a label occurs twice": EqualLabels,
    "labels: 3 labels for 2 features": TooManyLabels,
    "citations: citations gives no list": NoCitations,
    "arguments: the argument 'power' is not stored|arguments: RuntimeError": ChangedArgument,
    "arguments: the row of a clone": Counting,
    "repeated: featurize changes the structure|arguments": ChangingInput,
    "order: featurize_many": Sorting,
    "refusals: return_errors without ignore_errors raises no ValueError": Swallowing,
    "bad_rows: featurize_many raises RuntimeError, featurize TypeError": AnotherError,
    "dataframe: .*changes the index": LosingRows,
    "prechecks: precheck fails structure 0": PickyPrecheck,
}


def small(structures: list[Structure]) -> list[Structure]:
    return structures[:3]


def test_ours_keeps_every_promise(structures):
    table = check_featurizer(CrysAEFeaturizer(), small(structures), strict=True)
    assert list(table["check"]) == [check.__name__ for check in BASIC_CHECKS + STRICT_CHECKS]
    assert (table["promise"].str.len() > 20).all()


def test_matminer_s_own_featurizer_passes_the_basic_checks(structures):
    featurizer = DensityFeatures()
    before = dict(vars(featurizer))
    table = check_featurizer(featurizer, small(structures))
    assert len(table) == len(BASIC_CHECKS)
    assert vars(featurizer) == before


def test_a_plain_featurizer_passes_and_is_not_strict(structures):
    check_featurizer(SizeFeaturizer(), small(structures))
    with pytest.raises(FeaturizerCheckError, match=r"^(strings|caller_columns|strict_prechecks)"):
        check_featurizer(SizeFeaturizer(), small(structures), strict=True)


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_rule_is_named(structures, message):
    with pytest.raises(FeaturizerCheckError) as raised:
        check_featurizer(BROKEN[message](2.0), small(structures))
    assert re.match(message, str(raised.value))
    assert isinstance(raised.value, CrysXPPError)
    assert isinstance(raised.value, ValueError)


def test_a_large_pickle_is_named(crysae, structures):
    with pytest.raises(FeaturizerCheckError, match=r"small_pickle: the pickle has .* bytes"):
        check_featurizer(CrysAEFeaturizer(crysae), small(structures), strict=True)


def test_a_featurizer_that_fails_on_the_structures_is_named(structures):
    with pytest.raises(FeaturizerCheckError, match="featurize: TypeError: no structure: None"):
        check_featurizer(SizeFeaturizer(), [*small(structures), None])


def test_at_least_two_structures_are_needed(nacl):
    with pytest.raises(SettingsError, match="at least two, got 1"):
        check_featurizer(SizeFeaturizer(), [nacl])


def test_columns_that_are_no_numbers_are_named(structures):
    class Words(SizeFeaturizer):
        def featurize(self, structure: Any) -> list[Any]:
            return ["many", np.nan]

    with pytest.raises(FeaturizerCheckError, match="no table of numbers"):
        check_featurizer(Words(), small(structures))
