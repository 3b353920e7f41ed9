"""The demo, whole: from synthetic sources to calls, every figure against its own computation."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
from holdfast.models.registry import read_prepared
from holdfast.results.embeddings import read_embeddings
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import Record, read_records
from holdfast.sequences.frames import find_frames, frame_id

from tests.workflow.conftest import DEMO, MEANS, WIDTHS, NewProject, Project, embedded, jobs

CHUNK_LENGTH_BP = 500
TRAINING = {"bacterium_train": "non-viral", "phage_train": "virus"}
CALLED = ("bacterium_heldout", "phage_heldout", "mixture")
TABLES = {"frames.tsv", "chunks.tsv", "contigs.tsv", "regions.tsv", "regions.bed", "virus.fna"}
SYNTHETIC = {"esm2": "synthetic:esm2_t6_8M_UR50D", "dnabert_s": "synthetic:dnabert_s_tiny"}


def check_calls(project: Project, sample: str, records: list[Record]) -> None:
    """Every record has its row, in order, and the tables follow from frames.tsv by the documented rules."""
    contigs, chunks, calls = (project.table(f"{sample}/{name}.tsv") for name in ("contigs", "chunks", "frames"))
    assert contigs["contig"].tolist() == [record.id for record in records]
    assert contigs["length"].astype(int).tolist() == [len(record.sequence) for record in records]
    found = [(record.id, frame) for record in records for frame in find_frames(record.sequence, CHUNK_LENGTH_BP)]
    assert calls["frame_id"].tolist() == [frame_id(name, frame.chunk, frame.frame) for name, frame in found]

    calls[["p_virus", "p_non_viral"]] = calls[["p_virus", "p_non_viral"]].astype("float32")
    np.testing.assert_allclose(calls["p_virus"] + calls["p_non_viral"], 1, atol=1e-6)
    assert (calls["prediction"] == np.where(calls["p_virus"] > calls["p_non_viral"], "virus", "non-viral")).all()
    largest = calls.groupby(["contig", "chunk"])[["p_virus", "p_non_viral"]].max()
    margin = largest["p_virus"].astype(float) - largest["p_non_viral"]
    weight = (margin.abs() / 0.2).clip(upper=1)
    expected = 0.5 + (margin * weight).groupby("contig").sum() / weight.groupby("contig").sum() / 2
    called = contigs[contigs["decision"] != "not called"].set_index("contig")
    assert set(called.index) == set(expected.index)
    np.testing.assert_allclose(called["score"].astype(float), expected[called.index], atol=1e-6)
    assert (called["is_virus"] == (expected[called.index] >= 0.6).map(str)).all()
    assert ((called["decision"] == "non-viral") == (expected[called.index] <= 0.4)).all()
    without = contigs.loc[~contigs["contig"].isin(expected.index), "reason"]
    assert set(without) <= {"no chunk has a stop-free frame"}
    assert chunks["frames"].astype(int).sum() == len(calls)
    assert chunks.groupby("contig").size()[contigs["contig"]].tolist() == contigs["chunks"].astype(int).tolist()


def check_embeddings(project: Project, sample: str, texts: dict[str, list[str]]) -> None:
    """Ids and models are complete and marked synthetic; a few rows equal a direct computation."""
    found = read_embeddings(project.path(f"results/{sample}/embeddings.h5"))
    assert sorted(found.matrices) == sorted(MEANS[model] for model in texts)
    for model, sequences in texts.items():
        matrix, attributes = found.matrices[MEANS[model]], found.attributes["matrices"][MEANS[model]]
        assert matrix.dtype == np.float16
        assert matrix.shape == (len(sequences), WIDTHS[model])
        assert (attributes["source"], attributes["synthetic"]) == (SYNTHETIC[model], True)
        rows = sorted({0, len(sequences) // 2, len(sequences) - 1})
        expected = embedded(project.path("resources"), model, [sequences[row] for row in rows])
        np.testing.assert_allclose(matrix[rows].astype(np.float32), expected, rtol=1e-3, atol=1e-3)


def test_demo_gives_everything_it_promises_and_a_second_call_runs_nothing(project: NewProject) -> None:
    demo = project()
    for name in ("config", "data"):
        shutil.copytree(DEMO / name, demo.path(name), dirs_exist_ok=True)
    sheet = [line.split("\t") for line in demo.read("config/samples.tsv").splitlines()[1:]]
    samples = {cells[0]: (demo.path(cells[1]), cells[2]) for cells in sheet}
    assert len(samples) >= 6
    assert {kind for _, kind in samples.values()} == {"contigs", "proteins"}

    run = demo.run()
    assert run.returncode == 0, run.text
    assert "Traceback" not in run.text
    once = ["train", *(f"prepare_weights {model}" for model in WIDTHS)]
    assert run.jobs == jobs(*samples, called=CALLED, once=once)
    said = r"holdfast: \d+ of 28 contigs called virus \(.*\), \d+ ambiguous, \d+ not called; synthetic weights .*"
    assert re.fullmatch(said + r"; open results/report\.html", run.text.rstrip().splitlines()[-1]), run.text

    summary = demo.table("summary.tsv").set_index("sample")
    assert summary.index.tolist() == list(samples)
    for sample, (path, kind) in samples.items():
        row = summary.loc[sample]
        records = list(read_records(path, Alphabet.PROTEIN if kind == "proteins" else Alphabet.NUCLEOTIDE))
        if kind == "contigs":
            found = [frame for record in records for frame in find_frames(record.sequence, CHUNK_LENGTH_BP)]
            texts = {"esm2": [f.protein for f in found], "dnabert_s": [f.nucleotides for f in found]}
        else:
            texts = {"esm2": [record.sequence for record in records]}
        rows = len(texts["esm2"])
        assert rows > 0
        assert (row["kind"], int(row["records"]), int(row["rows"])) == (kind, len(records), rows)
        assert int(row["distinct_sequences"]) == sum(len(set(sequences)) for sequences in texts.values())
        assert row["label"] == TRAINING.get(sample, "")
        assert row["synthetic_weights"] == ",".join(sorted(texts))
        assert float(row["load_s"]) > 0
        assert float(row["tokens_per_s"]) > 0
        check_embeddings(demo, sample, texts)
        present = {file.name for file in demo.path(f"results/{sample}").iterdir()}
        tables = TABLES if sample in CALLED else set()
        assert present == {"embeddings.h5", "receipt.json", "records.tsv"} | tables
        if sample in CALLED:
            check_calls(demo, sample, records)
            contigs = demo.table(f"{sample}/contigs.tsv")
            for decision in ("virus", "ambiguous", "non-viral", "not called"):
                counted = int(row[decision.replace(" ", "_").replace("-", "_")])
                assert counted == (contigs["decision"] == decision).sum()
            viruses = contigs[contigs["decision"] == "virus"]
            for tier in ("high", "moderate", "low"):
                assert int(row[f"virus_{tier}"]) == (viruses["tier"] == tier).sum()
            trained = demo.path("results/classifier/classifier.safetensors").read_bytes()
            assert row["classifier_sha256"] == hashlib.sha256(trained).hexdigest()

    metrics = json.loads(demo.read("results/classifier/metrics.json"))
    assert metrics["synthetic"] is True
    confusion = metrics["confusion"]
    held_out = sum(confusion[label][label] for label in confusion)
    total = sum(entry["frames"] for entry in metrics["held_out"].values())
    assert metrics["accuracy"] == held_out / total
    labelled = {TRAINING[sample]: int(summary.loc[sample, "rows"]) for sample in TRAINING}
    for label, frames_of_label in labelled.items():
        assert metrics["train"][label]["frames"] + metrics["held_out"][label]["frames"] == frames_of_label
    for model, source in SYNTHETIC.items():
        description = read_prepared(demo.path(f"resources/{model}"))
        assert (description.source, description.synthetic) == (source, True)
    assert not demo.path(".holdfast/runs").exists()
    assert not demo.path(".holdfast/pool.0.json").exists()
    assert demo.processes_left() == []

    before = contents(demo.path("results"))
    again = demo.run()
    assert again.returncode == 0
    assert again.jobs == []
    assert "Nothing to be done" in again.text
    assert contents(demo.path("results")) == before


def contents(directory: Path) -> dict[Path, tuple[bytes, int]]:
    """Content and modification time of every file."""
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in directory.rglob("*") if file.is_file()}
