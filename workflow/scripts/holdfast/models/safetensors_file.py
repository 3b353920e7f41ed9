"""Files of safetensors: what they hold by name, and writing them tensor by tensor, without torch.

The format (github.com/huggingface/safetensors): 8 bytes, little-endian, with the length of a JSON header; the header,
by name each tensor's dtype, shape, and where its bytes begin and end behind the header; the numbers. The order in the
file and the spaces that fill the header up to 8 bytes are the library's, so that equal tensors give equal files.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ..documents import DocumentError, parse_json
from ..errors import PREPARE_AGAIN, WeightsError

ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}  # in the order in which a file holds them
METADATA = "__metadata__"
LARGEST_HEADER_BYTES = 10**8  # the library's own limit


class Entry(NamedTuple):
    """A tensor as a header states it: one of :data:`ITEM_BYTES`, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def count_numbers(path: Path) -> int:
    """How many numbers the tensors of a file have, which its header states.

    Raises:
        WeightsError: not a file of safetensors.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(min(length, LARGEST_HEADER_BYTES)).decode())
        if not isinstance(header, dict):
            raise DocumentError("no table of tensors")
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != METADATA)
    except (OSError, DocumentError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not readable ({error}); {PREPARE_AGAIN}") from None


def write_tensors(
    path: Path,
    entries: Mapping[str, Entry],
    metadata: Mapping[str, str] | None,
    contents: Iterable[tuple[str, memoryview]],
) -> None:
    """Write a file, holding one tensor in memory at a time.

    Args:
        path: To write; not there yet.
        entries: By name, what the file is to hold.
        metadata: What the header says beside; None for nothing.
        contents: Name and numbers of each tensor, once, in any order.

    Raises:
        ValueError: the contents are not those of the entries.
    """
    order = list(ITEM_BYTES)
    header: dict[str, object] = {} if metadata is None else {METADATA: dict(metadata)}
    places, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        places[name], end = end, end + entry.size_bytes
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [places[name], end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, numbers in contents:
            if numbers.nbytes != entries[name].size_bytes:
                raise ValueError(f"{name} has {numbers.nbytes} bytes instead of {entries[name].size_bytes}")
            file.seek(8 + len(text) + places.pop(name))
            file.write(numbers)
        if places:
            raise ValueError(f"{len(places)} tensors were not given, such as {min(places)}")
