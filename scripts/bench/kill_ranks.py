"""Kill a two-rank training at random moments: no process may survive it, no work may be lost.

    python scripts/bench/kill_ranks.py [--trials 40] [--seed 0]

Each trial starts `r1nb sft --num_processes 2` on a tiny model and sends SIGTERM, SIGINT or
SIGKILL to the command, to accelerate's launcher, to rank 0 or to rank 1 at a random moment, half
of them during training. Then it checks:

- Has every process ended?
- Do exit code and status say what happened?
- Can the notebook be read?
- Does the same command resume from the last complete checkpoint, with the losses of an undisturbed
  run?

Prints one line a trial; the exit code is 1 if any check failed.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import yaml

from r1nb.generate import worked_solution
from r1nb.models import tiny_model
from r1nb.runs import Run, append_jsonl
from r1nb.trainer import last_checkpoint

STEPS = 12
COMMAND = ["sft", "--config", "sft.yaml", "--num_processes", "2", "--run-dir", "run"]
VICTIMS = {
    "command": "/r1nb sft",
    "launcher": "r1nb.jobs accelerate",
    "rank 0": "RANK=0",
    "rank 1": "RANK=1",
}


def prepare(folder):
    "A recipe of twelve steps with a checkpoint each."
    rows = [
        {"problem": f"{a} + {b} =", "completion": worked_solution([("+", a), ("+", b)])}
        for a in range(8)
        for b in range(6)
    ]
    append_jsonl(folder / "traces.jsonl", rows)
    keys = {
        "dataset_name": str(folder / "traces.jsonl"),
        "model_name_or_path": str(tiny_model(folder / "tiny")), "dtype": "float32",
        "learning_rate": 1e-3, "gradient_checkpointing": False, "max_length": 256,
        "per_device_train_batch_size": 4, "max_steps": STEPS, "save_steps": 1,
    }  # fmt: skip
    (folder / "sft.yaml").write_text(yaml.safe_dump(keys))


def start(folder, mark):
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "R1NB_RUNS": str(folder),
        "R1NB_BENCH_MARK": mark,
        "HF_HUB_OFFLINE": "1",
    }
    r1nb = Path(sys.executable).with_name("r1nb")
    with open(folder / "out.txt", "a") as out:
        return subprocess.Popen(
            [r1nb, *COMMAND], cwd=folder, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )


def processes(mark):
    "`{process id: (command line, environment)}` of the live processes that have `mark`."
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            if (
                f"R1NB_BENCH_MARK={mark}" in environ
                and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            ):
                found[int(folder.name)] = (
                    (folder / "cmdline").read_text().replace("\0", " "),
                    environ,
                )
        except OSError:
            continue
    return found


def find(victim, mark):
    "The id of the process that is `victim`, or None if there is none yet."
    sign = VICTIMS[victim]
    for number, (line, environ) in processes(mark).items():
        if sign in line or (
            sign in environ and "r1nb.jobs job" in line and "accelerate" not in line
        ):
            return number


def losses(run):
    return {row["step"]: row["loss"] for row in run.metrics if "loss" in row}


def complaints(folder, victim, signum, process, mark, reference):
    "What is wrong after the kill and after resuming."
    run, wrong = Run(folder / "run"), []
    try:
        code = process.wait(60)
    except subprocess.TimeoutExpired:
        return ["the command did not end within 60 s"], None
    end = time.monotonic() + 40
    while processes(mark) and time.monotonic() < end:
        time.sleep(0.1)
    if left := processes(mark):
        wrong.append(f"left behind: {[line[:60] for line, _ in left.values()]}")
        for number in left:
            os.kill(number, signal.SIGKILL)
    status = run.status
    if code not in (0, 128 + signum, -signum):
        wrong.append(f"exit code {code} after signal {signum}")
    # the reverse is fine: a launcher may be killed after its work was completed
    if code == 0 and status != "completed":
        wrong.append(f"exit code {code} but the run is {status}")
    if status in ("running", "created") and code != 0 and run.metrics:
        wrong.append(f"the run is {status}")
    if (run / "job.ipynb").exists():
        try:
            nbformat.validate(nbformat.read(run / "job.ipynb", as_version=4))
        except Exception as e:
            wrong.append(f"the notebook cannot be read: {e}")
    saved = last_checkpoint(run / "checkpoints")
    step = int(saved.name.split("-")[1]) if saved else 0
    (folder / "out.txt").unlink()
    again = start(folder, mark)
    if again.wait(300):
        return [
            *wrong,
            f"resuming ended with {again.returncode}: {(folder / 'out.txt').read_text()[-300:]}",
        ], (
            code,
            status,
        )
    if (
        step
        and status != "completed"
        and f"resuming from checkpoint-{step}" not in (folder / "out.txt").read_text()
    ):
        wrong.append(f"did not go on from checkpoint-{step}")
    if run.status != "completed":
        wrong.append(f"the end is {run.status}")
    have = losses(run)
    if reference and (
        sorted(have) != sorted(reference) or max(abs(have[s] - reference[s]) for s in have) > 2e-3
    ):
        wrong.append(f"other losses: {have}")
    return wrong, (code, status, f"checkpoint {step}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, bad = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as base:
        base = Path(base)
        (base / "whole").mkdir()
        prepare(base / "whole")
        begin = time.monotonic()
        if start(base / "whole", "whole").wait(300):
            sys.exit((base / "whole/out.txt").read_text()[-2000:])
        duration, reference = time.monotonic() - begin, losses(Run(base / "whole/run"))
        print(f"undisturbed: {duration:.1f} s, {len(reference)} steps", flush=True)
        for trial in range(args.trials):
            folder, mark = base / f"t{trial}", f"{os.getpid()}-{trial}"
            folder.mkdir()
            (folder / "sft.yaml").write_text((base / "whole/sft.yaml").read_text())
            victim = draw.choice(list(VICTIMS))
            signum = draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
            whole = draw.random() < 0.5
            moment, step = draw.uniform(0, duration * 1.02), draw.randrange(1, STEPS + 1)
            process, begin = start(folder, mark), time.monotonic()
            if whole:
                time.sleep(moment)
            else:
                # Imports take most of a small job's time, so half of the kills aim at training
                # and saving.
                while len(losses(Run(folder / "run"))) < step and process.poll() is None:
                    time.sleep(0.02)
                time.sleep(draw.uniform(0, 0.3))
                moment = time.monotonic() - begin
            while (number := find(victim, mark)) is None and process.poll() is None:
                time.sleep(0.02)
            if number is not None:
                try:
                    os.kill(number, signum)
                except ProcessLookupError:
                    pass
            wrong, what = complaints(folder, victim, signum, process, mark, reference)
            bad += bool(wrong)
            said = f"{trial + 1:3} {victim:8} {signum.name:7} at {moment:5.1f} s: {what}"
            print(said, "FAILED " + json.dumps(wrong) if wrong else "ok", flush=True)
    print(f"{args.trials - bad} of {args.trials} ok")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
