"""What every family is measured by: recorded models of `transformers`, and ours on the same inputs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from hllm_jax.interop import write_safetensors
from hllm_jax.interop.models import read_params, with_heads_of
from hllm_jax.models import Execution, Spec
from hllm_jax.models.families import Family, families
from hllm_jax.models.families.table import Tensors
from hllm_jax.testing.models import compiled

ROOT = Path(__file__).parents[3]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
RECORDER = ROOT / "scripts" / "fixtures" / "record_families.py"
FIXTURES = ROOT / "tests" / "fixtures" / "families"
TOLERANCE = 1e-4

#: Families whose class is not in `transformers` -> the one that is the same model under other names.
SAME_MODEL = {"chatglm": "glm4"}

#: Families whose files hold the scales of norms minus one.
MINUS_ONE = ("gemma2",)

#: Our name of an output -> names of it in `transformers`.
OUTPUTS = {
    "logits": ("logits", "prediction_logits"),
    "task_logits": ("logits", "span_logits"),
    "hidden": ("last_hidden_state",),
    "pooled": ("pooler_output",),
    "pair_logits": ("seq_relationship_logits", "sop_logits", "logits"),
}


class Case:
    """One recorded model: config.json, weights by published name, inputs and outputs."""

    def __init__(self, file: Path, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        self.file, self.name, self.family = file, name, file.stem
        self.config: dict[str, Any] = json.loads(str(arrays[f"{name}/config.json"]))
        self.weights = _under(arrays, f"{name}/weights/")
        self.inputs = _under(arrays, f"{name}/inputs/")
        self.outputs = _under(arrays, f"{name}/outputs/")

    def __repr__(self) -> str:
        return f"{self.family}-{self.name}"

    @property
    def page(self) -> Family:
        """The family's page."""
        return families()[self.family]

    @property
    def spec(self) -> Spec:
        """Our spec of its config.json."""
        return self.read(self.config)

    def read(self, config: Mapping[str, Any]) -> Spec:
        """Our spec of a config.json that lies beside its tensors."""
        return with_heads_of(self.page, self.page.from_hf(config), InMemory(self.weights))

    def write(self, folder: Path) -> Path:
        """As a Hugging Face folder without a tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        write_safetensors(folder / "model.safetensors", self.weights.items())
        return folder

    def params(self, scan_layers: bool = False) -> dict[str, Any]:
        """Our parameters of its weights."""
        tensors: Tensors = InMemory(self.weights)
        return read_params(self.page.HF_NAMES, tensors, self.spec, scan_layers)


class InMemory:
    """Tensors of a checkpoint that was never a file."""

    where = "the checkpoint"

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors = tensors

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name]


def read_cases(file: Path) -> list[Case]:
    """All models of a recorded file, whose name is the family's."""
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return [Case(file, name, arrays) for name in sorted({name.split("/")[0] for name in arrays})]


@cache
def recorded() -> tuple[Case, ...]:
    """Every recorded case of every family."""
    return tuple(case for file in sorted(FIXTURES.glob("*.npz")) for case in read_cases(file))


def first_cases() -> tuple[Case, ...]:
    """The first recorded case of each family."""
    firsts: dict[str, Case] = {}
    for case in recorded():
        firsts.setdefault(case.family, case)
    return tuple(firsts.values())


def apply(
    spec: Spec, params: Any, inputs: Mapping[str, Any], segment_ids: Any = None, **execution: Any
) -> Any:
    """Our outputs by name for a recorded case's inputs, in float32."""
    model = spec.build(Execution(**{"dtype": "float32", **execution}))
    given = [jnp.asarray(inputs["tokens"])]
    more: dict[str, Any] = {"segment_ids": segment_ids}
    if "decoder_tokens" in inputs:
        given.append(jnp.asarray(inputs["decoder_tokens"]))
    if "token_types" in inputs:
        more["token_types"] = jnp.asarray(inputs["token_types"])
    out: Any = compiled(model)({"params": params}, *given, **more)
    return out._asdict() if hasattr(out, "_asdict") else {"logits": out[0]}


def differences(
    case: Case, outputs: Mapping[str, np.ndarray], spec: Spec, params: Any, **execution: Any
) -> dict[str, float]:
    """Largest absolute difference of each output, over plain, left padded and right padded rows.

    What stands at padding has no meaning and does not count; the first token's vector is what a pooler reads,
    so that pooled outputs count where it is no padding.
    """
    found: dict[str, float] = {}
    for side in ("plain", "left", "right"):
        segment_ids = None if side == "plain" else jnp.asarray(case.inputs[side])
        ours = apply(spec, params, case.inputs, segment_ids, **execution)
        for name, theirs in OUTPUTS.items():
            wanted = next((outputs[f"{side}/{t}"] for t in theirs if f"{side}/{t}" in outputs), None)
            if wanted is None or ours.get(name) is None:
                continue
            difference = np.abs(np.asarray(ours[name]) - wanted)
            if side != "plain" and "decoder_tokens" not in case.inputs:
                keep = case.inputs[side] != 0
                difference = difference[keep] if difference.ndim == 3 else difference[keep[:, 0]]
            found[name] = max(found.get(name, 0.0), float(difference.max(initial=0.0)))
    assert found, f"{case}: no output in common"
    return found


def ask_peers(command: str, *arguments: object, given: Any = None) -> str:
    """Standard output of the recorder in the peers environment; `given` is its input as JSON."""
    done = subprocess.run(
        [str(part) for part in (PEERS, RECORDER, command, *arguments)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
