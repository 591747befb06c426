"""What each CPU shortcut of training gains: a step with all of them, and without each of them.

    python scripts/bench/cpu_shortcuts.py --quickstart runs/quickstart --threads 1

The quickstart must have run: its traces and its SFT model are used, and its recipe, with fewer
completions a step (--completions). Every variant takes its step on the same batch; in GRPO, on the
same completions, of which a fixed share has no advantage. Variants take turns, and the fastest of
each counts. In GRPO, generation and update are timed apart; a variant that changes only one of them
takes the other's time from `all on`. Besides: other optimizers in SFT (`optimizer`), and merged
adapters (`merged`).

Prints processor and wall seconds, and how much more processor time a step takes without the
shortcut. Processor time depends less on other work on the machine; threads that wait sleep instead
of spinning (OMP_WAIT_POLICY), or waiting would count.
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
from contextlib import nullcontext
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


def timed(action):
    "`(result, (processor seconds, wall seconds))` of `action()`."
    begin, wall = time.process_time(), time.perf_counter()
    result = action()
    return result, (time.process_time() - begin, time.perf_counter() - wall)


def build(stage: str, **keys):
    "The trainer of `stage` with the quickstart's recipe and `keys`, as the stage would train it."
    from r1nb import grpo, sft
    from r1nb.recipes import configure
    from r1nb.runs import open_run
    from r1nb.trainer import use_master_weights

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
    use_master_weights(trainer)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def update(trainer, batch, head: bool = True) -> None:
    "Forward, backward and optimizer step on `batch`; `head`: at completion tokens only."
    from r1nb.compat import score_completions_only

    with score_completions_only() if head else nullcontext():
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


@contextlib.contextmanager
def attention(trainer, name: str):
    "While this lasts, the model of `trainer` has the attention implementation `name`."
    before = trainer.model.config._attn_implementation
    trainer.model.set_attn_implementation(name)
    try:
        yield
    finally:
        trainer.model.set_attn_implementation(before)


def no_hooks(trainer):
    "While this lasts, a batch reaches the model of `trainer` as TRL made it."
    return patch.object(trainer.model, "_forward_pre_hooks", {})


@contextlib.contextmanager
def without(trainer, *classes: str):
    "While this lasts, `trainer` is one without the shortcuts `classes` (none given: TRL's)."
    ours = type(trainer)
    kept = [b for b in ours.__bases__ if b.__name__ not in classes]
    trainer.__class__ = type("Trainer", tuple(kept), {}) if classes else kept[-1]
    try:
        yield
    finally:
        trainer.__class__ = ours


def fastest(variants: dict, repeat: int) -> dict:
    "Variant → its fastest time, `variants` being name → (action, context manager)."
    taken = {name: [] for name in variants}
    for _ in range(repeat):
        for name, (action, context) in variants.items():
            with context():
                taken[name].append(timed(action)[1])
    return {name: min(times) for name, times in taken.items()}


def sft_times(args) -> dict:
    "Variant → seconds of an update in SFT."
    keys = {"dataset_name": str(args.quickstart / "curate" / "dataset"), "num_traces": 64}
    ours = build("sft", **keys)
    batch = next(iter(ours.get_train_dataloader()))

    def step(head=True):
        return lambda: update(ours, batch, head)

    @contextlib.contextmanager
    def stock():
        with no_hooks(ours), attention(ours, "sdpa"):
            yield

    step()()  # warms up
    variants = {
        "all on": (step(), nullcontext),
        "beginning read once": (step(), lambda: no_hooks(ours)),
        "head at completions only": (step(head=False), nullcontext),
        "grouped attention": (step(), lambda: attention(ours, "sdpa")),
        "all of them": (step(head=False), stock),
    }
    return fastest(variants, args.repeat)


def optimizer_times(args) -> dict:
    "Variant → seconds of an update in SFT with other optimizers and precisions."
    keys = {"dataset_name": str(args.quickstart / "curate" / "dataset"), "num_traces": 64}
    variants = {}
    for name, more in (
        ("all on", {}),
        ("MasterAdamW: AdamW", {"master_weights": False}),
        ("MasterAdamW: float32, autocast", {"dtype": "float32", "bf16": True}),
    ):
        trainer = build("sft", **keys, **more)
        batch = next(iter(trainer.get_train_dataloader()))
        update(trainer, batch)  # warms up
        variants[name] = (lambda t=trainer, b=batch: update(t, b), nullcontext)
    return fastest(variants, args.repeat)


def grpo_keys(args) -> dict:
    "The quickstart's GRPO with its SFT model and one batch a step."
    return {
        "model_name_or_path": str(args.quickstart / "sft"),
        "per_device_train_batch_size": args.completions,
        "gradient_accumulation_steps": 1,
    }


def grpo_times(args) -> dict:
    "Variant → seconds of generation and update in GRPO."
    ours = build("grpo", **grpo_keys(args))
    batch = next(iter(ours.get_train_dataloader()))

    def generate(trainer=ours):
        return trainer._generate_and_score_completions(batch)

    def step(head=True):
        return lambda: update(ours, inputs, head)

    def add(first, second):
        return tuple(map(sum, zip(first, second, strict=True)))

    length, ours.args.max_completion_length = ours.args.max_completion_length, 2
    generate()  # warms up
    ours.args.max_completion_length = length
    inputs, own = timed(generate)
    advantages = inputs["advantages"]
    advantages[::2], advantages[1::2] = 0.5, -0.5
    advantages[: round(args.without_advantage * len(advantages))] = 0
    tokens = inputs["completion_mask"].sum(1).float().mean()
    print(f"      {tokens:.0f} tokens a completion")
    updates = fastest(
        {
            "all on": (step(), nullcontext),
            "TreeScores": (step(), lambda: without(ours, "TreeScores")),
            "SkippedRows": (step(), lambda: without(ours, "SkippedRows")),
            "head at completions only": (step(head=False), nullcontext),
            "grouped attention": (step(), lambda: attention(ours, "sdpa")),
            "all of them": (step(head=False), lambda: without(ours)),
        },
        args.repeat,
    )
    with without(ours):
        stock = timed(generate)[1]
    with attention(ours, "sdpa"):
        sdpa = timed(generate)[1]
    print(f"      generation {own[0]:.1f} s, update {updates['all on'][0]:.1f} s of processor time")
    generation = {"grouped attention": sdpa, "all of them": stock}
    found = {name: add(generation.get(name, own), taken) for name, taken in updates.items()}
    found["OwnDecoding"] = add(stock, updates["all on"])
    return found


def merged_times(args) -> dict:
    "Variant → seconds of generation in float32, with adapters merged and not."
    import torch

    from r1nb import shared_prefix

    trainer = build("grpo", **grpo_keys(args), dtype="float32")
    batch = next(iter(trainer.get_train_dataloader()))

    def apart():
        return patch.object(shared_prefix, "merged", lambda policy: nullcontext())

    def generate():
        torch.manual_seed(0)  # the same completions each time
        return trainer._generate_and_score_completions(batch)

    variants = {"all on": (generate, nullcontext), "merged adapters": (generate, apart)}
    return fastest(variants, 2)


PARTS = {
    "sft": sft_times,
    "optimizer": optimizer_times,
    "grpo": grpo_times,
    "merged": merged_times,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument(
        "--repeat", type=int, default=2, help="updates, of which the fastest counts"
    )
    parser.add_argument("--completions", type=int, default=32)
    parser.add_argument(
        "--without-advantage", type=float, default=0.5, help="share of rows; the quickstart's mean"
    )
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
    for stage in args.parts:
        times = PARTS[stage]
        print(f"\n{stage}: without{'cpu s':>34}{'wall s':>9}{'longer':>8}")
        base = None
        for variant, (processor, wall) in times(args).items():
            base = processor if base is None or variant.endswith("all on") else base
            longer = processor / base - 1
            print(f"      {variant:36}{processor:9.2f}{wall:9.2f}{longer:+8.0%}", flush=True)


if __name__ == "__main__":
    main()
