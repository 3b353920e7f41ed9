"""Files of torch taken apart without running them, compared with what torch itself reads."""

import argparse
import io
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from holdfast import pickled
from holdfast.checkpoint import NAMES
from holdfast.pickled import Instance, Machine, UnknownContentError, UnknownNameError
from torch import Tensor


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    matrix = torch.arange(24.0).reshape(4, 6)
    return {
        "matrix": matrix,
        "the same": matrix,
        "a part": matrix[1:3, 2:],
        "transposed": matrix.T,
        "expanded": torch.ones(1).expand(1, 1),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "three": torch.rand(2, 3, 4, dtype=torch.float64),
        "half": torch.tensor([1.5, -2]).half(),
        "bfloat16": torch.tensor([1.5, -2]).bfloat16(),
        "bool": torch.tensor([True, False]),
        **{str(kind): torch.tensor([1, 2], dtype=kind) for kind in (torch.int32, torch.int16, torch.int8, torch.uint8)},
    }


def test_tensors_are_those_that_torch_reads(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(OrderedDict(tensors), tmp_path / "a.bin")
    found = pickled.read(tmp_path / "a.bin", NAMES)
    expected = torch.load(tmp_path / "a.bin", weights_only=True)
    assert list(found) == list(expected) == list(tensors)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].stride() == tensor.stride()
        assert torch.equal(found[name], tensor.detach())
    assert found["matrix"].untyped_storage().data_ptr() == found["a part"].untyped_storage().data_ptr()


def test_plain_values_and_the_versions_of_a_state_dict(tmp_path: Path) -> None:
    values = {
        "none": None,
        "list": [1, [2.5]],
        "tuple": (1, "a", True, 4, 5),
        "set": {1, "a"},
        7: 2**70,
        "long": -(2**40),
    }
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    assert state._metadata  # type: ignore[attr-defined]
    torch.save({"cfg": {"model": argparse.Namespace(inner=values)}, "model": state}, tmp_path / "a.pt")
    found = pickled.read(tmp_path / "a.pt", NAMES)
    assert isinstance(found["cfg"]["model"], Instance)
    assert found["cfg"]["model"].state == {"inner": values}
    assert found["model"].keys() == state.keys()
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in state.items())


def test_a_large_file_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    torch.save({"large": torch.arange(2**24)}, tmp_path / "a.bin")
    before = anonymous_bytes()
    found = pickled.read(tmp_path / "a.bin", NAMES)["large"]
    assert int(found.sum()) == 2**23 * (2**24 - 1)
    assert anonymous_bytes() - before < 2**24
    found[0] = 1  # of this process alone
    assert int(pickled.read(tmp_path / "a.bin", NAMES)["large"][0]) == 0


@pytest.mark.parametrize(("content", "name"), [(torch.nn.Linear, "torch.nn.modules.linear.Linear"), (print, "print")])
def test_a_name_that_was_not_given_is_refused(tmp_path: Path, content: object, name: str) -> None:
    torch.save({"a": content}, tmp_path / "a.bin")
    with pytest.raises(UnknownNameError, match=f"{name}$"):
        pickled.read(tmp_path / "a.bin", NAMES)


@pytest.mark.parametrize(
    ("offset", "shape", "stride", "fits"), [(0, 2, 1, True), (1, 2, 1, False), (0, 3, 0, False), (0, 2, 2, False)]
)
def test_a_tensor_lies_within_its_storage(offset: int, shape: int, stride: int, fits: bool) -> None:
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x02tQ"
    place = b"K%cK%c\x85K%c\x85" % (offset, shape, stride)
    content = io.BytesIO(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + b"\x89}tR.")
    machine = Machine(NAMES, lambda key, dtype, count: torch.zeros(count + 5, dtype=dtype)[5:])
    if fits:
        assert torch.equal(machine.run(content), torch.zeros(2))
    else:
        with pytest.raises(UnknownContentError, match="a tensor that does not fit its storage"):
            machine.run(content)
