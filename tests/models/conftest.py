"""Small published checkpoints with synthetic weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models are so small that several threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fair_esm(tmp_path: Path) -> Path:
    from tests.models import checkpoints  # imports fair-esm, which the kernels' tests do without

    return checkpoints.write_fair_esm(tmp_path / "esm2_small.pt", checkpoints.fair_esm_state())


@pytest.fixture
def dnabert(tmp_path: Path) -> Path:
    from tests.models import checkpoints

    return checkpoints.write_dnabert_s(tmp_path / "published", checkpoints.golden_weights())
