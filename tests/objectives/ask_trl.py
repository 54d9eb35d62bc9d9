"""What `trl` says of losses and advantages: its own methods, on bare trainers without models or data.

    ask_trl.py GIVEN TOLD

Runs in the peers environment. GIVEN and TOLD are `.npz` files: arrays, and for every name the loss and its
gradients. Where `trl` has a formula in the middle of a long method, those lines of the installed source are
run as they stand (`lines_of`), so that a version that changes them is noticed.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.experimental.ppo import ppo_trainer
from trl.trainer import grpo_trainer, rloo_trainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer

Told = dict[str, np.ndarray]


class OneProcess:
    """As much of an `Accelerator` as a loss asks for."""

    device, num_processes, sync_gradients = torch.device("cpu"), 1, False

    def gather(self, x: Any) -> Any:
        return x

    gather_for_metrics = gather

    def reduce(self, x: Any, reduction: str) -> Any:
        return x


def bare(kind: type, **settings: Any) -> Any:
    """A trainer that was never set up: only what its loss reads."""
    trainer = object.__new__(kind)
    common = {
        "accelerator": OneProcess(),
        "model": SimpleNamespace(training=False),
        "aux_loss_enabled": False,
        "_total_train_tokens": 0,
        "_metrics": defaultdict(lambda: defaultdict(list)),
    }
    for name, value in (common | settings).items():
        setattr(trainer, name, value)
    return trainer


def lines_of(function: Any, first: str, last: str) -> Any:
    """The code of a function from the line that holds `first` to the one that holds `last`."""
    lines = inspect.getsource(function).splitlines()
    start = next(i for i, line in enumerate(lines) if first in line)
    end = next(i for i, line in enumerate(lines) if i >= start and last in line)
    return compile(textwrap.dedent("\n".join(lines[start : end + 1])), f"{function.__qualname__}", "exec")


def tensors(given: dict[str, np.ndarray], *names: str) -> list[torch.Tensor]:
    return [torch.tensor(given[name]) for name in names]


def note(told: Told, name: str, loss: torch.Tensor, **leaves: torch.Tensor) -> None:
    """The loss, and its gradient by every leaf."""
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    told[name] = loss.detach().numpy()
    for leaf, gradient in zip(leaves, gradients, strict=True):
        told[f"{name}/{leaf}"] = gradient.numpy()


def pairs(given: dict[str, np.ndarray], told: Told) -> None:
    """DPO and IPO from logits and masks; their references are given as sums over tokens."""
    tokens, mask, ref_chosen, ref_rejected = tensors(given, "tokens", "mask", "ref_chosen", "ref_rejected")
    for kind in ("sigmoid", "ipo"):
        (logits,) = tensors(given, "logits")
        logits.requires_grad_()
        trainer = bare(
            DPOTrainer,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            beta=0.1,
            loss_types=[kind],
            loss_weights=[1.0],
            use_weighting=False,
        )
        inputs = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "completion_mask": mask,
            "ref_chosen_logps": ref_chosen,
            "ref_rejected_logps": ref_rejected,
        }
        model: Any = lambda logits=logits, **_: SimpleNamespace(logits=logits)  # noqa: E731
        note(told, kind, trainer._compute_loss(model, inputs, False), logits=logits)
        for name in ("rewards/chosen", "rewards/accuracies", "rewards/margins"):
            told[f"{kind}/{name}"] = np.asarray(trainer._metrics["eval"][name][0])


def answers_alone(given: dict[str, np.ndarray], told: Told) -> None:
    """From log-probabilities of answers: smoothed DPO and SimPO as CPO has them, and the odds of ORPO."""
    for kind, name in (("sigmoid", "smoothed"), ("simpo", "simpo")):
        chosen, rejected = (x.requires_grad_() for x in tensors(given, "chosen", "rejected"))
        trainer = bare(CPOTrainer, alpha=0.0, beta=0.7, simpo_gamma=0.4, label_smoothing=0.2, loss_type=kind)
        losses, _, _ = trainer.cpo_loss(chosen, rejected)
        note(told, name, losses.mean(), chosen=chosen, rejected=rejected)
    chosen, rejected = (x.requires_grad_() for x in tensors(given, "chosen", "rejected"))
    losses, _, _, _, log_odds = bare(ORPOTrainer, beta=0.3).odds_ratio_loss(chosen, rejected)
    # Theirs is the token mean over prompt and answer; given here as the paper has it, of the answer alone.
    note(told, "orpo", -chosen.mean() - losses.mean(), chosen=chosen, rejected=rejected)
    told["orpo/log_odds"] = log_odds.detach().numpy()


def kto(given: dict[str, np.ndarray], told: Told) -> None:
    tokens, mask, good, reference, other, ref_other, logits = tensors(
        given, "tokens", "mask", "good", "reference", "other", "ref_other", "logits"
    )
    logits.requires_grad_()
    trainer = bare(
        KTOTrainer,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=0.1,
        desirable_weight=1.5,
        undesirable_weight=0.5,
        _compute_kl_logps=lambda model, batch: other,
    )
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "completion_mask": mask,
        "label": good,
        "ref_logps": reference,
        "ref_KL_logps": ref_other,
    }
    model: Any = lambda **_: SimpleNamespace(logits=logits)  # noqa: E731
    note(told, "kto", trainer._compute_loss(model, inputs, False), logits=logits)
    told["kto/kl"] = np.asarray(trainer._metrics["eval"]["kl"][0])


def groups(given: dict[str, np.ndarray], told: Told) -> None:
    """GRPO's variants and RLOO, from log-probabilities of tokens; and the advantages of both."""
    old, reference, actions, advantages = tensors(given, "old", "ref", "actions", "of_answer")
    sizes = {
        "prompt_ids": torch.zeros(len(old), 0, dtype=torch.long),
        "prompt_mask": torch.zeros(len(old), 0),
    }
    inputs = sizes | {
        "completion_ids": torch.zeros(old.shape, dtype=torch.long),
        "completion_mask": actions,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "old_logps": (old * actions).sum(1),
        "num_items_in_batch": actions.sum(),
    }
    for name in ("grpo", "dr_grpo", "dapo", "bnpo", "dual", "rloo"):
        (new,) = tensors(given, "new")
        new.requires_grad_()
        trainer = bare(
            rloo_trainer.RLOOTrainer if name == "rloo" else grpo_trainer.GRPOTrainer,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            importance_sampling_level="token",
            beta=0.04,
            args=SimpleNamespace(use_bias_correction_kl=False, delta=1.5 if name == "dual" else None),
            loss_type="grpo" if name == "dual" else name,
            epsilon_low=0.2,
            epsilon_high=0.28,
            use_vllm=False,
            max_completion_length=old.shape[1],
            _entropy_bonus_enabled=False,
            _get_per_token_logps_and_entropies=lambda *_, new=new, **__: (new, torch.zeros_like(new), None),
        )
        note(told, name, trainer._compute_loss(None, inputs), new=new)
        clipped = trainer._metrics["eval"]["clip_ratio/region_mean"][0]
        told[f"{name}/clipped"] = np.asarray(clipped)
        if name == "grpo":
            told["grpo/kl"] = np.asarray(trainer._metrics["eval"]["kl"][0])

    (rewards,) = tensors(given, "group_rewards")
    shared = {"rewards": rewards.flatten(), "num_generations": rewards.shape[1], "torch": torch}
    code = lines_of(
        grpo_trainer.GRPOTrainer._generate_and_score_completions,
        "mean_grouped_rewards = torch.nanmean",
        "advantages = advantages / (std_rewards + 1e-4)",
    )
    for scale, name in (("group", "std"), ("none", "none")):
        room = shared | {"self": SimpleNamespace(scale_rewards=scale), "nanstd": grpo_trainer.nanstd}
        exec(code, room)
        told[f"advantages/{name}"] = room["advantages"].numpy()
    code = lines_of(
        rloo_trainer.RLOOTrainer._generate_and_score_completions,
        "grouped_rewards = rewards.view",
        "advantages = torch.zeros_like(rewards)",
    )
    room = shared | {"nanstd": rloo_trainer.nanstd}
    exec(code, room)
    told["advantages/rloo"] = room["advantages"].numpy()


def ppo(given: dict[str, np.ndarray], told: Told) -> None:
    """Rewards, GAE and whitening of full rows, whose score both put on the last token; and the loss."""
    train = ppo_trainer.PPOTrainer.train
    new, old, reference, values, scores = tensors(given, "new", "old", "ref", "values", "of_answer")
    rows, length = old.shape
    room: dict[str, Any] = {
        "torch": torch,
        "logprobs": old,
        "ref_logprobs": reference,
        "values": values,
        "scores": scores,
        "responses": old,
        "sequence_lengths": torch.full((rows,), length - 1),
        "sequence_lengths_p1": torch.full((rows,), length),
    }
    for estimator in ("k1", "k3"):
        room["args"] = SimpleNamespace(
            kl_estimator=estimator, kl_coef=0.05, whiten_rewards=False, gamma=0.97, lam=0.9
        )
        exec(lines_of(train, "# 4. compute rewards", "returns = advantages + values"), room)
        for name in ("rewards", "advantages", "returns"):
            told[f"ppo/{estimator}/{name}"] = room[name].numpy()

    advantages, returns, actions = tensors(given, "advantages", "returns", "actions")
    mask = actions.bool()
    for shift in (True, False):
        told[f"whiten/{shift}"] = ppo_trainer.masked_whiten(advantages, mask, shift_mean=shift).numpy()
    new.requires_grad_()
    vpred = torch.tensor(given["new_values"], requires_grad=True)
    room = {
        "torch": torch,
        "masked_mean": ppo_trainer.masked_mean,
        "vpred": vpred,
        "mb_values": values,
        "mb_return": returns,
        "mb_advantage": advantages,
        "new_logprobs": new,
        "mb_logprobs": old,
        "padding_mask": ~mask,
        "padding_mask_p1": ~mask,
        "micro_batch_inds": slice(None),
        "args": SimpleNamespace(cliprange=0.2, cliprange_value=0.2, vf_coef=0.1),
    }
    exec(lines_of(train, "vpredclipped = torch.clamp(", "loss = pg_loss + args.vf_coef * vf_loss"), room)
    note(told, "ppo", room["loss"], new=new, new_values=vpred)
    told["ppo/value_loss"] = room["vf_loss"].detach().numpy()
    told["ppo/value_clipped"] = room["vf_clipfrac"].numpy()


def scores_and_students(given: dict[str, np.ndarray], told: Told) -> None:
    """The loss of reward models, and the divergences of distillation."""
    margins, attention = tensors(given, "margins", "mask")
    for name, coefficient in (("reward", None), ("centred", 0.01)):
        chosen, rejected = (x.requires_grad_() for x in tensors(given, "chosen", "rejected"))
        trainer = bare(RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=coefficient))
        inputs = {"attention_mask": attention} | ({"margin": margins} if coefficient else {})
        logits = torch.cat([chosen, rejected])[:, None]
        model: Any = lambda logits=logits, **_: SimpleNamespace(logits=logits)  # noqa: E731
        note(told, name, trainer.compute_loss(model, inputs), chosen=chosen, rejected=rejected)
        told[f"{name}/accuracy"] = np.asarray(trainer._metrics["eval"]["accuracy"][0])
    labels = torch.where(torch.tensor(given["mask"]) == 1, 0, -100)
    for name, beta in (("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.3)):
        student, teacher = tensors(given, "logits", "teacher")
        student.requires_grad_()
        loss = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature=2.0)
        note(told, name, loss, student=student)


def main(source: str, target: str) -> None:
    with np.load(source) as file:
        given = dict(file)
    told: Told = {}
    for part in (pairs, answers_alone, kto, groups, ppo, scores_and_students):
        part(given, told)
    np.savez(target, **told)


if __name__ == "__main__":
    main(*sys.argv[1:])
