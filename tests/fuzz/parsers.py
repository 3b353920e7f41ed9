"""Every parser of a file that somebody else may have written, as a function of the file's content.

Each writes the content to a file of a directory of its own, beside what else the parser needs, and lets it be read and
used as the workflow would. A function returns the user's message, or nothing where the content was taken; any other
exception than a HoldfastError passes, and is a finding.
"""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml
from holdfast import cli
from holdfast.errors import HoldfastError
from holdfast.models.checkpoint import read_checkpoint
from holdfast.models.esm import VOCABULARY, letters_of
from holdfast.models.prepare import _copy_tokenizer
from holdfast.models.registry import KINDS, load_tokenizer, open_model, read_prepared
from holdfast.pool.settings import read_settings
from holdfast.report.results import read_results
from holdfast.report.summary import write_summary
from holdfast.results.classifier import load_classifier, load_published
from holdfast.results.contigs import read_contigs
from holdfast.results.decisions import DECISIONS, TIERS
from holdfast.results.embeddings import EmbeddingsFile, read_embeddings
from holdfast.run.config import check_config, check_files, check_fit, read_samples, write_samples
from holdfast.run.failures import failed_samples, write_failures
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records
from holdfast.sequences.frames import find_frames, frame_id
from holdfast.sequences.tokens import BytePairTokenizer, LetterTokenizer
from holdfast.spool.job import parse_manifest, read_receipt
from holdfast.spool.state import Observer, read_state, state_path

from tests.fuzz import seeds

Parser = Callable[[bytes], str]
ENDLESS = ("serve", "submit", "embed", "prepare", "train", "draw")
LONGEST_REFUSAL = 10_000
tokenize_proteins = LetterTokenizer(**asdict(letters_of(VOCABULARY)))


def try_nucleotides(path: Path) -> None:
    for record in read_records(path, Alphabet.NUCLEOTIDE):
        for frame in find_frames(record.sequence, 300):
            tokenize_proteins([frame.protein])


def try_proteins(path: Path) -> None:
    for record in read_records(path, Alphabet.PROTEIN):
        tokenize_proteins([record.sequence])


def try_manifest(path: Path) -> None:
    job = parse_manifest(path.read_bytes().decode("utf-8", "replace"), path.name)
    assert parse_manifest(job.dump(), "again") == job
    assert job.job
    os.path.exists(job.fasta)  # no NUL in it, which would be an error


def try_receipt(path: Path) -> None:
    outcome = read_receipt(path)
    assert outcome is not None
    outcome.write(path)
    assert read_receipt(path) == outcome


def try_settings(path: Path) -> None:
    read = read_settings(path)
    read.write(path)
    assert read_settings(path) == read


def try_config(path: Path) -> None:
    """As Snakemake does: JSON or YAML, whose own errors are Snakemake's to report."""
    text = path.read_bytes().decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError, TypeError):
            return
    if isinstance(content, dict):
        filled = check_config(content)
        listed = not isinstance(filled["samples"], str)
        check_fit(filled, read_samples(filled["samples"]) if listed else {})


def try_samples(path: Path) -> None:
    """As a run does; what it writes in place of a sheet gives the same samples."""
    samples = read_samples(path)
    check_files(str(path), samples)
    write_samples(samples.values(), path.with_name("written.tsv"))
    assert read_samples(path.with_name("written.tsv")) == samples


def try_command(path: Path) -> None:
    """A command line, a word a line, among a few files, in a directory that nothing leads out of.

    Commands that wait for others, or that fetch something, are left out.
    """
    words = path.read_bytes().replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n")
    if words[0] in ENDLESS or any(word.startswith("~") or "/" in word or ".." in word for word in words):
        return
    directory, before = path.with_name("work"), Path.cwd()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name in seeds.beside("command"):
        shutil.copyfile(path.with_name(name), directory / name)
    os.chdir(directory)
    said = [
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors) for errors in ("strict", "backslashreplace")
    ]
    code: object = 0
    try:
        with contextlib.redirect_stdout(said[0]), contextlib.redirect_stderr(said[1]):
            cli.main(words)
            said[0].flush()
    except SystemExit as ended:
        code = ended.code
    finally:
        os.chdir(before)
    said[1].flush()
    text = said[1].buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert code in (0, 1, 2)
    if code:
        assert text
        raise HoldfastError(text[-LONGEST_REFUSAL:])


def try_state(path: Path) -> None:
    """A state that cannot be read is none."""
    state = read_state(path)
    if state is None:
        raise HoldfastError(f"{path}: no state")
    state.trouble(Observer())
    assert state_path("/spool", state.identity.pool).parent == Path("/spool/pools")


def try_calls(path: Path) -> None:
    for call in read_contigs(path):
        assert call.decision in DECISIONS
        assert (call.tier in TIERS) == (call.score is not None) == (call.decision != "not called")
        assert all(share is None or 0 <= share <= 1 for share in (call.score, call.p_virus, call.fdr))


def try_embeddings(path: Path) -> None:
    with EmbeddingsFile(path) as reader:
        list(reader.record_blocks())
        of_rows = [name for name, known in reader.matrices.items() if known["pooling"] != "residues"]
        for rows in reader.blocks(of_rows):
            for name, chunk, frame in zip(rows.ids, rows.chunk.tolist(), rows.frame.tolist(), strict=True):
                name.removesuffix(frame_id("", chunk, frame))
    read_embeddings(path)


def try_classifier(path: Path) -> None:
    network = (load_published if path.suffix == ".pth" else load_classifier)(path)
    assert np.isfinite(network.predict(np.zeros((2, network.feature_width), np.float32))).all()


def try_source(path: Path) -> None:
    dict(read_checkpoint(path, None).own_tensors())


def try_source_directory(path: Path) -> None:
    dict(read_checkpoint(path.parent, None).own_tensors())


def try_prepared(path: Path) -> None:
    """What everybody but an encoder makes of a model."""
    prepared = read_prepared(path.parent)
    for kind in KINDS:
        prepared.fits(kind)
    if prepared.letters is not None:
        tokens, lengths = load_tokenizer(prepared, path.parent)(["MKV", ""])
        assert len(tokens) == lengths.sum()


def try_prepared_weights(path: Path) -> None:
    open_model(path.parent, "cpu", "fp32")


def try_tokenizer(path: Path) -> None:
    BytePairTokenizer(path)(["ACGTNACGT", ""])


def try_published_tokenizer(path: Path) -> None:
    _copy_tokenizer(path, 64, path.with_name("copied.json"))
    BytePairTokenizer(path.with_name("copied.json"))(["ACGTNACGT"])


def try_for_summary(path: Path) -> None:
    results, table = path.parent.parent, path.with_name("summary.tsv")
    sheet, failures = path.with_name("samples.tsv"), path.with_name("failures.tsv")
    write_failures(read_samples(sheet), results, failures)
    write_summary(read_results(sheet, results, failures, path, trained=False), table)
    header, row = table.read_text().splitlines()
    assert header.count("\t") == row.count("\t")
    for reason in failed_samples(failures).values():  # a receipt that is none is its sample's failure
        raise HoldfastError(reason)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "fasta": ("a.fna", try_nucleotides),
    "fastq": ("a.fastq", try_nucleotides),
    "proteins": ("a.faa", try_proteins),
    "command": ("words.txt", try_command),
    "manifest": ("job.json", try_manifest),
    "receipt": ("receipt.json", try_receipt),
    "settings": ("pool.yaml", try_settings),
    "config": ("config.yaml", try_config),
    "samples": ("samples.tsv", try_samples),
    "prepared": ("model.json", try_prepared),
    "tokenizer": ("tokenizer.json", try_tokenizer),
    "published_tokenizer": ("tokenizer.json", try_published_tokenizer),
    "summary": ("receipt.json", try_for_summary),
    "state": ("pool.json", try_state),
    "contigs": ("contigs.tsv", try_calls),
    "embeddings": ("embeddings.h5", try_embeddings),
    "pth": ("classifier.pth", try_classifier),
    "classifier": ("classifier.safetensors", try_classifier),
    "fair_esm": ("esm2.pt", try_source),
    "pytorch_bin": ("pytorch_model.bin", try_source_directory),
    "safetensors": ("model.safetensors", try_source_directory),
    "hugging_face_config": ("config.json", try_source_directory),
    "esmc_config": ("config.json", try_source_directory),
    "t5_config": ("config.json", try_source_directory),
    "vocabulary": ("spiece.model", try_source_directory),
    "added_tokens": ("added_tokens.json", try_source_directory),
    "weights_index": ("model.safetensors.index.json", try_source_directory),
    "prepared_weights": ("model.safetensors", try_prepared_weights),
}


def parsers(directory: Path) -> dict[str, Parser]:
    """The parsers by name, each with a directory of its own below ``directory``."""
    return {name: _parser(name, directory / name) for name in READERS}


def _parser(name: str, directory: Path) -> Parser:
    file_name, read = READERS[name]
    directory.mkdir(parents=True)
    for beside, content in seeds.beside(name).items():
        (directory / beside).write_bytes(content)
    path = directory / file_name

    def parse(content: bytes) -> str:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        try:
            read(path)
        except HoldfastError as error:
            return str(error)
        return ""

    return parse
