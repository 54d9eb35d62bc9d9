"""What a batch looks like: every token with its weight and segment, and what became of the records."""

from __future__ import annotations

import itertools
import operator
from typing import TYPE_CHECKING, Any

from hllm_jax.data.batches import Batches
from hllm_jax.data.preparation import prepare

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from hllm_jax.data.batch import LMBatch
    from hllm_jax.data.config import DataConfig
    from hllm_jax.tokenizers.tokenizer import Tokenizer

SEGMENT_STYLES = ("cyan", "magenta", "yellow", "blue")
TRAINED_STYLE = "bold green"
VISIBLE = {"<0x0A>": "⏎", "<0x0D>": "␍", "<0x09>": "⇥", "\n": "⏎", "\r": "␍", "\t": "⇥", " ": "␣"}


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
) -> Group:
    """A rich renderable: the first rows of batch 0 as text and token by token, then counts and licences.

    In the text, trained targets are bold green and the rest takes the colour of its segment.

    Args:
        config: the `data:` section; it is prepared if it is not yet.
        tokenizer: the run's tokenizer.
        batch_size: B of the batch to look at.
        sequence_length: L.
        seed: of the order.
        rows: how many rows are shown.
        tokens: how many tokens of each row are listed one by one.
        split: "train" or "validation".
    """
    from rich.console import Group

    batches = Batches(prepare(config, tokenizer, split), batch_size, sequence_length, seed, epochs=1)
    batch = batches[0]
    parts: list[Any] = []
    for row in range(min(rows, batch_size)):
        parts += [row_text(batch, row, tokenizer), token_table(batch, row, tokenizer, tokens), ""]
    parts += [summary(batches), source_table(batches)]
    return Group(*parts)


def row_text(batch: LMBatch, row: int, tokenizer: Tokenizer) -> Text:
    """The targets of a row as running text, coloured by what is trained and by segment."""
    from rich.text import Text

    text = Text(f"row {row}: ", style="bold")
    used = batch["segment_ids"][row] > 0
    fields = (batch["targets"][row], batch["weights"][row] > 0, batch["segment_ids"][row])
    stretches = itertools.groupby(
        zip(*(field[used].tolist() for field in fields), strict=True), key=operator.itemgetter(1, 2)
    )
    for (trained, segment), stretch in stretches:
        style = (
            TRAINED_STYLE if trained else f"not bold {SEGMENT_STYLES[(segment - 1) % len(SEGMENT_STYLES)]}"
        )
        decoded = tokenizer.decode([target for target, _, _ in stretch])
        text.append(decoded.replace("\n", "⏎\n"), style=style)
    return text


def token_table(batch: LMBatch, row: int, tokenizer: Tokenizer, limit: int) -> Any:
    """One line a position: input, target, weight, segment, position in the segment."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"row {row}: the first {limit} of {batch['tokens'].shape[1]} positions", title_justify="left"
    )
    for name in ("#", "input", "id", "target", "id", "weight", "segment", "position"):
        table.add_column(name, justify="left" if name in ("input", "target") else "right")
    for column in range(min(limit, batch["tokens"].shape[1])):
        source, target = int(batch["tokens"][row, column]), int(batch["targets"][row, column])
        weight, segment = float(batch["weights"][row, column]), int(batch["segment_ids"][row, column])
        style = SEGMENT_STYLES[(segment - 1) % len(SEGMENT_STYLES)] if segment else "dim"
        table.add_row(
            str(column),
            Text(visible(tokenizer.token_text(source)), style=style),
            str(source),
            Text(visible(tokenizer.token_text(target)), style=TRAINED_STYLE if weight > 0 else style),
            str(target),
            Text(f"{weight:g}", style=TRAINED_STYLE if weight > 0 else "dim"),
            Text(str(segment) if segment else "padding", style=style),
            str(int(batch["positions"][row, column])),
        )
    return table


def visible(text: str) -> str:
    """White space made visible, for a table cell."""
    for character, sign in VISIBLE.items():
        text = text.replace(character, sign)
    return text


def summary(batches: Batches) -> Text:
    """One paragraph: packing, fill, trained share, and what was cut or dropped."""
    from rich.text import Text

    stats, config = batches.stats, batches.data.config
    policy = f", overlong: {config.overlong}" if config.packing == "first_fit" else ""
    text = Text()
    text.append(f"trained tokens: {stats['trained_share']:.1%} of all targets\n", style=TRAINED_STYLE)
    text.append(
        f"packing: {config.packing}{policy}; "
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
