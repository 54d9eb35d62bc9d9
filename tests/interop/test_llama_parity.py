"""Logits against the published Llama of `transformers`, on random weights and on SmolLM2's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from hllm_jax.interop import read_model
from hllm_jax.interop.hf import HFFolder
from hllm_jax.interop.models import read_params
from hllm_jax.models import Decoder, Execution
from hllm_jax.models.families import llama
from hllm_jax.testing.models import compiled
from tests.interop.doubles import Case, read_cases

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
RECORDER = ROOT / "scripts" / "fixtures" / "record_llama.py"
TOLERANCE = 1e-4
CASES = read_cases()


def largest_difference(case: Case, folder: Path, kernel: str, scan: bool) -> float:
    """Over plain, left padded and right padded rows; what stands at padding does not count."""
    files = HFFolder(case.write(folder))
    config = llama.from_hf(files.config)
    params = read_params(llama.HF_NAMES, files, config, scan_layers=scan)
    model = Decoder(config, Execution(dtype="float32", attention=kernel, scan_layers=scan))
    apply, variables = compiled(model), {"params": params}
    found = [np.abs(apply(variables, case.tokens)[0] - case.logits).max()]
    for segment_ids, logits in case.padded.values():
        difference = np.abs(apply(variables, case.tokens, segment_ids)[0] - logits).max(axis=-1)
        found.append(difference[segment_ids != 0].max())
    return float(max(found))


def test_the_fixture_has_what_conversions_get_wrong() -> None:
    specs = [llama.from_hf(case.config) for case in CASES.values()]
    assert len(specs) == 4
    assert {spec.tie_embeddings for spec in specs} == {True, False}
    assert all(spec.head_size * spec.heads != spec.embed or spec.heads == spec.kv_heads for spec in specs)
    assert len({spec.heads // spec.kv_heads for spec in specs}) == 4
    assert len({spec.rope_theta for spec in specs}) == 2
    assert all(np.std(case.logits) > 0.5 for case in CASES.values())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("kernel", "scan"), [("plain", False), ("auto", True)])
def test_logits_of_the_recorded_models(name: str, kernel: str, scan: bool, tmp_path: Path) -> None:
    assert largest_difference(CASES[name], tmp_path, kernel, scan) <= TOLERANCE


@pytest.mark.peers
@pytest.mark.parametrize("seed", [1, 2])
def test_logits_of_models_that_are_drawn_now(seed: int, tmp_path: Path) -> None:
    out = tmp_path / "now.npz"
    subprocess.run([PEERS, RECORDER, "--seed", str(seed), "small", out], check=True, capture_output=True)
    cases = read_cases(out)
    assert len(cases) == 4
    for name, case in cases.items():
        assert not np.array_equal(case.logits, CASES[name].logits)
        assert largest_difference(case, tmp_path / name, "auto", False) <= TOLERANCE


@pytest.mark.peers
@pytest.mark.slow
def test_logits_of_smollm2_dequantised(tmp_path: Path) -> None:
    from hllm_jax.interop.registry import fetch

    out, file = tmp_path / "smollm2.npz", fetch("smollm2-135m-instruct")
    subprocess.run([PEERS, RECORDER, "gguf", file, out], check=True, capture_output=True)
    recorded = np.load(out)
    published = read_model(file)
    assert published.config.parameters() == 134_515_008
    model = Decoder(published.config, Execution(dtype="float32"))
    variables = {"params": published.params}
    rows = [name.removeprefix("tokens/") for name in recorded if name.startswith("tokens/")]
    assert len(rows) == 4
    # Logits reach 38 here and the residual stream 25,000: float32 itself is worth 1e-4 at the worst places
    # (docstring of `nn.linear.product`), hence the precision that `LanguageModel.logits` uses too, and
    # what was recorded is float64.
    with jax.default_matmul_precision("highest"):
        for row in rows:
            logits, _ = compiled(model)(variables, recorded[f"tokens/{row}"])
            assert np.abs(np.asarray(logits) - recorded[f"logits/{row}"]).max() <= TOLERANCE


@pytest.mark.peers
def test_what_we_save_transformers_loads_with_the_same_logits(tmp_path: Path) -> None:
    """Our folder, read by their class: every key used, none missing, logits as ours."""
    from hllm_jax.interop import save_hf
    from hllm_jax.testing.models import random_tokens, tiny_config, tiny_model

    config = tiny_config(tie_embeddings=False)
    model, params = tiny_model(config, seed=3)
    save_hf(tmp_path, config, params)
    tokens = random_tokens(config, 2, 11)
    np.save(tmp_path / "tokens.npy", tokens)
    code = (
        "import sys, numpy as np, torch; from transformers import LlamaForCausalLM as M\n"
        "model, info = M.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not any(info.values()), info\n"
        "tokens = torch.tensor(np.load(sys.argv[1] + '/tokens.npy')).long()\n"
        "np.save(sys.argv[1] + '/logits.npy', model(tokens).logits.detach().float().numpy())\n"
    )
    subprocess.run([PEERS, "-c", code, tmp_path], check=True, stderr=sys.stderr)
    ours, _ = compiled(model)({"params": params}, tokens)
    assert np.abs(np.asarray(ours) - np.load(tmp_path / "logits.npy")).max() <= TOLERANCE
