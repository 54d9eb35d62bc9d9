"""`convert`: any MODEL as another kind of file, and a comparison of the two that refuses a difference."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

if TYPE_CHECKING:
    from hllm_jax.interop.gguf_export import Kind
    from hllm_jax.models.spec import Spec
    from hllm_jax.tokenizers.tokenizer import Tokenizer

Target = Literal["hf", "gguf", "orbax"]

#: What `--dtype` may be for each kind of target; the first is what is written where nothing is said.
DTYPES: dict[Target, tuple[str, ...]] = {
    "hf": ("float32", "bfloat16", "float16"),
    "orbax": ("float32", "bfloat16"),
    "gguf": ("F16", "F32", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"),
}

#: Largest mean KL divergence, in nats, that a dtype may cost; float32 costs nothing but rounding.
TOLERANCES = {
    "float32": 1e-6,
    "F32": 1e-6,
    "float16": 1e-3,
    "F16": 1e-3,
    "bfloat16": 1e-2,
    "BF16": 1e-2,
    "Q8_0": 1e-2,
}
FEW_BITS = 0.5

#: Rows and tokens that both sides read.
ROWS, LENGTH = 4, 64


class ConversionRefused(ValueError):
    """A target that cannot be written, or that says something else than its source."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far two models are apart on the same random tokens.

    Attributes:
        max_difference: largest absolute difference of a logit.
        mean_kl: mean KL divergence of the target's next-token distribution from the source's, in nats.
        agreement: share of places with the same most probable token.
    """

    max_difference: float
    mean_kl: float
    agreement: float


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: Target | None = None,
    dtype: str | None = None,
    verify: bool = False,
    tolerance: float | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Write a MODEL as a Hugging Face folder, a GGUF file or a checkpoint; it appears when it is complete.

    Args:
        source: any MODEL.
        target: the folder or file to write; nothing may be there yet.
        to: kind of target; None: `gguf` for a name that ends so, `hf` otherwise.
        dtype: of the weights, see `DTYPES`; None: the first of them.
        verify: run both on the same tokens before the target appears.
        tolerance: largest mean KL divergence in nats; None: by dtype (`TOLERANCES`).
        adapter: merged into the weights, see `open_pretrained`.

    Returns:
        `source, target, to, dtype, parameters`, for GGUF `tensors` (storage type -> count), and with `verify`
        `max_difference, mean_kl, agreement, tolerance`.

    Raises:
        ConversionRefused: something is there already, a name that belongs to another kind, a dtype that the
            kind does not have, a tolerance that is none or is not asked for, a difference above it.
        ValueError: the source cannot be read, or the format cannot say it.
    """
    path = Path(target).expanduser()
    kind: Target = to or ("gguf" if path.suffix == ".gguf" else "hf")
    dtype = DTYPES[kind][0] if dtype is None else dtype
    if dtype not in DTYPES[kind]:
        raise ConversionRefused(f"--to {kind} writes {', '.join(DTYPES[kind])}, not {dtype}")
    if tolerance is not None and not (verify and tolerance >= 0):
        raise ConversionRefused(f"--tolerance {tolerance} needs --verify, and is to be 0 or more")
    if (kind == "gguf") != (path.suffix == ".gguf"):
        raise ConversionRefused(
            f"{path}, and --to {kind}: a GGUF file, and nothing else, has a name that ends in .gguf"
        )
    if path.exists():
        raise ConversionRefused(f"{path} is there already: remove it, or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)

    from hllm_jax.training.pretrained import load_pretrained

    config, params, tokenizer = load_pretrained(source, adapter=adapter)
    done: dict[str, Any] = {
        "source": os.fspath(source),
        "target": str(path),
        "to": kind,
        "dtype": dtype,
        "parameters": config.parameters(),
    }
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        draft = Path(folder) / (path.name if kind == "gguf" else "model")
        done |= _write(draft, kind, dtype, config, params, tokenizer, source)
        del params
        if verify:
            limit = TOLERANCES.get(dtype, FEW_BITS) if tolerance is None else tolerance
            found = compare(source, draft, adapter=adapter)
            done |= {**dataclasses.asdict(found), "tolerance": limit}
            if not found.mean_kl <= limit:
                raise ConversionRefused(
                    f"{path} was not written: as {dtype} it differs from {source} by a mean KL divergence "
                    f"of {found.mean_kl:.2e} nats (limit {limit:g}), by {found.max_difference:.2e} in a logit"
                )
        shutil.move(draft, path)
    return done


def merge(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: Target | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Write a MODEL with adapters in its weights, and say how far that is from the two apart.

    Args:
        model: the base.
        adapter: a folder of `peft`'s, or a run with `lora:`.
        target, to, dtype: as of `convert`.

    Returns:
        As `convert`, and `adapter, max_difference, mean_kl, agreement`: what is written against the base with
        its adapters beside it, on the same random tokens; the cost of rounding the sum to `dtype`.

    Raises:
        LoRAError: the adapters are not those of this model.
        ConversionRefused, ValueError: as `convert`.
    """
    from flax.traverse_util import flatten_dict, unflatten_dict

    from hllm_jax.models.layout import parameter_axes
    from hllm_jax.models.lora import rounded
    from hllm_jax.training.adapters import read_adapter
    from hllm_jax.training.pretrained import load_pretrained

    done = convert(model, target, to, dtype, adapter=adapter)
    config, params, _ = load_pretrained(model, scan_layers=False)
    found = read_adapter(adapter, config)
    if found.kept != "none":
        axes = parameter_axes(config)
        flat: dict[str, Any] = flatten_dict(params, sep="/")
        params = unflatten_dict({p: rounded(p, x, axes[p], found.kept) for p, x in flat.items()}, sep="/")
    logits = _logits_on(config, {"params": params, "lora": found.tree})
    del params
    merged = load_pretrained(done["target"], scan_layers=False)
    apart = _difference(logits, _logits_on(merged.config, {"params": merged.params}))
    return {**done, "adapter": os.fspath(adapter), **dataclasses.asdict(apart)}


def export_adapter(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> dict[str, Any]:
    """Write the adapters of a run with `lora:` as a folder that `peft` loads.

    Returns:
        `source, target, base, parameters` (of the adapters).

    Raises:
        LoRAError: the run has no adapters, or the format no name for one of them.
        ConversionRefused: something is there already.
    """
    import jax

    from hllm_jax.training.adapters import adapter_of, checkpoint_with_adapters, save_adapter
    from hllm_jax.training.pretrained import spec_of

    path = Path(target).expanduser()
    if path.exists():
        raise ConversionRefused(f"{path} is there already: remove it, or choose another name")
    folder, manifest = checkpoint_with_adapters(source)
    found = adapter_of(folder, manifest)
    save_adapter(path, spec_of(folder, manifest), found)
    count = sum(leaf.size for leaf in jax.tree.leaves(found.tree) if leaf.ndim)
    return {"source": os.fspath(source), "target": str(path), "base": found.base, "parameters": count}


def compare(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    seed: int = 0,
    adapter: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Run two MODELs in float32 on the same random tokens, one after the other.

    Args:
        source, target: the models.
        seed: of the tokens.
        adapter: of the source, merged into it.

    Raises:
        ConversionRefused: their vocabularies or architectures differ.
    """
    from hllm_jax.training.pretrained import load_pretrained

    logits: list[np.ndarray] = []
    vocabulary = 0
    for model, beside in ((source, adapter), (target, None)):
        config, params, _ = load_pretrained(model, scan_layers=False, adapter=beside)
        if vocabulary not in (0, config.vocab_size):
            raise ConversionRefused(f"{source} has {vocabulary} ids, {target} has {config.vocab_size}")
        vocabulary = config.vocab_size
        logits.append(_logits_on(config, {"params": params}, seed))
        del params
    return _difference(*logits)


def _logits_on(config: Spec, variables: dict[str, Any], seed: int = 0) -> np.ndarray:
    """Logits of a model on random tokens, see `_logits`."""
    from hllm_jax.models.config import Execution

    length = min(LENGTH, config.max_length)
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (ROWS, length)).astype(np.int32)
    return _logits(config.build(Execution(dtype="float32")), variables, tokens)


def _difference(source: np.ndarray, target: np.ndarray) -> Comparison:
    ours, theirs = _log_softmax(source), _log_softmax(target)
    kl = np.sum(np.exp(ours) * (ours - theirs), axis=-1)
    return Comparison(
        max_difference=float(np.abs(source - target).max()),
        mean_kl=float(kl.mean()),
        agreement=float(np.mean(ours.argmax(-1) == theirs.argmax(-1))),
    )


def _logits(model: Any, variables: Any, tokens: np.ndarray) -> np.ndarray:
    """float64 `[ROWS, L, V]`; an encoder-decoder writes the tokens that it reads."""
    import jax

    from hllm_jax.models.encoder_decoder import EncoderDecoder

    given = [tokens, tokens] if isinstance(model, EncoderDecoder) else [tokens]

    def run(variables: Any) -> Any:
        return model.apply(variables, *given)

    with jax.default_matmul_precision("highest"):
        out = jax.jit(run)(variables)
    said = out.logits if hasattr(out, "logits") else out[0]
    if said is None:
        said = out.hidden
    return np.asarray(said, np.float64)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def _write(
    draft: Path,
    kind: Target,
    dtype: str,
    config: Spec,
    params: Any,
    tokenizer: Tokenizer | None,
    source: str | os.PathLike[str],
) -> dict[str, Any]:
    from hllm_jax.interop.sentence_transformers import read_pooling, write_pooling
    from hllm_jax.models.spec import EncoderConfig

    pooling = read_pooling(source) if isinstance(config, EncoderConfig) else None
    if kind == "gguf":
        from hllm_jax.interop.gguf_export import save_gguf

        stored_as = cast("Kind", dtype)
        return {"tensors": save_gguf(draft, config, params, tokenizer, kind=stored_as, pooling=pooling)}

    import jax
    import ml_dtypes

    wanted = np.dtype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype))

    def stored(leaf: Any) -> np.ndarray:
        return np.asarray(leaf).astype(wanted, copy=False)

    params = jax.tree.map(stored, params)
    if kind == "hf":
        from hllm_jax.interop.models import save_hf

        save_hf(draft, config, params, tokenizer)
    else:
        from hllm_jax.training.pretrained import save_weights

        save_weights(draft, config, params, tokenizer)
    if pooling is not None:
        write_pooling(draft, pooling, config.embed)
    return {}
