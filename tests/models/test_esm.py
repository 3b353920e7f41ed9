"""What is particular to ESM: rotary frequencies, the names that files had at different times, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from holdfast.errors import WeightsError
from holdfast.models import encoder
from holdfast.models.prepare import prepare
from holdfast.models.registry import Output, open_model
from safetensors.torch import load_file, save_file
from transformers import EsmModel

from tests.models import checkpoints

SCRIPTS = Path(__file__).parents[2] / "workflow" / "scripts"
LAST = Output(checkpoints.LAYERS, "mean")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small published .pt, its prepared model beside it."""
    directory = tmp_path_factory.mktemp("small")
    source = checkpoints.write_esm2(directory)
    prepare(str(source), directory / "prepared")
    return directory / "prepared"


def protein(residues: int) -> torch.Tensor:
    """Tokens of a random protein between <cls> and <eos>."""
    drawn = torch.randint(4, 31, (residues,), generator=torch.Generator().manual_seed(residues))
    return torch.cat((torch.tensor([0]), drawn, torch.tensor([2])))


def test_names_of_all_times_give_the_same_tensors(small: Path, tmp_path: Path) -> None:
    state = checkpoints.fair_esm_state()
    expected = load_file(small / "model.safetensors")
    directories = {
        "safetensors": checkpoints.write_hugging_face_esm(tmp_path / "safetensors", state),
        "bin": checkpoints.write_hugging_face_esm(tmp_path / "bin", state, binary=True),
        "current": checkpoints.write_by_transformers(tmp_path / "current", state),
    }
    for name, directory in directories.items():
        prepared = prepare(str(directory), tmp_path / f"prepared-{name}")
        assert prepared.verification["reference"] == "transformers EsmModel"
        assert checkpoints.verified_difference(prepared) < 1e-5
        tensors = load_file(tmp_path / f"prepared-{name}" / "model.safetensors")
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[own]) for own, tensor in tensors.items()), name


def test_half_precision_checkpoints_stay_half_and_lose_nothing(tmp_path: Path) -> None:
    path = checkpoints.write_fair_esm(tmp_path / "esm2_half.pt", checkpoints.fair_esm_state(torch.float16))
    assert checkpoints.verified_difference(prepare(str(path), tmp_path / "prepared")) < 1e-5
    tensors = load_file(tmp_path / "prepared" / "model.safetensors")
    assert {tensor.dtype for name, tensor in tensors.items() if name != "inv_freq"} == {torch.float16}
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        model = open_model(tmp_path / "prepared", precision=precision)
        assert model._weights["layers.0.qkv.weight"].dtype == dtype
        assert model.encode(protein(20), [22]).dtype == torch.float32  # what a user gets, whatever it is made with


def test_rotary_frequencies_are_the_checkpoints_own(small: Path) -> None:
    found = load_file(small / "model.safetensors")["inv_freq"]
    head_width = checkpoints.WIDTH // checkpoints.HEADS
    exact = 1.0 / 10000 ** (torch.arange(0, head_width, 2) / head_width)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact.half().float())
    assert not torch.equal(found, exact)


def test_without_rotary_frequencies_transformers_formula_is_used(tmp_path: Path) -> None:
    directory = checkpoints.write_hugging_face_esm(tmp_path / "published", checkpoints.fair_esm_state())
    tensors = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("inv_freq")}
    save_file(kept, directory / "model.safetensors", {"format": "pt"})
    prepare(str(directory), tmp_path / "prepared")
    found = load_file(tmp_path / "prepared" / "model.safetensors")["inv_freq"]
    assert torch.equal(found, EsmModel(checkpoints.hugging_face_config()).state_dict()["rotary_embeddings.inv_freq"])


def test_more_windows_than_are_worked_on_at_once_are_all_there(small: Path) -> None:
    model = open_model(small, precision="fp32")
    residues, window = 9000, 100
    starts = [*range(0, residues - window, window // 2), residues - window]
    assert len(starts) * (window + 2) > encoder.WINDOW_TOKENS
    sequence = protein(residues)
    pieces = [torch.cat((sequence[:1], sequence[1 + start : 1 + start + window], sequence[-1:])) for start in starts]
    states = model.encode(torch.cat(pieces), [window + 2] * len(pieces)).view(len(pieces), window + 2, -1)[:, 1:-1]
    total, count = torch.zeros(residues, model.width), torch.zeros(residues, 1)
    for start, found in zip(starts, states, strict=True):
        total[start : start + window] += found
        count[start : start + window] += 1
    output = Output(model.layers, "residues")
    merged = model.embed(sequence, [len(sequence)], [output], window)[output]
    torch.testing.assert_close(merged, total / count, rtol=0, atol=1e-5)


def test_a_batch_that_does_not_add_up_is_refused(small: Path) -> None:
    model, tokens = open_model(small), protein(8)
    with pytest.raises(ValueError, match="add up to 9"):
        model.encode(tokens, [9])
    with pytest.raises(ValueError, match="every sequence a token"):
        model.encode(tokens, [10, 0])
    with pytest.raises(ValueError, match="at least one residue"):
        model.embed(tokens, [8, 2], [LAST])
    with pytest.raises(ValueError, match="layers are 0 to 3"):
        model.embed(tokens, [10], [LAST, Output(4, "mean")])


def test_a_damaged_prepared_model_is_refused(tmp_path: Path) -> None:
    source = checkpoints.write_fair_esm(tmp_path / "esm2_small.pt", checkpoints.fair_esm_state())
    prepare(str(source), tmp_path / "prepared")
    file = tmp_path / "prepared" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors: not readable"):
        open_model(tmp_path / "prepared")
    with pytest.raises(WeightsError, match="not a prepared model"):
        open_model(tmp_path)


COSINES = """
import torch
import holdfast.models.encoder
torch.set_num_threads(2)
angles = torch.arange(327.0)[:, None] / 10000 ** (torch.arange(16) / 16)
print(float((angles.cos().double() - angles.double().cos()).abs().max()))
"""


@pytest.mark.thorough
def test_the_first_cosines_of_a_process_are_right_in_all_threads() -> None:
    # Without the call in encoder.py each of these processes was wrong with a probability of 0.1 to 0.4.
    for _ in range(15):
        ended = subprocess.run(
            [sys.executable, "-c", COSINES],
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
            capture_output=True,
            text=True,
        )
        assert float(ended.stdout) < 1e-6, ended.stderr
