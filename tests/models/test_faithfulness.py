"""How far half precision is from fp32 on the same weights, with and without outlier channels in the residual stream."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from holdfast.models import ops
from holdfast.models.encoder import IN_FP32, Encoder
from holdfast.models.prepare import prepare
from holdfast.models.registry import Output, open_model
from holdfast.models.synthetic import OUTLIER_CHANNELS, OUTLIER_SIZE
from torch import Tensor

LENGTHS = [20 + 7 * number for number in range(12)]
# Largest centred errors. The narrower a model, the more of it a channel of 300 drowns; `bench/passes.py` measures
# ESM-2 650M and 3B, where it should stay below 5e-3.
SOURCES = {
    "synthetic:esm2_t6_8M_UR50D": 2e-3,
    "synthetic:esm2_t6_8M_UR50D+outliers": 5e-3,
    "synthetic:esm1b_tiny+outliers": 5e-3,
    "synthetic:esmc_tiny+outliers": 3e-2,
    "synthetic:ankh_tiny+outliers": 3e-2,
    "synthetic:dnabert_s_tiny+outliers": 3e-2,
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared models, their weights rounded to fp16, so that fp32 on them is the oracle."""
    found = {}
    for source in SOURCES:
        found[source] = tmp_path_factory.mktemp("models") / "model"
        prepare(source, found[source])
    return found


def means(model: Encoder) -> np.ndarray:
    ids = torch.from_numpy(np.random.default_rng(5).integers(5, 24, sum(LENGTHS)))
    output = Output(model.layers, "mean")
    return model.embed(ids, LENGTHS, [output])[output].numpy()


def rounded(directory: Path) -> Encoder:
    model = open_model(directory)
    for name, tensor in model._weights.items():
        if name not in IN_FP32:
            model._weights[name] = tensor.half().float()
    return model


def centred_error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact - exact.mean(0)))


@pytest.mark.parametrize("source", SOURCES)
def test_vectors_in_half_precision(source: str, directories: dict[str, Path]) -> None:
    exact = means(rounded(directories[source]))
    error = centred_error(means(open_model(directories[source], precision="fp16")), exact)
    print(f"{source}: {error:.1e}")
    assert error < SOURCES[source]


def test_a_stream_in_half_precision_would_not_do(directories: dict[str, Path]) -> None:
    directory = directories["synthetic:esm2_t6_8M_UR50D+outliers"]
    exact, model = means(rounded(directory)), open_model(directory, precision="fp16")
    kept = centred_error(means(model), exact)
    model.stream_dtype = torch.float16
    half = centred_error(means(model), exact)
    print(f"{kept:.1e}, in half precision {half:.1e}")
    assert half > 3 * kept


def test_outliers_are_where_they_are_said_to_be(directories: dict[str, Path]) -> None:
    def states(source: str) -> Tensor:
        model = open_model(directories[source])
        return model.encode(torch.arange(5, 24), [19], model.layers - 1)

    plain, pushed = states("synthetic:esm2_t6_8M_UR50D"), states("synthetic:esm2_t6_8M_UR50D+outliers")
    assert float(plain.abs().max()) < 30
    assert sorted(pushed.abs().mean(0).topk(2).indices.tolist()) == sorted(OUTLIER_CHANNELS)
    assert bool(((pushed[:, list(OUTLIER_CHANNELS)] - OUTLIER_SIZE).abs() < 30).all())


class Broken(SimpleNamespace):
    """Operations as a device's kernels have them."""

    FAILURES = (RuntimeError,)


@pytest.mark.parametrize("failure", ["a wrong value", "no value", "not built"])
def test_plain_torch_takes_over_from_kernels_that_do_not_do(
    failure: str, directories: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if failure == "not built":
            raise RuntimeError(f"PTX of {failure}\nand more")
        return ops.linear_gelu(x, weight, bias) * (1.2 if failure == "a wrong value" else float("nan"))

    ops.say_plain.cache_clear()
    model = open_model(directories["synthetic:esm2_t6_8M_UR50D+outliers"], precision="fp16")
    for _ in range(2):
        model._ops = Broken(**{**vars(ops), "linear_gelu": linear_gelu})
        model.settle_ops()
        assert model._ops is ops
    assert len(caplog.records) == 1
    assert "plain torch is used" in caplog.text
    model._ops = right = Broken(**vars(ops))
    model.settle_ops()
    assert model._ops is right
