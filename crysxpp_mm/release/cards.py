"""Parts of every released folder: names of files, golden crystals, the card in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pymatgen.core import Lattice, Structure
from torch import nn

from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.training.checkpoints import CURVES, PICTURE

CARD = "README.md"
GOLDEN = "golden.json"
SETTINGS = "settings.json"


def golden_crystals() -> dict[str, Structure]:
    """Three crystals whose outputs are kept beside the weights: rock salt, SrTiO3, copper."""
    fcc = Lattice([[0, 1.805, 1.805], [1.805, 0, 1.805], [1.805, 1.805, 0]])
    return {
        "NaCl, rock salt": Structure.from_spacegroup(
            "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
        ),
        "SrTiO3, cubic perovskite": Structure(
            Lattice.cubic(3.905),
            ["Sr", "Ti", "O", "O", "O"],
            [[0.0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        ),
        "Cu, fcc": Structure(fcc, ["Cu"], [[0, 0, 0]]),
    }


def seven_digits(value: float) -> float:
    """Round a number as golden outputs keep it."""
    return float(f"{value:.7g}")


def render_card(template: str, **facts: Any) -> str:
    """Fill a template of a card.

    Args:
        template: Name of the file in ``templates/``, without ``.md.j2``.
        **facts: Values for the template; a missing one is an error.
    """
    environment = Environment(
        loader=PackageLoader("crysxpp_mm.release"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"items": _items, "graph_rule": _graph_rule}
    names = {"CURVES": CURVES, "PICTURE": PICTURE, "SETTINGS": SETTINGS}
    return environment.get_template(f"{template}.md.j2").render(**names, **facts)


def n_parameters(network: nn.Module) -> int:
    """Count the numbers that a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def _graph_rule(converter: CrystalGraphConverter) -> str:
    """Settings of a graph rule in a line."""
    return _items({k: v for k, v in converter.as_dict().items() if not k.startswith("@")})


def _items(settings: Mapping[str, Any]) -> str:
    """Names and values in a line."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())
