"""Other people's files: GGUF, safetensors, Hugging Face's and Meta's folders, and what MODEL may name."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.interop.gguf import GGUF as GGUF
    from hllm_jax.interop.gguf import GGUFError as GGUFError
    from hllm_jax.interop.hf import HFFolder as HFFolder
    from hllm_jax.interop.meta import MetaCheckpoint as MetaCheckpoint
    from hllm_jax.interop.models import PublishedModel as PublishedModel
    from hllm_jax.interop.models import read_config as read_config
    from hllm_jax.interop.models import read_model as read_model
    from hllm_jax.interop.models import read_tokenizer as read_tokenizer
    from hllm_jax.interop.models import save_hf as save_hf
    from hllm_jax.interop.pth import PthError as PthError
    from hllm_jax.interop.pth import Stored as Stored
    from hllm_jax.interop.registry import Source as Source
    from hllm_jax.interop.registry import registered as registered
    from hllm_jax.interop.registry import resolve as resolve
    from hllm_jax.interop.safetensors import Safetensors as Safetensors
    from hllm_jax.interop.safetensors import write_safetensors as write_safetensors
