"""``crysxpp pretrain``."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crysxpp_mm.cli.graphs import describe_store
from crysxpp_mm.cli.inputs import find_source
from crysxpp_mm.cli.learning import lightning_run
from crysxpp_mm.cli.messages import lines
from crysxpp_mm.cli.options import Accelerator, Column, DataHome, Devices, LeaveOut, Workers
from crysxpp_mm.errors import DataError

if TYPE_CHECKING:
    from crysxpp_mm.data.store import GraphStore
    from crysxpp_mm.data.targets import TargetTable


def pretrain(
    data: Annotated[
        str,
        typer.Argument(
            help="A graph store (crysxpp graphs), or what it can be built from; then it is kept "
            "in the folder of the run.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder of the run; the same command goes on after an interruption."),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file of settings.  [default: those of crysae-mp-v1]",
            show_default=False,
        ),
    ] = None,
    column: Column = None,
    num_workers: Workers = 0,
    accelerator: Accelerator = "cpu",
    devices: Devices = 1,
    description: Annotated[
        str, typer.Option(help="A line on the data, kept with the weights.")
    ] = "",
    start: Annotated[
        str | None,
        typer.Option(
            help="A pretrained model whose weights to start from, by name or file.  "
            "[default: random weights]",
            show_default=False,
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            help="End after the first epoch that is finished later than so; the same command "
            "goes on.  [default: no limit]",
            show_default=False,
        ),
    ] = None,
    ignore_errors: LeaveOut = False,
    data_home: DataHome = None,
) -> None:
    """Pretrain CrysAE on structures.

    No labels are used. The same command goes on with an interrupted run.

    \b
    Example, with a file of settings that holds "hidden_dim: 32" and "max_epochs: 20":
      crysxpp pretrain crystals.zip --config small.yaml --out runs/small
    """
    from crysxpp_mm.model_zoo import load_model
    from crysxpp_mm.training.checkpoints import MODEL
    from crysxpp_mm.training.config import PretrainConfig
    from crysxpp_mm.training.pretrain import pretrain as run

    settings = PretrainConfig.from_file(config) if config else PretrainConfig()
    store = _training_store(
        data,
        out,
        column=column,
        num_workers=num_workers,
        ignore_errors=ignore_errors,
        data_home=data_home,
    )
    targets = _training_targets(
        settings.targets, data, out, store, column=column, data_home=data_home
    )
    with lightning_run("The same command goes on from the last checkpoint."):
        model = run(
            store.graphs,
            settings,
            out,
            converter=store.converter,
            data_hash=store.data_hash,
            targets=targets,
            start=load_model(start) if start else None,
            description=description,
            accelerator=accelerator,
            devices=devices,
            num_workers=num_workers,
            max_minutes=max_minutes,
        )
    _tell_results(model.metadata)
    typer.echo(
        f"\nWrote to {out}: {MODEL}, run.json, curves.csv, curves.png\n"
        "Next:\n"
        f"  crysxpp featurize SOURCE --model {out / MODEL} --out columns.csv"
    )


def _tell_results(facts: Mapping[str, Any]) -> None:
    """Tell how long the run was, and what is rebuilt of crystals that were held out."""
    results = facts["results"]
    typer.echo(
        f"\n{results['epochs']} epochs done, the best loss {results['best_loss']:.4g} in epoch "
        f"{results['best_epoch'] + 1}."
    )
    if "reconstruction" in results:
        typer.echo(f"Reconstruction of {facts['n_validation']} crystals that were held out:")
        for line in lines(results["reconstruction"]):
            typer.echo(f"  {line}")


def _training_store(
    data: str,
    out: Path,
    *,
    column: str | None,
    num_workers: int,
    ignore_errors: bool,
    data_home: Path | None,
) -> GraphStore:
    """The graphs to train on: those given, those built before, or built now."""
    from crysxpp_mm.data.sources import open_structures
    from crysxpp_mm.data.store import SUFFIX, GraphStore, build_store

    if data.endswith(SUFFIX):
        return GraphStore.load(data)
    found, column = find_source(data, column, data_home)
    path = out / f"data{SUFFIX}"
    if not path.exists():
        store = build_store(
            found, path, column=column, num_workers=num_workers, ignore_errors=ignore_errors
        )
        describe_store(store, path)
        return store
    store = GraphStore.load(path)
    names = open_structures(found, column=column).names
    if set(names) != {*store.names, *store.errors}:
        raise DataError(
            f"{path} was built from other crystals than {data} holds; choose another --out, or "
            "remove the file."
        )
    typer.echo(f"Using {path}, built before; remove it to build it anew.")
    return store


def _training_targets(
    names: tuple[str, ...],
    data: str,
    out: Path,
    store: GraphStore,
    *,
    column: str | None,
    data_home: Path | None,
) -> TargetTable | None:
    """The pretext targets that the settings name: those kept beside the graphs, or made now."""
    from crysxpp_mm.data.store import SUFFIX as GRAPHS
    from crysxpp_mm.data.targets import SUFFIX, TargetTable, compute_targets

    if not names:
        return None
    built = data.endswith(GRAPHS)
    path = Path(data.removesuffix(GRAPHS) + SUFFIX) if built else out / f"data{SUFFIX}"
    if path.exists():
        return TargetTable.load(path)
    if built:
        raise DataError(
            f"{path} is absent, and {data} holds graphs, which pretext targets cannot be computed "
            "from; give the structures in its place."
        )
    found, column = find_source(data, column, data_home)
    table = compute_targets(found, store, names, column=column)
    table.save(path)
    return table
