"""Splash attention: the flash attention kernel of JAX for TPUs, with static masks and segments.

(`jax.experimental.pallas.ops.tpu.splash_attention`; Dao 2023 for the algorithm.)
"""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp

from hllm_jax.nn.target import target_platform

#: Lanes of a TPU's registers: lengths are padded to a multiple of it.
LANES = 128

#: Queries and keys of a block, the largest that divides the row. 512 was the fastest at 4096 for those who
#: measured (MaxText's default); smaller ones leave the matrix unit idle.
BLOCKS = (512, 256, 128)


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
) -> jax.Array:
    """As `attention`, by the Pallas kernel (interpreted where the program is not for a TPU).

    Rows whose length is no multiple of 128 are padded; padding is a segment of its own.

    Args:
        q: `[B, L, H, h]`.
        k, v: `[B, L, K, h]`.
        segment_ids: int `[B, L]`, or None.
        causal, window, softcap, scale: see `attention`.

    Returns:
        `[B, L, H, h]` in the dtype of `q`.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads = q.shape[1:3]
    missing = -length % LANES
    if missing and segment_ids is None and not causal:
        segment_ids = jnp.ones(q.shape[:2], jnp.int32)
    if missing:
        q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (q, k, v))
        if segment_ids is not None:
            segment_ids = jnp.pad(segment_ids, ((0, 0), (0, missing)))
    size = q.shape[1]
    shape = (size, size)
    if not causal:
        mask = masks.FullMask(shape)
    elif window is None:
        mask = masks.CausalMask(shape)
    else:
        mask = masks.LocalMask(shape, (window - 1, 0), 0)
    block = next(block for block in BLOCKS if size % block == 0)
    kernel = kernels.make_splash_mha_single_device(
        mask=masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            # The queries' gradient has a kernel of its own: the fused one holds it for every block of keys.
            block_q_dq=block,
            block_kv_dq=block,
        ),
        attn_logits_soft_cap=softcap,
        # A remat policy that keeps the result of attention keeps its log-sum-exp too.
        residual_checkpoint_name="attention",
        interpret=target_platform() != "tpu",
    )

    def of_row(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None) -> jax.Array:
        both = None if segments is None else kernels.SegmentIds(segments, segments)
        return cast("jax.Array", kernel(q, k, v, segment_ids=both))

    scaled = (q.astype(jnp.float32) * scale).astype(q.dtype)
    y = jax.vmap(of_row)(scaled.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), segment_ids)
    return y.swapaxes(1, 2)[:, :length].astype(q.dtype)
