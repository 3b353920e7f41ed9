"""A sample's way from file to rows and tokens, and from vectors to embeddings, on pieces of real genomes."""

import csv
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from holdfast.errors import InputError, ResourceError
from holdfast.models.esm import VOCABULARY
from holdfast.models.registry import Output, Prepared, load_tokenizer, read_prepared
from holdfast.pool.blocks import BlockStore, write_block
from holdfast.pool.distinct import DistinctSequences
from holdfast.pool.fates import Fate, judge
from holdfast.pool.finish import RECORD_COLUMNS, finish_sample
from holdfast.pool.part import BLOCK_ROWS
from holdfast.pool.sample import Contents, read_sample
from holdfast.results.embeddings import RECORD_STATUSES, Embeddings, read_embeddings
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records
from holdfast.sequences.frames import FRAMES, find_frames
from holdfast.spool.job import Manifest, Request, make_manifest, make_request
from holdfast.spool.spool import Spool

DATA = Path(__file__).parents[2] / "demo/data"
SOFTWARE = {"holdfast": "test"}
DEFAULTS: dict[str, Any] = {"layers": ["last"], "pooling": ["mean"], "long": None, "max_length": None}
MATRICES = {"esm2": "esm2/6/mean", "dnabert_s": "dnabert_s/2/mean"}

Models = dict[str, tuple[Prepared, Path]]


def job(
    models: dict[str, Path],
    path: Path,
    kind: str,
    chunk_length: int = 500,
    dtype: str = "float32",
    **options: dict[str, Any],
) -> Manifest:
    """A job for the models that embed this kind; ``options`` by model."""
    known = {model: read_prepared(directory) for model, directory in models.items()}
    requests = {
        model: make_request(model, prepared, DEFAULTS | options.get(model, {}))
        for model, prepared in known.items()
        if prepared.fits(kind)
    }
    return make_manifest("s", kind, str(path), chunk_length, 1, requests, "fp32", dtype)


def asked_for(submitted: Manifest, models: dict[str, Path]) -> Models:
    """The prepared models of a job, as the supervisor finds them."""
    return {model: (read_prepared(models[model]), models[model]) for model in submitted.models}


def read(submitted: Manifest, directory: Path, models: dict[str, Path]) -> Contents:
    """Read a sample; the statuses of its records add up to their number."""
    found = read_sample(submitted, directory, asked_for(submitted, models), "fp32")
    assert sum(found.counts[status] for status in RECORD_STATUSES) == found.counts["records"]
    return found


def counted(found: Contents) -> dict[str, int]:
    """The counts that are not zero, but for letters."""
    return {name: count for name, count in found.counts.items() if count and name != "letters"}


def finish(
    submitted: Manifest,
    directory: Path,
    models: dict[str, Path],
    failures: dict[str, dict[int, tuple[str, str]]] | None = None,
) -> dict[str, Any]:
    """Complete a sample with random values for every distinct sequence that is not given up.

    Returns:
        By matrix what its rows should be: an array, or of residues a list of arrays.
    """
    failures = failures or {}
    known = {model: read_prepared(models[model]) for model in submitted.models}
    dtype = submitted.store_dtype
    wanted: dict[str, Any] = {}
    places = {}
    kept = np.ones(len(DistinctSequences(directory, next(iter(known))).rows), bool)
    for model, lost in failures.items():
        kept &= ~np.isin(DistinctSequences(directory, model).rows, list(lost))
    for model, prepared in known.items():
        sequences = DistinctSequences(directory, model)
        random = np.random.default_rng(1)
        counts = sequences.lengths.astype(np.int64) - prepared.around
        rows = np.asarray(sequences.rows)[kept]
        made: dict[str, list[np.ndarray]] = {}
        for output in submitted.models[model].outputs:
            is_residues = output.pooling == "residues"
            sizes = counts.tolist() if is_residues else [1] * len(counts)
            made[output.name] = [
                random.normal(size=(size, prepared.width)).astype(dtype if is_residues else "float32") for size in sizes
            ]
            values = [made[output.name][row].astype(dtype) for row in rows]
            empty = np.empty((0, prepared.width), dtype)
            wanted[f"{model}/{output.name}"] = values if is_residues else np.concatenate([empty, *values])
        store = BlockStore(directory.parent / f"blocks-{model}", "test")
        chosen = [number for number in range(len(counts)) if number not in failures.get(model, {})]
        for start in range(0, len(chosen), 50):
            part = chosen[start : start + 50]
            digests = [sequences.digests[number] for number in part]
            arrays = {name: np.concatenate([values[number] for number in part]) for name, values in made.items()}
            path = store.new_path()
            write_block(path, b"".join(digests), counts[part], arrays)
            store.add(path, digests, uses=[1] * len(part))
        places[model] = store.locate(sequences.digests)
    given_up, found, origins = finish_sample(submitted, directory, known, places, failures, "fp32", SOFTWARE)
    assert len(given_up) == int((~kept).sum())
    file = read_embeddings(directory / "embeddings.h5")
    assert file.matrices.keys() | file.residues.keys() == wanted.keys()
    for name, values in wanted.items():
        if name in file.residues:
            assert [part.dtype for part in file.residues[name]] == [np.dtype(dtype)] * len(values)
            assert len(file.residues[name]) == len(values)
            assert all(map(np.array_equal, file.residues[name], values))
        else:
            assert file.matrices[name].dtype == dtype
            assert np.array_equal(file.matrices[name], values)
    assert found == {"cached": 0} | {status: file.records.status.count(status) for status in RECORD_STATUSES}
    assert origins == []
    check_records(directory, file)
    return wanted


def record_rows(directory: Path) -> list[dict[str, str]]:
    """The lines of ``records.tsv``."""
    with open(directory / "records.tsv", newline="") as table:
        reader = csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = list(reader)
    assert reader.fieldnames == list(RECORD_COLUMNS)
    return rows


def check_records(directory: Path, file: Embeddings) -> None:
    """``records.tsv`` says of every record what the embeddings file says, and why where not all is well."""
    rows = record_rows(directory)
    assert [row["record"] for row in rows] == file.records.ids
    assert [int(row["length"]) for row in rows] == file.records.length.tolist()
    assert [int(row["residues_used"]) for row in rows] == file.records.residues_used.tolist()
    assert [row["status"] for row in rows] == file.records.status
    assert [bool(row["reason"]) for row in rows] == [row["status"] != "ok" for row in rows]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return Spool(tmp_path / "spool").work_directory("pool", "job")


@pytest.mark.parametrize(
    ("name", "chunk_length"), [("phage_heldout.fna", 500), ("bacterium_train.fna.gz", 300), ("mixture.fastq", 500)]
)
def test_contigs_become_chunks_frames_and_tokens(
    name: str, chunk_length: int, models: dict[str, Path], directory: Path
) -> None:
    submitted = job(models, DATA / name, "contigs", chunk_length)
    found_here = read(submitted, directory, models)
    records = list(read_records(DATA / name, Alphabet.NUCLEOTIDE))
    found = [
        (number, record.id, frame)
        for number, record in enumerate(records)
        for frame in find_frames(record.sequence, chunk_length)
    ]
    with_frames = {number for number, *_ in found}
    without = {"no_stop_free_frame": len(records) - len(with_frames)} if len(with_frames) < len(records) else {}
    assert counted(found_here) == {"records": len(records), "rows": len(found), "ok": len(with_frames), **without}
    assert found_here.warnings == []
    assert len(found) > 3
    texts = {"esm2": [frame.protein for *_, frame in found], "dnabert_s": [frame.nucleotides for *_, frame in found]}
    for model, model_texts in texts.items():
        sequences = DistinctSequences(directory, model)
        wanted, lengths = load_tokenizer(read_prepared(models[model]), models[model])(model_texts)
        got = [sequences.tokens(number) for number in sequences.rows.tolist()]
        assert np.array_equal(np.concatenate(got), wanted)
        assert [len(sequence) for sequence in got] == lengths.tolist()
        assert len(sequences.digests) == len({sequence.tobytes() for sequence in got})
    finish(submitted, directory, models)
    file = read_embeddings(directory / "embeddings.h5")
    assert file.ids == [f"{record}_chunk_{frame.chunk}{FRAMES[frame.frame]}" for _, record, frame in found]
    assert file.record.tolist() == [number for number, *_ in found]
    assert file.chunk.tolist() == [frame.chunk for *_, frame in found]
    assert file.frame.tolist() == [frame.frame for *_, frame in found]
    assert file.length.tolist() == [len(text) for text in texts["esm2"]]
    assert [row.tobytes() for row in file.sha256] == [hashlib.sha256(t.encode()).digest() for t in texts["esm2"]]
    assert file.records.ids == [record.id for record in records]
    assert file.records.length.tolist() == [len(record.sequence) for record in records]
    assert {number for number, status in enumerate(file.records.status) if status == "ok"} == with_frames
    assert file.matrices.keys() == set(MATRICES.values())
    for model, name in MATRICES.items():
        attributes = file.attributes["matrices"][name]
        assert attributes["weights_sha256"] == submitted.models[model].weights_sha256
        assert (attributes["synthetic"], attributes["pooling"]) == (True, "mean")


@pytest.mark.parametrize(
    ("name", "kind", "model"), [("phage_proteins.faa", "proteins", "esm2"), ("phage_heldout.fna", "dna", "dnabert_s")]
)
def test_a_record_is_a_row_where_the_kind_says_so(
    name: str, kind: str, model: str, models: dict[str, Path], directory: Path
) -> None:
    submitted = job(models, DATA / name, kind, dtype="float16")
    found = read(submitted, directory, models)
    alphabet = Alphabet.PROTEIN if kind == "proteins" else Alphabet.NUCLEOTIDE
    records = list(read_records(DATA / name, alphabet))
    assert counted(found) == {"records": len(records), "rows": len(records), "ok": len(records)}
    finish(submitted, directory, models)
    file = read_embeddings(directory / "embeddings.h5")
    assert file.ids == file.records.ids == [record.id for record in records]
    assert file.record.tolist() == list(range(len(records)))
    assert set(file.chunk.tolist()) == set(file.frame.tolist()) == {0}
    assert file.matrices.keys() == {MATRICES[model]}


@pytest.mark.parametrize(
    ("kind", "sequences", "statuses", "rows"),
    [
        (
            "contigs",
            ["", "A", "AC", "ACG", "TAA", "NNN"],
            ["too_short"] * 3 + ["ok"] * 2 + ["no_stop_free_frame"],
            [3, 3, 4],
        ),
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
    counts = read(submitted, directory, models).counts
    assert (counts["records"], counts["rows"]) == (len(sequences), len(rows))
    assert counts["letters"] == sum(len(sequence.rstrip("*")) for sequence in sequences)
    assert {status: counts[status] for status in RECORD_STATUSES if counts[status]} == {
        status: statuses.count(status) for status in statuses
    }
    finish(submitted, directory, models)
    file = read_embeddings(directory / "embeddings.h5")
    assert file.records.ids == [f"r{number}" for number in range(len(sequences))]
    assert file.records.status == statuses
    lengths = [len(text.rstrip("*")) for text in sequences]
    assert file.records.length.tolist() == lengths
    used = [length if status == "ok" else 0 for length, status in zip(lengths, statuses, strict=True)]
    assert file.records.residues_used.tolist() == used
    assert file.record.tolist() == rows


def test_both_strands_of_a_codon_give_frames(models: dict[str, Path], directory: Path) -> None:
    """ACG is T, CGT read backwards is R; TAA is a stop, TTA read backwards is L; NNN has no amino acid."""
    path = directory.parent / "s.fna"
    path.write_text(">r3\nACG\n>r4\nTAA\n>r5\nNNN\n")
    read(job(models, path, "contigs"), directory, models)
    sequences = DistinctSequences(directory, "esm2")
    letters = [VOCABULARY[sequences.tokens(number)[1]] for number in sequences.rows.tolist()]
    assert letters == ["T", "R", "L"]


def test_an_empty_file_is_a_sample_without_rows(models: dict[str, Path], directory: Path) -> None:
    path = directory.parent / "s.fna"
    path.touch()
    submitted = job(models, path, "contigs")
    found = read(submitted, directory, models)
    assert counted(found) == {}
    assert (found.sha256, found.warnings) == (hashlib.sha256().hexdigest(), [])
    finish(submitted, directory, models)
    file = read_embeddings(directory / "embeddings.h5")
    assert (file.ids, file.records.ids) == ([], [])
    assert {name: matrix.shape for name, matrix in file.matrices.items()} == {
        MATRICES[model]: (0, read_prepared(models[model]).width) for model in models
    }


def test_many_records_keep_their_order_across_blocks(models: dict[str, Path], directory: Path) -> None:
    count = 2 * BLOCK_ROWS + 17
    path = directory.parent / "s.faa"
    path.write_text("".join(f">p{number}\nM{'AC'[number % 2]}{'*' * (number % 3 == 0)}\n" for number in range(count)))
    submitted = job(models, path, "proteins")
    assert read(submitted, directory, models).counts["rows"] == count
    assert len(DistinctSequences(directory, "esm2").digests) == 2
    wanted = finish(submitted, directory, models)[MATRICES["esm2"]]
    file = read_embeddings(directory / "embeddings.h5")
    assert file.ids == [f"p{number}" for number in range(count)]
    assert np.array_equal(file.matrices[MATRICES["esm2"]][::2], np.tile(wanted[0], (len(wanted[::2]), 1)))


def test_a_file_that_was_changed_since_is_refused(models: dict[str, Path], directory: Path) -> None:
    path = directory.parent / "s.fna"
    path.write_text(">a\nACGT\n")
    submitted = job(models, path, "contigs")
    before = path.stat().st_mtime_ns
    path.write_text(">a\nACGA\n")
    os.utime(path, ns=(before, before))
    with pytest.raises(InputError, match=r"s\.fna: was changed after the job was submitted; run again"):
        read(submitted, directory, models)
    path.unlink()
    with pytest.raises(InputError, match=r"s\.fna: cannot be read: No such file"):
        read(submitted, directory, models)


def test_a_broken_record_is_named_and_no_file_stays_open(models: dict[str, Path], directory: Path) -> None:
    path = directory.parent / "s.fna"
    path.write_text(">a\nACGT\n>a\nACGT\n")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InputError, match=r"s\.fna, line 3, record 'a'"):
        read(job(models, path, "contigs"), directory, models)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("status", "reason"), [("failed", "the worker died"), ("too_long", "no memory for its 4 tokens, even alone")]
)
def test_a_sequence_that_was_given_up_takes_its_rows_and_no_others(
    models: dict[str, Path], directory: Path, status: str, reason: str
) -> None:
    path = directory.parent / "s.faa"
    path.write_text(">a\nMK\n>b\nMC\n>c\nMK\n>d\nMW\n>e\n*\n")
    submitted = job(models, path, "proteins", esm2={"layers": [0, 6], "pooling": ["mean", "residues"]})
    read(submitted, directory, models)
    finish(submitted, directory, models, {"esm2": {0: (status, reason)}})
    file = read_embeddings(directory / "embeddings.h5")
    assert file.ids == ["b", "d"]
    assert file.records.ids == ["a", "b", "c", "d", "e"]
    assert file.records.status == [status, "ok", status, "ok", "too_short"]
    assert file.records.residues_used.tolist() == [0, 2, 0, 2, 0]
    assert [row["reason"] for row in record_rows(directory)] == [
        *(f"esm2: {reason}", "", f"esm2: {reason}", "", "0 letters")
    ]


def test_the_receipt_names_the_rows_that_were_given_up(models: dict[str, Path], directory: Path) -> None:
    path = directory.parent / "s.faa"
    path.write_text(">a\nMK\n>b\nMC\n>c\nMK\n")
    submitted = job(models, path, "proteins")
    read(submitted, directory, models)
    sequences, prepared = DistinctSequences(directory, "esm2"), read_prepared(models["esm2"])
    store = BlockStore(directory.parent / "blocks", "test")
    block = store.new_path()
    write_block(block, sequences.digests[1], np.array([2]), {"6/mean": np.ones((1, prepared.width), np.float32)})
    store.add(block, sequences.digests[1:], uses=[1])
    places = {"esm2": store.locate(sequences.digests)}
    failures = {"esm2": {0: ("failed", "the worker died")}}
    given_up, statuses, _ = finish_sample(submitted, directory, {"esm2": prepared}, places, failures, "fp32", SOFTWARE)
    assert given_up == {"a": "esm2: the worker died", "c": "esm2: the worker died"}
    assert {status: count for status, count in statuses.items() if count} == {"failed": 2, "ok": 1}


def test_every_output_of_every_model_is_written(models: dict[str, Path], directory: Path) -> None:
    """Two models of letters, and rows that repeat, so that residues are gathered from blocks in another order."""
    path = directory.parent / "s.faa"
    texts = ["MKV", "M", "WWWWW*", "MKV", "M", "CAC"]
    path.write_text("".join(f">p{number}\n{text}\n" for number, text in enumerate(texts)))
    asked = {"layers": [0, 3, "last"], "pooling": ["mean", "max", "cls", "residues"]}
    both = {"esm2": models["esm2"], "again": models["esm2"]}
    submitted = job(both, path, "proteins", dtype="float16", esm2=asked, again={"pooling": ["residues"]})
    read(submitted, directory, both)
    assert len(finish(submitted, directory, both)) == 3 * 4 + 1
    file = read_embeddings(directory / "embeddings.h5")
    assert [len(part) for part in file.residues["esm2/3/residues"]] == [3, 1, 5, 3, 1, 3]
    for name, attributes in file.attributes["matrices"].items():
        assert name.split("/")[1:] == [str(attributes["layer"]), attributes["pooling"]]


REFUSE = Request("a" * 64, [Output(1, "mean")], "refuse", 10)
TRUNCATE = Request("b" * 64, [Output(1, "mean")], "truncate", 8)
WINDOW = Request("c" * 64, [Output(1, "mean")], "window", 6)
WHOLE = Request("d" * 64, [Output(1, "mean")], "whole", 0)


@pytest.mark.parametrize(
    ("kind", "asked", "length", "fate"),
    [
        ("proteins", {"m": WHOLE}, 0, Fate("too_short", 0, "0 letters")),
        ("proteins", {"m": WHOLE}, 1, Fate("ok", 1, "")),
        ("proteins", {"m": WHOLE}, 10**9, Fate("ok", 10**9, "")),
        ("dna", {"m": WHOLE}, 0, Fate("too_short", 0, "0 letters")),
        ("contigs", {"m": WHOLE}, 2, Fate("too_short", 0, "2 letters")),
        ("contigs", {"m": WHOLE}, 3, Fate("ok", 3, "")),
        ("contigs", {"m": REFUSE, "n": TRUNCATE}, 5000, Fate("ok", 5000, "")),  # whose frames are short
        ("proteins", {"m": REFUSE}, 10, Fate("ok", 10, "")),
        ("proteins", {"m": REFUSE}, 11, Fate("too_long", 0, "m takes 10 at most (long: refuse)")),
        ("dna", {"m": TRUNCATE}, 8, Fate("ok", 8, "")),
        ("dna", {"m": TRUNCATE}, 9, Fate("truncated", 8, "m saw the first 8 (long: truncate)")),
        ("proteins", {"m": WINDOW}, 6, Fate("ok", 6, "")),
        ("proteins", {"m": WINDOW}, 7, Fate("windowed", 7, "m saw overlapping windows of 6 (long: window)")),
        (
            "proteins",
            {"m": WHOLE, "n": WINDOW},
            7,
            Fate("windowed", 7, "n saw overlapping windows of 6 (long: window)"),
        ),
        (
            "proteins",
            {"m": WINDOW, "n": TRUNCATE, "o": Request("e" * 64, TRUNCATE.outputs, "truncate", 9)},
            10,
            Fate("truncated", 8, "n saw the first 8 (long: truncate); o saw the first 9 (long: truncate)"),
        ),
        (
            "proteins",
            {"m": WINDOW, "n": TRUNCATE, "o": REFUSE},
            10,
            Fate("truncated", 8, "n saw the first 8 (long: truncate)"),
        ),
        (
            "proteins",
            {"m": WINDOW, "n": TRUNCATE, "o": REFUSE},
            11,
            Fate("too_long", 0, "o takes 10 at most (long: refuse)"),
        ),
    ],
)
def test_what_becomes_of_a_record_depends_on_its_length_and_what_is_asked(
    kind: str, asked: dict[str, Request], length: int, fate: Fate
) -> None:
    assert judge(make_manifest("s", kind, "/none", 500, 1, asked, "fp32", "float32"), length) == fate


@pytest.mark.parametrize(
    ("options", "statuses", "seen"),
    [
        (
            {"long": "truncate", "max_length": 4},
            ["ok", "ok", "truncated", "truncated"],
            ["MKV", "MKVW", "MKVW", "MKVW"],
        ),
        ({"long": "window", "max_length": 4}, ["ok", "ok", "windowed", "windowed"], ["MKV", "MKVW", "MKVWC", "MKVWCC"]),
        ({"long": "refuse", "max_length": 4}, ["ok", "ok", "too_long", "too_long"], ["MKV", "MKVW"]),
        ({}, ["ok"] * 4, ["MKV", "MKVW", "MKVWC", "MKVWCC"]),
    ],
)
def test_long_proteins_are_embedded_as_asked_and_said_to_be(
    models: dict[str, Path], directory: Path, options: dict[str, Any], statuses: list[str], seen: list[str]
) -> None:
    path = directory.parent / "s.faa"
    path.write_text(">a\nMKV\n>b\nMKVW**\n>c\nMKVWC\n>d\nMKVWCC\n")
    submitted = job(models, path, "proteins", esm2=options)
    counts, _, warnings, fetched, _ = read(submitted, directory, models)
    assert fetched == {}
    assert {status: counts[status] for status in set(statuses)} == {
        status: statuses.count(status) for status in set(statuses)
    }
    unusual = [f"2 {status}" for status in set(statuses) - {"ok"}]
    said = "not all records were embedded as they are ({}); the table of records says which"
    assert warnings == [said.format(count) for count in unusual]
    tokens = DistinctSequences(directory, "esm2")
    letters = ["".join(VOCABULARY[number] for number in tokens.tokens(row)[1:-1]) for row in tokens.rows.tolist()]
    assert letters == seen
    finish(submitted, directory, models)
    file = read_embeddings(directory / "embeddings.h5")
    assert file.records.length.tolist() == [3, 4, 5, 6]
    assert file.records.status == statuses
    assert file.length.tolist() == [len(text) for text in seen]
    assert [row.tobytes() for row in file.sha256] == [hashlib.sha256(text.encode()).digest() for text in seen]
    used = {"too_long": 0, "truncated": 4}
    assert file.records.residues_used.tolist() == [
        used.get(status, length) for status, length in zip(statuses, (3, 4, 5, 6), strict=True)
    ]


def test_a_stop_at_the_end_is_no_residue_and_one_inside_is(models: dict[str, Path], directory: Path) -> None:
    path = directory.parent / "s.faa"
    path.write_text(">a\nMKV\n>b\nMKV*\n>c\nMKV***\n>d\nM*KV*\n>e\n***\n")
    submitted = job(models, path, "proteins")
    assert counted(read(submitted, directory, models)) == {"records": 5, "rows": 4, "ok": 4, "too_short": 1}
    assert DistinctSequences(directory, "esm2").rows.tolist() == [0, 0, 0, 1]
    finish(submitted, directory, models)
    file = read_embeddings(directory / "embeddings.h5")
    assert file.records.length.tolist() == [3, 3, 3, 4, 0]
    assert file.length.tolist() == [3, 3, 3, 4]
    digests = [hashlib.sha256(text).digest() for text in (b"MKV", b"MKV", b"MKV", b"M*KV")]
    assert [row.tobytes() for row in file.sha256] == digests


@pytest.mark.parametrize(
    ("kind", "text", "warned"),
    [
        ("proteins", ">a\nACGTACGTAA\n>b\nGGGTTTNNNU\n", "100% of its letters are A, C, G, T, U or N"),
        ("proteins", ">a\nacgtacgtaa\n>b\nACGTACGTAR\n", "95% of its letters are A, C, G, T, U or N"),
        ("proteins", ">a\nACGTACGTAA\n>b\nACGTACGTRR\n", ""),
        ("proteins", ">a\nMKVLAAGIT\n", ""),
        ("dna", ">a\nACGTACGTAA\n", ""),
        ("contigs", ">a\nACGTACGTAA\n", ""),
    ],
)
def test_proteins_that_look_like_nucleotides_are_questioned(
    models: dict[str, Path], directory: Path, kind: str, text: str, warned: str
) -> None:
    path = directory.parent / "s.fa"
    path.write_text(text)
    found = read(job(models, path, kind), directory, models).warnings
    question = ": are these really proteins? for nucleotides set kind to dna or contigs"
    assert found == ([warned + question] if warned else [])


def test_the_demo_has_no_doubtful_sample(models: dict[str, Path], directory: Path) -> None:
    assert read(job(models, DATA / "phage_proteins.faa", "proteins"), directory, models).warnings == []


def test_what_a_model_cannot_do_is_refused_whoever_asks(models: dict[str, Path], directory: Path) -> None:
    """A client that knows the models never asks for it; a manifest can come from anybody."""
    path = directory.parent / "s.faa"
    path.write_text(">a\nACGT\n")
    weights = {model: read_prepared(place).weights_sha256 for model, place in models.items()}
    beyond = Request(weights["esm2"], [Output(7, "mean")], "whole", 0)
    short = Request(weights["esm2"], [Output(6, "mean")], "truncate", 100)
    foreign = Request(weights["dnabert_s"], [Output(2, "mean")], "whole", 0)
    for kind, asked, message in (
        ("proteins", {"esm2": beyond}, "asks for a layer beyond those of esm2, 6"),
        ("proteins", {"dnabert_s": foreign}, "is of kind proteins, which dnabert_s does not embed"),
        ("dna", {"esm2": short}, "is of kind dna, which esm2 does not embed"),
        ("contigs", {"esm2": short}, "chunk_length 500 gives frames of up to 166 letters, more than esm2 takes, 100"),
    ):
        submitted = make_manifest("s", kind, str(path), 500, 1, asked, "fp32", "float32")
        with pytest.raises(InputError, match=rf"s\.faa: {message}"):
            read(submitted, directory, models)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    tried = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", place], capture_output=True, text=True
    )
    if tried.returncode:
        pytest.skip(f"needs root to mount a file system: {tried.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_residues_for_which_the_disk_has_no_room_are_refused_before_they_are_computed(
    models: dict[str, Path], small_disk: Path, tmp_path: Path
) -> None:
    """Ten equal proteins of a thousand residues: each in the file, and all once in a block."""
    path = tmp_path / "s.faa"
    path.write_text("".join(f">p{number}\n{'MKVWACDEFG' * 100}\n" for number in range(10)))
    place = Spool(small_disk).work_directory("pool", "job")
    needed = 320 * 4 * 1002 * (10 + 1)
    submitted = job(models, path, "proteins", esm2={"pooling": ["mean", "residues"]})
    with pytest.raises(ResourceError) as caught:
        read(submitted, place, models)
    assert str(caught.value).startswith(f"{path}: its residues need {needed / 1e9:.1f} GB in {small_disk}, of which ")
    half = job(models, path, "proteins", dtype="float16", esm2={"pooling": ["residues"]})
    assert needed / 2 < 8 * 2**20 < needed
    assert read(half, place, models).counts["rows"] == 10
    means = job(models, path, "proteins", esm2={"layers": list(range(7))})
    assert read(means, place, models).counts["rows"] == 10


def test_reasons_of_bad_letters_are_those_of_their_records(models: dict[str, Path], directory: Path) -> None:
    """Also where other records are given up, and next to a record that is too short."""
    path = directory.parent / "s.faa"
    path.write_text(">a\nMKV\n>b\nM1V\n>c\n*\n>d\nMKL\n>e\nMKV*?\n")
    submitted = job(models, path, "proteins")
    contents = read(submitted, directory, models)
    assert (contents.counts["records"], contents.counts["rows"], contents.counts["bad_letters"]) == (5, 2, 2)
    assert "2 bad_letters" in contents.warnings[0]
    finish(submitted, directory, models, {"esm2": {1: ("failed", "lost")}})
    rows = [line.split("\t") for line in (directory / "records.tsv").read_text().splitlines()[1:]]
    assert rows == [
        ["a", "3", "3", "ok", ""],
        ["b", "3", "0", "bad_letters", "'1' in column 2 of line 4 is no IUPAC protein letter"],
        ["c", "0", "0", "too_short", "0 letters"],
        ["d", "3", "0", "failed", "esm2: lost"],
        ["e", "5", "0", "bad_letters", "'?' in column 5 of line 10 is no IUPAC protein letter"],
    ]
