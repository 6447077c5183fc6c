"""Gated linear units on MLX: layers, checkpoint conversion, text generation.

Names are imported when they are first used, so ``import mlx_glu`` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import blas

if TYPE_CHECKING:
    from .conversion.convert import convert
    from .dispatch import use_impl
    from .fusion import explain, fuse, tune, unfuse
    from .generation import GenerationResponse, generate, stream_generate
    from .jit import simulate
    from .layers import GatedMLP, glu_hidden_size
    from .loading import load, load_model
    from .mlx_lm_engine import fuse_on_load
    from .ops import (
        Norm,
        QuantizedWeight,
        down_linear,
        glu_linear,
        glu_mul,
        glu_mul_packed,
    )
    from .packing import split_packed
    from .sample import Sampling
    from .training.balancing import (
        expert_load,
        load_balancing_loss,
        router_z_loss,
    )
    from .training.blocks import GatedResidualNetwork, ParallelBlock
    from .training.convolution import GatedConv1d, GCNNBlock
    from .training.gains import gain, scale_preserving
    from .training.moe import MoE
    from .training.ungated import ACTIVATIONS, MLP
    from .training.xielu import XIELU
    from .variants import VARIANTS, Variant
    from .warming import warmup

__version__ = "0.1.0"

_HOME = {
    "convert": "conversion.convert",
    "GenerationResponse": "generation",
    "generate": "generation",
    "stream_generate": "generation",
    "use_impl": "dispatch",
    "explain": "fusion",
    "fuse": "fusion",
    "tune": "fusion",
    "unfuse": "fusion",
    "simulate": "jit",
    "GatedMLP": "layers",
    "glu_hidden_size": "layers",
    "split_packed": "packing",
    "load": "loading",
    "load_model": "loading",
    "fuse_on_load": "mlx_lm_engine",
    "Norm": "ops",
    "QuantizedWeight": "ops",
    "down_linear": "ops",
    "glu_mul_packed": "ops",
    "glu_linear": "ops",
    "glu_mul": "ops",
    "Sampling": "sample",
    "expert_load": "training.balancing",
    "load_balancing_loss": "training.balancing",
    "router_z_loss": "training.balancing",
    "GatedResidualNetwork": "training.blocks",
    "ParallelBlock": "training.blocks",
    "GatedConv1d": "training.convolution",
    "GCNNBlock": "training.convolution",
    "gain": "training.gains",
    "scale_preserving": "training.gains",
    "MoE": "training.moe",
    "ACTIVATIONS": "training.ungated",
    "MLP": "training.ungated",
    "XIELU": "training.xielu",
    "VARIANTS": "variants",
    "Variant": "variants",
    "warmup": "warming",
}
__all__ = [
    "ACTIVATIONS",
    "MLP",
    "VARIANTS",
    "XIELU",
    "GCNNBlock",
    "GatedConv1d",
    "GatedMLP",
    "GatedResidualNetwork",
    "GenerationResponse",
    "MoE",
    "Norm",
    "ParallelBlock",
    "QuantizedWeight",
    "Sampling",
    "Variant",
    "convert",
    "down_linear",
    "expert_load",
    "explain",
    "fuse",
    "fuse_on_load",
    "gain",
    "generate",
    "glu_hidden_size",
    "glu_linear",
    "glu_mul",
    "glu_mul_packed",
    "load",
    "load_balancing_loss",
    "load_model",
    "router_z_loss",
    "scale_preserving",
    "simulate",
    "split_packed",
    "stream_generate",
    "tune",
    "unfuse",
    "use_impl",
    "warmup",
]

# Only a BLAS that is there before MLX can serve it.
blas.preload()


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'mlx_glu' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
