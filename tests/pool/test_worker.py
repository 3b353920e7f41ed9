"""What a worker asks of its device before it loads anything."""

from pathlib import Path

import pytest
from holdfast.errors import ResourceError
from holdfast.models.prepare import prepare
from holdfast.pool.worker import WorkerSettings, require_memory

GB = 10**9


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models") / "esm2"
    prepare("synthetic:esm2_t12_35M_UR50D", found)
    return found


def settings(directory: Path, precision: str = "fp16") -> WorkerSettings:
    return WorkerSettings("cuda:0", {"esm2": directory}, precision, 1, "", 0.9, 0)


def test_a_card_with_room_is_taken(directory: Path) -> None:
    require_memory(settings(directory), "Card", GB, GB)


def test_a_card_that_is_too_small_names_need_size_and_a_smaller_model(directory: Path) -> None:
    """33.5 million numbers of 2 bytes and 537 MB to work are 0.604 GB; 0.9 of 0.65 GB are 0.585."""
    with pytest.raises(ResourceError) as refused:
        require_memory(settings(directory), "Card", int(0.65 * GB), int(0.65 * GB))
    assert str(refused.value) == (
        "cuda:0: the models need 0.6 GB in fp16 (weights: esm2 0.1 GB; to work: 0.5 GB), the Card has 0.7 GB, of which "
        "pool.memory_fraction leaves 0.6 GB; use ESM-2 8M or less in place of esm2, a larger card or pool.device: cpu"
    )
    with pytest.raises(ResourceError, match="precision: fp16, a larger card"):
        require_memory(settings(directory, "fp32"), "Card", int(0.65 * GB), int(0.65 * GB))


def test_a_card_that_others_fill_is_another_matter(directory: Path) -> None:
    with pytest.raises(ResourceError, match=r"Card has 80\.0 GB, of which 0\.2 GB are free; end what holds the rest"):
        require_memory(settings(directory), "Card", int(0.2 * GB), 80 * GB)
