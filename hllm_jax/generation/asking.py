"""From what a caller gives to requests: prompts and parameters, all checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm_jax.generation.beam import beam_search
from hllm_jax.generation.request import Completion, Request, Sampling, check_prompt
from hllm_jax.generation.vocabulary import Ids

if TYPE_CHECKING:
    from hllm_jax.generation.engine import Engine


def make_sampling(
    temperature: float,
    top_k: int | None,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    num_beams: int = 1,
) -> Sampling:
    """How tokens are chosen.

    Raises:
        ValueError: a parameter outside its range, or one that beam search does not obey.
    """
    if isinstance(num_beams, bool) or not isinstance(num_beams, int) or num_beams < 1:
        raise ValueError(f"num_beams is {num_beams!r}, must be a whole number, at least 1")
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


def make_requests(
    engine: Engine,
    prompts: Any,
    encode: Callable[[Any], Sequence[int]],
    max_tokens: int,
    sampling: Sampling,
    n: int,
    seed: int | Sequence[int],
    stop: str | Sequence[str],
) -> list[Request]:
    """A request for each prompt.

    Args:
        engine: that will run them.
        prompts: one or several.
        encode: a prompt that is not ids already, to ids.
        max_tokens, sampling, n: of every request.
        seed: one number, or one per prompt.
        stop: one string or several.

    Raises:
        ValueError: with the number of the prompt, where there are several.
    """
    each = each_prompt(prompts)
    seeds = [seed] * len(each) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(each):
        raise ValueError(f"{len(seeds)} seeds for {len(each)} prompts: give one number, or one per prompt")
    config = engine.model.config
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if stops and isinstance(engine.vocabulary, Ids):
        raise ValueError("stop strings need a tokenizer, and this model has none: it ends at its stop ids")
    requests = []
    for i, prompt in enumerate(each):
        try:
            tokens = [int(token) for token in prompt] if is_ids(prompt) else encode(prompt)
            request = Request(
                tokens=tuple(tokens),
                max_tokens=max_tokens,
                sampling=sampling,
                n=n,
                seed=seeds[i],
                row=i if isinstance(seed, int) else 0,
                stop=stops,
            )
            check_prompt(request.tokens, config.vocab_size, config.max_length)
        except ValueError as error:
            raise type(error)(f"prompt {i}: {error}") if len(each) > 1 else error from None
        requests.append(request)
    return requests


def search_beams(
    engine: Engine, requests: Sequence[Request], num_beams: int, length_penalty: float
) -> list[Completion]:
    """The `n` best completions of every request.

    Raises:
        ValueError: more completions than beams, or stop strings.
    """
    for request in requests:
        if request.n > num_beams:
            raise ValueError(
                f"n is {request.n}: beam search has at most num_beams = {num_beams} completions a prompt"
            )
        if request.stop:
            raise ValueError("beam search ends at stop tokens only: leave out stop, or num_beams")
    return [
        completion
        for request in requests
        for completion in beam_search(
            engine.model,
            engine.variables,
            engine.vocabulary,
            [request.tokens],
            num_beams=num_beams,
            max_tokens=request.max_tokens,
            length_penalty=length_penalty,
            n=request.n,
        )
    ]


def each_prompt(prompts: Any) -> list[Any]:
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
        if not isinstance(prompt, str) and len(prompt) == 0:
            raise ValueError(f"prompt {i} is empty: give a text, at least one message or at least one id")
    return list(prompts)


def is_ids(prompt: Any) -> bool:
    """Whether a prompt is a list of token ids."""
    return len(prompt) > 0 and all(isinstance(token, int | np.integer) for token in prompt)
