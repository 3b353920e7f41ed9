"""Preparation in little memory: the largest layer decides, not the model."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from holdfast.models.registry import read_prepared

ENTRY = Path(__file__).parents[2] / "workflow/scripts/entry.py"
LOOK_S = 0.02
SOURCE = "synthetic:esm2_t33_650M_UR50D"
ROOM_BYTES = 2 * 10**9  # beside the largest layer: Python, torch, the reference's library


def peak_anonymous_bytes(process: "subprocess.Popen[str]") -> int:
    """The most that a process has of memory of its own (RssAnon) until it ends; mapped files are the page cache's."""
    peak_kib = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)  # none of a process that has ended
        peak_kib = max(peak_kib, int(found[1]) if found else 0)
        time.sleep(LOOK_S)
    return peak_kib * 1024


@pytest.mark.thorough
def test_memory_is_that_of_the_largest_layer(tmp_path: Path) -> None:
    """From random values through the published format and the comparison with the reference, 2.6 GB of them."""
    command = [sys.executable, ENTRY, "prepare", SOURCE, "--output", tmp_path / "prepared"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    peak_bytes = peak_anonymous_bytes(process)
    weights = tmp_path / "prepared/model.safetensors"
    try:
        assert process.wait() == 0
        known = read_prepared(tmp_path / "prepared")
        assert known.verification["reference"] == "fair-esm"
        file_bytes = weights.stat().st_size
        layer_bytes = file_bytes / known.layers  # in fp32, in which it is compared
        assert file_bytes > 2.5e9
        assert peak_bytes < layer_bytes + ROOM_BYTES
        assert peak_bytes < file_bytes / 3
    finally:
        weights.unlink(missing_ok=True)
