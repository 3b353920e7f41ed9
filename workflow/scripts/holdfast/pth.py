"""VirNucPro's published classifier: a whole module as ``torch.save`` pickled it, taken apart and never run.

:mod:`.pickled` reads the pickle; of the names in it, those of :data:`NAMES` stand for their state and do nothing.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import pickled
from .classifier import BATCH_NORM_EPSILON, Classifier, make
from .errors import WeightsError
from .pickled import Instance, Machine, Name, UnknownContentError, UnknownNameError

LARGEST_BYTES = 2**25  # VirNucPro's own files have 7 million bytes, one for the widest ESM-2 would have 13 million
MODULES = frozenset(
    {
        "__main__.MLPClassifier",
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.batchnorm.BatchNorm1d",
        "torch.nn.modules.dropout.Dropout",
        "torch.nn.modules.activation.ReLU",
    }
)
NAMES = {
    **pickled.TENSORS,
    **{name: pickled.STORAGES[name] for name in ("torch.FloatStorage", "torch.LongStorage")},
    **{name: Name(Instance) for name in MODULES},
}

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def load(path: str | Path) -> Classifier:
    """Load VirNucPro's classifier; nothing in the file is executed.

    Raises:
        WeightsError: no such file, or one that does not hold this network.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; name VirNucPro's classifier, such as 500_model.pth")
    digest, state = read(path)
    return make(path, {}, f"{path.name}, sha256 {digest}", state)


def read(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Read the module, saved by torch since 1.6 (a zip) or before; nothing in the file is executed.

    Returns:
        The digest of the file, sha256 in hex, and the arrays by name.

    Raises:
        WeightsError: not such a file, damaged, or asking for anything else than this module.
    """
    if path.stat().st_size > LARGEST_BYTES:
        raise WeightsError(f"{path}: larger than {LARGEST_BYTES} bytes, so not a classifier of VirNucPro")
    content = path.read_bytes()
    file = io.BytesIO(content)
    try:
        module = pickled.read(path, NAMES) if content.startswith(_ZIP_MAGIC) else _read_legacy(file)
        layers = module.state["_modules"]
        state = {
            f"{name}.{key}": tensor.numpy().copy()
            for name, layer in layers.items()
            for key, tensor in (layer.state["_parameters"] | layer.state["_buffers"]).items()
        }
        epsilon = layers["bn1"].state["eps"]
    except UnknownNameError as name:
        raise WeightsError(
            f"{path}: refused, it asks for {name}, which no VirNucPro classifier holds; do not trust it"
        ) from None
    except (UnknownContentError, TypeError, LookupError, AttributeError) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise WeightsError(f"{path}: not a classifier of VirNucPro ({problem}); download it again") from None
    if not isinstance(epsilon, float) or epsilon != BATCH_NORM_EPSILON:
        found = epsilon if isinstance(epsilon, float) else "that is no number"
        raise WeightsError(f"{path}: its BatchNorm1d has eps {found}, VirNucPro's has {BATCH_NORM_EPSILON}")
    return hashlib.sha256(content).hexdigest(), state


def _read_legacy(file: io.BytesIO) -> Any:
    """A file saved before torch 1.6: four pickles, and behind them the storages that the third has asked for."""
    storages: dict[str, bytearray] = {}
    left_bytes = file.getbuffer().nbytes

    def make(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal left_bytes
        if key not in storages:
            count_bytes = count * dtype.itemsize
            if not 0 < count_bytes <= left_bytes:
                raise UnknownContentError("unknown reference, to more numbers than the file holds")
            left_bytes -= count_bytes
            storages[key] = bytearray(count_bytes)
        return torch.frombuffer(storages[key], dtype=dtype)

    file.seek(0)
    magic, _protocol, _system = (Machine(NAMES, make).run(file) for _ in range(3))
    if magic != _LEGACY_MAGIC:
        raise UnknownContentError("a pickle, but not of torch")
    module = Machine(NAMES, make).run(file)
    for key in Machine(NAMES, make).run(file):
        storage = storages[key]
        file.seek(8, io.SEEK_CUR)  # the count of numbers, which the pickle has said already
        if file.readinto(storage) != len(storage):
            raise UnknownContentError("truncated")
    return module
