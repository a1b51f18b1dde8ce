"""``crysxpp train``: a property predictor from labelled crystals."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from crysxpp_mm.cli.inputs import (
    Crystals,
    as_classes,
    as_numbers,
    open_crystals,
    read_labels,
)
from crysxpp_mm.cli.messages import one_line, print_errors
from crysxpp_mm.cli.options import Column, DataHome, Parsers
from crysxpp_mm.cli.options import Crystals as Source
from crysxpp_mm.cli.tables import check_writable
from crysxpp_mm.cli.training import lightning_run
from crysxpp_mm.errors import DataError, SettingsError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor
    from crysxpp_mm.graph.arrays import CrystalGraphs
    from crysxpp_mm.graph.converter import CrystalGraphConverter

MODEL_SUFFIXES = (".json.gz", ".json")
SETTINGS_OF_OPTIONS = {
    "pretrained": "--pretrained",
    "target_names": "--target",
    "transform": "--transform",
    "units": "--unit",
}
"""Settings of an estimator that ``_estimator`` makes of options, with these."""


def train(
    source: Source,
    target: Annotated[
        list[str],
        typer.Option(
            help="Column to learn; may be repeated for several properties at once.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help=f"File of the model: {' or '.join(MODEL_SUFFIXES)}.")
    ] = Path("model.json.gz"),
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV or JSON table of the labels of a folder, a zip or a graph store.",
            show_default=False,
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            help="Column of --labels with the names of the files, without suffix.  "
            "[default: its first]",
            show_default=False,
        ),
    ] = None,
    column: Column = None,
    classify: Annotated[
        bool, typer.Option("--classify", help="The target is a class, not a number.")
    ] = False,
    transform: Annotated[
        list[str] | None,
        typer.Option(
            help="Learn log10, log, log1p or sqrt of the target, or a nonnegative target, such as "
            "a band gap; for one of several targets NAME=log10. May be repeated.",
            show_default=False,
        ),
    ] = None,
    unit: Annotated[
        list[str] | None,
        typer.Option(
            help="Unit of the target, kept with the model; for one of several NAME=GPa. May be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Where the encoder starts: a shipped CrysAE by name, the file of a saved one, or "
            "none for random weights.  [default: the shipped default]",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file of settings of CrysXPPRegressor or CrysXPPClassifier that have "
            "no option here, such as batch_size.",
            show_default=False,
        ),
    ] = None,
    max_epochs: Annotated[int, typer.Option(min=1, help="Epochs at most.")] = 40,
    n_members: Annotated[
        int, typer.Option(min=1, help="Networks of the ensemble; their mean is the prediction.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, splits and order.")] = 0,
    validation_fraction: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of the crystals that chooses the best epoch, if there are 200 or more.",
        ),
    ] = 0.1,
    test_fraction: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of the crystals that is held out and read once, when the model is done.",
        ),
    ] = 0.0,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Column of the table, such as the formula; crystals with equal entries stay "
            "together when crystals are held out.",
            show_default=False,
        ),
    ] = None,
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for checkpoints; the same command goes on after an interruption.",
            show_default=False,
        ),
    ] = None,
    accelerator: Annotated[
        str, typer.Option(help="As Lightning takes it: auto, cpu, gpu.")
    ] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    ignore_errors: Annotated[
        bool,
        typer.Option(
            "--ignore-errors",
            help="Leave out crystals that have no graph and labels that the transform refuses.",
        ),
    ] = False,
    num_workers: Parsers = 0,
    data_home: DataHome = None,
) -> None:
    """Train a property predictor on labelled crystals.

    It starts from an encoder that was pretrained without labels. The labels are columns of the
    table, or of a table beside the files (--labels), matched by the files' names without suffix.

    \b
    Examples, the second with a file of settings that holds "batch_size: 32":
      crysxpp train elastic_tensor_2015 --target K_VRH --transform log10 --unit GPa
      crysxpp train crystals.csv --target energy --config settings.yaml --max-epochs 60
      crysxpp train crystals.zip --labels properties.csv --id-column material_id --target band_gap --unit eV --test-fraction 0.1 --out gap.json.gz
    """  # noqa: E501 - an example is one line
    _check_model_name(out)
    options = {
        "max_epochs": max_epochs,
        "n_members": n_members,
        "seed": seed,
        "validation_fraction": validation_fraction,
        "checkpoint_dir": checkpoint_dir,
        "accelerator": accelerator,
        "devices": devices,
    }
    targets = list(dict.fromkeys(target))
    if config is not None:
        options |= _further_settings(config, options, classify=classify)
    estimator, converter = _estimator(
        targets, options, classify=classify, transform=transform, unit=unit, pretrained=pretrained
    )
    crystals = open_crystals(source, column, data_home)
    if groups in targets:
        raise SettingsError(f"--groups {groups} is a --target; name another column.")
    columns = targets if groups is None else [*targets, groups]
    table = read_labels(crystals, columns, labels=labels, id_column=id_column)
    with _short_warnings():
        data = _labelled(
            crystals,
            table[targets],
            estimator,
            converter,
            groups=None if groups is None else table[groups],
            classify=classify,
            ignore_errors=ignore_errors,
            num_workers=num_workers,
        )
        learned, held_out = _hold_out(data, test_fraction, seed)
        advice = (
            "Nothing is kept; with --checkpoint-dir the same command would go on."
            if checkpoint_dir is None
            else "The same command goes on from the last checkpoint."
        )
        with lightning_run(advice):
            estimator.fit(
                data.graphs.select(learned),
                data.y.iloc[learned],
                groups=None if data.groups is None else data.groups[learned],
            )
    estimator.left_out_ = data.left_out
    told = _tell_training(estimator)
    estimator.metadata_ = {"source": Path(crystals.label).name}
    if groups is not None:
        estimator.metadata_["groups"] = groups
    if len(held_out):
        results, more = _test(estimator, data, held_out)
        told += more
        names = [data.names[row] for row in held_out]
        estimator.metadata_["test"] = {
            "fraction": test_fraction,
            "seed": seed,
            "n": len(held_out),
            **results,
            "crystals": names,
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    estimator.save(out)  # before anything is told, as nobody may listen any more
    for line in told:
        typer.echo(line)
    typer.echo(f"Wrote {out}.\nNext:\n  crysxpp predict SOURCE --model {out} --out predictions.csv")


def _check_model_name(out: Path) -> None:
    if not out.name.endswith(MODEL_SUFFIXES):
        raise SettingsError(f"--out {out}: the name must end in {' or '.join(MODEL_SUFFIXES)}.")
    check_writable(out)


def _further_settings(path: Path, options: Iterable[str], *, classify: bool) -> dict[str, Any]:
    """Settings of the estimator that have no option, from a file.

    Raises:
        SettingsError: the file cannot be read, or has an unknown setting, or one of an option.
    """
    from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor
    from crysxpp_mm.training.config import read_settings, refuse_unknown

    kind = CrysXPPClassifier if classify else CrysXPPRegressor
    settings = read_settings(path)
    own = {name: f"--{name.replace('_', '-')}" for name in options} | SETTINGS_OF_OPTIONS
    if given := [name for name in settings if name in own]:
        raise SettingsError(f"{path}: give {given[0]} by the option {own[given[0]]}.")
    refuse_unknown(path, settings, known=set(kind().get_params(deep=False)) - set(own))
    return settings


def _estimator(
    targets: list[str],
    options: dict[str, Any],
    *,
    classify: bool,
    transform: list[str] | None,
    unit: list[str] | None,
    pretrained: str | None,
) -> tuple[CrysXPPRegressor | CrysXPPClassifier, CrystalGraphConverter]:
    """What is to be fitted, and the rule of its graphs."""
    if classify and (transform or unit):
        raise SettingsError("--transform and --unit are for numbers; a class has neither.")
    if classify and len(targets) > 1:
        raise SettingsError("--classify takes one --target.")
    from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor
    from crysxpp_mm.graph.converter import CrystalGraphConverter
    from crysxpp_mm.model_zoo import DEFAULT_MODEL, load_model
    from crysxpp_mm.models.crysae import CrysAE

    chosen = None if pretrained == "none" else pretrained or DEFAULT_MODEL
    converter = CrystalGraphConverter()
    if chosen is not None:
        start = load_model(chosen)
        if not isinstance(start, CrysAE):
            raise SettingsError(
                f"--pretrained {chosen} is a {type(start).__name__}; an encoder comes from a "
                "CrysAE (crysxpp models), or none."
            )
        converter = start.converter
    options = {**options, "pretrained": chosen}
    if classify:
        return CrysXPPClassifier(**options, target_names=targets), converter
    return (
        CrysXPPRegressor(
            **options,
            target_names=targets,
            transform=_by_target("--transform", transform, targets),
            units=_by_target("--unit", unit, targets),
        ),
        converter,
    )


def _by_target(option: str, values: list[str] | None, targets: list[str]) -> dict[str, str] | None:
    """What an option says of each target: for all of them, or behind ``NAME=``.

    Raises:
        SettingsError: it names no target, or says two things of one.
    """
    chosen: dict[str, str] = {}
    for value in values or ():
        name, sign, rest = value.rpartition("=")
        if sign and name not in targets:
            raise SettingsError(f"{option} {value}: there is no --target {name!r}.")
        for one in [name] if sign else targets:
            if one in chosen:
                raise SettingsError(f"{option} says two things of {one!r}; give NAME={rest}.")
            chosen[one] = rest
    return chosen or None


class LabelledGraphs(NamedTuple):
    """The crystals to learn from, and the others."""

    names: list[str]
    graphs: CrystalGraphs
    y: Any  # a Series, or a DataFrame of several targets, with a counted index
    groups: NDArray[np.int64] | None  # number of each crystal's group
    left_out: pd.DataFrame  # columns row, reason


def _labelled(
    crystals: Crystals,
    table: pd.DataFrame,
    estimator: CrysXPPRegressor | CrysXPPClassifier,
    converter: CrystalGraphConverter,
    *,
    groups: pd.Series | None,
    classify: bool,
    ignore_errors: bool,
    num_workers: int,
) -> LabelledGraphs:
    """Graphs and labels of those crystals that have both."""
    import numpy as np
    import pandas as pd
    from tqdm.auto import tqdm

    from crysxpp_mm.graph.arrays import CrystalGraphs

    reasons: dict[str, str] = {}
    if classify:
        table = as_classes(table, crystals.names)
    else:
        table = as_numbers(table, crystals.names)
        reasons = _refuse_labels(table, estimator.transform, crystals.names, ignore_errors)
    known = table.notna().any(axis=1).to_numpy()
    targets = ", ".join(map(str, table.columns))
    typer.echo(f"{len(crystals)} crystals, {known.sum()} of them with a label of {targets}.")
    if not known.any():
        raise DataError(f"{crystals.label}: no crystal has a label of {targets}.")
    if groups is not None:
        _check_groups(groups, known, crystals.names)
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
    if reasons:
        typer.echo(f"{len(reasons)} left out:")
        print_errors(reasons, "left_out_ of the model")
    used = np.flatnonzero(known)[np.concatenate(good)]
    y = table.iloc[used].reset_index(drop=True)
    missing = [name for name, has in zip(crystals.names, known, strict=True) if not has]
    reasons = {**{name: "no label" for name in missing if name not in reasons}, **reasons}
    left_out = pd.DataFrame({"row": list(reasons), "reason": list(reasons.values())}, dtype=object)
    single = y.shape[1] == 1
    return LabelledGraphs(
        names,
        CrystalGraphs.concatenate(parts),
        y.iloc[:, 0] if single else y,
        None if groups is None else pd.factorize(groups.iloc[used].astype(str))[0],
        left_out,
    )


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
    """Take labels that the transform does not know what to do with out of the table.

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


def _hold_out(
    data: LabelledGraphs, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from and rows of the test, disjoint, drawn with ``seed``; groups stay whole.

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


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Warnings in one line each, without the place in the code."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *rest, **more: f"warning: {one_line(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _tell_training(estimator: CrysXPPRegressor | CrysXPPClassifier) -> list[str]:
    """How the training went, a line a member."""
    told = []
    curves = estimator.learning_curve_.groupby("member")
    for member, (_, curve) in enumerate(curves):
        who = f"network {member + 1}: " if estimator.n_members > 1 else ""
        kept = curve[curve["kept"]].iloc[-1]
        loss = float(kept.get("val_loss", float("nan")))
        chosen = "" if math.isnan(loss) else f" (validation loss {loss:.4g})"
        end = f"number {kept['epoch'] + 1} is kept{chosen}"
        told.append(
            f"{who}learned from {estimator.n_train_} crystals in {len(curve)} epochs, {end}."
        )
    return told


def _test(
    estimator: CrysXPPRegressor | CrysXPPClassifier, data: LabelledGraphs, rows: NDArray[np.int64]
) -> tuple[dict[str, Any], list[str]]:
    """How well the crystals are predicted that were held out, and the same in lines."""
    import numpy as np
    import pandas as pd
    from sklearn.metrics import r2_score

    truth = pd.DataFrame(data.y.iloc[rows])
    predicted = np.asarray(estimator.predict(data.graphs.select(rows))).reshape(truth.shape)
    told = [f"Test on {len(rows)} crystals that were held out:"]
    if hasattr(estimator, "classes_"):
        known = truth.iloc[:, 0].to_numpy()
        accuracy = float(np.mean([a == b for a, b in zip(known, predicted[:, 0], strict=True)]))
        return {"accuracy": accuracy}, [*told, f"  accuracy {accuracy:.3f}"]
    scores: dict[str, Any] = {"mae": {}, "r2": {}}
    for number, name in enumerate(estimator.target_names_):
        values, guesses = truth.iloc[:, number].to_numpy(), predicted[:, number]
        known = ~np.isnan(values)
        if not known.any():
            told.append(f"  {name}: no label")
            continue
        error = float(np.abs(guesses - values)[known].mean())
        unit = f" {estimator.units_[number]}" if estimator.units_[number] else ""
        scores["mae"][name], text = error, f"MAE {error:.4g}{unit}"
        if known.sum() > 1:  # R2 compares with the mean of the labels
            scores["r2"][name] = float(r2_score(values[known], guesses[known]))
            text += f", R2 {scores['r2'][name]:.3f}"
        told.append(f"  {name}: {text} ({known.sum()} labels)")
    return scores, told
