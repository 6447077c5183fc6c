"""SmolLM3: LLaMA with layers that know no positions.

Source: Yang et al. 2025, Rope to Nope and back again, arXiv:2501.18795.
"""

from ..config import ModelConfig
from ..rope import NoRope
from . import llama


class Decoder(llama.Decoder):
    """LLaMA's decoder; some layers do not rotate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        rotated = config.own["no_rope_layers"]
        for layer, rotates in zip(self.layers, rotated, strict=True):
            if not rotates:
                layer.self_attn.rope = NoRope()


class Model(llama.Model):
    """SmolLM3."""

    decoder_class = Decoder
