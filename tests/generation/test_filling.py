"""Filling blanks: the cached loop against whole rows that are read again for every token."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hllm_jax.data.transforms.blanks import BlankIds
from hllm_jax.generation import Sampling, infill
from hllm_jax.models import Decoder
from hllm_jax.models.families.glm import PRESETS
from hllm_jax.testing.models import tiny_config, tiny_model

IDS = BlankIds(pad=0, begin=None, mask=60, sentence_mask=61, document_mask=62, start=63, end=64)
PROMPTS = ([11, 60, 12, 13], [14, 15, 60, 16, 60, 17, 18], [19, 20, 62])


def drawn(scan: bool = False, seed: int = 3) -> tuple[Decoder, dict[str, Any]]:
    """A model of GLM's kind whose head is its own, so that it does not repeat what it reads."""
    base = PRESETS["glm-base"]
    kinds = ("norm", "position", "gated", "qkv_bias", "out_bias", "mlp_bias", "activation")
    same = {name: getattr(base, name) for name in kinds}
    config = tiny_config(heads=4, kv_heads=4, head_dim=None, tie_embeddings=False, **same)
    model, params = tiny_model(config, seed=seed, scan_layers=scan)
    params["head"]["kernel"][:, IDS.end] *= 1.6  # likely now and then
    return model, {"params": params}


def by_whole_rows(model: Decoder, variables: Any, prompt: list[int], max_tokens: int) -> list[list[int]]:
    """Greedy, without a cache: part A and all of part B so far, for every single token."""
    tokens, first = list(prompt), list(range(len(prompt)))
    second = [0] * len(prompt)
    filled: list[list[int]] = []

    @jax.jit
    def read(tokens: jax.Array, segments: jax.Array, positions: jax.Array, prefix: jax.Array) -> Any:
        return model.apply(variables, tokens, segments, positions, prefix=prefix)[0]

    def row(values: Any, *shape: int) -> jax.Array:
        padded = np.zeros((1, 32, *shape), np.int32)
        padded[0, : len(values)] = values
        return jnp.asarray(padded)

    for place in [i for i, token in enumerate(prompt) if token in (60, 61, 62)]:
        span: list[int] = []
        tokens, first, second = [*tokens, IDS.start], [*first, place], [*second, 1]
        while len(span) < max_tokens:
            positions = row(np.stack([first, second], axis=-1), 2)
            logits = read(row(tokens), row([1] * len(tokens)), positions, row([1] * len(prompt)))
            best = int(np.argmax(logits[0, len(tokens) - 1]))
            if best == IDS.end:
                break
            span.append(best)
            tokens, first, second = [*tokens, best], [*first, place], [*second, second[-1] + 1]
        filled.append(span)
    return filled


@pytest.mark.parametrize(("scan", "seed", "lengths"), [(False, 4, (5, 5, 5, 5)), (True, 9, (5, 0, 0, 1))])
def test_cached_filling_is_the_uncached_for_texts_together(
    scan: bool, seed: int, lengths: tuple[int, ...]
) -> None:
    """Spans that are cut off, and spans that end by themselves, one of them at once."""
    model, variables = drawn(scan, seed)
    variables = jax.tree.map(jnp.asarray, variables)
    found = infill(model, variables, PROMPTS, IDS, max_tokens=5)
    assert found == [by_whole_rows(model, variables, prompt, 5) for prompt in PROMPTS]
    assert [len(row) for row in found] == [1, 2, 1]
    spans = [tuple(span) for row in found for span in row]
    assert tuple(map(len, spans)) == lengths
    assert len({span for span in spans if span}) == sum(map(bool, lengths))


def test_an_end_ends_a_span_and_the_next_blank_begins() -> None:
    """With [END] as the only likely token every span is empty; with it impossible every span is full."""
    model, variables = drawn()
    column = variables["params"]["head"]["kernel"][:, IDS.end]
    bias = variables["params"]["final_norm"]["bias"]
    direction = column / np.linalg.norm(column)
    for sign, length in ((100.0, 0), (-100.0, 3)):
        params = {**variables["params"], "final_norm": {**variables["params"]["final_norm"]}}
        params["final_norm"]["bias"] = (bias + sign * direction).astype(np.float32)
        found = infill(model, jax.tree.map(jnp.asarray, {"params": params}), PROMPTS, IDS, max_tokens=3)
        assert [[len(span) for span in row] for row in found] == [[length], [length, length], [length]]


def test_drawn_fillings_repeat_with_their_seed_alone() -> None:
    model, variables = drawn()
    variables = jax.tree.map(jnp.asarray, variables)
    hot = Sampling(temperature=1.5)
    first, again, other = (infill(model, variables, PROMPTS, IDS, 6, hot, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_what_cannot_be_filled_is_refused() -> None:
    model, variables = drawn()
    for prompts, tokens, says in (
        ([[1, 2, 3]], 4, "text 0 has no blank"),
        ([[1, 60], [70, 60]], 4, "text 1: id 70 is outside the vocabulary of 67"),
        ([[1] * 40 + [60]], 30, "take 72 places, the model has 64"),
        ([], 4, "0 texts"),
    ):
        with pytest.raises(ValueError, match=says):
            infill(model, variables, prompts, IDS, tokens)
    other, params = tiny_model()
    with pytest.raises(ValueError, match="positions of this model are 'rope'"):
        infill(other, {"params": params}, PROMPTS, IDS, 4)
