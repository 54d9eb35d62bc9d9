"""Distillation: a student learns the distribution of a teacher over every next token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from hllm_jax.objectives.chunks import sum_of_parts
from hllm_jax.objectives.kl import kl_divergence
from hllm_jax.objectives.language_model import cross_entropy
from hllm_jax.objectives.masks import weighted
from hllm_jax.objectives.routing import add_routing, apply_model
from hllm_jax.objectives.sums import Batch, Loss, Sums, Variables

#: How far the student is from the teacher; see `divergence`.
Divergence: TypeAlias = Literal["forward_kl", "reverse_kl", "jsd"]


def divergence(student: jax.Array, teacher: jax.Array, kind: Divergence, mixture: float = 0.5) -> jax.Array:
    """How far the student is from the teacher at each position.

        forward_kl    KL(T ‖ S): covers all that the teacher may say    (Hinton et al. 2015)
        reverse_kl    KL(S ‖ T): stays where the teacher is sure        (Gu et al. 2024)
        jsd           β·KL(T ‖ M) + (1 - β)·KL(S ‖ M),  M = β·T + (1 - β)·S    (Agarwal et al. 2024)

    By hand, T = (3/4, 1/4) and S = (1/2, 1/2): forward 0.13081, reverse 0.14384, and with β = 1/2
    M = (5/8, 3/8), (0.03537 + 0.03227)/2 = 0.03382.

    Args:
        student, teacher: logits, `[..., V]`; no gradient goes to the teacher.
        kind: by name.
        mixture: β of `jsd`, between 0 and 1.

    Returns:
        float32 `[...]`.

    Raises:
        ValueError: no such divergence, or a mixture that is not between 0 and 1.
    """
    teacher = jax.lax.stop_gradient(teacher)
    if kind == "forward_kl":
        return kl_divergence(teacher, student)
    if kind == "reverse_kl":
        return kl_divergence(student, teacher)
    if kind != "jsd":
        raise ValueError(f"divergence {kind!r} is not known; choose one of {', '.join(get_args(Divergence))}")
    if not 0 < mixture < 1:
        raise ValueError(
            f"the mixture of jsd is {mixture}; it lies between 0 and 1 (at whose ends nothing is left of it: "
            "choose forward_kl or reverse_kl)"
        )
    # Where both are -inf, the gradient of logaddexp would not be finite.
    log_teacher, log_student = (
        jnp.maximum(jax.nn.log_softmax(x.astype(jnp.float32)), -1e30) for x in (teacher, student)
    )
    middle = jnp.logaddexp(log_teacher + math.log(mixture), log_student + math.log1p(-mixture))
    return mixture * kl_divergence(teacher, middle) + (1.0 - mixture) * kl_divergence(student, middle)


def distillation_sums(
    student: jax.Array,
    teacher: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    kind: Divergence = "forward_kl",
    temperature: float = 1.0,
    hard: float = 0.0,
    mixture: float = 0.5,
) -> Sums:
    """The loss of a student.

        loss = Σ w·((1 - hard)·T²·divergence(student/T, teacher/T) + hard·nll) / Σ w

    T² keeps the size of the gradient when T changes (Hinton et al. 2015, section 2). Student and teacher
    have one vocabulary.

    Args:
        student, teacher: logits, `[..., V]`.
        targets: int `[...]`, what the text says; looked at for `hard` and the metric only.
        weights: `[...]`.
        kind, mixture: see `divergence`.
        temperature: T, larger than 0; the nll is at 1.
        hard: share of the text itself in the loss.

    Returns:
        `loss`, `divergence` (at T, without T²), `nll` and `agreement` (both think the same token likeliest).

    Raises:
        ValueError: vocabularies of two sizes, or a temperature that is not larger than 0.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"logits of the student {student.shape} and of the teacher {teacher.shape}: distillation on "
            "logits needs one tokenizer and the same positions"
        )
    if not temperature > 0:
        raise ValueError(f"the temperature of distillation is {temperature}; it must be larger than 0")
    student, teacher = student.astype(jnp.float32), jax.lax.stop_gradient(teacher.astype(jnp.float32))
    apart = divergence(student / temperature, teacher / temperature, kind, mixture)
    nll, _ = cross_entropy(student, targets)
    cost = (1.0 - hard) * temperature**2 * apart
    if hard:
        cost = cost + hard * nll
    same = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
    return {
        "loss": weighted(cost, weights),
        "divergence": weighted(jax.lax.stop_gradient(apart), weights),
        "nll": weighted(jax.lax.stop_gradient(nll), weights),
        "agreement": weighted(same.astype(jnp.float32), weights),
    }


def chunked_distillation(
    student: tuple[jax.Array, Callable[[jax.Array], jax.Array]],
    teacher: tuple[jax.Array, Callable[[jax.Array], jax.Array]],
    targets: jax.Array,
    weights: jax.Array,
    chunks: int,
    kind: Divergence = "forward_kl",
    temperature: float = 1.0,
    hard: float = 0.0,
    mixture: float = 0.5,
) -> Sums:
    """`distillation_sums` from what the heads read, without all logits of both models in memory.

    Args:
        student, teacher: `[B, L, D]` (each with its own D), and the head that makes logits of a part of it.
        targets, weights: `[B, L]`.
        chunks: divides L; see `sum_of_parts`.
        kind, temperature, hard, mixture: see `distillation_sums`.

    Raises:
        ValueError: `chunks` does not divide L, or as `distillation_sums`.
    """

    def of_part(x: jax.Array, y: jax.Array, targets: jax.Array, weights: jax.Array) -> Sums:
        return distillation_sums(
            student[1](x), teacher[1](y), targets, weights, kind, temperature, hard, mixture
        )

    return sum_of_parts(of_part, (student[0], teacher[0], targets, weights), chunks)


#: Where the teacher's variables lie among those of the student.
TEACHER = "teacher"


def distill(
    student: nn.Module,
    teacher: nn.Module,
    vocab_size: int,
    kind: Divergence = "forward_kl",
    temperature: float = 1.0,
    hard: float = 0.0,
    mixture: float = 0.5,
    chunks: int = 1,
) -> Loss:
    """The loss of a decoder that learns from another one, on packed rows.

    Args:
        student, teacher: decoders, see `causal_lm`. The variables of the loss are the student's, and in
            `teacher` those of the teacher, which sees no dropout.
        vocab_size: ids of the tokenizer of both; tables may be padded to different sizes.
        kind, temperature, hard, mixture: see `distillation_sums`.
        chunks: logits of both of so many parts of each row, one after another; see `causal_lm`.

    Returns:
        A loss over an `LMBatch` with the entries of `distillation_sums` and `add_routing`.
    """

    def loss(variables: Variables, batch: Batch, rng: jax.Array | None) -> Sums:
        told: dict[str, Any] = {"segment_ids": batch["segment_ids"], "positions": batch["positions"]}
        told["method"] = "before_head"
        own = {name: part for name, part in variables.items() if name != TEACHER}
        (x, head), routed = apply_model(student, own, rng, batch["tokens"], **told)
        (y, teacher_head), _ = apply_model(teacher, variables[TEACHER], None, batch["tokens"], **told)

        def known(head: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
            return lambda part: head(part)[..., :vocab_size]

        aims = batch["targets"], batch["weights"]
        how = kind, temperature, hard, mixture
        if chunks > 1:
            heads = known(head), known(teacher_head)
            sums = chunked_distillation((x, heads[0]), (y, heads[1]), *aims, chunks, *how)
        else:
            sums = distillation_sums(known(head)(x), known(teacher_head)(y), *aims, *how)
        return add_routing(sums, routed, batch["weights"])

    return loss
