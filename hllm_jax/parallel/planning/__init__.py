"""What a compiled program costs on chips that are not here."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.parallel.planning.hlo import Collective as Collective
    from hllm_jax.parallel.planning.hlo import Program as Program
    from hllm_jax.parallel.planning.refusal import Refusal as Refusal
    from hllm_jax.parallel.planning.refusal import read_refusal as read_refusal
    from hllm_jax.parallel.planning.roofline import Roofline as Roofline
    from hllm_jax.parallel.planning.roofline import step_time as step_time
    from hllm_jax.parallel.planning.topology import CHIPS as CHIPS
    from hllm_jax.parallel.planning.topology import Chip as Chip
    from hllm_jax.parallel.planning.topology import Topology as Topology
    from hllm_jax.parallel.planning.topology import TopologyError as TopologyError
    from hllm_jax.parallel.planning.topology import devices_of as devices_of
    from hllm_jax.parallel.planning.topology import parse_topology as parse_topology
