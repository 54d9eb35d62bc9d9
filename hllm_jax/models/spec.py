"""What a model is: one frozen spec for each architecture, over the same kind of layers.

Saved with checkpoints. A published family is a value of one of these classes; nothing here knows which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from hllm_jax.config.declare import Invalid, config
from hllm_jax.models.task import TaskConfig
from hllm_jax.nn.config import Activation, Experts, Norm, Pairing, RopeScaling

if TYPE_CHECKING:
    from hllm_jax.models.config import Execution
    from hllm_jax.models.decoder import Decoder
    from hllm_jax.models.encoder import Encoder
    from hllm_jax.models.encoder_decoder import EncoderDecoder

Problems: TypeAlias = list[tuple[str, str]]


@config
class StackConfig:
    """What the layers of every architecture are. The defaults are LLaMA's, in the sizes of the book's Tiny-K.

    Attributes:
        layers: number of blocks.
        embed: D, width of the residual stream.
        heads, kv_heads: H and K, with H a multiple of K.
        head_dim: h; None: embed / heads.
        mlp: F; None: LLaMA's 8/3 · embed, rounded up to a multiple of `mlp_multiple`.
        mlp_multiple: see `mlp`; not used where `mlp` is given.
        max_length: longest row the model is made for; longer inputs are refused.
        norm, norm_eps: root mean square or mean and variance, and what is added under the root.
        norm_placement: `"pre"` x + f(norm(x)), `"post"` norm(x + f(x)), `"sandwich"` x + norm'(f(norm(x))).
        position: how a layer knows where tokens are: rotated queries and keys, a learned table or sinusoids
            added to the embedding, a learned bias of the scores, or not at all. `"learned_2d"` (decoders) is
            two tables: the place in the text, and in the span that fills a blank of it (GLM).
        rope_theta, rope_pairing, rope_scaling: base of the frequencies, see `apply_rope`, `RopeScaling`.
        rope_fraction: share of each head's coordinates that turn.
        relative_buckets, relative_distance: see `RelativeBias`.
        activation, gated: of the feed-forward network, see `MLP`.
        experts: a mixture of such networks in each layer; None: one.
        qkv_bias, out_bias, mlp_bias: which projections have a bias.
        qk_norm: each head's query and key pass an RMSNorm.
        attention_scale: of the scores; None: 1 / √head_dim.
        attention_softcap: `cap · tanh(x / cap)` on the scores.
        attention_pattern: kind of attention of each layer in one period, repeated over the layers.
        window: tokens a `"window"` layer sees, itself included.
        shared_layers: all layers are one block's weights (ALBERT).
        dropout: on the embedding and on the outputs of each block.
        attention_dropout: of the probabilities of attention.
        mlp_dropout: on what the activation of a feed-forward network gives.
        init: `"normal"`: every matrix has the standard deviation `init_std`, those into the residual stream
            `init_std / √(number of them)` (GPT-2, section 2.3). `"fan_in"`: a matrix has `1 / √inputs`, the
            embedding `1 / embed_scale`, so that everything starts with variance 1 (T5, Mesh TensorFlow).
        init_std: see `init`; not used by `"fan_in"`.
    """

    layers: int = 12
    embed: int = 768
    heads: int = 16
    kv_heads: int = 8
    head_dim: int | None = None
    mlp: int | None = None
    mlp_multiple: int = 64
    max_length: int = 512
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    position: Literal["rope", "learned", "learned_2d", "sinusoidal", "relative", "none"] = "rope"
    rope_theta: float = 10000.0
    rope_pairing: Pairing = "half"
    rope_fraction: float = 1.0
    rope_scaling: RopeScaling | None = None
    relative_buckets: int = 32
    relative_distance: int = 128
    activation: Activation = "silu"
    gated: bool = True
    experts: Experts | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    attention_pattern: tuple[Literal["full", "window"], ...] = ("full",)
    window: int | None = None
    shared_layers: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    init: Literal["normal", "fan_in"] = "normal"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if found := self.problems():
            raise Invalid(*found)

    def problems(self) -> Problems:
        """Fields whose values or combination are impossible, with the reason."""
        sizes = ("layers", "embed", "heads", "kv_heads", "mlp_multiple", "max_length")
        wrong = [(f, f"{getattr(self, f)} must be at least 1") for f in sizes if getattr(self, f) < 1]
        for f in ("head_dim", "mlp", "window"):
            if getattr(self, f) is not None and getattr(self, f) < 1:
                wrong.append((f, f"{getattr(self, f)} must be at least 1, or left out"))
        for f in ("attention_softcap", "attention_scale"):
            if getattr(self, f) is not None and getattr(self, f) <= 0:
                wrong.append((f, f"{getattr(self, f)} must be positive, or left out"))
        for f in ("norm_eps", "rope_theta", "init_std"):
            if getattr(self, f) <= 0:
                wrong.append((f, f"{getattr(self, f)} must be positive"))
        for f in ("dropout", "attention_dropout", "mlp_dropout"):
            if not 0 <= getattr(self, f) < 1:
                wrong.append((f, f"{getattr(self, f)} must be at least 0 and below 1"))
        return wrong or self._combinations()

    def _combinations(self) -> Problems:
        period = len(self.attention_pattern)
        checks = [
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
                self.position == "rope" and self.rope_dims % 2 != 0,
                "head_dim",
                f"{self.rope_dims} is odd, and RoPE turns pairs: head_dim · rope_fraction must be even",
            ),
            (
                not 0 < self.rope_fraction <= 1,
                "rope_fraction",
                f"{self.rope_fraction} must be above 0 and at most 1",
            ),
            (
                self.position != "rope" and self.rope_scaling is not None,
                "rope_scaling",
                f"is not used: positions are {self.position!r}",
            ),
            (
                self.position == "relative" and not 2 <= self.relative_buckets // 2 < self.relative_distance,
                "relative_distance",
                f"{self.relative_distance} with {self.relative_buckets} buckets: these must be at least 4, "
                "and half of them fewer than the distance",
            ),
            (
                self.position == "sinusoidal" and self.embed % 2 != 0,
                "embed",
                f"{self.embed} is odd, and sinusoidal positions come in pairs",
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
            (
                self.experts is not None and self.mlp_bias,
                "mlp_bias",
                "experts have no biases: leave it out",
            ),
            (
                self.experts is not None and self.mlp_dropout > 0,
                "mlp_dropout",
                "is not done inside experts: leave it out",
            ),
            (
                self.shared_layers and period != 1,
                "shared_layers",
                f"one block cannot follow a pattern of {period} kinds",
            ),
        ]
        return [(field, message) for wrong, field, message in checks if wrong]

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

    @property
    def rope_dims(self) -> int:
        """Coordinates of each head that turn."""
        return int(self.head_size * self.rope_fraction)

    @property
    def depth(self) -> int:
        """Blocks of the decoder, where there is an encoder too."""
        return self.layers

    def std(self, inputs: int) -> float:
        """Standard deviation of a matrix with so many inputs at initialisation."""
        return inputs**-0.5 if self.init == "fan_in" else self.init_std

    def residual_std(self, inputs: int, terms: int) -> float:
        """The same of a projection into a residual stream that is a sum of so many terms."""
        return self.std(inputs) if self.init == "fan_in" else self.init_std / terms**0.5

    def embedding_std(self, scale: float | None = None) -> float:
        """The same of an embedding that is multiplied by `scale` on its way in."""
        return 1.0 / (scale or 1.0) if self.init == "fan_in" else self.init_std

    def layer_window(self, layer: int) -> int | None:
        """Window of this layer; None: it sees everything that it may."""
        kind = self.attention_pattern[layer % len(self.attention_pattern)]
        return self.window if kind == "window" else None

    def attention_weights(self) -> int:
        """Entries of the four matrices of one attention."""
        return 2 * self.embed * self.head_size * (self.heads + self.kv_heads)

    def mlp_weights(self, active: bool = False) -> int:
        """Entries of the matrices of one feed-forward network, or of the router and all experts of a mixture.

        Args:
            active: of a mixture, count the experts that one token passes.
        """
        network = (3 if self.gated else 2) * self.embed * self.mlp_size
        if self.experts is None:
            return network
        used = self.experts.per_token if active else self.experts.count
        return self.embed * self.experts.count + used * network

    def norm_parameters(self) -> int:
        """Parameters of one norm over the residual stream."""
        return self.embed * (1 if self.norm == "rms" else 2)

    def layer_parameters(self, cross: bool = False) -> int:
        """Parameters of one block; `cross`: with attention to another row."""
        attentions = 2 if cross else 1
        biases = (
            self.qkv_bias * self.head_size * (self.heads + 2 * self.kv_heads) + self.out_bias * self.embed
        )
        attention = self.attention_weights() + biases + self.qk_norm * 2 * self.head_size
        mlp = self.mlp_weights()
        mlp += self.mlp_bias * ((2 if self.gated else 1) * self.mlp_size + self.embed)
        norms = (attentions + 1) * (2 if self.norm_placement == "sandwich" else 1)
        return attentions * attention + mlp + norms * self.norm_parameters()

    def stack_parameters(self, layers: int, cross: bool = False) -> int:
        """Parameters of all blocks, of a table of relative positions, and of the norm after them."""
        total = (1 if self.shared_layers else layers) * self.layer_parameters(cross)
        total += self.relative_buckets * self.heads if self.position == "relative" else 0
        return total + (self.norm_parameters() if self.norm_placement != "post" else 0)

    @property
    def added(self) -> tuple[str, ...]:
        """First parts of the names of parameters that fine-tuning adds to a model: those of its head."""
        return ()

    def idle_parameters(self, layers: int) -> int:
        """Parameters of the experts that a token does not pass."""
        shared = 1 if self.shared_layers else layers
        return shared * (self.mlp_weights() - self.mlp_weights(active=True))

    def position_parameters(self) -> int:
        """Parameters of a learned table of positions."""
        tables = {"learned": 1, "learned_2d": 2}.get(self.position, 0)
        return tables * self.max_length * self.embed

    def attention_flops(self, length: int, keys: float | None = None) -> float:
        """Training FLOPs per token of scores and mixing in all layers: `12 · heads · head_dim · keys` each.

        Args:
            length: of the row.
            keys: mean number a query sees; None: that of a causal mask, `(length + 1) / 2`, or less in a
                window. (Chowdhery et al. 2022, appendix B, counts `length`, work that a causal kernel does
                not do.)
        """
        total = 0.0
        for layer in range(self.layers):
            w = min(self.layer_window(layer) or length, length)
            total += (w * (w + 1) / 2 + (length - w) * w) / length if keys is None else keys
        return 12.0 * self.heads * self.head_size * total


@config
class DecoderConfig(StackConfig):
    """A decoder-only transformer. The defaults are the book's Tiny-K model (82,594,560 parameters).

    Attributes:
        vocab_size: V, rows of the embedding.
        tie_embeddings: the output head is the embedding.
        embed_scale: factor of the embedding on its way in (Gemma: √embed); None: 1.
        logit_softcap: `cap · tanh(x / cap)` on the logits.
        head: what is read of the last hidden state: logits of the next token, one number (a reward model, a
            value model: `Decoder.score`), or both.
    """

    architecture: ClassVar[str] = "decoder"

    vocab_size: int = 6144
    tie_embeddings: bool = True
    embed_scale: float | None = None
    logit_softcap: float | None = None
    head: Literal["logits", "score", "both"] = "logits"

    def problems(self) -> Problems:
        """As `StackConfig`, and what a decoder adds."""
        return super().problems() + _table_problems(self.vocab_size, self.embed_scale, self.logit_softcap)

    @property
    def added(self) -> tuple[str, ...]:
        """See `StackConfig.added`."""
        return ("score",) if self.head != "logits" else ()

    def build(self, execution: Execution) -> Decoder:
        """The Linen module, without parameters."""
        from hllm_jax.models.decoder import Decoder

        return Decoder(self, execution)

    def parameters(self) -> int:
        """Parameters of the model; a tied embedding counts once."""
        tables = self.vocab_size * self.embed * (1 if self.tie_embeddings or self.head == "score" else 2)
        score = self.embed if self.head != "logits" else 0
        return tables + score + self.position_parameters() + self.stack_parameters(self.layers)

    def active_parameters(self) -> int:
        """Parameters that one token passes: all but those of other experts."""
        return self.parameters() - self.idle_parameters(self.layers)

    def flops_per_token(self, length: int, frozen: bool = False) -> float:
        """FLOPs that one training step needs per token: forward and backward, 2 per multiply-add.

        6 per weight that multiplies (the head counts, lookups, norms and biases do not), and
        `attention_flops`. Recomputation is not counted.

        Args:
            length: of the rows.
            frozen: the weights only stand under adapters (which are not counted): 4 per weight, no gradient.
        """
        weights = self.embed if self.head == "score" else self.vocab_size * self.embed
        weights += self.layers * (self.attention_weights() + self.mlp_weights(active=True))
        return (4.0 if frozen else 6.0) * weights + self.attention_flops(length)


@config
class EncoderConfig(StackConfig):
    """An encoder: every token sees its whole document. The defaults are BERT-base's.

    Attributes:
        vocab_size: V, rows of the embedding.
        embedding: E, width of the tables where they are narrower than the stream (ALBERT); None: embed.
        token_types: kinds of tokens with an embedding each (first and second text); 0: none.
        position_offset: index of the first position in the learned table (RoBERTa: 2).
        masked_head: the head of masked language modelling: dense, activation, norm, tied decoder with a bias.
        pooler: `tanh(dense(first token))`.
        pair_head: two classes from the pooler: next sentence (BERT), sentence order (ALBERT).
        task: a head that fine-tuning adds.
    """

    architecture: ClassVar[str] = "encoder"

    vocab_size: int = 30522
    heads: int = 12
    kv_heads: int = 12
    mlp: int | None = 3072
    norm: Norm = "layer"
    norm_eps: float = 1e-12
    norm_placement: Literal["pre", "post", "sandwich"] = "post"
    position: Literal["rope", "learned", "sinusoidal", "relative", "none"] = "learned"
    activation: Activation = "gelu"
    gated: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    embedding: int | None = None
    token_types: int = 2
    position_offset: int = 0
    masked_head: bool = True
    pooler: bool = True
    pair_head: bool = True
    task: TaskConfig | None = None

    def problems(self) -> Problems:
        """As `StackConfig`, and what an encoder adds."""
        checks = [
            (
                self.embedding is not None and self.embedding < 1,
                "embedding",
                "must be at least 1, or left out",
            ),
            (self.token_types < 0, "token_types", f"{self.token_types} must be at least 0"),
            (self.position_offset < 0, "position_offset", f"{self.position_offset} must be at least 0"),
            (
                self.pair_head and not self.pooler,
                "pair_head",
                "reads the pooler: set pooler, or leave it out",
            ),
            (
                self.task is not None
                and self.task.kind == "sequence"
                and not (self.task.dense or self.pooler),
                "task",
                "a sequence's head reads the pooler, or a dense layer of its own: set pooler or task.dense",
            ),
            (self.window is not None, "window", "an encoder sees its whole document: leave it out"),
            (self.init != "normal", "init", f"{self.init} is not done for the tables of an encoder"),
        ]
        found = super().problems() + _table_problems(self.vocab_size)
        return found + [(field, message) for wrong, field, message in checks if wrong]

    @property
    def embedding_size(self) -> int:
        """E."""
        return self.embedding if self.embedding is not None else self.embed

    @property
    def added(self) -> tuple[str, ...]:
        """See `StackConfig.added`."""
        return (f"{self.task.kind}_head",) if self.task is not None else ()

    def build(self, execution: Execution) -> Encoder:
        """The Linen module, without parameters."""
        from hllm_jax.models.encoder import Encoder

        return Encoder(self, execution)

    def parameters(self) -> int:
        """Parameters of the model with the heads it has; a tied embedding counts once."""
        D, E = self.embed, self.embedding_size
        norm = 1 if self.norm == "rms" else 2
        positions = self.max_length + self.position_offset if self.position == "learned" else 0
        total = (self.vocab_size + positions + self.token_types) * E + norm * E
        total += E * D + D if self.embedding is not None else 0
        total += self.stack_parameters(self.layers)
        if self.masked_head:
            total += D * E + E + norm * E + self.vocab_size
        total += self.pooler * (D * D + D) + self.pair_head * (2 * D + 2)
        return total + (self.task.parameters(D) if self.task is not None else 0)

    def flops_per_token(self, length: int, frozen: bool = False) -> float:
        """As `DecoderConfig.flops_per_token`; every query sees the whole row."""
        weights = self.layers * (self.attention_weights() + self.mlp_weights(active=True))
        if self.masked_head:
            weights += (self.embed + self.vocab_size) * self.embedding_size
        return (4.0 if frozen else 6.0) * weights + self.attention_flops(length, keys=length)


@config
class EncoderDecoderConfig(StackConfig):
    """An encoder and a decoder that looks at it. The defaults are T5-small's (60,506,624 parameters).

    Attributes:
        vocab_size: V, rows of the embedding that both share.
        decoder_layers: blocks of the decoder; None: as many as the encoder's `layers`.
        tie_embeddings: the output head is the embedding.
        embed_scale: factor of the embedding on its way in (Vaswani et al. 2017: √embed); None: 1.
        scale_logits: what the head reads is divided by √embed (T5 1.0, whose head is the embedding).
        logit_bias: the logits have a bias (Marian).
        decoder_start: id that the decoder begins with.
        stop_ids: ids that end what it writes, where no tokenizer says it.
    """

    architecture: ClassVar[str] = "encoder_decoder"

    vocab_size: int = 32128
    layers: int = 6
    embed: int = 512
    heads: int = 8
    kv_heads: int = 8
    mlp: int | None = 2048
    norm_eps: float = 1e-6
    position: Literal["rope", "learned", "sinusoidal", "relative", "none"] = "relative"
    activation: Activation = "relu"
    gated: bool = False
    attention_scale: float | None = 1.0
    init: Literal["normal", "fan_in"] = "fan_in"
    decoder_layers: int | None = None
    tie_embeddings: bool = True
    embed_scale: float | None = None
    scale_logits: bool = True
    logit_bias: bool = False
    decoder_start: int = 0
    stop_ids: tuple[int, ...] = (1,)

    def problems(self) -> Problems:
        """As `StackConfig`, and what an encoder-decoder adds."""
        start, layers = self.decoder_start, self.decoder_layers
        checks = [
            (
                layers is not None and layers < 1,
                "decoder_layers",
                f"{layers} must be at least 1, or left out",
            ),
            (not 0 <= start < self.vocab_size, "decoder_start", f"{start} is outside the vocabulary"),
            (
                not all(0 <= stop < self.vocab_size for stop in self.stop_ids),
                "stop_ids",
                f"{self.stop_ids} are not all in the vocabulary",
            ),
            (self.window is not None, "window", "both sides see whole documents: leave it out"),
            (self.shared_layers, "shared_layers", "is not done for an encoder-decoder"),
        ]
        found = super().problems() + _table_problems(self.vocab_size, self.embed_scale)
        return found + [(field, message) for wrong, field, message in checks if wrong]

    @property
    def depth(self) -> int:
        """Blocks of the decoder."""
        return self.decoder_layers if self.decoder_layers is not None else self.layers

    def build(self, execution: Execution) -> EncoderDecoder:
        """The Linen module, without parameters."""
        from hllm_jax.models.encoder_decoder import EncoderDecoder

        return EncoderDecoder(self, execution)

    def parameters(self) -> int:
        """Parameters of the model; a tied embedding counts once."""
        tables = self.vocab_size * self.embed * (1 if self.tie_embeddings else 2)
        stacks = self.stack_parameters(self.layers) + self.stack_parameters(self.depth, cross=True)
        bias = self.vocab_size if self.logit_bias else 0
        return tables + bias + self.position_parameters() + stacks

    def flops_per_token(self, length: int, target_length: int | None = None, frozen: bool = False) -> float:
        """FLOPs of a training step per token, those of the source and of the target counted together.

        Args:
            length: tokens of the source.
            target_length: of the target; None: as many.
            frozen: see `DecoderConfig.flops_per_token`.
        """
        each = 4.0 if frozen else 6.0
        target = length if target_length is None else target_length
        attention, mlp = self.attention_weights(), self.mlp_weights(active=True)
        per_layer = 12.0 * self.heads * self.head_size
        encoder = self.layers * (each * (attention + mlp) + per_layer * length)
        # The keys and values that the decoder looks at are made of the source.
        remembered = 2 * self.embed * self.head_size * self.kv_heads
        source = self.depth * each * remembered
        decoder = self.depth * each * (2 * attention - remembered + mlp)
        decoder += self.depth * per_layer * ((target + 1) / 2 + length)
        decoder += each * self.vocab_size * self.embed
        return ((encoder + source) * length + decoder * target) / (length + target)


Spec: TypeAlias = DecoderConfig | EncoderConfig | EncoderDecoderConfig

SPECS: dict[str, type[DecoderConfig] | type[EncoderConfig] | type[EncoderDecoderConfig]] = {
    spec.architecture: spec for spec in (DecoderConfig, EncoderConfig, EncoderDecoderConfig)
}


def spec_to_dict(spec: Spec) -> dict[str, Any]:
    """A spec as plain values, with its `architecture`; the inverse of `spec_from_dict`."""
    from hllm_jax.config.convert import to_dict

    return {"architecture": spec.architecture, **to_dict(spec)}


def spec_from_dict(saved: dict[str, Any]) -> Spec:
    """The spec that `spec_to_dict` wrote down.

    Raises:
        ValueError: the architecture is not known, or a field is wrong.
    """
    from pydantic import TypeAdapter

    fields = dict(saved)
    kind = fields.pop("architecture", None)
    if kind not in SPECS:
        raise ValueError(f"architecture {kind!r} is not known; known: {', '.join(SPECS)}")
    return TypeAdapter(SPECS[kind]).validate_python(fields)


def _table_problems(
    vocab_size: int, embed_scale: float | None = None, logit_softcap: float | None = None
) -> Problems:
    found: Problems = []
    if vocab_size < 1:
        found.append(("vocab_size", f"{vocab_size} must be at least 1"))
    for name, value in (("embed_scale", embed_scale), ("logit_softcap", logit_softcap)):
        if value is not None and value <= 0:
            found.append((name, f"{value} must be positive, or left out"))
    return found
