"""Measure every family against `transformers` and write docs/families.md.

    python scripts/families_table.py

Reads the recorded models of tests/fixtures/families; where the peers environment is there (`make peers`),
what we export is loaded by `transformers` too. With `--learn` each family is trained for 200 steps (minutes).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hllm_jax.interop import save_hf  # noqa: E402 (the tests are not installed)
from hllm_jax.models.families import families  # noqa: E402
from tests.models.families.contract import (  # noqa: E402
    PEERS,
    Case,
    ask_peers,
    differences,
    recorded,
)
from tests.models.families.learning import learn  # noqa: E402
from tests.models.published import PARAMETERS  # noqa: E402

HEAD = """# Families and what was measured

Written by `python scripts/families_table.py --learn`. Each family is compared with the published
implementation (`transformers`) on small random models in float32: *logits* and *exported* are the
largest absolute differences over plain, left padded and right padded rows, of models that we read and of
folders that we wrote and `transformers` loaded with strict keys. *Sizes* are the presets whose number of
parameters equals that of `transformers`' own instantiation. *Learns* is the held-out loss after 200
steps of the family's own objective on Shakespeare and Chinese idioms, beside a unigram model's. Config
round trip, bit-equal tensors, gradients and cached decoding are tests of their own
(`tests/models/families/`).

| family | what | sizes | models | logits | exported | learns (unigram) | files |
|---|---|---|---|---|---|---|---|
"""

TAIL = """
`transformers` has no class of `chatglm` and of the `glm` of 2022. `tests/models/families/test_chatglm.py`
reads the recorded GLM-4 under ChatGLM's names; `test_glm.py` compares GLM with NumPy written from the paper,
counts its sizes and trains it by filling blanks.
"""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learn", action="store_true", help="train each family for 200 steps")
    options = parser.parse_args()
    cases = recorded()
    logits = {repr(case): worst(case, case.outputs) for case in cases}
    exported = exports(cases) if PEERS.exists() else {}
    rows = []
    for name, page in families().items():
        mine = [case for case in cases if case.family == name]
        learned = "not run"
        if options.learn and mine:
            with tempfile.TemporaryDirectory() as folder:
                loss, unigram = learn(mine[0].spec, Path(folder))
            learned = f"{loss:.2f} ({unigram:.2f})"
        about = (page.__doc__ or "").splitlines()[0].rstrip(".")
        counted = sum(page.PRESETS[preset].parameters() == PARAMETERS.get(preset) for preset in page.PRESETS)
        files = "HF" + (", GGUF" if getattr(page, "GGUF_ARCHITECTURES", ()) else "")
        rows.append(
            f"| {name} | {about} | {counted} of {len(page.PRESETS)} | {len(mine)} | {shown(mine, logits)} | "
            f"{shown(mine, exported)} | {learned} | {files} |"
        )
    (ROOT / "docs" / "families.md").write_text(HEAD + "\n".join(rows) + "\n" + TAIL, "utf-8")


def worst(case: Case, outputs: dict[str, np.ndarray]) -> float:
    """The largest difference of any output."""
    return max(differences(case, outputs, case.spec, case.params()).values())


def exports(cases: tuple[Case, ...]) -> dict[str, float]:
    """What `transformers` says of the folders that we write, against ours."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        asked = []
        for case in cases:
            folder = Path(place) / repr(case)
            save_hf(folder, case.spec, case.params(), family=case.family)
            asked.append([str(folder), str(case.file), case.name, str(folder / "outputs.npz")])
        ask_peers("run", given=asked)
        for case, (*_, out) in zip(cases, asked, strict=True):
            with np.load(out) as stored:
                found[repr(case)] = worst(case, {name: stored[name] for name in stored.files})
    return found


def shown(cases: list[Case], measured: dict[str, float]) -> str:
    """The worst of a family's cases."""
    values = [measured[repr(case)] for case in cases if repr(case) in measured]
    return f"{max(values):.1e}" if values else "not run"


if __name__ == "__main__":
    main()
