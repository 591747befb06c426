"""Measure GRPO with its ways to sample: steps of the same recipe with `generate` and with vLLM.

    python scripts/bench/rollouts.py --steps 4 --completions 128

Each way trains the same model from the same start in a process of its own, by `r1nb.grpo.run_grpo`.
The first step is left out: it has the engine's warm-up. Without a GPU: `own loop` is r1nb's
sampling for CPUs, `generate` is TRL's (`cpu_shortcuts: false`). Prints Markdown.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

GAP = "sampling/sampling_logp_difference/mean"
WAYS = {
    "own loop": {"cpu_shortcuts": "auto"},
    "generate": {"cpu_shortcuts": False},
    "vLLM, colocated": {"use_vllm": True, "vllm_mode": "colocate"},
}


def run_way(recipe: dict, folder: str) -> list[dict]:
    "The logged steps of a training with `recipe`."
    from r1nb.grpo import run_grpo, stage
    from r1nb.recipes import configure
    from r1nb.runs import open_run

    configured, written = configure(stage, recipe)
    run = open_run(Path(folder) / "run", "grpo", written)
    run_grpo(run, *configured)
    return [line for line in run.metrics if "reward" in line]


def row(way: str, steps: list[dict]) -> str:
    "The line of the table for `way`: medians over the steps after the first."
    seconds = [b["time"] - a["time"] for a, b in zip(steps, steps[1:], strict=False)]
    length = statistics.median(line["completions/mean_length"] for line in steps[1:])
    gaps = [line[GAP] for line in steps[1:] if GAP in line]
    gap = f"{statistics.median(gaps):.2g}" if gaps else "–"
    return f"| {way} | {statistics.median(seconds):.1f} | {length:.0f} | {gap} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--completions", type=int, default=128)
    parser.add_argument("--max_completion_length", type=int, default=64)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--recipe", help=argparse.SUPPRESS)  # of one way, in its process
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.recipe:
        print("RESULT" + json.dumps(run_way(json.loads(args.recipe), args.folder)))
        return
    print("| sampling | seconds a step | tokens a completion | mean difference of log-p |")
    print("|---|---|---|---|", flush=True)
    for way in args.ways:
        recipe = {
            "dataset_name": "reasoning_gym/chain_sum",
            "num_problems": 64,
            "model_name_or_path": args.model,
            "dtype": args.dtype,
            "reward_funcs": ["accuracy", "format"],
            "use_peft": True,
            "max_steps": args.steps,
            "num_generations": 8,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": args.completions // 16,
            "max_completion_length": args.max_completion_length,
            "save_strategy": "no",
            "disable_tqdm": True,
            **WAYS[way],
        }
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--recipe", json.dumps(recipe), "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{way}: {done.stderr[-3000:]}")
        steps = json.loads(done.stdout.split("RESULT", 1)[1].splitlines()[0])
        print(row(way, steps), flush=True)


if __name__ == "__main__":
    main()
