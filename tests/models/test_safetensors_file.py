"""Files of safetensors: written as the library writes them."""

import json
from pathlib import Path

import pytest
import torch
from holdfast.errors import WeightsError
from holdfast.models.checkpoint import DTYPES, as_bytes
from holdfast.models.safetensors_file import Entry, count_numbers, write_tensors
from safetensors.torch import load_file, save_file

TENSORS = {
    "layers.10.weight": torch.randn(3, 5, dtype=torch.float16),
    "layers.2.weight": torch.randn(2, 2, 2),
    "é.bias": torch.randn(7, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "one": torch.tensor(3.5, dtype=torch.float64),
    "turned": torch.randn(4, 3).T,
}
ENTRIES = {name: Entry(DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("metadata", [None, {"holdfast": json.dumps({"family": 'e"s\nm', "é": 1})}])
@pytest.mark.parametrize("order", [list(TENSORS), sorted(TENSORS, reverse=True)])
def test_a_file_equals_that_of_the_library_byte_by_byte(
    tmp_path: Path, metadata: dict[str, str] | None, order: list[str]
) -> None:
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "theirs", metadata)
    write_tensors(tmp_path / "ours", ENTRIES, metadata, ((name, as_bytes(TENSORS[name])) for name in order))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert torch.equal(load_file(tmp_path / "ours")["turned"], TENSORS["turned"])
    assert count_numbers(tmp_path / "ours") == sum(tensor.numel() for tensor in TENSORS.values())


def test_contents_that_are_not_those_of_the_header_are_refused(tmp_path: Path) -> None:
    whole = {name: as_bytes(tensor) for name, tensor in TENSORS.items()}
    with pytest.raises(ValueError, match=r"1 tensors were not given, such as one"):
        write_tensors(tmp_path / "a", ENTRIES, None, ((name, whole[name]) for name in TENSORS if name != "one"))
    with pytest.raises(ValueError, match=r"one has 2 bytes instead of 8"):
        write_tensors(tmp_path / "b", ENTRIES, None, (whole | {"one": memoryview(b"ab")}).items())


@pytest.mark.parametrize("content", [b"", b"\x05", b"\2\0\0\0\0\0\0\0[]", b'\x12\0\0\0\0\0\0\0{"a":{"shape":[x]}}'])
def test_the_header_of_a_damaged_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors: not readable"):
        count_numbers(path)
