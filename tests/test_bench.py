"""The benchmarks' tools that users are pointed to, run as they are documented."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

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
