"""ESM-2 against fair-esm's genuine loader and transformers' EsmModel, from the same published file."""

import argparse
from pathlib import Path

import esm
import pytest
import torch
from holdfast.errors import WeightsError
from holdfast.models.esm import Esm2
from holdfast.models.prepare import prepare
from holdfast.models.registry import open_model
from holdfast.models.synthetic import write_esm2
from safetensors.torch import load_file, save_file
from transformers import EsmModel

from tests.models import checkpoints

LENGTHS = [166, 3, 1502, 19, 166, 4, 1026, 19, 3, 502]  # tokens: 1 to 1500 residues, in no order
CLS, EOS = 0, 2
Prepared = tuple[Path, Esm2]  # the published file and the encoder


def proteins(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    residues = [torch.randint(4, 31, (length - 2,), generator=generator) for length in lengths]
    return [torch.cat((torch.tensor([CLS]), part, torch.tensor([EOS]))) for part in residues]


@torch.inference_mode()
def genuine_fair_esm(path: Path, sequences: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        model, _ = esm.pretrained.load_model_and_alphabet_local(path)
    last = model.num_layers
    return [model.eval()(s[None], repr_layers=[last])["representations"][last][0] for s in sequences]


@torch.inference_mode()
def genuine_transformers(directory: Path, sequences: list[torch.Tensor]) -> list[torch.Tensor]:
    model = EsmModel.from_pretrained(directory, dtype=torch.float32, add_pooling_layer=False).eval()
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=1)
    states = model(padded, attention_mask=(padded != 1).long()).last_hidden_state
    return [row[: len(s)] for row, s in zip(states, sequences, strict=True)]


def largest_difference(states: torch.Tensor, expected: list[torch.Tensor]) -> float:
    return float((states - torch.cat(expected)).abs().max())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A small published .pt and its prepared model."""
    directory = tmp_path_factory.mktemp("small")
    source = checkpoints.write_fair_esm(directory / "esm2_small.pt", checkpoints.fair_esm_state())
    prepare(str(source), directory / "prepared")
    return source, open_model(directory / "prepared", precision="fp32")


@pytest.fixture(scope="module")
def released_size(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A published .pt of the size of esm2_t6_8M_UR50D with synthetic weights, and its prepared model."""
    directory = tmp_path_factory.mktemp("8M")
    path = write_esm2("esm2_t6_8M_UR50D", directory)
    prepare(str(path), directory / "prepared")
    return path, open_model(directory / "prepared", precision="fp32")


def test_a_mixed_batch_equals_fair_esm(released_size: Prepared) -> None:
    path, model = released_size
    sequences = proteins(LENGTHS)
    assert largest_difference(model.encode(torch.cat(sequences), LENGTHS), genuine_fair_esm(path, sequences)) < 1e-5


def test_a_mixed_batch_equals_transformers(small: Prepared, tmp_path: Path) -> None:
    _, model = small
    directory = checkpoints.write_hugging_face_esm(tmp_path, checkpoints.fair_esm_state())
    sequences = proteins(LENGTHS)
    expected = genuine_transformers(directory, sequences)
    assert largest_difference(model.encode(torch.cat(sequences), LENGTHS), expected) < 1e-5


def test_packed_equals_alone(released_size: Prepared) -> None:
    _, model = released_size
    lengths = [166, 3, 19, 166, 4, 302, 19, 3]
    sequences = proteins(lengths)
    alone = [model.encode(sequence, [len(sequence)]) for sequence in sequences]
    assert largest_difference(model.encode(torch.cat(sequences), lengths), alone) < 1e-5


def test_a_neighbour_in_the_batch_changes_nothing(small: Prepared) -> None:
    _, model = small
    first, second, other = proteins([60, 60, 60])
    together = model.encode(torch.cat((first, second)), [60, 60])[:60]
    torch.testing.assert_close(together, model.encode(torch.cat((first, other)), [60, 60])[:60], rtol=0, atol=1e-6)


def test_an_embedding_is_the_mean_of_the_residues_alone(small: Prepared) -> None:
    path, model = small
    lengths = [40, 3, 166, 40]
    sequences = proteins(lengths)
    means = torch.stack([states[1:-1].double().mean(0) for states in genuine_fair_esm(path, sequences)])
    embeddings = model.embed(torch.cat(sequences), lengths)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.double(), means, rtol=0, atol=1e-5)


def test_all_published_formats_give_the_same_tensors(small: Prepared, tmp_path: Path) -> None:
    source, _ = small
    state = checkpoints.fair_esm_state()
    expected = load_file(source.parent / "prepared" / "model.safetensors")
    directories = {
        "safetensors": checkpoints.write_hugging_face_esm(tmp_path / "safetensors", state),
        "bin": checkpoints.write_hugging_face_esm(tmp_path / "bin", state, binary=True),
        "current": checkpoints.write_by_transformers(tmp_path / "current", state),
        "sharded": checkpoints.write_by_transformers(tmp_path / "sharded", state, shard_size="100KB"),
    }
    assert len(list(directories["sharded"].glob("model-*.safetensors"))) > 2
    for name, directory in directories.items():
        prepared = prepare(str(directory), tmp_path / f"prepared-{name}")
        assert prepared.verification["reference"] == "transformers EsmModel"
        assert checkpoints.verified_difference(prepared) < 1e-5
        tensors = load_file(tmp_path / f"prepared-{name}" / "model.safetensors")
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[own]) for own, tensor in tensors.items()), name


def test_half_precision_checkpoints_stay_half_and_lose_nothing(tmp_path: Path) -> None:
    path = checkpoints.write_fair_esm(tmp_path / "esm2_half.pt", checkpoints.fair_esm_state(torch.float16))
    prepared = prepare(str(path), tmp_path / "prepared")
    assert checkpoints.verified_difference(prepared) < 1e-5
    tensors = load_file(tmp_path / "prepared" / "model.safetensors")
    assert {tensor.dtype for name, tensor in tensors.items() if name != "inv_freq"} == {torch.float16}
    sequences = proteins([40, 166, 3])
    expected = genuine_fair_esm(path, sequences)
    exact = open_model(tmp_path / "prepared", precision="fp32").encode(torch.cat(sequences), [40, 166, 3])
    halves = open_model(tmp_path / "prepared", precision="fp16").encode(torch.cat(sequences), [40, 166, 3])
    assert largest_difference(exact, expected) < 1e-5
    assert halves.dtype == torch.float16
    assert float((halves.float() - exact).norm() / exact.norm()) < 5e-3


def test_rotary_frequencies_are_the_checkpoints_own(small: Prepared) -> None:
    source, _ = small
    found = load_file(source.parent / "prepared" / "model.safetensors")["inv_freq"]
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


def test_a_batch_that_does_not_add_up_is_refused(small: Prepared) -> None:
    _, model = small
    tokens = proteins([10])[0]
    with pytest.raises(ValueError, match="add up to 9"):
        model.encode(tokens, [9])
    with pytest.raises(ValueError, match="every sequence a token"):
        model.encode(tokens, [10, 0])
    with pytest.raises(ValueError, match="at least one residue"):
        model.embed(tokens, [8, 2])


def test_a_damaged_prepared_model_is_refused(tmp_path: Path) -> None:
    source = checkpoints.write_fair_esm(tmp_path / "esm2_small.pt", checkpoints.fair_esm_state())
    prepare(str(source), tmp_path / "prepared")
    file = tmp_path / "prepared" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors: not readable"):
        open_model(tmp_path / "prepared")
    with pytest.raises(WeightsError, match="not a prepared model"):
        open_model(tmp_path)


def test_synthetic_weights_tell_proteins_apart(released_size: Prepared) -> None:
    _, model = released_size
    sequences = proteins([152] * 20)
    embeddings = model.embed(torch.cat(sequences), [152] * 20)
    assert float(torch.pdist(embeddings).min() / embeddings.norm(dim=1).mean()) > 0.1
