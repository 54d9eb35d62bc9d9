"""What a decoder is (`DecoderConfig`), how it is executed (`Execution`), and the YAML section for both."""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Literal

from hllm_jax.config.declare import Invalid, config

if TYPE_CHECKING:
    from hllm_jax.models.decoder import Decoder

Remat = Literal["none", "selective", "full"]
Kernel = Literal["auto", "plain", "blocked", "cudnn"]
Dtype = Literal["auto", "float32", "bfloat16"]


@config
class DecoderConfig:
    """A decoder-only transformer: the frozen spec that every family is mapped to. Saved with checkpoints.

    The defaults are the book's Tiny-K model (82,594,560 parameters).

    Attributes:
        vocab_size: V, rows of the embedding.
        layers: number of blocks.
        embed: D, width of the residual stream.
        heads, kv_heads: H and K, with H a multiple of K.
        head_dim: h; None: embed / heads.
        mlp: F; None: LLaMA's 8/3 · embed, rounded up to a multiple of `mlp_multiple`.
        mlp_multiple: see `mlp`; not used where `mlp` is given.
        max_length: longest row the model is made for; longer inputs are refused.
        norm_eps: added to the mean square in RMSNorm.
        rope_theta: base of the rotary frequencies.
        rope_pairing: `"half"` (Hugging Face) or `"interleaved"` (Meta, llama2.c).
        tie_embeddings: the output head is the embedding.
        dropout: on the embedding and on the two outputs of each block.
        attention_pattern: kind of attention of each layer in one period, repeated over the layers.
        window: tokens a `"window"` layer sees, itself included.
        logit_softcap, attention_softcap: `cap · tanh(x / cap)` on logits and attention scores.
        init_std: standard deviation at initialisation; of the two projections into the residual stream it
            is `init_std / √(2 · layers)` (GPT-2, section 2.3).
    """

    vocab_size: int = 6144
    layers: int = 12
    embed: int = 768
    heads: int = 16
    kv_heads: int = 8
    head_dim: int | None = None
    mlp: int | None = None
    mlp_multiple: int = 64
    max_length: int = 512
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_pairing: Literal["half", "interleaved"] = "half"
    tie_embeddings: bool = True
    dropout: float = 0.0
    attention_pattern: tuple[Literal["full", "window"], ...] = ("full",)
    window: int | None = None
    logit_softcap: float | None = None
    attention_softcap: float | None = None
    init_std: float = 0.02

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "layers", "embed", "heads", "kv_heads", "mlp_multiple", "max_length")
        wrong = [(f, f"{getattr(self, f)} must be at least 1") for f in sizes if getattr(self, f) < 1]
        for f in ("head_dim", "mlp", "window"):
            if getattr(self, f) is not None and getattr(self, f) < 1:
                wrong.append((f, f"{getattr(self, f)} must be at least 1, or left out"))
        for f in ("logit_softcap", "attention_softcap"):
            if getattr(self, f) is not None and getattr(self, f) <= 0:
                wrong.append((f, f"{getattr(self, f)} must be positive; leave it out for no cap"))
        for f in ("norm_eps", "rope_theta", "init_std"):
            if getattr(self, f) <= 0:
                wrong.append((f, f"{getattr(self, f)} must be positive"))
        if not 0 <= self.dropout < 1:
            wrong.append(("dropout", f"{self.dropout} must be at least 0 and below 1"))
        if wrong:
            raise Invalid(*wrong)
        period = len(self.attention_pattern)
        Invalid.check(
            [
                (
                    self.heads % self.kv_heads != 0,
                    "kv_heads",
                    f"{self.heads} heads cannot share {self.kv_heads} kv heads: heads must be a multiple",
                ),
                (
                    self.head_dim is None and self.embed % self.heads != 0,
                    "heads",
                    f"embed {self.embed} is no multiple of {self.heads} heads: change one, or set head_dim",
                ),
                (
                    self.head_size % 2 != 0,
                    "head_dim",
                    f"{self.head_size} is odd, and RoPE turns pairs: head_dim must be even",
                ),
                (
                    period == 0 or self.layers % period != 0,
                    "attention_pattern",
                    f"a period of {period} does not divide {self.layers} layers: give a period that does, or "
                    "one entry per layer",
                ),
                (
                    "window" in self.attention_pattern and self.window is None,
                    "window",
                    "attention_pattern has window layers: say how many tokens they see",
                ),
                (
                    "window" not in self.attention_pattern and self.window is not None,
                    "window",
                    f"{self.window} is not used: {self.attention_pattern} has no window layer",
                ),
            ]
        )

    @property
    def head_size(self) -> int:
        """h."""
        return self.head_dim if self.head_dim is not None else self.embed // self.heads

    @property
    def mlp_size(self) -> int:
        """F; LLaMA's rule is `int(2/3 · 4 · embed)` rounded up."""
        if self.mlp is not None:
            return self.mlp
        return -(-(8 * self.embed // 3) // self.mlp_multiple) * self.mlp_multiple

    def layer_window(self, layer: int) -> int | None:
        """Window of this layer; None: it sees everything before it."""
        kind = self.attention_pattern[layer % len(self.attention_pattern)]
        return self.window if kind == "window" else None

    def layer_parameters(self) -> int:
        """Parameters of one block."""
        attention = 2 * self.embed * self.head_size * (self.heads + self.kv_heads)
        return attention + 3 * self.embed * self.mlp_size + 2 * self.embed

    def parameters(self) -> int:
        """Parameters of the model; a tied embedding counts once."""
        tables = self.vocab_size * self.embed * (1 if self.tie_embeddings else 2)
        return tables + self.layers * self.layer_parameters() + self.embed

    def flops_per_token(self, length: int) -> float:
        """FLOPs that one training step needs per token: forward and backward, 2 per multiply-add.

        6 per weight that multiplies (the head counts, the lookup and the norms do not), and
        `12 · heads · head_dim · keys` per layer for scores and mixing, where `keys` is the mean number a
        query sees: `(length + 1) / 2` under a causal mask. (Chowdhery et al. 2022, appendix B, counts
        `length`, work that a causal kernel does not do.) Recomputation is not counted.
        """
        weights = self.vocab_size * self.embed + self.layers * (self.layer_parameters() - 2 * self.embed)
        keys = 0.0
        for layer in range(self.layers):
            w = min(self.layer_window(layer) or length, length)
            keys += (w * (w + 1) / 2 + (length - w) * w) / length
        return 6.0 * weights + 12.0 * self.heads * self.head_size * keys


@config
class Execution:
    """How a decoder is computed; nothing here changes what it is.

    Attributes:
        dtype: of activations and multiplications; `"auto"`: float32 on CPU, bfloat16 elsewhere.
        param_dtype: the parameters are kept in.
        scan_layers: one traced block over stacked weights (compile time does not grow with depth), or one
            block per layer (fastest decoding).
        remat: what the backward pass computes again: nothing, all but matrix products and attention
            (`"selective"`), or each whole block.
        attention: the kernel, see `nn.attention`.
    """

    dtype: Dtype = "auto"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = False
    remat: Remat = "none"
    attention: Kernel = "auto"

    def resolve(self) -> Execution:
        """The same with `dtype` decided for the default backend (this starts the backend)."""
        if self.dtype != "auto":
            return self
        import jax

        dtype: Dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        return dataclasses.replace(self, dtype=dtype)


@config
class ModelConfig:
    """The `model:` section. Exactly one of `load`, `preset` and `decoder` says what the model is.

    Attributes:
        load: any MODEL whose weights to start from; it brings its architecture.
        preset: a published size by name, with fresh weights.
        decoder: an architecture spelled out, with fresh weights.
        max_length: replaces the architecture's, if given.
        dropout: replaces the architecture's, if given.
        dtype, param_dtype, scan_layers, remat, attention: see `Execution`.
    """

    load: str | None = None
    preset: str | None = None
    decoder: DecoderConfig | None = None
    max_length: int | None = None
    dropout: float | None = None
    dtype: Dtype = "auto"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = False
    remat: Remat = "none"
    attention: Kernel = "auto"

    def __post_init__(self) -> None:
        given = [f for f in ("load", "preset", "decoder") if getattr(self, f) is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise Invalid(
                (given[-1] if given else "preset", f"give exactly one of load, preset, decoder; {said} given")
            )
        if self.preset is not None:
            from hllm_jax.models.families import presets

            known = presets()
            if self.preset not in known:
                near = difflib.get_close_matches(self.preset, known, 1, 0)
                raise Invalid(
                    (
                        "preset",
                        f"{self.preset!r} is no preset; nearest: {near[0]!r}; known: {', '.join(known)}",
                    )
                )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise Invalid(("dropout", f"{self.dropout} must be at least 0 and below 1"))

    @property
    def execution(self) -> Execution:
        """The fields that say how to compute."""
        return Execution(
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            scan_layers=self.scan_layers,
            remat=self.remat,
            attention=self.attention,
        )

    def spec(self, vocab_size: int | None = None, loaded: DecoderConfig | None = None) -> DecoderConfig:
        """The architecture.

        Args:
            vocab_size: of the tokenizer. A fresh model takes it as its own; None keeps the config's.
            loaded: the architecture of `load` (`interop.read_config(load)`), which this room cannot read.

        Raises:
            ValueError: a loaded model has fewer embeddings than the tokenizer has ids, or `load` is set and
                `loaded` was not passed.
        """
        changes: dict[str, int | float] = {}
        if self.max_length is not None:
            changes["max_length"] = self.max_length
        if self.dropout is not None:
            changes["dropout"] = self.dropout
        if self.load is not None:
            if loaded is None:
                raise ValueError(
                    f"model.load is {self.load!r}: pass loaded=read_config(load) of hllm_jax.interop"
                )
            if vocab_size is not None and vocab_size > loaded.vocab_size:
                raise ValueError(
                    f"the tokenizer has {vocab_size} ids, {self.load} has {loaded.vocab_size} embeddings: "
                    "use the tokenizer that belongs to the model"
                )
            return dataclasses.replace(loaded, **changes)  # pyrefly: ignore
        if self.preset is not None:
            from hllm_jax.models.families import presets

            spec = presets()[self.preset]
        else:
            assert self.decoder is not None
            spec = self.decoder
        if vocab_size is not None:
            changes["vocab_size"] = vocab_size
        return dataclasses.replace(spec, **changes)  # pyrefly: ignore

    def build(self, vocab_size: int | None = None, loaded: DecoderConfig | None = None) -> Decoder:
        """The Linen module, without parameters; arguments as in `spec`."""
        from hllm_jax.models.decoder import Decoder

        return Decoder(self.spec(vocab_size, loaded), self.execution)
