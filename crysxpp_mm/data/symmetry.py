"""The symmetry operations that a CIF lists, or names by a space group."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

import gemmi
import numpy as np
from numpy.typing import NDArray

from crysxpp_mm.errors import DataError

LISTS = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
HALL_NAMES = ("_space_group_name_Hall", "_symmetry_space_group_name_Hall")
NAMES = (
    "_space_group_name_H-M_alt",
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_ref",
    "_symmetry_space_group_name_H_M",
)
NUMBERS = ("_space_group_IT_number", "_symmetry_Int_Tables_number")
IDENTITIES = ("x,y,z", "X,Y,Z", "+x,+y,+z")
SAME_METRIC = 0.02
"""Share by which an operation may change the cell's lengths and angles: cells are rounded."""
SAME_SITE = 1e-4
"""Fractional coordinates that differ by less are those of one site, as pymatgen has it."""


class Operations(NamedTuple):
    """Rotations and translations in fractional coordinates."""

    rotations: NDArray[np.float64]  # (n, 3, 3)
    translations: NDArray[np.float64]  # (n, 3)

    def images(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        """The position under each operation, shape ``(n, 3)``."""
        moved: NDArray[np.float64] = self.rotations @ position + self.translations
        return moved


class Symmetry(NamedTuple):
    """Symmetry as a CIF states it.

    Attributes:
        choices: Operations; several where the file leaves open which of two origins it means.
        note: How they were found, where it is worth a note.
        doubt: Why they may be wrong.
    """

    choices: tuple[Operations, ...]
    note: str = ""
    doubt: str = ""


@lru_cache(maxsize=512)
def parse_operations(texts: tuple[str, ...]) -> Operations:
    """Operations such as ``x, -y, z+1/2``.

    Raises:
        DataError: one is no such text.
    """
    if bad := [text for text in texts if not re.fullmatch(r"[xyzXYZ\d\s,.+*/-]+", text)]:
        raise DataError(f"{bad[0]!r} is no symmetry operation.")
    try:
        return _arrays(gemmi.Op(text) for text in texts)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"the symmetry operations cannot be read: {error}") from error


def _arrays(operations: Iterable[gemmi.Op]) -> Operations:
    pairs = [(operation.rot, operation.tran) for operation in operations]
    return Operations(
        np.array([rotation for rotation, _ in pairs], dtype=np.float64) / gemmi.Op.DEN,
        np.array([translation for _, translation in pairs], dtype=np.float64) / gemmi.Op.DEN,
    )


def keeps_metric(operations: Operations, lattice: NDArray[np.float64]) -> bool:
    """Tell whether operations leave the cell's lengths and angles as they are, nearly.

    Args:
        operations: In fractional coordinates.
        lattice: Lattice vectors as rows, shape ``(3, 3)``.
    """
    metric = lattice @ lattice.T
    turned = np.swapaxes(operations.rotations, 1, 2) @ metric @ operations.rotations
    lengths = np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
    return bool((np.abs(turned - metric) <= 2 * SAME_METRIC * lengths).all())


def is_group(operations: Operations) -> bool:
    """Tell whether the product of any two operations is one of them, translations apart."""
    rotations, translations = operations
    found = _codes(rotations, translations)
    if len(found) > 192 or _codes(np.eye(3)[None], np.zeros((1, 3)))[0] not in found:
        return False
    products = rotations[:, None] @ rotations[None]
    moves = (rotations[:, None] @ translations[None, :, :, None])[..., 0] + translations[:, None]
    return bool(np.isin(_codes(products.reshape(-1, 3, 3), moves.reshape(-1, 3)), found).all())


def _codes(rotations: NDArray[np.float64], translations: NDArray[np.float64]) -> NDArray[np.int64]:
    """A number for each operation, equal for those that differ by a lattice vector."""
    turns = np.rint(rotations.reshape(-1, 9)).astype(np.int64) + 2  # 0 to 4
    steps = np.rint(translations * gemmi.Op.DEN).astype(np.int64) % gemmi.Op.DEN
    codes: NDArray[np.int64] = turns @ (5 ** np.arange(9)) * gemmi.Op.DEN**3 + steps @ (
        gemmi.Op.DEN ** np.arange(3)
    )
    return codes


@lru_cache(maxsize=512)
def _is_group_of(texts: tuple[str, ...]) -> bool:
    return is_group(parse_operations(texts))


def read_symmetry(values_of: Callable[[str], list[str]], lattice: NDArray[np.float64]) -> Symmetry:
    """The operations of a block of a CIF.

    A list of operations comes first, then a Hall name, a Hermann-Mauguin name and a number.

    Args:
        values_of: The values of a tag, without quotes; an empty list if there is none.
        lattice: Lattice vectors as rows, shape ``(3, 3)``, Angstrom.

    Raises:
        DataError: the operations that are listed cannot be read.
    """
    if listed := tuple(_known(values_of, LISTS)):
        return _of_list(listed, lattice)
    for hall in _known(values_of, HALL_NAMES):
        try:
            return _fitting((_arrays(gemmi.symops_from_hall(hall)),), lattice)
        except (RuntimeError, ValueError):
            continue
    return _of_group(_known(values_of, NAMES), _known(values_of, NUMBERS), lattice)


def _of_list(listed: tuple[str, ...], lattice: NDArray[np.float64]) -> Symmetry:
    """The operations of a list.

    Raises:
        DataError: they cannot be read.
    """
    if len(listed) == 1 and listed[0].replace(" ", "") in IDENTITIES:
        return Symmetry((parse_operations(("x,y,z",)),))
    doubt = ""
    if not _is_group_of(listed):
        doubt = f"the {len(listed)} symmetry operations of the file are no group"
    return _fitting((parse_operations(listed),), lattice, doubt=doubt)


def _of_group(names: list[str], numbers: list[str], lattice: NDArray[np.float64]) -> Symmetry:
    """The operations of a group that is named or numbered."""
    for name in names:
        if settings := _settings(name):
            return _fitting(settings, lattice, note="the operations are those of the named group")
    doubt = f"the space group {names[0]!r} is unknown" if names else ""
    for number in numbers:
        if settings := _numbered(number):
            note = "the operations are those of the numbered group in its standard setting"
            return _fitting(settings, lattice, note=note, doubt=doubt)
        doubt = doubt or f"the space group {number!r} is unknown"
    identity = parse_operations(("x,y,z",))
    note = "" if doubt else "the file names no symmetry: its sites are taken for all of the cell"
    return Symmetry((identity,), note, doubt)


def _known(values_of: Callable[[str], list[str]], tags: tuple[str, ...]) -> list[str]:
    for tag in tags:
        if values := [value for value in values_of(tag) if value.strip() not in ("", "?", ".")]:
            return values
    return []


def _fitting(
    choices: tuple[Operations, ...],
    lattice: NDArray[np.float64],
    *,
    note: str = "",
    doubt: str = "",
) -> Symmetry:
    """Those of the choices that fit the cell; all, and a doubt, if none does."""
    fitting = tuple(choice for choice in choices if keeps_metric(choice, lattice))
    if not fitting:
        return Symmetry(choices, note, doubt or "the symmetry does not fit the cell parameters")
    return Symmetry(fitting, note, doubt)


@lru_cache(maxsize=512)
def _settings(name: str) -> tuple[Operations, ...]:
    """The settings that a name may mean: one, or those with two origins or two kinds of axes."""
    plain = re.sub(r"[\s_]+", " ", name).strip()
    suffix = re.search(r"\s*:?\s*([12SZHRhr])$", plain)
    if suffix and (group := gemmi.find_spacegroup_by_name(plain[: suffix.start()].strip())):
        wanted = {"S": "1", "Z": "2"}.get(suffix[1].upper(), suffix[1].upper())
        if exact := [other for other in _alike(group) if other.ext == wanted]:
            return tuple(_arrays(other.operations()) for other in exact)
    for form in (plain, plain.replace(" ", "")):
        if group := gemmi.find_spacegroup_by_name(form):
            return tuple(_arrays(other.operations()) for other in _alike(group))
    return ()


@lru_cache(maxsize=512)
def _numbered(text: str) -> tuple[Operations, ...]:
    number = int(text) if text.isdecimal() else 0
    group = gemmi.find_spacegroup_by_number(number) if 1 <= number <= 230 else None
    return () if group is None else tuple(_arrays(other.operations()) for other in _alike(group))


def _alike(group: gemmi.SpaceGroup) -> list[gemmi.SpaceGroup]:
    """The group and those of the same name with another origin or other axes."""
    return [other for other in gemmi.spacegroup_table() if other.hm == group.hm]
