"""``holdfast`` on a host with pretended GPUs: device files that are plain files, and workers on the CPU.

PRETENDED_GPUS names the directory of the device files, in whose order the GPUs are numbered. CUDA_VISIBLE_DEVICES, a
list of numbers, chooses among them as it does with real ones. Beside ``nvidia0`` may lie ``nvidia0.json``: what NVML
would say of that GPU, as the fields of a :class:`holdfast.pool.hardware.Card`.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "workflow/scripts"))

from holdfast import cli
from holdfast.pool import claims, hardware
from holdfast.pool.hardware import Candidate, Card

HOST = Path(os.environ["PRETENDED_GPUS"])
TITLE = "NVIDIA H100"


def host_gpus() -> list[Candidate]:
    """Every GPU of the host."""
    nodes = sorted(path for path in HOST.glob("nvidia*") if not path.suffix)
    return [Candidate(str(number), f"GPU-{node.name}", TITLE, node) for number, node in enumerate(nodes)]


def visible_gpus() -> list[Candidate]:
    """Those that this process may use; their workers compute on the CPU."""
    found = host_gpus()
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = range(len(found)) if mask is None else map(int, mask.split(","))
    return [found[number]._replace(name=f"cpu:{place}") for place, number in enumerate(chosen)]


def read_card(identity: str) -> Card | None:
    """What NVML would say."""
    path = HOST / f"{identity.removeprefix('GPU-')}.json"
    if not path.exists():
        return None
    stated = json.loads(path.read_text())
    return Card(**{**stated, "processes": tuple(stated["processes"])})


hardware.visible_gpus = visible_gpus
claims.host_gpus = host_gpus
claims.read_card = read_card

if __name__ == "__main__":
    cli.main()
