"""Text to ids and back: SentencePiece, byte-level BPE, WordPiece, foreign vocabularies; chat templates."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.tokenizers.config import TokenizerConfig as TokenizerConfig
    from hllm_jax.tokenizers.errors import MessageError as MessageError
    from hllm_jax.tokenizers.errors import NoTokenizer as NoTokenizer
    from hllm_jax.tokenizers.errors import TemplateError as TemplateError
    from hllm_jax.tokenizers.errors import TokenizerError as TokenizerError
    from hllm_jax.tokenizers.folder import load_tokenizer as load_tokenizer
    from hllm_jax.tokenizers.frame import Frame as Frame
    from hllm_jax.tokenizers.gguf import from_gguf as from_gguf
    from hllm_jax.tokenizers.gguf_export import to_gguf as to_gguf
    from hllm_jax.tokenizers.huggingface import from_tokenizer_json as from_tokenizer_json
    from hllm_jax.tokenizers.stream import StreamDecoder as StreamDecoder
    from hllm_jax.tokenizers.tokenizer import Tokenizer as Tokenizer
    from hllm_jax.tokenizers.train import train_tokenizer as train_tokenizer
