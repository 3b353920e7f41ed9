"""What is particular to T5 encoders: distances in buckets, and the tokens of residues."""

import json
from pathlib import Path

import pytest
import torch
from holdfast.errors import WeightsError
from holdfast.models.checkpoint import read_checkpoint
from holdfast.models.prepare import prepare
from holdfast.models.registry import load_tokenizer
from holdfast.models.t5 import relative_buckets
from transformers.models.t5.modeling_t5 import T5Attention

from tests.models import families


@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (64, 128), (8, 20)])
def test_buckets_are_those_of_transformers(buckets: int, reach: int) -> None:
    places = torch.arange(-2000, 2001)
    expected = T5Attention._relative_position_bucket(places, True, buckets, reach)
    assert torch.equal(relative_buckets(places, buckets, reach), expected)
    assert len(expected.unique()) > buckets // 2


def test_distances_beyond_the_reach_share_the_last_bucket() -> None:
    """The encoder holds a bias a place up to the reach, and takes the outermost for all that lie farther."""
    for buckets in (32, 64):
        far = relative_buckets(torch.tensor([-5000, -128, 128, 5000]), buckets, 128).tolist()
        assert far == [buckets // 2 - 1] * 2 + [buckets - 1] * 2


def tokens_of(source: Path, tmp_path: Path, proteins: list[str]) -> list[list[int]]:
    prepared = prepare(str(source), tmp_path / "prepared")
    ids, lengths = load_tokenizer(prepared, tmp_path / "prepared")(proteins)
    return [part.tolist() for part in torch.from_numpy(ids).split(lengths.tolist())]


def test_rare_residues_are_x_for_prott5_and_themselves_for_ankh(tmp_path: Path) -> None:
    proteins = ["AUZOB", "AXXXX", "aJ*"]
    (tmp_path / "prott5").mkdir()
    rare, same, odd = tokens_of(families.write_t5(tmp_path / "prott5"), tmp_path, proteins)
    assert rare == same
    assert (rare[0], rare[-1]) == (3, 1)
    assert odd == [2, 2, 2, 1]
    (tmp_path / "ankh").mkdir()
    rare, same, odd = tokens_of(families.write_ankh(tmp_path / "ankh"), tmp_path, proteins)
    assert len(set(rare)) == len(rare)
    assert len(set(same)) == 3
    assert odd == [2, 2, 2, 1]


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer_config.json"])
def test_the_prefix_of_prostt5_is_read_wherever_it_stands(file: str, tmp_path: Path) -> None:
    directory = families.write_t5(tmp_path / "published")
    content = {"<fold2AA>": 148, "<AA2fold>": 149}
    if file == "tokenizer_config.json":
        decoder = {str(number): {"content": token, "special": True} for token, number in content.items()}
        (directory / file).write_text(json.dumps({"added_tokens_decoder": decoder}))
    else:
        (directory / file).write_text(json.dumps(content))
    assert tokens_of(directory, tmp_path, ["AL"]) == [[149, 3, 4, 1]]


def test_a_vocabulary_that_is_missing_or_none_is_refused(tmp_path: Path) -> None:
    directory = families.write_t5(tmp_path / "published")
    vocabulary = directory / "spiece.model"

    def refusal() -> str:
        with pytest.raises(WeightsError) as caught:
            read_checkpoint(directory, None)
        return str(caught.value)

    vocabulary.unlink()
    families.write_pieces(vocabulary, "ALGVSREDTIPKFQNYMHX", spaced=True)
    assert refusal() == f"{vocabulary}: has no token for C, W; give an encoder of proteins"
    vocabulary.write_bytes(b"nothing")
    assert refusal().startswith(f"{vocabulary}: not a vocabulary of SentencePiece")
    vocabulary.unlink()
    assert refusal() == f"{vocabulary}: missing; it holds the tokens of the residues, download it too"


def test_an_activation_that_is_not_known_is_refused(tmp_path: Path) -> None:
    directory = families.write_t5(tmp_path / "published", feed_forward_proj="gated-silu")
    with pytest.raises(WeightsError, match="feed_forward_proj 'gated-silu'; known are relu, gated-gelu"):
        read_checkpoint(directory, None)
