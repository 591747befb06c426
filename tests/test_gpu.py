"What is for GPUs, as far as a machine without one can show it."

import importlib.util
import os
import re
import subprocess
import sys

import nbformat
import pytest
import torch
import yaml
from conftest import ROOT, losses, r1nb
from nbformat.v4 import new_code_cell
from safetensors.torch import load_file

from r1nb import sft
from r1nb.generate import worked_solution
from r1nb.models import load_tokenizer
from r1nb.recipes import configure
from r1nb.runs import Run, append_jsonl
from r1nb.settings import InputError
from r1nb.trainer import load_for_training

deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed (extra deepspeed)"
)
SECTIONS = 9


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_check_of_a_gpu_fills_every_section(tmp_path):
    "In toy sizes: each case has a number, or says why it was not run."
    command = [sys.executable, ROOT / "scripts/bench/gpu.py", "--toy", "--out", tmp_path / "gpu.md"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    head, *sections = (tmp_path / "gpu.md").read_text().split("\n## ")
    assert "torch 2." in head and len(sections) == SECTIONS
    for section in sections:
        title, _, names, _, *rows = section.strip().splitlines()
        assert names.startswith("| case |") and rows, title
        for row in rows:
            case, *cells = (cell.strip() for cell in row.strip("|").split(" | "))
            reasons = [c for c in cells if c.startswith("not run: ")]
            assert reasons or any(re.search(r"\d", c) for c in cells), row
            words = ("needs a GPU", "does not support backward on CPU", "has no plan")
            assert all(any(w in r for w in words) for r in reasons), row
    text = "".join(sections)
    assert "equal" in text and "DIFFERENT" not in text and "| completed |" in text


@pytest.mark.slow
def test_a_section_that_fails_leaves_the_others(tmp_path):
    command = [sys.executable, ROOT / "scripts/bench/gpu.py", "--toy", "--out", tmp_path / "gpu.md"]
    broken = "import sys\nsys.modules['r1nb.trainer'] = None\n"  # what `optimizer` needs
    (tmp_path / "sitecustomize.py").write_text(broken)
    path = os.pathsep.join([str(tmp_path), *sys.path[1:], str(ROOT)])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    subprocess.run([*command, "--only", "optimizer,head"], env=env, cwd=tmp_path, check=True)
    _, optimizer, head = (tmp_path / "gpu.md").read_text().split("\n## ")
    assert "not run: exit code 1" in optimizer and "r1nb.trainer" in optimizer
    assert "TRL's fused head" in head and "not run" not in head


def test_an_unknown_section_is_an_error(tmp_path):
    command = [sys.executable, ROOT / "scripts/bench/gpu.py", "--only", "packed,optimiser"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "optimiser; valid: packed, loss, optimizer" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ---- rows that are shared by ranks --------------------------------------------------------------

# accelerate 1.15 takes a training on CPUs for plain data parallelism, whatever --accelerator says
# about FSDP. This makes it take CPUs for GPUs, so that FSDP does shard.
LIKE_GPUS = """
import accelerate.state as state
from accelerate.utils import DistributedType

def on_cpus_as_on_gpus(self, *args, prepare=state.PartialState.__init__, cpus=DistributedType, **o):
    prepare(self, *args, **o)
    if self.distributed_type == cpus.MULTI_CPU:
        self.distributed_type = cpus.MULTI_GPU

state.PartialState.__init__ = on_cpus_as_on_gpus
"""
# Says how the model and a batch are divided.
SHOW = """
from transformers import Trainer

def shown(self, model, inputs, *rest, step=Trainer.training_step):
    if not self.state.global_step:
        kind, weight = self.accelerator.distributed_type.value, next(iter(model.parameters()))
        print("divided:", kind, type(weight).__name__, tuple(inputs["input_ids"].shape))
    return step(self, model, inputs, *rest)

Trainer.training_step = shown
"""


@pytest.fixture
def recipe(tiny_model, tmp_path):
    rows = [
        {"problem": f"{a} + {b} =", "completion": worked_solution([("+", a), ("+", b)])}
        for a in range(6)
        for b in range(4)
    ]
    append_jsonl(tmp_path / "traces.jsonl", rows)
    keys = {
        "dataset_name": str(tmp_path / "traces.jsonl"), "model_name_or_path": str(tiny_model),
        "dtype": "float32", "learning_rate": 1e-3, "gradient_checkpointing": False,
        "max_length": 256, "max_steps": 3, "save_strategy": "no", "cpu_shortcuts": False,
        "pad_to_multiple_of": 4, "disable_tqdm": True,
    }  # fmt: skip
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(keys))

    def train(name, cells, *options):
        nb = nbformat.read(ROOT / "nbs/jobs/sft.ipynb", as_version=4)
        nb.cells[:0] = [new_code_cell(cell) for cell in cells]
        nbformat.write(nb, tmp_path / f"{name}.ipynb")
        place = ("--config", "sft.yaml", "--run-dir", tmp_path / name)
        result = r1nb("run", f"{name}.ipynb", *place, *options, cwd=tmp_path, runs=tmp_path)
        divided = re.findall(r"\[rank \d\] divided: (.*)", result.out)
        return result, divided, losses(Run(tmp_path / name))

    return train


@pytest.mark.slow
@deepspeed
def test_two_ranks_that_share_each_row_learn_as_one(recipe):
    "Ulysses: half of each row on each rank, and the losses of one process."
    size = ("--per_device_train_batch_size", 2)
    _, _, one = recipe("one", [], *size)
    shared = ("--accelerator", "zero3", "--num_processes", 2, "--sequence_parallel_size", 2)
    result, divided, two = recipe("two", [SHOW], *size, *shared)
    assert result.code == 0, result.err[-3000:]
    assert divided == ["DEEPSPEED Parameter (2, 80)"] * 2
    assert len(one) == 3 and two == pytest.approx(one, abs=1e-5)


# Asks the run to stop in its third step, the first time.
STOP = """
import os
from pathlib import Path

def stopped(self, *rest, step=Trainer.training_step, run=Path(os.environ["R1NB_RUN_DIR"])):
    if self.state.global_step == 2 and not (run / "checkpoints" / "checkpoint-3").exists():
        (run / "stop").touch()
    return step(self, *rest)

Trainer.training_step = stopped
"""


@pytest.mark.slow
def test_fsdp_shards_learns_as_one_and_resumes(recipe, tmp_path):
    _, _, one = recipe("one", [], "--per_device_train_batch_size", 4, "--max_steps", 5)
    options = ("--per_device_train_batch_size", 2, "--accelerator", "fsdp", "--num_processes", 2)
    options += ("--save_strategy", "steps", "--save_steps", 1)
    cells = [SHOW, STOP, LIKE_GPUS]
    result, divided, _ = recipe("two", cells, *options, "--max_steps", 5)
    assert divided == ["FSDP DTensor (2, 160)"] * 2
    assert result.code == 143 and "saved at step 3" in result.err
    result, _, two = recipe("two", cells, *options, "--max_steps", 5)
    assert result.code == 0 and "resuming from checkpoint-3" in result.out, result.err[-3000:]
    _, _, whole = recipe("whole", [SHOW, LIKE_GPUS], *options, "--max_steps", 5)
    assert len(two) == 5 and two == whole and two == pytest.approx(one, abs=1e-4)
    weights = [load_file(tmp_path / f"{name}/model/model.safetensors") for name in ("two", "whole")]
    assert all(torch.equal(w, weights[1][key]) for key, w in weights[0].items())


@pytest.mark.slow
def test_context_parallelism_gets_as_far_as_the_ring(recipe):
    "Mesh, data and shards are there; the kernels of torch's ring attention are CUDA's only."
    options = ("--per_device_train_batch_size", 2, "--accelerator", "fsdp", "--num_processes", 2)
    result, divided, _ = recipe("two", [SHOW, LIKE_GPUS], *options, "--sequence_parallel_size", 2)
    assert divided == ["FSDP DTensor (2, 160)"] * 2
    assert result.code == 1 and "_for_cpu.default does not have a sharding" in result.err


@pytest.mark.parametrize("keys, message", [
    ({"packing": True}, "does not work with packing"),
    ({"pad_to_multiple_of": 6}, "pad_to_multiple_of: 6 is not a multiple of 4"),
    ({}, "needs --accelerator fsdp, zero2 or zero3"),
])  # fmt: skip
def test_shared_rows_that_cannot_work_are_an_error(tiny_model, tmp_path, keys, message):
    "Before anything is written, or as soon as the accelerator is known."
    append_jsonl(tmp_path / "traces.jsonl", [{"problem": "1 + 1 =", "completion": "2"}])
    recipe = {"dataset_name": str(tmp_path / "traces.jsonl"), "model_name_or_path": str(tiny_model)}
    (traces, model, args), _ = configure(sft.stage, {**recipe, "sequence_parallel_size": 2, **keys})
    with pytest.raises(InputError, match=message):
        sft.check(traces, model, args)
        load_for_training(model, args, load_tokenizer(model))
    assert keys or args.pad_to_multiple_of == 4
