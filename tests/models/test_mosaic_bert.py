"""DNABERT-S against states of the genuine model, recorded in tests/data/golden_dnabert_s.npz."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from holdfast.errors import WeightsError
from holdfast.models import ops
from holdfast.models.encoder import Encoder
from holdfast.models.mosaic_bert import alibi_slopes, tensor_shapes
from holdfast.models.packing import Packing
from holdfast.models.prepare import prepare
from holdfast.models.registry import Output, open_model
from holdfast.models.synthetic import write_tokenizer
from holdfast.sequences.tokens import BytePairTokenizer

from tests.models import checkpoints

MEAN = Output(2, "mean")
Golden = tuple[torch.Tensor, list[int], torch.Tensor]  # tokens, their number a sequence, states


@pytest.fixture(scope="module")
def golden() -> Golden:
    """States of seven sequences, of which the first is empty: [CLS] and [SEP] alone."""
    with np.load(checkpoints.GOLDEN) as file:
        return torch.from_numpy(file["ids"]), file["lens"].tolist(), torch.from_numpy(file["out"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return prepared_golden(tmp_path_factory.mktemp("golden"), checkpoints.GOLDEN_HEADS)


def prepared_golden(directory: Path, heads: int) -> Encoder:
    source = checkpoints.write_dnabert_s(directory / "published", checkpoints.golden_weights(), heads)
    prepare(str(source), directory / "prepared")
    return open_model(directory / "prepared", precision="fp32")


def test_only_the_right_number_of_heads_gives_the_golden_states(tmp_path: Path, golden: Golden) -> None:
    tokens, lengths, expected = golden
    differences = {}
    for heads in (1, 2, 3, 4, 6, 8, 12, 16, 24, 48):
        states = prepared_golden(tmp_path, heads).encode(tokens, lengths)
        differences[heads] = float((states - expected).abs().max())
    assert differences.pop(checkpoints.GOLDEN_HEADS) < 5e-5
    assert min(differences.values()) > 1e-2


def test_a_batch_gives_what_each_sequence_gives_alone(model: Encoder, golden: Golden) -> None:
    tokens, lengths, expected = golden
    for sequence, states in zip(tokens.split(lengths), expected.split(lengths), strict=True):
        torch.testing.assert_close(model.encode(sequence, [len(sequence)]), states, rtol=0, atol=5e-5)


def test_the_order_of_a_batch_is_kept(model: Encoder, golden: Golden) -> None:
    tokens, lengths, expected = golden
    parts = tokens.split(lengths)
    order = [3, 0, 6, 2, 5, 4, 1]
    states = model.encode(torch.cat([parts[i] for i in order]), [lengths[i] for i in order])
    wanted = torch.cat([expected.split(lengths)[i] for i in order])
    torch.testing.assert_close(states, wanted, rtol=0, atol=5e-5)


def test_the_definition_that_other_tests_use_gives_the_golden_states(golden: Golden) -> None:
    tokens, lengths, expected = golden
    for sequence, states in zip(tokens.split(lengths), expected.split(lengths), strict=True):
        found = checkpoints.mosaic_bert(checkpoints.golden_weights(), checkpoints.GOLDEN_HEADS, sequence)[-1]
        torch.testing.assert_close(found, states.double(), rtol=0, atol=5e-5)


def test_an_embedding_is_the_mean_of_all_tokens(model: Encoder, golden: Golden) -> None:
    tokens, lengths, expected = golden
    means = torch.stack([states.double().mean(0) for states in expected.split(lengths)])
    embeddings = model.embed(tokens[2:], lengths[1:], [MEAN])[MEAN]
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.double(), means[1:], rtol=0, atol=2e-5)


def test_attention_in_blocks_of_queries_gives_the_golden_states(
    model: Encoder, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, lengths, expected = golden
    monkeypatch.setattr(ops, "BIAS_ELEMENTS", 12 * 640 * 48)  # 48 queries at once, 640 do not divide
    torch.testing.assert_close(model.encode(tokens, lengths), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("bias_elements", [2**24, 4000])
def test_penalties_fall_symmetrically_with_distance(monkeypatch: pytest.MonkeyPatch, bias_elements: int) -> None:
    monkeypatch.setattr(ops, "BIAS_ELEMENTS", bias_elements)
    slopes = torch.tensor([0.5, 0.25, 0.7])
    lengths = [1, 7, 7, 8, 9, 100, 131]
    qkv = torch.randn(sum(lengths), 3, 3, 16, generator=torch.Generator().manual_seed(1))
    attended = ops.attention(qkv, Packing(lengths, qkv.device), slopes).split(lengths)
    for part, found in zip(qkv.split(lengths), attended, strict=True):
        query, key, value = part.permute(1, 2, 0, 3)
        distance = (torch.arange(len(part))[:, None] - torch.arange(len(part))).abs()
        scores = query @ key.transpose(-1, -2) / 4 - slopes[:, None, None] * distance
        expected = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


def test_slopes_are_those_of_alibi() -> None:
    assert alibi_slopes(8) == [2**-n for n in range(1, 9)]
    assert alibi_slopes(16) == pytest.approx([2 ** (-n / 2) for n in range(1, 17)])
    assert alibi_slopes(12) == pytest.approx([2**-n for n in range(1, 9)] + [2 ** -(n + 0.5) for n in range(4)])
    assert alibi_slopes(1) == [2**-8]


def test_half_precision_stays_close(model: Encoder, golden: Golden, tmp_path: Path) -> None:
    tokens, lengths, _ = golden
    source = checkpoints.write_dnabert_s(tmp_path / "published", checkpoints.golden_weights())
    prepare(str(source), tmp_path / "prepared")
    halves = open_model(tmp_path / "prepared", precision="fp16")
    exact = model.embed(tokens[2:], lengths[1:], [MEAN])[MEAN]
    error = (halves.embed(tokens[2:], lengths[1:], [MEAN])[MEAN] - exact).norm(dim=1) / exact.norm(dim=1)
    assert halves.encode(tokens, lengths).dtype == torch.float32  # the residual stream, which a post-LN model ends in
    assert 0 < float(error.max()) < 1e-2


def test_safetensors_and_bin_with_and_without_prefix_are_the_same_model(tmp_path: Path, golden: Golden) -> None:
    tokens, lengths, expected = golden
    prefixed = {f"bert.{name}": tensor for name, tensor in checkpoints.golden_weights().items()}
    source = checkpoints.write_dnabert_s(tmp_path / "published", checkpoints.golden_weights(), binary=True)
    torch.save(prefixed, source / "pytorch_model.bin")
    prepared = prepare(str(source), tmp_path / "prepared")
    assert checkpoints.verified_difference(prepared) < 5e-5
    states = open_model(tmp_path / "prepared").encode(tokens, lengths)
    torch.testing.assert_close(states, expected, rtol=0, atol=5e-5)


def test_a_prepared_protein_model_is_not_opened_as_dna(tmp_path: Path) -> None:
    source = checkpoints.write_esm2(tmp_path)
    replace(prepare(str(source), tmp_path / "prepared"), family="mosaic_bert").write(tmp_path / "prepared")
    with pytest.raises(WeightsError, match="token_types must be a whole number"):
        open_model(tmp_path / "prepared")


def test_the_random_tokenizer_gives_as_many_tokens_as_the_published_one(tmp_path: Path) -> None:
    write_tokenizer(4096, tmp_path / "tokenizer.json")
    bases = np.random.default_rng(3).choice(list("ACGT"), (40, 500))
    _, lengths = BytePairTokenizer(tmp_path / "tokenizer.json")(["".join(row) for row in bases])
    assert 95 < lengths.min() <= lengths.max() < 120


def test_the_published_sizes_make_the_published_number_of_parameters() -> None:
    sizes = {"layers": 12, "width": 768, "mlp_width": 3072, "vocabulary": 4096, "token_types": 2}
    shapes = tensor_shapes(sizes)
    pooler = 768 * 768 + 768
    assert len(shapes) + 2 == 138
    assert sum(math.prod(shape) for shape in shapes.values()) + pooler == 117_068_544
