"""How records become the tokens of a store: what an objective wants to find there."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import numpy as np

from hllm_jax.data.boundaries import (
    Boundaries,
    Segmenter,
    join_segmented,
    spaced_words,
    word_splitter,
)
from hllm_jax.data.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hllm_jax.data.examples import Example
    from hllm_jax.data.preferences import Messages, Preference
    from hllm_jax.data.prompts import PromptConfig
    from hllm_jax.data.records import Record
    from hllm_jax.tokenizers.tokenizer import Tokenizer

#: What records are, where they are neither texts nor conversations.
RecordTask = Literal["sequence", "tokens", "span", "preference", "text_preference", "rated", "text_rated"]


@dataclasses.dataclass(frozen=True)
class Tokenization:
    """What an objective wants of its documents. The default is that of causal language models.

    Attributes:
        special: documents are `[bos] + ids + [eos]`; else bare ids, and rows add special tokens themselves.
        sentences: keep where sentences begin.
        words: keep which tokens begin a word, as this segmenter sees it.
        pairs: records are pairs of texts, kept as the tokens of both, with weight 1 on the second.
        task: records are examples of this kind of task, see `tokenize_example`; or preferences and rated
            answers, rendered by the chat template or as plain texts, see `tokenize_preference`.
        classes: names of the classes of a task, in the order of their numbers.
        prompts: records are asked; what is kept is what stands before the answer, and the whole record.
    """

    special: bool = True
    sentences: bool = False
    words: Segmenter | None = None
    pairs: bool = False
    task: RecordTask | None = None
    classes: tuple[str, ...] = ()
    prompts: PromptConfig | None = None

    def kind(self, record: Record, place: str) -> str:
        """How this record is tokenized: "text", "conversation", "pair", "example", "preference" or "prompt".

        Raises:
            DataError: not at all.
        """
        if record.asked is not None:
            return "prompt"
        if record.example is not None:
            return "example"
        if record.preference is not None:
            return "preference"
        if self.pairs:
            if record.pair is None:
                raise DataError(
                    'a record of this objective is {"source", "target"} or {"prompt", "response"}', place
                )
            return "pair"
        if record.text is not None:
            return "text"
        if not self.special:
            raise DataError('a record of this objective is a text ({"text"}), not a conversation', place)
        return "conversation"


def tokenize_texts(
    texts: Sequence[str], tokenizer: Tokenizer, form: Tokenization
) -> Iterator[tuple[list[int], np.ndarray | None, np.ndarray | tuple[()]]]:
    """(ids, which of them begin a word, first token of each sentence) of every text; ids may be empty.

    Words and sentences are None and empty where the form does not ask for them.
    """
    before = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    split = word_splitter(form.words) if form.words else None
    written = [join_segmented(text) for text in texts] if form.words == "spaces" else list(texts)
    boundaries = Boundaries(tokenizer) if split or form.sentences else None
    for number, ids in enumerate(tokenizer.encode_batch(written)):
        if form.special:
            yield [*before, *ids, tokenizer.eos_id], None, ()
            continue
        starts: np.ndarray | tuple[()] = ()
        words: np.ndarray | None = None
        if boundaries is not None and ids:
            if form.sentences:
                ids, starts = boundaries.sentences(written[number], ids)
            if split is not None:
                words = boundaries.words(split(texts[number]), ids)
        yield ids, words, starts


def tokenize_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer
) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens of both texts joined, and their weights: 0 in the first, 1 in the second."""
    sources = tokenizer.encode_batch([source for source, _ in pairs])
    targets = tokenizer.encode_batch([target for _, target in pairs])
    for source, target in zip(sources, targets, strict=True):
        yield [*source, *target], [0] * len(source) + [1] * len(target)


def label_columns(form: Tokenization) -> int:
    """How many numbers come with every example: its class, where the answer begins and ends, or those of a
    preference."""
    return {None: 0, "sequence": 1, "tokens": 0, "span": 2}.get(form.task, 4)


def tokenize_example(
    example: Example, tokenizer: Tokenizer, form: Tokenization, place: str
) -> tuple[list[int], list[int], tuple[int, ...]] | None:
    """(ids, marks, labels) of an example; None if nothing can be learned from it (an empty text).

    - classification: the tokens of one or two texts, marked 0 and 1; the number of the class.
    - token classification: the tokens of the words; the first one of each word is marked with the number of
      its class + 1, the others with 0.
    - questions: the tokens of question and context, marked 0 and 1; the first and the last token of the
      answer, counted in the context, or -1 twice.

    Raises:
        DataError: a label that is no class of this task.
    """
    numbers = {name: number for number, name in enumerate(form.classes)}
    if unknown := [label for label in example.labels if label not in numbers]:
        raise DataError(
            f"label {unknown[0]!r} is none of {', '.join(form.classes)}: give task.labels all of them", place
        )
    if example.kind == "tokens":
        ids: list[int] = []
        marks: list[int] = []
        for word, label in zip(tagged_words(example.texts), example.labels, strict=True):
            tokens = tokenizer.encode(word)
            if not tokens:
                return None
            ids += tokens
            marks += [numbers[label] + 1, *[0] * (len(tokens) - 1)]
        return (ids, marks, ()) if ids else None
    encoded = [tokenizer.encode(text) for text in example.texts]
    if not all(encoded):
        return None
    labels: tuple[int, ...]
    if example.kind == "span":
        encoded[1], labels = find_answer(example, tokenizer, encoded[1])
    else:
        labels = (numbers[example.labels[0]],)
    marks = [number for number, part in enumerate(encoded) for _ in part]
    return [token for part in encoded for token in part], marks, labels


def tagged_words(words: Sequence[str]) -> list[str]:
    """The words as they stand in a text: with the space before them that other than Chinese words have."""
    spaced = spaced_words(" ".join(words))
    return spaced if len(spaced) == len(words) else list(words)


def find_answer(example: Example, tokenizer: Tokenizer, ids: list[int]) -> tuple[list[int], tuple[int, int]]:
    """The tokens of the context, and the first and the last of them that the answer touches."""
    if example.answer is None:
        return ids, (-1, -1)
    text, start = example.answer
    ids, spans = Boundaries(tokenizer).offsets(example.texts[1], ids)
    touched = np.flatnonzero((spans[:, 0] < start + len(text)) & (spans[:, 1] > start))
    return ids, (int(touched[0]), int(touched[-1])) if len(touched) else (-1, -1)


def tokenize_preference(
    preference: Preference, tokenizer: Tokenizer, form: Tokenization, place: str
) -> Iterator[tuple[list[int], list[int], tuple[int, ...]]]:
    """(ids, weights, numbers) of every comparison: the tokens of the chosen text and of the rejected one.

    A text is the prompt with an answer, and the weights are 1 on that answer. The numbers: tokens of the
    chosen text; the first place where the two differ; the margin, and the weight of the pair (one over the
    comparisons of the prompt), as the bits of float32.

    Raises:
        DataError: the template does not say where the answer is, or the tokens of both are the same.
    """
    of_answer = _rendered if form.task in ("preference", "rated") else _joined

    def render(answer: Messages) -> tuple[list[int], list[int]]:
        return of_answer(preference.prompt, answer, tokenizer, place) if answer else ([], [])

    for pair in preference.comparisons:
        (chosen, chosen_weights), (rejected, rejected_weights) = render(pair.chosen), render(pair.rejected)
        both = min(len(chosen), len(rejected))
        differ = next((i for i in range(both) if chosen[i] != rejected[i]), both)
        if chosen == rejected:
            raise DataError("chosen and rejected are the same tokens", place)
        if not both:  # a single answer: what has to fit into a row is its beginning
            differ = [*chosen_weights, *rejected_weights].index(1)
        numbers = (len(chosen), differ, *bits_of(pair.margin, 1.0 / len(preference.comparisons)))
        yield [*chosen, *rejected], [*chosen_weights, *rejected_weights], numbers


def bits_of(*numbers: float) -> tuple[int, ...]:
    """Numbers as the bits of their float32, which a store keeps as whole numbers."""
    return tuple(np.array(numbers, np.float32).view(np.int32).tolist())


def _rendered(
    prompt: Messages, answer: Messages, tokenizer: Tokenizer, place: str
) -> tuple[list[int], list[int]]:
    """A conversation; of the template's trained spans only those of the answer's messages count."""
    tokens, weights = tokenizer.render([*prompt, *answer])
    trained = np.concatenate([[0], np.asarray(weights) > 0]).astype(np.int8)
    starts = np.flatnonzero(np.diff(trained) == 1)
    wanted = sum(message["role"] == "assistant" for message in answer)
    earlier = sum(message["role"] == "assistant" for message in prompt)
    if len(starts) != wanted + earlier:
        raise DataError(
            f"the chat template marks {len(starts)} answers of the assistant, and there are "
            f"{wanted + earlier}: it does not say which tokens are the answer",
            place,
        )
    first = int(starts[earlier])
    return tokens, [0] * first + list(weights[first:])


def _joined(
    prompt: Messages, answer: Messages, tokenizer: Tokenizer, place: str
) -> tuple[list[int], list[int]]:
    """A text that goes on: the tokens of the prompt, those of the answer, and the end of text."""
    if len(prompt) != 1 or len(answer) != 1 or prompt[0]["role"] != "user":
        raise DataError("this is a conversation, and pairs.form is text: set it to chat", place)
    before, after = tokenizer.encode_prompt(prompt[0]["content"]), tokenizer.encode(answer[0]["content"])
    if not before or not after:
        raise DataError("prompt or answer has no token", place)
    tokens = [*before, *after, tokenizer.eos_id]
    return tokens, [0] * len(before) + [1] * (len(after) + 1)
