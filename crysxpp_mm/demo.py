"""The main job on real crystals that pymatgen ships: ``crysxpp demo``.

No network and no data beside the installed packages.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crysxpp_mm.errors import DataError
from crysxpp_mm.shipped import DEFAULT_MODEL

if TYPE_CHECKING:
    from pymatgen.core import Composition

STRUCTURE = "structure"

CLASSES = (
    "elements",
    "intermetallics",
    "borides, carbides, silicides",
    "nitrides, pnictides",
    "oxides",
    "chalcogenides",
    "halides",
    "other",
)
"""Kinds of chemistry, by the most electronegative non-metal."""

_CLASS_OF_ANION = {
    **dict.fromkeys(("B", "C", "Si", "Ge"), "borides, carbides, silicides"),
    **dict.fromkeys(("N", "P", "As", "Sb"), "nitrides, pnictides"),
    **dict.fromkeys(("S", "Se", "Te"), "chalcogenides"),
    **dict.fromkeys(("F", "Cl", "Br", "I"), "halides"),
    "O": "oxides",
}

_ASK_ABOUT = ("Halite", "Perovskite", "Diamond", "Heusler", "Quartz")
"""Crystals whose nearest neighbours the demo prints, by a word in their names."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Files and numbers of a run of the demo.

    Attributes:
        folder: Where the files are.
        features: ``features.csv``: one row per crystal, its columns after its name.
        picture: ``map.png``.
        source: ``crystals.json.gz``: the crystals, as a table that ``crysxpp featurize`` takes.
        n_crystals: Number of crystals.
        n_columns: Number of learned columns.
        seconds: Time that the featurizing took.
    """

    folder: Path
    features: Path
    picture: Path
    source: Path
    n_crystals: int
    n_columns: int
    seconds: float


def prototype_crystals() -> pd.DataFrame:
    """The AFLOW prototype crystals of pymatgen (Mehl et al. 2017), one row each.

    Returns:
        Columns ``name``, ``formula``, ``mineral``, ``prototype``, ``strukturbericht``,
        ``chemistry``, ``n_sites`` and ``structure``.

    Example:
        >>> len(prototype_crystals())
        288
    """
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    rows = []
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure, tags = entry["snl"].structure, entry["tags"]
        formula = structure.composition.reduced_formula
        mineral = re.sub(r"[()]", "", tags["mineral"]).strip()
        known = tags["strukturbericht"] not in ("", "None")
        rows.append(
            {
                "name": f"{formula} ({mineral})" if mineral else formula,
                "formula": formula,
                "mineral": mineral,
                "prototype": tags["aflow"],
                "strukturbericht": tags["strukturbericht"] if known else "",
                "chemistry": chemistry_class(structure.composition),
                "n_sites": len(structure),
                STRUCTURE: structure,
            }
        )
    return pd.DataFrame(rows)


def chemistry_class(composition: Composition) -> str:
    """One of :data:`CLASSES` for a composition, by its most electronegative non-metal.

    Example:
        >>> from pymatgen.core import Composition
        >>> chemistry_class(Composition("CaTiO3"))
        'oxides'
    """
    elements = composition.elements
    if len(elements) == 1:
        return "elements"
    nonmetals = [element for element in elements if not element.is_metal]
    if not nonmetals:
        return "intermetallics"
    anion = max(nonmetals, key=lambda element: element.X)
    return _CLASS_OF_ANION.get(anion.symbol, "other")


def run_demo(
    out: str | Path = "crysxpp-demo",
    *,
    model: str | None = None,
    say: Callable[[str], None] = print,
    pbar: bool = True,
    limit: int | None = None,
) -> DemoResult:
    """Featurize the prototype crystals, draw a map of them, and report the results.

    Args:
        out: The folder to write into; it is made if it does not exist.
        model: Name or path of the weights; the shipped default without it.
        say: Where the lines of text go.
        pbar: Show the progress bar.
        limit: Only so many crystals, for a quick try.

    Returns:
        The files and the numbers.

    Raises:
        DataError: ``out`` is a file.
        UnknownModelError: There is no such model.
    """
    from crysxpp_mm import CrysAEFeaturizer

    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; give a folder to write into.")
    featurizer = CrysAEFeaturizer(model=model) if model else CrysAEFeaturizer()
    columns = featurizer.feature_labels()  # finds out first whether there is such a model
    crystals = prototype_crystals().iloc[:limit]
    say(
        f"{len(crystals)} crystals: the AFLOW prototypes that pymatgen ships, "
        f"{crystals['n_sites'].min()} to {crystals['n_sites'].max()} atoms a cell."
    )
    start = time.perf_counter()
    table = featurizer.featurize_dataframe(crystals, STRUCTURE, pbar=pbar)
    seconds = time.perf_counter() - start
    say(f"{len(columns)} columns each ({columns[0]!r} ... {columns[-1]!r}) in {seconds:.1f} s.")
    result = DemoResult(
        folder=folder,
        features=folder / "features.csv",
        picture=folder / "map.png",
        source=folder / "crystals.json.gz",
        n_crystals=len(table),
        n_columns=len(columns),
        seconds=seconds,
    )
    matrix = table[columns].to_numpy()
    _write_files(table, matrix, result, model)
    if lines := _neighbors(table["name"], matrix):
        say("\n  ".join(["\nNearest by their columns:", *lines]))
    say(_last_words(result, model))
    return result


def _write_files(
    table: pd.DataFrame, matrix: NDArray[np.floating], result: DemoResult, model: str | None
) -> None:
    """Draw the map and write the three files."""
    from crysxpp_mm.plots import draw_map, map_to_plane

    points = map_to_plane(matrix)
    figure = draw_map(
        points,
        classes=list(table["chemistry"]),
        labels=_short_labels(table),
        title=f"{len(table)} crystals, placed by {result.n_columns} learned columns",
        subtitle=(
            "Each point is a crystal structure; close points are alike to the network, which was "
            f"told no property and no class ({_model_name(model)}, t-SNE)."
        ),
        class_order=CLASSES,
    )
    result.folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(result.picture)
    place = list(table.columns).index(STRUCTURE)
    crystals = table.iloc[:, : place + 1].assign(
        **{STRUCTURE: [structure.as_dict() for structure in table[STRUCTURE]]}
    )
    crystals.to_json(
        result.source,
        orient="split",
        double_precision=15,
        compression={"method": "gzip", "mtime": 0},
    )
    table.insert(place, "map x", points[:, 0])
    table.insert(place + 1, "map y", points[:, 1])
    table.drop(columns=STRUCTURE).to_csv(result.features, index=False, float_format="%.6g")


def _last_words(result: DemoResult, model: str | None) -> str:
    """Names of the files, and what to do next."""
    again = f"--model {quote(model)} " if model else ""
    return (
        f"\nWrote to {result.folder.resolve()}:\n"
        "  features.csv      one row a crystal: name, prototype, chemistry, then the columns\n"
        "  map.png           all of them as points in a plane, coloured by chemistry; open it\n"
        "  crystals.json.gz  the crystals themselves, a table with a column 'structure'\n"
        "\n"
        "Next, columns for a table; this one can be tried at once:\n"
        f"  crysxpp featurize {quote(str(result.source))} {again}--out columns.csv\n"
        "A folder or a zip of CIF files, a CSV table and matminer's data sets are taken as well "
        "(crysxpp featurize --help).\n"
        "In Python, with a DataFrame that has a column of pymatgen Structures:\n"
        "  from crysxpp_mm import CrysAEFeaturizer\n"
        f"  df = CrysAEFeaturizer({f'{model!r}' if model else ''})"
        '.featurize_dataframe(df, "structure")'
    )


def _model_name(model: str | None) -> str:
    """A short name for the picture, also of a model's file."""
    return Path(model or DEFAULT_MODEL).name.removesuffix(".gz").removesuffix(".json")


def _short_labels(table: pd.DataFrame) -> list[str]:
    """Labels for the crystals that a reader may know; the others stay points.

    A formula that occurs several times gets the mineral's name, if that is one short word.
    """
    subscripts = str.maketrans(
        "0123456789", "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"
    )
    repeated = table["formula"].duplicated(keep=False)
    labels = []
    for formula, mineral, known, twice in zip(
        table["formula"], table["mineral"], table["strukturbericht"], repeated, strict=True
    ):
        label = formula.translate(subscripts) if mineral or known else ""
        if twice and mineral.istitle() and mineral.isalpha() and len(mineral) <= 12:
            label = f"{label} {mineral.lower()}"
        labels.append(label)
    return labels


def _neighbors(names: pd.Series, matrix: NDArray[np.floating], n: int = 3) -> list[str]:
    """The nearest crystals of a few well-known ones, as lines of text."""
    deviation = matrix.std(axis=0)
    scaled = (matrix - matrix.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    lines = []
    for word in _ASK_ABOUT:
        for position in np.flatnonzero(names.str.contains(word, case=False))[:1]:
            distance = np.linalg.norm(scaled - scaled[position], axis=1)
            nearest = [i for i in np.argsort(distance, kind="stable") if i != position][:n]
            lines.append(f"{names.iloc[position]}: {', '.join(names.iloc[np.array(nearest)])}")
    return lines
