"""A sample's way from file to rows and tokens, and from vectors to embeddings, on pieces of real genomes."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from holdfast.errors import InputError
from holdfast.models.registry import load_tokenizer, read_prepared
from holdfast.pool.blocks import BlockStore
from holdfast.pool.sample import BLOCK_ROWS, DistinctSequences, finish_sample, read_sample
from holdfast.results.embeddings import read_embeddings
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records
from holdfast.sequences.frames import FRAMES, find_frames
from holdfast.sequences.tokens import VOCABULARY
from holdfast.spool.job import Manifest, make_manifest

DATA = Path(__file__).parents[2] / "demo/data"
SOFTWARE = {"holdfast": "test"}


def job(models: dict[str, Path], path: Path, kind: str, chunk_length: int = 500, dtype: str = "float32") -> Manifest:
    digests = {model: read_prepared(directory).weights_sha256 for model, directory in models.items()}
    return make_manifest("s", kind, str(path), chunk_length, digests, "fp32", dtype)


def finish(job: Manifest, directory: Path, models: dict[str, Path]) -> dict[str, np.ndarray]:
    """Complete a sample with a random vector for every distinct sequence; return these, one a row."""
    descriptions = {model: read_prepared(models[model]) for model in job.models}
    wanted, places = {}, {}
    for model, description in descriptions.items():
        sequences = DistinctSequences(directory, model)
        vectors = np.random.default_rng(1).normal(size=(len(sequences.digests), description.width)).astype(np.float32)
        store = BlockStore(directory.parent / f"blocks-{model}", description.width, "test")
        for start in range(0, len(vectors), 50):
            part = slice(start, start + 50)
            store.add(sequences.digests[part], vectors[part], uses=[1] * len(vectors[part]))
        places[model] = store.locate(sequences.digests)
        wanted[model] = vectors[np.asarray(sequences.rows)]
    assert finish_sample(job, directory, descriptions, places, {}, "fp32", SOFTWARE) == {}
    return wanted


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.mark.parametrize(
    ("name", "chunk_length"), [("phage_heldout.fna", 500), ("bacterium_train.fna.gz", 300), ("mixture.fastq", 500)]
)
def test_contigs_become_chunks_frames_and_tokens(
    name: str, chunk_length: int, models: dict[str, Path], directory: Path
) -> None:
    submitted = job(models, DATA / name, "contigs", chunk_length)
    counts, _ = read_sample(submitted, directory, models)
    records = list(read_records(DATA / name, Alphabet.NUCLEOTIDE))
    found = [
        (number, record.id, frame)
        for number, record in enumerate(records)
        for frame in find_frames(record.sequence, chunk_length)
    ]
    assert counts == {"records": len(records), "too_short": 0, "too_long": 0, "rows": len(found)}
    assert len(found) > 3
    texts = {"esm2": [frame.protein for *_, frame in found], "dnabert_s": [frame.nucleotides for *_, frame in found]}
    for model, model_texts in texts.items():
        sequences = DistinctSequences(directory, model)
        wanted, lengths = load_tokenizer(model, models[model])(model_texts)
        got = [sequences.tokens(number) for number in sequences.rows.tolist()]
        assert np.array_equal(np.concatenate(got), wanted)
        assert [len(sequence) for sequence in got] == lengths.tolist()
        assert len(sequences.digests) == len({sequence.tobytes() for sequence in got})
    wanted_vectors = finish(submitted, directory, models)
    assert os.listdir(directory) == ["embeddings.h5"]
    file = read_embeddings(directory / "embeddings.h5")
    assert file.ids == [f"{record}_chunk_{frame.chunk}{FRAMES[frame.frame]}" for _, record, frame in found]
    assert file.record.tolist() == [number for number, *_ in found]
    assert file.chunk.tolist() == [frame.chunk for *_, frame in found]
    assert file.frame.tolist() == [frame.frame for *_, frame in found]
    assert file.length.tolist() == [len(text) for text in texts["esm2"]]
    assert [row.tobytes() for row in file.sha256] == [hashlib.sha256(t.encode()).digest() for t in texts["esm2"]]
    assert file.records.ids == [record.id for record in records]
    assert file.records.length.tolist() == [len(record.sequence) for record in records]
    assert set(file.records.status) == {"ok"}
    assert file.matrices.keys() == wanted_vectors.keys()
    for model, vectors in wanted_vectors.items():
        assert np.array_equal(file.matrices[model], vectors)
        assert file.attributes["models"][model]["weights_sha256"] == submitted.models[model]
        assert file.attributes["models"][model]["synthetic"] is True


@pytest.mark.parametrize(
    ("name", "kind", "model"), [("phage_proteins.faa", "proteins", "esm2"), ("phage_heldout.fna", "dna", "dnabert_s")]
)
def test_a_record_is_a_row_where_the_kind_says_so(
    name: str, kind: str, model: str, models: dict[str, Path], directory: Path
) -> None:
    submitted = job(models, DATA / name, kind, dtype="float16")
    counts, _ = read_sample(submitted, directory, models)
    alphabet = Alphabet.PROTEIN if kind == "proteins" else Alphabet.NUCLEOTIDE
    records = list(read_records(DATA / name, alphabet))
    assert counts == {"records": len(records), "too_short": 0, "too_long": 0, "rows": len(records)}
    wanted = finish(submitted, directory, models)
    file = read_embeddings(directory / "embeddings.h5")
    assert file.ids == file.records.ids == [record.id for record in records]
    assert file.record.tolist() == list(range(len(records)))
    assert set(file.chunk.tolist()) == set(file.frame.tolist()) == {0}
    assert file.matrices.keys() == {model}
    assert np.array_equal(file.matrices[model], wanted[model].astype(np.float16))


@pytest.mark.parametrize(
    ("kind", "sequences", "statuses", "rows"),
    [
        ("contigs", ["", "A", "AC", "ACG", "TAA", "NNN"], ["too_short"] * 3 + ["ok"] * 3, [3, 3, 4]),
        ("proteins", ["", "*", "M", "M*", "MK"], ["too_short"] * 2 + ["ok"] * 3, [2, 3, 4]),
        ("dna", ["", "A", "A" * 100_000, "A" * 100_001], ["too_short", "ok", "ok", "too_long"], [1, 2]),
    ],
)
def test_a_record_that_cannot_be_used_has_a_status_and_no_row(
    kind: str, sequences: list[str], statuses: list[str], rows: list[int], models: dict[str, Path], directory: Path
) -> None:
    path = directory.parent / "s.fna"
    path.write_text("".join(f">r{number}\n{text}\n" for number, text in enumerate(sequences)))
    submitted = job(models, path, kind)
    counts, _ = read_sample(submitted, directory, models)
    assert (counts["records"], counts["rows"]) == (len(sequences), len(rows))
    assert [counts["too_short"], counts["too_long"]] == [statuses.count("too_short"), statuses.count("too_long")]
    finish(submitted, directory, models)
    file = read_embeddings(directory / "embeddings.h5")
    assert file.records.ids == [f"r{number}" for number in range(len(sequences))]
    assert file.records.status == statuses
    assert file.records.length.tolist() == [len(text) for text in sequences]
    assert file.record.tolist() == rows


def test_both_strands_of_a_codon_give_frames(models: dict[str, Path], directory: Path) -> None:
    """ACG is T, CGT read backwards is R; TAA is a stop, TTA read backwards is L; NNN has no amino acid."""
    path = directory.parent / "s.fna"
    path.write_text(">r3\nACG\n>r4\nTAA\n>r5\nNNN\n")
    read_sample(job(models, path, "contigs"), directory, models)
    sequences = DistinctSequences(directory, "esm2")
    letters = [VOCABULARY[sequences.tokens(number)[1]] for number in sequences.rows.tolist()]
    assert letters == ["T", "R", "L"]


def test_an_empty_file_is_a_sample_without_rows(models: dict[str, Path], directory: Path) -> None:
    path = directory.parent / "s.fna"
    path.touch()
    submitted = job(models, path, "contigs")
    counts, sha256 = read_sample(submitted, directory, models)
    assert counts == {"records": 0, "too_short": 0, "too_long": 0, "rows": 0}
    assert sha256 == hashlib.sha256().hexdigest()
    finish(submitted, directory, models)
    file = read_embeddings(directory / "embeddings.h5")
    assert (file.ids, file.records.ids) == ([], [])
    assert {model: matrix.shape for model, matrix in file.matrices.items()} == {
        model: (0, read_prepared(models[model]).width) for model in models
    }


def test_many_records_keep_their_order_across_blocks(models: dict[str, Path], directory: Path) -> None:
    count = 2 * BLOCK_ROWS + 17
    path = directory.parent / "s.faa"
    path.write_text("".join(f">p{number}\nM{'AC'[number % 2]}{'*' * (number % 3 == 0)}\n" for number in range(count)))
    submitted = job(models, path, "proteins")
    assert read_sample(submitted, directory, models).counts["rows"] == count
    assert len(DistinctSequences(directory, "esm2").digests) == 2
    wanted = finish(submitted, directory, models)
    file = read_embeddings(directory / "embeddings.h5")
    assert file.ids == [f"p{number}" for number in range(count)]
    assert np.array_equal(file.matrices["esm2"], wanted["esm2"])
    assert np.array_equal(file.matrices["esm2"][::2], np.tile(wanted["esm2"][0], (len(wanted["esm2"][::2]), 1)))


def test_a_file_that_was_changed_since_is_refused(models: dict[str, Path], directory: Path) -> None:
    path = directory.parent / "s.fna"
    path.write_text(">a\nACGT\n")
    submitted = job(models, path, "contigs")
    os.utime(path, ns=(1, submitted.mtime_ns + 1))
    with pytest.raises(InputError, match=r"s\.fna: was changed after the job was submitted; run again"):
        read_sample(submitted, directory, models)
    path.write_text(">a\nACGTA\n")
    os.utime(path, ns=(1, submitted.mtime_ns))
    with pytest.raises(InputError, match="was changed"):
        read_sample(submitted, directory, models)
    path.unlink()
    with pytest.raises(InputError, match=r"s\.fna: cannot be read: No such file"):
        read_sample(submitted, directory, models)


def test_a_broken_record_is_named_and_no_file_stays_open(models: dict[str, Path], directory: Path) -> None:
    path = directory.parent / "s.fna"
    path.write_text(">a\nACGT\n>b\nAC!GT\n")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InputError, match=r"s\.fna, line 4, record 'b'"):
        read_sample(job(models, path, "contigs"), directory, models)
    assert os.listdir("/proc/self/fd") == before


def test_a_sequence_that_was_given_up_takes_its_rows_and_no_others(models: dict[str, Path], directory: Path) -> None:
    path = directory.parent / "s.faa"
    path.write_text(">a\nMK\n>b\nMC\n>c\nMK\n>d\nMW\n")
    submitted = job(models, path, "proteins")
    read_sample(submitted, directory, models)
    sequences, description = DistinctSequences(directory, "esm2"), read_prepared(models["esm2"])
    kept = np.random.default_rng(1).normal(size=(2, description.width)).astype(np.float32)
    store = BlockStore(directory.parent / "blocks", description.width, "test")
    store.add(sequences.digests[1:], kept, uses=[1] * len(kept))
    given_up = finish_sample(
        submitted,
        directory,
        {"esm2": description},
        {"esm2": store.locate(sequences.digests)},
        {"esm2": {0: "the worker died"}},
        "fp32",
        SOFTWARE,
    )
    assert given_up == {"a": "esm2: the worker died", "c": "esm2: the worker died"}
    file = read_embeddings(directory / "embeddings.h5")
    assert file.ids == ["b", "d"]
    assert file.records.ids == ["a", "b", "c", "d"]
    assert file.records.status == ["failed", "ok", "failed", "ok"]
    assert np.array_equal(file.matrices["esm2"], kept)
