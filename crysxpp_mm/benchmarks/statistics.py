"""Means, spreads and differences of errors, over seeds and over folds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

REGRESSORS = ("ridge", "svr", "trees")
"""Kinds of simple models, whose errors over folds are columns."""


def verdict(difference: float, error: float) -> str:
    """Judge a difference of errors, ours minus theirs.

    Returns:
        ``"better"`` or ``"worse"`` where it exceeds its error, else ``"equal"``; empty where the
        error is not known.

    Example:
        >>> verdict(-0.2, 0.1), verdict(-0.2, 0.3)
        ('better', 'equal')
    """
    if np.isnan(error):
        return ""
    if abs(difference) <= error:
        return "equal"
    return "better" if difference < 0 else "worse"


def over_seeds(
    runs: pd.DataFrame, by: Sequence[str], *, first: Iterable[str], means: Iterable[str] = ()
) -> pd.DataFrame:
    """Mean and standard deviation of the errors over the seeds.

    Args:
        runs: One row a run, with ``seed`` and ``mae``.
        by: Columns that tell settings apart.
        first: Columns that all seeds of a setting share.
        means: Further columns to average.

    Returns:
        One row a setting: ``by``, ``first``, ``n_seeds``, ``mae``, ``std`` and ``means``.
    """
    columns = {name: (name, "first") for name in first}
    columns |= {"n_seeds": ("seed", "count"), "mae": ("mae", "mean"), "std": ("mae", "std")}
    columns |= {name: (name, "mean") for name in means}
    return runs.groupby(list(by), sort=False).agg(**columns).reset_index()


def difference_by_seed(wide: pd.DataFrame, ours: str, theirs: str) -> dict[str, Any]:
    """Error of a method minus that of another, seed by seed.

    The runs of a seed share their rows, so their difference is steadier than the errors are.

    Args:
        wide: Errors, one row per seed, one column per method.
        ours: The method.
        theirs: The other.

    Returns:
        Mean ``difference``, its standard deviation ``std`` over the seeds, its share ``relative``
        of the other's error, and a ``verdict``, which the standard deviation decides.
    """
    differences = wide[ours] - wide[theirs]
    mean, spread = differences.mean(), differences.std(ddof=1)
    return {
        "difference": mean,
        "std": spread,
        "relative": mean / wide[theirs].mean(),
        "verdict": verdict(mean, spread),
    }


def over_folds(folds: pd.DataFrame, units: dict[str, str]) -> pd.DataFrame:
    """Mean and spread of the errors over folds.

    Args:
        folds: One row per target, kind, seed and fold.
        units: Unit of each target.

    Returns:
        One row per target and kind: ``mae``, its standard deviation ``std`` over the folds (of the
        means over the seeds) and ``std_seeds`` over the seeds (of the means over the folds), the
        regressors' own errors where they were in all folds, and how often each was chosen.
    """
    rows = []
    for (target, kind), group in folds.groupby(["target", "kind"], sort=False):
        by_fold = group.groupby("fold")["mae"].mean()
        by_seed = group.groupby("seed")["mae"].mean()
        counts = group["chosen"].value_counts()
        rows.append(
            {
                "target": target,
                "unit": units.get(str(target), ""),
                "n_rows": int(group["n_rows"].iloc[0]),
                "kind": kind,
                "n_columns": int(group["n_columns"].iloc[0]),
                "mae": by_fold.mean(),
                "std": by_fold.std(ddof=0),
                "std_seeds": by_seed.std(ddof=0) if len(by_seed) > 1 else np.nan,
                **{name: group[name].mean(skipna=False) for name in REGRESSORS},
                "chosen": ", ".join(f"{name} {count}" for name, count in counts.items()),
            }
        )
    return pd.DataFrame(rows)


def differences_by_fold(folds: pd.DataFrame, *, ours: str, controls: Sequence[str]) -> pd.DataFrame:
    """Differences of the errors fold by fold, ours minus the control's.

    The folds share their training rows, so the standard error of the mean difference is that of
    Nadeau and Bengio (Machine Learning 52, 239 (2003)): the variance over the folds times
    ``1 / n_folds + n_test / n_train``.

    Args:
        folds: One row per target, kind, seed and fold.
        ours: The kind that is compared.
        controls: The kinds that it is compared with; seeds are averaged first.

    Returns:
        One row per target and control: ``difference``, its standard deviation ``std`` over the
        folds, ``standard_error``, ``folds_better``, and a ``verdict``, which the standard error
        decides.
    """
    means = folds.groupby(["target", "kind", "fold"], sort=False)["mae"].mean().reset_index()
    rows = []
    for target in means["target"].unique():
        wide = means[means["target"] == target].pivot(index="fold", columns="kind", values="mae")
        for control in controls:
            difference = (wide[ours] - wide[control]).to_numpy()
            n_folds = len(difference)
            error = difference.std(ddof=1) * np.sqrt(1 / n_folds + 1 / (n_folds - 1))
            rows.append(
                {
                    "target": target,
                    "control": control,
                    "ours": wide[ours].mean(),
                    "theirs": wide[control].mean(),
                    "difference": difference.mean(),
                    "std": difference.std(ddof=0),
                    "standard_error": error,
                    "folds_better": int((difference < 0).sum()),
                    "verdict": verdict(difference.mean(), error),
                }
            )
    return pd.DataFrame(rows)


def mean_ratios(summary: pd.DataFrame, ours: str) -> pd.Series[float]:
    """Errors of each kind as multiples of those of ``ours``, mean over the targets."""
    wide = summary.pivot(index="target", columns="kind", values="mae")
    return wide.div(wide[ours], axis=0).mean()
