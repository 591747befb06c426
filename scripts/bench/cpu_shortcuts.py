"""What each CPU shortcut of training gains: a step of the quickstart with all on, and with each off.

    python scripts/bench/cpu_shortcuts.py --quickstart runs/quickstart --threads 1

The quickstart must have run: its traces and its SFT model are used, and its recipe, with fewer
completions a step (--completions). Every variant takes its step on the same batch; in GRPO, on the
same completions: generation and update are timed apart, and a variant that changes only one of
them takes the other's time from `all on`. Prints processor and wall seconds, and how much more
processor time a step takes without the shortcut. Processor time depends less on other work on the
machine; threads that wait sleep instead of spinning (OMP_WAIT_POLICY), or waiting would count.
"""

import argparse
import contextlib
import importlib.metadata
import io
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch


def restart(threads: int) -> None:
    "Start this script again with the environment of a job, where it does not have it yet."
    from r1nb.ranks import job_environment

    wanted = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    if threads:
        wanted["OMP_NUM_THREADS"] = str(threads)
    if any(os.environ.get(k) != v for k, v in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**job_environment(), **wanted})


def timed(action, repeat: int = 1):
    "`(result, (processor seconds, wall seconds))` of `action()`, the fastest of `repeat` times."
    taken = []
    for _ in range(repeat):
        begin, wall = time.process_time(), time.perf_counter()
        result = action()
        taken.append((time.process_time() - begin, time.perf_counter() - wall))
    return result, min(taken)


def build(stage: str, **keys):
    "The trainer of `stage` with the quickstart's recipe and `keys`, as the stage would train it."
    from r1nb import grpo, sft
    from r1nb.recipes import configure
    from r1nb.runs import open_run

    module, run_stage = {"sft": (sft, sft.run_sft), "grpo": (grpo, grpo.run_grpo)}[stage]
    recipe = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
    cfg, written = configure(module.stage, f"{recipe}#{stage}", {"disable_tqdm": True, **keys})
    made = []

    class Built(Exception):
        "Ends the stage where its training would begin."

    def catch(run, trainer, *rest):
        made.append(trainer)
        raise Built

    with tempfile.TemporaryDirectory() as folder, patch.object(module, "train", catch):
        with contextlib.suppress(Built), contextlib.redirect_stderr(io.StringIO()):
            run_stage(open_run(Path(folder) / "run", stage, written), *cfg)
    (trainer,) = made
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def update(trainer, batch) -> None:
    "Forward, backward and optimizer step on `batch`."
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def sft_times(args):
    "Yield `(variant, seconds)` of an update in SFT."
    from r1nb import sft

    keys = {"dataset_name": str(args.quickstart / "curate" / "dataset"), "num_traces": 64}
    off = {"cpu_shortcuts": False, "attn_implementation": "grouped"}
    for name, more in (
        ("all on", {}),
        ("beginning read once", off),
        ("grouped attention", {"attn_implementation": "sdpa"}),
        ("all of them", {"cpu_shortcuts": False}),
    ):
        trainer = build("sft", **keys, **more)
        assert type(trainer).__module__ != sft.__name__
        batch = next(iter(trainer.get_train_dataloader()))
        update(trainer, batch)  # warms up
        yield name, timed(lambda t=trainer, b=batch: update(t, b), args.repeat)[1]


def grpo_times(args):
    "Yield `(variant, seconds)` of generation and update in GRPO."
    from r1nb import grpo, shared_prefix

    keys = {
        "model_name_or_path": str(args.quickstart / "sft"),
        "per_device_train_batch_size": args.completions,
        "gradient_accumulation_steps": 1,
    }
    trainer = build("grpo", **keys)
    ours = type(trainer)
    batch = next(iter(trainer.get_train_dataloader()))

    def generate(trainer=trainer):
        return trainer._generate_and_score_completions(batch)

    def both(first, second):
        return tuple(map(sum, zip(first, second, strict=True)))

    length, trainer.args.max_completion_length = trainer.args.max_completion_length, 2
    generate()  # warms up
    trainer.args.max_completion_length = length
    inputs, generation = timed(generate)
    _, step = timed(lambda: update(trainer, inputs), args.repeat)
    zero = (inputs["advantages"] == 0).float().mean()
    tokens = inputs["completion_mask"].sum(1).float().mean()
    print(f"      {zero:.0%} of the rows have no advantage; {tokens:.0f} tokens a completion")
    print(f"      generation {generation[0]:.1f} s, update {step[0]:.1f} s of processor time")
    yield "all on", both(generation, step)
    for name in ("TreeScores", "SkippedRows"):
        trainer.__class__ = type(name, tuple(b for b in ours.__bases__ if b.__name__ != name), {})
        yield name, both(generation, timed(lambda: update(trainer, inputs), args.repeat)[1])
    trainer.__class__ = grpo.GRPOTrainer
    stock = timed(generate)[1]
    yield "OwnDecoding", both(stock, step)
    yield "all of these", both(stock, timed(lambda: update(trainer, inputs))[1])
    trainer.__class__ = ours
    trainer.model.set_attn_implementation("sdpa")
    own = timed(generate)[1], timed(lambda: update(trainer, inputs), args.repeat)[1]
    yield "grouped attention", both(*own)
    whole = build("grpo", **keys, dtype="float32")
    inputs, generation = timed(lambda: generate(whole))
    _, step = timed(lambda: update(whole, inputs))
    yield "float32: all on", both(generation, step)
    with patch.object(shared_prefix, "merged", contextlib.nullcontext):
        yield "float32: merged", both(timed(lambda: generate(whole))[1], step)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--stages", nargs="+", default=["sft", "grpo"])
    parser.add_argument(
        "--repeat", type=int, default=2, help="updates, of which the fastest counts"
    )
    parser.add_argument("--completions", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    args = parser.parse_args()
    restart(args.threads)

    import torch

    from r1nb.models import native_dtype

    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    name = cpu[0].partition(": ")[2] if cpu else platform.processor()
    packages = ("torch", "transformers", "trl", "peft")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    threads = torch.get_num_threads()
    print(f"{name}, {os.cpu_count()} cores, {threads} threads, {native_dtype()}; {versions}")
    for stage, times in (("sft", sft_times), ("grpo", grpo_times)):
        if stage not in args.stages:
            continue
        print(f"\n{stage}: without{'cpu s':>26}{'wall s':>9}{'longer':>8}")
        base = None
        for variant, (processor, wall) in times(args):
            base = processor if base is None or variant.endswith("all on") else base
            longer = processor / base - 1
            print(f"      {variant:28}{processor:9.2f}{wall:9.2f}{longer:+8.0%}", flush=True)


if __name__ == "__main__":
    main()
