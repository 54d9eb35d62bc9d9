"""Layers: linear, norm, position, attention, mlp, embed, cache; every parameter has names for its axes.

The einsum alphabet of the whole project, in einsum strings, docstrings and shape comments:

    B batch    L query length    S key length    D embed    V vocab    F mlp
    H heads    K kv heads        G = H / K       h head_dim    E experts

Names of parameter and activation axes stand in `hllm_jax.nn.axes`.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.nn.axes import ACTIVATION_AXES as ACTIVATION_AXES
    from hllm_jax.nn.axes import PARAMETER_AXES as PARAMETER_AXES
    from hllm_jax.nn.cache import KVCache as KVCache
    from hllm_jax.nn.cache import LayerCache as LayerCache
    from hllm_jax.nn.config import Experts as Experts
    from hllm_jax.nn.config import RopeScaling as RopeScaling
    from hllm_jax.nn.embed import Embed as Embed
    from hllm_jax.nn.linear import Linear as Linear
    from hllm_jax.nn.mlp import MLP as MLP
    from hllm_jax.nn.moe import MixtureOfExperts as MixtureOfExperts
    from hllm_jax.nn.multi_head import MultiHeadAttention as MultiHeadAttention
    from hllm_jax.nn.norm import LayerNorm as LayerNorm
    from hllm_jax.nn.norm import RMSNorm as RMSNorm
    from hllm_jax.nn.norm import make_norm as make_norm
    from hllm_jax.nn.position import RelativeBias as RelativeBias
    from hllm_jax.nn.position import Table as Table
    from hllm_jax.nn.position import sinusoids as sinusoids
    from hllm_jax.nn.rope import apply_rope as apply_rope
    from hllm_jax.nn.rope import rope_angles as rope_angles
