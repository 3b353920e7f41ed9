"""Files of ``torch.save``, read without running anything in them: a zip of one pickle and of every tensor's numbers."""

import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..documents import name_format
from ..errors import WeightsError

LARGEST_PICKLE_BYTES = 2**20  # without the tensors; the largest ESM-2, of 48 layers, has 0.2 million
LARGEST_TUPLES = 2**14  # in a pickle, which needs four a tensor; a million in each other overflow Python's stack
LARGEST_REPEATS = 16  # of a list, tuple, table or tensor: with each, what a pickle describes can double
BEFORE_ZIP = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # ends torch's first pickle in a file before 1.6, of any protocol
PICKLE, ZIP = b"\x80", b"PK"
LONGEST_START_BYTES = 512
TENSOR_NAMES = frozenset(
    {"__builtin__.set", "builtins.set", "collections.OrderedDict"}
    | {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"}
    | {f"torch.{kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16")}
    | {f"torch.{kind}Storage" for kind in ("Long", "Int", "Short", "Char", "Byte", "Bool")}
)
TENSORS_ALONE = "get the checkpoint from its publisher, or save the state_dict() of a model alone, by torch.save"
_SIMPLE = ("GLOBAL", "BINUNICODE", "SHORT_BINSTRING")


class StandIn:
    """Takes the place of an object in a pickle: holds its attributes, by name in ``state``, and does nothing."""

    state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = dict(dict.items(state))  # type: ignore[arg-type]  # TypeError where it is none


def load_torch(path: Path, classes: Collection[str] = (), advice: str = TENSORS_ALONE) -> Any:
    """Map what torch has saved since 1.6; nothing in it is run, and its tensors take no memory.

    Args:
        path: Of the file.
        classes: Full names of classes whose objects become a :class:`StandIn`.
        advice: What to do where the file holds something else.

    Returns:
        Tensors, plain containers and stand-ins; see :func:`require_stored` of tensors.

    Raises:
        WeightsError: damaged, saved before 1.6, or asking for anything else.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is refused a moment later
            _check_pickle(path, _read_pickle(path, advice), TENSOR_NAMES | set(classes), advice)
            with torch.serialization.safe_globals([(StandIn, name) for name in classes]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        reason = "a pickle that torch.save does not write"
    except (
        *(zipfile.BadZipFile, struct.error, EOFError, OSError, OverflowError, AssertionError),
        *(AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    ) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
    again = "download it again" if advice == TENSORS_ALONE else f"{advice}, or download it again"
    raise WeightsError(f"{path}: truncated or not a torch checkpoint ({reason}); {again}")


def _read_pickle(path: Path, advice: str) -> bytes:
    """The pickle in a file of torch, once the file is a zip without any large part but numbers."""
    with open(path, "rb") as file:
        start = file.read(LONGEST_START_BYTES)
        if start.startswith(PICKLE) and BEFORE_ZIP in start[:40]:
            raise WeightsError(
                f"{path}: saved by torch before 1.6, which is not read; save it again with a newer torch: "
                "torch.save(torch.load(FILE), FILE)"
            )
        if start.startswith(PICKLE):
            raise WeightsError(
                f"{path}: a pickle that torch.save has not written, and reading it could run code; {advice}"
            )
        if not start.startswith(ZIP) and (named := name_format(start)):
            raise WeightsError(f"{path}: is {named}")
        with zipfile.ZipFile(file) as archive:
            members = [(member.filename.partition("/")[2].lower(), member) for member in archive.infolist()]
            if any(member.compress_type != zipfile.ZIP_STORED for _, member in members):
                raise ValueError("compressed, which torch.save never does")
            if sum(member.file_size for name, member in members if not name.startswith("data/")) > LARGEST_PICKLE_BYTES:
                raise ValueError(f"a pickle of more than {LARGEST_PICKLE_BYTES} bytes")
            (pickled,) = (member for name, member in members if name == "data.pkl")
            return archive.read(pickled)


def _check_pickle(path: Path, pickled: bytes, names: Collection[str], advice: str) -> None:
    """Refuse what torch's unpickler must not see: other names, and what would take time or memory without end."""
    simple: set[object] = set()  # places in the memo that hold a name or a text
    tuples = repeats = 0
    last = ""
    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "GLOBAL" if (name := str(argument).replace(" ", ".")) not in names:
                raise WeightsError(
                    f"{path}: refused, it holds {name[:200]}, not only tensors, and reading it could run code; {advice}"
                )
            case "BINPUT" | "LONG_BINPUT":
                (simple.add if last in _SIMPLE else simple.discard)(argument)
                continue
            case "BINGET" | "LONG_BINGET":
                repeats += argument not in simple
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                tuples += 1
        last = opcode.name
    if tuples > LARGEST_TUPLES or repeats > LARGEST_REPEATS:
        raise ValueError("nested or repeated more than any checkpoint")


def require_stored(tensor: object) -> Tensor:
    """A tensor that was loaded, as numbers alone.

    Raises:
        ValueError: not a tensor, or one of more numbers than the file holds, which strides of 0 make possible.
    """
    if not isinstance(tensor, Tensor) or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("not a tensor, or larger than what the file holds of it")
    return tensor.detach()


def only_tensors(path: Path, content: object) -> dict[str, Tensor]:
    """The tensors by name of what must be a table of tensors, as :func:`require_unwrapped` accepts it."""
    try:
        if isinstance(content, dict) and all(isinstance(name, str) for name in dict.keys(content)):
            tensors = {name: require_stored(tensor) for name, tensor in dict.items(content)}
            return require_unwrapped(path, tensors)
    except ValueError:
        pass
    raise WeightsError(f"{path}: holds no plain table of tensors; give a published checkpoint")


def require_unwrapped(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, unless they are those of a model within torch's wrapper for several devices."""
    if tensors and all(name.startswith("module.") for name in tensors):
        raise WeightsError(f"{path}: saved from a wrapped model, every name begins with 'module.'; save it unwrapped")
    return tensors


def first_line(error: BaseException) -> str:
    """The beginning of what an error says, or what it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
