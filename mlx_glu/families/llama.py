"""LLaMA and the families that share its block."""

from .family import Family, full, last_layers, sliding

LLAMA = {
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}
QWEN = {
    **LLAMA,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
LLAMAS = {
    "llama": Family(LLAMA, full),
    "mistral": Family(
        {
            **LLAMA,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
        sliding,
    ),
    "qwen2": Family(QWEN, last_layers, qkv_bias=True, out_bias=False),
    "qwen3": Family({**QWEN, "head_dim": 128}, last_layers, qk_norm=True),
}
