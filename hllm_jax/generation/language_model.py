"""`LanguageModel`: a decoder with its weights and its tokenizer, ready to be asked."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from hllm_jax.generation.asking import make_requests, make_sampling, search_beams
from hllm_jax.generation.decode import TRACES
from hllm_jax.generation.engine import Engine
from hllm_jax.generation.request import Completion, Delta, check_prompt
from hllm_jax.generation.rows import padded_rows
from hllm_jax.generation.scoring import Score, score_tokens
from hllm_jax.generation.vocabulary import Ids, need_tokenizer
from hllm_jax.models.decoder import Decoder
from hllm_jax.models.layout import Model

if TYPE_CHECKING:
    from hllm_jax.tokenizers import Tokenizer

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]
Prompts = Prompt | Sequence[Prompt]

#: What `generate` and `stream` sample with where nothing is said.
TEMPERATURE = 0.7


class LanguageModel:
    """What `hllm_jax.load` returns for a decoder.

    Attributes:
        config: the architecture.
        model: the Linen module.
        variables: `{"params": …}`, in the layout of `model`.
        tokenizer: text to ids and back, with the chat template and the stop ids; None where the model has
            none: then it takes and gives ids, and only `max_tokens` ends a completion.
        engine: runs requests of token ids.
    """

    def __init__(self, model: Model, variables: dict[str, Any], tokenizer: Tokenizer | None) -> None:
        if not isinstance(model, Decoder):
            raise ValueError(f"a {model.config.architecture} does not continue text: a decoder is needed")
        if model.config.head == "score":
            raise ValueError(
                "this decoder gives texts a score, not logits: it is a reward model, which does not write"
            )
        self.config, self.model, self.variables, self.tokenizer = model.config, model, variables, tokenizer
        self.engine = Engine(model, variables, tokenizer or Ids(model.config.vocab_size))

    def logits(self, tokens: Any, segment_ids: Any = None, positions: Any = None) -> jax.Array:
        """Logits of the next token after every place.

        Args:
            tokens: int `[B, L]`, a list or an array.
            segment_ids: int `[B, L]`: documents of packed rows, 0 = padding (on either side).
            positions: int `[B, L]`; None: from 0 in each document.

        Returns:
            float32 `[B, L, V]`; what stands at padding has no meaning.

        Raises:
            ValueError: wrong shapes, ids outside the vocabulary, rows longer than `max_length`, positions
                outside it. (JAX would clamp them silently.)
        """
        rows, length = padded_rows(
            tokens,
            vocab_size=self.config.vocab_size,
            max_length=self.config.max_length,
            segment_ids=segment_ids,
            positions=positions,
        )
        # These are the numbers that are compared with other implementations.
        with jax.default_matmul_precision("highest"):
            return _logits(self.model, self.variables, **rows)[:, :length]

    def score(self, texts: str | Sequence[str]) -> list[Score]:
        """Log-likelihood of texts, token by token, each as the beginning of a document.

        Args:
            texts: one or several; at least two tokens each, the begin token included.

        Raises:
            ValueError: a text has nothing to score, or is longer than `max_length`.
        """
        tokenizer = need_tokenizer(self.tokenizer)
        rows = [tokenizer.encode_prompt(text) for text in ([texts] if isinstance(texts, str) else texts)]
        for i, row in enumerate(rows):
            if len(row) < 2:
                raise ValueError(f"text {i} has {len(row)} tokens: a score needs one, and one before it")
            check_prompt(row, self.config.vocab_size, self.config.max_length)
        return score_tokens(self.model, self.variables, rows)

    def generate(
        self,
        prompts: Prompts,
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
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Completion]:
        """Continue texts, or answer messages.

        Args:
            prompts: a text; a conversation (a list of `{"role", "content"}`); token ids (a list of integers);
                or a list of any of these. A text is a user's message where the tokenizer has a chat template
                and `raw` is false, otherwise the beginning of a document. Ids are taken as they are.
            max_tokens: most tokens of a completion, a stop token included.
            temperature: 0 takes the most probable token; None is 0.7 (and 0 for beam search).
            top_k, top_p, min_p, repetition_penalty: see `Sampling`.
            n: completions of each prompt; with beam search, the n best.
            num_beams: above 1, search for the most probable completion with this many beams.
            length_penalty: of beam search, see `beam_search`.
            seed: one number; the same call gives the same texts, and what a prompt gets depends on its
                place in the list, not on the other prompts. Or one number per prompt: then a prompt gets
                what it would get alone with its seed.
            stop: strings that end a completion and do not appear in it.
            raw: continue the text itself, without the chat template.
            tools: function definitions for the chat template.

        Returns:
            n completions of the first prompt, then n of the second, and so on.

        Raises:
            ValueError: a prompt without tokens or longer than the context, a parameter outside its range.
        """
        if temperature is None:
            temperature = 0.0 if num_beams > 1 else TEMPERATURE
        sampling = make_sampling(temperature, top_k, top_p, min_p, repetition_penalty, num_beams)
        encode = functools.partial(self._tokens, raw=raw, tools=tools)
        requests = make_requests(self.engine, prompts, encode, max_tokens, sampling, n, seed, stop)
        if num_beams == 1:
            return self.engine.run(requests)
        return search_beams(self.engine, requests, num_beams, length_penalty)

    def stream(
        self,
        prompts: Prompts,
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
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Iterator[Delta]:
        """`generate` piece by piece: whole characters, and nothing from a stop string on.

        The texts of one `Delta.index` together are the text of its completion, which comes with its last
        delta. Arguments and errors as for `generate`; errors are raised by the call, not by the first piece.
        """
        temperature = TEMPERATURE if temperature is None else temperature
        sampling = make_sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        encode = functools.partial(self._tokens, raw=raw, tools=tools)
        return self.engine.stream(
            make_requests(self.engine, prompts, encode, max_tokens, sampling, n, seed, stop)
        )

    def _tokens(
        self, prompt: str | Sequence[Message], raw: bool, tools: Sequence[Mapping[str, Any]] | None
    ) -> Sequence[int]:
        tokenizer = need_tokenizer(self.tokenizer)
        if isinstance(prompt, str):
            if raw or tokenizer.chat_template is None:
                return tokenizer.encode_prompt(prompt)
            if not prompt:
                raise ValueError(
                    "the prompt is empty: a user's message needs text (raw=True begins a document)"
                )
            prompt = [{"role": "user", "content": prompt}]
        elif raw:
            raise ValueError("raw=True continues a text: give a string, or messages without raw")
        return tokenizer.render(prompt, tools=tools, add_generation_prompt=True)[0]


@functools.partial(jax.jit, static_argnames=("model",))
def _logits(
    model: Decoder,
    variables: dict[str, Any],
    tokens: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array | None = None,
) -> jax.Array:
    TRACES["logits"] += 1
    out: Any = model.apply(variables, tokens, segment_ids, positions)
    return out[0]
