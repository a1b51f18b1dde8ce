"""Models as data: JSON documents that hold settings and weights, and unpickle nothing."""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import json
import math
import os
import platform
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import safetensors
import safetensors.torch
import torch
from monty.json import MSONable
from torch import Tensor, nn

from crysxpp_mm.errors import CrysXPPError, ModelFileError

FORMAT_VERSION = 1
"""Version of the model document; a later one is refused."""
MAX_BYTES = 100_000_000
"""Largest model document that is read, unpacked."""
MAX_VALUES = 4_000_000
"""Most values that a model document may have; each takes some 100 bytes of memory."""


def weights_to_dict(module: nn.Module) -> dict[str, Any]:
    """The parameters and buffers of ``module`` as a JSON-ready dictionary.

    Returns:
        ``format``, ``data`` (base64 of a safetensors document) and ``sha256`` of that document.
    """
    tensors = {
        name: value.detach().to("cpu").contiguous() for name, value in module.state_dict().items()
    }
    data = safetensors.torch.save(tensors)
    return {
        "format": "safetensors",
        "data": base64.b64encode(data).decode("ascii"),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def load_weights(module: nn.Module, document: Mapping[str, Any]) -> None:
    """Fill ``module`` from what ``weights_to_dict`` made, strictly.

    Raises:
        ModelFileError: the weights are damaged, of another format, or do not fit the module;
            a missing, unknown or misshapen tensor is named.
    """
    tensors = read_weights(document)
    check_weights(module, tensors)
    module.load_state_dict(dict(tensors))


def read_weights(document: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that ``weights_to_dict`` has written.

    Raises:
        ModelFileError: they are damaged or of another format.
    """
    if unknown := sorted(set(document) - {"format", "data", "sha256"}):
        raise ModelFileError(f"the weights have unknown keys: {', '.join(unknown)}.")
    if document.get("format") != "safetensors":
        raise ModelFileError(
            f"the weights are of format {document.get('format')!r}, expected 'safetensors'."
        )
    try:
        data = base64.b64decode(document["data"], validate=True)
    except (KeyError, TypeError, binascii.Error) as error:
        raise ModelFileError(f"the weights are absent or no base64 text ({error}).") from error
    if hashlib.sha256(data).hexdigest() != document.get("sha256"):
        raise ModelFileError("the weights do not match their sha256; the file is damaged.")
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ModelFileError(f"the weights are no safetensors document ({error}).") from error


def check_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of ``module``, which may be on the meta device.

    Raises:
        ModelFileError: one is missing, unknown, misshapen or no number; it is named.
    """
    expected = module.state_dict()
    if missing := sorted(set(expected) - set(tensors)):
        raise ModelFileError(f"the weights lack {', '.join(missing)}.")
    if extra := sorted(set(tensors) - set(expected)):
        raise ModelFileError(
            f"the weights have tensors that the model has not: {', '.join(extra)}."
        )
    for name, value in expected.items():
        if tensors[name].shape != value.shape or tensors[name].dtype != value.dtype:
            raise ModelFileError(
                f"the tensor {name} is {tensors[name].dtype} {tuple(tensors[name].shape)}, "
                f"the model needs {value.dtype} {tuple(value.shape)}."
            )
        if value.is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise ModelFileError(f"the tensor {name} holds NaN or infinite numbers.")
        if name.endswith("running_var") and (tensors[name] < 0).any():
            raise ModelFileError(f"the tensor {name} holds negative variances.")


@contextmanager
def reading_model() -> Iterator[None]:
    """Make a ModelFileError of whatever a senseless document leads to while it is read."""
    try:
        yield
    except ModelFileError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        CrysXPPError,
        LookupError,
        MemoryError,
        RuntimeError,  # also torch's, and of documents that are nested without end
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise ModelFileError(
            f"the model makes no sense ({type(error).__name__}: {reason}); if another version of "
            "crysxpp_mm wrote it, make it again."
        ) from error


def write_document(document: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a JSON document, compressed if the name ends in ``.gz``; the same bytes each time.

    The file appears under its name only when it is complete.
    """
    target = Path(path)
    data = json.dumps(_plain(document), indent=1, sort_keys=True, allow_nan=False).encode()
    if target.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    write_whole(target, data)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears under its name only when it is complete."""
    with complete_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Give the name of a file to write, which becomes ``path`` at the end.

    An error leaves nothing behind; a full disk names ``path``.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp(), "numbers.txt")
        >>> with complete_file(target) as temporary:
        ...     _ = temporary.write_text("1 2 3")
        >>> target.read_text()
        '1 2 3'
    """
    remove_leftovers(path)
    temporary = path.with_name(f"{scratch_prefix(path)}{os.urandom(4).hex()}")
    try:
        with naming(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system, such as a full disk, name the file that is written."""
    try:
        yield
    except OSError as error:
        if error.filename is None or scratch_prefix(path) in str(error.filename):
            error.filename = str(path)
        raise


def scratch_prefix(path: Path) -> str:
    """The beginning of names of temporary files beside a file; it tells whose they are."""
    return f".{path.name}.{_host()}-{os.getpid()}-"


def remove_leftovers(path: Path) -> None:
    """Remove what processes that are no more have left beside a file while they wrote it."""
    pattern = re.compile(rf"{re.escape(f'.{path.name}.{_host()}-')}(\d+)-\w+")
    with suppress(OSError):
        for left in path.parent.iterdir():
            match = pattern.fullmatch(left.name)
            if match is None or _is_alive(int(match[1])):
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _host() -> str:
    """A few letters for this machine: others may write into the same folder."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # it cannot be asked without harm
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _plain(value: Any) -> Any:
    """Numpy numbers and tuples as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON document, compressed or not.

    Raises:
        ModelFileError: the file is absent, damaged, or holds no JSON object.
    """
    source = Path(path)
    if not source.is_file():  # a FIFO would be waited for
        kind = "is no regular file" if source.exists() else "there is no such file"
        raise ModelFileError(f"{source}: {kind}.")
    try:
        with source.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content: gzip.GzipFile | BinaryIO = gzip.GzipFile(fileobj=file) if packed else file
            data = content.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ModelFileError(f"{source} is refused: it has more than {MAX_BYTES:,} bytes.")
        if sum(data.count(mark) for mark in b"[{,") > MAX_VALUES:
            raise ModelFileError(f"{source} is refused: it has more than {MAX_VALUES:,} values.")
        document = json.loads(data, parse_constant=_refuse_number, parse_float=_finite)
    except ModelFileError:
        raise
    except (OSError, EOFError, ValueError, RecursionError, MemoryError, zlib.error) as error:
        raise ModelFileError(
            f"{source} is no model file, or it is damaged ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(document, dict):
        raise ModelFileError(f"{source} holds no model, but a JSON {type(document).__name__}.")
    return document


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is no finite number")
    return value


def check_keys(
    document: Mapping[str, Any],
    *,
    required: set[str],
    optional: set[str],
    newest: int = FORMAT_VERSION,
) -> None:
    """Refuse a model document with missing or unknown keys, or of a later format.

    Raises:
        ModelFileError: as said; the key is named.
    """
    keys = {key for key in document if not key.startswith("@")}
    version = document.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > newest:
        raise ModelFileError(
            f"the model is of format version {version}, this package reads up to "
            f"{newest}; update crysxpp_mm."
        )
    if missing := sorted(required - keys):
        raise ModelFileError(f"the model lacks {', '.join(missing)}.")
    if unknown := sorted(keys - required - optional):
        raise ModelFileError(f"the model has unknown keys: {', '.join(unknown)}.")


def digest(*arrays: np.ndarray) -> str:
    """sha256 over dtype, shape and bytes of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


class SavedDocument(MSONable):
    """An object that is one JSON document, written and read by name."""

    def save(self, path: str | os.PathLike[str]) -> None:  # type: ignore[override]
        """Write the model to ``path``, usually ``<name>.json.gz``."""
        write_document(self.as_dict(), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a model that ``save`` wrote; nothing is unpickled.

        Raises:
            ModelFileError: as ``from_dict``; the message names the file.
        """
        document = read_document(path)
        if document.get("@class") != cls.__name__:
            raise ModelFileError(
                f"{path} holds a {document.get('@class')!r}, expected a {cls.__name__}."
            )
        try:
            model: Self = cls.from_dict(document)  # type: ignore[assignment] # monty types no Self
            return model
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from error
