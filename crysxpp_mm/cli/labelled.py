"""OpenCrystals with their labels, as a training takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from crysxpp_mm.cli.inputs import OpenCrystals, as_classes, as_numbers
from crysxpp_mm.cli.messages import one_line, print_errors
from crysxpp_mm.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from crysxpp_mm.graph.arrays import CrystalGraphs
    from crysxpp_mm.graph.converter import CrystalGraphConverter


class LabelledGraphs(NamedTuple):
    """OpenCrystals to learn from, and those left out."""

    names: list[str]
    graphs: CrystalGraphs
    y: Any  # a Series, or a DataFrame of several targets, with a counted index
    groups: NDArray[np.int64] | None  # number of each crystal's group
    left_out: pd.DataFrame  # columns row, reason


def gather(
    crystals: OpenCrystals,
    table: pd.DataFrame,
    converter: CrystalGraphConverter,
    *,
    transform: Any,
    groups: pd.Series | None,
    classify: bool,
    ignore_errors: bool,
    num_workers: int,
) -> LabelledGraphs:
    """Collect graphs and labels of the crystals that have both.

    Raises:
        SettingsError: there is no such transform.
        DataError: a label or a crystal is refused, and errors are not to be ignored; or no crystal
            has a label; or a crystal with a label has no group.
    """
    import numpy as np
    import pandas as pd

    reasons: dict[str, str] = {}
    if classify:
        table = as_classes(table, crystals.names)
    else:
        table = as_numbers(table, crystals.names)
        reasons = _refuse_labels(table, transform, crystals.names, ignore_errors)
    known = table.notna().any(axis=1).to_numpy()
    targets = ", ".join(map(str, table.columns))
    typer.echo(f"{len(crystals)} crystals, {known.sum()} of them with a label of {targets}.")
    if not known.any():
        raise DataError(f"{crystals.label}: no crystal has a label of {targets}.")
    if groups is not None:
        _check_groups(groups, known, crystals.names)
    names, graphs, good = _convert(crystals, converter, known, reasons, ignore_errors, num_workers)
    if reasons:
        typer.echo(f"{len(reasons)} left out:")
        print_errors(reasons, "left_out_ of the model")
    used = np.flatnonzero(known)[good]
    y = table.iloc[used].reset_index(drop=True)
    return LabelledGraphs(
        names,
        graphs,
        y.iloc[:, 0] if y.shape[1] == 1 else y,
        None if groups is None else pd.factorize(groups.iloc[used].astype(str))[0],
        _left_out(crystals.names, known, reasons),
    )


def _convert(
    crystals: OpenCrystals,
    converter: CrystalGraphConverter,
    known: NDArray[np.bool_],
    reasons: dict[str, str],
    ignore_errors: bool,
    num_workers: int,
) -> tuple[list[str], CrystalGraphs, NDArray[np.bool_]]:
    """Names and graphs of the labelled crystals, and which of them have one.

    Why the others have none is added to ``reasons``.
    """
    import numpy as np
    from tqdm.auto import tqdm

    from crysxpp_mm.graph.arrays import CrystalGraphs

    names: list[str] = []
    parts: list[CrystalGraphs] = []
    good: list[NDArray[np.bool_]] = []
    with tqdm(total=int(known.sum()), desc="graphs", unit="") as bar:
        for block in crystals.graphs(converter, keep=known.tolist(), num_workers=num_workers):
            for position, error in block.errors.items():
                name = block.names[position]
                if not ignore_errors:
                    raise DataError(f"{name}: {error} (--ignore-errors leaves such crystals out.)")
                reasons[name] = one_line(error)
            parts.append(block.graphs)
            names += [block.names[row] for row in block.rows]
            good.append(np.isin(np.arange(len(block.names)), block.rows))
            bar.update(len(block.names))
    return names, CrystalGraphs.concatenate(parts), np.concatenate(good)


def _left_out(
    names: Sequence[str], known: NDArray[np.bool_], reasons: dict[str, str]
) -> pd.DataFrame:
    """A row for each crystal that is not learned from, with the reason."""
    import pandas as pd

    missing = [name for name, has in zip(names, known, strict=True) if not has]
    told = {**{name: "no label" for name in missing if name not in reasons}, **reasons}
    return pd.DataFrame({"row": list(told), "reason": list(told.values())}, dtype=object)


def _check_groups(groups: pd.Series, known: NDArray[np.bool_], names: Sequence[str]) -> None:
    """Raise a DataError that names a labelled crystal without a group."""
    blank = groups.isna() | groups.astype(str).str.strip().isin(["", "nan", "NaN"])  # not Na
    empty = known & blank.to_numpy()
    if empty.any():
        raise DataError(
            f"{names[int(empty.argmax())]}: {groups.name} is empty; with --groups every crystal "
            "that has a label needs an entry."
        )


def _refuse_labels(
    table: pd.DataFrame,
    transform: Any,
    names: Sequence[str],
    ignore_errors: bool,
) -> dict[str, str]:
    """Take labels that the transform cannot take out of the table.

    Raises:
        SettingsError: there is no such transform.
        DataError: there is such a label, and errors are not to be ignored.
    """
    import numpy as np

    from crysxpp_mm.estimators.transforms import choose_transforms, get_transform

    reasons: dict[str, str] = {}
    targets = [str(name) for name in table.columns]
    for target, kind in zip(targets, choose_transforms(transform, targets), strict=True):
        values, rule = table[target].to_numpy(copy=True), get_transform(kind)
        for row in np.flatnonzero(~np.isnan(values) & ~rule.accepts(values)).tolist():
            reason = f"{target} is {values[row]:g}, but {kind} takes {rule.domain}."
            if not ignore_errors:
                raise DataError(f"{names[row]}: {reason} (--ignore-errors leaves such labels out.)")
            reasons[names[row]] = reason
            values[row] = np.nan
        table[target] = values
    return reasons


def hold_out(
    data: LabelledGraphs, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw rows to learn from and test rows, disjoint; groups stay whole.

    Raises:
        DataError: all crystals are of one group.
    """
    import numpy as np

    from crysxpp_mm.estimators.splits import draw_groups

    n_crystals = len(data.names)
    n_test = max(1, round(fraction * n_crystals)) if fraction else 0
    rng = np.random.default_rng([seed, 3])
    if n_test and data.groups is not None:
        held_out = draw_groups(data.groups, n_test, rng)
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)
    order = rng.permutation(n_crystals)
    return np.sort(order[n_test:]), np.sort(order[:n_test])
