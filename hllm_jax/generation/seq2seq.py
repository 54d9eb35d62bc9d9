"""`Seq2SeqModel`: an encoder-decoder with its weights and its tokenizer, ready to be asked."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax

from hllm_jax.generation.asking import make_requests, make_sampling, search_beams
from hllm_jax.generation.decode import TRACES
from hllm_jax.generation.engine import Engine
from hllm_jax.generation.request import Completion, Delta
from hllm_jax.generation.rows import padded_rows
from hllm_jax.generation.scoring import Score, score_pairs
from hllm_jax.generation.vocabulary import Ids, need_tokenizer
from hllm_jax.models.encoder_decoder import EncoderDecoder

if TYPE_CHECKING:
    from hllm_jax.tokenizers import Tokenizer

Source = str | Sequence[int]


class Seq2SeqModel:
    """What `hllm_jax.load` returns for an encoder-decoder.

    Attributes:
        config: the architecture.
        model: the Linen module.
        variables: `{"params": …}`, in the layout of `model`.
        tokenizer: text to ids and back; None where the model has none: then it takes and gives ids, and its
            config says what ends a completion.
        engine: runs requests of token ids.
    """

    def __init__(self, model: EncoderDecoder, variables: dict[str, Any], tokenizer: Tokenizer | None) -> None:
        self.config, self.model, self.variables, self.tokenizer = model.config, model, variables, tokenizer
        ids = Ids(model.config.vocab_size, model.config.stop_ids)
        self.engine = Engine(model, variables, tokenizer or ids)

    def encode(self, text: str) -> list[int]:
        """A text as the encoder reads it: as the tokenizer's own files say, and its end token at the end.

        Raises:
            ValueError: there is no tokenizer.
        """
        tokenizer = need_tokenizer(self.tokenizer)
        framed, _ = tokenizer.encode_for_model(text)
        # The frame of a tokenizer that was trained here is a decoder's.
        ended = framed[-1:] == [tokenizer.eos_id]
        return list(framed) if ended else [*tokenizer.encode(text), tokenizer.eos_id]

    def logits(
        self, tokens: Any, decoder_tokens: Any, segment_ids: Any = None, decoder_segment_ids: Any = None
    ) -> jax.Array:
        """Logits of the next token after every place of the decoder's rows.

        Args:
            tokens: int `[B, S]`, what is read, a list or an array.
            decoder_tokens: int `[B, L]`, what is written, beginning with `config.decoder_start`.
            segment_ids, decoder_segment_ids: int `[B, S]` and `[B, L]`: segment i of the decoder sees segment
                i of the encoder, 0 = padding (on either side). None: one segment without padding.

        Returns:
            float32 `[B, L, V]`; what stands at padding has no meaning.

        Raises:
            ValueError: wrong shapes, ids outside the vocabulary, rows longer than `max_length`.
        """
        limits = {"vocab_size": self.config.vocab_size, "max_length": self.config.max_length}
        read, _ = padded_rows(tokens, **limits, segment_ids=segment_ids)
        written, length = padded_rows(decoder_tokens, **limits, segment_ids=decoder_segment_ids)
        given = (read["tokens"], written["tokens"], read["segment_ids"], written["segment_ids"])
        if len(given[0]) != len(given[1]):
            raise ValueError(
                f"{len(given[0])} rows of tokens and {len(given[1])} of decoder_tokens: give as many"
            )
        # These are the numbers that are compared with other implementations.
        with jax.default_matmul_precision("highest"):
            return _logits(self.model, self.variables, *given)[:, :length]

    def score(self, sources: Source | Sequence[Source], targets: Source | Sequence[Source]) -> list[Score]:
        """Log-likelihood of targets, token by token, given their sources.

        Args:
            sources: one or several, texts or ids.
            targets: as many. A text is scored with its end token, ids as they are.

        Raises:
            ValueError: not as many of the ones as of the others, or one is longer than `max_length`.
        """
        sides = []
        for given in (sources, targets):
            requests = make_requests(
                self.engine, given, self.encode, 1, make_sampling(0.0, 0, 1, 0, 1), 1, 0, ()
            )
            sides.append([request.tokens for request in requests])
        if len(sides[0]) != len(sides[1]):
            raise ValueError(f"{len(sides[0])} sources and {len(sides[1])} targets: give as many")
        return score_pairs(self.model, self.variables, list(zip(*sides, strict=True)))

    def generate(
        self,
        sources: Source | Sequence[Source],
        *,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        n: int = 1,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] = (),
    ) -> list[Completion]:
        """What the decoder writes about what the encoder reads.

        Args:
            sources: a text, token ids (a list of integers), or a list of these. A text gets its end token;
                ids are taken as they are.
            max_tokens: most tokens of a completion, the end token included.
            temperature: 0, and None, take the most probable token.
            top_k, top_p, min_p, repetition_penalty: see `Sampling`; the penalty is for what was written, not
                for what was read.
            n: completions of each source; with beam search, the n best.
            num_beams: above 1, search for the most probable completion with this many beams.
            length_penalty: of beam search, see `beam_search`.
            seed: see `LanguageModel.generate`.
            stop: strings that end a completion and do not appear in it.

        Returns:
            n completions of the first source, then n of the second, and so on. Special tokens are no text,
            but for the sentinels of T5, which say what the text between them answers.

        Raises:
            ValueError: a source without tokens or longer than `max_length`, a parameter outside its range.
        """
        sampling = make_sampling(temperature or 0.0, top_k, top_p, min_p, repetition_penalty, num_beams)
        requests = make_requests(self.engine, sources, self._tokens, max_tokens, sampling, n, seed, stop)
        if num_beams == 1:
            return self.engine.run(requests)
        return search_beams(self.engine, requests, num_beams, length_penalty)

    def stream(
        self,
        sources: Source | Sequence[Source],
        *,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        n: int = 1,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] = (),
    ) -> Iterator[Delta]:
        """`generate` piece by piece; see `LanguageModel.stream`."""
        sampling = make_sampling(temperature or 0.0, top_k, top_p, min_p, repetition_penalty)
        return self.engine.stream(
            make_requests(self.engine, sources, self._tokens, max_tokens, sampling, n, seed, stop)
        )

    def _tokens(self, source: Any) -> list[int]:
        if not isinstance(source, str):
            raise ValueError(
                "an encoder-decoder reads a text, or ids, and holds no conversation: give the last message "
                "as a text, with its task as the model was taught it"
            )
        return self.encode(source)


@functools.partial(jax.jit, static_argnames=("model",))
def _logits(model: EncoderDecoder, variables: dict[str, Any], *rows: jax.Array) -> jax.Array:
    TRACES["logits"] += 1
    out: Any = model.apply(variables, *rows)
    return out[0]
