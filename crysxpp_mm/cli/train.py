"""``crysxpp train``: a property predictor from labelled crystals."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from crysxpp_mm.cli import options
from crysxpp_mm.cli.inputs import open_crystals, read_labels
from crysxpp_mm.cli.labelled import LabelledGraphs, gather, hold_out
from crysxpp_mm.cli.learning import lightning_run, short_warnings
from crysxpp_mm.cli.tables import check_writable
from crysxpp_mm.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor
    from crysxpp_mm.graph.converter import CrystalGraphConverter

MODEL_SUFFIXES = (".json.gz", ".json")
OPTIONS = {"target_names": "--target", "units": "--unit"}
"""Options by the arguments of the estimator that are called otherwise."""


def train(
    source: options.CrystalSource,
    target: options.Targets,
    out: options.ModelOut = Path("model.json.gz"),
    labels: options.LabelTable = None,
    id_column: options.IdColumn = None,
    column: options.Column = None,
    classify: options.Classify = False,
    transform: options.Transforms = None,
    unit: options.Units = None,
    pretrained: options.Pretrained = None,
    config: options.EstimatorSettings = None,
    max_epochs: options.MaxEpochs = 40,
    n_members: options.Members = 1,
    seed: options.Seed = 0,
    validation_fraction: options.ValidationFraction = 0.1,
    test_fraction: options.TestFraction = 0.0,
    groups: options.Groups = None,
    checkpoint_dir: options.CheckpointDir = None,
    accelerator: options.Accelerator = "auto",
    devices: options.Devices = 1,
    ignore_errors: options.LeaveOutLabels = False,
    num_workers: options.Parsers = 0,
    data_home: options.DataHome = None,
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
    targets = list(dict.fromkeys(target))
    if classify:
        _check_class(targets, transform, unit)
    estimator = _estimator(
        config,
        classify=classify,
        target_names=targets,
        transform=_by_target("--transform", transform, targets),
        units=_by_target("--unit", unit, targets),
        pretrained=_start(pretrained),
        max_epochs=max_epochs,
        n_members=n_members,
        seed=seed,
        validation_fraction=validation_fraction,
        checkpoint_dir=checkpoint_dir,
        accelerator=accelerator,
        devices=devices,
    )
    rule = _graph_rule(estimator)
    crystals = open_crystals(source, column, data_home)
    if groups in targets:
        raise SettingsError(f"--groups {groups} is a --target; name another column.")
    columns = targets if groups is None else [*targets, groups]
    table = read_labels(crystals, columns, labels=labels, id_column=id_column)
    with short_warnings():
        data = gather(
            crystals,
            table[targets],
            rule,
            transform=None if classify else estimator.transform,
            groups=None if groups is None else table[groups],
            classify=classify,
            ignore_errors=ignore_errors,
            num_workers=num_workers,
        )
        learned, held_out = hold_out(data, test_fraction, seed)
        _fit(estimator, data, learned, rule)
    told = _tell_training(estimator)
    estimator.metadata_ = {"source": Path(crystals.label).name}
    if groups is not None:
        estimator.metadata_["groups"] = groups
    if len(held_out):
        results, more = _test(estimator, data, held_out)
        told += more
        estimator.metadata_["test"] = {
            "fraction": test_fraction,
            "seed": seed,
            "n": len(held_out),
            **results,
            "crystals": [data.names[row] for row in held_out],
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


def _check_class(targets: list[str], transform: list[str] | None, unit: list[str] | None) -> None:
    if transform or unit:
        raise SettingsError("--transform and --unit are for numbers; a class has neither.")
    if len(targets) > 1:
        raise SettingsError("--classify takes one --target.")


def _start(pretrained: str | None) -> str | None:
    """Name of the model that the encoder comes from; None for random weights."""
    from crysxpp_mm.shipped import DEFAULT_MODEL

    return None if pretrained == "none" else pretrained or DEFAULT_MODEL


def _by_target(option: str, values: list[str] | None, targets: list[str]) -> dict[str, str] | None:
    """Values of an option by target: one for all of them, or one behind each ``NAME=``.

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


def _estimator(
    config: Path | None, *, classify: bool, **settings: Any
) -> CrysXPPRegressor | CrysXPPClassifier:
    """Make the estimator that is to be fitted.

    Args:
        config: File of further settings.
        classify: Whether it learns classes.
        **settings: Settings by the names that the estimator has for them; one that it does not know
            has to be None.

    Raises:
        SettingsError: the file cannot be read, or has an unknown setting, or one of an option.
    """
    from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor
    from crysxpp_mm.training.config import read_settings, refuse_unknown

    kind = CrysXPPClassifier if classify else CrysXPPRegressor
    known = set(kind().get_params(deep=False))
    further: dict[str, Any] = {}
    if config is not None:
        further = read_settings(config)
        if given := [name for name in further if name in settings]:
            option = OPTIONS.get(given[0], f"--{given[0].replace('_', '-')}")
            raise SettingsError(f"{config}: give {given[0]} by the option {option}.")
        refuse_unknown(config, further, known=known - set(settings))
    own = {name: value for name, value in settings.items() if name in known or value is not None}
    return kind(**own, **further)


def _graph_rule(estimator: CrysXPPRegressor | CrysXPPClassifier) -> CrystalGraphConverter:
    """The rule by which the estimator will read crystals."""
    from crysxpp_mm.graph.converter import CrystalGraphConverter
    from crysxpp_mm.shipped import load_autoencoder

    start = estimator.get_params(deep=False).get("pretrained")
    return CrystalGraphConverter() if start is None else load_autoencoder(start).converter


def _fit(
    estimator: CrysXPPRegressor | CrysXPPClassifier,
    data: LabelledGraphs,
    rows: NDArray[np.int64],
    rule: CrystalGraphConverter,
) -> None:
    from crysxpp_mm.data.store import GraphStore

    names = [data.names[row] for row in rows]
    store = GraphStore(names, data.graphs.select(rows), rule, "")  # domain gives the names
    advice = (
        "Nothing is kept; with --checkpoint-dir the same command would go on."
        if estimator.checkpoint_dir is None
        else "The same command goes on from the last checkpoint."
    )
    with lightning_run(advice):
        estimator.fit(
            store,
            data.y.iloc[rows],
            groups=None if data.groups is None else data.groups[rows],
        )
    estimator.left_out_ = data.left_out


def _tell_training(estimator: CrysXPPRegressor | CrysXPPClassifier) -> list[str]:
    """Say how the training went, a line per member."""
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
    """Score the predictions of crystals that were held out: as numbers, and in lines."""
    import numpy as np
    import pandas as pd

    truth = pd.DataFrame(data.y.iloc[rows])
    predicted = np.asarray(estimator.predict(data.graphs.select(rows))).reshape(truth.shape)
    told = [f"Test on {len(rows)} crystals that were held out:"]
    if hasattr(estimator, "classes_"):
        known = truth.iloc[:, 0].to_numpy()
        accuracy = float(np.mean([a == b for a, b in zip(known, predicted[:, 0], strict=True)]))
        return {"accuracy": accuracy}, [*told, f"  accuracy {accuracy:.3f}"]
    scores: dict[str, Any] = {"mae": {}, "r2": {}}
    for number, name in enumerate(estimator.target_names_):
        found, line = _errors(truth.iloc[:, number].to_numpy(), predicted[:, number])
        for metric, value in found.items():
            scores[metric][name] = value
        unit = f" {estimator.units_[number]}" if estimator.units_[number] else ""
        told.append(f"  {name}: {line.format(unit=unit)}")
    return scores, told


def _errors(
    truth: NDArray[np.float64], predicted: NDArray[np.float64]
) -> tuple[dict[str, float], str]:
    """Errors of a target, and a line on them with ``{unit}`` in it."""
    import numpy as np
    from sklearn.metrics import r2_score

    known = ~np.isnan(truth)
    if not known.any():
        return {}, "no label"
    scores = {"mae": float(np.abs(predicted - truth)[known].mean())}
    line = f"MAE {scores['mae']:.4g}{{unit}}"
    if known.sum() > 1:  # R2 compares with the mean of the labels
        scores["r2"] = float(r2_score(truth[known], predicted[known]))
        line += f", R2 {scores['r2']:.3f}"
    return scores, f"{line} ({known.sum()} labels)"
