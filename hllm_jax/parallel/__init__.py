"""Where arrays live: the mesh, what each logical axis means on it, and the layout of a whole train state."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.parallel.config import AXES as AXES
    from hllm_jax.parallel.config import MeshConfig as MeshConfig
    from hllm_jax.parallel.config import PipelineConfig as PipelineConfig
    from hllm_jax.parallel.config import Strategy as Strategy
    from hllm_jax.parallel.layout import Layout as Layout
    from hllm_jax.parallel.layout import LayoutError as LayoutError
    from hllm_jax.parallel.mesh import MeshError as MeshError
    from hllm_jax.parallel.mesh import make_mesh as make_mesh
    from hllm_jax.parallel.rules import Rules as Rules
    from hllm_jax.parallel.rules import make_rules as make_rules
    from hllm_jax.parallel.state import TrainState as TrainState
    from hllm_jax.parallel.state import everything as everything
    from hllm_jax.parallel.state import matching as matching
    from hllm_jax.parallel.state import merge as merge
    from hllm_jax.parallel.state import split as split
    from hllm_jax.planning import plan as plan
