"""How the answers of a rollout come to their scores: as texts, by Python, or as tokens, on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from hllm_jax.objectives.sums import Variables
from hllm_jax.rl.rollout import Rollout, held_tokens
from hllm_jax.rl.table import RolloutTable


class Rows(NamedTuple):
    """What a person wants to see of a rollout; arrays of B rows.

    Attributes:
        tokens: int32 `[B, L]`.
        begins: int32 `[B]`, where the answer begins.
        lengths: int32 `[B]`, where it ends.
        ended: bool `[B]`, with a stop token.
        records: int32 `[B]`, numbers of the records that the prompts were made of.
    """

    tokens: Any
    begins: Any
    lengths: Any
    ended: Any
    records: Any


class Texts(NamedTuple):
    """The same as text, without special tokens; a list of B entries each."""

    prompts: list[str]
    completions: list[str]
    records: list[dict[str, Any]]


class Decodes(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = False) -> str:
        """Text of ids."""
        ...


@runtime_checkable
class Measures(Protocol):
    """A reward that says how its last call went (errors, time-outs), for the metrics of the run."""

    metrics: Mapping[str, float]


def read_rows(rows: Rows, tokenizer: Decodes, record: Callable[[int], dict[str, Any]]) -> Texts:
    """The texts of rows of NumPy arrays.

    Args:
        rows: B of them.
        tokenizer: decodes.
        record: gives the record of a number (`Batches.record`).
    """
    texts = Texts([], [], [])
    for tokens, begin, end, number in zip(rows.tokens, rows.begins, rows.lengths, rows.records, strict=True):
        texts.prompts.append(tokenizer.decode(tokens[:begin], skip_special=True))
        texts.completions.append(tokenizer.decode(tokens[begin:end], skip_special=True))
        texts.records.append(record(int(number)))
    return texts


def record_in(
    table: RolloutTable, tokenizer: Decodes, record: Callable[[int], dict[str, Any]]
) -> Callable[[int, Rows, np.ndarray, dict[str, np.ndarray]], None]:
    """Writes the rows of every iteration into a table, for `Iteration(watch=…)`; see `read_rows`."""

    def watch(number: int, rows: Rows, scores: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        def columns() -> dict[str, Any]:
            texts = read_rows(rows, tokenizer, record)
            return {
                "prompt": texts.prompts,
                "completion": texts.completions,
                "score": scores,
                "kl": arrays.get("kl", np.full(len(scores), np.nan, np.float32)),
                "advantage": arrays["advantage"],
                "length": rows.lengths - rows.begins,
                "ended": rows.ended,
            }

        table.add(number, columns)

    return watch


@dataclasses.dataclass(frozen=True)
class HostReward:
    """A Python function of texts.

    Attributes:
        function: `(prompts, completions, records) -> B floats`, NaN for an answer without a score, which is
            left out; may have `metrics`, see `Measures`.
        tokenizer: decodes.
        record: gives the record of a number (`Batches.record`).
    """

    function: Callable[[list[str], list[str], list[dict[str, Any]]], Any]
    tokenizer: Decodes
    record: Callable[[int], dict[str, Any]]

    def of_rows(self, rows: Rows) -> np.ndarray:
        """Scores float32 `[B]`.

        Raises:
            ValueError: another number of scores, or an infinite one.
        """
        texts = read_rows(rows, self.tokenizer, self.record)
        scores = np.asarray(self.function(*texts), np.float32)
        if scores.shape != (len(texts.prompts),):
            raise ValueError(
                f"the reward gave scores of shape {scores.shape} for {len(texts.prompts)} answers: one each "
                "is wanted"
            )
        if np.isinf(scores).any():
            worst = int(np.argmax(np.isinf(scores)))
            raise ValueError(
                f"the reward gave {scores[worst]} for the answer {texts.completions[worst]!r}: nothing can "
                "be learned from that"
            )
        return scores

    @property
    def metrics(self) -> Mapping[str, float]:
        """Of the last call, where the function says some."""
        return self.function.metrics if isinstance(self.function, Measures) else {}


@dataclasses.dataclass(frozen=True)
class DeviceReward:
    """A function of tokens that is compiled with what learns from it.

    Attributes:
        function: `(variables, tokens int32 [B, L], segment_ids int32 [B, L]) -> [B]`; 0 marks what stands
            behind the end of a row.
    """

    function: Callable[[Variables, jax.Array, jax.Array], jax.Array]

    def of_rollout(self, variables: Variables, rollout: Rollout) -> jax.Array:
        """Scores float32 `[B]`."""
        segment_ids = held_tokens(rollout.tokens, rollout.lengths)
        return self.function(variables, rollout.tokens, segment_ids).astype(jnp.float32)
