"""gpt-oss: attention sinks, biases everywhere, experts with a clamped SwiGLU.

Source: OpenAI 2025, arXiv:2508.10925.
"""

import re

import mlx.core as mx
import mlx.nn as nn

from .. import variants
from ..checkpoints.arrangement import Arrangement, Piece, Tensors, rows
from ..config import ModelConfig
from ..experts import SwitchGLU, mix, route
from ..layers import RMSNorm
from ..linear_layers import project
from ..tensor_info import TensorInfo
from . import llama
from .expert_tensors import ROUTER
from .llama import Mask


class Attention(llama.Attention):
    """LLaMA's, with a logit for each head that takes its share and gives nothing."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        self.sinks = mx.zeros((self.n_heads,))

    def attend(self, q: mx.array, k: mx.array, v: mx.array, mask: Mask) -> mx.array:
        """Softmax attention of ``q`` [B, H, L, D] over ``k`` and ``v``."""
        sinks = self.sinks.astype(q.dtype)
        return mx.fast.scaled_dot_product_attention(
            q, k, v, scale=self.scale, mask=mask, sinks=sinks
        )


class Mixture(nn.Module):
    """A router with a bias; the weights of a token's experts sum to 1."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        own, K, N = config.own, config.hidden_size, config.intermediate_size
        self.top_k, E = own["num_experts_per_tok"], own["num_local_experts"]
        alpha, limit = own["swiglu_alpha"], own["swiglu_limit"]
        variant = variants.get(config.variant, alpha=alpha, limit=limit)
        self.experts = SwitchGLU(K, N, E, variant=variant, bias=True)
        self.router = nn.Linear(K, E)

    def __call__(self, x: mx.array, *, norm: RMSNorm, residual: mx.array) -> mx.array:
        """Map ``x`` [B, L, K] to [B, L, K], as `GatedMLP` does."""
        x = norm(x)
        indices, weights = route(project(self.router, x), self.top_k, renormalise=True)
        return residual + mix(self.experts(x, indices), weights)


class Block(llama.Block):
    """LLaMA's, of these parts."""

    attention_class = Attention

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__(config, kind)
        self.update_modules({"mlp": Mixture(config)})


class Decoder(llama.Decoder):
    """LLaMA's, of these blocks."""

    block_class = Block


class Model(llama.Model):
    """gpt-oss."""

    decoder_class = Decoder

    @staticmethod
    def arrange(tensors: Tensors, config: ModelConfig) -> Arrangement:
        """Of ``gate_up_proj``, outputs with even numbers are the gate's."""
        found = Arrangement()
        for name, info in tensors.items():
            if match := _STORED.fullmatch(name):
                experts, own, form = match.groups()
                parts = {own: slice(None)}
                if own == "gate_up_proj":
                    parts = {
                        "gate_proj": slice(0, None, 2),
                        "up_proj": slice(1, None, 2),
                    }
                for part, outputs in parts.items():
                    piece = _piece(name, info, form, outputs)
                    found.pieces[f"{experts}{part}.{_SUFFIX[form]}"] = piece
        return found

    def quant_predicate(self, path: str) -> bool | dict[str, object]:
        """Routers have 8 bits, as in mlx-lm."""
        return ROUTER if path.endswith("router") else True


#: What follows the name of a stored stack -> what follows that of our layer.
_SUFFIX = {"": "weight", "_bias": "bias", "_blocks": "weight", "_scales": "scales"}
_STORED = re.compile(
    r"(model\.layers\.\d+\.mlp\.experts\.)(gate_up_proj|down_proj)"
    rf"({'|'.join(_SUFFIX)})"
)


def _piece(name: str, info: TensorInfo, form: str, outputs: slice) -> Piece:
    """Some outputs of a stored stack, laid out as MLX has it.

    Floats are [E, K, N]; biases [E, N]; blocks [E, N, K / 32, 16] of two numbers a
    byte, the first in the lower half; scales [E, N, K / 32].
    """
    wanted = {"": 3, "_bias": 2, "_blocks": 4, "_scales": 3}[form]
    axis = 1 if form else 2
    if len(info.shape) != wanted or (outputs.step and info.shape[axis] % 2):
        raise ValueError(
            f"[load] {name} must have {wanted} axes, with gate and up in turn along "
            f"axis {axis} if it holds both; got {list(info.shape)}"
        )
    cut = rows(name, info, outputs, axis)
    E, *others = cut.info.shape
    if form == "":
        shape = (E, *reversed(others))
        return Piece(
            (name,),
            info._replace(shape=shape),
            lambda array: mx.contiguous(cut.make(array).swapaxes(1, 2)),
        )
    if form == "_blocks" and info.dtype == mx.uint8 and info.shape[3] == 16:
        packed = TensorInfo(mx.uint32, (E, others[0], 4 * others[1]))
        return Piece(
            (name,), packed, lambda array: cut.make(array).view(mx.uint32).flatten(-2)
        )
    return cut
