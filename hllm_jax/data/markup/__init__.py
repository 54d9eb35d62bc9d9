"""Documents written for formatters, as plain text: manual pages (roff) and reStructuredText."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.data.markup.restructured import plain_text as text_of_rst  # noqa: F401
    from hllm_jax.data.markup.roff import plain_text as text_of_page  # noqa: F401
