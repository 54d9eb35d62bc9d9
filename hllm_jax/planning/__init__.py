"""What a configuration will need on devices that are not here."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.planning.compiling import PerDevice as PerDevice
    from hllm_jax.planning.compiling import Plan as Plan
    from hllm_jax.planning.compiling import PlanError as PlanError
    from hllm_jax.planning.compiling import plan as plan
    from hllm_jax.planning.compiling import states_of as states_of
    from hllm_jax.planning.layouts import Search as Search
    from hllm_jax.planning.layouts import search as search
