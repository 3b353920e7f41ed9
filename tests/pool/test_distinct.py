"""Distinct sequences of a sample against a recomputation with a dictionary."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from holdfast.models.esm import VOCABULARY, letters_of
from holdfast.models.registry import load_tokenizer, read_prepared
from holdfast.pool.distinct import DistinctSequences, DistinctWriter
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records
from holdfast.sequences.tokens import LetterTokenizer, Tokenizer
from hypothesis import given
from hypothesis import strategies as st

PHAGE = Path(__file__).parents[2] / "demo/data/phage_train.fna"
tokenize_proteins = LetterTokenizer(**asdict(letters_of(VOCABULARY)))
BLOCKS = st.lists(st.lists(st.text("LAGV*J", max_size=6), max_size=12), max_size=5)


def written(directory: Path, model: str, tokenizer: Tokenizer, blocks: Sequence[list[str]]) -> DistinctSequences:
    with DistinctWriter(directory, model, tokenizer) as writer:
        for block in blocks:
            writer.add(block)
    return DistinctSequences(directory, model)


def compare(found: DistinctSequences, tokenizer: Tokenizer, texts: list[str]) -> dict[bytes, int]:
    """Hold what was written against texts tokenised one by one; return the distinct tokens by number."""
    known: dict[bytes, int] = {}
    rows = [known.setdefault(tokenizer([text])[0].tobytes(), len(known)) for text in texts]
    assert found.rows.tolist() == rows
    assert found.rows.dtype == np.int64
    assert found.lengths.tolist() == [len(content) // 2 for content in known]
    assert found.lengths.dtype == np.int32
    assert [found.tokens(number).tobytes() for number in known.values()] == list(known)
    assert found.digests == [hashlib.sha256(content).digest() for content in known]
    return known


@given(BLOCKS)
def test_equal_sequences_become_one_in_order_of_appearance(blocks: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        found = written(Path(directory), "esm2", tokenize_proteins, blocks)
        compare(found, tokenize_proteins, [text for block in blocks for text in block])


def test_proteins_that_differ_where_the_model_does_not_look_are_one(tmp_path: Path) -> None:
    texts = ["MK", "MK*", "MKJ", "MK**", "M*K", "MJK", "MKX"]
    found = written(tmp_path, "esm2", tokenize_proteins, [texts])
    compare(found, tokenize_proteins, texts)
    assert found.rows.tolist() == [0, 1, 1, 2, 3, 3, 4]
    assert found.lengths.tolist() == [4, 5, 6, 5, 5]
    assert found.tokens(0).dtype == np.int16


def test_long_proteins_that_differ_at_their_end_are_two(tmp_path: Path) -> None:
    texts = ["M" + "A" * 5000 + "C", "M" + "A" * 5000 + "W", "M" + "A" * 5000 + "C"]
    found = written(tmp_path, "esm2", tokenize_proteins, [texts])
    compare(found, tokenize_proteins, texts)
    assert found.rows.tolist() == [0, 1, 0]
    assert found.lengths.tolist() == [5004, 5004]


def test_nucleotides_go_through_the_tokenizer_of_the_checkpoint(tmp_path: Path, models: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(read_prepared(models["dnabert_s"]), models["dnabert_s"])
    texts = [record.sequence[:300] for record in read_records(PHAGE, Alphabet.NUCLEOTIDE)]
    blocks = [texts, ["ACGNNT"], texts[5:9], [], ["ACGNNT"]]
    found = written(tmp_path, "dnabert_s", tokenizer, blocks)
    known = compare(found, tokenizer, [text for block in blocks for text in block])
    assert len(known) == len(texts) + 1


def test_a_sample_without_rows_has_no_sequences(tmp_path: Path) -> None:
    found = written(tmp_path, "esm2", tokenize_proteins, [])
    assert (len(found.rows), len(found.lengths), found.digests) == (0, 0, [])
