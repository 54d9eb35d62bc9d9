"""The peer of `bench ppo`: the PPO trainer of `trl` 1.12, on four Llamas of transformers, PyTorch, SDPA.

Reads one JSON line with the sizes; then answers each `{"steps": n}` with the seconds of so many iterations,
those of them that generation took, and the most memory held so far.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from memory import peak_memory
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Answering(TrainerCallback):
    """Between two iterations it says how long the last ones took, and waits until it is asked for more."""

    def __init__(self, generating: list[float]) -> None:
        self.generating = generating
        self.left, self.begun = 0, 0.0

    def wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)  # this trainer does not look at `should_training_stop`
        self.left, self.begun = json.loads(line)["steps"], time.perf_counter()
        self.generating.clear()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        print(json.dumps({"ready": True}), file=OUT, flush=True)
        self.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            answer = {
                "seconds": time.perf_counter() - self.begun,
                "rollout": sum(self.generating),
                "memory": peak_memory(),
            }
            print(json.dumps(answer), file=OUT, flush=True)
            self.wait()


# What the trainer prints goes to standard error: standard output is for answers.
OUT, sys.stdout = sys.stdout, sys.stderr


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A word `t7` for every token."""
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(size)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="t1", pad_token="t2", unk_token="t0", padding_side="left"
    )


def main() -> None:
    """Answer until standard input ends."""
    setting = json.loads(sys.stdin.readline())
    torch.set_num_threads(setting["threads"])
    torch.manual_seed(0)
    sizes = {**setting["model"], "eos_token_id": 1, "pad_token_id": 2, "bos_token_id": None}
    config = LlamaConfig(attn_implementation="sdpa", num_labels=1, **sizes)
    policy, reference = LlamaForCausalLM(config).float(), LlamaForCausalLM(config).float()
    reference.load_state_dict(policy.state_dict())
    value, reward = (LlamaForSequenceClassification(config).float() for _ in range(2))
    generating: list[float] = []
    generate = ppo_trainer.batch_generation

    def timed(*arguments: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        made = generate(*arguments, **named)
        generating.append(time.perf_counter() - begun)
        return made

    ppo_trainer.batch_generation = timed
    rows = setting["rows"]
    with tempfile.TemporaryDirectory() as folder:
        told = PPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=len(rows),
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=setting["epochs"],
            local_rollout_forward_batch_size=len(rows),
            response_length=setting["tokens"],
            stop_token="eos",
            temperature=1.0,
            kl_coef=setting["coefficient"],
            missing_eos_penalty=1.0,
            learning_rate=setting["rate"],
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            total_episodes=len(rows) * 10**4,
            num_sample_generations=0,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = PPOTrainer(
            args=told,
            processing_class=word_tokenizer(sizes["vocab_size"]),
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": rows}),
            callbacks=[Answering(generating)],
        )
        trainer.train()


if __name__ == "__main__":
    main()
