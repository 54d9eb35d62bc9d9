"""The `hllm` command: each command parses, calls one room, and prints."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.cli.entry import main as main
