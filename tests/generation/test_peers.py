"""Greedy, beam search and the repetition penalty against `generate` of the published implementation."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from hllm_jax.generation.language_model import LanguageModel
from hllm_jax.interop import save_hf
from tests.generation.doubles import TINY, decoder, tokenizer

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PEERS.exists(), reason="needs the peers environment: `make peers`"),
]

PROGRAM = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
folder, asked = json.load(sys.stdin)
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
answers = []
for prompt, stops, options in asked:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=stops,
                         pad_token_id=0, **options)
    answers.append(out[:, len(prompt):].tolist())
print(json.dumps(answers))
"""


def test_tokens_equal_those_of_transformers(tmp_path):
    model, variables = decoder()
    save_hf(tmp_path, TINY, jax.tree.map(np.asarray, variables["params"]))
    rng = np.random.default_rng(3)
    prompts = [[1, *rng.integers(5, 261, n).tolist()] for n in (1, 4, 9, 20)]
    # Ids that these weights like to say, so that beams of different lengths end and compete.
    likely = LanguageModel(model, variables, tokenizer()).generate(
        prompts, temperature=1.0, max_tokens=8, n=4
    )
    counts = np.bincount(np.concatenate([completion.tokens for completion in likely]), minlength=261)
    stops = [int(i) for i in np.argsort(-counts)[:8]]
    cases = []
    for prompt in prompts:
        cases += [
            (prompt, stops, {"max_new_tokens": 16}),
            (prompt, stops, {"max_new_tokens": 16, "repetition_penalty": 1.7}),
            *(
                (prompt, stops, {"max_new_tokens": 10, "num_beams": beams, "length_penalty": penalty, "n": n})
                for beams, penalty, n in ((4, 1.0, 1), (3, 0.0, 3), (5, 2.0, 2), (4, -1.0, 1))
            ),
        ]
    wanted = [
        (prompt, stops, {("num_return_sequences" if k == "n" else k): v for k, v in options.items()})
        for prompt, stops, options in cases
    ]
    done = subprocess.run(
        [PEERS, "-c", PROGRAM],
        input=json.dumps([str(tmp_path), wanted]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours = LanguageModel(model, variables, tokenizer(tuple(stops)))
    ended = 0
    for (prompt, _, options), peer in zip(cases, json.loads(done.stdout), strict=True):
        options = dict(options, max_tokens=options["max_new_tokens"])
        del options["max_new_tokens"]
        said = ours.generate([prompt], temperature=0.0, **options)
        for completion, row in zip(said, peer, strict=True):
            end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
            assert completion.tokens == row[:end], (prompt, options)
            ended += completion.finish_reason == "stop"
    assert ended > 5
