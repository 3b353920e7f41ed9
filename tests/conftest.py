"""What several unit tests need: prepared synthetic models, made once a session."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine that does other work at the same time is slow, which is no defect of the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

HOLDFAST = Path(__file__).parents[1] / "workflow/scripts/entry.py"
SOURCES = {"esm2": "synthetic:esm2_t6_8M_UR50D", "dnabert_s": "synthetic:dnabert_s_tiny"}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of prepared synthetic models, the same for all processes of a pytest-xdist run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    directories = {model: shared / "models" / model for model in SOURCES}
    with open(shared / "models.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        preparations = [
            subprocess.Popen([sys.executable, HOLDFAST, "prepare", source, "--output", directories[model]])
            for model, source in SOURCES.items()
            if not directories[model].exists()
        ]
        assert [preparation.wait(600) for preparation in preparations] == [0] * len(preparations)
    return directories
