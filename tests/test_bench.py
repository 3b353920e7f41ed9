"""The benchmarks' tools that users are pointed to, run as they are documented."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from holdfast.models.registry import read_prepared

ROOT = Path(__file__).parents[1]


def test_a_trace_holds_every_matrix_product_of_the_batches(tmp_path: Path, models: dict[str, Path]) -> None:
    told = [models["esm2"], tmp_path / "trace.json", "--tokens-per-batch", "512"]
    ended = subprocess.run(
        [sys.executable, ROOT / "bench/trace.py", *map(str, told)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == f"{tmp_path}/trace.json: 2 batches of esm on cpu\n"
    events = Counter(event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"])
    layers = read_prepared(models["esm2"]).layers
    assert events["aten::addmm"] == 2 * 4 * layers  # qkv, attention_output, mlp_in, mlp_out; one part a batch
    assert events["aten::scaled_dot_product_attention"] == 2 * layers  # one length


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("words", "sections"),
    [
        (["scaling.py", "--simulated", "--devices", "1", "2", "--share", "0.02"], 5),
        (["size.py", "--records", "3000"], 4),
        (["calls.py", "--contigs", "3000"], 1),
    ],
)
def test_benches_without_a_gpu_run_and_say_what_they_found(tmp_path: Path, words: list[str], sections: int) -> None:
    program, *options = words
    subprocess.run(
        [sys.executable, ROOT / "bench" / program, *options, "--directory", tmp_path, "--results", tmp_path / "found"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts")},
        check=True,
    )
    (path,) = (tmp_path / "found").glob("*.json")
    machine, *found = json.loads(path.read_text()).values()
    assert "device" in machine
    assert len(found) == sections
    assert all(isinstance(value, int | float) for figures in found for value in figures.values())
