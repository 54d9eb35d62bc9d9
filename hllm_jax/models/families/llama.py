"""LLaMA and what is built like it: TinyLlama, SmolLM2, the book's Tiny-K."""

from __future__ import annotations

from hllm_jax.models.config import DecoderConfig

PRESETS: dict[str, DecoderConfig] = {
    "book-82m": DecoderConfig(),
    "book-215m": DecoderConfig(embed=1024, layers=18),
    "llama-2-7b": DecoderConfig(
        vocab_size=32000,
        layers=32,
        embed=4096,
        heads=32,
        kv_heads=32,
        mlp=11008,
        max_length=4096,
        tie_embeddings=False,
    ),
    "llama-2-13b": DecoderConfig(
        vocab_size=32000,
        layers=40,
        embed=5120,
        heads=40,
        kv_heads=40,
        mlp=13824,
        max_length=4096,
        tie_embeddings=False,
    ),
    "llama-2-70b": DecoderConfig(
        vocab_size=32000,
        layers=80,
        embed=8192,
        heads=64,
        kv_heads=8,
        mlp=28672,
        max_length=4096,
        tie_embeddings=False,
    ),
    "smollm2-135m": DecoderConfig(
        vocab_size=49152,
        layers=30,
        embed=576,
        heads=9,
        kv_heads=3,
        mlp=1536,
        max_length=8192,
        rope_theta=100000.0,
    ),
}
