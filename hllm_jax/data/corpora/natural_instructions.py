"""Tasks with instructions, and right against wrong answers, by people (package `bigbench`).

The 61 subtasks of Natural Instructions (Mishra et al. 2022, "Cross-Task Generalization via Natural Language
Crowdsourcing Instructions") as BIG-bench ships them. BIG-bench marks its files with a canary: they are a
benchmark, and a model that was trained on them has no score there.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from hllm_jax.data.archives import members
from hllm_jax.data.corpora.registry import Corpus
from hllm_jax.data.packages import Package
from hllm_jax.data.records import Record, split_by

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hllm_jax.data.corpora.registry import Example

PACKAGE = Package(
    name="bigbench",
    version="1.0.0",
    file="bigbench-1.0.0.tar.gz",
    sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
)
HOLDOUT = 0.02
TASK = "*/benchmark_tasks/natural_instructions/subtask{}_*/task.json"
RIGHT_AND_WRONG = {"004": "005", "007": "008", "010": "011", "013": "014", "016": "017", "054": "055"}
"""Subtasks of right answers -> those of wrong answers to the same questions."""
WRONG_BESIDE_RIGHT = ("025", "042")
"""Subtasks of wrong answers whose input tells the right one."""
LABEL = re.compile(r"^(?:Passage|Paragraph|Context|Sentence|Fact|Background)\s*\d*\s*[:-]?\s*", re.IGNORECASE)
CORRECT = re.compile(r"\s*\n\s*Correct Answer: *")


def tasks(archive: Path, *numbers: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(number, task)` of the wanted subtasks, streamed out of the archive."""
    for name, content in members(archive, *(TASK.format(number) for number in numbers)):
        found = re.search(r"/subtask(\d{3})_", name)
        assert found is not None
        yield found[1], json.loads(content)


def conversations(archive: Path) -> Iterator[Example]:
    """The definition of the task and an input, answered by the first of the right answers."""
    for _, task in tasks(archive, "*"):
        instruction = re.sub(r"\s+", " ", task["task_prefix"]).strip()
        for example in task["examples"]:
            said = example["input"].strip()
            answers = [answer.strip() for answer in example["target"] if answer.strip()]
            if said and answers:
                messages = [
                    {"role": "user", "content": f"{instruction}\n\n{said}"},
                    {"role": "assistant", "content": answers[0]},
                ]
                yield split_by(key(said), HOLDOUT), {"messages": messages}


def preferences(archive: Path) -> Iterator[Example]:
    """One pair a question: the first right answer before the first wrong one that says something else."""
    wanted = {*RIGHT_AND_WRONG, *RIGHT_AND_WRONG.values(), *WRONG_BESIDE_RIGHT}
    found = {number: task["examples"] for number, task in tasks(archive, *sorted(wanted))}
    for right, wrong in RIGHT_AND_WRONG.items():
        wrong_answers = {example["input"].strip(): example["target"] for example in found[wrong]}
        for example in found[right]:
            said = example["input"].strip()
            yield from pair(said, example["target"], wrong_answers.get(said, ()))
    for number in WRONG_BESIDE_RIGHT:
        for example in found[number]:
            said, *right_answers = CORRECT.split(example["input"].strip(), maxsplit=1)
            yield from pair(said.strip(), right_answers, example["target"])


def pair(prompt: str, right: Any, wrong: Any) -> Iterator[Example]:
    """The preference pair of one question; none if one side is missing or both are the same."""
    chosen = next((answer.strip() for answer in right if answer.strip()), "")
    others = (answer.strip() for answer in wrong)
    rejected = next((answer for answer in others if answer and answer.casefold() != chosen.casefold()), "")
    if prompt and chosen and rejected:
        yield split_by(key(prompt), HOLDOUT), {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def key(said: str) -> bytes:
    """What decides where an example goes: the text that it asks about, which many subtasks share.

    A sentence that one subtask takes out of another's passage counts as a text of its own.
    """
    text = LABEL.sub("", said.split("\n", 1)[0])
    return Record(text=re.sub(r"\W+", " ", text).strip().casefold()).content_hash()


CANARY = (
    "BIG-bench data with its canary (GUID 26b5c67b…): report no BIG-bench score of a model trained on it."
)
LICENCE = "Apache-2.0"

CORPORA = {
    "natural-instructions": Corpus(
        name="natural-instructions",
        version="1.0.0",
        kind="chat",
        language="English",
        summary="61 tasks with the instructions that people were given, and what they answered.",
        licence=LICENCE,
        package=PACKAGE,
        train=189058,
        validation=4191,
        examples=conversations,
        caveat=CANARY,
    ),
    "answer-pairs": Corpus(
        name="answer-pairs",
        version="1.0.0",
        kind="preference",
        language="English",
        summary="Questions with a right and a wrong answer, both written by people.",
        licence=LICENCE,
        package=PACKAGE,
        train=17518,
        validation=400,
        examples=preferences,
        caveat=f"{CANARY} In 55 % of the pairs the longer answer is the right one.",
    ),
}
