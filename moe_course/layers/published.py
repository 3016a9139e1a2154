"""Shapes of published models, as data: the numbers of their public configs, with the source of each.

Multi-token prediction modules (DeepSeek-V3) are not part of the model that answers and are left out.
"""

from moe_course.layers.accounting import LatentAttention, ModelConfig

_MODELS = (
    ModelConfig(
        name="Mixtral 8x7B",
        source="https://huggingface.co/mistralai/Mixtral-8x7B-v0.1/blob/main/config.json; arXiv 2401.04088",
        vocab_size=32_000,
        num_layers=32,
        d_model=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        num_experts=8,
        top_k=2,
        d_ff=14_336,
    ),
    # Mixtral's dense peer: the same shape with one FFN in place of eight.
    ModelConfig(
        name="Mistral 7B",
        source="https://huggingface.co/mistralai/Mistral-7B-v0.1/blob/main/config.json; arXiv 2310.06825",
        vocab_size=32_000,
        num_layers=32,
        d_model=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        num_dense_layers=32,
        dense_d_ff=14_336,
    ),
    ModelConfig(
        name="OLMoE-1B-7B",
        source="https://huggingface.co/allenai/OLMoE-1B-7B-0924/blob/main/config.json; arXiv 2409.02060",
        vocab_size=50_304,
        num_layers=16,
        d_model=2048,
        num_heads=16,
        num_kv_heads=16,
        head_dim=128,
        num_experts=64,
        top_k=8,
        d_ff=1024,
        qk_norm="full",
    ),
    ModelConfig(
        name="Qwen3-30B-A3B",
        source="https://huggingface.co/Qwen/Qwen3-30B-A3B/blob/main/config.json; arXiv 2505.09388",
        vocab_size=151_936,
        num_layers=48,
        d_model=2048,
        num_heads=32,
        num_kv_heads=4,
        head_dim=128,
        num_experts=128,
        top_k=8,
        d_ff=768,
        qk_norm="head",
    ),
    *(
        ModelConfig(
            name=f"gpt-oss-{size}",
            source=f"https://huggingface.co/openai/gpt-oss-{size}/blob/main/config.json; arXiv 2508.10925",
            vocab_size=201_088,
            num_layers=num_layers,
            d_model=2880,
            num_heads=64,
            num_kv_heads=8,
            head_dim=64,
            num_experts=num_experts,
            top_k=4,
            d_ff=2880,
            attention_bias=True,
            attention_sinks=True,
            router_bias=True,
            expert_bias=True,
        )
        for size, num_layers, num_experts in (("20b", 24, 32), ("120b", 36, 128))
    ),
    # The checkpoint also stores 256 selection biases per router, 14,848 numbers. They are set by a rule, not
    # by a gradient (transformers keeps them in a buffer), so they are state and not counted as parameters.
    ModelConfig(
        name="DeepSeek-V3",
        source="https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json; arXiv 2412.19437",
        vocab_size=129_280,
        num_layers=61,
        d_model=7168,
        num_heads=128,
        num_experts=256,
        top_k=8,
        d_ff=2048,
        num_shared_experts=1,
        num_dense_layers=3,
        dense_d_ff=18_432,
        latent=LatentAttention(q_rank=1536, kv_rank=512, nope_head_dim=128, rope_head_dim=64, v_head_dim=128),
    ),
)

PUBLISHED: dict[str, ModelConfig] = {model.name.lower().replace(" ", "-"): model for model in _MODELS}
