"""Results files of samples, written with the writer of the workflow; their embeddings come from no model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from holdfast.models.registry import Prepared
from holdfast.results.writer import EmbeddingsWriter
from holdfast.sequences.frames import frame_id

CHUNK_LENGTH_BP = 500
DNABERT_S_WIDTH, ESM2_WIDTH = 6, 10
FEATURE_WIDTH = DNABERT_S_WIDTH + ESM2_WIDTH

Record = tuple[str, int, str]
"""Id, length in bp or aa, status."""

Place = tuple[int, int, int]
"""Record, chunk and frame of a row."""


def write_results(
    path: Path,
    records: Sequence[Record],
    rows: Sequence[Place],
    matrices: Mapping[str, np.ndarray] | None = None,
    kind: str = "contigs",
    source: str = "facebook/x",
    synthetic: Sequence[str] = (),
) -> Path:
    """Write a results file.

    Args:
        path: Where; the sample has the name of its directory.
        records: All records of the input.
        rows: One for each sequence that was embedded.
        matrices: Model to float [N, D], stored as float32.
        kind: Of the sample.
        source: Of the models.
        synthetic: Models that are synthetic instead.
    """
    ids = [records[record][0] for record, *_ in rows]
    if kind == "contigs":
        ids = [frame_id(name, chunk, frame) for name, (_, chunk, frame) in zip(ids, rows, strict=True)]
    columns = np.array(rows, np.int32).reshape(-1, 3).T
    chunk_length_bp = CHUNK_LENGTH_BP if kind == "contigs" else 0
    with EmbeddingsWriter.create(path, path.parent.name, kind, chunk_length_bp) as writer:
        writer.append_records(*(zip(*records, strict=True) if records else ((), (), ())))
        writer.append_rows(ids, [165] * len(rows), [bytes(32)] * len(rows), *columns)
    with EmbeddingsWriter.reopen(path, {}) as writer:
        for model, matrix in (matrices or {}).items():
            made_of = "synthetic:x" if model in synthetic else source
            described = Prepared(model, {"layers": 2}, matrix.shape[1], made_of, "", "", model in synthetic, {})
            writer.write_matrix(described, [matrix.astype(np.float32)], "float32", "fp32")
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
