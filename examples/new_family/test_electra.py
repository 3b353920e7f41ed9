"""ELECTRA against transformers' ElectraModel, from a checkpoint that the library has written."""

from pathlib import Path

import pytest
import torch
from holdfast.models.prepare import prepare
from holdfast.models.registry import Output, load_tokenizer, open_model
from transformers import ElectraConfig, ElectraForPreTraining

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
LENGTHS = (1, 510, 3, 166, 166, 2, 64)


@pytest.mark.parametrize("embedding_size", [32, 64])
def test_every_layer_and_pooling_is_that_of_transformers(tmp_path: Path, embedding_size: int) -> None:
    config = ElectraConfig(
        vocab_size=30,
        embedding_size=embedding_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    published = ElectraForPreTraining(config).eval()  # with a head, which is ignored
    generator = torch.Generator().manual_seed(1)
    for parameter in published.parameters():  # larger than the library's, so that attention is far from even
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else parameter.data + 0.1 * noise
    published.save_pretrained(tmp_path / "published")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *reversed(RESIDUES), *"XUZOB"]
    (tmp_path / "published/vocab.txt").write_text("\n".join(vocabulary))

    prepared = prepare(str(tmp_path / "published"), tmp_path / "prepared")
    assert (prepared.family, prepared.max_length, prepared.long, prepared.around) == ("electra", 510, "window", 2)
    picks = [torch.randint(0, 20, (length,), generator=generator).tolist() for length in LENGTHS]
    sequences = ["".join(RESIDUES[pick] for pick in chosen) for chosen in picks]
    numbers, lengths = load_tokenizer(prepared, tmp_path / "prepared")(sequences)
    tokens = torch.from_numpy(numbers).long()
    assert tokens[:3].tolist() == [2, vocabulary.index(sequences[0]), 3]

    encoder = open_model(tmp_path / "prepared", "cpu", "fp32")
    outputs = [Output(layer, pooling) for layer in range(4) for pooling in ("mean", "cls", "max", "residues")]
    found = encoder.embed(tokens, lengths.tolist(), outputs)
    residues = {layer: found[Output(layer, "residues")].split(list(LENGTHS)) for layer in range(4)}
    for number, sequence in enumerate(tokens.split(lengths.tolist())):
        with torch.inference_mode():
            states = published.electra(sequence[None], output_hidden_states=True).hidden_states
        for layer, (theirs,) in enumerate(states):
            allowed = 1e-5 * max(1.0, float(theirs.abs().max()))
            expected = {"mean": theirs[1:-1].mean(0), "cls": theirs[0], "max": theirs[1:-1].amax(0)}
            for pooling, vector in expected.items():
                assert (found[Output(layer, pooling)][number] - vector).abs().max() <= allowed
            assert (residues[layer][number] - theirs[1:-1]).abs().max() <= allowed
