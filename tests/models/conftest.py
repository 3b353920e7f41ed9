"""Small published checkpoints with synthetic weights."""

from pathlib import Path

import pytest


@pytest.fixture
def fair_esm(tmp_path: Path) -> Path:
    from tests.models import checkpoints  # imports fair-esm, which the kernels' tests do without

    return checkpoints.write_fair_esm(tmp_path / "esm2_small.pt", checkpoints.fair_esm_state())


@pytest.fixture
def dnabert(tmp_path: Path) -> Path:
    from tests.models import checkpoints

    return checkpoints.write_dnabert_s(tmp_path / "published", checkpoints.golden_weights())
