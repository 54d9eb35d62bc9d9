"""`LanguageModel`: a decoder with its weights and its tokenizer, ready to be asked."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from hllm_jax.generation.beam import beam_search
from hllm_jax.generation.decode import TRACES, bucket
from hllm_jax.generation.engine import Engine
from hllm_jax.generation.request import Completion, Delta, Request, Sampling, check_prompt
from hllm_jax.generation.scoring import Score, score_tokens
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
    """What `hllm_jax.load` returns.

    Attributes:
        config: the architecture.
        model: the Linen module.
        variables: `{"params": …}`, in the layout of `model`.
        tokenizer: text to ids and back, with the chat template and the stop ids.
        engine: runs requests of token ids.
    """

    def __init__(self, model: Model, variables: dict[str, Any], tokenizer: Tokenizer) -> None:
        if not isinstance(model, Decoder):
            raise ValueError(f"a {model.config.architecture} does not continue text: a decoder is needed")
        self.config, self.model, self.variables, self.tokenizer = model.config, model, variables, tokenizer
        self.engine = Engine(model, variables, tokenizer)

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
        tokens = _ints("tokens", tokens, None)
        limit = self.config.max_length
        wrong = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)]
        if wrong.size:
            raise ValueError(
                f"token {wrong[0]} is outside the vocabulary: ids run from 0 to {self.config.vocab_size - 1}"
            )
        if tokens.shape[1] > limit and positions is None:
            raise ValueError(
                f"a row of {tokens.shape[1]} tokens is longer than the model's max_length {limit}: "
                "shorten it, or pass positions below max_length"
            )
        given = {"segment_ids": segment_ids, "positions": positions}
        more = {name: _ints(name, ids, tokens.shape) for name, ids in given.items() if ids is not None}
        if positions is not None and (more["positions"].min() < 0 or more["positions"].max() >= limit):
            raise ValueError(f"positions must run from 0 to max_length - 1 = {limit - 1}")
        L = tokens.shape[1]
        padding = ((0, 0), (0, max(L, bucket(L, limit)) - L))
        more.setdefault("segment_ids", np.ones_like(tokens))
        padded = {name: np.pad(ids, padding) for name, ids in more.items()}
        # These are the numbers that are compared with other implementations.
        with jax.default_matmul_precision("highest"):
            return _logits(self.model, self.variables, np.pad(tokens, padding), **padded)[:, :L]

    def score(self, texts: str | Sequence[str]) -> list[Score]:
        """Log-likelihood of texts, token by token, each as the beginning of a document.

        Args:
            texts: one or several; at least two tokens each, the begin token included.

        Raises:
            ValueError: a text has nothing to score, or is longer than `max_length`.
        """
        rows = [self.tokenizer.encode_prompt(text) for text in ([texts] if isinstance(texts, str) else texts)]
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
        sampling = self._sampling(temperature, top_k, top_p, min_p, repetition_penalty, num_beams)
        requests = self._requests(prompts, max_tokens, sampling, n, seed, stop, raw, tools)
        if num_beams == 1:
            return self.engine.run(requests)
        if n > num_beams:
            raise ValueError(
                f"n is {n}: beam search has at most num_beams = {num_beams} completions a prompt"
            )
        if any(request.stop for request in requests):
            raise ValueError("beam search ends at stop tokens only: leave out stop, or num_beams")
        return [
            completion
            for request in requests
            for completion in beam_search(
                self.model,
                self.variables,
                self.tokenizer,
                [request.tokens],
                num_beams=num_beams,
                max_tokens=max_tokens,
                length_penalty=length_penalty,
                n=n,
            )
        ]

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
        sampling = self._sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        return self.engine.stream(self._requests(prompts, max_tokens, sampling, n, seed, stop, raw, tools))

    def _sampling(
        self,
        temperature: float | None,
        top_k: int | None,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        num_beams: int = 1,
    ) -> Sampling:
        if isinstance(num_beams, bool) or not isinstance(num_beams, int) or num_beams < 1:
            raise ValueError(f"num_beams is {num_beams!r}, must be a whole number, at least 1")
        if temperature is None:
            temperature = 0.0 if num_beams > 1 else TEMPERATURE
        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        if num_beams > 1 and sampling != Sampling(temperature=0.0, top_k=top_k if not top_k else 0):
            raise ValueError("beam search does not sample: leave out the sampling parameters, or num_beams")
        return sampling

    def _requests(
        self,
        prompts: Prompts,
        max_tokens: int,
        sampling: Sampling,
        n: int,
        seed: int | Sequence[int],
        stop: str | Sequence[str],
        raw: bool,
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> list[Request]:
        each = _each(prompts)
        seeds = [seed] * len(each) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(each):
            raise ValueError(
                f"{len(seeds)} seeds for {len(each)} prompts: give one number, or one per prompt"
            )
        requests = []
        for i, prompt in enumerate(each):
            try:
                request = Request(
                    tokens=tuple(self._tokens(prompt, raw, tools)),
                    max_tokens=max_tokens,
                    sampling=sampling,
                    n=n,
                    seed=seeds[i],
                    row=i if isinstance(seed, int) else 0,
                    stop=(stop,) if isinstance(stop, str) else tuple(stop),
                )
                check_prompt(request.tokens, self.config.vocab_size, self.config.max_length)
            except ValueError as error:
                raise type(error)(f"prompt {i}: {error}") if len(each) > 1 else error from None
            requests.append(request)
        return requests

    def _tokens(self, prompt: Any, raw: bool, tools: Sequence[Mapping[str, Any]] | None) -> Sequence[int]:
        if isinstance(prompt, str):
            if raw or self.tokenizer.chat_template is None:
                return self.tokenizer.encode_prompt(prompt)
            if not prompt:
                raise ValueError(
                    "the prompt is empty: a user's message needs text (raw=True begins a document)"
                )
            prompt = [{"role": "user", "content": prompt}]
        elif _is_ids(prompt):
            return [int(token) for token in prompt]
        elif raw:
            raise ValueError("raw=True continues a text: give a string, or messages without raw")
        return self.tokenizer.render(prompt, tools=tools, add_generation_prompt=True)[0]


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


def _ints(name: str, values: Any, shape: tuple[int, ...] | None) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.zeros(0)
    if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers [B, L], got {array.dtype} of shape {array.shape}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have the shape of tokens {shape}, got {array.shape}")
    return array.astype(np.int32)


def _is_ids(prompt: Any) -> bool:
    return len(prompt) > 0 and all(isinstance(token, int | np.integer) for token in prompt)


def _each(prompts: Any) -> list[Any]:
    """One prompt or several, as a list.

    Raises:
        ValueError: neither.
    """
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping) or not isinstance(prompts, (Sequence, np.ndarray)):
        raise ValueError(
            f"prompts must be a text, a list of messages, or a list of these, got {type(prompts)}"
        )
    if len(prompts) == 0:
        raise ValueError("no prompt was given: the list is empty")
    if isinstance(prompts[0], (Mapping, int, np.integer)):
        return [prompts]
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, Mapping) or not isinstance(prompt, (str, Sequence, np.ndarray)):
            raise ValueError(
                f"prompt {i} must be a text, a list of messages or a list of ids, got {type(prompt)}"
            )
    return list(prompts)
