"""Measure what running a job as a notebook costs: the same SFT by papermill and as a plain script.

    python scripts/bench/notebook_price.py [--pairs 3] [--steps 12] [--num_processes 2]

Both run under `accelerate launch` with the same recipe on the bundled model; the notebook's cell
has the script's lines. They alternate, and which one comes first alternates too. Prints the wall
seconds of each run, the mean ratio of the pairs with its standard error, and how many seconds
went before the first line of the work, in the work, and after its last line. The ratio of the
processor seconds of all processes is printed too: it depends less on other work on the machine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from r1nb.generate import worked_solution
from r1nb.ranks import accelerator_file, free_port
from r1nb.runs import append_jsonl

LINES = """
import time
from pathlib import Path
begin = time.time()
from r1nb.runs import Run, rank, running
from r1nb.recipes import configure
from r1nb.sft import run_sft, stage
(traces, model, args), _ = configure(stage, recipe)
run = Run(folder)
with running(run) as summary: summary.update(run_sft(run, traces, model, args))
if rank() == 0: Path(mark).write_text(f'{begin} {time.time()}')
"""
PLAIN = """
import sys
from r1nb.ranks import join_ranks
mark, recipe, folder = sys.argv[1:]
join_ranks()
"""


def prepare(base, steps):
    rows = [
        {"problem": f"{a} + {b} =", "completion": worked_solution([("+", a), ("+", b)])}
        for a in range(20)
        for b in range(20)
    ]
    append_jsonl(base / "traces.jsonl", rows)
    keys = {
        "dataset_name": str(base / "traces.jsonl"), "model_name_or_path": "bundled",
        "max_steps": steps, "save_strategy": "no", "per_device_train_batch_size": 4,
        "max_length": 160, "gradient_checkpointing": False,
    }  # fmt: skip
    (base / "sft.yaml").write_text(yaml.safe_dump(keys))
    parameters = new_code_cell("mark = recipe = folder = ''", metadata={"tags": ["parameters"]})
    nb = new_notebook(cells=[parameters, new_code_cell(LINES.strip())])
    nbformat.write(nb, base / "work.ipynb")
    (base / "work.py").write_text(PLAIN + LINES)


def run_once(kind, base, number, processes):
    "`(wall seconds, seconds before, in and after the work, processor seconds)`."
    folder, mark = base / f"{kind}-{number}", base / f"mark-{kind}-{number}"
    values = {"mark": str(mark), "recipe": str(base / "sft.yaml"), "folder": str(folder / "work")}
    launch = [
        "--config_file",
        accelerator_file("ddp"),
        "--num_processes",
        processes,
        "--main_process_port",
        free_port(),
    ]
    if kind == "notebook":
        job = {
            "stage": "notebook",
            "notebook": str(base / "work.ipynb"),
            "parameters": values,
            "run_dir": str(folder),
        }
        rest = ["-m", "r1nb.jobs", "job", json.dumps(job)]
    else:
        rest = [base / "work.py", *values.values()]
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    begin, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "r1nb.jobs", "accelerate", *launch, *rest]
    done = subprocess.run(
        list(map(str, command)), env=env, cwd=base, capture_output=True, text=True
    )
    wall, after = time.time() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    first, last = map(float, mark.read_text().split())
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, first - begin, last - first, begin + wall - last, processor


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--num_processes", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        base = Path(base)
        prepare(base, args.steps)
        run_once(
            "script", base, "warm", args.num_processes
        )  # the disk's cache, the de-quantized model
        ratios, extra, processor = [], [], []
        for pair in range(args.pairs):
            kinds = ("notebook", "script") if pair % 2 else ("script", "notebook")
            got = {kind: run_once(kind, base, pair, args.num_processes) for kind in kinds}
            ratios.append(got["notebook"][0] / got["script"][0])
            extra.append(
                [n - s for n, s in zip(got["notebook"][1:4], got["script"][1:4], strict=True)]
            )
            processor.append(got["notebook"][4] / got["script"][4])
            text = ", ".join(
                f"{k} {t[0]:.1f} s ({t[1]:.1f} + {t[2]:.1f} + {t[3]:.1f})" for k, t in got.items()
            )
            print(
                f"pair {pair + 1}: {text}; ratio {ratios[-1]:.3f}, processor {processor[-1]:.3f}",
                flush=True,
            )
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
    before, within, after = map(statistics.mean, zip(*extra, strict=True))
    print(f"notebook / script: {statistics.mean(ratios):.3f} +- {error:.3f}", end=", ")
    print(f"processor {statistics.mean(processor):.3f}", end="; ")
    print(
        f"the notebook's extra seconds: {before:+.2f} before the work,"
        f" {within:+.2f} in it, {after:+.2f} after it"
    )


if __name__ == "__main__":
    main()
