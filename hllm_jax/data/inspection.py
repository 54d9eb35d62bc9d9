"""What a batch looks like: every token with its weight and segment, and what became of the records."""

from __future__ import annotations

import dataclasses
import itertools
import json
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from hllm_jax.data.batches import Batches
    from hllm_jax.data.config import DataConfig
    from hllm_jax.data.objective import ObjectiveConfig
    from hllm_jax.data.preference_config import PairDataConfig
    from hllm_jax.data.prompts import PromptConfig
    from hllm_jax.data.task import TaskDataConfig
    from hllm_jax.data.transforms.piece import Batch
    from hllm_jax.tokenizers.tokenizer import Tokenizer

SEGMENT_STYLES = ("cyan", "magenta", "yellow", "blue")
TRAINED_STYLE = "bold green"
PAIR = "pair_labels"
VISIBLE = {"<0x0A>": "⏎", "<0x0D>": "␍", "<0x09>": "⇥", "\n": "⏎", "\r": "␍", "\t": "⇥", " ": "␣"}


@dataclasses.dataclass(frozen=True)
class Side:
    """One row of tokens of a batch: of the model, or of its encoder or decoder.

    Attributes:
        title: "", "encoder", "decoder", "chosen" or "rejected".
        prefix: of the names of its arrays.
        predicts: every position may have a target.
        weighted: every token has a weight of its own.
    """

    title: str
    prefix: str
    predicts: bool
    weighted: bool = False

    def array(self, batch: Batch, name: str) -> np.ndarray:
        """`tokens`, `segment_ids` or `positions` of this side."""
        return batch[self.prefix + name]


def sides(batch: Batch) -> tuple[Side, ...]:
    """The rows of tokens that a batch has."""
    if "decoder_tokens" in batch:
        return Side("encoder", "", False), Side("decoder", "decoder_", True)
    if "chosen_tokens" in batch:
        return Side("chosen", "chosen_", False, True), Side("rejected", "rejected_", False, True)
    return (Side("", "", "targets" in batch),)


def inspect(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 4,
    sequence_length: int = 128,
    seed: int = 0,
    rows: int = 2,
    tokens: int = 64,
    split: str = "train",
    objective: ObjectiveConfig | TaskDataConfig | PairDataConfig | PromptConfig | None = None,
) -> Group:
    """A rich renderable: the first rows of batch 0 as text and token by token, then counts and licences.

    In the text, trained targets are bold green and the rest takes the colour of its segment. Prompts are
    shown as text, with their records.

    Args:
        config: the `data:` section; it is prepared if it is not yet.
        tokenizer: the run's tokenizer.
        batch_size: B of the batch to look at.
        sequence_length: L.
        seed: of the order.
        rows: how many rows are shown.
        tokens: how many tokens of each row are listed one by one.
        split: "train" or "validation".
        objective: what the rows are for, a task's answers and prompts included; None: causal language models.
    """
    from rich.console import Group

    batches = config.build(
        tokenizer,
        batch_size=batch_size,
        sequence_length=sequence_length,
        seed=seed,
        epochs=1,
        split=split,
        objective=objective,
    )
    batch = batches[0]
    if "records" in batch:
        shown = [prompt_text(batches, batch, row, tokenizer) for row in range(min(rows, batch_size))]
        return Group(*shown, prompt_summary(batches), source_table(batches))
    parts: list[Any] = []
    for row in range(min(rows, batch_size)):
        for side in sides(batch):
            parts += [
                row_text(batch, row, tokenizer, side, getattr(objective, "kind", None) == "blank_infilling"),
                token_table(batch, row, tokenizer, tokens, side),
            ]
        if "targets" not in batch or PAIR in batch:
            parts.append(said_of(batch, row, tokenizer, objective))
        parts.append("")
    parts += [summary(batches), source_table(batches)]
    return Group(*parts)


def row_text(batch: Batch, row: int, tokenizer: Tokenizer, side: Side, blanks: bool) -> Text:
    """A row as running text, coloured by what is trained and by segment: its targets, where it has any.

    With `blanks`, the corrupted text before them is shown as it is read: it has no targets.
    """
    from rich.text import Text

    text = Text(f"row {row}{side.title and ', ' + side.title}: ", style="bold")
    segments = side.array(batch, "segment_ids")[row]
    shown, trained = side.array(batch, "tokens")[row], np.zeros(len(segments), bool)
    if side.predicts:
        trained = batch["weights"][row] > 0
        hidden = batch["prefix"][row] > 0 if blanks else np.zeros(len(segments), bool)
        shown = np.where(hidden, shown, batch["targets"][row])
    if side.weighted:
        trained = side.array(batch, "weights")[row] > 0
    fields = (shown, trained, segments)
    stretches = itertools.groupby(
        zip(*(field[segments > 0].tolist() for field in fields), strict=True), key=operator.itemgetter(1, 2)
    )
    for (learned, segment), stretch in stretches:
        style = (
            TRAINED_STYLE if learned else f"not bold {SEGMENT_STYLES[(segment - 1) % len(SEGMENT_STYLES)]}"
        )
        decoded = tokenizer.decode([token for token, _, _ in stretch])
        text.append(decoded.replace("\n", "⏎\n"), style=style)
    return text


def token_table(batch: Batch, row: int, tokenizer: Tokenizer, limit: int, side: Side) -> Any:
    """One line a position: input, target, weight, segment, position in the segment, and what else."""
    from rich.table import Table
    from rich.text import Text

    tokens, segments = (side.array(batch, name)[row] for name in ("tokens", "segment_ids"))
    extra = {"prefix": "prefix", "token_types": "type", "context": "context"}
    extra = {name: title for name, title in extra.items() if name in batch and not side.prefix}
    title = f"row {row}{side.title and ', ' + side.title}: the first {limit} of {len(tokens)} positions"
    table = Table(title=title, title_justify="left")
    target_columns = ("target", "id", "weight") if side.predicts else ("weight",) * side.weighted
    for name in ("#", "input", "id", *target_columns, "segment", "position", *extra.values()):
        table.add_column(name, justify="left" if name in ("input", "target") else "right")

    def cells(token: int, style: str) -> list[Any]:
        return [Text(visible(tokenizer.token_text(token)), style=style), str(token)]

    for column in range(min(limit, len(tokens))):
        segment = int(segments[column])
        style = SEGMENT_STYLES[(segment - 1) % len(SEGMENT_STYLES)] if segment else "dim"
        line: list[Any] = [str(column), *cells(int(tokens[column]), style)]
        if side.predicts:
            weight = float(batch["weights"][row, column])
            line += cells(int(batch["targets"][row, column]), TRAINED_STYLE if weight > 0 else style)
            line.append(Text(f"{weight:g}", style=TRAINED_STYLE if weight > 0 else "dim"))
        if side.weighted:
            weight = float(side.array(batch, "weights")[row, column])
            line.append(Text(f"{weight:g}", style=TRAINED_STYLE if weight > 0 else "dim"))
        line.append(Text(str(segment) if segment else "padding", style=style))
        place = np.atleast_1d(side.array(batch, "positions")[row, column])
        line.append(", ".join(str(int(number)) for number in place))
        line += [str(int(batch[name][row, column])) for name in extra]
        table.add_row(*line)
    return table


def prompt_text(batches: Batches, batch: Batch, row: int, tokenizer: Tokenizer) -> Text:
    """A prompt as the model reads it, and the record that it was made of."""
    from rich.text import Text

    count, number = int(batch["lengths"][row]), int(batch["records"][row])
    text = Text(f"row {row}, {count} tokens: ", style="bold")
    decoded = tokenizer.decode(batch["tokens"][row, :count])
    text.append(decoded.replace("\n", "⏎\n"), style=f"not bold {SEGMENT_STYLES[0]}")
    record = json.dumps(batches.record(number), ensure_ascii=False)
    text.append(f"\nrecord {number}: {record}\n", style="not bold dim")
    return text


def prompt_summary(batches: Batches) -> Text:
    """One paragraph: how many prompts, how they are put, how many are too long."""
    from rich.text import Text

    stats, window = batches.stats, batches.sequence_length
    text = Text(f"{batches.rows_per_epoch:,} prompts an epoch in a window of {window} tokens, ")
    text.append(f"{stats['fill']:.1%} filled\n{batches.settings}\noverlong: {batches.data.config.overlong}")
    if stats["dropped_overlong"]:
        text.append(f"; dropped: {int(stats['dropped_overlong']):,}", style="yellow")
    return text


def said_of(
    batch: Batch,
    row: int,
    tokenizer: Tokenizer,
    objective: ObjectiveConfig | TaskDataConfig | PairDataConfig | PromptConfig | None,
) -> Text:
    """What is to be said of a row as a whole: of its two texts, its class, or its answer."""
    from rich.text import Text

    if "margins" in batch:
        text = f"margin {float(batch['margins'][row]):g}, weight {float(batch['pair_weights'][row]):g}"
    elif PAIR in batch:
        said = ("the second text follows the first", "the second text does not follow the first")
        text = f"{said[int(batch[PAIR][row])]} (label {int(batch[PAIR][row])})"
    elif "starts" in batch:
        start, end = int(batch["starts"][row]), int(batch["ends"][row])
        text = f"the answer is {tokenizer.decode(batch['tokens'][row, start : end + 1])!r} ({start} to {end})"
    else:
        number = int(batch["labels"][row])
        names = getattr(objective, "labels", ())
        text = f"the class is {names[number] if names else number} ({number})"
    return Text(f"row {row}: {text}", style=TRAINED_STYLE)


def visible(text: str) -> str:
    """White space made visible, for a table cell."""
    for character, sign in VISIBLE.items():
        text = text.replace(character, sign)
    return text


def summary(batches: Batches) -> Text:
    """One paragraph: packing, fill, trained share, and what was cut or dropped."""
    from rich.text import Text

    stats, config = batches.stats, batches.data.config
    policy = f", overlong: {config.overlong}" if config.packing != "concat" else ""
    settings = f"objective: {batches.settings}\n" if batches.settings else ""
    text = Text()
    text.append(f"trained tokens: {stats['trained_share']:.1%} of all targets\n", style=TRAINED_STYLE)
    text.append(
        f"{settings}packing: {config.packing}{policy}; "
        f"{batches.rows_per_epoch:,} rows of {batches.sequence_length} an epoch, "
        f"fill {stats['fill']:.1%}, {int(stats['pairs']):,} targets, {int(stats['trained_tokens']):,} trained"
    )
    for name in (
        "overlong",
        "truncated",
        "split",
        "dropped_overlong",
        "dropped_untrained",
        "lost_tokens",
        "lost_trained_tokens",
    ):
        if stats.get(name):
            text.append(f"; {name.replace('_', ' ')}: {int(stats[name]):,}", style="yellow")
    return text


def source_table(batches: Batches) -> Any:
    """Records by fate, and licences, one column a source."""
    from rich.table import Table

    table = Table("", title="Sources", title_justify="left")
    described = [store.description for store in batches.data.stores]
    for source in described:
        table.add_column(source["label"], justify="right", overflow="fold")
    for name in batches.data.counts:
        numbers = [source["counts"][name] for source in described]
        if any(numbers):
            table.add_row(name.replace("_", " "), *(f"{number:,}" for number in numbers))
    table.add_row("licence", *(source["licence"] for source in described))
    return table
