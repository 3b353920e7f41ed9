"""Every parser of a file that somebody else may have written, as a function of the file's content.

Each writes the content to a file of a directory of its own, beside what else the parser needs, and lets it be read and
used as the workflow would. A function returns the user's message, or nothing where the content was taken; any other
exception than a HoldfastError passes, and is a finding.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from holdfast.errors import HoldfastError
from holdfast.models.checkpoint import read_checkpoint
from holdfast.models.prepare import _copy_tokenizer
from holdfast.models.registry import open_model, read_prepared
from holdfast.pool import settings
from holdfast.report.tally import write_summary
from holdfast.results import classifier, embeddings
from holdfast.results.calls import CONTIG_STATUSES, read_contigs
from holdfast.results.embeddings import EmbeddingsFile
from holdfast.run import config as configuration
from holdfast.run.config import check_config, check_files, check_fit
from holdfast.sequences import Alphabet, fasta
from holdfast.sequences.frames import find_frames, frame_id
from holdfast.sequences.tokens import NucleotideTokenizer, tokenize_proteins
from holdfast.spool import job as receipt
from holdfast.spool import state as status
from holdfast.spool.job import parse_manifest
from holdfast.spool.state import Observer, state_path

from tests.fuzz import seeds

SCHEMAS = Path(fasta.__file__).parents[2] / "schemas"
Parser = Callable[[bytes], str]


def read_nucleotides(path: Path) -> None:
    for record in fasta.read_records(path, Alphabet.NUCLEOTIDE):
        for frame in find_frames(record.sequence, 300):
            tokenize_proteins([frame.protein])


def read_proteins(path: Path) -> None:
    for record in fasta.read_records(path, Alphabet.PROTEIN):
        tokenize_proteins([record.sequence])


def read_manifest(path: Path) -> None:
    job = parse_manifest(path.read_bytes().decode("utf-8", "replace"), path.name)
    assert parse_manifest(job.dump(), "again") == job
    assert job.job
    os.path.exists(job.fasta)  # no NUL in it, which would be an error


def read_receipt(path: Path) -> None:
    outcome = receipt.read_receipt(path)
    assert outcome is not None
    outcome.write(path)
    assert receipt.read_receipt(path) == outcome


def read_settings(path: Path) -> None:
    read = settings.read_settings(path)
    read.write(path)
    assert settings.read_settings(path) == read


def read_config(path: Path) -> None:
    """As Snakemake does: JSON or YAML, whose own errors are Snakemake's to tell."""
    text = path.read_bytes().decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError, TypeError):
            return
    if isinstance(content, dict):
        filled = check_config(content, SCHEMAS / "config.schema.yaml")
        check_fit(filled, {})


def read_samples(path: Path) -> None:
    samples = configuration.read_samples(path, SCHEMAS / "samples.schema.yaml")
    check_files(str(path), samples)


def read_state(path: Path) -> None:
    """A state that cannot be read is none."""
    state = status.read_state(path)
    if state is None:
        raise HoldfastError(f"{path}: no state")
    state.trouble(Observer())
    assert state_path("/spool", state.identity.pool).parent == Path("/spool/pools")


def read_calls(path: Path) -> None:
    for call in read_contigs(path):
        assert call.outcome in ("virus", "non-viral", *CONTIG_STATUSES[1:])
        assert call.score is None or 0 <= call.score <= 1


def read_embeddings(path: Path) -> None:
    with EmbeddingsFile(path) as reader:
        list(reader.record_blocks())
        for rows in reader.blocks(list(reader.models)):
            for name, chunk, frame in zip(rows.ids, rows.chunk.tolist(), rows.frame.tolist(), strict=True):
                name.removesuffix(frame_id("", chunk, frame))
    embeddings.read_embeddings(path)


def read_classifier(path: Path) -> None:
    network = (classifier.load_published if path.suffix == ".pth" else classifier.load_classifier)(path)
    assert np.isfinite(network.predict(np.zeros((2, network.feature_width), np.float32))).all()


def read_source(path: Path) -> None:
    read_checkpoint(path, None).own_tensors()


def read_source_directory(path: Path) -> None:
    read_checkpoint(path.parent, None).own_tensors()


def read_prepared_weights(path: Path) -> None:
    open_model(path.parent, "cpu", "fp32")


def read_tokenizer(path: Path) -> None:
    NucleotideTokenizer(path)(["ACGTNACGT", ""])


def read_published_tokenizer(path: Path) -> None:
    _copy_tokenizer(path, 64, path.with_name("copied.json"))
    NucleotideTokenizer(path.with_name("copied.json"))(["ACGTNACGT"])


def read_for_summary(path: Path) -> None:
    results, table = path.parent.parent, path.with_name("summary.tsv")
    write_summary(path.with_name("samples.tsv"), results, table)
    header, row = table.read_text().splitlines()
    assert header.count("\t") == row.count("\t")


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "fasta": ("a.fna", read_nucleotides),
    "proteins": ("a.faa", read_proteins),
    "manifest": ("job.yaml", read_manifest),
    "receipt": ("receipt.json", read_receipt),
    "settings": ("pool.yaml", read_settings),
    "config": ("config.yaml", read_config),
    "samples": ("samples.tsv", read_samples),
    "prepared": ("model.json", lambda path: read_prepared(path.parent)),
    "tokenizer": ("tokenizer.json", read_tokenizer),
    "published_tokenizer": ("tokenizer.json", read_published_tokenizer),
    "summary": ("receipt.json", read_for_summary),
    "state": ("pool.json", read_state),
    "contigs": ("contigs.tsv", read_calls),
    "embeddings": ("embeddings.h5", read_embeddings),
    "pth": ("classifier.pth", read_classifier),
    "classifier": ("classifier.safetensors", read_classifier),
    "fair_esm": ("esm2.pt", read_source),
    "pytorch_bin": ("pytorch_model.bin", read_source_directory),
    "safetensors": ("model.safetensors", read_source_directory),
    "hugging_face_config": ("config.json", read_source_directory),
    "weights_index": ("model.safetensors.index.json", read_source_directory),
    "prepared_weights": ("model.safetensors", read_prepared_weights),
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
