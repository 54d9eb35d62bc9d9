"""Architectures built from `nn/`, and the published families that are data for them."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from hllm_jax.models.config import Execution as Execution
    from hllm_jax.models.config import ModelConfig as ModelConfig
    from hllm_jax.models.decoder import Decoder as Decoder
    from hllm_jax.models.decoder import init_cache as init_cache
    from hllm_jax.models.encoder import Encoder as Encoder
    from hllm_jax.models.encoder_decoder import EncoderDecoder as EncoderDecoder
    from hllm_jax.models.layout import Model as Model
    from hllm_jax.models.layout import parameter_shapes as parameter_shapes
    from hllm_jax.models.layout import stack_layers as stack_layers
    from hllm_jax.models.layout import unstack_layers as unstack_layers
    from hllm_jax.models.spec import DecoderConfig as DecoderConfig
    from hllm_jax.models.spec import EncoderConfig as EncoderConfig
    from hllm_jax.models.spec import EncoderDecoderConfig as EncoderDecoderConfig
    from hllm_jax.models.spec import Spec as Spec
