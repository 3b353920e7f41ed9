"""The Triton kernels against plain torch in fp32: on a GPU, or by Triton's interpreter where Triton is installed."""

import os
from pathlib import Path

import pytest
import torch
from holdfast.models import ops
from holdfast.models.encoder import IN_FP32
from holdfast.models.esm import rotary_angles
from holdfast.models.packing import Packing
from holdfast.models.prepare import prepare
from holdfast.models.registry import open_model
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read as Triton is imported, which nothing else does without a GPU
pytest.importorskip("triton")
kernels = pytest.importorskip("holdfast.models.kernels")
products = pytest.importorskip("holdfast.models.products")

pytestmark = pytest.mark.filterwarnings(  # numpy's, in the interpreter
    "ignore:Conversion of an array with ndim:DeprecationWarning", "ignore:overflow encountered in exp:RuntimeWarning"
)

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


def angles_of(packing: Packing, width: int) -> ops.Angles:
    return rotary_angles(packing, 1 / 10000 ** (torch.arange(0, width, 2, device=DEVICE) / width))


@pytest.mark.parametrize(("heads", "width"), SHAPES)
def test_rotation_of_keys_equals_plain_torch(heads: int, width: int) -> None:
    angles = angles_of(Packing([1, 49], DEVICE), width)
    qkv = random_halves(50, 3, heads, width)
    expected = qkv.float()
    ops.rotate(expected, angles)
    others = qkv[:, ::2].clone()
    kernels.rotate_keys(qkv, angles)
    torch.testing.assert_close(qkv[:, 1].float(), expected[:, 1], rtol=1e-3, atol=1e-3)
    assert torch.equal(qkv[:, ::2], others)


@pytest.mark.parametrize(("heads", "width"), SHAPES)
def test_norms_and_rotation_of_queries_and_keys_equal_plain_torch(heads: int, width: int) -> None:
    angles = angles_of(Packing([30], DEVICE), width)
    qkv = 3 * random_halves(30, 3, heads, width) + 1
    query, key = random_halves(heads * width, seed=2), random_halves(heads * width, seed=3)
    expected = qkv.float()
    ops.norm_rotate(expected, query.float(), key.float(), 1e-5, angles)
    values = qkv[:, 2].clone()
    kernels.norm_rotate(qkv, query, key, 1e-5, angles)
    torch.testing.assert_close(qkv.float(), expected, rtol=5e-3, atol=5e-3)
    assert torch.equal(qkv[:, 2], values)


@pytest.mark.parametrize(("heads", "width"), SHAPES)
def test_product_rotation_and_attention_equal_plain_torch(heads: int, width: int) -> None:
    packing = Packing(LENGTHS, DEVICE)
    angles, size = angles_of(packing, width), heads * width
    x, weight, bias = random_halves(sum(LENGTHS), size), random_halves(3 * size, size, seed=2), random_halves(3 * size)
    weight /= size**0.5 / 2  # so that attention is far from even
    expected = ops.rotary_attention(x.float(), weight.float(), bias.float(), heads, packing, angles)
    found = kernels.rotary_attention(x, weight, bias, heads, packing, angles)
    assert relative_error(found, expected) < 2e-3
    unturned = ops.attention((x.float() @ weight.float().T + bias).view(len(x), 3, heads, width), packing)
    assert relative_error(unturned, expected) > 0.01  # so the rotation matters


@pytest.mark.parametrize("pays", [True, False])
def test_product_and_gelu_equal_plain_torch(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "pays_on", lambda _: pays)
    x, weight, bias = 3 * random_halves(150, 96), random_halves(300 - 4, 96, seed=2), random_halves(300 - 4, seed=3)
    weight /= 96**0.5
    expected = ops.linear_gelu(x.float(), weight.float(), bias.float())
    found = kernels.linear_gelu(x, weight, bias)
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)


def test_gelu_is_within_its_bound() -> None:
    x = torch.linspace(-12, 12, 4096, device=DEVICE)
    exact = ops.gelu(x.double())
    assert float((kernels.gelu(x.clone()).double() - exact).abs().max()) < 4e-6
    large = torch.tensor([-6e4, -300.0, 300.0, 6e4], device=DEVICE)
    assert torch.equal(kernels.gelu(large.clone()), torch.tensor([0.0, 0.0, 300.0, 6e4], device=DEVICE))


@pytest.mark.parametrize("stream", [torch.float16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "after"), [(1.0, False), (0.4, False), (1.0, True)])
def test_product_sum_and_norm_equal_plain_torch(scale: float, after: bool, bias: bool, stream: torch.dtype) -> None:
    """Also of a residual stream whose values half precision could not hold."""
    x, y, weight = random_halves(150, 160, dtype=stream), random_halves(150, 96, seed=2), random_halves(160, 96, seed=5)
    weight /= 96**0.5
    if stream == torch.float32:
        x[:, 7] *= 1e5
    product_bias = random_halves(160, seed=6) if bias else None
    gain, shift = random_halves(160, seed=3), random_halves(160, seed=4) if bias else None
    wide = [None if part is None else part.float() for part in (weight, product_bias, gain, shift)]
    norm = ops.Norm(wide[2], wide[3], 1e-5)
    total, normed = ops.add_linear_norm(x.float(), y.float(), wide[0], wide[1], norm, scale, after)
    found = kernels.add_linear_norm(x, y, weight, product_bias, ops.Norm(gain, shift, 1e-5), scale, after)
    assert (found[0].dtype, found[1].dtype) == (stream, torch.float16)
    exact = 1e-3 if stream == torch.float32 else 4e-3  # the branch may be rounded, the stream is not
    torch.testing.assert_close(found[0].float(), total, rtol=exact, atol=exact)
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


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated_activations_equal_plain_torch(activation: str) -> None:
    x = 3 * random_halves(20, 2 * 2100)  # more columns than a block has
    expected = ops.gated(x.float(), activation)
    torch.testing.assert_close(kernels.gated(x, activation).float(), expected, rtol=2e-3, atol=2e-3)


FAMILIES = ["esm1b_tiny", "esmc_tiny", "prot_t5_tiny", "ankh_tiny", "dnabert_s_tiny"]


@pytest.mark.parametrize("architecture", ["esm2", *FAMILIES])
@pytest.mark.parametrize("outliers", ["", "+outliers"])
def test_encoders_are_as_right_with_kernels_as_without(
    architecture: str, outliers: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Centred errors against fp32 on the same weights."""
    if architecture == "esm2":
        if outliers:
            pytest.skip("a checkpoint of its own")
        source = str(request.getfixturevalue("fair_esm"))
    else:
        source = f"synthetic:{architecture}{outliers}"
    prepare(source, tmp_path / "model")
    exact_model = open_model(tmp_path / "model", str(DEVICE), "fp32")
    for name, tensor in exact_model._weights.items():
        if name not in IN_FP32:
            exact_model._weights[name] = tensor.half().float()
    tokens, lengths = torch.arange(5, 19), [5, 9]
    exact = exact_model.encode(tokens, lengths)
    model = open_model(tmp_path / "model", str(DEVICE), "fp16")
    errors = {}
    for functions in (ops, kernels):
        model._ops = functions
        found = model.encode(tokens, lengths).float()
        errors[functions] = float((found - exact).norm() / (exact - exact.mean(0)).norm())
    assert errors[kernels] < max(2e-3, 1.2 * errors[ops])
