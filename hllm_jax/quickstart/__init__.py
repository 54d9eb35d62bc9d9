"""From raw text to a chat in one command: `quickstart(scale, out)`."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.quickstart.command import quickstart as quickstart
