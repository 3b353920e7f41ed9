"""From real genomes to calls: a classifier that is trained on some of the demo's, and calibrated on others."""

import hashlib
import json
import shutil
from io import StringIO

import numpy as np
import pandas  # type: ignore[import-untyped]
from Bio import SeqIO
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records

from tests.workflow.conftest import DEMO, NewProject, Project, fasta, jobs


def genome(name: str) -> str:
    """The pieces of one of the demo's samples, one behind the other."""
    return "".join(record.sequence for record in read_records(DEMO / "data" / name, Alphabet.NUCLEOTIDE))


def pieces(sequence: str, length_bp: int, step_bp: int) -> str:
    starts = range(0, len(sequence) - length_bp, step_bp)
    return fasta({f"at_{start}": sequence[start : start + length_bp] for start in starts})


def check_sequences(some: Project, samples: dict[str, dict[str, str]], name: str) -> None:
    """The sequences of viruses are those that tables and inputs give, for each sample and together."""
    together = {}
    for sample, sequences in samples.items():
        contigs, regions = some.table(f"{sample}/contigs.tsv"), some.table(f"{sample}/regions.tsv")
        assert contigs["contig"].tolist() == list(sequences)
        assert ((contigs["decision"] == "virus") == (contigs["is_virus"] == "True")).all()
        viruses = contigs.loc[contigs["decision"] == "virus", "contig"].tolist()
        expected = {contig: sequences[contig] for contig in viruses}
        for row in regions.to_dict("records"):
            if row["contig"] not in viruses:
                start, end = int(row["start_1based"]), int(row["end_1based"])
                expected[f"{row['contig']}|region_{start}_{end}"] = sequences[row["contig"]][start - 1 : end]
        found = SeqIO.to_dict(SeqIO.parse(StringIO(some.read(f"results/{sample}/{name}")), "fasta"))
        assert {key: str(record.seq) for key, record in found.items()} == expected
        together |= {f"{sample}|{key}": sequence for key, sequence in expected.items()}
        bed = some.read(f"results/{sample}/regions.bed").splitlines()
        assert [line.split("\t")[:3] for line in bed] == [
            [row["contig"], str(int(row["start_1based"]) - 1), row["end_1based"]] for row in regions.to_dict("records")
        ]
    found = SeqIO.to_dict(SeqIO.parse(StringIO(some.read(f"results/{name}")), "fasta"))
    assert {key: str(record.seq) for key, record in found.items()} == together
    parts = [some.table(f"{sample}/contigs.tsv").assign(sample=sample) for sample in samples]
    expected_table = pandas.concat(parts, ignore_index=True)
    pandas.testing.assert_frame_equal(some.table("contigs.tsv")[expected_table.columns], expected_table)


def test_contigs_are_called_calibrated_and_written(project: NewProject) -> None:
    some = project()
    phage, bacterium = genome("phage_heldout.fna"), genome("bacterium_heldout.fna")
    some.write("data/phage.fna", pieces(genome("phage_train.fna"), 1500, 1000))
    some.write("data/bacterium.fna", pieces(genome("bacterium_train.fna.gz"), 1500, 1500))
    sequences = {"lysogen": bacterium[:8000] + phage[:9000] + bacterium[8000:16000], "phage": phage, "stub": "AC"}
    some.write("data/new.fna", fasta(sequences))
    some.configure(genetic_code=11, calls={"region_min_chunks": 2})
    trained = [("p", "data/phage.fna", "contigs", "virus"), ("b", "data/bacterium.fna", "contigs", "non-viral")]
    some.write_sheet(*trained, ("new", "data/new.fna"))
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("p", "b", "new", called=["new"], once=["train"])
    check_sequences(some, {"new": sequences}, "virus.fna")
    assert "genetic_code=11" in some.read("results/virus.fna")
    contigs = some.table("new/contigs.tsv").set_index("contig")
    assert contigs.loc["stub", ["decision", "tier", "reason"]].tolist() == ["not called", "NA", "shorter than a codon"]
    assert contigs.loc["phage", "decision"] in ("virus", "ambiguous", "non-viral")
    held_out = json.loads(some.read("results/classifier/calibration.json"))
    path = some.path("results/classifier/classifier.safetensors")
    assert held_out["classifier_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    called = contigs["decision"] != "not called"
    assert (contigs.loc[called, "fdr"] == "uncalibrated").all() == (held_out["method"] == "none")

    # Other thresholds classify anew, and train nothing.
    some.configure(genetic_code=11, calls={"region_min_chunks": 2, "virus_score": 0.7})
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == ["all", "check_samples", "classify_contigs new", "combine", "draw", "summarize"]

    # The same classifier as one that is given; other pieces calibrate it, and are called, too.
    shutil.copy(path, some.path("data/kept.safetensors"))
    some.write("data/phage2.fna", pieces(phage, 700, 300))
    some.write("data/bacterium2.fna", pieces(bacterium, 700, 300))
    calls = {"preset": "conservative", "margin": 0.2, "min_length_bp": 700, "min_chunks": 1, "max_fdr": 0.5}
    some.configure(genetic_code=11, calls=calls, classifier="data/kept.safetensors", output_bgzip=True)
    labelled = [("p2", "data/phage2.fna", "contigs", "virus"), ("b2", "data/bacterium2.fna", "contigs", "non-viral")]
    some.write_sheet(*labelled, ("new", "data/new.fna"))
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("p2", "b2", called=["p2", "b2", "new"], once=["calibrate"])
    calibration = json.loads(some.read("results/classifier/calibration.json"))
    assert (calibration["method"], calibration["split"]) == ("sigmoid", "all")
    for sample in ("p2", "b2", "new"):
        table = some.table(f"{sample}/contigs.tsv")
        table = table[table["decision"] != "not called"].astype({"score": float, "p_virus": float, "fdr": float})
        table = table.sort_values("score", ascending=False)
        expected = (1 - table["p_virus"]).cumsum() / np.arange(1, len(table) + 1)
        assert (table["fdr"] - expected.groupby(table["score"]).transform("last")).abs().max() < 1e-7
        assert ((table["decision"] == "virus") == (table["fdr"] <= 0.5)).all()
        assert some.path(f"results/{sample}/virus.fna.gz").exists()
    assert some.path("results/virus.fna.gz").exists()
    assert some.run().jobs == []
