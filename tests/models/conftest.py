"""Small published checkpoints with synthetic weights."""

from pathlib import Path

import pytest

from tests.models import checkpoints


@pytest.fixture
def fair_esm(tmp_path: Path) -> Path:
    return checkpoints.write_fair_esm(tmp_path / "esm2_small.pt", checkpoints.fair_esm_state())


@pytest.fixture
def dnabert(tmp_path: Path) -> Path:
    return checkpoints.write_dnabert_s(tmp_path / "published", checkpoints.golden_weights())
