"""Gemma 4 (text): heads by layer type, wide FFNs that borrow keys, experts.

Source: Google 2026, Gemma 4; transformers' ``Gemma4ForCausalLM``.
"""

import re
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from ..checkpoints.arrangement import Arrangement, Tensors
from ..config import ModelConfig
from ..experts import SwitchGLU, mix, route
from ..families import FULL
from ..layers import RMSNorm
from ..linear_layers import project
from . import lending
from .expert_tensors import ROUTER, unpacked
from .lending import KV, Attention, Source


class Router(nn.Module):
    """Choose experts, and weigh each also by a factor of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        K, E = config.hidden_size, config.own["num_experts"]
        self.eps, self.top_k = config.rms_norm_eps, config.own["top_k_experts"]
        self.proj = nn.Linear(K, E, bias=False)
        self.scale = mx.ones((K,))
        self.per_expert_scale = mx.ones((E,))

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Indices and weights [B, L, k] of ``x`` [B, L, K]."""
        scale = self.scale.astype(mx.float32) * x.shape[-1] ** -0.5
        x = mx.fast.rms_norm(x, scale, self.eps).astype(x.dtype)
        indices, weights = route(project(self.proj, x), self.top_k, renormalise=True)
        return indices, weights * self.per_expert_scale[indices]


class Experts(nn.Module):
    """The stacked experts, under mlx-lm's name."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, N = config.own["num_experts"], config.own["moe_intermediate_size"]
        self.switch_glu = SwitchGLU(config.hidden_size, N, E, variant=config.variant)

    def __call__(self, x: mx.array, indices: mx.array, weights: mx.array) -> mx.array:
        """Map ``x`` [B, L, K] to [B, L, K]."""
        return mix(self.switch_glu(x, indices), weights)


class Block(lending.Block):
    """A sandwich of norms, experts beside the FFN, its own input, a scalar."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        own, K, eps = config.own, config.hidden_size, config.rms_norm_eps
        borrows = index >= config.num_hidden_layers - own["num_kv_shared_layers"]
        wide = 2 if borrows and own["use_double_wide_mlp"] else 1
        super().__init__(
            config,
            _attention(config, config.layer_types[index], has_keys=not borrows),
            wide * config.intermediate_size,
            config.variant,
        )
        if own["enable_moe_block"]:
            self.router, self.experts = Router(config), Experts(config)
            self.post_feedforward_layernorm_1 = RMSNorm(K, eps)
            self.post_feedforward_layernorm_2 = RMSNorm(K, eps)
            self.pre_feedforward_layernorm_2 = RMSNorm(K, eps)
        self.layer_scalar = mx.ones((1,))

    def __call__(
        self, x: mx.array, source: Source, own: mx.array | None
    ) -> tuple[mx.array, KV]:
        """Map ``x`` [B, L, K]; see `lending.Block`."""
        y, used = self.self_attn(self.input_layernorm(x), source)
        x = x + self.post_attention_layernorm(y)
        y = self.mlp(x, norm=self.pre_feedforward_layernorm)
        if "experts" in self:
            y = self.post_feedforward_layernorm_1(y)
            chosen = self.experts(self.pre_feedforward_layernorm_2(x), *self.router(x))
            y = y + self.post_feedforward_layernorm_2(chosen)
        x = x + self.post_feedforward_layernorm(y)
        if own is not None:
            x = x + self.inject(x, own)
        return (x * self.layer_scalar).astype(x.dtype), used


def _attention(config: ModelConfig, kind: str, *, has_keys: bool) -> Attention:
    """Full layers have other heads, and keys that may be the values as well."""
    own = config.own
    if kind == FULL:
        config = replace(
            config,
            head_dim=own["global_head_dim"],
            num_key_value_heads=own["num_global_key_value_heads"],
        )
    has_values = kind != FULL or not own["attention_k_eq_v"]
    return Attention(config, kind, has_keys=has_keys, has_values=has_values)


class Decoder(lending.Decoder):
    """Scaled embeddings, and blocks."""

    def __init__(self, config: ModelConfig) -> None:
        blocks = [Block(config, i) for i in range(config.num_hidden_layers)]
        super().__init__(config, blocks)


_EXPERTS = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj)")
_KEYS = re.compile(r"model\.layers\.(\d{1,6})\.self_attn\.(k|v)_(proj|norm)\..+")


class Model(lending.Model):
    """Gemma 4, text part."""

    decoder_class = Decoder

    @staticmethod
    def arrange(tensors: Tensors, config: ModelConfig) -> Arrangement:
        """Experts' gate and up are packed; layers that borrow keys need none."""
        found = Arrangement()
        first = config.num_hidden_layers - config.own["num_kv_shared_layers"]
        for name, info in tensors.items():
            if key := _KEYS.fullmatch(name):
                if int(key[1]) >= first:
                    found.dropped.append(name)
            elif packed := _EXPERTS.fullmatch(name):
                stack = f"{packed[1]}.switch_glu"
                found.pieces |= unpacked(name, info, stack, packed[2])
        return found

    def quant_predicate(self, path: str) -> bool | dict[str, object]:
        """The router keeps 8 bits, as in mlx-lm."""
        return ROUTER if path.endswith("router.proj") else True
