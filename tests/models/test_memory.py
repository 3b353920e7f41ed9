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
@pytest.mark.parametrize(
    ("architecture", "item_bytes", "reference"),
    [
        ("esm2_t36_3B_UR50D", 2, "fair-esm"),
        ("prot_t5_xl_half_uniref50-enc", 4, "transformers T5EncoderModel"),
    ],
)
def test_memory_is_that_of_the_largest_layer(
    tmp_path: Path, architecture: str, item_bytes: int, reference: str
) -> None:
    """From random values through the published format and the comparison with the reference, of 5 GB and more."""
    command = [sys.executable, ENTRY, "prepare", f"synthetic:{architecture}", "--output", tmp_path / "prepared"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    peak_bytes = peak_anonymous_bytes(process)
    weights = tmp_path / "prepared/model.safetensors"
    try:
        assert process.wait() == 0
        known = read_prepared(tmp_path / "prepared")
        assert known.verification["reference"] == reference
        file_bytes = weights.stat().st_size
        layer_bytes = file_bytes / item_bytes * 4 / known.layers  # in fp32, in which it is compared
        assert file_bytes > 4.5e9
        assert peak_bytes < layer_bytes + ROOM_BYTES
        assert peak_bytes < file_bytes / 3
    finally:
        weights.unlink(missing_ok=True)
