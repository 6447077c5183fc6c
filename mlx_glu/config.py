"""``config.json`` in one normal form, whichever transformers wrote it.

transformers 4 wrote ``rope_theta``, ``rope_scaling`` and
``sliding_window_pattern``; transformers 5 writes ``rope_parameters`` and
``layer_types``. Both are read here, and nowhere else.
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .families import FULL, SLIDING, Family, family_of, text_part
from .fields import Config, flag, number, optional, size
from .rope import RopeParameters
from .rope_config import old_block, read_rope
from .variants import resolve


@dataclass(frozen=True)
class ModelConfig:
    """A LLaMA- or Gemma-family decoder. Names are Hugging Face's where it has one.

    Attributes:
        variant: the FFN's key in ``variants.VARIANTS``, from ``hidden_act``.
        layer_types: ``full_attention`` or ``sliding_attention``, one a layer.
        rope: rotary settings by layer type.
        qkv_bias: q, k and v projections have biases.
        out_bias: the attention's output projection has one.
        qk_norm: queries and keys are normalised per head.
        query_scale: factor on the attention scores.
        tie_word_embeddings: None where ``config.json`` is silent; the tensors
            decide then.
        own: settings that only this ``model_type`` has, by their key.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    variant: str
    max_position_embeddings: int
    layer_types: tuple[str, ...]
    sliding_window: int | None
    rope: Mapping[str, RopeParameters]
    query_scale: float
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    own: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, config: Config) -> "ModelConfig":
        """Read a ``config.json``.

        Raises:
            ValueError: an unknown ``model_type``, ``hidden_act``, ``rope_type``
                or quantization; a missing or impossible size.
        """
        config = text_part(config)
        family = family_of(config)
        config = family.normal(config)
        given = {k: v for k, v in config.items() if v is not None or k in _NULLABLE}
        c = {**family.defaults, **given}
        check_quant_method(config, family.quant_methods)
        sizes = {key: size(c, key) for key in _SIZES}
        kv_heads, head_dim = _heads(c)
        if flag(c, "use_bidirectional_attention"):
            raise ValueError(
                "[config] use_bidirectional_attention is set: this checkpoint is "
                "an encoder; mlx_glu generates text with causal models only"
            )
        layer_types, window = _layer_types(c, family, sizes["num_hidden_layers"])
        own = {key: read(c, key) for key, read in family.own.items()}
        return cls(
            model_type=c["model_type"],
            **sizes,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=number(c, "rms_norm_eps"),
            variant=_variant(c, family),
            layer_types=layer_types,
            sliding_window=window,
            rope={
                FULL: read_rope(config, c, FULL, own.get("global_head_dim", head_dim)),
                SLIDING: read_rope(config, c, SLIDING, head_dim),
            },
            query_scale=(optional(c, "query_pre_attn_scalar") or head_dim) ** -0.5,
            qkv_bias=flag(c, "attention_bias", family.qkv_bias),
            out_bias=flag(c, "attention_bias") and family.out_bias,
            mlp_bias=flag(c, "mlp_bias"),
            qk_norm=family.qk_norm,
            tie_word_embeddings=_tied(c),
            attn_logit_softcapping=optional(c, "attn_logit_softcapping"),
            final_logit_softcapping=optional(c, "final_logit_softcapping"),
            own=own,
        )


def export(config: Config, read: ModelConfig) -> dict[str, Any]:
    """A ``config.json`` that transformers 4 and 5 and mlx-lm all read alike.

    What each of them would guess or ignore is spelled out in its own keys; keys
    that this package does not know pass through.
    """
    dropped = ("_name_or_path", "quantization", "quantization_config")
    c = {key: value for key, value in config.items() if key not in dropped}
    c["head_dim"] = read.head_dim
    c["num_key_value_heads"] = read.num_key_value_heads
    c["tie_word_embeddings"] = bool(read.tie_word_embeddings)
    full, sliding = read.rope[FULL], read.rope[SLIDING]
    c["rope_theta"] = full.theta
    longest = "original_max_position_embeddings"
    beside = longest in family_of(config).defaults
    c["rope_scaling"] = old_block(full, beside=beside)
    if beside and full.switch < math.inf:
        c[longest] = full.original
    c.pop("partial_rotary_factor", None)
    if full.partial_rotary_factor == sliding.partial_rotary_factor != 1.0:
        c["partial_rotary_factor"] = full.partial_rotary_factor
    c["rope_parameters"] = full.as_config() | {"rope_theta": full.theta}
    if full != sliding or "rope_local_base_freq" in family_of(config).defaults:
        c["rope_local_base_freq"] = sliding.theta
        c["rope_parameters"] = {
            FULL: c["rope_parameters"],
            SLIDING: sliding.as_config() | {"rope_theta": sliding.theta},
        }
    # Not where all layers slide: mlx-lm's llama wants at least one that does not.
    if {FULL, SLIDING} == set(read.layer_types):
        c["layer_types"] = list(read.layer_types)
        if "sliding_window_pattern" in family_of(config).defaults:
            c["sliding_window_pattern"] = read.layer_types.index(FULL) + 1
    return family_of(config).export(c, read.own)


_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)

#: Keys whose explicit null means "none", not "the family's default".
_NULLABLE = (
    "num_key_value_heads",
    "sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)


def check_quant_method(config: Config, known: tuple[str, ...] = ()) -> None:
    """Refuse weights packed by a method this package cannot read.

    Raises:
        ValueError: ``quantization_config`` names a ``quant_method`` that is not
            among the ``known``; MLX's own block has none.
    """
    block = config.get("quantization_config")
    method = block.get("quant_method") if isinstance(block, Mapping) else None
    if method is not None and method not in known:
        raise ValueError(
            f"[config] quant_method {method!r} is not supported; "
            "use the unquantized checkpoint, or one in MLX format"
        )


def _tied(c: Config) -> bool | None:
    key = "tie_word_embeddings"
    return flag(c, key) if key in c else None


def _heads(c: dict[str, Any]) -> tuple[int, int]:
    """The number of key-value heads, and the size of a head."""
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    if c.get("num_key_value_heads") is None:
        c["num_key_value_heads"] = heads
    kv_heads = size(c, "num_key_value_heads")
    if heads % kv_heads:
        raise ValueError(
            f"[config] num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}"
        )
    if "head_dim" not in c and hidden % heads:
        raise ValueError(
            f"[config] hidden_size {hidden} is not a multiple of "
            f"num_attention_heads {heads}, and there is no head_dim"
        )
    return kv_heads, size({"head_dim": hidden // heads, **c}, "head_dim")


def _variant(c: Config, family: Family) -> str:
    """``hidden_act`` decides; for Gemma, its own ``hidden_activation`` does."""
    if family.variant is None:
        return resolve(str(c["hidden_act"])).name
    if "hidden_activation" in c:
        return resolve(str(c["hidden_activation"])).name
    return family.variant


def _layer_types(
    c: Config, family: Family, layers: int
) -> tuple[tuple[str, ...], int | None]:
    given = c.get("layer_types", [FULL] * layers)
    if (
        not isinstance(given, list | tuple)
        or len(given) != layers
        or not all(kind in (FULL, SLIDING) for kind in given)
    ):
        raise ValueError(
            f"[config] layer_types must name {FULL!r} or {SLIDING!r} for each of "
            f"the {layers} layers, got {reprlib.repr(given)}"
        )
    flag(c, "use_sliding_window")
    for key, least in (("max_window_layers", 0), ("sliding_window_pattern", 1)):
        if key in c:
            size(c, key, least)
    kinds = tuple(family.windows(c, layers))
    if SLIDING not in kinds:
        return kinds, None
    if c.get("sliding_window") is None:
        return (FULL,) * layers, None
    return kinds, size(c, "sliding_window")
