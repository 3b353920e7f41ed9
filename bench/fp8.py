"""An experiment: ESM-2 with fp8 matrix products, a scale a row of the activations and a column of the weights.

Only to see what it would buy and what it costs in accuracy; the workflow has no such path. Uses torch's private
``_scaled_mm``, which needs an H100 or newer.
"""

import torch
from holdfast.models.esm import Esm
from holdfast.models.ops import Angles
from holdfast.models.packing import Packing
from holdfast.models.registry import Prepared
from torch import Tensor

LARGEST = 448.0  # of float8_e4m3fn


class Fp8(Esm):
    """ESM-2 whose four matrix products a layer take fp8 operands and give fp16."""

    def __init__(self, weights: dict[str, Tensor], prepared: Prepared) -> None:
        super().__init__(weights, prepared)
        self._small = {
            name.removesuffix(".weight"): quantised(tensor)
            for name, tensor in weights.items()
            if name.startswith("layers.") and tensor.dim() == 2
        }
        self._quantised = torch.compile(quantised, dynamic=True)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        small, scale = self._small[name]
        rows, row_scale = self._quantised(x)
        product: Tensor = torch._scaled_mm(rows, small.t(), row_scale, scale.t(), out_dtype=torch.bfloat16)
        return product.to(x.dtype) + self._weights[name + ".bias"]

    def _linear_gelu(self, x: Tensor, name: str) -> Tensor:
        found: Tensor = self._ops.gelu(self._linear(x, name))
        return found

    def _rotary_attention(self, x: Tensor, name: str, packing: Packing, angles: Angles) -> Tensor:
        qkv = self._linear(x, name).view(len(x), 3, self._heads, -1)
        self._ops.rotate_keys(qkv, angles)
        attended: Tensor = self._ops.attention(qkv, packing, angles=angles)
        return attended

    def _add_linear_norm(
        self, x: Tensor, y: Tensor, product: str, norm: str, scale: float = 1.0, after: bool = False
    ) -> tuple[Tensor, Tensor]:
        stream, normed = self._ops.add_norm(x, self._linear(y, product), self._norm(norm), scale, after)
        return stream, normed


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in fp8 and the scale of each, fp32 [rows, 1]."""
    scale = x.abs().amax(1, keepdim=True).float().clamp(min=1e-6) / LARGEST
    return (x.float() / scale).to(torch.float8_e4m3fn), scale
