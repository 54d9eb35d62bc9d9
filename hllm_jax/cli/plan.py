"""`plan`: what a configuration will need on devices that are not here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from hllm_jax.planning import Plan, Search

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DOES_NOT_FIT = 3


def add_commands(commands: Commands) -> None:
    """Add the group to the parser."""
    parser = commands.add_parser(
        "plan",
        help="compile a configuration's train step for devices that are not here: memory, collectives, time",
        description="Compile the train step of a configuration for a topology, with the compiler of those "
        "devices, and print what each of them needs. Exit status 3: it does not fit.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file, shipped configuration, or run folder")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="e.g. strategy=zero3 mesh.tensor=2")
    parser.add_argument("--topology", required=True, metavar="T", help="v5p:4x4x4, v5e:2x4, h100:8, …")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="so many of them (default: 1)")
    parser.add_argument("--tokens", type=float, metavar="N", help="to train on; default: those of the run")
    parser.add_argument(
        "--search", action="store_true", help="compile the most promising layouts, the best that fits wins"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=plan)


def plan(args: argparse.Namespace) -> dict[str, Any]:
    """`hllm plan CONFIG --topology T [key=value …]`."""
    # Devices of this machine are not wanted: a TPU here would be taken from who trains on it.
    os.environ["JAX_PLATFORMS"] = "cpu"
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)

    from hllm_jax.planning import plan, search
    from hllm_jax.recipes import load_run_config

    _, config = load_run_config(args.config, args.overrides)
    options = {"slices": args.slices, "tokens": args.tokens, "name": args.config}
    if args.search:
        found = search(config, args.topology, **options)
        made, result = found.best, found.as_dict()
        if not args.json:
            _show_search(found)
    else:
        made = plan(config, args.topology, **options)
        result = made.as_dict()
    if not made.fits:
        args.status = DOES_NOT_FIT
    if not args.json:
        show(made)
    return result


#: libtpu looks for the machine that it is on, and complains when there is none.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def show(plan: Plan) -> None:
    """Print a plan for people."""
    from hllm_jax.parallel.config import pipeline_words

    memory, times = plan.per_device, plan.roofline
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items()) or "one device"
    print(f"{plan.config}: {plan.parameters:,} parameters, strategy {plan.strategy}")
    print(f"{plan.devices} devices ({plan.topology}), mesh {mesh}; {plan.tokens:,} tokens a step")
    if plan.pipeline is not None:
        print(pipeline_words(plan.pipeline))
    print()
    print("memory of a device")
    states = plan.states
    for name, title in (("params", "parameters"), ("grads", "gradients"), ("optimizer", "optimizer state")):
        print(f"  {title:18} {_bytes(states[name])}")
    for role, sizes in (plan.roles or {}).items():
        trained = "" if not sizes["grads"] else f" + {_bytes(sizes['grads'] + sizes['optimizer']).strip()}"
        said = "what all of them stand on" if role == "base" else f"of the {role}{trained and ', trained'}"
        print(f"    {role:16} {_bytes(sizes['params'])}{trained}   {said}")
    print(f"  {'arguments':18} {_bytes(memory.arguments)}   state and batch, as compiled")
    if memory.host:
        print(f"  {'on the host':18} {_bytes(memory.host)}   optimizer state that waits there")
    if memory.temporaries is not None:
        print(f"  {'temporaries':18} {_bytes(memory.temporaries)}   not all live at once")
    if memory.peak is not None:
        share = memory.peak / memory.capacity
        print(
            f"  {'peak':18} {_bytes(memory.peak)}   {100 * share:.0f} % of {_bytes(memory.capacity).strip()}"
        )
    if not plan.fits:
        print("\nIT DOES NOT FIT" + (f": {plan.refusal}" if plan.refusal else ""))
        for way in plan.advice:
            print(f"  {way}")
    if plan.measured_at:
        depths = " and ".join(map(str, plan.measured_at))
        print(f"\nwhat follows was measured with {depths} layers, on v5p chips, and continued in a line")
    if plan.flops:
        print("\narithmetic of a device and step")
        print(f"  compiled {plan.flops:.3g} FLOPs, the model's own {plan.model_flops:.3g}", end="")
        print(
            f" (ratio {plan.flops / plan.model_flops:.2f}; {100 * (plan.recomputed or 0):.0f} % recomputed)"
        )
    if plan.collectives:
        print("\ncollectives of a device and step")
        for each in plan.collectives:
            where = "   between slices" if each.between_slices else ""
            print(f"  {each.op:18} over {each.axis:14} {each.count:6} x, in all {_bytes(each.bytes)}{where}")
    if times is not None:
        print("\ntime of a step, at least")
        for name in ("compute", "memory", "network"):
            mark = "   binds" if times.binds == name else ""
            print(f"  {name:18} {1e3 * getattr(times, name):10.2f} ms{mark}")
        rate = plan.tokens / times.step
        print(
            f"  {'step':18} {1e3 * times.step:10.2f} ms   MFU {100 * times.mfu:.0f} %; {rate:,.0f} tokens/s"
        )
        print(f"  {'without overlap':18} {1e3 * times.without_overlap:10.2f} ms")
        for assumption in times.assumptions:
            print(f"  assumed: {assumption}")
    budget = plan.budget
    days = f"{budget['days_at_peak']:.3g} days at the peak"
    days += f", {budget['days']:.3g} at the predicted rate" if "days" in budget else ""
    print(f"\n{budget['tokens']:.3g} tokens are {budget['flops']:.3g} FLOPs (6ND): {days}")
    print(f"compiled in {plan.compile_seconds:.0f} s")


def _show_search(found: Search) -> None:
    print("tried")
    for each in found.tried:
        print(f"  {each}")
    print(f"best: {' '.join(found.overrides)}\n")


def _bytes(size: float) -> str:
    return f"{size / 1e9:9.3f} GB"
