"""Greedy, beam search and the repetition penalty of encoder-decoders against `generate` of transformers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hllm_jax
from hllm_jax.generation import Seq2SeqModel
from hllm_jax.interop import save_hf
from tests.models.families.contract import Case, recorded

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
# T5 with its head tied and scaled, one with a head of its own, and Marian. (`generate` of transformers fails
# where a decoder has more layers than its encoder.)
CASES = [case for case in recorded() if repr(case) in ("t5-v1", "t5-mt5", "transformer-relu")]

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PEERS.exists(), reason="needs the peers environment: `make peers`"),
]

PROGRAM = """
import json, sys
import torch
from transformers import AutoModelForSeq2SeqLM
folder, start, asked = json.load(sys.stdin)
torch.set_num_threads(1)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
answers = []
for sources, stops, options in asked:
    longest = max(map(len, sources))
    ids = torch.tensor([source + [start] * (longest - len(source)) for source in sources])
    mask = torch.tensor([[1] * len(source) + [0] * (longest - len(source)) for source in sources])
    out = model.generate(ids, attention_mask=mask, do_sample=False, eos_token_id=stops, pad_token_id=start,
                         decoder_start_token_id=start, forced_eos_token_id=None, **options)
    answers.append(out[:, 1:].tolist())
print(json.dumps(answers))
"""

OPTIONS: list[dict[str, Any]] = [
    {"max_tokens": 16},
    {"max_tokens": 16, "repetition_penalty": 1.7},
    {"max_tokens": 10, "num_beams": 4},
    {"max_tokens": 10, "num_beams": 3, "length_penalty": 0.0, "n": 3},
    {"max_tokens": 10, "num_beams": 5, "length_penalty": 2.0, "n": 2},
    {"max_tokens": 10, "num_beams": 4, "length_penalty": -1.0},
]
THEIRS = {"max_tokens": "max_new_tokens", "n": "num_return_sequences"}


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_tokens_equal_those_of_transformers(case: Case, tmp_path: Path) -> None:
    assert len(CASES) == 3
    spec: Any = case.spec
    save_hf(tmp_path, spec, case.params(), family=case.family)
    loaded = hllm_jax.load(tmp_path)
    assert isinstance(loaded, Seq2SeqModel)
    rng = np.random.default_rng(3)
    sources = [rng.integers(2, 60, n).tolist() for n in (1, 4, 9, 20)]
    # Ids that these weights like to say, so that beams of different lengths end and compete.
    likely = loaded.generate(sources, temperature=1.0, max_tokens=8, n=4)
    counts = np.bincount(np.concatenate([completion.tokens for completion in likely]), minlength=67)
    counts[spec.decoder_start] = 0
    stops = [int(i) for i in np.argsort(-counts)[:4]]
    asked = [
        (sources, stops, {THEIRS.get(name, name): value for name, value in options.items()})
        for options in OPTIONS
    ]
    done = subprocess.run(
        [PEERS, "-c", PROGRAM],
        input=json.dumps([str(tmp_path), spec.decoder_start, asked]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded.engine.vocabulary.stop_ids = tuple(stops)  # type: ignore[misc]
    ended = 0
    for options, rows in zip(OPTIONS, json.loads(done.stdout), strict=True):
        said = loaded.generate(sources, **options)
        for completion, row in zip(said, rows, strict=True):
            end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
            assert completion.tokens == row[:end], options
            ended += completion.finish_reason == "stop"
    assert ended > 5
