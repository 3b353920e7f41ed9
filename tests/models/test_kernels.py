"""The Triton kernels against plain torch in fp32; only where there is a CUDA device."""

import pytest
import torch
from holdfast.models.ops import add_norm, attention, gelu, rotate
from holdfast.models.packing import Packing

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
kernels = pytest.importorskip("holdfast.models.kernels")

LENGTHS = [1, 3, 168, 168, 31, 700, 64, 65]
SHAPES = [(40, 64), (20, 16), (20, 24), (20, 32), (12, 8), (40, 128)]  # heads and their width, of all published sizes


def random_halves(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).half().cuda()


@pytest.mark.parametrize(("heads", "width"), SHAPES)
@pytest.mark.parametrize("with_slopes", [False, True])
def test_attention_equals_plain_torch(heads: int, width: int, with_slopes: bool) -> None:
    packing = Packing(LENGTHS, torch.device("cuda"))
    qkv = random_halves(sum(LENGTHS), 3, heads, width)
    slopes = torch.linspace(0.01, 0.7, heads).cuda() if with_slopes else None
    expected = attention(qkv.float(), packing, slopes)
    error = (kernels.attention(qkv, packing, slopes).float() - expected).norm() / expected.norm()
    assert float(error) < 1e-3


@pytest.mark.parametrize(("heads", "width"), SHAPES)
def test_rotation_equals_plain_torch(heads: int, width: int) -> None:
    qkv = random_halves(500, 3, heads, width)
    angles = torch.rand(500, width // 2).cuda() * 1000
    cosine, sine = angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), dim=1)
    expected = qkv.float()
    rotate(expected, cosine, sine)
    kernels.rotate(qkv, cosine, sine)
    torch.testing.assert_close(qkv.float(), expected, rtol=1e-3, atol=1e-3)


def test_sum_and_norm_and_gelu_equal_plain_torch() -> None:
    x, y = random_halves(300, 480), random_halves(300, 480).flip(0)
    weight, bias = random_halves(480), random_halves(480)
    total, normed = add_norm(x.float(), y.float(), weight.float(), bias.float(), 1e-5)
    activated = gelu(3 * x.float())
    torch.testing.assert_close(kernels.gelu(3 * x).float(), activated, rtol=2e-3, atol=2e-3)
    found = kernels.add_norm(x, y, weight, bias, 1e-5)
    torch.testing.assert_close(found[0].float(), total, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found[1].float(), normed, rtol=5e-3, atol=5e-3)
