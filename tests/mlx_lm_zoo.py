"""Every architecture of the installed mlx-lm, tiny and random.

A configuration is `BASE` with the architecture's `OVERRIDES`. Wherever the
architecture allows it, a feed-forward has 64 inputs and 128 gates, so that tests
compile few kernels, and the layers are the fewest that hold each kind of
feed-forward.
"""

import importlib
import re
import sys
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_map_with_path
from mlx_lm.models.cache import make_prompt_cache

LAYERS = ["sliding_attention", "full_attention"]
#: Values by field name, all the names that mlx-lm's configurations have for one thing.
BASE = {
    field: value
    for value, fields in (
        (64, "hidden_size n_embd d_model model_dim hidden_dim block_dim"),
        (64, "moe_hidden_size routed_expert_hidden_size"),
        (128, "intermediate_size moe_intermediate_size shared_intermediate_size"),
        (128, "dense_intermediate_size intermediate_size_mlp ff_intermediate_size"),
        (128, "shared_expert_intermediate_size moe_shared_expert_intermediate_size"),
        (128, "share_expert_dim n_inner ffn_hidden_size expert_ffn_hidden_size"),
        (64, "vocab_size num_vocab embedding_size vocab_size_per_layer_input"),
        (2, "num_hidden_layers num_layers n_layers n_layer num_transformer_layers"),
        (4, "num_attention_heads num_heads n_heads n_head swa_num_attention_heads"),
        (2, "num_key_value_heads num_kv_heads n_kv_heads num_attention_groups"),
        (2, "swa_num_key_value_heads"),
        (16, "head_dim v_head_dim swa_head_dim swa_v_head_dim qk_nope_head_dim"),
        (16, "kv_channels hidden_size_per_head global_head_dim"),
        (8, "qk_rope_head_dim rotary_dim hidden_size_per_layer_input laurel_rank"),
        (8, "a_low_rank_dim v_low_rank_dim gate_low_rank_dim decay_low_rank_dim"),
        (16, "kv_lora_rank q_lora_rank o_lora_rank"),
        (128, "max_position_embeddings n_positions n_ctx block_size model_max_length"),
        (1e-5, "rms_norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon"),
        (1e-5, "norm_eps norm_epsilon post_norm_eps"),
        (1e4, "rope_theta rotary_emb_base swa_rope_theta rope_local_base_freq"),
        (0.5, "partial_rotary_factor rotary_pct"),
        (8, "sliding_window sliding_window_size window_size attention_window_size"),
        (LAYERS, "layer_types"),
        (2, "sliding_window_pattern full_attention_interval layer_group_size"),
        (False, "attention_bias mlp_bias use_bias use_qkv_bias mamba_proj_bias"),
        (False, "tie_word_embeddings block_auto_adjust_ff_dim"),
        (None, "rope_scaling"),
        (True, "use_conv_bias conv_bias mamba_conv_bias use_qk_norm qk_norm post_norm"),
        (0, "num_kv_shared_layers"),
        (1, "num_kv_reuse_layers"),
        (0.5, "swiglu_limit gegelu_limit activation_situ_beta"),  # low, to clamp
        # Experts; the first layer is dense.
        (4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
        (2, "num_experts_per_tok num_experts_per_token top_k_experts"),
        (2, "moe_k moe_topk moe_top_k"),
        (1, "n_shared_experts num_shared_experts num_shared_expert"),
        (1, "moe_num_shared_experts first_k_dense_replace num_dense_layers"),
        (1, "moe_layer_freq decoder_sparse_step moe_layer_start_index"),
        ([0], "mlp_only_layers"),
        ([False, True], "is_moe_layer"),
        (1, "n_group topk_group group_norm_size attn_layer_offset expert_layer_offset"),
        (2, "attn_layer_period expert_layer_period interleave_moe_layer_step"),
        (1.0, "routed_scaling_factor"),
        (True, "norm_topk_prob use_expert_bias use_mixed_mlp_moe latent_moe_use_norm"),
        ("noaux_tc", "topk_method"),
        ("sigmoid", "scoring_func"),
        ("identity", "zero_expert_type"),
        (2, "zero_expert_num ngram_vocab_size_ratio"),
        # Linear attention, state spaces, convolutions.
        (4, "linear_num_value_heads mamba_num_heads mamba_n_heads"),
        (2, "linear_num_key_heads n_groups"),
        (1, "mamba_n_groups"),
        (16, "linear_key_head_dim linear_value_head_dim mamba_head_dim mamba_d_head"),
        (16, "state_size ssm_state_size mamba_d_state"),
        (64, "mamba_d_ssm block_multiple_of"),
        (2, "mamba_expand"),
        (4, "time_step_rank"),
        (True, "linear_allow_neg_eigval"),
        (4, "linear_conv_kernel_dim conv_kernel mamba_d_conv conv1d_width"),
        (3, "conv_L_cache short_conv_kernel_size"),
        # Other attention.
        (16, "index_head_dim"),
        (2, "index_n_heads"),
        (4, "index_topk"),
        ("MLA", "attention_method"),
        (8, "attention_chunk_size"),
        (True, "mla_scale_q_lora mla_scale_kv_lora use_cla"),
        (2, "cla_share_factor dense_attention_every_n_layers n_shared_head"),
        (2, "attn_res_block_size"),
        # Multipliers that are to change nothing.
        (1.0, "logits_scaling attention_multiplier embedding_multiplier scale_emb"),
        (1.0, "residual_multiplier scale_depth block_ffn_dim_multiplier"),
        (64, "dim_model_base"),
        (30.0, "logits_soft_cap final_logit_softcapping"),
    )
    for field in fields.split()
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "llama_4_scaling_beta": 0.1,
}
ROPES = {layer: {"rope_theta": 1e4, "partial_rotary_factor": 0.5} for layer in LAYERS}
LINEAR_ATTENTION = {
    "kda_layers": [1],
    "num_heads": 4,
    "head_dim": 16,
    "short_conv_kernel_size": 4,
}
#: Architectures whose configuration is BASE.
PLAIN = """
    Klear afmoe apertus bailing_hybrid bailing_moe bailing_moe_linear bailing_moe_v3
    bitnet cohere cohere2 deepseek deepseek_v3 deepseek_v32 deepseek_v41 dots1
    exaone exaone_moe falcon_h1 gear gemma gemma2 gemma3 gemma3_text glm glm4
    glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neox gpt_oss gptj granite granitemoe
    helium hunyuan_v1_dense internlm2 iquestloopcoder jamba kimi_k25 kimi_vl laguna
    lfm2 lfm2-vl lfm2_moe lille-130m longcat_flash longcat_flash_ngram mamba mimo
    minicpm minimax mistral3 mixtral muse_glimmer nanbeige nanochat olmo2 olmo3
    olmoe phi phi3 phi3small phimoe phixtral pixtral plamo plamo2 plamo3 qwen2
    qwen2_moe qwen2_vl qwen3 qwen3_5_moe qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe
    rwkv7 seed_oss smollm3 solar_open stablelm starcoder2 talkie telechat3 youtu_llm
"""
#: What differs from BASE in the others.
OVERRIDES = {name: {} for name in PLAIN.split()} | {
    "afm7": {"hidden_dim_scale_factor": 2.0},
    "baichuan_m1": {"sliding_window_layers": [0], "conv_window": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
    },
    "deepseek_v2": {"rope_scaling": YARN},
    "ernie4_5": {"use_bias": True},
    "ernie4_5_moe": {"use_bias": True},
    "exaone4": {"sliding_window_pattern": "LG"},
    "gemma3n": {
        "activation_sparsity_pattern": [0.5, 0.0],
        "altup_num_inputs": 2,
        "altup_coef_clip": 1.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
    },
    # Dense, and the layer that shares its keys is twice as wide.
    "gemma4": {
        "num_hidden_layers": 3,
        "layer_types": [*LAYERS, "full_attention"],
        "num_kv_shared_layers": 1,
    },
    # Experts next to the dense feed-forward.
    "gemma4_text": {"enable_moe_block": True},
    "glm_moe_dsa": {"rope_parameters": YARN},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan": {"rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1.0}},
    "internlm3": {"bias": True},
    "kimi_k3": {
        "linear_attn_config": LINEAR_ATTENTION,
        "activation_situ_linear_beta": 1.0,
    },
    "kimi_linear": {"linear_attn_config": LINEAR_ATTENTION},
    "llama": {"mlp_bias": True},
    "llama4": {
        "num_hidden_layers": 4,  # it looks for the fourth's cache
        "num_experts_per_tok": 1,
    },
    "llama4_text": {"no_rope_layers": [1, 0]},
    "mamba2": {"time_step_limit": (0.01, 10.0)},
    "mellum": {"rope_parameters": ROPES},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [0, 1],
        "moe_layer_freq": [0, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
    },
    "minicpm3": {"rope_scaling": {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4}},
    "minimax_m3_vl": {"moe_layer_freq": [0, 1]},
    "ministral3": {"rope_parameters": YARN},
    "mistral4": {"rope_parameters": YARN},
    "muse_spark": {
        "rope_parameters": {"rope_theta": 1e4},
        "layer_rope_theta": [1e4, 0],
        "output_multiplier": 0.5,
        "num_shared_experts": 0,
    },
    "nemotron": {"hidden_act": "relu2"},
    # A feed-forward, a linear layer in its place, none at all.
    "nemotron-nas": {
        "num_hidden_layers": 3,
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.0}},
            {
                "attention": {"n_heads_in_group": 4},
                "ffn": {"replace_with_linear": True},
            },
            {"attention": {"no_op": True}, "ffn": {"no_op": True}},
        ],
    },
    "nemotron_h": {"hybrid_override_pattern": ["M", "*", "-", "E"]},
    "olmo": {"mlp_hidden_size": 256},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "openelm": {
        "ffn_dim_divisor": 64,
        "ffn_multipliers": [2.0, 2.0],
        "num_query_heads": [4, 4],
        "num_kv_heads": [2, 2],
    },
    # Rotated inputs are at least 512 wide, packed ones 128.
    "prism_hadamard_qwen35": {
        "num_experts": 0,
        "num_attention_heads": 32,
        "schema_version": 1,
        "tensor_namespace": "mlx-lm-text",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [
            {"path": path, "block": block, "embedding": False, "dtype": "float16"}
            for path, block in (
                ("model.layers.0.mlp.down_proj", 0),
                ("model.layers.1.self_attn.o_proj", 512),
            )
        ],
    },
    "qwen": {"intermediate_size": 256},
    "qwen3_5": {"num_experts": 0},
    "recurrent_gemma": {
        "intermediate_size": 256,
        "block_types": ["recurrent", "attention"],
    },
    "spark2_5": {"rope_parameters": ROPES},
    # A dense layer, experts without clamps, experts with.
    "step3p5": {
        "num_hidden_layers": 3,
        "layer_types": [*LAYERS, "full_attention"],
        "swiglu_limits": [0, 0, 0.5],
        "swiglu_limits_shared": [0, 0, 0.5],
    },
}
#: No feed-forward with a gate; what these have instead.
WITHOUT_GLU = {
    "apertus": "up_proj, xIELU, down_proj",
    "gpt2": "c_fc, tanh GELU, c_proj",
    "gpt_bigcode": "c_fc, GELU, c_proj",
    "gpt_neox": "dense_h_to_4h, tanh GELU, dense_4h_to_h",
    "gptj": "fc_in, tanh GELU, fc_out",
    "mamba": "no feed-forward",
    "mamba2": "no feed-forward",
    "nanochat": "c_fc, squared ReLU, c_proj",
    "nemotron": "up_proj, squared ReLU, down_proj",
    "nemotron_h": "up_proj, squared ReLU, down_proj; experts fc1, squared ReLU, fc2",
    "phi": "fc1, tanh GELU, fc2",
    "phixtral": "experts fc1, tanh GELU, fc2",
    "rwkv7": "channel mixing: key, squared ReLU, value",
    "starcoder2": "c_fc, GELU, c_proj",
}
#: Without Metal these cannot run.
NEEDS_METAL = {
    "bitnet": "every BitLinear is a Metal kernel",
    "muse_spark": "its norms, rotations and routing are Metal kernels",
}


def architectures() -> list[str]:
    """Names of the files in mlx_lm/models that hold an architecture."""
    names = ("Model", "ModelArgs")
    return sorted(
        path.stem
        for path in Path(mlx_lm.models.__path__[0]).glob("*.py")
        if all(
            re.search(rf"^(class|from .+ import) {name}\b", path.read_text(), re.M)
            for name in names
        )
    )


def build(name: str, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """The architecture with random weights, or a LookupError that says why not.

    A CPU runs half-precision experts only once they are quantized.
    """
    if name not in OVERRIDES:
        raise LookupError(f"{name} has no configuration in {Path(__file__).name}")
    if name in NEEDS_METAL and not mx.metal.is_available():
        raise LookupError(f"{name} needs Metal: {NEEDS_METAL[name]}")
    if name == "olmo":  # it looks for a package that it does not use
        sys.modules.setdefault("hf_olmo", ModuleType("hf_olmo"))
    module = importlib.import_module(f"mlx_lm.models.{name}")
    config = deepcopy({**BASE, "model_type": name, **OVERRIDES[name]})
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict({**config, "text_config": config}))
    if name == "phi3small":  # it masks tokens that our vocabulary lacks
        model._dummy_tokenizer_ids = mx.array([], dtype=mx.int32)
    keep = getattr(model, "cast_predicate", lambda _: True)

    def fill(path: str, value: mx.array) -> mx.array:
        """Random where it is constant: routers, biases, norms, packed weights."""
        if value.dtype in (mx.uint8, mx.uint32):
            return mx.random.randint(
                0, 2 ** (8 * value.itemsize), value.shape, value.dtype
            )
        if not mx.issubdtype(value.dtype, mx.floating):
            return value
        if value.size > 1 and mx.all(value == value.reshape(-1)[0]):
            value = value + 0.1 * mx.random.normal(value.shape)
        return value.astype(dtype if keep(path) else mx.float32)

    model.update(tree_map_with_path(fill, model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model


def logits(model: nn.Module, tokens: mx.array) -> mx.array:
    """Evaluated float32 logits [1, L, vocabulary] of token ids [1, L]."""
    if type(model).__module__ == "mlx_lm.models.olmo":  # its mask fails at L > 1
        cache = make_prompt_cache(model)
        steps = [model(token, cache) for token in mx.split(tokens, tokens.size, 1)]
        out = mx.concatenate(steps, axis=1)
    else:
        out = model(tokens)
    out = out.astype(mx.float32)
    mx.eval(out)
    return out
