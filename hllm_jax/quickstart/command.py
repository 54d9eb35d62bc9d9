"""The whole chain in one command: tokenizer, pretraining, conversations, evaluation, samples, report.

    hllm quickstart --scale small --out runs/quickstart

Each training stage is an ordinary recipe run with a shipped configuration, in a folder of its own below
`out`; what the other stages found is kept in `report.json`. A stage that is done is not done again, and a run
that was interrupted goes on from its newest checkpoint, so the same command always continues.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from hllm_jax.config import LOCAL_ONLY, is_remote
from hllm_jax.quickstart.chain import Chain, Scale, minutes
from hllm_jax.quickstart.stages import CLOSING, STAGES
from hllm_jax.report.figures import require_matplotlib
from hllm_jax.report.page import report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def quickstart(
    scale: Scale = "small",
    out: str | Path = "runs/quickstart",
    overrides: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Train a small bilingual chat model from raw text and say how good it is.

    Args:
        scale: which shipped configurations: `configs/{pretrain,sft}/quickstart-SCALE.yaml`.
        out: folder of the two runs, `report.json` and `report.html`.
        overrides: `key=value` for the configuration of a stage, as `{"pretrain": ["train.steps=20"]}`.

    Returns:
        The path of the report.

    Raises:
        ValueError: no such scale, `out` holds a quickstart of another one, or is not on a local disk.
        MissingPlots: matplotlib is not installed; the report at the end needs it.
        SystemExit: interrupted in a training stage, which saved; run it again to go on.
    """
    require_matplotlib()  # now, and not after everything else
    if is_remote(out):
        raise ValueError(f"--out {out}: {LOCAL_ONLY}")
    chain = Chain(scale, Path(out), overrides or {})
    chain.begin()
    for number, (name, stage) in enumerate(STAGES.items(), start=1):
        chain.say(f"\n[bold][{number}/{len(STAGES)}] {name}[/bold]")
        begin, worked = time.perf_counter(), True
        try:
            worked = stage(chain)
        finally:  # an interrupted stage took time too
            if worked:
                chain.took(name, time.perf_counter() - begin)
    return end(chain)


def end(chain: Chain) -> Path:
    """The pages, and the closing lines."""
    for folder in chain.folders.values():
        report(folder)
    page = report(chain.out)
    facts = chain.facts
    chain.say("")
    for sample in facts.samples:
        if sample.chat and sample.prompt in CLOSING:
            chain.quote("you  ", sample.prompt)
            chain.quote("model", sample.answers[-1][1])
    total = sum(step.seconds or 0.0 for step in facts.steps)
    chain.say(f"\nAll stages together: {minutes(total)}. Try next:")
    for command in facts.next_commands:
        chain.say(f"  {command}")
    chain.say(f"\nThe report: [bold]{page}[/bold]")
    return page
