"""The peer of `bench grpo`: the GRPO trainer of the newest `trl`, on the Llama of transformers, SDPA.

Reads one JSON line with the sizes; then answers each `{"steps": n}` with the seconds of so many iterations,
those of them that generation took, and the most memory held so far.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(sys.prefix) / "newest"))

import torch
import trl
from datasets import Dataset
from memory import peak_memory
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer


class Answering(TrainerCallback):
    """Between two iterations it says how long the last ones took, and waits until it is asked for more."""

    def __init__(self, updates: int, generating: list[float]) -> None:
        self.updates, self.generating = updates, generating
        self.left, self.begun = 0, 0.0

    def wait(self, control: Any) -> None:
        line = sys.stdin.readline()
        if not line:
            control.should_training_stop = True
            return
        self.left, self.begun = json.loads(line)["steps"], time.perf_counter()
        self.generating.clear()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        print(json.dumps({"ready": True, "trl": trl.__version__}), flush=True)
        self.wait(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.updates:
            return
        self.left -= 1
        if self.left == 0:
            answer = {
                "seconds": time.perf_counter() - self.begun,
                "rollout": sum(self.generating),
                "memory": peak_memory(),
            }
            print(json.dumps(answer), flush=True)
            self.wait(control)


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A word `t7` for every token."""
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(size)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="t1", pad_token="t2", unk_token="t0", padding_side="left"
    )


def main() -> None:
    """Answer until standard input ends."""
    if Path(sys.path[0]) not in Path(trl.__file__).parents:
        sys.exit(f"no trl in {sys.path[0]}: run `make peers`")
    setting = json.loads(sys.stdin.readline())
    torch.set_num_threads(setting["threads"])
    torch.manual_seed(0)
    sizes = {**setting["model"], "eos_token_id": 1, "pad_token_id": 2, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(attn_implementation="sdpa", **sizes)).float()
    generating: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = word_tokenizer(sizes["vocab_size"])
        # The trainer loads the reference from where the model came from.
        model.save_pretrained(Path(folder) / "model")
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=False,
            per_device_train_batch_size=setting["prompts"] * setting["group"] // setting["minibatches"],
            steps_per_generation=setting["minibatches"],
            num_generations=setting["group"],
            num_iterations=setting["epochs"],
            max_completion_length=setting["tokens"],
            beta=setting["beta"],
            loss_type="grpo",
            temperature=1.0,
            learning_rate=setting["rate"],
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            optim="adamw_torch_fused",
            max_steps=10**6,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=str(Path(folder) / "model"),
            reward_funcs=lambda completions, **more: [
                sum(int(word[1:]) % 2 == 0 for word in text.split()) / setting["tokens"]
                for text in completions
            ],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": setting["texts"]}),
            processing_class=tokenizer,
            callbacks=[Answering(setting["epochs"] * setting["minibatches"], generating)],
        )
        generate: Any = trainer._generate

        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            made = generate(*arguments, **named)
            generating.append(time.perf_counter() - begun)
            return made

        trainer._generate = timed
        trainer.train()


if __name__ == "__main__":
    main()
