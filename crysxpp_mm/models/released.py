"""The checkpoint that the authors of CrysXPP released, read without running anything from it."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from crysxpp_mm.errors import ModelFileError

RELEASED_CLASSES = ("CrystalAE", "ConvLayer")
"""Classes of the pickled module; stand-ins without behaviour take their place."""


MAX_BYTES = 200_000_000
"""Largest checkpoint that is read, unpacked."""
_NAME = re.compile(
    r"convs\.\d{1,2}\.(?:fc_full\.(?:weight|bias)|"
    r"bn[12]\.(?:weight|bias|running_mean|running_var|num_batches_tracked))"
)

_Allowed: TypeAlias = Callable[..., Any] | tuple[Callable[..., Any], str]


class _StandIn(nn.Module):
    """Takes the place of a class of the authors; only its tensors are looked at."""


def read_released_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors of the released autoencoder by name.

    Args:
        path: ``model_pretrain.pth``, a pickled module or its state dictionary, or an npz of its
            tensors. Pickles are read with ``weights_only=True``: anything in them but tensors,
            containers, layers of torch and the two classes of the authors is refused.

    Raises:
        ModelFileError: the file is absent, damaged, no such checkpoint, or holds more than that.
    """
    source = Path(path)
    if not source.is_file():
        raise ModelFileError(f"{source}: there is no such file.")
    _refuse_bomb(source)
    tensors = _read_npz(source) if source.suffix == ".npz" else _read_checkpoint(source)
    if "embedding.weight" not in tensors or "convs.0.fc_full.weight" not in tensors:
        raise ModelFileError(
            f"{source} is no released CrysXPP autoencoder: it lacks embedding.weight or "
            "convs.0.fc_full.weight."
        )
    return {
        name: _checked(source, name, value)
        for name, value in tensors.items()
        if name == "embedding.weight" or name.startswith("convs.")
    }


def _refuse_bomb(source: Path) -> None:
    """Refuse a file of more tensors than any such encoder has, before it is unpacked.

    Raises:
        ModelFileError: it is one.
    """
    size = source.stat().st_size
    if zipfile.is_zipfile(source):
        try:
            with zipfile.ZipFile(source) as archive:
                size = max(size, sum(item.file_size for item in archive.infolist()))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ModelFileError(f"{source} is damaged: {error}") from error
    if size > MAX_BYTES:
        raise ModelFileError(f"{source} is refused: it has more than {MAX_BYTES:,} bytes.")


def _checked(source: Path, name: str, value: Tensor) -> Tensor:
    """A tensor of the encoder, contiguous.

    Raises:
        ModelFileError: it is not one of the encoder's, or holds what makes no sense.
    """
    if name != "embedding.weight" and not _NAME.fullmatch(name):
        raise ModelFileError(f"{source}: the tensor {name!r} is unknown.")
    counter = name.endswith("num_batches_tracked")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise ModelFileError(f"{source}: the tensor {name} is of an unknown kind.")
    if value.ndim != _dimensions(name) or not 0 < value.numel() <= MAX_BYTES // 4:
        raise ModelFileError(f"{source}: the tensor {name} has the shape {tuple(value.shape)}.")
    if not counter:
        _check_numbers(source, name, value)
    return value.contiguous()


def _dimensions(name: str) -> int:
    """Number of dimensions of a tensor of the encoder."""
    if name.endswith("num_batches_tracked"):
        return 0
    return 2 if name.endswith(("fc_full.weight", "embedding.weight")) else 1


def _check_numbers(source: Path, name: str, value: Tensor) -> None:
    """Check weights.

    Raises:
        ModelFileError: they are no finite numbers, or negative variances.
    """
    if not value.is_floating_point() or not torch.isfinite(value).all():
        raise ModelFileError(f"{source}: the tensor {name} holds what are no finite numbers.")
    if name.endswith("running_var") and (value < 0).any():
        raise ModelFileError(f"{source}: the tensor {name} holds negative variances.")


def _read_npz(source: Path) -> dict[str, Tensor]:
    try:
        with np.load(source, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (
        ValueError,
        TypeError,  # of arrays of text
        OSError,
        EOFError,
        MemoryError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise ModelFileError(f"{source} is no npz of plain arrays: {error}") from error


def _read_checkpoint(source: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_allowed(source)):
            content = torch.load(source, map_location="cpu", weights_only=True)
    except ModelFileError:
        raise
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise ModelFileError(f"{source} cannot be read as a checkpoint: {error}") from error
    if isinstance(content, nn.Module):
        try:
            content = content.state_dict()
        except (AttributeError, TypeError, KeyError, RuntimeError) as error:  # without end, too
            raise ModelFileError(f"{source} holds a module that makes no sense: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ModelFileError(f"{source} holds a {type(content).__name__}, no model.")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _allowed(source: Path) -> list[_Allowed]:
    """Classes to unpickle: layers of torch, and stand-ins for the authors' classes."""
    allowed: list[_Allowed] = [OrderedDict, set]
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(source):
        module, _, attribute = name.rpartition(".")
        if attribute in RELEASED_CLASSES:
            allowed.append((_StandIn, name))
        elif module.startswith("torch.nn.modules.") and isinstance(
            layer := getattr(nn, attribute, None), type
        ):
            allowed.append((layer, name))
        elif name not in ("collections.OrderedDict", "builtins.set"):
            raise ModelFileError(f"{source} asks for {name}, which is refused.")
    return allowed
