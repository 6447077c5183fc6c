"""Gated convolutions over sequences, causal, as in the first paper on GLUs.

Sequences are channels-last, as in ``mlx.nn``. The paper's weight normalisation is
left out: it is a way to train, and the same functions are reached without it.
Source: Dauphin et al. 2017, arXiv:1612.08083, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from .. import ops
from ..checks import show
from ..linear_layers import project
from ..packing import split_packed
from ..variants import Variant, get


class GatedConv1d(nn.Module):
    r"""Two causal convolutions and their gated product.

    .. math:: y = \phi(x * W_g + b_g) \odot \psi(x * W_u + b_u)

    Position t sees t - (k - 1) d .. t: zeros are added at the left alone, for a
    kernel of k taps and dilation d. ``gate_proj`` and ``up_proj`` are ``nn.Conv1d``
    with weights [out_channels, k, in_channels].

    Args:
        in_channels: size of the input.
        out_channels: size of the output.
        kernel_size: k.
        dilation: d, the distance between taps.
        variant: a key of ``VARIANTS``, or a variant.
        bias: whether the convolutions have a bias.

    Raises:
        ValueError: ``variant`` is unknown, or a size is not positive.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        dilation: int = 1,
        variant: str | Variant = "glu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, dilation)
        if min(sizes) < 1:
            raise ValueError(
                "[GatedConv1d] in_channels, out_channels, kernel_size and dilation are "
                f"at least 1 but got {', '.join(map(str, sizes))}; choose others"
            )
        self.variant = get(variant)
        self.left_padding = (kernel_size - 1) * dilation
        for name in ("gate_proj", "up_proj"):
            self[name] = nn.Conv1d(
                in_channels, out_channels, kernel_size, dilation=dilation, bias=bias
            )

    def __call__(self, x: mx.array) -> mx.array:
        """Convolve and gate.

        Args:
            x: [B, L, in_channels]; float16, bfloat16 or float32.

        Returns:
            [B, L, out_channels] array of the dtype of ``x``.

        Raises:
            ValueError: ``x`` has another shape.
        """
        channels = self.gate_proj.weight.shape[-1]
        if x.ndim != 3 or x.shape[-1] != channels:
            raise ValueError(
                f"[GatedConv1d] x is [B, L, {channels}] but got {show(x)}; channels "
                "come last"
            )
        x = mx.pad(x, [(0, 0), (self.left_padding, 0), (0, 0)])
        gate, up = (
            layer(x).astype(x.dtype) for layer in (self.gate_proj, self.up_proj)
        )
        return ops.glu_mul(gate, up, self.variant)

    @classmethod
    def from_torch(
        cls,
        weight: mx.array,
        bias: mx.array | None = None,
        *,
        dilation: int = 1,
        variant: str | Variant = "glu",
    ) -> GatedConv1d:
        """Build the layer from a convolution whose result goes into torch's ``F.glu``.

        Args:
            weight: [2 * out_channels, in_channels, k], the value's rows first.
            bias: [2 * out_channels], or None.
            dilation: as in that convolution.
            variant: the unit; "glu" for ``F.glu``.

        Raises:
            ValueError: ``weight`` or ``bias`` has another shape.
        """
        if weight.ndim != 3 or (bias is not None and bias.shape != weight.shape[:1]):
            raise ValueError(
                "[GatedConv1d] weight is [2 * out_channels, in_channels, k] and bias "
                f"[2 * out_channels], but got {show(weight)} and "
                f"{None if bias is None else show(bias)}; take those of a "
                "torch.nn.Conv1d"
            )
        halves = split_packed(weight, order="value_first", layout="concat", axis=0)
        out, channels, taps = halves[0].shape
        layer = cls(
            channels,
            out,
            taps,
            dilation=dilation,
            variant=variant,
            bias=bias is not None,
        )
        layer.gate_proj.weight, layer.up_proj.weight = (
            half.swapaxes(1, 2) for half in halves
        )
        if bias is not None:
            layer.gate_proj.bias, layer.up_proj.bias = split_packed(
                bias, order="value_first", layout="concat", axis=0
            )
        return layer

    def _extra_repr(self) -> str:
        return f"variant={self.variant.name}"


class GCNNBlock(nn.Module):
    """Gated convolutions in a row, and the input added to their result.

    Nothing follows the sum, so that blocks pass their input on unchanged. Every
    convolution has its gate, those of a bottleneck too, as in the authors' code
    (fairseq, fconv_lm_dauphin_gbw), which also divides the sum by sqrt 2; the paper
    has no such factor, nor does this. Where the sizes differ, the input passes
    ``skip_proj``.

    Args:
        in_channels: size of the input.
        layers: kernel size and channels of each convolution, the paper's [k, n]; it
            has 1 to 5 of them in a block.
        variant: a key of ``VARIANTS``, or a variant.

    Raises:
        ValueError: ``variant`` is unknown, a size is not positive, or there is no
            layer.

    Source: Dauphin et al. 2017, arXiv:1612.08083, section 2 and table 1.
    """

    def __init__(
        self,
        in_channels: int,
        layers: Sequence[tuple[int, int]],
        *,
        variant: str | Variant = "glu",
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError(
                "[GCNNBlock] layers are pairs of kernel size and channels but got "
                "none; give at least one"
            )
        self.convolutions = []
        size = in_channels
        for kernel_size, channels in layers:
            layer = GatedConv1d(size, channels, kernel_size, variant=variant)
            self.convolutions.append(layer)
            size = channels
        if size != in_channels:
            self.skip_proj = nn.Linear(in_channels, size)

    @classmethod
    def bottleneck(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        width: int | None = None,
        variant: str | Variant = "glu",
    ) -> GCNNBlock:
        """Build [1, width; kernel_size, width; 1, out_channels].

        Args:
            in_channels: size of the input.
            out_channels: size of the output.
            kernel_size: taps of the middle convolution.
            width: channels inside; None for a quarter of ``out_channels``.
            variant: a key of ``VARIANTS``, or a variant.
        """
        inner = out_channels // 4 if width is None else width
        layers = [(1, inner), (kernel_size, inner), (1, out_channels)]
        return cls(in_channels, layers, variant=variant)

    def __call__(self, x: mx.array) -> mx.array:
        """Map ``x`` [B, L, in_channels] to [B, L, out_channels], of its dtype."""
        y = x
        for layer in self.convolutions:
            y = layer(y)
        return y + (project(self.skip_proj, x) if "skip_proj" in self else x)
