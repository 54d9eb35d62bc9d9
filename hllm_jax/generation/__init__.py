"""Text from models: sampling, prefill and decode with a KV cache, beam search, streams, likelihoods."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.generation.engine import Engine as Engine
    from hllm_jax.generation.filling import infill as infill
    from hllm_jax.generation.language_model import LanguageModel as LanguageModel
    from hllm_jax.generation.request import Completion as Completion
    from hllm_jax.generation.request import Delta as Delta
    from hllm_jax.generation.request import Request as Request
    from hllm_jax.generation.request import Sampling as Sampling
    from hllm_jax.generation.samples import sample_writer as sample_writer
    from hllm_jax.generation.scoring import Score as Score
    from hllm_jax.generation.seq2seq import Seq2SeqModel as Seq2SeqModel
    from hllm_jax.generation.text_encoder import TextEncoder as TextEncoder
