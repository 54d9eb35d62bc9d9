"""`python -m hllm_jax` is the `hllm` command."""

import sys

from hllm_jax.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
