"""Reading config.json: keys are taken, refused, known to be silent, or warned of; both spellings of RoPE."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from hllm_jax.models.spec import StackConfig
from hllm_jax.nn.config import Activation, RopeScaling

log = logging.getLogger(__name__)

# What config.json may say that has no effect on the logits.
SILENT = frozenset(
    {
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cls_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "label2id",
        "mask_token_id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "use_cache",
        "_name_or_path",
    }
)

#: `hidden_act` of config.json to our name.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class ConfigRefused(ValueError):
    """A published config that asks for what is not done here, or ours that the format cannot say."""


class Keys:
    """The keys of a published config while a page takes them.

    Args:
        published: config.json, or the metadata of a GGUF file.
        silent: keys of this family, beside those of all, that change no logits.
        prefix: of every key (`"llama."` in GGUF).
        where: name of the file for messages.
    """

    def __init__(
        self,
        published: Mapping[str, Any],
        silent: tuple[str, ...] = (),
        prefix: str = "",
        where: str = "config.json",
    ) -> None:
        self.published = published
        self.left = {key: value for key, value in published.items() if key not in SILENT | set(silent)}
        self.prefix, self.where = prefix, where
        self.wrong: list[str] = []

    def take(self, key: str, *default: Any) -> Any:
        """The value of a key, or the default where it is missing or null.

        It must be of the kind of the default: a truth, a whole number, a finite number, a text, a list, a
        mapping; of config.json, a whole number where there is no default. A default of None allows any.

        Raises:
            ConfigRefused: it is missing and there is no default, or it is of another kind.
        """
        full = self.prefix + key
        value = self.left.pop(full, None)
        if value is None and not default:
            raise ConfigRefused(f"{self.where} has no {full!r}")
        if value is None:
            return default[0]
        like = default[0] if default else None if self.prefix else 0
        wanted = _misfit(value, like)
        if wanted:
            raise ConfigRefused(f"{self.where}: {full} is {value!r}, expected {wanted}")
        return value

    def nullable(self, key: str, missing: Any) -> Any:
        """The value of a key, None where it is null; `missing` where it is not there."""
        full = self.prefix + key
        return self.left.pop(full) if full in self.left else missing

    def only(self, key: str, *allowed: Any) -> None:
        """Note a refusal where a key has another value than these; the first is what it means if missing."""
        value = self.nullable(key, None)
        if value is not None and value not in allowed:
            self.refuse(
                f"{self.prefix}{key} {value!r}, only {' or '.join(map(repr, allowed))} is implemented"
            )

    def refuse(self, reason: str) -> None:
        """Note a refusal; `finish` raises all of them."""
        self.wrong.append(reason)

    def activation(self, key: str, default: str) -> Activation:
        """The activation that a key names."""
        name = self.take(key, default)
        if name not in ACTIVATIONS:
            self.refuse(f"{self.prefix}{key} {name!r}, only {', '.join(ACTIVATIONS)} are implemented")
        return ACTIVATIONS.get(name, "silu")

    def ids(self, key: str, default: int) -> tuple[int, ...]:
        """The ids of tokens that a key names, one or a list.

        Raises:
            ConfigRefused: they are no whole numbers.
        """
        full = self.prefix + key
        value = self.published.get(full)
        if value is None:
            return (default,)
        ids = tuple(value) if isinstance(value, list) else (value,)
        if any(_misfit(number, 0) for number in ids):
            raise ConfigRefused(f"{self.where}: {full} is {value!r}, expected the id of a token, or a list")
        return ids

    def windows(self, window: int | None, kinds: Sequence[str]) -> dict[str, Any]:
        """`attention_pattern` and `window` of a spec.

        Args:
            window: tokens that a layer with a window sees, itself included.
            kinds: of each layer, `"full…"` and `"global"`, or `"sliding…"` and `"local"`, as `layer_types`
                has them; the shortest period that gives them is found.
        """
        known = {"full": "full", "global": "full", "sliding": "window", "local": "window"}
        told = [known.get(kind.removesuffix("_attention")) for kind in kinds]
        if None in told:
            self.refuse(f"layers of the kind {kinds[told.index(None)]!r}, which is not implemented")
            return {}
        fits = (n for n in range(1, len(told) + 1) if len(told) % n == 0)
        period = next(n for n in fits if told == told[:n] * (len(told) // n))
        pattern = tuple(told[:period])
        return {"attention_pattern": pattern, "window": window if "window" in pattern else None}

    def rope(self, default_fraction: float = 1.0) -> dict[str, Any]:
        """`rope_theta`, `rope_fraction` and `rope_scaling` of a spec, from either spelling, or from two that
        agree."""
        older, told = dict(self.take("rope_scaling", {})), dict(self.take("rope_parameters", {}))
        for said in (older, told):
            if "type" in said:
                said.setdefault("rope_type", said.pop("type"))
        differ = [key for key in older if told and told.get(key) != older[key]]
        if differ:
            self.refuse(
                f"rope_scaling and rope_parameters differ in {', '.join(differ)} "
                f"({older[differ[0]]!r} and {told.get(differ[0])!r}): leave one of them out"
            )
        told = older | told
        theta = self.take("rope_theta", 10000.0)
        fraction = self.take("partial_rotary_factor", default_fraction)
        kind = told.pop("rope_type", None) or "default"
        theta, fraction = told.pop("rope_theta", theta), told.pop("partial_rotary_factor", fraction)
        return {
            "rope_theta": float(theta),
            "rope_fraction": float(fraction),
            "rope_scaling": self._scaling(kind, told),
        }

    def _scaling(self, kind: str, told: dict[str, Any]) -> RopeScaling | None:
        if kind == "default":
            return None
        try:
            if kind == "linear":
                return RopeScaling(kind="linear", factor=float(told["factor"]))
            if kind == "llama3":
                return RopeScaling(
                    kind="llama3",
                    factor=float(told["factor"]),
                    low=float(told["low_freq_factor"]),
                    high=float(told["high_freq_factor"]),
                    original_length=int(told["original_max_position_embeddings"]),
                )
        except KeyError as error:
            self.refuse(f"RoPE scaling {kind!r} lacks {error}")
            return None
        self.refuse(f"RoPE scaling {kind!r}, only 'default', 'linear' and 'llama3' are implemented")
        return None

    def finish(self) -> None:
        """Say what is left over.

        Raises:
            ConfigRefused: with every refusal that was noted.
        """
        if self.wrong:
            raise ConfigRefused(f"{self.where}: " + "; ".join(self.wrong))
        unknown = sorted(key for key, value in self.left.items() if value not in (None, False, "", [], {}))
        if unknown and not self.prefix:
            log.warning(
                "%s: keys that are not known here, and so not obeyed: %s", self.where, ", ".join(unknown)
            )


def _misfit(value: Any, like: Any) -> str | None:
    """What a value should have been, where it is not of the kind of another one."""
    if isinstance(like, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(like, numbers.Integral):
        fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return None if fits else "a whole number"
    if isinstance(like, numbers.Real):
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
        return None if fits else "a finite number"
    for kind, name in ((str, "a text"), (list, "a list"), (Mapping, "a mapping")):
        if isinstance(like, kind):
            return None if isinstance(value, kind) else name
    return None


def rope_to_hf(spec: StackConfig) -> dict[str, Any]:
    """RoPE of a spec in both spellings, `rope_theta` with `rope_scaling` and `rope_parameters`."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.rope_theta}
    published: dict[str, Any] = {"rope_theta": spec.rope_theta}
    if spec.rope_fraction != 1.0:
        parameters["partial_rotary_factor"] = published["partial_rotary_factor"] = spec.rope_fraction
    if spec.rope_scaling is not None:
        s = spec.rope_scaling
        parameters |= {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            parameters |= {
                "low_freq_factor": s.low,
                "high_freq_factor": s.high,
                "original_max_position_embeddings": s.original_length,
            }
        apart = ("rope_theta", "partial_rotary_factor")
        published["rope_scaling"] = {k: v for k, v in parameters.items() if k not in apart}
    return {**published, "rope_parameters": parameters}


def layer_types(spec: StackConfig) -> list[str]:
    """Kind of each layer as `layer_types` of config.json has it."""
    names = {"full": "full_attention", "window": "sliding_attention"}
    pattern = spec.attention_pattern
    return [names[pattern[layer % len(pattern)]] for layer in range(spec.layers)]


def refuse_unsaid(spec: StackConfig, said: StackConfig, name: str) -> None:
    """Compare a spec with what its export says when it is read again.

    Args:
        spec: what is exported.
        said: the spec that the written config gives.
        name: of the format, for the message.

    Raises:
        ConfigRefused: naming each field that the format cannot say.
    """
    from hllm_jax.config.convert import diff, to_dict

    sizes = {"head_dim": spec.head_size, "mlp": spec.mlp_size}
    also = {"head_dim": said.head_size, "mlp": said.mlp_size}
    # What training alone reads is not part of a published config, and no reason to refuse.
    free = {"mlp_multiple", "init", "init_std", "dropout", "attention_dropout", "mlp_dropout"}
    free |= {f"experts.{name}" for name in ("capacity_factor", "load_balance", "router_z_loss")}
    lost = [
        f"{key} is {old!r}"
        for key, old, _ in diff(to_dict(spec) | sizes, to_dict(said) | also)
        if key not in free
    ]
    if lost:
        raise ConfigRefused(f"{name} cannot say: " + ", ".join(lost))


def activation_to_hf(activation: Activation) -> str:
    """Our name of an activation as config.json has it."""
    names = {"gelu_tanh": "gelu_new"}
    return names.get(activation, activation)
