"""Every published form of every family against its oracle: each layer, each pooling, residues, windows, formats."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from holdfast.errors import WeightsError
from holdfast.models.checkpoint import read_checkpoint
from holdfast.models.encoder import Encoder
from holdfast.models.prepare import prepare
from holdfast.models.registry import POOLINGS, Output, Prepared, load_tokenizer, open_model, read_prepared
from torch import Tensor

from tests.models.checkpoints import require_verified
from tests.models.families import PUBLISHED, Published, States, read_state, replace_state

Tokens = tuple[Tensor, list[int]]


@dataclass(frozen=True)
class Model:
    """A published model, prepared."""

    published: Published
    source: Path
    prepared: Prepared
    directory: Path
    encoder: Encoder

    def tokens(self, sequences: list[str]) -> Tokens:
        """Token ids, and how many each sequence has."""
        ids, lengths = load_tokenizer(self.prepared, self.directory)(sequences)
        return torch.from_numpy(ids), lengths.tolist()

    def counted(self, states: Tensor, what: str) -> Tensor:
        """The states of residues, or of all tokens."""
        before, behind = self.published.around
        return states[before : len(states) - behind] if what == "residues" else states


@pytest.fixture(scope="module", params=PUBLISHED)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    published, directory = PUBLISHED[request.param], tmp_path_factory.mktemp("model")
    (directory / "published").mkdir()
    source = published.write(directory / "published")
    prepared = prepare(str(source), directory / "prepared")
    encoder = open_model(directory / "prepared", precision="fp32")
    return Model(published, source, prepared, directory / "prepared", encoder)


@pytest.fixture(scope="module")
def expected(model: Model) -> States:
    """The oracle's states of sequences of mixed lengths."""
    return model.published.oracle(model.source, model.published.sequences())


def require_close(found: Tensor, wanted: Tensor, tolerance: float, largest: float) -> None:
    """Within the tolerance, times the largest absolute value of the layer or 1."""
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=tolerance * max(1.0, largest))


def test_preparation_says_what_the_model_is(model: Model) -> None:
    published, prepared = model.published, read_prepared(model.directory)
    assert prepared == model.prepared
    assert prepared.family == published.family
    assert (prepared.start_tokens, prepared.end_tokens) == published.around
    assert (prepared.start_is_cls, prepared.mean_of) == (published.start_is_cls, published.mean_of)
    assert (prepared.max_length, prepared.long) == (published.max_length, published.long)
    assert prepared.is_protein == (published.family != "mosaic_bert")
    assert str(prepared.verification["reference"]).startswith(published.reference)
    require_verified(prepared)


def test_every_layer_of_a_mixed_batch_equals_the_oracle(model: Model, expected: States) -> None:
    tokens, lengths = model.tokens(model.published.sequences())
    assert lengths == [len(states[0]) for states in expected]
    assert model.encoder.layers + 1 == len(expected[0])
    for layer in range(model.encoder.layers + 1):
        wanted = torch.cat([states[layer] for states in expected])
        found = model.encoder.encode(tokens, lengths, layer)
        require_close(found, wanted, model.published.tolerance, float(wanted.abs().max()))
    assert torch.equal(model.encoder.encode(tokens, lengths), found)


def test_every_pooling_of_every_layer_in_one_pass_equals_the_oracle(model: Model, expected: States) -> None:
    outputs = [Output(layer, pooling) for layer in range(model.encoder.layers + 1) for pooling in POOLINGS]
    tokens, lengths = model.tokens(model.published.sequences())
    found = model.encoder.embed(tokens, lengths, outputs)
    assert set(found) == set(outputs)
    for output in outputs:
        states = [each[output.layer].double() for each in expected]
        averaged = [model.counted(each, model.published.mean_of) for each in states]
        wanted = {
            "mean": torch.stack([each.mean(0) for each in averaged]),
            "max": torch.stack([each.amax(0) for each in averaged]),
            "cls": torch.stack([each[0] for each in states]),
            "residues": torch.cat([model.counted(each, "residues") for each in states]),
        }[output.pooling]
        assert found[output].dtype == torch.float32
        largest = max(float(each.abs().max()) for each in states)
        require_close(found[output], wanted, model.published.tolerance, largest)


def test_a_neighbour_in_the_batch_changes_nothing(model: Model) -> None:
    first, second, other = model.published.sequences([60, 60, 60])
    mean = Output(model.encoder.layers, "mean")
    tokens, lengths = model.tokens([first, second])
    together = model.encoder.embed(tokens, lengths, [mean])[mean][0]
    tokens, lengths = model.tokens([other, first])
    torch.testing.assert_close(together, model.encoder.embed(tokens, lengths, [mean])[mean][1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("window", [2, 7])
def test_windows_are_the_mean_over_those_that_hold_a_residue(model: Model, window: int) -> None:
    tokens, lengths = model.tokens(model.published.sequences([4 * window + 2, window, 1, window + 1, 3 * window]))
    layers = (0, 1, model.encoder.layers)
    poolings = ("residues", "mean", "max")
    outputs = [Output(layer, pooling) for layer in layers for pooling in poolings]
    found = model.encoder.embed(tokens, lengths, outputs, window)
    for layer in layers:
        merged = [slowly_merged(model, sequence, window, layer) for sequence in tokens.split(lengths)]
        wanted = {
            "residues": torch.cat([residues for residues, _ in merged]),
            "mean": torch.stack([averaged.mean(0) for _, averaged in merged]),
            "max": torch.stack([averaged.amax(0) for _, averaged in merged]),
        }
        largest = float(wanted["residues"].abs().max())
        for pooling in poolings:
            require_close(found[Output(layer, pooling)], wanted[pooling], 1e-5, largest)


def slowly_merged(model: Model, sequence: Tensor, window: int, layer: int) -> tuple[Tensor, Tensor]:
    """States of the residues as the mean over the windows, window after window; and what a mean is taken over."""
    before, behind = model.published.around
    start, end = sequence[:before], sequence[len(sequence) - behind :]
    residues = sequence[before : len(sequence) - behind]
    if len(residues) <= window:
        states = model.encoder.encode(sequence, [len(sequence)], layer).double()
        return model.counted(states, "residues"), model.counted(states, model.published.mean_of)
    held: list[list[Tensor]] = [[] for _ in residues]
    first, last = 0, len(residues) - window
    while True:
        piece = torch.cat((start, residues[first : first + window], end))
        states = model.counted(model.encoder.encode(piece, [len(piece)], layer), "residues").double()
        for place, state in enumerate(states, first):
            held[place].append(state)
        if first == last:
            break
        first = min(first + window // 2, last)
    merged = torch.stack([torch.stack(states).mean(0) for states in held])
    return merged, merged


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_stays_close(model: Model, precision: str) -> None:
    tokens, lengths = model.tokens(model.published.sequences([166, 40, 3, 90, 166]))
    last = [Output(model.encoder.layers, pooling) for pooling in ("mean", "residues")]
    exact = model.encoder.embed(tokens, lengths, last)
    halves = open_model(model.directory, precision=precision).embed(tokens, lengths, last)
    for output in last:
        centred = exact[output] - exact[output].mean(0)
        error = float((halves[output].float() - exact[output]).norm() / centred.norm())
        assert 0 < error < (1e-2 if precision == "fp16" else 8e-2), output
    assert halves[last[0]].dtype == torch.float32


# What is wrong with a checkpoint


def test_tensors_that_the_encoder_does_not_know_or_lacks_are_listed(model: Model, tmp_path: Path) -> None:
    def refusal(state: dict[str, Tensor], name: str) -> str:
        with pytest.raises(WeightsError) as caught:
            dict(read_checkpoint(replace_state(model.source, tmp_path / name, state), None).own_tensors())
        return str(caught.value)

    plain = read_state(model.source)
    name = next(name for name in sorted(plain) if re.search(r"(layers?|blocks?)\.1\..*weight$", name))
    more = plain | {name.replace("weight", "extra"): torch.ones(3)}
    assert f"1 unknown: {name.replace('weight', 'extra')}" in refusal(more, "more")
    assert "1 missing: " in refusal({key: tensor for key, tensor in plain.items() if key != name}, "less")
    assert f"1 misshapen: {name} [" in refusal(plain | {name: plain[name][:-1].clone()}, "shape")
    wrapped = refusal({f"module.{key}": tensor for key, tensor in plain.items()}, "wrapped")
    assert wrapped.endswith("every name begins with 'module.'; save it unwrapped")
