"""What ``torch.save`` wrote, taken apart and never run.

The pickle does not reach Python's unpickler, which calls what a file tells it to and gives as much memory as a file
says it needs, nor torch's, which hashes what a file makes it hash and lets its warnings out. :class:`Machine` reads it
opcode by opcode, knows only the opcodes that torch writes and the names that it was given, and leaves dictionaries,
lists, tensors and :class:`Instance`. Keys are text or whole numbers, so nothing else of the file's making is hashed.
:func:`read` maps the tensors of a file: they take no memory of their own, however large it is.
"""

import io
import math
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LARGEST_PICKLE_BYTES = 2**20  # without the tensors; the largest ESM-2, of 48 layers, has 0.2 million

_LOCAL_HEADER_BYTES = 30  # of a zip member, before its name and its extra field
_DIMENSIONS = 8
_MARK = object()


class UnknownContentError(Exception):
    """A file that torch would not have written, or not for this purpose."""


class UnknownNameError(UnknownContentError):
    """A pickle that asks for a class or function which it has no need of; ``str()`` is the name."""


class Instance:
    """Stands in for an object in the pickle: holds its state, does nothing."""

    def __init__(self) -> None:
        self.state: Any = {}


@dataclass(frozen=True)
class Name:
    """A name in the pickle: what its call makes, or the type of the numbers in its storages."""

    make: Callable[..., Any]
    dtype: torch.dtype | None = None


Storages = Callable[[str, torch.dtype, int], Tensor]


def read(path: Path, names: Mapping[str, Name]) -> Any:
    """Map a file that torch has saved since 1.6, a zip.

    Args:
        path: Of the file.
        names: What its pickle may ask for.

    Returns:
        What was saved; its tensors are views of the file.

    Raises:
        UnknownNameError: it asks for something else.
        UnknownContentError: damaged, or not saved by torch.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
                raise UnknownContentError("compressed, which torch never does")
            if members["data.pkl"].file_size > LARGEST_PICKLE_BYTES:
                raise UnknownContentError(f"a pickle of more than {LARGEST_PICKLE_BYTES} bytes")
            size = path.stat().st_size
            mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)

            def find(key: str, dtype: torch.dtype, count: int) -> Tensor:
                member = members.get(f"data/{key}")
                if member is None or count * dtype.itemsize != member.file_size:
                    raise UnknownContentError("unknown reference, to other numbers than the file holds")
                file.seek(member.header_offset + _LOCAL_HEADER_BYTES - 4)
                name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
                start = member.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
                if not 0 <= start <= start + member.file_size <= size:
                    raise UnknownContentError("truncated")
                return mapped[start : start + member.file_size].view(dtype)

            pickled = archive.read(members["data.pkl"])
            return Machine(names, find).run(io.BytesIO(pickled))
    except (
        zipfile.BadZipFile,
        struct.error,
        EOFError,
        OSError,
        OverflowError,
        ValueError,
        LookupError,
        RuntimeError,  # of zipfile for encrypted files, of torch for a file that cannot be mapped
    ) as error:
        raise UnknownContentError(_in_words(error)) from None


class Machine:
    """Runs pickles that torch writes, and calls nothing but the given names."""

    def __init__(self, names: Mapping[str, Name], storages: Storages) -> None:
        """Take what a pickle may ask for, and what gives a storage of a key, a type and a count of numbers."""
        self._names = names
        self._storages = storages
        self._stack: list[Any] = []
        self._memo: dict[Any, Any] = {}

    def run(self, file: io.BytesIO) -> Any:
        """Read one pickle, up to and including its end, and return what it describes.

        Raises:
            UnknownNameError: it asks for something else than the names.
            UnknownContentError: damaged, or not written by torch.
        """
        try:
            with warnings.catch_warnings(action="ignore"):  # of texts in an old opcode, refused once it is read
                return self._run(file)
        except (
            EOFError,
            OverflowError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            RuntimeError,
            struct.error,
        ) as error:
            raise UnknownContentError(_in_words(error)) from None

    def _run(self, file: io.BytesIO) -> Any:
        end = file.tell() + LARGEST_PICKLE_BYTES
        for opcode, argument, _ in pickletools.genops(file):
            if file.tell() > end:
                raise UnknownContentError(f"a pickle of more than {LARGEST_PICKLE_BYTES} bytes")
            match opcode.name:
                case "STOP":
                    return self._stack.pop()
                case "PROTO":
                    pass
                case "MARK":
                    self._stack.append(_MARK)
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
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
                    self._top(dict)[_key(key)] = value
                case "SETITEMS":
                    items = self._pop_to_mark()
                    self._top(dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))
                case "GLOBAL":
                    self._stack.append(self._name(str(argument).replace(" ", ".")))
                case "NEWOBJ" | "REDUCE":
                    function, arguments = self._pop(2)
                    if not isinstance(function, Name):
                        raise UnknownContentError("a call of something without a name")
                    self._stack.append(function.make(*arguments))
                case "BUILD":
                    (state,) = self._pop(1)
                    self._build(state)
                case "BINPERSID":
                    self._stack.append(self._outside(*self._stack.pop()))
                case _:
                    raise UnknownContentError(f"opcode {opcode.name}, which torch does not write")
        raise EOFError("truncated")

    def _pop(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) < count:
            raise UnknownContentError("the stack is empty")
        del self._stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise UnknownContentError(f"{kind.__name__} expected, {type(self._stack[-1]).__name__} found")
        return self._stack[-1]

    def _name(self, name: str) -> Name:
        if name not in self._names:
            raise UnknownNameError(name[:200])
        return self._names[name]

    def _build(self, state: Any) -> None:
        """Give an object its state; that of an OrderedDict, a state_dict's versions of its modules, is left out."""
        if not isinstance(self._stack[-1], dict):
            self._top(Instance).state = state

    def _outside(self, kind: str, content: Any, *rest: Any) -> Any:
        """Resolve what lies outside the pickle: a storage or, in the format before torch 1.6, a module's class."""
        if kind == "module":
            return content
        key, _, count, *view = rest
        if kind != "storage" or not isinstance(content, Name) or content.dtype is None or any(view):
            raise UnknownContentError("unknown reference")
        if not isinstance(key, str) or type(count) is not int:
            raise UnknownContentError("a reference to no storage")
        return self._storages(key, content.dtype, count)


def _key(key: object) -> str | int:
    if not isinstance(key, str | int):
        raise UnknownContentError("a key that is neither text nor a whole number")
    return key


def _keys(keys: list[Any]) -> set[str | int]:
    return set(map(_key, keys))


def _ordered() -> dict[str | int, Any]:
    """An OrderedDict, whose entries torch writes behind it."""
    return {}


def _tensor(storage: Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Tensor:
    """A tensor over a storage; neither beyond its end nor, which strides of 0 would make possible, larger than it."""
    numbers = (offset, *shape, *strides)
    if len(numbers) > 1 + 2 * _DIMENSIONS or not all(type(number) is int and number >= 0 for number in numbers):
        raise UnknownContentError("a tensor of no possible shape")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    count = math.prod(map(int, shape))
    if count > storage.numel() or (count and last >= storage.numel()):
        raise UnknownContentError("a tensor that does not fit its storage")
    return storage.as_strided(shape, strides, storage.storage_offset() + offset)


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _nothing() -> Any:
    raise UnknownContentError("a call of a storage")


def _in_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


_MAKES: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
# What torch needs for tensors and plain containers; whoever reads more adds names to these.
TENSORS = {
    "__builtin__.set": Name(_keys),
    "builtins.set": Name(_keys),
    "collections.OrderedDict": Name(_ordered),
    "torch._utils._rebuild_tensor_v2": Name(_tensor),
    "torch._utils._rebuild_parameter": Name(_parameter),
}
STORAGES = {
    f"torch.{kind}Storage": Name(_nothing, dtype)
    for kind, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
