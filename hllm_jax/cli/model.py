"""Commands on a model: `generate`, `chat`, `eval`, `inspect`, `convert`, `lora`, and the list of `models`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from hllm_jax.generation.language_model import LanguageModel
    from hllm_jax.generation.seq2seq import Seq2SeqModel

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

MODEL = (
    "run folder, checkpoint, Hugging Face folder, .gguf file, Meta's folder or .pth file, or a name such as "
    "smollm2-135m-instruct"
)
ADAPTER = "a folder of peft's, or a run with `lora:`"
SAMPLING: dict[str, tuple[type, str]] = {
    "max_tokens": (int, "most tokens of one answer"),
    "temperature": (float, "0 always takes the most probable token"),
    "top_p": (float, "sample from the fewest tokens with this much probability"),
    "top_k": (int, "sample from this many most probable tokens; 0: all"),
    "min_p": (float, "leave out tokens below this share of the best one's probability"),
    "repetition_penalty": (float, "above 1: what was said becomes less likely"),
    "seed": (int, "of the random numbers"),
}


def add_commands(commands: Commands) -> None:
    """Add the group to the parser."""
    parser = commands.add_parser("generate", help="continue or answer prompts")
    _add_model(parser)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompt", metavar="TEXT", help="one prompt")
    given.add_argument(
        "--prompts", metavar="FILE.jsonl", help='lines of {"prompt": …}, {"messages": […]} or "…"'
    )
    parser.add_argument(
        "--raw", action="store_true", help="continue the text itself, without the chat template"
    )
    parser.add_argument("--n", type=int, help="completions of each prompt")
    parser.add_argument("--num-beams", type=int, help="beam search of this width")
    _add_sampling(parser)
    parser.add_argument(
        "--json", action="store_true", help="print text, tokens, logprobs, finish_reason as JSON"
    )
    parser.set_defaults(run=generate)

    parser = commands.add_parser("chat", help="talk to a model; /reset starts anew, /exit leaves")
    _add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    _add_sampling(parser)
    parser.set_defaults(run=chat)

    parser = commands.add_parser("eval", help="loss, perplexity and bits per byte on held-out text")
    _add_model(parser)
    parser.add_argument(
        "--data", required=True, metavar="PATH_OR_NAME", help="files, or a corpus of `hllm data list`"
    )
    parser.add_argument("--split", default="validation", help="split of a corpus (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N records")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.set_defaults(run=evaluate)

    parser = commands.add_parser(
        "inspect", help="parameters, shapes, configuration and memory of a model or config"
    )
    parser.add_argument("target", metavar="MODEL|CONFIG", help=f"a configuration (.yaml), or a {MODEL}")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="for a configuration")
    parser.add_argument(
        "--sharding", action="store_true", help="of a configuration: where each parameter lies on its mesh"
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="with --sharding, where the mesh does not say how many"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=inspect)

    parser = commands.add_parser("convert", help="write a model as a Hugging Face folder, GGUF or checkpoint")
    parser.add_argument("source", metavar="SRC", help=MODEL)
    _add_target(parser)
    parser.add_argument(
        "--verify", action="store_true", help="run both on the same tokens; refuse a difference"
    )
    parser.add_argument("--tolerance", type=float, metavar="NATS", help="largest mean KL (default: by dtype)")
    parser.set_defaults(run=convert)

    parser = commands.add_parser("lora", help="merge adapters into weights, or write them for peft")
    ways = parser.add_subparsers(metavar="WAY", required=True)
    parser = ways.add_parser("merge", help="a model with its adapters in its weights")
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER)
    _add_target(parser)
    parser.set_defaults(run=merge)
    parser = ways.add_parser("export", help="the adapters of a run as a folder that peft loads")
    parser.add_argument("source", metavar="RUN", help="a run with `lora:`, or one of its checkpoints")
    parser.add_argument("target", metavar="DST", help="the folder to write")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.set_defaults(run=export_adapter)

    parser = commands.add_parser("models", help="families, published sizes, and what each can do")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=models)


def generate(args: argparse.Namespace) -> list[dict[str, Any]]:
    """`hllm generate MODEL --prompt TEXT | --prompts FILE.jsonl`."""
    from hllm_jax.generation.seq2seq import Seq2SeqModel

    prompts = [args.prompt] if args.prompts is None else list(read_prompts(args.prompts))
    model = _load(args)
    given = {name: getattr(args, name) for name in ("n", "num_beams") if getattr(args, name) is not None}
    if not isinstance(model, Seq2SeqModel):
        given["raw"] = args.raw
    elif args.raw:
        raise ValueError("--raw leaves out the chat template, and an encoder-decoder has none")
    completions = model.generate(prompts, **_sampling(args), **given)
    if not args.json:
        for completion in completions:
            print(completion.text if model.tokenizer is not None else json.dumps(completion.tokens))
    return [
        {
            "text": completion.text,
            "tokens": list(completion.tokens),
            "logprobs": list(completion.logprobs),
            "finish_reason": completion.finish_reason,
        }
        for completion in completions
    ]


def read_prompts(path: str) -> Iterator[Any]:
    """Prompts (texts) and conversations (lists of messages) of a JSONL file.

    Raises:
        ValueError: a line that is neither, with file and line; or no line at all.
    """
    number = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                record = json.loads(line) if line else None
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: is not UTF-8 at byte {error.start}") from None
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: is not JSON: {error.msg} at column {error.colno}") from None
            if not line:
                continue
            if isinstance(record, dict):
                prompt = next((record[key] for key in ("messages", "prompt", "text") if key in record), None)
                keys = ", ".join(map(str, record)) or "none"
            else:
                prompt, keys = record, type(record).__name__
            if not isinstance(prompt, (str, list)):
                raise ValueError(
                    f'{where}: wants {{"prompt": text}}, {{"messages": […]}} or a text; found {keys}'
                )
            yield prompt
    if number == 0:
        raise ValueError(f"{path}: is empty; one prompt a line is wanted")


def chat(args: argparse.Namespace) -> None:
    """`hllm chat MODEL`."""
    from hllm_jax.cli.chat import talk

    talk(_load_language_model(args), system=args.system, **_sampling(args))


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """`hllm eval MODEL --data PATH_OR_NAME`."""
    from hllm_jax.evals.heldout import evaluate

    scores = evaluate(_load_language_model(args), args.data, split=args.split, limit=args.limit)
    if not args.json:
        for name, value in scores.items():
            print(f"{name:16} {value:.4f}" if isinstance(value, float) else f"{name:16} {value}")
    return scores


def inspect(args: argparse.Namespace) -> dict[str, Any]:
    """`hllm inspect MODEL|CONFIG`."""
    from hllm_jax.inspection import inspect, inspect_sharding, show

    if args.sharding:
        from hllm_jax.parallel.config import pipeline_words
        from hllm_jax.parallel.drawing import lines

        drawn = inspect_sharding(args.target, args.overrides, args.devices)
        if not args.json:
            mesh = ", ".join(f"{axis}={size}" for axis, size in drawn["mesh"].items())
            print(f"strategy {drawn['strategy']}, mesh {mesh or 'of one device'}")
            if drawn["pipeline"] is not None:
                print(pipeline_words(drawn["pipeline"]))
            print("\n".join(lines(drawn["sharding"])))
        return drawn
    found = inspect(args.target, args.overrides)
    if not args.json:
        show(found)
    return found


def convert(args: argparse.Namespace) -> dict[str, Any]:
    """`hllm convert SRC DST`."""
    from hllm_jax.conversion import convert

    done = convert(args.source, args.target, args.to, args.dtype, args.verify, args.tolerance)
    return _shown(args, done)


def merge(args: argparse.Namespace) -> dict[str, Any]:
    """`hllm lora merge MODEL ADAPTER DST`."""
    from hllm_jax.conversion import merge

    return _shown(args, merge(args.model, args.adapter, args.target, args.to, args.dtype))


def export_adapter(args: argparse.Namespace) -> dict[str, Any]:
    """`hllm lora export RUN DST`."""
    from hllm_jax.conversion import export_adapter

    return _shown(args, export_adapter(args.source, args.target))


def _shown(args: argparse.Namespace, done: dict[str, Any]) -> dict[str, Any]:
    if not args.json:
        for name, value in done.items():
            print(f"{name:16} {value:.3g}" if isinstance(value, float) else f"{name:16} {value}")
    return done


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="DST", help="the folder or .gguf file to write")
    parser.add_argument("--to", choices=("hf", "gguf", "orbax"), help="default: gguf for *.gguf, else hf")
    parser.add_argument(
        "--dtype",
        help="float32 (default), bfloat16, float16; for GGUF F16 (default), F32, BF16, Q8_0, Q5_1, Q5_0, "
        "Q4_1, Q4_0",
    )
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def models(args: argparse.Namespace) -> list[dict[str, Any]]:
    """`hllm models`."""
    from hllm_jax.inspection import list_families, show_families

    found = list_families()
    if not args.json:
        show_families(found)
    return found


def _load(args: argparse.Namespace) -> LanguageModel | Seq2SeqModel:
    from hllm_jax.generation.load import load
    from hllm_jax.generation.text_encoder import TextEncoder

    print(f"loading {args.model} …", file=sys.stderr, flush=True)
    loaded = load(args.model, args.adapter, args.dtype)
    if isinstance(loaded, TextEncoder):
        raise ValueError(f"{args.model} is an encoder: it makes vectors of texts and writes none")
    return loaded


def _load_language_model(args: argparse.Namespace) -> LanguageModel:
    from hllm_jax.generation.load import load_language_model

    print(f"loading {args.model} …", file=sys.stderr, flush=True)
    return load_language_model(args.model, args.adapter, args.dtype)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--adapter", metavar="PATH", help=ADAPTER)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: f32 on CPU, bf16 elsewhere"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    for name, (kind, explanation) in SAMPLING.items():
        metavar = {int: "N", float: "X"}[kind]
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=explanation)
    parser.add_argument(
        "--stop", action="append", metavar="STR", help="ends an answer where it appears; repeatable"
    )


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that were given; the model's own defaults stand for the others."""
    return {name: getattr(args, name) for name in (*SAMPLING, "stop") if getattr(args, name) is not None}
