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
from holdfast import (
    calls,
    checkpoint,
    classifier,
    configuration,
    embeddings,
    esm2,
    fasta,
    frames,
    manifest,
    prepared,
    pth,
    receipt,
    settings,
    status,
    summary,
    tokens,
    weights,
)
from holdfast.errors import HoldfastError
from holdfast.models import Alphabet

from tests.fuzz import seeds

SCHEMAS = Path(fasta.__file__).parents[2] / "schemas"
Parser = Callable[[bytes], str]


def read_nucleotides(path: Path) -> None:
    for record in fasta.read(path, Alphabet.NUCLEOTIDE):
        for frame in frames.find(record.sequence, 300):
            tokens.tokenize_proteins([frame.protein])


def read_proteins(path: Path) -> None:
    for record in fasta.read(path, Alphabet.PROTEIN):
        tokens.tokenize_proteins([record.sequence])


def read_manifest(path: Path) -> None:
    job = manifest.parse(path.read_bytes().decode("utf-8", "replace"), path.name)
    assert manifest.parse(job.dump(), "again") == job
    assert job.job
    os.path.exists(job.fasta)  # no NUL in it, which would be an error


def read_receipt(path: Path) -> None:
    outcome = receipt.read(path)
    assert outcome is not None
    outcome.write(path)
    assert receipt.read(path) == outcome


def read_settings(path: Path) -> None:
    read = settings.read(path)
    read.write(path)
    assert settings.read(path) == read


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
        filled = configuration.with_defaults(content, SCHEMAS / "config.schema.yaml")
        configuration.check(filled, {})


def read_samples(path: Path) -> None:
    samples = configuration.read_samples(path, SCHEMAS / "samples.schema.yaml")
    configuration.check_files(str(path), samples)


def read_state(path: Path) -> None:
    """A state that cannot be read is none."""
    state = status.read(path)
    if state is None:
        raise HoldfastError(f"{path}: no state")
    state.trouble(status.Observer())
    assert status.state_path("/spool", state.identity.pool).parent == Path("/spool/pools")


def read_frames(path: Path) -> None:
    with embeddings.Reader(path.with_name("sample.h5")) as reader:
        probabilities = calls.read_probabilities(path, reader)
    assert np.isfinite(probabilities).all()


def read_embeddings(path: Path) -> None:
    with embeddings.Reader(path) as reader:
        list(reader.record_blocks())
        for rows in reader.blocks(list(reader.models)):
            for name, chunk, frame in zip(rows.ids, rows.chunk.tolist(), rows.frame.tolist(), strict=True):
                name.removesuffix(frames.frame_id("", chunk, frame))
    embeddings.read(path)


def read_classifier(path: Path) -> None:
    network = (pth if path.suffix == ".pth" else classifier).load(path)
    assert np.isfinite(network.predict(np.zeros((2, network.feature_width), np.float32))).all()


def read_source(path: Path) -> None:
    checkpoint.read(path, "esm2", None).own_tensors()


def read_source_directory(path: Path) -> None:
    checkpoint.read(path.parent, "esm2", None).own_tensors()


def read_prepared_weights(path: Path) -> None:
    esm2.load(path.parent, "cpu", "fp32")


def read_tokenizer(path: Path) -> None:
    tokens.NucleotideTokenizer(path)(["ACGTNACGT", ""])


def read_published_tokenizer(path: Path) -> None:
    weights._copy_tokenizer(path, 64, path.with_name("copied.json"))
    tokens.NucleotideTokenizer(path.with_name("copied.json"))(["ACGTNACGT"])


def read_for_summary(path: Path) -> None:
    results, table = path.parent.parent, path.with_name("summary.tsv")
    summary.write(path.with_name("samples.tsv"), SCHEMAS / "samples.schema.yaml", results, table)
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
    "prepared": ("model.json", lambda path: prepared.read(path.parent)),
    "tokenizer": ("tokenizer.json", read_tokenizer),
    "published_tokenizer": ("tokenizer.json", read_published_tokenizer),
    "summary": ("receipt.json", read_for_summary),
    "state": ("pool.json", read_state),
    "frames": ("frames.tsv", read_frames),
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
