"Several processes under accelerate: same results as one, ended together, resumed."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from conftest import LEVELS, ROOT, TASK, TRAINING, finish, losses, r1nb, start, wait_for
from nbformat.v4 import new_code_cell, new_notebook
from safetensors.torch import load_file

from r1nb.diagnose import SIGNS, WINDOW, read_diagnosis
from r1nb.jobs import Job, collective_timeout
from r1nb.ranks import join_ranks
from r1nb.runs import Run
from r1nb.trainer import checkpoints

deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="needs DeepSpeed (extra deepspeed)"
)


def alive(mark):
    "Command lines of processes that have `mark` in their environment."
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            state = (environ.parent / "stat").read_text().rpartition(")")[2].split()[0]
            if mark.encode() in environ.read_bytes() and state != "Z":
                found.append((environ.parent / "cmdline").read_text().replace("\0", " ")[:120])
        except OSError:
            continue
    return found


def weights(folder):
    "All weights of the model in `folder` as one vector."
    tensors = load_file(Path(folder) / "model.safetensors")
    return torch.cat([tensors[name].float().flatten() for name in sorted(tensors)])


def gone(mark, within=20):
    "Whether every process with `mark` in its environment ends within `within` seconds."
    end = time.monotonic() + within
    while alive(mark) and time.monotonic() < end:
        time.sleep(0.1)
    return alive(mark) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "accelerator", ["fsdp", pytest.param("zero3", marks=deepspeed)]
)  # ddp: test_slurm; zero2 below; fsdp is DDP on CPUs, test_gpu shards it
def test_two_ranks_learn_as_one(recipe, alone, accelerator, tmp_path):
    """Same global batch, same losses.

    Gradients are summed in another order, so the bits differ.
    """
    options = ("--config", recipe, "--per_device_train_batch_size", 4, "--accelerator", accelerator)
    place = ("--num_processes", 2, "--run-dir", tmp_path / "two")
    result = r1nb("sft", *options, *place, cwd=tmp_path, runs=tmp_path)
    assert result.code == 0, result.err[-3000:]
    run = Run(tmp_path / "two")
    assert len(losses(alone)) == 6
    assert losses(run) == pytest.approx(losses(alone), abs=1e-4)  # they fall by 0.03 a step
    assert run.status == "completed" and run.manifest["world_size"] == 2
    assert (run / "model" / "model.safetensors").exists() and checkpoints(run / "checkpoints")
    assert "[rank 0] " in result.out
    for rank in (0, 1):
        assert json.loads((run / "logs" / f"rank-{rank}.json").read_text())["code"] == 0
        assert (run / "logs" / f"rank-{rank}.log").stat().st_size > 0
    for path, first in ((run / "job.ipynb", True), (run / "logs" / "job-rank1.ipynb", False)):
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        previews = ["rank-0" in c.metadata.tags for c in cells]
        assert any(previews) and not all(previews)
        states = [c.metadata.papermill.status for c in cells]
        assert states == ["completed" if first or not p else "pending" for p in previews]
    # Differences are measured against the length of the update: an untrained model differs by the
    # whole update, rounding makes less than a ten-thousandth of it.
    start = weights(yaml.safe_load(recipe.read_text())["model_name_or_path"])
    one, two = weights(alone / "model"), weights(run / "model")
    update = (one - start).norm()
    assert update > 0.1
    assert (two - one).norm() < 0.01 * update


GRPO_CELL = """
import itertools, torch
from accelerate.utils import gather_object
import r1nb.shared_prefix as shared_prefix
from r1nb.runs import rank
draw_tokens, turn = shared_prefix.draw_tokens, itertools.count()
def draw_together(policy, prompts, *options):
    rows = gather_object(prompts)
    with torch.random.fork_rng():
        torch.manual_seed(next(turn))
        drawn = draw_tokens(policy, rows, *options)
    return drawn[rank() * len(prompts):][:len(prompts)]
shared_prefix.draw_tokens = draw_together
"""


# Half of the problems are always or never solved; a module, because the command checks it too.
LOTTERY = """
import zlib
def number(text):
    return zlib.crc32(text.encode()) / 2**32
def lucky(completions, problem, **columns):
    chances = [(0.0, 1.0, 0.5, 0.5)[int(4 * number(text))] for text in problem]
    rows = zip(completions, chances)
    return [float(number(c[0]["content"]) < chance) for c, chance in rows]
"""
# A group of eight may begin on one rank and end on the other.
SELECTING = {
    "reward_funcs": ["lottery:lucky"], "num_generations": 8, "num_problems": 40,
    "resample_rounds": 2, "rest_solved": 2, "rest_hopeless": 2,
    "eval_strategy": "steps", "eval_steps": 3, "num_eval_problems": 6,
}  # fmt: skip
CLIMBING = {
    "reward_funcs": ["lottery:lucky"], "num_generations": 8, "resample_rounds": 1, "tasks": LEVELS,
    "curriculum": list(LEVELS), "curriculum_groups": 6, "curriculum_raise": 0.3,
    "curriculum_lower": 0.0,
}  # fmt: skip
SIZES = {"one": (16, 1, 1), "accumulated": (8, 2, 1), "two": (8, 1, 2)}
SPREAD = {"one": (24, 1, 1), "two": (12, 1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "sizes"),
    [({}, SIZES), (SELECTING, SPREAD), (CLIMBING, SPREAD)],
    ids=["plain", "selecting", "climbing"],
)
def test_grpo_on_two_ranks_learns_as_on_one(more, sizes, tiny_model, tmp_path):
    """Same global batch, same completions, same curve: one batch, two accumulated ones, two ranks.

    Each rank samples from a different random state, so in this copy of the job notebook each rank
    samples all completions and takes its part. Rank 0 alone writes the diagnosis.
    """
    (tmp_path / "lottery.py").write_text(LOTTERY)
    nb = nbformat.read(ROOT / "nbs" / "jobs" / "grpo.ipynb", as_version=4)
    nb.cells.insert(0, new_code_cell(GRPO_CELL))
    nbformat.write(nb, tmp_path / "learn.ipynb")
    keys = {
        **TASK, **TRAINING, "split": "train", "num_problems": 16,
        "model_name_or_path": str(tiny_model), "max_steps": WINDOW, "num_generations": 4,
        "max_completion_length": 16, "reward_funcs": ["length"], "save_strategy": "no", **more,
    }  # fmt: skip
    curves = []
    for name, (rows, accumulated, ranks) in sizes.items():
        batch = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(keys | batch))
        options = ("--config", f"{name}.yaml", "--num_processes", ranks, "--run-dir", name)
        result = r1nb("run", "learn.ipynb", *options, cwd=tmp_path, runs=tmp_path)
        assert result.code == 0, result.err[-3000:]
        run = Run(tmp_path / name)
        assert run.metrics[0]["num_tokens"] > 0 and (run / "model" / "model.safetensors").exists()
        compared = {"reward", "loss", "grad_norm", "eval_reward"}
        curves.append(
            [
                [row[k] for k in sorted(row) if k in compared or k.startswith("groups/")]
                for row in run.metrics
            ]
        )
        norms = [row["grad_norm"] for row in run.metrics if "reward" in row]
        assert len(norms) == WINDOW and all(norm > 0 for norm in norms[1:])
        if more:  # in the first step no group has a spread, nor do the replacements
            assert sum(row.get("groups/resampled", 0) for row in run.metrics) > 2
        if "curriculum" in more:
            assert max(row.get("groups/level", 0) for row in run.metrics) > 1
        (limit,) = (row for row in read_diagnosis(run) if row["sign"] == "length limit")
        assert limit["since"] == WINDOW and limit["numbers"]["clipped"] > 0.5
        record = (run / "job.ipynb").read_text()
        assert f"step {WINDOW}: length limit: " in record  # stderr of the training's cell
        assert "what to do" in record and SIGNS["length limit"].remedy in record
    assert "length limit" not in (run / "logs" / "rank-1.log").read_text()
    one, *others = curves
    for other in others:
        assert sum(one, []) == pytest.approx(sum(other, []), abs=1e-5)


@deepspeed
@pytest.mark.slow
def test_the_script_under_accelerate_launch_takes_the_flags_of_open_r1(recipe, tmp_path):
    keys = yaml.safe_load(recipe.read_text())
    accelerate = Path(sys.executable).with_name("accelerate")
    command = [accelerate, "launch", "--config_file", ROOT / "scripts/accelerate/zero2.yaml",
               "--num_processes", 2, "--main_process_port", 29517, ROOT / "scripts/sft.py",
               "--model_name_or_path", keys["model_name_or_path"],
               "--dataset_name", keys["dataset_name"],
               "--learning_rate", "2.0e-5", "--num_train_epochs", 1, "--max_seq_length", 256,
               "--per_device_train_batch_size", 4, "--per_device_eval_batch_size", 4,
               "--gradient_accumulation_steps", 2, "--gradient_checkpointing", "--logging_steps", 1,
               "--eval_strategy", "steps", "--eval_steps", 100,
               "--output_dir", tmp_path / "out"]  # fmt: skip
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = Run(tmp_path / "out")
    assert run.status == "completed" and run.manifest["world_size"] == 2
    assert len(losses(run)) == 3  # 38 or so traces, sixteen a step


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sft", "--accelerator", "zero4"), "did you mean 'zero"),
        (("sft", "--num_processes", "0"), "0 is not positive"),
        (("curate", "--num_processes", "2"), "curate runs as one process"),
    ],
)
def test_bad_choices(arguments, message, tmp_path):
    result = r1nb(*arguments, cwd=tmp_path, runs=tmp_path / "runs")
    assert result.code == 2 and message in result.err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("stage", "environment"),
    [
        ("sft", {"ACCELERATE_USE_FSDP": "true"}),
        ("grpo", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}),
    ],
)
def test_an_adapter_is_refused_where_weights_are_sharded(stage, environment, recipe, monkeypatch):
    import importlib

    from r1nb.recipes import configure
    from r1nb.settings import InputError

    module = importlib.import_module(f"r1nb.{stage}")
    keys = {"use_peft": True, "model_name_or_path": "bundled"}
    configuration, _ = configure(
        module.stage, {**keys, "dataset_name": str(recipe.parent / "traces.jsonl")}
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="use_peft.*ddp or zero2"):
        module.check(*configuration)


@pytest.mark.slow
def test_bad_input_on_two_ranks_is_one_message(recipe, tmp_path):
    options = ("--config", recipe, "--learning_rat", "1", "--run-dir", tmp_path / "run")
    result = r1nb("sft", *options, "--num_processes", 2, cwd=tmp_path, runs=tmp_path)
    assert result.code == 2 and result.err.count("did you mean 'learning_rate'") == 1
    assert not (tmp_path / "run").exists()


# ---- how a job ends ----------------------------------------------------------------------------

WORK = """
import os, time, torch
from pathlib import Path
rank = int(os.environ["RANK"])
print("rank", rank, "at work", flush=True)
Path(f"pid-{rank}").write_text(str(os.getpid()))
while not Path(f"go-{rank}").exists(): time.sleep(0.05)
"""


class Pair:
    """A notebook on two ranks.

    Rank N writes its process id to `pid-N` and runs the cell `then` once the file `go-N` exists.
    """

    def __init__(self, folder, then="pass"):
        nbformat.write(
            new_notebook(cells=[new_code_cell(WORK), new_code_cell(then)]), folder / "work.ipynb"
        )
        self.folder, self.mark = folder, f"R1NB_TEST_MARK={folder}"
        self.run = Run(folder / "run")
        command = ("run", "work.ipynb", "--num_processes", 2, "--run-dir", "run")
        env = {"R1NB_TEST_MARK": str(folder)}
        self.process = start(*command, cwd=folder, runs=folder, **env)
        self.pids = [
            int(wait_for(lambda r=r: self.pid_of(r), f"rank {r}", self.process)) for r in (0, 1)
        ]
        assert len(alive(self.mark)) >= 3  # the command and both ranks: `gone` would see them

    def pid_of(self, rank):
        try:
            return (self.folder / f"pid-{rank}").read_text()
        except OSError:
            return ""

    def end(self):
        result = finish(self.process, self.folder, 60)
        assert gone(self.mark), alive(self.mark)
        nb = nbformat.read(self.run / "job.ipynb", as_version=4)
        nbformat.validate(nb)
        assert "rank 0 at work" in "".join(o.get("text", "") for o in nb.cells[0].outputs)
        return result


@pytest.mark.slow
def test_a_cell_that_fails_on_one_rank_ends_all(tmp_path):
    pair = Pair(tmp_path, "if rank: raise ValueError('on purpose')\nelse: time.sleep(100)")
    for rank in (0, 1):
        (tmp_path / f"go-{rank}").touch()
    result = pair.end()
    assert result.code == 1 and "rank 1: ValueError: on purpose" in result.err
    assert pair.run.manifest["status"] == "failed" and "on purpose" in pair.run.manifest["error"]
    assert "ValueError" in (pair.run / "logs" / "job-rank1.ipynb").read_text()


@pytest.mark.slow
def test_a_killed_rank_ends_all(tmp_path):
    pair = Pair(tmp_path)
    os.kill(pair.pids[1], signal.SIGKILL)
    result = pair.end()
    assert result.code == 137 and "rank 1 was killed by signal 9" in result.err
    assert pair.run.manifest["status"] == "failed"
    assert "rank 1 was killed" in pair.run.manifest["error"]


@pytest.mark.slow
def test_a_signal_reaches_every_rank(tmp_path):
    pair = Pair(tmp_path)
    pair.process.terminate()
    result = pair.end()
    assert (result.code, pair.run.manifest["status"]) == (143, "preempted")


@pytest.mark.slow
def test_no_process_outlives_a_killed_command(tmp_path):
    pair = Pair(tmp_path)
    pair.process.kill()
    pair.end()
    assert pair.run.status in ("preempted", "interrupted", "failed")


@pytest.mark.slow
def test_a_truncated_checkpoint_is_skipped(recipe, alone, tmp_path):
    run = Run(shutil.copytree(alone.path, tmp_path / "run"))
    folders = checkpoints(run / "checkpoints")
    assert [p.name for p in folders] == ["checkpoint-4", "checkpoint-6"]
    truncated = folders[-1] / "optimizer.pt"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    run.update(status="interrupted")
    options = ("--config", recipe, "--per_device_train_batch_size", 8, "--run-dir", "run")
    result = r1nb("sft", *options, cwd=tmp_path, runs=tmp_path)
    assert result.code == 0 and "resuming from checkpoint-4" in result.out, result.err[-3000:]
    assert losses(run) == pytest.approx(losses(alone), abs=1e-4)


@pytest.mark.parametrize("gpu", [False, True])
def test_timeout_of_the_recipe_reaches_the_process_group(gpu, tmp_path, monkeypatch):
    "transformers would pass ddp_timeout on itself, but only where no group exists."
    given = {}

    def state(**options):
        given.update(options)

    monkeypatch.setattr("accelerate.PartialState", state)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    (tmp_path / "r.yaml").write_text("ddp_timeout: 5400\n")
    for job, seconds in (
        (Job("sft", config=str(tmp_path / "r.yaml")), 5400),
        (Job("sft", config=str(tmp_path / "r.yaml"), overrides={"ddp_timeout": "60"}), 60),
        (Job("grpo"), 7200),
        (Job("generate"), 30 * 86400),
    ):
        join_ranks(collective_timeout(job))
        assert given["timeout"].total_seconds() == seconds


@pytest.mark.slow
def test_fsdp_saves_the_type_of_the_model(recipe, tiny_model, tmp_path):
    "accelerate makes the parameters float32 under bf16; the saved ones are bfloat16 again."
    keys = ("--dtype", "bfloat16", "--bf16", "true", "--max_steps", 1)
    options = ("--config", recipe, *keys, "--accelerator", "fsdp", "--num_processes", 2)
    result = r1nb("sft", *options, "--run-dir", tmp_path / "two", cwd=tmp_path, runs=tmp_path)
    assert result.code == 0, result.err[-3000:]
    saved = load_file(tmp_path / "two" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert "no samples are shown here under ZeRO-3 and FSDP" in result.err
