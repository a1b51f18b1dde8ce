"""The stream of batches: structures become graphs, graphs become rows, errors keep their place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import tee
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from crysxpp_mm.compute import one_torch_thread
from crysxpp_mm.errors import NetworkOutputError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.batch import atom_batches
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.graph.crystal import Crystal, count_sites, read_crystal
from crysxpp_mm.parallel import attempt_each, run_blocks

logger = logging.getLogger(__name__)

Built = tuple[CrystalGraphs, dict[int, Exception]]
"""Graphs of the structures that have one, and the errors of the others by position."""

Network = Callable[[Sequence[CrystalGraphs]], Sequence[NDArray[Any]]]
"""Function of the graphs of a batch, by each rule; it gives one array for each crystal."""


class Batch(NamedTuple):
    """Rows of consecutive structures; each has either a value or an error."""

    start: int  # position of the first
    size: int
    values: dict[int, NDArray[Any]]  # by position
    errors: dict[int, Exception]  # by position


def stream_rows(
    structures: Sequence[object],
    network: Network,
    *,
    rules: Sequence[CrystalGraphConverter],
    batch_atoms: int,
    num_workers: int,
    refused: Mapping[int, Exception],
) -> Generator[Batch, None, None]:
    """Convert structures and compute their rows, batch after batch.

    Args:
        structures: Structures or their dictionaries; anything else is an error of its row.
        network: Computes the rows of a batch, with one torch thread and without gradients.
        rules: Graph rules by which the network reads a crystal.
        batch_atoms: Largest number of sites in a batch.
        num_workers: Processes that build graphs; 0 builds them here.
        refused: Errors of structures that are not to be looked at, by position.

    Returns:
        The batches, in the order of the structures.
    """
    blocks = [block.tolist() for block in atom_batches(_site_counts(structures), batch_atoms)]
    wanted = [[place for place in block if place not in refused] for block in blocks]
    with ExitStack() as stack:
        built = [
            stack.enter_context(closing(_built(rule, structures, wanted, num_workers)))
            for rule in rules
        ]
        for block, positions, *by_rule in zip(blocks, wanted, *built, strict=True):
            values, errors = _rows(by_rule, len(positions), network)
            yield Batch(
                start=block[0],
                size=len(block),
                values={positions[index]: value for index, value in values.items()},
                errors={place: refused[place] for place in block if place in refused}
                | {positions[index]: error for index, error in errors.items()},
            )


def have_graphs(
    structures: Sequence[object], rules: Sequence[CrystalGraphConverter], batch_atoms: int
) -> list[bool]:
    """Tell of each structure if it has a crystal graph by every rule, by building them."""
    blocks = [block.tolist() for block in atom_batches(_site_counts(structures), batch_atoms)]
    failed = {
        positions[index]
        for rule in rules
        for positions, (_, errors) in zip(blocks, _built(rule, structures, blocks, 0), strict=True)
        for index in errors
    }
    return [position not in failed for position in range(len(structures))]


def _site_counts(structures: Sequence[object]) -> NDArray[np.int64]:
    """Number of sites of each input, 1 for anything but a structure, shape ``(n_structures,)``."""
    return np.array([count_sites(structure) for structure in structures], dtype=np.int64)


# Graphs.


def _built(
    rule: CrystalGraphConverter,
    structures: Sequence[object],
    wanted: Sequence[Sequence[int]],
    num_workers: int,
) -> Generator[Built, None, None]:
    """Build the graphs of each batch of positions.

    Workers get arrays: to pickle structures takes as long as to convert them. They need not
    import torch, which takes seconds.
    """
    parts = ([structures[position] for position in positions] for positions in wanted)
    read, sent = tee(attempt_each(read_crystal, part) for part in parts)
    graphs = run_blocks(
        rule.build,
        (list(crystals.values()) for crystals, _ in sent),
        num_workers=num_workers if len(wanted) > 1 else 0,
        repair=lambda crystals, error: _build_one_by_one(rule, crystals, error),
    )
    with closing(graphs):
        for (crystals, unread), (block, failed) in zip(read, graphs, strict=True):
            positions = list(crystals)
            yield block, unread | {positions[index]: error for index, error in failed.items()}


def _build_one_by_one(
    rule: CrystalGraphConverter, crystals: list[Crystal], error: Exception
) -> Built:
    """Build graphs here, where a worker failed; an error comes up again if it is a row's."""
    logger.warning(
        "%d graphs could not be built together (%s: %s); they are built one by one.",
        len(crystals),
        type(error).__name__,
        error,
    )
    parts, errors = attempt_each(lambda crystal: rule.build([crystal]), crystals)
    errors |= {position: failed[0] for position, (_, failed) in parts.items() if failed}
    return CrystalGraphs.concatenate(
        [CrystalGraphs.empty(), *(graphs for graphs, _ in parts.values())]
    ), errors


# Rows.


def _rows(
    built: Sequence[Built], n_structures: int, network: Network
) -> tuple[dict[int, NDArray[Any]], dict[int, Exception]]:
    """Compute the rows of the structures that have a graph by every rule."""
    errors = {index: error for _, failed in reversed(built) for index, error in failed.items()}
    common = [index for index in range(n_structures) if index not in errors]
    parts = [_select(graphs, failed, common) for graphs, failed in built]
    values, failures = _evaluate(parts, network)
    return (
        {common[index]: value for index, value in values.items()},
        errors | {common[index]: error for index, error in failures.items()},
    )


def _select(
    graphs: CrystalGraphs, failed: Mapping[int, Exception], common: Sequence[int]
) -> CrystalGraphs:
    """The graphs of the structures ``common``; some further ones may have a graph by this rule."""
    if len(common) == len(graphs):
        return graphs
    kept = [index for index in range(len(graphs) + len(failed)) if index not in failed]
    places = {index: place for place, index in enumerate(kept)}
    return graphs.select([places[index] for index in common])


def _evaluate(
    graphs: Sequence[CrystalGraphs], network: Network
) -> tuple[dict[int, NDArray[Any]], dict[int, Exception]]:
    """Run the network on one batch; if it fails, on one crystal after the other."""
    n_graphs = len(graphs[0])
    if not n_graphs:
        return {}, {}
    outputs, errors = attempt_each(lambda parts: _run(network, parts), [graphs])
    if not errors:
        return attempt_each(_require_finite, outputs[0])
    if n_graphs == 1:
        return {}, errors
    logger.warning(
        "the network failed on a batch of %d structures (%s: %s); they are computed one by one.",
        n_graphs,
        type(errors[0]).__name__,
        errors[0],
    )
    alone = [[part.select([index]) for part in graphs] for index in range(n_graphs)]
    return attempt_each(lambda parts: _require_finite(_run(network, parts)[0]), alone)


def _require_finite(row: NDArray[Any]) -> NDArray[Any]:
    """The row itself.

    Raises:
        NetworkOutputError: a number in it is not finite.
    """
    if not np.isfinite(row).all():
        raise NetworkOutputError(
            "the network gave numbers that are not finite; check the weights of the model."
        )
    return row


def _run(network: Network, graphs: Sequence[CrystalGraphs]) -> Sequence[NDArray[Any]]:
    with one_torch_thread(), torch.inference_mode():
        return network(graphs)
