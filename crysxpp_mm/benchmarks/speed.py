"""Speed, beside others and as rows grow: ratios within one run, one thread.

All that is compared is interleaved (one round of each in turn) and given as medians, so that a busy
machine slows both sides.
"""

from __future__ import annotations

import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from pymatgen.core import Lattice, Structure

from crysxpp_mm.benchmarks.data import load_tables
from crysxpp_mm.benchmarks.pages import markdown_table, model_name, page
from crysxpp_mm.benchmarks.runner import HERE, Place
from crysxpp_mm.benchmarks.simple_models import magpie_featurizer
from crysxpp_mm.compute import one_torch_thread
from crysxpp_mm.data.sources import open_structures, parse_blocks
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.graph.crystal import read_crystal

if TYPE_CHECKING:
    from crysxpp_mm.featurizers import CrysAEFeaturizer
    from crysxpp_mm.training.config import PretrainConfig
    from crysxpp_mm.training.pretrain import CrystalData, PretrainModule

FULL_ROWS = 36_737
"""Crystals of the data set that the shipped weights were trained on."""

LARGEST_CELL = 2_000


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of the benchmark.

    Attributes:
        part: What was measured.
        measure: The quantity.
        value: Its value.
        unit: Its unit.
        goal: What is asked of it, such as ``">= 1300"``; empty for a number that is only shown.
    """

    part: str
    measure: str
    value: float
    unit: str
    goal: str = ""

    @property
    def reached(self) -> bool | None:
        """True if the goal is reached; None without a goal."""
        if not self.goal:
            return None
        sign, number = self.goal.split()
        return self.value >= float(number) if sign == ">=" else self.value <= float(number)


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of a call, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(works: Sequence[Callable[[], object]], *, rounds: int) -> list[list[float]]:
    """Times of several kinds of work, one round of each in turn.

    Returns:
        For each kind the seconds of its rounds.
    """
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for index, work in enumerate(works):
            times[index].append(seconds_of(work))
    return times


def measure_columns(
    structures: Sequence[Structure], featurizer: CrysAEFeaturizer, *, rounds: int = 5
) -> list[Measure]:
    """From a DataFrame to a DataFrame with columns, with matminer's Magpie features in turn.

    Magpie is given compositions that are made already. ``featurize_many``, whose rows are lists of
    Python floats as matminer asks, is shown beside it.
    """
    magpie = magpie_featurizer()
    compositions = [structure.composition for structure in structures]
    frame = pd.DataFrame({"structure": structures, "composition": compositions})

    def ours(rows: pd.DataFrame) -> None:
        featurizer.featurize_dataframe(rows, "structure", pbar=False)

    def theirs(rows: pd.DataFrame) -> None:
        magpie.featurize_dataframe(rows, "composition", pbar=False)

    ours(frame[:20])
    theirs(frame[:20])
    seconds, magpie_seconds, list_seconds = interleaved(
        [
            lambda: ours(frame),
            lambda: theirs(frame),
            lambda: featurizer.featurize_many(list(structures), pbar=False),
        ],
        rounds=rounds,
    )
    n = len(structures)
    part = f"{n} structures in memory to columns, one thread"
    return [
        Measure(
            part=part,
            measure="CrysAEFeaturizer.featurize_dataframe",
            value=n / statistics.median(seconds),
            unit="structures/s",
            goal=">= 2300",
        ),
        Measure(
            part=part,
            measure="CrysAEFeaturizer.featurize_many, as lists",
            value=n / statistics.median(list_seconds),
            unit="structures/s",
        ),
        Measure(
            part=part,
            measure="matminer Magpie featurize_dataframe, set_n_jobs(1)",
            value=n / statistics.median(magpie_seconds),
            unit="structures/s",
        ),
        Measure(
            part=part,
            measure="CrysAE to Magpie",
            value=statistics.median(b / a for a, b in zip(seconds, magpie_seconds, strict=True)),
            unit="times",
            goal=">= 2",
        ),
    ]


def measure_neighbors(structures: Sequence[Structure], *, rounds: int = 3) -> list[Measure]:
    """The adaptive neighbour search against ``get_all_neighbors(8)`` with sorting."""
    converter = CrystalGraphConverter()
    crystals = [read_crystal(structure) for structure in structures]

    def adaptive() -> None:
        converter.build(crystals)

    def complete() -> None:
        for structure in structures:
            for neighbors in structure.get_all_neighbors(converter.cutoff):
                sorted(neighbors, key=lambda neighbor: neighbor.nn_distance)

    def graphs() -> None:
        converter.convert_many(structures)

    adaptive()
    fast, whole, slow = interleaved([adaptive, graphs, complete], rounds=rounds)
    milliseconds = 1000 / len(structures)
    part = f"neighbours of {len(structures)} crystals"
    return [
        Measure(
            part=part,
            measure="adaptive search and sorting",
            value=statistics.median(fast) * milliseconds,
            unit="ms/crystal",
            goal="<= 0.08",
        ),
        Measure(
            part=part,
            measure="Structure to complete graph (CrystalGraphConverter)",
            value=statistics.median(whole) * milliseconds,
            unit="ms/crystal",
        ),
        Measure(
            part=part,
            measure="get_all_neighbors(8) and sorting",
            value=statistics.median(slow) * milliseconds,
            unit="ms/crystal",
        ),
        Measure(
            part=part,
            measure="complete to adaptive search",
            value=statistics.median(b / a for a, b in zip(fast, slow, strict=True)),
            unit="times",
            goal=">= 150",
        ),
    ]


def measure_files(
    structures: Sequence[Structure], featurizer: CrysAEFeaturizer, *, rounds: int = 3
) -> list[Measure]:
    """From a zip of CIF files to columns, with pymatgen's reader of the same texts in turn."""
    texts = [structure.to(fmt="cif") for structure in structures]
    some = texts[:: max(1, len(texts) // 100)]
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "crystals.zip")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for number, text in enumerate(texts):
                packed.writestr(f"{number}.cif", text)

        def columns() -> None:
            for block in parse_blocks(open_structures(archive)):
                featurizer.transform(block.structures)

        ours, theirs = interleaved(
            [columns, lambda: [Structure.from_str(text, fmt="cif") for text in some]],
            rounds=rounds,
        )
    rates = (len(texts) / statistics.median(ours), len(some) / statistics.median(theirs))
    names = ("to columns", "pymatgen's reading of the files alone")
    part = f"a zip of {len(texts)} CIF files, one thread"
    return [
        Measure(part=part, measure=name, value=rate, unit="files/s", goal=goal)
        for name, rate, goal in zip(names, rates, (">= 1000", ""), strict=True)
    ]


def measure_epoch(
    structures: Sequence[Structure], config: PretrainConfig | None = None, *, rounds: int = 3
) -> list[Measure]:
    """An epoch of pretraining, through Lightning and through a bare loop, in turn."""
    import lightning

    from crysxpp_mm.models.crysae import CrysAE
    from crysxpp_mm.training.config import PretrainConfig
    from crysxpp_mm.training.pretrain import CrystalData, PretrainModule

    graphs = CrystalGraphConverter().convert_many(structures)
    settings = config or PretrainConfig()
    indices = np.arange(len(graphs))
    data = CrystalData(graphs, settings, train=indices, validation=indices[:0])
    steps = len(data.epoch(0, shuffle=True)) * (2 * rounds + 2)

    def module() -> PretrainModule:
        model = CrysAE.random(**settings.model_settings)
        return PretrainModule(model, settings, steps=steps).train()

    watch = _stopwatch(_bare_epochs(module(), data, settings.gradient_clip))
    lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=rounds + 1,
        gradient_clip_val=settings.gradient_clip,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
    ).fit(module(), datamodule=data)
    ratio = statistics.median(a / b for a, b in zip(watch.lightning, watch.bare, strict=True))
    scale = 20_000 / len(structures)
    part = f"CrysAE epoch, measured on {len(structures)} crystals"
    return [
        Measure(
            part=part,
            measure="per 20,000 crystals",
            value=statistics.median(watch.lightning) * scale,
            unit="s",
            goal="<= 35",
        ),
        Measure(
            part=part,
            measure="per 20,000 crystals, bare loop without Lightning",
            value=statistics.median(watch.bare) * scale,
            unit="s",
        ),
        Measure(
            part=part,
            measure="Lightning's share on top of the bare loop",
            value=100 * (ratio - 1),
            unit="%",
            goal="<= 10",
        ),
    ]


def _bare_epochs(
    module: PretrainModule, data: CrystalData, gradient_clip: float
) -> Callable[[int], None]:
    """A loop over the batches of an epoch, by its number, without Lightning."""
    parameters = list(module.model.parameters())
    configured = module.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured

    def loop(epoch: int) -> None:
        module.model.train()
        batches = data.epoch(epoch, shuffle=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are trying to `self.log")  # in vain
            for index in range(len(batches)):
                loss = module.training_step(batches[index], index)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, gradient_clip)
                optimizer.step()

    return loop


def _stopwatch(loop: Callable[[int], None]) -> Any:
    """A callback that times the epochs of a Trainer, and ``loop`` between them."""
    import lightning

    class Stopwatch(lightning.Callback):
        def __init__(self) -> None:
            self.start = 0.0
            self.lightning: list[float] = []
            self.bare: list[float] = []

        def on_train_epoch_start(
            self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
        ) -> None:
            if trainer.current_epoch:
                self.bare.append(seconds_of(lambda: loop(trainer.current_epoch)))
            self.start = time.perf_counter()

        def on_train_epoch_end(
            self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
        ) -> None:
            if trainer.current_epoch:  # the first epoch warms up
                self.lightning.append(time.perf_counter() - self.start)

    return Stopwatch()


def measure_rows(
    structures: Sequence[Structure],
    featurizer: CrysAEFeaturizer,
    counts: Sequence[int] = (500, 2_000, 8_000, FULL_ROWS),
) -> list[Measure]:
    """Time per row from few rows to many; the given structures repeat."""
    part = f"rows, {min(counts)} to {max(counts)}"
    rates = []
    for count in counts:
        rows = list(islice(cycle(structures), count))
        rates.append(seconds_of(lambda rows=rows: featurizer.transform(rows)) / count * 1e3)  # type: ignore[misc]
    measures = [
        Measure(part=part, measure=f"{count} rows", value=rate, unit="ms/row")
        for count, rate in zip(counts, rates, strict=True)
    ]
    return [
        *measures,
        Measure(
            part=part,
            measure="time of a row, most rows to 2,000",
            value=rates[-1] / rates[min(1, len(rates) - 1)],
            unit="times",
            goal="<= 1.25",
        ),
    ]


def measure_atoms(
    featurizer: CrysAEFeaturizer,
    sizes: Sequence[int] = (16, 64, 250, 686, LARGEST_CELL),
    *,
    rounds: int = 5,
) -> list[Measure]:
    """Time per atom from small cells to large ones: distorted silicon, about equal atoms a call."""
    cells = [silicon_cell(size) for size in sizes]
    total = max(len(cell) for cell in cells)
    batches = [[cell] * max(1, round(total / len(cell))) for cell in cells]
    featurizer.transform(batches[0])
    times = interleaved(
        [lambda batch=batch: featurizer.transform(batch) for batch in batches],  # type: ignore[misc]
        rounds=rounds,
    )
    rates = [
        statistics.median(seconds) / (len(batch) * len(batch[0])) * 1e6
        for seconds, batch in zip(times, batches, strict=True)
    ]
    part = f"atoms a cell, {len(cells[0])} to {len(cells[-1])}"
    measures = [
        Measure(part=part, measure=f"{len(cell)} atoms", value=rate, unit="us/atom")
        for cell, rate in zip(cells, rates, strict=True)
    ]
    return [
        *measures,
        Measure(
            part=part,
            measure="time of an atom, largest cell to smallest",
            value=rates[-1] / rates[0],
            unit="times",
            goal="<= 1.5",
        ),
    ]


def silicon_cell(n_atoms: int) -> Structure:
    """Silicon of about ``n_atoms`` atoms, shaken so that few distances are equal."""
    repeats = max(1, round((n_atoms / 8) ** (1 / 3)))
    counts = [repeats, repeats, max(1, round(n_atoms / (8 * repeats**2)))]
    cell = Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.43), ["Si"], [[0, 0, 0]])
    cell.make_supercell(counts)
    rng = np.random.default_rng(0)
    shifts = rng.normal(0.0, 0.05, (len(cell), 3))
    return Structure(
        cell.lattice, cell.species, cell.cart_coords + shifts, coords_are_cartesian=True
    )


def measure_memory(
    structures: Sequence[Structure], model: str, n_rows: int = FULL_ROWS
) -> list[Measure]:
    """Growth of the memory of a fresh process, beyond the rows that it returns."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        growth, result = pool.apply(_memory_of_rows, (list(structures), model, n_rows))
    part = f"memory, {n_rows} rows in a fresh process"
    return [
        Measure(part=part, measure="the returned array", value=result, unit="MB"),
        Measure(
            part=part,
            measure="growth of the peak beyond that array",
            value=growth - result,
            unit="MB",
            goal="<= 100",
        ),
    ]


def _memory_of_rows(structures: list[Structure], model: str, n_rows: int) -> tuple[float, float]:
    """Growth of the peak between few rows and many, and the size of the result, in MB."""
    from crysxpp_mm.featurizers import CrysAEFeaturizer

    torch.set_num_threads(1)
    featurizer = CrysAEFeaturizer(model=model)
    rows = list(islice(cycle(structures), n_rows))
    featurizer.transform(rows[: max(1, len(rows) // 20)])
    before = _restart_peak()
    result = featurizer.transform(rows)
    return _peak_megabytes() - before, result.nbytes / 1e6


def _restart_peak() -> float:
    """Forget the peak so far, where the system can; the peak from here on, in MB."""
    switch = Path("/proc/self/clear_refs")
    if switch.exists():
        switch.write_text("5")
    return _peak_megabytes()


def _peak_megabytes() -> float:
    """The most memory that this process held, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts what the parent held before this process began
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def run_speed(
    place: Place = HERE,
    *,
    model: str = "crysae-mp-v1",
    scale: float = 1.0,
) -> pd.DataFrame:
    """Run the whole benchmark and write ``speed.csv`` and ``speed.md``; about five minutes.

    Args:
        place: Where data are and results go.
        model: Name or path of the weights.
        scale: Share of the rows and crystals to use, for a quick try; 1 for results that count.

    Returns:
        One row a measure, with its goal and whether it is reached.

    Raises:
        DataError: The data are missing.
        UnknownModelError: There is no such model.
    """
    from crysxpp_mm.featurizers import CrysAEFeaturizer

    structures = load_tables(place.root, names=["mp2000"])["mp2000"].structures
    structures = structures[: max(20, int(len(structures) * scale))]
    featurizer = CrysAEFeaturizer(model=model, device="cpu")
    measures: list[Measure] = []
    parts: list[Callable[[], list[Measure]]] = [
        lambda: measure_columns(structures, featurizer),
        lambda: measure_files(structures, featurizer),
        lambda: measure_neighbors(
            structures[:: max(1, len(structures) // max(10, int(200 * scale)))]
        ),
        lambda: measure_epoch(structures),
        lambda: measure_rows(
            structures,
            featurizer,
            [max(1, int(n * scale)) for n in (500, 2_000, 8_000, FULL_ROWS)],
        ),
        lambda: measure_atoms(featurizer),
        lambda: measure_memory(structures, model, max(20, int(FULL_ROWS * scale))),
    ]
    with one_torch_thread():
        for part in parts:
            new = part()
            measures += new
            for measure in new:
                goal = f"   (asked: {measure.goal})" if measure.goal else ""
                place.say(
                    f"{measure.part}: {measure.measure}: {measure.value:.4g} {measure.unit}{goal}"
                )
    table = pd.DataFrame([{**asdict(m), "reached": m.reached} for m in measures])
    shown = table.assign(
        value=[f"{value:.4g}" for value in table["value"]],
        reached=["" if r is None else ("yes" if r else "no") for r in table["reached"]],
    )
    text = page(
        "Speed",
        f"{len(structures)} crystals of `mp_properties.csv` (see `benchmarks/data.py`) in memory, "
        "one thread; medians of interleaved rounds. Ratios within one run are what counts: "
        "absolute rates are those of the machine.",
        markdown_table(shown),
        f"Model {model_name(model)}; {_processor()}.",
    )
    place.write("speed", text, speed=table)
    return table


def _processor() -> str:
    """The processor's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {multiprocessing.cpu_count()} cores"
    return f"{platform.machine()}, {multiprocessing.cpu_count()} cores"
