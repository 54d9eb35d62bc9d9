"""The `objective:` section: what a model learns to predict, and from what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from hllm_jax.config import Invalid, config

if TYPE_CHECKING:
    from hllm_jax.data.transforms.piece import Transform
    from hllm_jax.tokenizers.tokenizer import Tokenizer

Kind = Literal["causal", "masked_lm", "span_corruption", "prefix_lm", "blank_infilling", "seq2seq"]
ModelKind = Literal["decoder", "encoder", "encoder_decoder"]

#: Objective -> the kind of model that it trains.
MODELS: dict[str, ModelKind] = {
    "causal": "decoder",
    "prefix_lm": "decoder",
    "blank_infilling": "decoder",
    "masked_lm": "encoder",
    "span_corruption": "encoder_decoder",
    "seq2seq": "encoder_decoder",
}


@config
class MaskedLMConfig:
    """Masked language models: BERT, RoBERTa, ALBERT.

    Attributes:
        share: of the tokens that have to be guessed.
        mask, random: share of those that become the mask, and another token; the rest stays.
        rows: `packed`: every document, or piece of one, is a segment of its own. `full_sentences`: rows of
            whole sentences, with a separator between documents (RoBERTa). `nsp`: pairs of which half are
            from two documents (BERT). `sop`: pairs of which half are swapped (ALBERT).
        whole_words: all tokens of a word are chosen together. `pieces`: words as the tokenizer divides them
            (WordPiece's `##`, a leading space). For Chinese: `rjieba` (an optional package) finds words;
            `spaces`: the text has spaces between its words, which are not kept.
        ngram: up to so many neighbouring words are chosen together (ALBERT: 3).
        masks: `dynamic`: drawn anew in every epoch (RoBERTa). `static`: drawn `duplicates` times, and then
            the same again (BERT).
        duplicates: see `masks`.
        short: share of the pairs that are shorter than a row.
    """

    share: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    rows: Literal["packed", "full_sentences", "nsp", "sop"] = "packed"
    whole_words: Literal["pieces", "spaces", "rjieba"] | None = None
    ngram: int = 1
    masks: Literal["dynamic", "static"] = "dynamic"
    duplicates: int = 10
    short: float = 0.1

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (not 0 < self.share < 1, "share", f"{self.share}: a share above 0 and below 1"),
                (not 0 <= self.mask <= 1, "mask", f"{self.mask}: a share, 0 to 1"),
                (not 0 <= self.random <= 1, "random", f"{self.random}: a share, 0 to 1"),
                (
                    0 <= self.mask <= 1 and 0 <= self.random <= 1 and self.mask + self.random > 1 + 1e-9,
                    "random",
                    f"mask {self.mask} and random {self.random} are more than all: together at most 1",
                ),
                (self.ngram < 1, "ngram", f"{self.ngram}: at least 1"),
                (self.duplicates < 1, "duplicates", f"{self.duplicates}: at least 1"),
                (not 0 <= self.short < 1, "short", f"{self.short}: a share of at least 0 and below 1"),
            ]
        )


@config
class SpanCorruptionConfig:
    """Span corruption: T5.

    Attributes:
        density: share of the tokens that is taken out.
        mean_span: mean length of a span that is taken out.
    """

    density: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (not 0 < self.density < 1, "density", f"{self.density}: a share above 0 and below 1"),
                (self.mean_span < 1, "mean_span", f"{self.mean_span}: at least 1 token"),
            ]
        )


@config
class BlankInfillingConfig:
    """Autoregressive blank infilling: GLM.

    Attributes:
        share: of the tokens that is blanked.
        mean_span: mean of the Poisson distribution of span lengths.
        sentence: share of the texts that lose whole sentences instead of spans.
        document: share of the texts that lose their end, half of the text to all of it.
        positions: `pairs`: place of the mask, and place in the span (GLM of 2021; the model needs a table for
            each). `single`: places in the row, for any decoder (GLM-130B: Zeng et al. 2022, section 2.1).
    """

    share: float = 0.15
    mean_span: float = 3.0
    sentence: float = 0.0
    document: float = 0.0
    positions: Literal["pairs", "single"] = "pairs"

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (not 0 < self.share <= 0.5, "share", f"{self.share}: a share above 0, at most 0.5"),
                (not 0 < self.mean_span <= 20, "mean_span", f"{self.mean_span}: above 0, at most 20"),
                (not 0 <= self.sentence <= 1, "sentence", f"{self.sentence}: a share, 0 to 1"),
                (not 0 <= self.document <= 1, "document", f"{self.document}: a share, 0 to 1"),
                (
                    self.sentence + self.document > 1 + 1e-9,
                    "document",
                    f"sentence {self.sentence} and document {self.document} are more than all texts: "
                    "together at most 1",
                ),
            ]
        )


@config
class Seq2SeqConfig:
    """Sequence to sequence, from records `{"source", "target"}` or `{"prompt", "response"}`.

    Attributes:
        target_length: positions of the decoder's row; None: as many as the encoder has.
        label_smoothing: share of the target's probability that goes to all tokens alike.
    """

    target_length: int | None = None
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (
                    self.target_length is not None and self.target_length < 2,
                    "target_length",
                    f"{self.target_length}: at least 2, or null",
                ),
                (
                    not 0 <= self.label_smoothing < 1,
                    "label_smoothing",
                    f"{self.label_smoothing}: a share of at least 0 and below 1",
                ),
            ]
        )


@config
class ObjectiveConfig:
    """What is predicted from what. Settings stand in a section that has the name of the kind.

    Attributes:
        kind: `causal` and `prefix_lm` (the next token), `blank_infilling` (GLM) for decoders; `masked_lm` for
            encoders; `span_corruption` (T5) and `seq2seq` for encoder–decoders.
        masked_lm, span_corruption, blank_infilling, seq2seq: settings of that kind.
    """

    kind: Kind = "causal"
    masked_lm: MaskedLMConfig | None = None
    span_corruption: SpanCorruptionConfig | None = None
    blank_infilling: BlankInfillingConfig | None = None
    seq2seq: Seq2SeqConfig | None = None

    def __post_init__(self) -> None:
        sections = ("masked_lm", "span_corruption", "blank_infilling", "seq2seq")
        Invalid.check(
            [
                (
                    getattr(self, name) is not None and name != self.kind,
                    name,
                    f"is not used: objective.kind is {self.kind}; remove it, or set kind: {name}",
                )
                for name in sections
            ]
        )

    @property
    def model_kind(self) -> ModelKind:
        """The kind of model that this objective trains."""
        return MODELS[self.kind]

    def settings(self) -> Any:
        """The section of the kind, with its defaults where it is not given; None for kinds without one."""
        defaults: dict[str, Any] = {
            "masked_lm": MaskedLMConfig,
            "span_corruption": SpanCorruptionConfig,
            "blank_infilling": BlankInfillingConfig,
            "seq2seq": Seq2SeqConfig,
        }
        if self.kind not in defaults:
            return None
        given = getattr(self, self.kind)
        return defaults[self.kind]() if given is None else given

    @property
    def described(self) -> str:
        """Kind and settings in a line; nothing for the default, causal language models."""
        settings = self.settings()
        return "" if self.kind == "causal" else self.kind if settings is None else f"{self.kind} {settings}"

    def transform(
        self, tokenizer: Tokenizer, sequence_length: int, decoder_start: int | None = None
    ) -> Transform:
        """How pieces of documents become rows.

        Args:
            tokenizer: of the run.
            sequence_length: positions of a row, for encoder–decoders of the encoder's.
            decoder_start: what the decoder of an encoder–decoder reads first; None: the pad token.

        Raises:
            DataError: the tokenizer lacks special tokens that the objective needs (all are named), or the
                rows are too short for it.
        """
        from hllm_jax.data.transforms.build import build_transform

        return build_transform(self, tokenizer, sequence_length, decoder_start)
