"""The Triton kernels against plain torch in fp32: on a GPU, or by Triton's interpreter where Triton is installed."""

import os

import pytest
import torch
from holdfast.models import ops
from holdfast.models.packing import Packing
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read as Triton is imported, which nothing else does without a GPU
pytest.importorskip("triton")
kernels = pytest.importorskip("holdfast.models.kernels")

LENGTHS = [1, 3, 168, 168, 31, 700, 64, 65] if DEVICE.type == "cuda" else [1, 31, 65, 130]
# Heads and their width, of all published sizes; the last are those of ESM C and T5.
SHAPES = [(40, 64), (20, 16), (20, 24), (20, 32), (12, 8), (40, 128), (15, 64), (32, 128)]
if DEVICE.type == "cpu":
    SHAPES = [(3, 24), (2, 128)]
HALVES = [torch.float16, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float16]
ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def random_halves(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("heads", "width"), SHAPES)
@pytest.mark.parametrize("bias", ["none", "slopes", "table"])
def test_attention_equals_plain_torch(heads: int, width: int, bias: str, dtype: torch.dtype) -> None:
    packing = Packing(LENGTHS, DEVICE)
    qkv = random_halves(sum(LENGTHS), 3, heads, width, dtype=dtype)
    options: dict[str, object] = {}
    if bias == "slopes":
        options = {"slopes": torch.linspace(0.01, 0.7, heads).to(DEVICE)}
    elif bias == "table":  # not symmetric, shorter than the sequences, and scores that are not scaled down as usual
        table = torch.randn((heads, 2 * 20 + 1), generator=torch.Generator().manual_seed(2)).to(DEVICE)
        options = {"table": table, "scale": 0.3}
    expected = ops.attention(qkv.float(), packing, **options)
    assert relative_error(kernels.attention(qkv, packing, **options), expected) < ROUNDING[dtype] / 2
    if options:
        assert relative_error(ops.attention(qkv.float(), packing), expected) > 0.01  # so the bias matters


@pytest.mark.parametrize(("heads", "width"), SHAPES)
def test_rotation_equals_plain_torch(heads: int, width: int) -> None:
    qkv = random_halves(50, 3, heads, width)
    angles = torch.rand((50, width // 2), generator=torch.Generator().manual_seed(3)).to(DEVICE) * 1000
    cosine, sine = angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), dim=1)
    expected = qkv.float()
    ops.rotate(expected, cosine, sine)
    kernels.rotate(qkv, cosine, sine)
    torch.testing.assert_close(qkv.float(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("heads", "width"), SHAPES)
def test_norms_of_queries_and_keys_equal_plain_torch(heads: int, width: int) -> None:
    qkv = 3 * random_halves(30, 3, heads, width) + 1
    query, key = random_halves(heads * width, seed=2), random_halves(heads * width, seed=3)
    expected = qkv.float()
    ops.norm_heads(expected, query.float(), key.float(), 1e-5)
    values = qkv[:, 2].clone()
    kernels.norm_heads(qkv, query, key, 1e-5)
    torch.testing.assert_close(qkv.float(), expected, rtol=5e-3, atol=5e-3)
    assert torch.equal(qkv[:, 2], values)


@pytest.mark.parametrize("stream", [torch.float16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_sum_and_norm_equal_plain_torch(scale: float, bias: bool, stream: torch.dtype) -> None:
    """Also of a residual stream in fp32, whose values half precision could not hold."""
    x, y = random_halves(50, 480, dtype=stream), random_halves(50, 480, seed=2)
    if stream == torch.float32:
        x *= 1e5
    weight, shift = random_halves(480, seed=3), random_halves(480, seed=4) if bias else None
    wide = None if shift is None else shift.float()
    total, normed = ops.add_norm(x.float(), y.float(), weight.float(), wide, 1e-5, scale)
    found = kernels.add_norm(x, y, weight, shift, 1e-5, scale)
    assert (found[0].dtype, found[1].dtype) == (stream, torch.float16)
    torch.testing.assert_close(found[0].float(), total, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found[1].float(), normed, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("stream", [torch.float16, torch.float32])
def test_sum_and_rms_norm_equal_plain_torch(stream: torch.dtype) -> None:
    x, y = random_halves(50, 480, dtype=stream) + 2, random_halves(50, 480, seed=2)
    if stream == torch.float32:
        x *= 1e5
    weight = random_halves(480, seed=3)
    total, normed = ops.add_rms_norm(x.float(), y.float(), weight.float(), 1e-6)
    found = kernels.add_rms_norm(x, y, weight, 1e-6)
    assert (found[0].dtype, found[1].dtype) == (stream, torch.float16)
    torch.testing.assert_close(found[0].float(), total, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found[1].float(), normed, rtol=5e-3, atol=5e-3)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated_activations_equal_plain_torch(activation: str) -> None:
    x = 3 * random_halves(20, 2 * 2100)  # more columns than a block has
    expected = ops.gated(x.float(), activation)
    torch.testing.assert_close(kernels.gated(x, activation).float(), expected, rtol=2e-3, atol=2e-3)


def test_gelu_equals_plain_torch() -> None:
    x = 3 * random_halves(30, 480)
    torch.testing.assert_close(kernels.gelu(x.clone()).float(), ops.gelu(x.float()), rtol=2e-3, atol=2e-3)
