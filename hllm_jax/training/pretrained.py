"""Initial weights from anywhere: our own runs and checkpoints, and other people's files."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hllm_jax.interop.models import Place, open_model
from hllm_jax.interop.registry import Source, resolve
from hllm_jax.models.config import LoRAConfig, ModelConfig
from hllm_jax.models.layout import Model, is_stacked, stack_layers, unstack_layers
from hllm_jax.models.lora import check_adapters
from hllm_jax.models.spec import Spec, spec_from_dict, spec_to_dict
from hllm_jax.parallel import distributed
from hllm_jax.parallel.config import DistributedConfig
from hllm_jax.parallel.layout import Load
from hllm_jax.parallel.state import Predicate, TrainState, matching, nothing
from hllm_jax.tokenizers import load_tokenizer
from hllm_jax.tokenizers.errors import NoTokenizer
from hllm_jax.tokenizers.tokenizer import Tokenizer
from hllm_jax.training.adapters import (
    Base,
    adapter_of,
    fresh_names,
    read_adapter,
    unused_names,
    with_adapter,
)
from hllm_jax.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    Manifest,
    read_manifest,
    read_variables,
)
from hllm_jax.training.run import Run


class Pretrained(NamedTuple):
    """A model with weights.

    Attributes:
        config: the architecture.
        params: the tree of the collection `params`, NumPy arrays.
        tokenizer: the one it was trained with; None where a foreign folder holds none.
    """

    config: Spec
    params: dict[str, Any]
    tokenizer: Tokenizer | None


class OpenPretrained(NamedTuple):
    """A model whose weights are not read yet.

    Attributes:
        config: the architecture.
        tokenizer: the one it was trained with; None where a foreign folder holds none.
        read: `(scan_layers, place) -> tree` of the collection `params`: the layers stacked or not (None: as
            they are stored), each leaf what `place(path, array)` makes of it (None: NumPy arrays).
    """

    config: Spec
    tokenizer: Tokenizer | None
    read: Callable[[bool | None, Place | None], dict[str, Any]]


def load_pretrained(
    model: str | os.PathLike[str] | Source,
    scan_layers: bool | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> Pretrained:
    """The architecture, weights (NumPy arrays) and tokenizer of any MODEL.

    Args:
        model: a run folder (its newest checkpoint), a checkpoint, a Hugging Face folder, a GGUF file, LLaMA
            in Meta's names or a registered name.
        scan_layers: whether the layers come stacked; None as they are stored.
        adapter: see `open_pretrained`.

    Raises:
        CheckpointError: a run without a checkpoint, a damaged one, or a tokenizer that is not its own.
        UnknownModel: `model` names nothing.
    """
    opened = open_pretrained(model, adapter)
    return Pretrained(opened.config, opened.read(scan_layers, None), opened.tokenizer)


def open_pretrained(
    model: str | os.PathLike[str] | Source, adapter: str | os.PathLike[str] | None = None
) -> OpenPretrained:
    """All of a MODEL but its weights, which are read when they are asked for, tensor by tensor.

    A run with `lora:` is a model too: its base, with its adapters merged into each weight as it is read.

    Args:
        model: see `load_pretrained`.
        adapter: a folder of `peft`'s or a run with `lora:`; its adapters are merged in the same way.

    Raises:
        LoRAError: no adapters, or those of another model (some of it only when the weights are read).
        ValueError: otherwise as `load_pretrained`.
    """
    if adapter is not None:
        opened = open_pretrained(model)
        found = read_adapter(adapter, opened.config)
        read_merged = with_adapter(opened.read, opened.config, found, str(model))
        return opened._replace(config=found.config or opened.config, read=read_merged)
    source = model if isinstance(model, Source) else resolve(model)
    if source.run is None:
        published = open_model(source)

        def read(scan_layers: bool | None, place: Place | None) -> dict[str, Any]:
            return published.read(bool(scan_layers), place)

        return OpenPretrained(published.config, published.tokenizer, read)
    folder = checkpoint_of(source)
    manifest = read_manifest(folder)
    config = spec_of(folder, manifest)
    own = _own_tokenizer(source.run / "tokenizer", folder, manifest)
    if (base := manifest.facts.get("base")) is not None:
        try:
            opened = open_pretrained(base["load"])
        except ValueError as error:
            raise CheckpointError(
                f"{folder} holds adapters, and their base {base['load']} is not there; if it is elsewhere, "
                f"give that as the model, and {source.run} as the adapter ({error})"
            ) from None
        return OpenPretrained(
            config,
            own,
            with_adapter(opened.read, opened.config, adapter_of(folder, manifest), base["load"]),
        )

    def read_own(scan_layers: bool | None, place: Place | None) -> dict[str, Any]:
        params = with_layers(read_variables(folder)["params"], config, scan_layers)
        if place is None:
            return params
        # Each array is let go of as soon as it is placed.
        flat: dict[str, Any] = flatten_dict(params, sep="/")
        del params
        return unflatten_dict({path: place(path, flat.pop(path)) for path in list(flat)}, sep="/")

    return OpenPretrained(config, own, read_own)


def _own_tokenizer(path: Path, folder: Path, manifest: Manifest) -> Tokenizer | None:
    """The tokenizer of a run, which must be the one of the checkpoint; None where neither has one."""
    wanted = manifest.facts.get("tokenizer")
    try:
        tokenizer = load_tokenizer(path)
    except NoTokenizer:
        if wanted is not None:
            raise
        return None
    if wanted not in (None, tokenizer.fingerprint):
        raise CheckpointError(
            f"{path} is not the tokenizer that {folder} was trained with: its fingerprint is "
            f"{tokenizer.fingerprint[:12]}, {str(wanted)[:12]} is wanted"
        )
    return tokenizer


def save_weights(
    folder: Path, config: Spec, params: dict[str, Any], tokenizer: Tokenizer | None = None
) -> None:
    """Write weights as a run folder that can be loaded (a MODEL), but not resumed.

    Args:
        folder: gets `checkpoints/00000000`, and `tokenizer/` where there is one.
        config: the architecture.
        params: the tree of the collection `params`, stacked or not.
        tokenizer: the one that belongs to the weights.
    """
    facts: dict[str, Any] = {"model": spec_to_dict(config)}
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer")
        facts["tokenizer"] = tokenizer.fingerprint
    state = TrainState(
        step=np.zeros((), np.int32),
        trainable={"params": jax.tree.map(jnp.asarray, params)},
        frozen={},
        opt_state=(),
        rng=np.zeros((2,), np.uint32),
    )
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(state, facts, weights_only=True)


class Beginning(NamedTuple):
    """What `begin` returns.

    Attributes:
        tokenizer: of the run.
        model: without parameters; its vocabulary holds every id of the tokenizer.
        params: reads the initial weights of `model.load` onto their devices, for `Layout.init`; None for
            fresh ones, and for a run that is resumed.
    """

    tokenizer: Tokenizer
    model: Model
    params: Load | None


class HeadBeginning(NamedTuple):
    """What `begin_with_head` returns: as `Beginning`, and one thing more.

    Attributes:
        fresh: the variables that nothing is loaded for, for `Layout.init`.
    """

    tokenizer: Tokenizer
    model: Model
    params: Load | None
    fresh: Predicate


def begin(
    run: Run,
    model: ModelConfig,
    make_tokenizer: Callable[[], Tokenizer] | None = None,
    adapters: LoRAConfig | None = None,
) -> Beginning:
    """Tokenizer, model and initial weights of a run, new or resumed.

    A model that is loaded brings its tokenizer. A run that is resumed has both in its own folder, so what it
    once started from may be gone.

    Args:
        run: its folder keeps the tokenizer.
        model: the `model` section.
        make_tokenizer: for fresh weights.
        adapters: what is trained is these; the weights of `model.load` are their base, which is read again
            where the run is resumed.

    Raises:
        ValueError: the loaded model has no tokenizer.
    """
    return Beginning(*_begin(run, model, make_tokenizer, adapters, lambda spec: spec)[:3])


def begin_with_head(
    run: Run, model: ModelConfig, head: Callable[[Spec], Spec], adapters: LoRAConfig | None = None
) -> HeadBeginning:
    """As `begin`, of the loaded model with another head; with `adapters` that is trained beside them.

    Args:
        run, model, adapters: see `begin`.
        head: from an architecture to the same with the head (`with_head`, `with_score`).

    Raises:
        ValueError: the loaded model has no tokenizer, or cannot have such a head.
    """
    return _begin(run, model, None, adapters, head)


def _begin(
    run: Run,
    model: ModelConfig,
    make_tokenizer: Callable[[], Tokenizer] | None,
    adapters: LoRAConfig | None,
    head: Callable[[Spec], Spec],
) -> HeadBeginning:
    def make() -> Tokenizer:
        assert make_tokenizer is not None, "fresh weights need a tokenizer"
        return make_tokenizer()

    if run.resumed is not None:
        folder = run.checkpoints.path(run.resumed)
        tokenizer = run.tokenizer(make)
        saved = spec_of(folder, read_manifest(folder)) if model.load is not None else None
        if adapters is not None and model.load is not None:
            opened = open_pretrained(model.load)
            unused = unused_names(opened.config, head(opened.config))
            run.base = Base(model.load, opened, model.scan_layers, adapters.base, unused)
        return HeadBeginning(tokenizer, model.build(tokenizer.vocab_size, loaded=saved), None, nothing)
    if model.load is None:
        tokenizer = run.tokenizer(make)
        return HeadBeginning(tokenizer, model.build(tokenizer.vocab_size), None, nothing)
    loaded = open_pretrained(model.load)
    if loaded.tokenizer is None:
        raise ValueError(
            f"model.load={model.load} holds no tokenizer, and training needs the one it belongs to"
        )
    own = loaded.tokenizer
    tokenizer = run.tokenizer(lambda: own)
    spec = head(loaded.config)
    built = model.build(tokenizer.vocab_size, loaded=spec)
    unused = unused_names(loaded.config, spec)
    fresh = matching(*(f"params/{name}" for name in sorted(fresh_names(loaded.config, spec))))
    if adapters is not None:
        check_adapters(adapters, built.config)
        run.base = Base(model.load, loaded, model.scan_layers, adapters.base, unused)
        return HeadBeginning(tokenizer, built, run.base, fresh)

    def read(place: Place | None) -> dict[str, Any]:
        params = loaded.read(model.scan_layers, place)
        return {name: part for name, part in params.items() if name not in unused}

    return HeadBeginning(tokenizer, built, read, fresh)


def make_base(load: str | None, base: str | None, processes: DistributedConfig) -> None:
    """Train the model that a run starts from, if that is a run folder which is not finished.

    Args:
        load: `model.load`.
        base: a config, shipped or a file; its `run.dir` becomes `load`.
        processes: of the run; all of them train its base too.
    """
    if load is None or base is None:
        return
    distributed.start(processes)
    folder = Path(load).expanduser()
    begin = _unfinished(folder, base)
    # All look before the first of them begins, and go on when process 0 has written the last checkpoint.
    values = {f"{folder} is to be trained first": begin is not None}
    distributed.agree("base", values, processes.barrier_seconds)
    if begin is not None:
        begin()
        distributed.barrier("base", processes.barrier_seconds)


def _unfinished(folder: Path, base: str) -> Callable[[], Any] | None:
    """What trains the model of a run folder; None where that is done, or where other files lie there."""
    saved = folder / "config.yaml"
    if folder.exists() and not saved.is_file():
        return None
    from hllm_jax.recipes import load_run_config

    recipe, config = load_run_config(saved if saved.is_file() else base, [f"run.dir={folder}"])
    wanted = config.train.steps
    latest = Checkpoints(folder / "checkpoints", own=False).latest()
    done = latest is not None and (wanted is None or latest >= wanted)
    return None if done else functools.partial(recipe.main, config)


def checkpoint_of(source: Source) -> Path:
    """The checkpoint folder that a run (its newest) or a checkpoint means.

    Raises:
        CheckpointError: the run has none.
    """
    assert source.run is not None
    assert source.path is not None
    checkpoints = Checkpoints(source.run / "checkpoints", own=False)
    if source.step is not None:
        return source.path
    step = checkpoints.latest()
    if step is None:
        raise CheckpointError(
            f"{source.run} has no checkpoint yet: train it first (`hllm train {source.run}`)"
        )
    return checkpoints.path(step)


def spec_of(folder: Path, manifest: Manifest) -> Spec:
    """The architecture that a manifest describes."""
    try:
        return spec_from_dict(manifest.facts["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} does not say what its model is: {error}") from None


def with_layers(params: dict[str, Any], config: Spec, scan_layers: bool | None) -> dict[str, Any]:
    """The same parameters with the layers stacked or not."""
    if scan_layers is None or scan_layers == is_stacked(params):
        return params
    return stack_layers(params, len(config.attention_pattern)) if scan_layers else unstack_layers(params)
