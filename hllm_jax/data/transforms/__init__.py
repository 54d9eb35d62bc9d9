"""Transforms: how pieces of documents become the rows of an objective. One file a story."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.data.transforms.build import build_transform as build_transform
    from hllm_jax.data.transforms.piece import Piece as Piece
    from hllm_jax.data.transforms.piece import Transform as Transform
