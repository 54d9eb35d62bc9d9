"""What the descendants of BERT share: keys of config.json, names of tensors, and which heads a class has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hllm_jax.models.families.forms import Matrix, Same, Vector
from hllm_jax.models.families.published import Keys, activation_to_hf
from hllm_jax.models.families.table import Row, row
from hllm_jax.models.spec import EncoderConfig
from hllm_jax.models.task import TaskConfig

#: Keys that change no logits: what only decoders, old versions or training read, and ids of tokens.
SILENT = (
    "classifier_dropout",
    "classifier_dropout_prob",
    "directionality",
    "down_scale_factor",
    "gap_size",
    "gradient_checkpointing",
    "layers_to_keep",
    "net_structure_type",
    "num_labels",
    "num_memory_blocks",
    "output_past",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
)

#: Old spellings of the parameters of a LayerNorm.
OLDER = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))

#: Ending of the name of a class in `architectures`, and the heads of pretraining that it has beside the body.
CLASSES: dict[str, tuple[str, ...]] = {
    "ForPreTraining": ("masked_head", "pooler", "pair_head"),
    "ForMaskedLM": ("masked_head",),
    "ForNextSentencePrediction": ("pooler", "pair_head"),
    "Model": ("pooler",),
    "ForSequenceClassification": ("pooler",),
    "ForTokenClassification": (),
    "ForQuestionAnswering": (),
}

#: The same for the kinds of a task.
TASKS = {"ForSequenceClassification": "sequence", "ForTokenClassification": "tokens"}
TASKS["ForQuestionAnswering"] = "span"


def body_from_hf(keys: Keys) -> dict[str, Any]:
    """The fields of a spec that every descendant's config.json has."""
    keys.only("position_embedding_type", "absolute")
    keys.only("is_decoder", False)
    keys.only("add_cross_attention", False)
    heads = keys.take("num_attention_heads")
    return {
        "vocab_size": keys.take("vocab_size"),
        "layers": keys.take("num_hidden_layers"),
        "embed": keys.take("hidden_size"),
        "heads": heads,
        "kv_heads": heads,
        "mlp": keys.take("intermediate_size"),
        "max_length": keys.take("max_position_embeddings", 512),
        "norm_eps": keys.take("layer_norm_eps", 1e-12),
        "activation": keys.activation("hidden_act", "gelu"),
        "token_types": keys.take("type_vocab_size", 2),
        "dropout": keys.take("hidden_dropout_prob", 0.1),
        "attention_dropout": keys.take("attention_probs_dropout_prob", 0.1),
    }


def body_to_hf(spec: EncoderConfig, model_type: str) -> dict[str, Any]:
    """The inverse of `body_from_hf`."""
    return {
        "model_type": model_type,
        "vocab_size": spec.vocab_size,
        "num_hidden_layers": spec.layers,
        "hidden_size": spec.embed,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.mlp_size,
        "max_position_embeddings": spec.max_length,
        "layer_norm_eps": spec.norm_eps,
        "hidden_act": activation_to_hf(spec.activation),
        "type_vocab_size": spec.token_types,
        "hidden_dropout_prob": spec.dropout,
        "attention_probs_dropout_prob": spec.attention_dropout,
        "initializer_range": spec.init_std,
        "tie_word_embeddings": True,
    }


def heads_from_hf(
    published: Mapping[str, Any],
    keys: Keys,
    name: str,
    dropout_key: str = "classifier_dropout",
    dense: bool = False,
) -> dict[str, Any]:
    """The heads of the class in `architectures`; a config without one is the bare model's.

    Args:
        published: config.json.
        keys: takes the refusal of a class that is not known.
        name: what the classes of the family begin with (`"Bert"`).
        dropout_key: of the dropout of a task's head.
        dense: a sequence's head has a dense layer of its own and the class no pooler.
    """
    told = (published.get("architectures") or [f"{name}Model"])[0]
    kind = told.removeprefix(name) if told.startswith(name) else ""
    if kind not in CLASSES:
        keys.refuse(f"architecture {told!r}, only {name}-{', -'.join(CLASSES)} are implemented")
        kind = "Model"
    heads = dict.fromkeys(("masked_head", "pooler", "pair_head"), False)
    heads |= dict.fromkeys(CLASSES[kind], True)
    keys.only("tie_word_embeddings", True, *([] if heads["masked_head"] else [False]))
    if kind not in TASKS:
        return heads
    own = dense and kind == "ForSequenceClassification"
    labels = () if kind == "ForQuestionAnswering" else labels_of(published)
    task = TaskConfig(
        kind=TASKS[kind],  # pyrefly: ignore
        labels=labels,
        dense=own,
        dropout=published.get(dropout_key),
    )
    return {**heads, "pooler": heads["pooler"] and not own, "task": task}


def heads_to_hf(
    spec: EncoderConfig, name: str, dropout_key: str = "classifier_dropout", classes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`architectures`, labels and dropout of the class that has the heads of a spec, or as many as any has.

    Args:
        spec: the encoder.
        name: what the classes of the family begin with.
        dropout_key: of the dropout of a task's head.
        classes: those of `CLASSES` that the family has; none given: all.
    """
    if spec.task is not None:
        kind = next(kind for kind, of_task in TASKS.items() if of_task == spec.task.kind)
        said: dict[str, Any] = {"architectures": [name + kind]}
        if spec.task.dropout is not None:
            said[dropout_key] = spec.task.dropout
        if spec.task.labels:
            said["id2label"] = {str(i): label for i, label in enumerate(spec.task.labels)}
            said["label2id"] = {label: i for i, label in enumerate(spec.task.labels)}
        return said
    has = {head for head in ("masked_head", "pooler", "pair_head") if getattr(spec, head)}
    known = [kind for kind in CLASSES if kind not in TASKS and (not classes or kind in classes)]
    fitting = [kind for kind in known if set(CLASSES[kind]) <= has] or ["Model"]
    best = max(fitting, key=lambda kind: len(CLASSES[kind]))
    return {"architectures": [name + best]}


def same_heads(spec: EncoderConfig, said: EncoderConfig) -> EncoderConfig:
    """What an export says, with the heads of its spec: a reader finds those by their tensors."""
    heads = {head: getattr(spec, head) for head in ("masked_head", "pooler", "pair_head")}
    return dataclasses.replace(said, **heads)


def labels_of(published: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes; two where config.json does not say, as everywhere in transformers."""
    named = published.get("id2label")
    if named:
        return tuple(str(named[key]) for key in sorted(named, key=int))
    return tuple(f"LABEL_{i}" for i in range(published.get("num_labels") or 2))


def linear(theirs: str, ours: str, inputs: int = 1) -> tuple[Row, Row]:
    """Weight and bias of one projection."""
    weight = row(f"{theirs}.weight", f"{ours}/kernel", Matrix(inputs))
    return weight, row(f"{theirs}.bias", f"{ours}/bias", Vector())


def norm(theirs: str, ours: str) -> tuple[Row, Row]:
    """Scale and bias of one LayerNorm."""
    return row(f"{theirs}.weight", f"{ours}/scale", Same()), row(f"{theirs}.bias", f"{ours}/bias", Same())


def embedding_rows(prefix: str) -> tuple[Row, ...]:
    """The three tables, and the norm after their sum."""
    names = (("word", "embed"), ("position", "position"), ("token_type", "token_type"))
    tables = [
        row(f"{prefix}embeddings.{theirs}_embeddings.weight", f"{ours}/embedding", Same())
        for theirs, ours in names
    ]
    return (*tables, *norm(f"{prefix}embeddings.LayerNorm", "embed_norm"))


def layer_rows(prefix: str) -> tuple[Row, ...]:
    """One layer of BERT and RoBERTa."""
    theirs, ours = f"{prefix}encoder.layer.{{}}.", "layers_{}/"
    return (
        *linear(f"{theirs}attention.self.query", f"{ours}attention/query"),
        *linear(f"{theirs}attention.self.key", f"{ours}attention/key"),
        *linear(f"{theirs}attention.self.value", f"{ours}attention/value"),
        *linear(f"{theirs}attention.output.dense", f"{ours}attention/out", inputs=2),
        *norm(f"{theirs}attention.output.LayerNorm", f"{ours}attention_norm"),
        *linear(f"{theirs}intermediate.dense", f"{ours}mlp/up"),
        *linear(f"{theirs}output.dense", f"{ours}mlp/down"),
        *norm(f"{theirs}output.LayerNorm", f"{ours}mlp_norm"),
    )
