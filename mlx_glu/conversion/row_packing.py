"""``mx.quantize`` by slices of rows: the same bits in little memory, on every core."""

import mlx.core as mx

from ..projection import cpu_streams
from ..quantization import Quantization

#: Weights of a slice. On the CPU MLX 0.32.4 packs mxfp4 and nvfp4 in many steps,
#: which take 17 times the memory of the weights, and any format on one core.
SLICE = 1 << 18


def pack(dense: mx.array, form: Quantization) -> list[mx.array]:
    """Pack a weight.

    Args:
        dense: [..., K], float.
        form: the format.

    Returns:
        What ``mx.quantize`` gives: uint32 [..., K * bits / 32], scales
        [..., K / group_size] and, if affine, biases like them.
    """
    options = form.as_config()
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    if on_gpu or dense.size <= SLICE:
        return list(mx.quantize(dense, **options))
    *rows, K = dense.shape
    flat, step, streams = dense.reshape(-1, K), max(1, SLICE // K), cpu_streams()
    mx.eval(flat)
    slices: list[tuple[mx.array, ...]] = []
    for start in range(0, flat.shape[0], step):
        with mx.stream(streams[len(slices) % len(streams)]):
            part = flat[start : start + step]
            if form.mode == "affine":
                # It computes in float32 anyhow, and takes a sixth less time from it.
                part = part.astype(mx.float32)
            weight, *scales = mx.quantize(part, **options)
            if form.mode == "affine":
                scales = [array.astype(dense.dtype) for array in scales]
            slices.append((weight, *scales))
        mx.async_eval(slices[-1])
        mx.eval(slices[max(0, len(slices) - len(streams))])
    parts = [mx.concatenate(list(part)) for part in zip(*slices, strict=True)]
    return [part.reshape(*rows, -1) for part in parts]
