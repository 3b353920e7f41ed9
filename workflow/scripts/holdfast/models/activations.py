"""Activations inside Triton kernels."""

# mypy: disable-error-code="import-not-found,no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def gelu_of(value):
    """X * Phi(x), within 3e-6 for every x, in fp32.

    Phi is taken as the logistic function of x * q(x^2); q, of degree 4, was fitted to the smallest largest error of
    the product from -8 to 8, and does not fall below 1.59 anywhere. The coefficients are for powers of 2.
    """
    square = value * value
    q = ((3.2290402577904424e-6 * square - 8.823898404990713e-5) * square - 3.602704942637027e-4) * square
    q = (q + 0.1052266821617731) * square + 2.302045391397588
    return value / (1.0 + tl.exp2(-value * q))
