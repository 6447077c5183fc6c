"""Tiny checkpoints of every family, with sizes that hide no mistake.

Their weights depend on names and shapes alone, so `scripts/hf_reference.py` can
give the same ones to Hugging Face's models; it imports this file without MLX.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import tiny_dense
import tiny_experts
import tiny_gemmas

#: Each adds its families here, and its defaults in test_config.py.
MORE = (tiny_dense, tiny_experts, tiny_gemmas)

# 3 query heads a kv head, head_dim unlike hidden_size / heads, odd vocabulary,
# windows and contexts shorter than the 40 tokens of the tests.
BASE = {
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "vocab_size": 131,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral": {"sliding_window": 8, "tie_word_embeddings": True},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "tie_word_embeddings": False,
        "head_dim": 16,  # Qwen2 has no head_dim of its own
    },
    "qwen3": {"tie_word_embeddings": True, "attention_bias": True},
    "gemma": {"hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {
        "sliding_window": 8,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 20,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
}
for _module in MORE:
    FAMILIES |= _module.FAMILIES
#: rope_scaling blocks as transformers 4 wrote them, for a llama.
ROPE_SCALING = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn_mscale": {
        "rope_type": "yarn",
        "factor": 8.0,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 8,
    },
}


def config_of(model_type: str, **changes: object) -> dict[str, object]:
    """A config.json of a family, in the form of transformers 4."""
    return {"model_type": model_type, **BASE, **FAMILIES[model_type], **changes}


#: Every case that has Hugging Face's logits in data/hf/.
CASES = {name: config_of(name) for name in FAMILIES} | {
    name: config_of("llama", rope_scaling=block) for name, block in ROPE_SCALING.items()
}
LAYOUTS: dict[str, dict[str, object]] = {}
for _module in MORE:
    CASES |= {k: config_of(kind, **c) for k, (kind, c) in _module.CASES.items()}
    LAYOUTS |= _module.LAYOUTS


def token_ids() -> np.ndarray:
    """[2, 40] token ids."""
    return np.random.default_rng(0).integers(3, 131, (2, 40))


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 weight that depends on its name and shape alone."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    noise *= 0.1 if len(shape) == 1 else shape[-1] ** -0.5
    near_one = name.endswith(("norm.weight", "layer_scalar", "_scale", "router.scale"))
    return (noise + near_one).astype(np.float32)


def shapes_of(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    """Parameter names and shapes of a config's model."""
    from dataclasses import replace

    from mlx.utils import tree_flatten

    from mlx_glu.config import ModelConfig
    from mlx_glu.models import build

    read = ModelConfig.from_dict(config)
    model = build(replace(read, tie_word_embeddings=bool(read.tie_word_embeddings)))
    return {name: a.shape for name, a in tree_flatten(model.parameters())}


HF = Path(__file__).parent / "data" / "hf"


def hf_weights(case: str) -> dict[str, np.ndarray]:
    """A case's weights under the names that transformers 5 gives them in memory."""
    shapes = json.loads(str(np.load(HF / f"{case}.npz")["shapes"]))
    return {name: tensor(name, tuple(shape)) for name, shape in shapes.items()}


def weights_of(config: dict[str, object]) -> dict[str, np.ndarray]:
    """The weights of a config's model, norms and biases random as well."""
    return {name: tensor(name, shape) for name, shape in shapes_of(config).items()}


def write_checkpoint(
    folder: Path,
    config: dict[str, object],
    weights: dict[str, object] | None = None,
    dtype: str = "float32",
) -> Path:
    """Write a Hugging Face folder, in ``dtype``."""
    import mlx.core as mx

    folder.mkdir(parents=True, exist_ok=True)
    arrays = weights_of(config) if weights is None else weights
    arrays = {k: mx.array(v).astype(getattr(mx, dtype)) for k, v in arrays.items()}
    mx.eval(arrays)  # some may still be read from the file that is replaced
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
