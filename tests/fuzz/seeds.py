"""Valid files for every parser, small, made with the code of the project or by the libraries that publish them.

All weights are synthetic.
"""

import argparse
import bz2
import functools
import gzip
import io
import json
import lzma
import subprocess
import sys
import tempfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import zstandard
from holdfast.models import esmc
from holdfast.models.checkpoint import Layout
from holdfast.models.encoder import HEADER_KEY, Architecture
from holdfast.models.esm import FAIR_ESM, HUGGING_FACE, VOCABULARY, letters_of, tensor_shapes
from holdfast.models.registry import Output, Prepared
from holdfast.models.synthetic import write_esmc, write_t5, write_tokenizer
from holdfast.pool.settings import pool_settings
from holdfast.results.calls import call_contigs
from holdfast.results.classifier import describe_prepared, load_classifier
from holdfast.results.embeddings import EmbeddingsFile
from holdfast.results.presets import PRESETS
from holdfast.results.training import Network
from holdfast.results.writer import EmbeddingsWriter
from holdfast.sequences.frames import frame_id
from holdfast.spool.job import Manifest, Receipt, Request
from holdfast.spool.progress import DeviceProgress, Progress
from holdfast.spool.state import Identity, PoolState
from safetensors.torch import save
from torch import Tensor

ARCHITECTURE: dict[str, int | float | str | bool] = {
    "layers": 1,
    "width": 8,
    "heads": 2,
    "mlp_width": 16,
    "vocabulary": 33,
    "token_dropout": True,
    "layer_norm_epsilon": 1e-5,
    "positions": 0,
    "embed_norm": False,
}
PREPARED = Prepared(
    family="esm",
    alphabet="protein",
    architecture=ARCHITECTURE,
    layers=1,
    width=8,
    letters=letters_of(VOCABULARY),
    start_tokens=1,
    end_tokens=1,
    start_is_cls=True,
    mean_of="residues",
    max_length=None,
    long="whole",
    source="synthetic:esm2",
    source_sha256="a" * 64,
    weights_sha256="b" * 64,
    synthetic=True,
    verification={"largest_difference": 1e-6},
)
MODELS = {  # the roles of a classifier
    "dnabert_s": replace(
        PREPARED, family="mosaic_bert", alphabet="nucleotide", letters=None, mean_of="tokens", width=6
    ),
    "esm2": PREPARED,
}
METHOD = {"dna": "dnabert_s", "protein": "esm2"}
HUGGING_FACE_CONFIG = {
    "model_type": "esm",
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 33,
    "layer_norm_eps": 1e-5,
    "token_dropout": True,
    "position_embedding_type": "rotary",
}
FASTA = b"\xef\xbb\xbf# c\n>a first\nACGTACGTNN\nacgu\n>b\n\n#x\n>\xc3\xa9|c/1\r\nATGATGATGATGTAA\r\n>d\rACGT\r"
CONFIG = (
    b"samples: s.tsv\nmodels:\n  esm2:\n    weights: synthetic:esm2_t6_8M_UR50D\n    layers: [0, last]\n"
    b"    pooling: [mean, residues]\n    long: window\nmethod: {protein: esm2}\npool: {threads: 2}\n"
)
SETTINGS = b"models:\n  esm2: /models/esm2\ngpu: 2\nidle_timeout_s: null\nmax_tasks_per_worker: 5\n"
FASTQ = b"\n@a\nACGT\n+\nIIII\n\r\n@b\nAC\n+b\nII\n\n"

BLANK_LINES = [
    b"@r\nACGT\n+\nIIII\n\n\n\n",
    b"@r\r\nAC-N\r\n+\r\nIIII\r\n\r\n",
    b"\n \n@r\nAX*T\n+r\nIIII\n \n@q\nA\n+\n@",
]
SHEETS = [
    b"sample\tfasta\tkind\tlabel\tmodels\na\t/etc/passwd\tcontigs\tvirus\t\nb\t/etc/passwd\tdna\t\tx,y\n",
    b'\xef\xbb\xbf# mine;;\r\n\r\n"Sample";"FASTA";Kind;;\r\n1;"/etc/passwd";Proteins;;\r\n',
    b'#sample,fasta,models\ra,$HOME/../etc/passwd,"x, y"\rb,~/../etc/passwd,\r',
]
COMMANDS = [  # of those that end by themselves
    "frames a.fna --chunk-length 300 --nucleotides n.fna --proteins p.faa",
    "export e.h5 --model esm2 --layer 1 --per residue --output out.h5",
    "export e.h5 --output out",
    "convert-classifier c.pth out.safetensors",
]

# As VirNucPro's training script saves a module: whole, its class under __main__.
PUBLISHED = """
import sys, torch
class MLPClassifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_layer = torch.nn.Linear(4, 6)
        self.bn1 = torch.nn.BatchNorm1d(6)
        self.output_layer = torch.nn.Linear(6, 2)
        self.dropout = torch.nn.Dropout(p=0.5)
        self.relu = torch.nn.ReLU()
torch.save(MLPClassifier().eval(), "500_model.pth")
"""


@functools.cache
def seeds() -> dict[str, list[bytes]]:
    """Valid contents by the name of their parser."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        return {
            "fasta": [FASTA, gzip.compress(FASTA, mtime=0), bz2.compress(FASTA), zstandard.compress(FASTA)],
            "fastq": [FASTQ, lzma.compress(FASTQ), lzma.compress(FASTQ, lzma.FORMAT_ALONE), *BLANK_LINES],
            "proteins": [b">p\nMKV*\n>q\nMX-.\n"],
            "manifest": [_manifest()],
            "receipt": [_receipt(directory)],
            "settings": [SETTINGS, _settings(directory)],
            "config": [CONFIG, json.dumps({"samples": "s.tsv", "models": {"esm2": {"weights": "/w"}}}).encode()],
            "samples": SHEETS,
            "command": ["\n".join(words.split()).encode() for words in COMMANDS],
            "prepared": [_prepared(directory, prepared) for prepared in (MODELS["dnabert_s"], PREPARED)],
            "tokenizer": [_tokenizer(directory)],
            "published_tokenizer": [_tokenizer(directory)],
            "summary": [_receipt(directory)],
            "state": [_state(directory)],
            "contigs": [_contigs(directory)],
            "embeddings": [_embeddings(directory)],
            "pth": [_pth(directory)],
            "classifier": [_classifier(directory)],
            "fair_esm": [_torch(_fair_esm()), _torch(_esm1()), _torch(_esm_package())],
            "pytorch_bin": [_torch(OrderedDict(_published(HUGGING_FACE, "esm.")))],
            "safetensors": [save(_published(HUGGING_FACE, "esm."), {"format": "pt"})],
            "hugging_face_config": [json.dumps(HUGGING_FACE_CONFIG).encode()],
            "esmc_config": [_esmc()["config.json"]],
            "t5_config": [_t5()["config.json"]],
            "vocabulary": [_t5()["spiece.model"]],
            "added_tokens": [b'{"<AA2fold>": 149, "<fold2AA>": 148}'],
            "weights_index": [b'{"metadata": {}, "weight_map": {"a": "part.safetensors"}}'],
            "prepared_weights": [_prepared_weights()],
        }


def beside(name: str) -> dict[str, bytes]:
    """Files that a parser needs beside its own, valid."""
    config = seeds()["hugging_face_config"][0]
    return {
        "pytorch_bin": {"config.json": config},
        "safetensors": {"config.json": config},
        "hugging_face_config": {"model.safetensors": seeds()["safetensors"][0]},
        "weights_index": {"config.json": config, "part.safetensors": seeds()["safetensors"][0]},
        "summary": {
            "embeddings.h5": seeds()["embeddings"][0],
            "contigs.tsv": seeds()["contigs"][0],
            "samples.tsv": b"sample\tfasta\nsummary\t/etc/passwd\n",
        },
        "command": {
            "a.fna": FASTA,
            "e.h5": seeds()["embeddings"][0],
            "c.pth": seeds()["pth"][0],
            "c.safetensors": seeds()["classifier"][0],
            "s.tsv": SHEETS[0],
            "pool.yaml": SETTINGS,
        },
        "prepared_weights": {"model.json": seeds()["prepared"][1]},
        "esmc_config": {name: content for name, content in _esmc().items() if name != "config.json"},
        "t5_config": {name: content for name, content in _t5().items() if name != "config.json"},
        "vocabulary": {name: content for name, content in _t5().items() if name != "spiece.model"},
        "added_tokens": _t5(),
    }.get(name, {})


def _manifest() -> bytes:
    outputs = [Output(0, "mean"), Output(33, "residues")]
    models = {"esm2": Request("a" * 64, outputs, "whole", 0), "dnabert_s": Request("b" * 64, outputs, "refuse", 1000)}
    return Manifest("s1", "contigs", "/data/s1.fna", "c" * 64, 100, 500, 1, models, "auto", "float16").dump().encode()


def _receipt(directory: Path) -> bytes:
    path = directory / "receipt.json"
    counts, seconds = {"records": 3, "tokens": 9}, {"read_s": 0.5, "device_s": 1.0, "total_s": 2.0}
    pool: dict[str, str | float] = {"id": "h-1-2", "devices": "cpu", "precision": "fp32", "load_s": 1.5, "ready_s": 2.0}
    Receipt(
        job="s-1",
        sample="s",
        state="done",
        embeddings="/spool/a.h5",
        run="20250101T000000Z-h-1",
        input_sha256="0" * 64,
        counts=counts,
        pool=pool,
        software={"torch": "2"},
        seconds=seconds,
        failures={"r": "lost"},
        warnings=["a doubt"],
        finished="2025-01-01",
    ).write(path)
    return path.read_bytes()


def _settings(directory: Path) -> bytes:
    path = directory / "pool.yaml"
    pool_settings({"models": {"esm2": "/models/esm2"}, "gpu": 2, "max_tasks_per_worker": 5}, path).write(path)
    return path.read_bytes()


def _prepared(directory: Path, prepared: Prepared) -> bytes:
    prepared.write(directory)
    return (directory / "model.json").read_bytes()


def _tokenizer(directory: Path) -> bytes:
    write_tokenizer(64, directory / "tokenizer.json")
    return (directory / "tokenizer.json").read_bytes()


def _state(directory: Path) -> bytes:
    path = directory / "endpoint.json"
    state = PoolState(
        Identity.own(),
        "/spool",
        state="ready",
        beat=3,
        progress=Progress(done=4, load_s=1.5, devices=[DeviceProgress("cpu:0", "CPU", "ready", 0, 0.5, 168)]),
    )
    state.announce(path)
    return path.read_bytes()


def _embeddings(directory: Path) -> bytes:
    path = directory / "sample.h5"
    names = [frame_id("r", 1, frame) for frame in (0, 3)]
    with EmbeddingsWriter.create(path, "s", "contigs", 500, 1) as writer:
        writer.append_records(["r", "short"], [400, 2], [400, 0], ["ok", "too_short"])
        writer.append_rows(names, [100, 90], [bytes(32)] * 2, [0, 0], [1, 1], [0, 3])
    with EmbeddingsWriter.reopen(path, {"torch": "2"}) as writer:
        for model, prepared in MODELS.items():
            block = np.ones((2, prepared.width), np.float32)
            writer.write_matrix(model, prepared, Output(1, "mean"), "float16", "fp32", [block])
        residues = Output(1, "residues")
        counts, block = np.array([100, 90]), np.ones((190, PREPARED.width), np.float16)
        writer.write_residues("esm2", PREPARED, residues, "float16", "fp32", counts, [block])
    return path.read_bytes()


def _contigs(directory: Path) -> bytes:
    _embeddings(directory)
    with EmbeddingsFile(directory / "sample.h5") as reader:
        probabilities = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
        call_contigs(reader, [(rows, probabilities) for rows in reader.blocks()], PRESETS["relaxed"], directory)
    return (directory / "contigs.tsv").read_bytes()


def _pth(directory: Path) -> bytes:
    subprocess.run([sys.executable, "-W", "ignore", "-c", PUBLISHED], cwd=directory, check=True)
    return (directory / "500_model.pth").read_bytes()


def _classifier(directory: Path) -> bytes:
    path = directory / "classifier.safetensors"
    models = describe_prepared(MODELS, METHOD)
    Network(sum(prepared.width for prepared in MODELS.values()), 4).classifier(models, "synthetic").save(path)
    assert load_classifier(path).models == models
    return path.read_bytes()


def _published(layout: Layout, prefix: str, architecture: Architecture = ARCHITECTURE) -> dict[str, Tensor]:
    """Synthetic tensors of a small ESM-2, or ESM-1b, under published names."""
    found: dict[str, Tensor] = {}
    for own, shape in tensor_shapes(architecture).items():
        parts = ["layers.0.self_attn.rot_emb.inv_freq"] if own == "inv_freq" else layout.published(own)
        if own == "inv_freq" and layout is HUGGING_FACE:
            continue
        found |= {prefix + part: torch.full((shape[0] // len(parts), *shape[1:]), 0.5) for part in parts}
    return found


def _fair_esm() -> dict[str, object]:
    config = argparse.Namespace(encoder_layers=1, encoder_embed_dim=8, encoder_attention_heads=2, token_dropout=True)
    return {"cfg": {"model": config}, "model": _published(FAIR_ESM, "encoder.sentence_encoder.")}


def _esm1() -> dict[str, object]:
    """As fair-esm publishes ESM-1b: other sizes' names, learned positions, a norm after the embedding."""
    args = argparse.Namespace(arch="roberta_large", layers=1, embed_dim=8, attention_heads=2, token_dropout=True)
    tensors = _published(FAIR_ESM, "encoder.sentence_encoder.", {**ARCHITECTURE, "positions": 20, "embed_norm": True})
    return {"args": args, "model": tensors}


def _esm_package() -> dict[str, Tensor]:
    """As the older ``esm`` package publishes ESM C."""
    sizes = ARCHITECTURE | {"width": 64, "heads": 1, "rotary_base": 10000.0}
    found: dict[str, Tensor] = {}
    for own, shape in esmc.tensor_shapes(sizes).items():
        if own != "inv_freq":
            (name,) = esmc.ESM_PACKAGE.published(own)
            found[name] = torch.full(shape, 0.5)
    return found


@functools.cache
def _esmc() -> dict[str, bytes]:
    """The files of a Hugging Face directory of ESM C."""
    with tempfile.TemporaryDirectory() as name:
        write_esmc("esmc_tiny", Path(name))
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


@functools.cache
def _t5() -> dict[str, bytes]:
    """The files of a Hugging Face directory of a T5 encoder, without those that ProstT5 adds."""
    with tempfile.TemporaryDirectory() as name:
        write_t5("prot_t5_tiny", Path(name))
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


def _torch(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _prepared_weights() -> bytes:
    tensors = {name: torch.full(shape, 0.5) for name, shape in tensor_shapes(ARCHITECTURE).items()}
    return save(tensors, {HEADER_KEY: json.dumps({"architecture": ARCHITECTURE})})
