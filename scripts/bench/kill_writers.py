"""Kill writers of run folders at random moments: nothing may be missing, leftover or repeated.

    python scripts/bench/kill_writers.py [--trials 40] [--seed 0] [--kinds generate evaluate ...]

A trial starts one of three writers and sends it SIGKILL: `r1nb generate` (a scripted teacher),
`r1nb evaluate` (answers that are replayed), or a process that only writes a manifest, replaces a
folder and appends metrics as fast as it can. Half of the kills come anywhere in the run, half
while it writes. For jobs, the command is killed as well as the job's process. While a writer
runs, a reader reads the folder as fast as it can. Then the trial checks:

- Was a folder ever missing, or a manifest unreadable?
- Does the same command complete the run?
- Is every sample there exactly once?
- Is a temporary file left?

Prints one line a trial; the exit code is 1 if any check failed.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
import yaml

from r1nb.models import tiny_model
from r1nb.runs import Run, append_jsonl, read_log
from r1nb.settings import InputError

LEFT = re.compile(r"\..+\.\d+(-\w+-\w+)?\.(tmp|part|old)|\.r1nb-probe.*")
PROBLEMS, SAMPLES, STEPS = 200, 4, 1500
WRITER = f"""
import sys
from r1nb.runs import atomic_path, open_run, running
run = open_run(sys.argv[1], 'sft', {{'steps': {STEPS}}}, keep=True)
with running(run):
    done = max((r['step'] for r in run.metrics), default=0)
    for step in range(done + 1, {STEPS} + 1):
        run.update(step=step)
        with atomic_path(run/'model') as folder:
            folder.mkdir()
            for name in 'abc': (folder/name).write_text(str(step))
        run.log(step, loss=1 / step)
"""


def prepare(base):
    "What the trials share: a model, recipes, answers."
    model = str(tiny_model(base / "tiny"))
    task = {
        "dataset_name": "reasoning_gym/chain_sum",
        "dataset_kwargs": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
        "num_problems": PROBLEMS,
        "num_generations": SAMPLES,
    }
    generate = {
        **task,
        "split": "train",
        "teacher": "scripted",
        "model_name_or_path": model,
        "batch_size": 8,
    }
    (base / "generate.yaml").write_text(yaml.safe_dump(generate))
    (base / "benchmarks").mkdir()
    rows = [
        {"problem": f"What is {i} + {i}?", "answer": 2 * i, "level": 1, "subject": "sums"}
        for i in range(PROBLEMS)
    ]
    append_jsonl(base / "benchmarks/math_500.jsonl", rows)
    os.environ |= {
        "R1NB_BENCHMARKS": str(base / "benchmarks"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    from r1nb.benchmarks import BENCHMARKS, read_benchmark

    problems, _ = read_benchmark(BENCHMARKS["math_500"])
    text = "<think>\nhm\n</think>\n\\boxed{{{}}}"
    drawn = [
        {
            "problem_id": r["problem_id"],
            "sample": k,
            "text": text.format(r["answer"]),
            "num_tokens": 9,
            "finish_reason": "stop",
        }
        for r in problems
        for k in range(SAMPLES)
    ]
    append_jsonl(base / "samples.jsonl", drawn)
    evaluate = {
        "model_name_or_path": "org/any",
        "tasks": ["math_500"],
        "num_generations": SAMPLES,
        "replay": str(base / "samples.jsonl"),
    }
    (base / "evaluate.yaml").write_text(yaml.safe_dump(evaluate))


def command_of(kind, base, run):
    if kind == "manifest":
        return [sys.executable, "-c", WRITER, str(run)]
    r1nb = str(Path(sys.executable).with_name("r1nb"))
    return [r1nb, kind, "--config", str(base / f"{kind}.yaml"), "--run-dir", str(run)]


def start(kind, base, folder):
    with open(folder / "out.txt", "a") as out:
        return subprocess.Popen(
            command_of(kind, base, folder / "run"),
            cwd=folder,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "R1NB_RUNS": str(folder)},
        )


def samples_file(kind, run):
    return (
        run
        / {
            "generate": "dataset/traces.jsonl",
            "evaluate": "results/math_500/samples-any.jsonl",
            "manifest": "metrics.jsonl",
        }[kind]
    )


def child_of(process):
    "The job's process that the command has started, or None."
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


class Reader(threading.Thread):
    "Looks at a run folder as fast as it can: what was there must stay, and can always be read."

    def __init__(self, path):
        super().__init__(daemon=True)
        self.run_folder = Run(path)
        self.seen, self.wrong = set(), set()
        self.stop, self.looks = False, 0

    def run(self):
        path = self.run_folder.path
        while not self.stop:
            for name in (
                "",
                "manifest.json",
                "config.yaml",
                "dataset",
                "results",
                "model",
                "model/a",
            ):
                if (path / name).exists():
                    self.seen.add(name)
                elif name in self.seen and not (path / name).exists() and name != "model/a":
                    self.wrong.add(f"{name or 'the run folder'} was missing")
            try:
                _ = self.run_folder.manifest
            except InputError as e:
                self.wrong.add(str(e))
            self.looks += 1
            time.sleep(0.0005)

    def end(self):
        self.stop = True
        self.join()
        return sorted(self.wrong)


def hit(kind, draw, process, run, duration):
    "Send SIGKILL at a random moment; returns what was hit and when, None if nothing was."
    begin, whole, victim = time.monotonic(), draw.random() < 0.5, "job"
    file, moment = samples_file(kind, run), draw.uniform(0, duration)
    while process.poll() is None:
        if time.monotonic() - begin > moment if whole else file.exists():
            break
        time.sleep(0.001)
    if not whole:
        time.sleep(draw.uniform(0, 0.8 if kind == "manifest" else 1.5))
    number = process.pid
    if kind != "manifest":
        victim = draw.choice(["command", "job", "job"])
        number = child_of(process) or process.pid if victim == "job" else process.pid
    if process.poll() is not None:
        return None
    alive = child_of(process)
    try:
        os.kill(number, signal.SIGKILL)
    except ProcessLookupError:
        return None
    process.wait()
    end = time.monotonic() + 60  # the job of a killed command ends by itself
    while alive and Path(f"/proc/{alive}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    return f"{victim:7} after {time.monotonic() - begin:4.1f} s"


def complaints(kind, run):
    "What is wrong with a run that has been completed by its second start."
    wrong = [
        f"left behind: {p.relative_to(run.path)}"
        for p in run.path.rglob(".*")
        if LEFT.fullmatch(p.name)
    ]
    if run.status != "completed":
        wrong.append(f"the end is {run.status}")
    rows = read_log(samples_file(kind, run))
    if kind == "manifest":
        steps = [r["step"] for r in rows]
        if steps != list(range(1, STEPS + 1)) or (run / "model/a").read_text() != str(STEPS):
            wrong.append(f"{len(steps)} steps of {STEPS}, {len(set(steps))} different")
        return wrong
    keys = [(r["problem_id"], r["sample"]) for r in rows]
    if len(keys) != PROBLEMS * SAMPLES or len(set(keys)) != len(keys):
        wrong.append(f"{len(keys)} samples of {PROBLEMS * SAMPLES}, {len(set(keys))} different")
    table = run / (
        "dataset/train.parquet" if kind == "generate" else "results/math_500/any.parquet"
    )
    if len(pd.read_parquet(table)) != PROBLEMS * SAMPLES:
        wrong.append(f"{table.name} has {len(pd.read_parquet(table))} rows")
    if kind == "evaluate":
        json.loads((run / "results/results.json").read_text())
    return wrong


def trial(kind, draw, base, folder, duration):
    "`(what was hit, what is wrong)`"
    folder.mkdir()
    process, reader = start(kind, base, folder), Reader(folder / "run")
    reader.start()
    struck = hit(kind, draw, process, folder / "run", duration)
    process.wait()
    again = start(kind, base, folder)
    code = again.wait(300)
    wrong = reader.end()
    if code:
        return struck, [
            *wrong,
            f"the second start ended with {code}: {(folder / 'out.txt').read_text()[-600:]}",
        ]
    return struck, wrong + complaints(kind, Run(folder / "run"))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=["generate", "evaluate", "manifest"])
    args = parser.parse_args()
    draw, bad, tries = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as base:
        base = Path(base)
        prepare(base)
        durations = {}
        for kind in args.kinds:
            (base / kind).mkdir()
            begin = time.monotonic()
            if start(kind, base, base / kind).wait(300):
                sys.exit((base / kind / "out.txt").read_text()[-2000:])
            durations[kind] = time.monotonic() - begin
            print(
                f"{kind}, undisturbed: {durations[kind]:.1f} s",
                complaints(kind, Run(base / kind / "run")) or "ok",
            )
        for number in range(args.trials):
            kind = args.kinds[number % len(args.kinds)]
            what, wrong = None, []
            # a writer that ended before the kill is checked too, but does not count as a trial
            while what is None and not wrong:
                what, wrong = trial(kind, draw, base, base / f"t{number}-{tries}", durations[kind])
                tries += 1
            bad += bool(wrong)
            print(
                f"{number + 1:3} {kind:8} {what or 'had ended before'}",
                "FAILED " + json.dumps(wrong) if wrong else "ok",
                flush=True,
            )
    print(f"{args.trials - bad} of {args.trials} ok")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
