"""Tokens against fair-esm, transformers, and a byte pair tokenizer trained here on phage lambda (synthetic)."""

import json
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from esm.data import Alphabet
from holdfast.errors import WeightsError
from holdfast.models.esm import RESIDUES, VOCABULARY, letters_of
from holdfast.sequences.tokens import BytePairTokenizer, LetterTokenizer
from tokenizers import models, pre_tokenizers, processors, trainers
from transformers import EsmTokenizer

DATA = Path(__file__).parents[1] / "data" / "frames"
GENES = [line for line in (DATA / "edges_500.fna").read_text().splitlines() if not line.startswith(">")]
SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


def split(result: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    """Return the tokens of each sequence, after a look at types and sizes."""
    ids, lengths = result
    assert (ids.dtype.name, lengths.dtype.name) == ("int16", "int32")
    assert lengths.sum() == len(ids)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if len(lengths) else []


def tokenize_proteins(proteins: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """By the letters of ESM-2."""
    return LetterTokenizer(**asdict(letters_of(VOCABULARY)))(proteins)


def random_proteins() -> list[str]:
    generator = random.Random(7)
    return ["".join(generator.choices(RESIDUES, k=length_aa)) for length_aa in (1, 2, 27, 300, 1024)]


def test_the_vocabulary_is_that_of_fair_esm() -> None:
    assert list(VOCABULARY) == Alphabet.from_architecture("ESM-1b").all_toks


def test_proteins_become_the_tokens_of_fair_esm() -> None:
    alphabet = Alphabet.from_architecture("ESM-1b")
    proteins = [*RESIDUES, RESIDUES, *random_proteins()]
    expected = [[alphabet.cls_idx, *alphabet.encode(protein), alphabet.eos_idx] for protein in proteins]
    assert split(tokenize_proteins(proteins)) == expected


def test_proteins_become_the_tokens_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    reference = EsmTokenizer(str(tmp_path / "vocab.txt"))
    proteins = [*RESIDUES, *random_proteins(), "MJK", "M*K", "MkK", "MéK", "J", "a"]
    assert split(tokenize_proteins(proteins)) == reference(proteins)["input_ids"]


def test_every_odd_letter_is_one_unknown() -> None:
    cls, eos, unknown, m, k = (VOCABULARY.index(token) for token in ("<cls>", "<eos>", "<unk>", "M", "K"))
    assert split(tokenize_proteins(["M*K", "mJ\x80K", "*", "MéK", ""])) == [
        [cls, m, unknown, k, eos],
        [cls, unknown, unknown, unknown, k, eos],
        [cls, unknown, eos],
        [cls, m, unknown, k, eos],
        [cls, eos],
    ]


def test_a_vocabulary_may_lack_a_start_or_an_end_and_its_ids_may_be_any() -> None:
    ids = {"M": 7, "K": 300}
    assert split(LetterTokenizer(ids, 2, None, 1)(["MKX", "", "K"])) == [[7, 300, 2, 1], [1], [300, 1]]
    assert split(LetterTokenizer(ids, 2, 149, None)(["MK"])) == [[149, 7, 300]]
    assert split(LetterTokenizer(ids, 2, None, None)(["MK", "M\x80\x81"])) == [[7, 300], [7, 2, 2]]


def test_no_sequences_are_no_tokens(tokenizer_file: Path) -> None:
    assert split(tokenize_proteins([])) == []
    assert split(BytePairTokenizer(tokenizer_file)([])) == []


def byte_pairs() -> tokenizers.Tokenizer:
    """Train a tokenizer of DNABERT-S's kind on genes of lambda: synthetic, 200 tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=SPECIAL, initial_alphabet=list("ACGT"), limit_alphabet=4, show_progress=False
    )
    tokenizer.train_from_iterator([gene for gene in GENES if set(gene) <= set("ACGT")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that cuts and pads, as the published one does."""
    path = tmp_path_factory.mktemp("dnabert_s") / "tokenizer.json"
    tokenizer = byte_pairs()
    tokenizer.enable_truncation(max_length=20)
    tokenizer.enable_padding(length=20, pad_id=3, pad_token="[PAD]")
    assert len(tokenizer.encode("A").ids) == len(tokenizer.encode(GENES[-1]).ids) == 20
    tokenizer.save(str(path))
    return path


def test_nucleotides_become_all_their_tokens_without_cut_or_padding(tokenizer_file: Path) -> None:
    sequences = [*GENES, "A", "ACGT" * 2000]
    vocabulary = byte_pairs().get_vocab()
    letters = {number: token for token, number in vocabulary.items()}
    found = split(BytePairTokenizer(tokenizer_file)(sequences))
    assert found == [byte_pairs().encode(sequence).ids for sequence in sequences]
    assert max(map(len, found)) > 500
    for sequence, ids in zip(sequences, found, strict=True):
        assert (ids[0], ids[-1]) == (1, 2)
        if set(sequence) <= set("ACGT"):
            assert "".join(letters[number] for number in ids[1:-1]) == sequence


def test_a_letter_that_is_no_base_is_one_unknown_token(tokenizer_file: Path) -> None:
    tokenizer = BytePairTokenizer(tokenizer_file)
    assert split(tokenizer(["NNR", "", "a"])) == [[1, 0, 0, 0, 2], [1, 2], [1, 0, 2]]


def test_a_tokenizer_survives_the_way_to_another_process(tokenizer_file: Path) -> None:
    for tokenizer in (LetterTokenizer(**asdict(letters_of(VOCABULARY))), BytePairTokenizer(tokenizer_file)):
        assert split(pickle.loads(pickle.dumps(tokenizer))(GENES)) == split(tokenizer(GENES))


def test_tokenizers_keep_to_one_thread_unless_the_environment_says_otherwise(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for before, after in ((None, "false"), ("true", "true")):
        if before is None:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        else:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        BytePairTokenizer(tokenizer_file)
        assert os.environ["TOKENIZERS_PARALLELISM"] == after


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "not a tokenizer of byte pairs"),
        (lambda text: "<html>", "not a tokenizer of byte pairs"),
        (lambda text: "[]", "not a tokenizer of byte pairs"),
        (lambda text: json.dumps({"model": {"type": "WordPiece", "vocab": {}}}), "not a tokenizer of byte pairs"),
        (lambda text: text.replace('"merges": [', '"merges": [["A", "Q"],'), "merges 'Q', which is not in its voc"),
        (lambda text: json.dumps(json.loads(text) | {"post_processor": None}), "not the tokenizer of DNABERT-S"),
        (lambda text: text.replace("[CLS]", "[BOS]"), "not the tokenizer of DNABERT-S"),
    ],
)
def test_a_broken_tokenizer_is_refused(
    tokenizer_file: Path, tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    text = tokenizer_file.read_text()
    path = tmp_path / "tokenizer.json"
    path.write_text(change(text))
    assert path.read_text() != text
    with pytest.raises(WeightsError) as caught:
        BytePairTokenizer(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert str(caught.value).endswith("prepare the model again with `holdfast prepare`")


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"tokenizer\.json: cannot be read \(No such file or directory\)"):
        BytePairTokenizer(tmp_path / "tokenizer.json")
