"""One self-contained HTML page from a run folder, or from a folder of stages."""

from __future__ import annotations

import datetime
import os
import re
import statistics
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm_jax.report.facts import Facts, RowToken, Sample, Score, read_facts
from hllm_jax.report.figures import (
    loss_figure,
    pairs_figure,
    rate_figure,
    reward_figure,
    roofline_tokens_per_second,
)
from hllm_jax.report.rollouts import chosen
from hllm_jax.report.settings import changed_settings
from hllm_jax.report.stage import Stage, is_run, read_stage

if TYPE_CHECKING:
    from collections.abc import Sequence

# Stages in the order in which a model goes through them; others follow by name.
ORDER = ("tokenizer", "pretrain", "sft", "reward", "dpo", "grpo", "ppo")


def report(run_dir: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run folder, or into a folder whose subfolders are runs, and return its path.

    The run may be finished, running or interrupted. The page needs no other file and no network.

    Raises:
        FileNotFoundError: if the folder is missing, or neither it nor a subfolder is a run.
        MissingPlots: if matplotlib is not installed.
        ValueError: if `report.json` is damaged.
    """
    folder = Path(run_dir)
    stages = find_stages(folder)
    page = render(folder, stages, read_facts(folder))
    target = folder / "report.html"
    partial = target.with_suffix(".html.partial")
    partial.write_text(page, "utf-8")
    os.replace(partial, target)
    return target


def find_stages(folder: Path) -> list[Stage]:
    """The run itself, or the runs directly below a group folder, in the order of training."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder; `hllm report` takes a run folder such as runs/quickstart"
        )
    if is_run(folder):
        return [read_stage(folder)]
    below = sorted(child for child in folder.iterdir() if child.is_dir() and is_run(child))
    if not below:
        raise FileNotFoundError(
            f"{folder} is no run folder and holds none: neither config.yaml nor metrics.jsonl is in it or in "
            "a folder directly below it"
        )
    below.sort(key=lambda child: ORDER.index(child.name) if child.name in ORDER else len(ORDER))
    return [read_stage(child) for child in below]


def render(folder: Path, stages: Sequence[Stage], facts: Facts) -> str:
    """The page as text."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, duration=_duration, few_lines=_few_lines, decimal=_decimal)
    template = environment.from_string(_template())
    comparison = facts.comparison
    scores = comparison.scores if comparison else ()
    return template.render(
        title=facts.title or f"Run {folder.resolve().name}",
        facts=facts,
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        stages=[
            {
                "stage": stage,
                "rows": _overview(stage),
                # The baselines read the pretraining text; they say nothing about conversations.
                "loss": Markup(loss_figure(stage, scores if stage.name == comparison_stage(stages) else ())),
                "rate": Markup(rate_figure(stage, matmul_peak(stage))),
                "reward": Markup(reward_figure(stage)) if stage.rollouts else "",
                "answers": chosen(stage.rollouts),
                "total": sum(each.answers for each in stage.rollouts),
                "pairs": Markup(pairs_figure(stage)) if stage.pairs else "",
                "settings": changed_settings(stage.config),
            }
            for stage in stages
        ],
        bars=_bars(scores),
        verdict=_verdict(scores),
        samples=facts.samples or _logged_samples(stages),
        count_names=list(dict.fromkeys(name for source in facts.sources for name, _ in source.counts)),
        segments=_segments(facts.row),
        trained=sum(token.weight > 0 for token in facts.row),
        platform=next((stage.platform for stage in stages if stage.platform), {}),
    )


def comparison_stage(stages: Sequence[Stage]) -> str:
    """The stage whose held-out text the baselines were scored on: the first one."""
    return stages[0].name


def _template() -> str:
    return (resources.files("hllm_jax.report") / "page.html.jinja").read_text("utf-8")


def matmul_peak(stage: Stage) -> float | None:
    """The matmul peak, FLOP/s, that the run compared itself with; `None` where it cannot be told."""
    roofline = roofline_tokens_per_second(stage)
    length = (stage.config.get("train") or {}).get("sequence_length")
    if roofline is None or stage.model is None or not isinstance(length, int):
        return None
    return roofline * stage.model.flops_per_token(length)


def _overview(stage: Stage) -> list[tuple[str, str]]:
    planned = stage.planned_steps
    roofline = roofline_tokens_per_second(stage)
    rate = median_rate(stage)
    rows = [
        ("state", stage.state),
        ("parameters", _number(stage.model.parameters()) if stage.model else ""),
        ("steps", f"{stage.last_step:,}" + (f" of {planned:,}" if planned else "")),
        ("tokens read", _number(stage.tokens)),
        ("training time", _duration(stage.seconds)),
        ("training loss", _decimal(stage.last("loss", stage.steps))),
        ("held-out loss", _decimal(stage.last("eval/loss"))),
        ("bits per byte", _decimal(stage.last("eval/bits_per_byte"))),
        *_of_pairs(stage),
        ("tokens per second", _number(rate)),
    ]
    if rate and roofline:
        rows.append(("of the matmul peak", f"{100 * rate / roofline:.0f} %"))
    if stage.rollouts:
        first, last = stage.rollouts[0], stage.rollouts[-1]
        rows += [
            ("reward", f"{_decimal(first.score)} → {_decimal(last.score)}"),
            ("KL, nats per answer", _decimal(last.kl)),
            ("tokens per answer", f"{first.length:.1f} → {last.length:.1f}"),
            ("answers that ended", f"{100 * last.ended:.0f} %"),
            ("answers without reward", _number(sum(each.answers - each.scored for each in stage.rollouts))),
        ]
    if stage.damaged:
        rows.append(("unreadable log lines", str(stage.damaged)))
    return [(name, value) for name, value in rows if value]


def _of_pairs(stage: Stage) -> list[tuple[str, str]]:
    """How a model does on held-out pairs, beside the rule that the longer answer is the better one."""
    if not stage.pairs:
        return []
    return [
        ("accuracy on held-out pairs", _decimal(stage.last("eval/accuracy"))),
        ("accuracy of “longer wins”", _decimal(stage.last("eval/longer_wins"))),
        ("calibration error", _decimal(stage.last("eval/calibration_error"))),
    ]


def median_rate(stage: Stage) -> float | None:
    """The median of the logged tokens per second: compilation and pauses do not move it."""
    rates = [float(line["tokens_per_second"]) for line in stage.steps if line.get("tokens_per_second")]
    return statistics.median(rates) if rates else None


def _bars(scores: Sequence[Score]) -> list[dict[str, Any]]:
    longest = max((score.bits_per_byte for score in scores), default=1.0)
    return [
        {"score": score, "percent": round(100 * score.bits_per_byte / longest, 1), "best": n == 0}
        for n, score in enumerate(sorted(scores, key=lambda score: score.bits_per_byte))
    ]


def _verdict(scores: Sequence[Score]) -> str:
    ours = [score for score in scores if score.ours]
    others = [score for score in scores if not score.ours]
    if not ours or not others:
        return ""
    mine, best = min(ours, key=_bits), min(others, key=_bits)
    gap = 100 * (mine.bits_per_byte / best.bits_per_byte - 1)
    if gap > 0:
        return f"{best.name} wins: {mine.name} needs {gap:.0f} % more bits for the same text."
    return f"{mine.name} wins: it needs {-gap:.0f} % fewer bits than {best.name}."


def _bits(score: Score) -> float:
    return score.bits_per_byte


def _logged_samples(stages: Sequence[Stage]) -> tuple[Sample, ...]:
    # Without prepared samples, what the runs wrote themselves: for every prompt, its first and last text.
    answers: dict[str, list[tuple[str, str]]] = {}
    for stage in stages:
        for line in stage.samples:
            said = (f"{stage.name}, step {line['step']:,}", str(line.get("text", "")))
            answers.setdefault(str(line.get("prompt", "")), []).append(said)
    return tuple(
        Sample(prompt=prompt, chat=False, answers=tuple(texts if len(texts) <= 3 else (texts[0], texts[-1])))
        for prompt, texts in answers.items()
    )


def _segments(row: Sequence[RowToken]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    for token in row:
        if not groups or groups[-1]["segment"] != token.segment:
            groups.append({"segment": token.segment, "tokens": []})
        groups[-1]["tokens"].append(token)
    return groups


def _few_lines(text: str) -> str:
    # An untrained model can answer with forty empty lines.
    return re.sub(r"\n{3,}", lambda found: f" ↵ × {len(found[0])} ", text.strip("\n") or text)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.1f}"


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
