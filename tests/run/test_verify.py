"""``holdfast verify``: published values against models with other weights, and made values against their own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from holdfast.errors import ConfigError
from holdfast.models.registry import load_tokenizer, open_model, read_prepared
from holdfast.results.classifier import load_published
from holdfast.run.verify import PUBLISHED_VALUES, read_values

ENTRY = Path(__file__).parents[2] / "workflow/scripts/entry.py"
WRITER = Path(__file__).parents[1] / "results/virnucpro.py"
PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "GLDALQITV"]
DNA = ["ATGGCATTAGCATCAGGACTTACGATC", "TTAGGCATCAGGACTTACGATCATGGC"]


def verify(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, ENTRY, "verify", *map(str, words), "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def claimed(model: Path, source: str, directory: Path) -> Path:
    """A prepared model that says it was made from something else."""
    shutil.copytree(model, directory)
    content = json.loads((directory / "model.json").read_text())
    (directory / "model.json").write_text(json.dumps(content | {"source": source, "synthetic": False}))
    return directory


def alone(model: Path, sequence: str) -> np.ndarray:
    """States of the last layer by the encoder itself, float32 [tokens, width]."""
    ids, lengths = load_tokenizer(read_prepared(model), model)([sequence])
    states = open_model(model, "cpu", "fp32").encode(torch.from_numpy(ids.astype(np.int64)), lengths.tolist())
    return states.float().numpy()


def mean(model: Path, sequence: str) -> np.ndarray:
    states = alone(model, sequence)
    return (states if read_prepared(model).mean_of == "tokens" else states[1:-1]).mean(0)


def made_values(models: dict[str, Path], probabilities: list[list[float]]) -> dict[str, object]:
    """Values of two synthetic models in the form of the published ones."""
    entries = []
    for name, sequences in (("esm2", PROTEINS), ("dnabert_s", DNA)):
        known = read_prepared(models[name])
        rows = []
        for sequence in sequences:
            states = alone(models[name], sequence)
            for pooling, row, vector in (
                ("mean", 0, mean(models[name], sequence)),
                ("cls", 0, states[0]),
                ("residues", 2, states[3]),
            ):
                values = {"begins": vector[:4].tolist(), "others": {"77": float(vector[77])}}
                where = {"sequence": sequence, "pooling": pooling, "row": row}
                rows.append(where | values | {"norm": float(np.linalg.norm(vector))})
        entry = {"names": [known.source], "family": known.family, "layers": known.layers, "width": known.width}
        entries.append(entry | {"origin": "the encoder itself", "tolerance": 1e-5, "rows": rows})
    frames = [
        {"protein": protein, "dna": dna, "p_non_viral": non_viral, "p_virus": virus}
        for protein, dna, (non_viral, virus) in zip(PROTEINS, DNA, probabilities, strict=True)
    ]
    method = {
        "protein": "synthetic:esm2_t6_8M_UR50D",
        "dna": "synthetic:dnabert_s_tiny",
        "classifier": "a random network",
        "origin": "the network itself",
        "tolerance": 1e-4,
        "frames": frames,
    }
    return {"models": entries, "methods": [method]}


def test_a_synthetic_model_has_no_published_values(models: dict[str, Path]) -> None:
    ended = verify(models["esm2"])
    assert (ended.returncode, ended.stderr) == (3, "")
    assert ended.stdout.startswith(f"{models['esm2']}: nothing to compare with: its weights are synthetic, random; ")
    assert "facebook/esm2_t6_8M_UR50D, biohub/ESMC-300M" in ended.stdout


def test_a_model_without_published_values_says_so(models: dict[str, Path], tmp_path: Path) -> None:
    ended = verify(claimed(models["esm2"], "lab/finetuned.pt", tmp_path / "model"))
    assert (ended.returncode, ended.stderr) == (3, "")
    assert "nothing to compare with: it was made from lab/finetuned.pt; there are published values for" in ended.stdout


@pytest.mark.parametrize(
    "source",
    [
        "facebook/esm2_t6_8M_UR50D",
        "weights/ESM2_t6_8M_UR50D.pt",
        "/data/hub/models--facebook--esm2_t6_8M_UR50D/snapshots/0123abcd",
    ],
)
def test_other_weights_under_a_published_name_are_found_out(
    models: dict[str, Path], tmp_path: Path, source: str
) -> None:
    model = claimed(models["esm2"], source, tmp_path / "model")
    ended = verify(model)
    assert (ended.returncode, ended.stdout) == (2, "")
    head, *lines = ended.stderr.splitlines()
    assert head.startswith(f"holdfast: error: {model}: is not the published facebook/esm2_t6_8M_UR50D: 9 of 9 values ")
    assert "(transformers, tests of EsmModel, fp32); download it again" in head
    cls = alone(model, "GLDALQITV")[0]
    key, _, found = lines[0].rpartition(": ")
    assert key == "  cls of GLDALQITV, value 0"
    assert found.endswith(", published 0.144431")
    assert float(found.partition(",")[0]) == pytest.approx(float(cls[0]), abs=1e-4)
    assert len(lines) == 9
    assert lines[-1] == "  ... and 1 more"


def test_a_model_of_other_sizes_under_a_published_name_is_named_with_its_sizes(
    models: dict[str, Path], tmp_path: Path
) -> None:
    ended = verify(claimed(models["dnabert_s"], "zhihan1996/DNABERT-S", tmp_path / "model"))
    assert ended.returncode == 2
    assert "which is mosaic_bert of 12 layers, width 768; this is mosaic_bert of 2 layers, width 96" in ended.stderr


def test_a_model_is_compared_with_what_it_is_said_to_be(models: dict[str, Path]) -> None:
    ended = verify(models["esm2"], "--as", "esm2_t6_8M_UR50D")
    assert ended.returncode == 2
    assert "is not the published facebook/esm2_t6_8M_UR50D" in ended.stderr
    ended = verify(models["esm2"], "--as", "esm3")
    assert ended.returncode == 2
    assert "--as esm3: takes one DIR, and the name of a model with published values: facebook/" in ended.stderr


def test_right_weights_agree_and_so_does_their_classifier(models: dict[str, Path], tmp_path: Path) -> None:
    subprocess.run([sys.executable, WRITER, str(320 + 96), tmp_path], check=True)
    network = tmp_path / "500_model.pth"
    pairs = [(mean(models["dnabert_s"], dna), mean(models["esm2"], aa)) for dna, aa in zip(DNA, PROTEINS, strict=True)]
    features = np.array([np.concatenate(pair) for pair in pairs], np.float32)
    probabilities = load_published(network).predict(features).tolist()
    values = tmp_path / "values.yaml"
    both = (models["esm2"], models["dnabert_s"])

    values.write_text(yaml.safe_dump(made_values(models, probabilities)))
    ended = verify(*both, "--classifier", network, "--values", values)
    assert (ended.returncode, ended.stderr) == (0, "")
    esm2, dnabert_s, classifier = ended.stdout.splitlines()
    assert esm2.startswith(f"{models['esm2']}: computes the published synthetic:esm2_t6_8M_UR50D: 36 values agree (")
    assert dnabert_s.startswith(f"{models['dnabert_s']}: computes the published synthetic:dnabert_s_tiny: 36 values ")
    assert classifier.startswith(f"{network}: computes a random network: 4 values agree (largest difference ")

    values.write_text(yaml.safe_dump(made_values(models, [[0.5, 0.5], *probabilities[1:]])))
    ended = verify(*both, "--classifier", network, "--values", values)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"{network}: is not a random network: 2 of 4 values differ" in ended.stderr
    ended = verify(models["esm2"], "--classifier", network, "--values", values)
    assert ended.returncode == 2
    assert "to verify a classifier, name the two models of its method, too: synthetic:esm2" in ended.stderr


def test_the_values_that_come_with_holdfast_are_whole() -> None:
    values = read_values(PUBLISHED_VALUES)
    assert {entry.names[0]: sum(len(row.wanted) for row in entry.rows) for entry in values.models} == {
        "facebook/esm2_t6_8M_UR50D": 9,
        "biohub/ESMC-300M": 18,
        "facebook/esm2_t36_3B_UR50D": 40,
        "zhihan1996/DNABERT-S": 40,
    }
    (method,) = values.methods
    assert {method.protein, method.dna} <= {entry.names[0] for entry in values.models}
    assert [frame.p_non_viral + frame.p_virus for frame in method.frames] == pytest.approx([1.0] * 4, abs=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("models: []", "methods is missing"),
        ("models: [{names: a}]\nmethods: []", "is missing"),
        ("- 1", "the document must hold names and values"),
        (
            "methods: []\nmodels: [{names: [a], family: esm, layers: 1, width: 1, origin: x, tolerance: 0.1, rows: "
            "[{sequence: MKV, pooling: middle, row: 0, begins: [], others: {}, norm: null}]}]",
            "row, others or pooling of MKV is none",
        ),
    ],
)
def test_another_file_is_no_file_of_values(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "values.yaml").write_text(content)
    with pytest.raises(ConfigError, match=rf"values.yaml: not reference values \(.*{message}"):
        read_values(tmp_path / "values.yaml")
    with pytest.raises(ConfigError, match=r"none: cannot be read: No such file"):
        read_values(tmp_path / "none")
