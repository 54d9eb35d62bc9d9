"""The stages of the quickstart, in order. Each says whether there was anything left to do."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from hllm_jax.generation.vocabulary import need_tokenizer
from hllm_jax.quickstart.chain import TRAINED, Chain, minutes
from hllm_jax.report.facts import Comparison, RowToken, Sample, Score, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hllm_jax.data.config import DataConfig
    from hllm_jax.data.preparation import TokenizedData
    from hllm_jax.generation.language_model import LanguageModel
    from hllm_jax.models.spec import Spec
    from hllm_jax.tokenizers.tokenizer import Tokenizer

CONTINUE = ("To be, or not to be", "画蛇添足（huà shé tiān zú）\n释义：")
ASK = ("Hello", "How are you doing?", "你好", "你好吗?", "请解释成语“画蛇添足”。")
CLOSING = ("How are you doing?", "你好吗?")


def tokenizer_stage(chain: Chain) -> bool:
    """Train the tokenizer on the pretraining text, or find it in the cache."""
    if (chain.folders["pretrain"] / "tokenizer").is_dir():
        chain.say("  done before")
        return False
    from hllm_jax.data.preparation import prepare
    from hllm_jax.data.vocabulary import tokenizer_for

    config = chain.config("pretrain")
    chain.say(
        f"  {config.tokenizer.vocab_size:,} pieces ({config.tokenizer.kind}), learnt from "
        f"{', '.join(source.label for source in config.data.sources)}: few pieces, because each is a row of "
        "the embedding and of the head, which a small model pays for at every token"
    )
    tokenizer = tokenizer_for(config.tokenizer, config.data)
    counts = prepare(config.data, tokenizer).counts
    chain.say(
        f"  {counts['bytes'] / 1e6:.1f} MB of text are {counts['tokens'] / 1e6:.2f} M tokens: "
        f"{counts['bytes'] / counts['tokens']:.2f} bytes each"
    )
    return True


def pretrain_stage(chain: Chain) -> bool:
    """Learn to continue text."""
    return train_stage(chain, "pretrain")


def sft_stage(chain: Chain) -> bool:
    """Learn to answer: the loss counts what the assistant says."""
    return train_stage(chain, "sft")


def train_stage(chain: Chain, name: str) -> bool:
    """Run a recipe, unless its last update is saved."""
    recipe, config = chain.recipes[name]
    at, steps = chain.trained_steps(name), config.train.steps
    if at >= steps:
        chain.say(f"  all {steps} updates done before")
        return False
    chain.say(f"  $ {chain.commands[name]}")
    explain(chain, name, steps - at)
    recipe.main(config)
    return True


def explain(chain: Chain, name: str, steps: int) -> None:
    """Print what a training stage costs, with each number's reason."""
    from hllm_jax.training.metrics import measured_peak, peak_flops

    config = chain.config(name)
    spec = chain.model("pretrain").config if name == "sft" else config.model.spec(config.tokenizer.vocab_size)
    length, rows = config.train.sequence_length, config.train.batch_size
    tokens = steps * rows * length
    flops = spec.flops_per_token(length)
    peak = peak_flops() or measured_peak()
    chain.say(
        f"  {spec.parameters():,} parameters: {spec.vocab_size:,} x {spec.embed} embedding (also the head) + "
        f"{spec.layers} layers of {spec.layer_parameters():,}"
    )
    chain.say(
        f"  {steps:,} updates x {rows} rows x {length} tokens = {tokens / 1e6:.2f} M tokens, "
        f"{flops / 1e6:.1f} MFLOP each (6 per weight, and attention)"
    )
    chain.say(
        f"  {flops * tokens / 1e12:.1f} TFLOP at this machine's matmul peak of {peak / 1e9:,.0f} GFLOP/s: "
        f"{minutes(flops * tokens / peak)} at the least, two or three times that in practice"
    )


def evaluate_stage(chain: Chain) -> bool:
    """Bits per byte on held-out text: the model, counting, and compression."""
    from hllm_jax.data.preparation import prepare
    from hllm_jax.data.sources import texts
    from hllm_jax.evals.compression import xz
    from hllm_jax.evals.heldout import evaluate
    from hllm_jax.evals.kneser_ney import ngram

    key = chain.key()
    if chain.facts.extra.get("evaluated") == key:
        chain.say("  done before")
        return False
    data: DataConfig = chain.config("pretrain").data
    train, heldout = list(texts(data, "train")), list(texts(data, "validation"))
    found = {name: evaluate(chain.model(name), data) for name in TRAINED}
    # Both baselines work outside the interpreter's lock and use a core each.
    with ThreadPoolExecutor(2) as pool:
        counting, compressing = pool.submit(ngram, train, heldout), pool.submit(xz, train, heldout)
        counted, compressed = counting.result(), compressing.result()
    tokens = prepare(data, need_tokenizer(chain.model("pretrain").tokenizer)).counts["tokens"]
    read = trained_tokens(chain, "pretrain")
    size = f"{counted.train_bytes / 1e6:.1f} MB"
    comparison = Comparison(
        scores=(
            Score(
                name="This model",
                bits_per_byte=found["pretrain"]["bits_per_byte"],
                note=f"{chain.model('pretrain').config.parameters():,} parameters, "
                f"{read / 1e6:.2f} M tokens read ({read / tokens:.0%} of the training text)",
                ours=True,
            ),
            Score(
                name="This model after SFT",
                bits_per_byte=found["sft"]["bits_per_byte"],
                note="what learning to chat cost on plain text",
                ours=True,
            ),
            Score(
                name="n-gram",
                bits_per_byte=counted.bits_per_byte,
                note=f"up to {counted.order} bytes, interpolated Kneser-Ney, counted on {size}",
            ),
            Score(
                name="xz, having read the training text",
                bits_per_byte=compressed.conditioned_bits_per_byte,
                note=f"xz -9e, {size} before it",
            ),
            Score(name="xz alone", bits_per_byte=compressed.bits_per_byte, note="xz -9e"),
        ),
        heldout=f"{counted.heldout_bytes:,} bytes of text that no training stage has read: "
        f"{', '.join(source.label for source in data.sources)}, validation split.",
        note="The n-gram model and xz had all of the training text; the language model read as much of it as "
        "its time allowed.",
    )
    for score in sorted(comparison.scores, key=lambda score: score.bits_per_byte):
        chain.say(f"  {score.bits_per_byte:.3f} bits per byte  {score.name}  [dim]{score.note}[/dim]")
    chain.keep(comparison=comparison, extra={**chain.facts.extra, "evaluated": key})
    return True


def sample_stage(chain: Chain) -> bool:
    """What the model writes before and after each stage, greedily."""
    key = chain.key()
    if chain.facts.extra.get("sampled") == key:
        chain.say("  done before")
        return False
    models = {
        "random weights": untrained(chain.model("pretrain")),
        "after pretraining": chain.model("pretrain"),
        "after SFT": chain.model("sft"),
    }
    answers: dict[tuple[str, bool], list[tuple[str, str]]] = {}
    for name, model in models.items():
        for prompts, raw in ((CONTINUE, True), (ASK, False)):
            said = model.generate(list(prompts), max_tokens=40, temperature=0.0, raw=raw)
            for prompt, completion in zip(prompts, said, strict=True):
                answers.setdefault((prompt, not raw), []).append((name, completion.text))
    samples = tuple(
        Sample(prompt=prompt, chat=chat, answers=tuple(texts)) for (prompt, chat), texts in answers.items()
    )
    for sample in samples:
        chain.quote(f"  {sample.prompt!r}", f"→ {sample.answers[-1][1]!r}")
    chain.keep(samples=samples, extra={**chain.facts.extra, "sampled": key})
    return True


def report_stage(chain: Chain) -> bool:
    """Everything else that the page shows."""
    from hllm_jax.data.batches import Batches
    from hllm_jax.data.preparation import prepare

    tokenizer = need_tokenizer(chain.model("sft").tokenizer)
    spec = chain.model("sft").config
    read: dict[str, TokenizedData] = {name: prepare(chain.config(name).data, tokenizer) for name in TRAINED}
    settings = chain.config("sft")
    length = settings.train.sequence_length
    batches = Batches(read["sft"], settings.train.batch_size, length, settings.run.seed)
    chain.keep(
        title=f"hllm_jax quickstart, {chain.scale}",
        summary=summary(chain, spec),
        row=row_tokens(batches[0], 0, tokenizer),
        row_source=f"The first row of the first batch of the SFT stage, {length} positions.",
        sources=tuple(source_facts(name, about) for name, data in read.items() for about in data.sources),
        next_commands=(
            f"hllm chat {chain.folders['sft']}",
            f'hllm generate {chain.folders["pretrain"]} --raw --prompt "{CONTINUE[0]}"',
            "hllm recipes copy pretrain my_experiment",
        ),
    )
    return True


STAGES: dict[str, Callable[[Chain], bool]] = {
    "tokenizer": tokenizer_stage,
    "pretrain": pretrain_stage,
    "sft": sft_stage,
    "evaluate": evaluate_stage,
    "sample": sample_stage,
    "report": report_stage,
}


def untrained(model: LanguageModel) -> LanguageModel:
    """The same architecture and tokenizer with fresh random weights."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from hllm_jax.generation.language_model import LanguageModel

    variables = jax.jit(model.model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return LanguageModel(model.model, {"params": nn.unbox(variables["params"])}, model.tokenizer)


def row_tokens(batch: Mapping[str, Any], row: int, tokenizer: Tokenizer) -> tuple[RowToken, ...]:
    """Every token of one row, with its weight as the token to predict.

    The batch holds (input, target) pairs; the first token of a segment is nobody's target.
    """
    found: list[RowToken] = []
    names = ("tokens", "targets", "weights", "segment_ids")
    before = 0
    for token, target, weight, segment in zip(*(batch[name][row].tolist() for name in names), strict=True):
        if segment != before and segment:
            found.append(RowToken(text=tokenizer.token_text(token), id=token, weight=0.0, segment=segment))
        before = segment
        found.append(RowToken(text=tokenizer.token_text(target), id=target, weight=weight, segment=segment))
    return tuple(found)


def source_facts(stage: str, about: Mapping[str, Any]) -> Source:
    """A source of tokenized data as the report lists it."""
    from hllm_jax.data.corpora.registry import MODULES, find_corpus

    label = str(about["label"])
    package = find_corpus(label).package if label in MODULES else None
    counts = about["counts"]
    return Source(
        name=label,
        package=f"{package.name} {package.version}" if package else "",
        licence=str(about["licence"]),
        stage=stage,
        counts=tuple((name.replace("_", " "), int(counts[name])) for name in COUNTS if name in counts),
    )


COUNTS = ("records", "bytes", "tokens", "trained_tokens")


def trained_tokens(chain: Chain, name: str) -> int:
    """Tokens that a training stage has read, from the manifest of its newest checkpoint."""
    folder = chain.folders[name] / "checkpoints" / f"{chain.trained_steps(name):08d}"
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    return int(manifest["facts"].get("tokens", 0))


def summary(chain: Chain, spec: Spec) -> str:
    """One sentence on what was made, where, and in what time."""
    import jax

    device = jax.devices()[0]
    seconds = sum(step.seconds or 0.0 for step in chain.facts.steps)
    return (
        f"A {spec.parameters() / 1e6:.1f}M-parameter model of English and Chinese, from raw text to chat on "
        f"{jax.device_count()} x {device.device_kind} in {minutes(seconds)}."
    )
