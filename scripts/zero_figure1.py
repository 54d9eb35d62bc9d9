"""ZeRO's Figure 1 (Rajbhandari et al. 2020): states of a device by strategy, as `hllm plan` counts them.

    python scripts/zero_figure1.py

It prints the table of docs/parallel.md and draws docs/images/zero-figure1.png. Shapes and shardings alone:
nothing is compiled, and 64 simulated devices of this machine's CPU stand for the paper's.
"""

from __future__ import annotations

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=64"

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "plan" / "zero-figure1.yaml"

#: Gigabytes a device that the paper's figure gives.
PAPER = {"ddp": 120.0, "zero1": 31.4, "zero2": 16.6, "zero3": 1.9}
KINDS = {"params": "parameters", "grads": "gradients", "optimizer": "optimizer state"}


def states() -> dict[str, dict[str, float]]:
    """Gigabytes a device, by strategy and kind."""
    from hllm_jax.parallel import make_mesh
    from hllm_jax.planning import states_of
    from hllm_jax.recipes import load_run_config

    found: dict[str, dict[str, float]] = {}
    for strategy in PAPER:
        recipe, config = load_run_config(CONFIG, [f"strategy={strategy}"])
        model = config.model.build(config.tokenizer.vocab_size)
        mesh = make_mesh(config.mesh, config.strategy)
        _, layout, _ = recipe.make_step(config, model, mesh, config.train.steps)
        found[strategy] = {kind: size / 1e9 for kind, size in states_of(layout).items()}
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """Rows of a Markdown table."""
    lines: list[str] = []
    for strategy, sizes in found.items():
        cells = [
            *(f"{sizes[kind]:.2f}" for kind in KINDS),
            f"{sum(sizes.values()):.2f}",
            f"{PAPER[strategy]} GB",
        ]
        lines.append(f"| `{strategy}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: dict[str, dict[str, float]], path: Path) -> None:
    """The bars of the figure."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    names = list(found)
    left = [0.0] * len(names)
    for (kind, title), color in zip(KINDS.items(), ("#4c72b0", "#dd8452", "#55a868"), strict=True):
        widths = [found[name][kind] for name in names]
        axes.barh(names, widths, left=left, label=title, color=color)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for name, total in zip(names, left, strict=True):
        axes.annotate(f" {total:.1f} GB (paper: {PAPER[name]})", (total, name), va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 165)
    axes.set_xlabel("GB a device: 7.5 billion parameters on 64 devices")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print and draw."""
    found: Any = states()
    print(table(found))
    for strategy, sizes in found.items():
        off = sum(sizes.values()) / PAPER[strategy] - 1
        assert abs(off) < 0.03, f"{strategy} is {100 * off:.1f} % from the paper"
    draw(found, ROOT / "docs" / "images" / "zero-figure1.png")


if __name__ == "__main__":
    main()
