"A stage is added in one place: one file and its job notebook, in any folder."

import json
import os
import subprocess
import sys

import nbformat
import pytest
import yaml
from conftest import r1nb
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from r1nb.runs import Run

MODULE = """
"Counts words: the smallest stage."

from dataclasses import dataclass, field
from pathlib import Path

import torch  # heavy: `r1nb --help` must not need it

from r1nb.runs import write_text
from r1nb.settings import InputError
from r1nb.stages import Stage


@dataclass
class ToyConfig:
    "What is counted."

    dataset_name: str = field(default="", metadata={"help": "A text file"})
    least: int = field(default=1, metadata={"help": "Words with fewer letters do not count"})
    seed: int = 0


def check(cfg):
    if not Path(cfg.dataset_name).exists():
        raise InputError(f"dataset_name: {cfg.dataset_name!r} is not a file")


def run_toy(run, cfg):
    path = Path(cfg.dataset_name)
    if path.is_dir():  # the results of another run of this stage
        path = path / "count.txt"
    words = [w for w in path.read_text().split() if len(w) >= cfg.least]
    write_text(run / "results" / "count.txt", str(len(words)))
    return {"words": len(words)}


stage = Stage(
    "toy",
    help="count words",
    reads=("dataset_name",),
    leaves="results",
    order=10,
    notebook="toy.ipynb",
    classes=(ToyConfig,),
    aliases={"file": "dataset_name"},
    check=check,
    check_model=lambda recipe: None,
    run=run_toy,
)
"""

CELLS = [
    'config = None\noverrides = {}\nrun_dir = "runs/toy/mine"',
    "from r1nb.jobs import open_job\nfrom r1nb.runs import running\nfrom toy_stage import run_toy",
    '(cfg,), run, written = open_job("toy", config, overrides, run_dir)',
    "with running(run) as summary:\n    summary.update(run_toy(run, cfg))",
]


@pytest.fixture
def toy(tmp_path):
    "`r1nb` in a folder that adds the stage `toy`."
    (tmp_path / "toy_stage.py").write_text(MODULE)
    cells = [new_markdown_cell("# toy"), *map(new_code_cell, CELLS)]
    cells[1].metadata["tags"] = ["parameters"]
    notebook = new_notebook(cells=cells, metadata={"r1nb": {"stage": "toy"}})
    nbformat.write(notebook, tmp_path / "toy.ipynb")
    (tmp_path / "text.txt").write_text("a few words and a number 12")

    def command(*arguments):
        env = {"R1NB_STAGES": str(tmp_path / "toy_stage.py")}
        return r1nb(*arguments, cwd=tmp_path, runs=tmp_path / "runs", **env)

    return command


def test_a_stage_from_elsewhere_is_a_command(toy, tmp_path):
    shown = toy("--help")
    assert shown.code == 0 and "toy" in shown.out and "count words" in shown.out
    keys = toy("toy", "--keys")
    assert keys.code == 0 and "--least  (1)" in keys.out and "fewer letters" in keys.out
    done = toy("toy", "--file", tmp_path / "text.txt", "--least", "3", "--run-dir", "runs/one")
    assert done.code == 0, done.err[-3000:]
    run = Run(tmp_path / "runs/one")
    assert (run.status, run.manifest["summary"]) == ("completed", {"words": 4})
    assert set(run.manifest["inputs"]) == {"dataset_name"}
    assert (run / "results/count.txt").read_text() == "4"
    again = toy("toy", "--file", tmp_path / "text.txt", "--least", "3", "--run-dir", "runs/one")
    assert again.code == 0 and "is complete" in again.out
    for arguments, words in [
        (["--leest", "3"], "did you mean 'least'?"),
        (["--least", "many"], "least"),
        (["--file", "nowhere"], "'nowhere' is not a file"),
        (["--file", "text.txt", "--num_processes", "2"], "toy runs as one process"),
    ]:
        refused = toy("toy", *arguments, "--run-dir", "runs/two")
        assert refused.code == 2 and words in refused.err, refused.err
    assert not (tmp_path / "runs/two").exists()


def test_its_notebook_is_a_job_of_it(toy, tmp_path):
    done = toy("run", "toy.ipynb", "--dataset_name", tmp_path / "text.txt")
    assert done.code == 0, done.err[-3000:]
    run = Run(tmp_path / "runs/toy/mine")
    assert (run.manifest["stage"], run.manifest["summary"]) == ("toy", {"words": 7})


def test_it_is_a_batch_script(toy, tmp_path):
    options = ["--file", tmp_path / "text.txt", "--run-dir", tmp_path / "runs/one"]
    shown = toy("toy", *options, "--slurm", "--dry-run")
    assert shown.code == 0, shown.err[-3000:]
    assert "#SBATCH --job-name=r1nb-toy-one" in shown.out and "R1NB_STAGE=toy" in shown.out
    assert subprocess.run(["bash", "-n"], input=shown.out, text=True).returncode == 0
    assert not (tmp_path / "runs").exists()
    refused = toy("toy", *options, "--slurm", "--nodes", "2", "--dry-run")
    assert refused.code == 2 and "toy runs on one node" in refused.err


def test_it_is_a_step_of_a_pipeline(toy, tmp_path):
    stages = {
        "first": {"stage": "toy", "dataset_name": str(tmp_path / "text.txt")},
        "second": {"stage": "toy", "dataset_name": "${first}"},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"name": "p", "stages": stages}))
    code = (
        "import sys; from r1nb.pipeline import load_pipeline, run_pipeline; "
        "sys.exit(run_pipeline(load_pipeline('p.yaml'), report=False))"
    )
    env = {
        **os.environ,
        "R1NB_STAGES": str(tmp_path / "toy_stage.py"),
        "R1NB_RUNS": str(tmp_path / "runs"),
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, timeout=300)
    assert done.returncode == 0
    counts = [Run(tmp_path / "runs/p" / s).manifest["summary"]["words"] for s in stages]
    assert counts == [7, 1]
    assert json.loads((tmp_path / "runs/p/manifest.json").read_text())["status"] == "completed"
    dry = toy("pipeline", "p.yaml", "--slurm", "--dry-run", "--force")
    assert dry.code == 0 and dry.out.count("R1NB_STAGE=toy") == 2 and "### report" in dry.out
