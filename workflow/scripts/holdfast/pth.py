"""VirNucPro's published classifier: a whole module as ``torch.save`` pickled it, taken apart and never run.

The pickle does not reach Python's unpickler, which calls what a file tells it to and gives as much memory as a file
says it needs. :class:`_Machine` reads it opcode by opcode, knows only the opcodes and names that torch writes for such
a module, and leaves dictionaries, lists and tensors. Keys are text, so nothing else of the file's making is hashed, and
tensors take no more memory than the bytes that the file holds for them.
"""

import hashlib
import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import WeightsError

LARGEST_BYTES = 2**25  # VirNucPro's own files have 7 million bytes, one for the widest ESM-2 would have 13 million
LARGEST_PICKLE_BYTES = 2**20  # theirs have 14 thousand
MODULES = frozenset(
    {
        "__main__.MLPClassifier",
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.batchnorm.BatchNorm1d",
        "torch.nn.modules.dropout.Dropout",
        "torch.nn.modules.activation.ReLU",
    }
)
STORAGES = {"torch.FloatStorage": torch.float32, "torch.LongStorage": torch.int64}

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_BATCH_NORM_EPSILON = 1e-5
_MARK = object()


class _UnknownContentError(Exception):
    """A file that torch would not have written for this module."""


class _Module:
    """Stands in for a module in the pickle: holds its state, does nothing."""

    state: dict[str, Any]


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Read the module, saved by torch since 1.6 (a zip) or before; nothing in the file is executed.

    Returns:
        The digest of the file, sha256 in hex, and the tensors by name.

    Raises:
        WeightsError: not such a file, damaged, or asking for anything else than this module.
    """
    if path.stat().st_size > LARGEST_BYTES:
        raise WeightsError(f"{path}: larger than {LARGEST_BYTES} bytes, so not a classifier of VirNucPro")
    content = path.read_bytes()
    file = io.BytesIO(content)
    try:
        module = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
        layers = module.state["_modules"]
        state = {
            f"{name}.{key}": tensor
            for name, layer in layers.items()
            for key, tensor in (layer.state["_parameters"] | layer.state["_buffers"]).items()
        }
        epsilon = layers["bn1"].state["eps"]
    except WeightsError as refusal:
        raise WeightsError(f"{path}: {refusal}") from None
    except (
        _UnknownContentError,
        zipfile.BadZipFile,
        EOFError,
        OverflowError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
    ) as error:
        problem = " ".join(f"{type(error).__name__.removeprefix('_')}: {error}".split())[:300]
        raise WeightsError(f"{path}: not a classifier of VirNucPro ({problem}); download it again") from None
    if not isinstance(epsilon, float) or epsilon != _BATCH_NORM_EPSILON:
        found = epsilon if isinstance(epsilon, float) else "that is no number"
        raise WeightsError(f"{path}: its BatchNorm1d has eps {found}, VirNucPro's has {_BATCH_NORM_EPSILON}")
    return hashlib.sha256(content).hexdigest(), state


def _read_zip(file: io.BytesIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise _UnknownContentError("compressed, which torch never does")
        machine = _Machine(file.getbuffer().nbytes)
        module = machine.run(io.BytesIO(archive.read(members["data.pkl"])))
        for key, storage in machine.storages.items():
            memoryview(storage)[:] = archive.read(members[f"data/{key}"])
    return module


def _read_legacy(file: io.BytesIO) -> Any:
    file.seek(0)
    magic, _protocol, _system = (_Machine(0).run(file) for _ in range(3))
    if magic != _LEGACY_MAGIC:
        raise _UnknownContentError("a pickle, but not of torch")
    machine = _Machine(file.getbuffer().nbytes)
    module = machine.run(file)
    for key in _Machine(0).run(file):
        storage = machine.storages[_text(key)]
        file.seek(8, io.SEEK_CUR)  # the count of numbers, which the pickle has said already
        if file.readinto(storage) != len(storage):
            raise EOFError("truncated")
    return module


class _Machine:
    """Runs the pickles that torch writes for VirNucPro's module, and no others.

    Attributes:
        storages: By key; made empty and filled later, since their bytes lie behind or beside the pickle.
    """

    def __init__(self, limit_bytes: int) -> None:
        """Let the storages have ``limit_bytes`` together."""
        self.storages: dict[str, bytearray] = {}
        self._left_bytes = limit_bytes
        self._stack: list[Any] = []
        self._memo: dict[Any, Any] = {}

    def run(self, file: io.BytesIO) -> Any:
        """Read one pickle, up to and including its end, and return what it describes."""
        end = file.tell() + LARGEST_PICKLE_BYTES
        for opcode, argument, _ in pickletools.genops(file):
            if file.tell() > end:
                raise _UnknownContentError(f"a pickle of more than {LARGEST_PICKLE_BYTES} bytes")
            match opcode.name:
                case "STOP":
                    return self._stack.pop()
                case "PROTO":
                    pass
                case "MARK":
                    self._stack.append(_MARK)
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                    self._stack.append(argument)
                case "BINPUT" | "LONG_BINPUT":
                    self._memo[argument] = self._stack[-1]
                case "BINGET" | "LONG_BINGET":
                    self._stack.append(self._memo[argument])
                case name if name in _MAKES:
                    self._stack.append(_MAKES[name]())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    self._stack.append(tuple(self._pop(int(opcode.name[-1]))))
                case "TUPLE":
                    self._stack.append(tuple(self._pop_to_mark()))
                case "APPEND":
                    (item,) = self._pop(1)
                    self._top(list).append(item)
                case "APPENDS":
                    items = self._pop_to_mark()
                    self._top(list).extend(items)
                case "SETITEM":
                    key, value = self._pop(2)
                    self._top(dict)[_text(key)] = value
                case "SETITEMS":
                    items = self._pop_to_mark()
                    self._top(dict).update(zip(map(_text, items[::2]), items[1::2], strict=True))
                case "GLOBAL":
                    self._stack.append(_named(str(argument).replace(" ", ".")))
                case "NEWOBJ" | "REDUCE":
                    function, arguments = self._pop(2)
                    if not isinstance(function, _Name):
                        raise _UnknownContentError("a call of something without a name")
                    self._stack.append(function.make(*arguments))
                case "BUILD":
                    (state,) = self._pop(1)
                    self._top(_Module).state = state
                case "BINPERSID":
                    self._stack.append(self._outside(*self._stack.pop()))
                case _:
                    raise _UnknownContentError(f"opcode {opcode.name}, which torch does not write for this module")
        raise EOFError("truncated")

    def _pop(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) < count:
            raise _UnknownContentError("the stack is empty")
        del self._stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise _UnknownContentError(f"{kind.__name__} expected, {type(self._stack[-1]).__name__} found")
        return self._stack[-1]

    def _outside(self, kind: str, content: Any, *rest: Any) -> Any:
        """Resolve what lies outside the pickle: a storage or, in the format before torch 1.6, a module's class."""
        if kind == "module":
            return content
        key, _, count, *view = rest
        if kind != "storage" or not isinstance(content, _Name) or content.dtype is None or any(view):
            raise _UnknownContentError("unknown reference")
        if _text(key) not in self.storages:
            count_bytes = count * content.dtype.itemsize
            if not 0 < count_bytes <= self._left_bytes:
                raise _UnknownContentError("unknown reference, to more numbers than the file holds")
            self._left_bytes -= count_bytes
            self.storages[key] = bytearray(count_bytes)
        return torch.frombuffer(self.storages[key], dtype=content.dtype)


class _Name:
    """A name in the pickle: what its call makes, or the type of the numbers in its storages."""

    def __init__(self, make: Callable[..., Any], dtype: torch.dtype | None = None) -> None:
        self.make = make
        self.dtype = dtype


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise _UnknownContentError("a key that is not text")
    return key


def _names(names: list[Any]) -> set[str]:
    return set(map(_text, names))


def _ordered() -> dict[str, Any]:
    """An OrderedDict, whose entries torch writes behind it."""
    return {}


def _tensor(storage: Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Tensor:
    """A tensor over a storage; not larger than that, which strides of 0 would make possible."""
    if len(shape) > 2 or not all(type(size) is int for size in shape) or math.prod(shape) > storage.numel():
        raise _UnknownContentError("a tensor that does not fit its storage")
    return storage.as_strided(shape, strides, offset)


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _named(name: str) -> _Name:
    if name not in NAMES:
        raise WeightsError(f"refused, it asks for {name[:200]}, which no VirNucPro classifier holds; do not trust it")
    return NAMES[name]


def _nothing() -> Any:
    raise _UnknownContentError("a call of a storage")


_MAKES: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
NAMES = {
    **{name: _Name(_Module) for name in MODULES},
    **{name: _Name(_nothing, dtype) for name, dtype in STORAGES.items()},
    "__builtin__.set": _Name(_names),
    "builtins.set": _Name(_names),
    "collections.OrderedDict": _Name(_ordered),
    "torch._utils._rebuild_tensor_v2": _Name(_tensor),
    "torch._utils._rebuild_parameter": _Name(_parameter),
}
