"""Random arrays and packed weights, as the tests of the operations want them."""

import mlx.core as mx
import numpy as np

from mlx_glu.quantization import QuantizedWeight


def normal(rng, *shape, scale=1.0, dtype=mx.float32):
    return mx.array((rng.normal(size=shape) * scale).astype(np.float32)).astype(dtype)


def quantized(w, bits=4, group_size=64, mode="affine"):
    weight, scales, *biases = mx.quantize(w, group_size, bits, mode=mode)
    biases = biases[0] if biases else None
    return QuantizedWeight(weight, scales, biases, group_size, bits, mode)
