"""How a model is computed (`Execution`), and the sections `model:` (what it is and how) and `lora:`."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import TYPE_CHECKING, Literal

from hllm_jax.config.declare import Invalid, config
from hllm_jax.models.spec import DecoderConfig, EncoderConfig, EncoderDecoderConfig, Spec
from hllm_jax.nn.config import Kernel

if TYPE_CHECKING:
    from hllm_jax.models import Model

Remat = Literal["none", "selective", "full", "offload"]
Dtype = Literal["auto", "float32", "bfloat16"]


@config
class Execution:
    """How a model is computed; nothing here changes what it is.

    Attributes:
        dtype: of activations and multiplications; `"auto"`: float32 on CPU, bfloat16 elsewhere.
        param_dtype: the parameters are kept in.
        scan_layers: one traced block over stacked weights (compile time does not grow with depth), or one
            block per layer (fastest decoding).
        remat: what the backward pass computes again: nothing, all but matrix products and attention
            (`"selective"`), or each whole block (`"full"`, and `"offload"`, which keeps what goes into the
            blocks in the memory of the host meanwhile).
        attention: the kernel, see `nn.attention`.
    """

    dtype: Dtype = "auto"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = False
    remat: Remat = "none"
    attention: Kernel = "auto"

    def resolve(self) -> Execution:
        """The same with `dtype` decided for the platform it is traced for (this may start the backend)."""
        if self.dtype != "auto":
            return self
        from hllm_jax.nn.target import target_platform

        dtype: Dtype = "float32" if target_platform() == "cpu" else "bfloat16"
        return dataclasses.replace(self, dtype=dtype)


@config
class LoRAConfig:
    """The `lora:` section: train low-rank adapters, and leave the weights as they are.

    Attributes:
        rank: r; columns of A and rows of B.
        alpha: the change is scaled by alpha / rank.
        targets: names of weights, `*` stands for anything: `attention/query`, `mlp/*`, `head`, `embed`. What
            a name means is the same in every layer. `hllm inspect CONFIG` shows the names.
        rslora: scale by alpha / √rank instead (Kalajdzievski 2023).
        dora: also train the length of each column (Liu et al. 2024).
        dropout: share of the input that an adapter does not see in training.
        base: how the weights of the blocks are kept meanwhile: as `model.param_dtype` says, in 8 bits, or in
            4-bit NormalFloat with double quantisation (Dettmers et al. 2023); see `nn/quantised.py`.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("attention/*", "mlp/*")
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    base: Literal["none", "int8", "nf4"] = "none"

    def __post_init__(self) -> None:
        Invalid.check(
            [
                (self.rank < 1, "rank", f"{self.rank}: at least 1"),
                (self.alpha <= 0, "alpha", f"{self.alpha}: above 0"),
                (not self.targets, "targets", "name at least one weight, as in attention/query or mlp/*"),
                (not 0 <= self.dropout < 1, "dropout", f"{self.dropout}: at least 0 and below 1"),
            ]
        )

    @property
    def scale(self) -> float:
        """What the product A·B is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


#: Fields of `ModelConfig` that spell an architecture out.
SPELLED = ("decoder", "encoder", "encoder_decoder")


@config
class ModelConfig:
    """The `model:` section. Exactly one of `load`, `preset`, `decoder`, `encoder` and `encoder_decoder` says
    what the model is.

    Attributes:
        load: any MODEL whose weights to start from; it brings its architecture.
        preset: a published size by name, with fresh weights.
        decoder, encoder, encoder_decoder: an architecture spelled out, with fresh weights.
        max_length: replaces the architecture's, if given.
        dropout: replaces the architecture's, if given; those inside attention and feed-forward networks too,
            where the architecture has them.
        dtype, param_dtype, scan_layers, remat, attention: see `Execution`.
    """

    load: str | None = None
    preset: str | None = None
    decoder: DecoderConfig | None = None
    encoder: EncoderConfig | None = None
    encoder_decoder: EncoderDecoderConfig | None = None
    max_length: int | None = None
    dropout: float | None = None
    dtype: Dtype = "auto"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = False
    remat: Remat = "none"
    attention: Kernel = "auto"

    def __post_init__(self) -> None:
        ways = ("load", "preset", *SPELLED)
        given = [f for f in ways if getattr(self, f) is not None]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise Invalid(
                (given[-1] if given else "preset", f"give exactly one of {', '.join(ways)}; {said} given")
            )
        if self.preset is not None:
            from hllm_jax.models.families import presets

            known = presets()
            if self.preset not in known:
                near = difflib.get_close_matches(self.preset, known, 1, 0)
                raise Invalid(
                    (
                        "preset",
                        f"{self.preset!r} is no preset; nearest: {near[0]!r}; known: {', '.join(known)}",
                    )
                )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise Invalid(("dropout", f"{self.dropout} must be at least 0 and below 1"))

    @property
    def execution(self) -> Execution:
        """The fields that say how to compute."""
        return Execution(
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            scan_layers=self.scan_layers,
            remat=self.remat,
            attention=self.attention,
        )

    def spec(self, vocab_size: int | None = None, loaded: Spec | None = None) -> Spec:
        """The architecture.

        Args:
            vocab_size: of the tokenizer. A fresh model takes it as its own; None keeps the config's.
            loaded: the architecture of `load` (`interop.read_config(load)`), which this room cannot read.

        Raises:
            ValueError: a loaded model has fewer embeddings than the tokenizer has ids, or `load` is set and
                `loaded` was not passed.
        """
        changes: dict[str, int | float] = {}
        if self.max_length is not None:
            changes["max_length"] = self.max_length
        if self.load is not None:
            if loaded is None:
                raise ValueError(
                    f"model.load is {self.load!r}: pass loaded=read_config(load) of hllm_jax.interop"
                )
            if vocab_size is not None and vocab_size > loaded.vocab_size:
                raise ValueError(
                    f"the tokenizer has {vocab_size} ids, {self.load} has {loaded.vocab_size} embeddings: "
                    "use the tokenizer that belongs to the model"
                )
            return dataclasses.replace(self._dropped(loaded), **changes)  # pyrefly: ignore
        if self.preset is not None:
            from hllm_jax.models.families import presets

            spec = presets()[self.preset]
        else:
            (spec,) = (given for f in SPELLED if (given := getattr(self, f)) is not None)
        if vocab_size is not None:
            changes["vocab_size"] = vocab_size
        return dataclasses.replace(self._dropped(spec), **changes)  # pyrefly: ignore

    def _dropped(self, spec: Spec) -> Spec:
        """The architecture with this section's dropout."""
        if self.dropout is None:
            return spec
        inner = [name for name in ("attention_dropout", "mlp_dropout") if getattr(spec, name) > 0]
        changes = dict.fromkeys(("dropout", *inner), self.dropout)
        return dataclasses.replace(spec, **changes)  # pyrefly: ignore

    def build(self, vocab_size: int | None = None, loaded: Spec | None = None) -> Model:
        """The Linen module, without parameters; arguments as in `spec`."""
        return self.spec(vocab_size, loaded).build(self.execution)
