"""The one block of every architecture, and the stack of them: unrolled, scanned, or one block repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from hllm_jax.models.config import Execution
from hllm_jax.models.spec import StackConfig
from hllm_jax.nn.axes import GATHERED, Layer, constrain, is_gathering, stack_of_layers
from hllm_jax.nn.cache import KVCache, LayerCache
from hllm_jax.nn.mlp import MLP
from hllm_jax.nn.moe import ROUTING, MixtureOfExperts
from hllm_jax.nn.multi_head import MultiHeadAttention
from hllm_jax.nn.norm import make_norm

#: Collections with one entry per layer beside the weights (adapters live in `lora`).
LAYERED: dict[Any, Any] = {"params": 0, "lora": 0, "intermediates": 0, ROUTING: 0}

#: Name (`checkpoint_name`) of what goes into a block.
STREAM = "stream"


class Context(NamedTuple):
    """What all layers of a stack are given beside the stream.

    Attributes:
        rope: cosine and sine of the positions `[B, L, r/2]`, or None.
        segment_ids: int `[B, L]`, or None.
        prefix: bool or int `[B, L]`, see `attention`, or None.
        bias: float32 `[B or 1, H, L, S]`, see `attention`, or None.
        encoded: `[B, S, D]`, what cross attention looks at, where no cache holds its keys and values.
        encoded_segment_ids: int `[B, S]`, or None.
    """

    rope: tuple[jax.Array, jax.Array] | None = None
    segment_ids: jax.Array | None = None
    prefix: jax.Array | None = None
    bias: jax.Array | None = None
    encoded: jax.Array | None = None
    encoded_segment_ids: jax.Array | None = None


class Block(nn.Module):
    """Attention and a feed-forward network, each added to the stream; between them cross attention, if any.

    Attributes:
        config: the architecture.
        execution: the computation, with its dtype resolved.
        window: of this layer, None for all.
        causal: whether attention looks back only.
        cross: whether the block looks at another row.
    """

    config: StackConfig
    execution: Execution
    window: int | None = None
    causal: bool = True
    cross: bool = False

    def setup(self) -> None:
        c = self.config
        kinds = dtypes(self.execution)
        # Each block adds terms to the residual stream: their variance is kept flat over depth.
        terms = 3 * c.depth if self.cross else 2 * c.layers
        into_residual = c.residual_std(c.heads * c.head_size, terms)
        self.attention_norm = make_norm(c.norm, c.norm_eps, **kinds)
        self.attention = _attention(c, self.execution, self.window, self.causal, into_residual)
        if self.cross:
            self.cross_norm = make_norm(c.norm, c.norm_eps, **kinds)
            self.cross_attention = _attention(c, self.execution, None, False, into_residual)
        self.mlp_norm = make_norm(c.norm, c.norm_eps, **kinds)
        if c.experts is not None:
            self.experts = MixtureOfExperts(
                c.embed,
                c.mlp_size,
                c.experts,
                c.activation,
                c.gated,
                c.std(c.embed),
                c.residual_std(c.mlp_size, terms),
                **kinds,
            )
        else:
            self.mlp = MLP(
                c.embed,
                c.mlp_size,
                c.activation,
                c.gated,
                c.mlp_bias,
                c.std(c.embed),
                c.residual_std(c.mlp_size, terms),
                c.mlp_dropout,
                **kinds,
            )
        if c.norm_placement == "sandwich":
            self.attention_out_norm = make_norm(c.norm, c.norm_eps, **kinds)
            self.mlp_out_norm = make_norm(c.norm, c.norm_eps, **kinds)
        self.dropout = nn.Dropout(c.dropout)

    def __call__(
        self, x: jax.Array, context: Context, cache: LayerCache | None, deterministic: bool
    ) -> tuple[jax.Array, LayerCache | None]:
        """x `[B, L, D]` -> `[B, L, D]` and the cache with the new tokens in it."""
        x = checkpoint_name(x, STREAM)
        sandwich = self.config.norm_placement == "sandwich"
        y, cache = self.attention(
            self._into(self.attention_norm, x),
            rope=context.rope,
            segment_ids=context.segment_ids,
            prefix=context.prefix,
            bias=context.bias,
            cache=cache,
            deterministic=deterministic,
        )
        if sandwich:
            y = self.attention_out_norm(y)
        x = self._add(self.attention_norm, x, y, deterministic)
        if self.cross:
            y = self._cross(self._into(self.cross_norm, x), context, cache, deterministic)
            x = self._add(self.cross_norm, x, y, deterministic)
        y = self._feed_forward(self._into(self.mlp_norm, x), context, deterministic)
        if sandwich:
            y = self.mlp_out_norm(y)
        return self._add(self.mlp_norm, x, y, deterministic), cache

    def remember(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys `[B, K, h, S]` and values `[B, K, S, h]` of what cross attention looks at, once for all steps
        of decoding; see `KVCache.cross`."""
        keys, values = self.cross_attention.keys_values(encoded)
        return keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2)

    def _feed_forward(self, x: jax.Array, context: Context, deterministic: bool) -> jax.Array:
        if self.config.experts is None:
            return self.mlp(x, deterministic)
        valid = None if context.segment_ids is None else context.segment_ids != 0
        return self.experts(x, valid, training=not deterministic)

    def _cross(
        self, x: jax.Array, context: Context, cache: LayerCache | None, deterministic: bool
    ) -> jax.Array:
        of_queries, of_keys = context.segment_ids, context.encoded_segment_ids
        if cache is not None and cache.memory is not None:
            return self.cross_attention.recall(x, *cache.memory, of_keys)
        assert context.encoded is not None, "cross attention needs the encoder's output or a cache"
        if of_keys is not None and of_queries is None:
            of_queries = jnp.ones(x.shape[:2], of_keys.dtype)
        return self.cross_attention.look(
            x,
            context.encoded,
            segment_ids=None if of_keys is None else of_queries,
            key_segment_ids=of_keys,
            deterministic=deterministic,
        )

    def _into(self, norm: nn.Module, x: jax.Array) -> Any:
        return x if self.config.norm_placement == "post" else norm(x)

    def _add(self, norm: nn.Module, x: jax.Array, y: jax.Array, deterministic: bool) -> Any:
        x = x + self.dropout(y, deterministic)
        if self.config.norm_placement == "post":
            x = norm(x)
        return constrain(x, "batch", "length", "act_embed")


class Period(nn.Module):
    """The blocks of one period of a pattern longer than one: what the scan repeats (`layers/block_0/…`)."""

    config: StackConfig
    execution: Execution
    causal: bool = True
    cross: bool = False

    def setup(self) -> None:
        self.block = [
            make_block(self.config, self.execution, i, self.causal, self.cross)
            for i in range(len(self.config.attention_pattern))
        ]

    def __call__(
        self, x: jax.Array, context: Context, cache: LayerCache | None, deterministic: bool
    ) -> tuple[jax.Array, LayerCache | None]:
        """As `Block`; a stacked cache comes back pointing at the layer after this period."""
        for i, block in enumerate(self.block):
            x, cache = block(x, context, cache, deterministic)
            if cache is not None and i + 1 < len(self.block):
                cache = cache.next_layer()
        return x, cache


def make_layers(
    config: StackConfig,
    execution: Execution,
    layers: int | None = None,
    *,
    causal: bool = True,
    cross: bool = False,
) -> Any:
    """The blocks of a stack, for a module to keep as `self.layers` (or `self.shared`, where they are one).

    Args:
        config: the architecture.
        execution: the computation, with its dtype resolved.
        layers: how many; None: `config.layers`.
        causal, cross: see `Block`.

    Returns:
        A list of blocks, or one module for the scan to repeat.
    """
    if config.shared_layers:
        return make_block(config, execution, 0, causal, cross)
    if not execution.scan_layers:
        return [make_block(config, execution, i, causal, cross) for i in range(layers or config.layers)]
    if len(config.attention_pattern) == 1:
        return make_block(config, execution, 0, causal, cross)
    return Period(config, execution, causal, cross)


def make_block(config: StackConfig, execution: Execution, layer: int, causal: bool, cross: bool) -> Any:
    """The block of a layer, wrapped so that its backward pass computes again what `remat` says."""
    window = config.layer_window(layer)
    policies = jax.checkpoint_policies
    policy = None
    if execution.remat == "none":
        if not is_gathering():
            return Block(config, execution, window, causal, cross)
        policy = all_but_gathered
    elif execution.remat == "selective":
        policy = policies.save_from_both_policies(
            policies.checkpoint_dots_with_no_batch_dims, policies.save_only_these_names("attention")
        )
    elif execution.remat == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[STREAM],
            offload_src="device",
            offload_dst="pinned_host",
        )
    # Inside a scan nothing can be merged across iterations, so the barrier against merging is not needed.
    block: Any = nn.remat(Block, policy=policy, prevent_cse=not execution.scan_layers, static_argnums=(4,))
    return block(config, execution, window, causal, cross)


def all_but_gathered(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Keep everything for the backward pass but parameters that were gathered or made of few bits: they are
    so again."""
    return primitive.name != "reshape" and not _gathers(primitive.name, parameters)


def _gathers(primitive: str, parameters: Mapping[str, Any]) -> bool:
    """Whether an operation, or one inside of it (a `custom_vjp`, a `shard_map`), gathers or is named so."""
    if primitive == "all_gather" or (primitive == "name" and parameters["name"] == GATHERED):
        return True
    inside = (getattr(value, "jaxpr", value) for value in parameters.values())
    return any(
        _gathers(equation.primitive.name, equation.params)
        for jaxpr in inside
        for equation in getattr(jaxpr, "eqns", ())
    )


def apply_layers(
    layers: Any,
    config: StackConfig,
    x: jax.Array,
    context: Context,
    cache: KVCache | None = None,
    slots: jax.Array | None = None,
    deterministic: bool = True,
    count: int | None = None,
) -> tuple[jax.Array, KVCache | None]:
    """Run the stream through a stack.

    Args:
        layers: from `make_layers`.
        config: the architecture.
        x: `[B, L, D]`.
        context: the same for all layers.
        cache: keys and values of all layers, with `slots` int `[B, L]` of the new tokens.
        slots: see `KVCache.slots`.
        deterministic: no dropout.
        count: number of layers; None: `config.layers`.

    Returns:
        `[B, L, D]`, and the cache with the new tokens; its `lengths` are as they were.

    Raises:
        ValueError: a cache, where the layers are stages of a pipeline.
    """
    count = count or config.layers
    stack = stack_of_layers()
    if stack is not None and not layers.is_initializing():
        if cache is not None:
            raise ValueError("a pipeline keeps no keys and values: decode on a mesh without the axis stage")
        key = layers.make_rng("dropout") if layers.has_rng("dropout") and not deterministic else None
        return stack(_layer(layers, deterministic), dict(layers.variables), x, context, key), None
    if not isinstance(layers, nn.Module):
        held: list[LayerCache] = []
        for i, block in enumerate(layers):
            of_layer = cache.of_layer(i, slots) if cache is not None and slots is not None else None
            x, of_layer = block(x, context, of_layer, deterministic)
            if of_layer is not None:
                held.append(of_layer)
        return x, None if cache is None else cache.with_layers(held)
    # The stacked cache is carried, not scanned over: a carry is updated in place, while an output of the
    # scan would be a second copy of all of it.
    start = cache.of_layer(0, slots) if cache is not None and slots is not None else None
    # Weights may be those of one block; what passes through it is each layer's own.
    shared = ["params", "lora"] if config.shared_layers else []

    def body(layers: Any, carry: Any) -> tuple[Any, None]:
        x, held = carry
        x, held = layers(x, context, held, deterministic)
        return (x, None if held is None else held.next_layer()), None

    scan = nn.scan(
        body,
        variable_axes={name: axis for name, axis in LAYERED.items() if name not in shared},
        variable_broadcast=shared or False,
        split_rngs={"params": not config.shared_layers, "dropout": True},
        length=count // len(config.attention_pattern),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    (x, end), _ = scan(layers, (x, start))
    return x, None if cache is None or end is None else cache.with_layers([end])


def _layer(layers: nn.Module, deterministic: bool) -> Layer:
    """One step of the scan as a pure function, for whoever scans by other means."""
    module = layers.clone(parent=None)

    def layer(variables: Any, x: jax.Array, context: Context, key: jax.Array | None) -> jax.Array:
        rngs = None if key is None else {"dropout": key}
        x, _ = module.apply(variables, x, context, None, deterministic, rngs=rngs)
        return x

    return layer


def _attention(
    c: StackConfig, e: Execution, window: int | None, causal: bool, out_std: float
) -> MultiHeadAttention:
    return MultiHeadAttention(
        embed=c.embed,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_size,
        causal=causal,
        window=window,
        softcap=c.attention_softcap,
        scale=c.attention_scale,
        kernel=e.attention,
        pairing=c.rope_pairing,
        qkv_bias=c.qkv_bias,
        out_bias=c.out_bias,
        qk_norm=c.norm_eps if c.qk_norm else None,
        dropout=c.attention_dropout,
        std=c.std(c.embed),
        out_std=out_std,
        **dtypes(e),
    )


def dtypes(execution: Execution) -> dict[str, Any]:
    """`dtype` and `param_dtype` of every layer, from a resolved execution."""
    return {"dtype": jnp.dtype(execution.dtype), "param_dtype": jnp.dtype(execution.param_dtype)}
