"""The report's figures as inline SVG: light, few colours, readable in print and without the page's fonts."""

from __future__ import annotations

import importlib.util
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hllm_jax.report.facts import Score
    from hllm_jax.report.stage import Line, Stage

TRAIN, EVAL, OTHER, FAINT = "#2563a8", "#c2570c", "#6b7280", "#c9d8ea"
POINTS = 400  # more points than the figure has pixels only make the page heavy

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": "#9ca3af",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.7,
    "axes.labelcolor": "#374151",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # text stays text: selectable, searchable, and small
}


class MissingPlots(ImportError):
    """matplotlib is not installed."""

    def __init__(self) -> None:
        super().__init__("a report draws with matplotlib: `pip install 'hllm-jax[report]'`")


def require_matplotlib() -> None:
    """Raise `MissingPlots` if matplotlib is not installed; does not import it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingPlots


def loss_figure(stage: Stage, scores: Sequence[Score] = ()) -> str:
    """Loss over steps, and bits per byte on held-out text beside what the baselines reach, as SVG."""
    with _style(f"loss-{stage.name}"):
        figure = _figure(9.2, 3.1)
        left, right = figure.subplots(1, 2)
        steps, losses = _series(stage.steps, "loss")
        if len(steps) > 40:
            left.plot(*_thin(steps, losses), color=FAINT, linewidth=0.9, zorder=1)
            left.plot(*_thin(steps, _smooth(losses)), color=TRAIN, label="training", zorder=3)
        else:
            left.plot(steps, losses, color=TRAIN, label="training")
        at, values = _series(stage.evaluations, "eval/loss")
        if len(at):
            left.plot(at, values, color=EVAL, marker="o", markersize=3.5, label="held-out")
        left.set(title="Loss", xlabel="step", ylabel="nats per token")
        _finish(left, legend=True)
        at, values = _series(stage.evaluations, "eval/bits_per_byte")
        right.plot(at, values, color=EVAL, marker="o", markersize=3.5)
        right.set(title="Bits per byte, held-out text", xlabel="step", ylabel="bits per byte")
        if not len(at):
            right.text(0.5, 0.5, "no evaluation yet", transform=right.transAxes, ha="center", color=OTHER)
        _finish(right)
        _levels(right, [(score.bits_per_byte, score.name) for score in scores if not score.ours])
        return _svg(figure)


def pairs_figure(stage: Stage) -> str:
    """Held-out pairs: accuracy over steps beside that of length alone; the margins of the newest evaluation;
    and how often the model was right where it was that sure, as SVG."""
    newest = stage.pairs[-1]
    with _style(f"pairs-{stage.name}"):
        figure = _figure(9.2, 2.6)
        left, middle, right = figure.subplots(1, 3)
        for key, color, label in (
            ("eval/accuracy", EVAL, "model"),
            ("eval/longer_wins", OTHER, "longer wins"),
        ):
            left.plot(*_series(stage.evaluations, key), color=color, marker="o", markersize=3.5, label=label)
        left.set(title="Accuracy, held-out pairs", xlabel="step", ylabel="share of pairs")
        _finish(left, legend=True)

        edges, heights = np.array(newest["edges"]), np.array(newest["margins"])
        width = edges[1] - edges[0]
        centres = np.append(edges[0] - width / 2, edges + width / 2)
        colors = [TRAIN if centre > 0 else EVAL for centre in centres]
        middle.bar(centres, heights, width=0.9 * width, color=colors)
        middle.set(title=f"Margins, step {newest['step']:,}", xlabel="score of chosen - rejected")
        middle.set_ylabel("pairs")
        _finish(middle)

        count, sure, right_ones = (np.array(newest[name]) for name in ("count", "confidence", "right"))
        held = count > 0
        right.plot([0.5, 1], [0.5, 1], color=OTHER, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
        at, found = sure[held] / count[held], right_ones[held] / count[held]
        right.scatter(at, found, s=12 + 60 * count[held] / count.max(), color=TRAIN, label="bins by size")
        right.set(title="Calibration", xlabel="σ(|margin|)", ylabel="share right", ylim=(-0.02, 1.02))
        _finish(right, legend=True)
        right.xaxis.set_major_locator(_tenths())
        return _svg(figure)


def _tenths() -> Any:
    from matplotlib.ticker import MultipleLocator

    return MultipleLocator(0.1)


def rate_figure(stage: Stage, peak_flops: float | None) -> str:
    """Tokens per second beside the rate at which every matmul would run at the measured peak, and the
    schedule and gradient norm, as SVG.

    Args:
        stage: the run.
        peak_flops: the machine's matmul peak in FLOP/s; only named in the legend, the line itself is
            `tokens_per_second / mfu`.
    """
    with _style(f"rate-{stage.name}"):
        figure = _figure(9.2, 2.7)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
        steps, rates = _series(stage.steps, "tokens_per_second")
        left.plot(*_thin(steps, rates), color=TRAIN, label="this run")
        roofline = roofline_tokens_per_second(stage)
        if roofline is not None:
            name = "matmul peak" if peak_flops is None else f"matmul peak, {peak_flops / 1e9:,.0f} GFLOP/s"
            left.axhline(roofline, color=OTHER, linewidth=1.2, linestyle=(0, (4, 3)), label=name)
        left.set(title="Throughput", xlabel="step", ylabel="tokens per second")
        left.set_ylim(bottom=0)
        _finish(left, legend=True)
        middle.plot(*_thin(*_series(stage.steps, "learning_rate")), color=TRAIN)
        middle.set(title="Learning rate", xlabel="step")
        middle.yaxis.set_major_formatter("{x:g}")
        _finish(middle)
        right.plot(*_thin(*_series(stage.steps, "grad_norm")), color=TRAIN, linewidth=1)
        right.set(title="Gradient norm", xlabel="step")
        _finish(right)
        return _svg(figure)


def reward_figure(stage: Stage) -> str:
    """Reward and KL over steps, and what reward was reached at which KL, as SVG."""
    steps = [each for each in stage.rollouts if each.score is not None]
    at = np.array([each.step for each in steps], np.float64)
    score, low, high, kl = (
        np.array([getattr(each, name) for each in steps], np.float64)
        for name in ("score", "low", "high", "kl")
    )
    with _style(f"reward-{stage.name}"):
        figure = _figure(9.2, 2.9)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.3, 1, 1.1))
        x, bottom = _thin(at, low)
        left.fill_between(x, bottom, _thin(at, high)[1], color=FAINT, linewidth=0, label="middle 80 %")
        left.plot(*_thin(at, score), color=TRAIN, label="mean")
        left.set(title="Reward", xlabel="step")
        _finish(left, legend=True)
        middle.plot(*_thin(at, kl), color=EVAL)
        middle.set(title="KL to the reference", xlabel="step", ylabel="nats per answer")
        _finish(middle)
        path = _thin(at, kl)[1], _thin(at, score)[1]
        right.plot(*path, color=FAINT, linewidth=1, zorder=1)
        right.scatter(*path, c=_thin(at, at)[1], s=12, cmap="viridis", zorder=2)
        for place, words in ((0, f"step {steps[0].step}"), (-1, f"step {steps[-1].step}")) if steps else ():
            right.annotate(words, (path[0][place], path[1][place]), fontsize=8, color=OTHER)
        right.set(title="Reward at KL", xlabel="nats per answer", ylabel="mean reward")
        right.set_axisbelow(True)
        return _svg(figure)


def roofline_tokens_per_second(stage: Stage) -> float | None:
    """The rate at full use of the matmul peak: the median of tokens_per_second / mfu."""
    ratios = [
        line["tokens_per_second"] / line["mfu"]
        for line in stage.steps
        if line.get("mfu") and line.get("tokens_per_second")
    ]
    return float(np.median(ratios)) if ratios else None


def _style(name: str) -> AbstractContextManager[None]:
    # The hash salt makes the ids of clip paths differ between the figures of one page, and equal between
    # two reports of the same run.
    require_matplotlib()
    from matplotlib import rc_context

    return rc_context({**STYLE, "svg.hashsalt": name})


def _figure(width: float, height: float) -> Figure:
    # A figure without pyplot: no global state, no display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _levels(axes: Axes, levels: Sequence[tuple[float, str]]) -> None:
    """Dashed lines with their names to the right of the axes, moved apart where they would overlap."""
    if not levels:
        return
    for level, _ in levels:
        axes.axhline(level, color=OTHER, linewidth=1, linestyle=(0, (4, 3)))
    axes.margins(y=0.08)
    axes.autoscale_view()
    low, high = axes.get_ylim()
    place = -1.0
    for level, name in sorted(levels):
        place = max((level - low) / (high - low), place + 0.075)
        axes.text(1.02, place, name, transform=axes.transAxes, va="center", fontsize=8, color=OTHER)


def _finish(axes: Axes, legend: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.margins(x=0.02)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8)


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg, count=1)


def _series(lines: Sequence[Line], key: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
    pairs = np.array(found, np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)[:-1]
    sizes = np.diff(edges, append=len(x))
    return np.add.reduceat(x, edges) / sizes, np.add.reduceat(y, edges) / sizes


def _smooth(values: np.ndarray) -> np.ndarray:
    width = max(3, len(values) // 40) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
