"""Results files of samples, written with the writer of the workflow; their embeddings come from no model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from holdfast.models.registry import Letters, Output, Prepared
from holdfast.results.writer import EmbeddingsWriter
from holdfast.sequences.frames import frame_id

CHUNK_LENGTH_BP = 500
DNABERT_S_WIDTH, ESM2_WIDTH = 6, 10
FEATURE_WIDTH = DNABERT_S_WIDTH + ESM2_WIDTH

Record = tuple[str, int, str]
"""Id, length in bp or aa, status."""

Place = tuple[int, int, int]
"""Record, chunk and frame of a row."""


PROTEIN: Mapping[str, Any] = {
    "family": "esm",
    "alphabet": "protein",
    "letters": Letters({letter: number for number, letter in enumerate("LAGVSERTIDPKQNFYMHWCX", 4)}, 3, 0, 2),
    "mean_of": "residues",
}
DNA: Mapping[str, Any] = {"family": "mosaic_bert", "alphabet": "nucleotide", "letters": None, "mean_of": "tokens"}


def describe_model(width: int, layers: int = 2, **changes: Any) -> Prepared:
    """What ``model.json`` says of a protein model, or with ``**DNA`` of another, that nobody prepared."""
    described: dict[str, Any] = {
        **PROTEIN,
        "architecture": {"layers": layers},
        "layers": layers,
        "width": width,
        "start_tokens": 1,
        "end_tokens": 1,
        "start_is_cls": True,
        "max_length": None,
        "long": "whole",
        "source": "facebook/x",
        "source_sha256": "ab" * 32,
        "weights_sha256": "cd" * 32,
        "synthetic": False,
        "verification": {},
    }
    return Prepared(**described | changes)


def write_results(
    path: Path,
    records: Sequence[Record],
    rows: Sequence[Place],
    matrices: Mapping[str, np.ndarray] | None = None,
    kind: str = "contigs",
    source: str = "facebook/x",
    weights_sha256: str = "cd" * 32,
    layer: int = 2,
    synthetic: Sequence[str] = (),
    input_sha256: str = "",
) -> Path:
    """Write a results file.

    Args:
        path: Where; the sample has the name of its directory.
        records: All records of the input.
        rows: One for each sequence that was embedded.
        matrices: Model to float [N, D], stored as float32; those whose names begin with ``dna`` are DNA models.
        kind: Of the sample.
        source: Of the models.
        weights_sha256: Of the models.
        layer: Whose means the matrices are.
        synthetic: Models that are synthetic instead.
        input_sha256: Of the sequence file.
    """
    ids = [records[record][0] for record, *_ in rows]
    if kind == "contigs":
        ids = [frame_id(name, chunk, frame) for name, (_, chunk, frame) in zip(ids, rows, strict=True)]
    columns = np.array(rows, np.int32).reshape(-1, 3).T
    chunk_length_bp = CHUNK_LENGTH_BP if kind == "contigs" else 0
    with EmbeddingsWriter.create(path, path.parent.name, kind, chunk_length_bp, int(kind == "contigs")) as writer:
        names, lengths, statuses = zip(*records, strict=True) if records else ((), (), ())
        seen = ("ok", "truncated", "windowed")
        used = [length if status in seen else 0 for length, status in zip(lengths, statuses, strict=True)]
        writer.append_records(names, lengths, used, statuses)
        writer.name_input(input_sha256)
        writer.append_rows(ids, [165] * len(rows), [bytes(32)] * len(rows), *columns)
        if kind == "contigs":
            writer.mark_empty("no_stop_free_frame")
    with EmbeddingsWriter.reopen(path, {}) as writer:
        for model, matrix in (matrices or {}).items():
            known = {"source": source, "weights_sha256": weights_sha256}
            if model in synthetic:
                known = {"source": "synthetic:x", "weights_sha256": "5e" * 32}
            alphabet = DNA if model.startswith("dna") else PROTEIN
            described = describe_model(matrix.shape[1], synthetic=model in synthetic, **alphabet, **known)
            means = Output(layer, "mean")
            writer.write_matrix(model, described, means, "float32", "fp32", [matrix.astype(np.float32)])
    return path


def write_features(
    directory: Path, features: np.ndarray, records: Sequence[int], chunks: Sequence[int] | None = None, **options: Any
) -> Path:
    """Write a sample of kind contigs.

    Args:
        directory: Made; named after the sample.
        features: float [N, DNABERT_S_WIDTH + any], DNABERT-S before ESM-2.
        records: Of each row.
        chunks: Of each row; all 1 by default.
        options: As above.
    """
    directory.mkdir(parents=True)
    names: list[Record] = [(f"r{record}", 2000, "ok") for record in range(max(records, default=-1) + 2)]
    numbers = [1] * len(records) if chunks is None else chunks
    rows = [(record, chunk, row % 6) for row, (record, chunk) in enumerate(zip(records, numbers, strict=True))]
    matrices = {"esm2": features[:, DNABERT_S_WIDTH:], "dnabert_s": features[:, :DNABERT_S_WIDTH]}
    return write_results(directory / "embeddings.h5", names, rows, matrices, **options)
