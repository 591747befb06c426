"Whole jobs on a tiny model through the real command: the pipeline, its records, stops and resumes."

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import ROOT, TASK, TRAINING, finish, r1nb, session_members, start, wait_for
from nbformat.v4 import new_code_cell, new_notebook

from r1nb.runs import Run, read_log

STAGES = ["generate", "curate", "sft", "grpo", "evaluate"]


def record(path):
    "The code cells of an executed notebook, which nbformat validates."
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    return [c for c in nb.cells if c.cell_type == "code"]


def statuses(cells):
    return [c.metadata.papermill.status for c in cells]


def errors(cells):
    return [o.ename for c in cells for o in c.outputs if o.output_type == "error"]


def images(cells):
    return [o for c in cells for o in c.outputs if "image/png" in o.get("data", {})]


def listed(folder, runs):
    "The rows of `r1nb runs --json` by run."
    result = r1nb("runs", "--json", cwd=folder, runs=runs)
    assert result.code == 0, result.err
    return {row["run"]: row for row in map(json.loads, result.out.splitlines())}


def stamps(folder):
    "Time of the last write of each file below `folder`."
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()
    }


# ---- the whole pipeline ------------------------------------------------------------------------


class Finished:
    "A pipeline that has run once."

    def __init__(self, folder, recipe):
        self.folder, self.recipe, self.runs = folder, recipe, folder / "runs"
        self.path = self.runs / "tiny"
        begin = time.monotonic()
        self.result = self("")
        self.seconds = time.monotonic() - begin

    def __call__(self, options):
        return r1nb(
            "pipeline", self.recipe, *options.split(), cwd=self.folder, runs=self.runs, deadline=580
        )


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, tiny_recipe):
    finished = Finished(tmp_path_factory.mktemp("pipeline"), tiny_recipe)
    assert finished.result.code == 0, finished.result.err[-3000:]
    return finished


@pytest.mark.slow
def test_pipeline_completes_every_stage_and_says_so(pipeline):
    rows = listed(pipeline.folder, pipeline.runs)
    assert {name: row["state"] for name, row in rows.items()} == dict.fromkeys(
        ["tiny", *(f"tiny/{s}" for s in STAGES)], "completed"
    )
    assert rows["tiny/grpo"]["step"] == 4 and "reward" in rows["tiny/grpo"]["last"]
    heads = re.findall(r"=== \[(\d)/5\] (\w+) .*?===", pipeline.result.out)
    assert heads == [(str(i), s) for i, s in enumerate(STAGES, 1)]
    summary = (pipeline.path / "summary.txt").read_text()
    assert summary.strip() in pipeline.result.out
    assert str(pipeline.path / "report.html") in pipeline.result.out
    for words in ("base", "sft - base", "grpo - base", "avg@2", "%"):
        assert words in summary


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_its_record(pipeline, stage):
    run = Run(pipeline.path / stage)
    cells = record(run / "job.ipynb")
    assert set(statuses(cells)) == {"completed"} and not errors(cells) and images(cells)
    m = run.manifest
    assert m["stage"] == stage
    assert m["starts"] == 1
    assert m["seconds"] > 0
    assert m["summary"]
    assert m["seed"] == 0
    assert {"torch", "transformers", "trl", "r1nb"} <= set(m["packages"])
    assert m["hardware"]["cores"] >= 1
    if (ROOT / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}", m["git"]["revision"])
        assert isinstance(m["git"]["dirty"], bool)
    inputs = {
        "generate": {"model_name_or_path"}, "curate": {"dataset_name", "model_name_or_path"},
        "sft": {"dataset_name", "model_name_or_path"}, "grpo": {"model_name_or_path"},
        "evaluate": {"models.base", "models.sft", "models.grpo"},
    }  # fmt: skip
    assert set(m["inputs"]) == inputs[stage]
    assert all(re.fullmatch("[0-9a-f]{16}", v["sha256"]) for v in m["inputs"].values())
    parents = {
        "curate": ["generate"],
        "sft": ["curate"],
        "grpo": ["sft"],
        "evaluate": ["sft", "grpo"],
    }.get(stage, [])
    assert m["parents"] == [str(pipeline.path / p) for p in parents]
    steps = [row["step"] for row in run.metrics]
    assert steps == ([1, 2, 3, 4] if stage in ("sft", "grpo") else [])
    output = {
        "generate": "dataset",
        "curate": "dataset",
        "sft": "model",
        "grpo": "model",
        "evaluate": "results",
    }[stage]
    assert any((run / output).iterdir())


class Addresses(HTMLParser):
    "The addresses from which a page would load something."

    def __init__(self, text):
        super().__init__()
        self.found, self.images = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.images += tag == "img"
        named = (
            attributes.get("href")
            if tag == "link"
            else attributes.get("src") or attributes.get("srcset")
        )
        if named and not named.startswith("data:"):
            self.found.append((tag, named))


@pytest.mark.slow
def test_the_report_is_one_self_contained_page(pipeline):
    assert set(statuses(record(pipeline.path / "report.ipynb"))) == {"completed"}
    text = (pipeline.path / "report.html").read_text()
    page = Addresses(text)
    assert page.found == [] and page.images >= 3
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//|import\(['\"]http", text)
    for words in ("avg@2", "grpo - base", "Failures", "scripted"):
        assert words in text


@pytest.mark.slow
def test_a_second_start_skips_what_is_complete(pipeline):
    before, begin = stamps(pipeline.path), time.monotonic()
    result = pipeline("")
    assert result.code == 0, result.err
    assert re.findall(r"(\w+): complete, skipped", result.out) == STAGES
    assert time.monotonic() - begin < max(30, pipeline.seconds / 2)
    after = stamps(pipeline.path)
    changed = {p for p in before | after if before.get(p) != after.get(p)}
    assert changed <= {".lock", "manifest.json", "summary.txt", "report.ipynb", "report.html"}


@pytest.mark.slow
def test_a_changed_recipe_is_refused(pipeline):
    before = stamps(pipeline.runs)
    result = pipeline("--sft.max_steps 5")
    assert result.code == 2 and "Traceback" not in result.err
    assert "stage 'sft'" in result.err
    assert "max_steps: 4 -> 5" in result.err
    assert "--from sft" in result.err
    assert stamps(pipeline.runs) == before


@pytest.mark.slow
def test_from_reruns_that_stage_and_the_later_ones(pipeline):
    before = stamps(pipeline.path)
    result = pipeline("--from grpo --grpo.max_steps 3")
    assert result.code == 0, result.err[-3000:]
    assert re.findall(r"(\w+): complete, skipped", result.out) == STAGES[:3]
    after = stamps(pipeline.path)
    anew = {p.split("/")[0] for p in after if "/" in p and after[p] != before.get(p)}
    assert anew == {"grpo", "evaluate"}
    runs = {stage: Run(pipeline.path / stage) for stage in ("grpo", "evaluate")}
    assert [r["step"] for r in runs["grpo"].metrics] == [1, 2, 3]
    assert all(r.status == "completed" and r.manifest["starts"] == 1 for r in runs.values())
    # nothing of the old run is left
    assert [p.name for p in (runs["grpo"] / "logs").iterdir()] == ["rank-0.log"]


# ---- stops and resumes -------------------------------------------------------------------------

STEPS = 60


class Training:
    "A GRPO job that a test starts, stops and resumes."

    def __init__(self, folder, model):
        self.folder, self.runs = folder, folder / "runs"
        self.recipe = folder / "grpo.yaml"
        self.recipe.write_text(json.dumps({
            **TASK, **TRAINING, "split": "train", "num_problems": 8,
            "model_name_or_path": str(model), "max_steps": STEPS, "save_steps": 2,
            "num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 8,
        }))  # fmt: skip
        self.command = ("grpo", "--config", self.recipe)
        self.run = Run(self.runs / "grpo" / "grpo")
        self.log = self.run / "metrics.jsonl"

    def train(self, more):
        "Start the command and wait until `more` steps are logged and a checkpoint is complete."
        had = len(read_log(self.log))

        def far_enough():
            lines = self.log.read_text().count("\n") if self.log.exists() else 0
            states = (self.run / "checkpoints").glob("checkpoint-*/trainer_state.json")
            return lines >= had + more and list(states)

        self.process = start(*self.command, cwd=self.folder, runs=self.runs)
        wait_for(far_enough, "training", self.process)
        self.job = self.run.manifest["pid"]

    def stop(self, signum):
        "Send `signum` to the command. Its result, once all processes of its job have ended."
        self.process.send_signal(signum)
        begin = time.monotonic()
        result = finish(self.process, self.folder, 60)
        members = session_members(self.job)
        wait_for(lambda: not session_members(self.job), f"end of {members}", deadline=30)
        result.seconds = time.monotonic() - begin
        return result

    def state(self):
        "What `r1nb runs` reports; from another folder, as the command writes to `self.folder`."
        other = self.folder / "other"
        other.mkdir(exist_ok=True)
        return listed(other, self.runs)["grpo/grpo"]["state"]

    def check_record(self, error):
        "The training cell has failed with `error`; those before it are complete."
        cells = record(self.run / "job.ipynb")
        assert errors(cells) == [error]
        states = statuses(cells)
        failed = states.index("failed")
        assert "run_grpo" in cells[failed].source
        later = len(states) - failed - 1
        assert states == ["completed"] * failed + ["failed"] + ["pending"] * later


@pytest.mark.slow
def test_grpo_stopped_three_ways_resumes_and_completes(tmp_path, tiny_model):
    training = Training(tmp_path, tiny_model)
    run = training.run

    # Ctrl-C
    training.train(3)
    assert training.state() == "running"
    result = training.stop(signal.SIGINT)
    assert result.code == 130 and result.seconds < 60
    assert "interrupted" in result.err and "the same command resumes" in result.err
    assert training.state() == "interrupted"
    training.check_record("KeyboardInterrupt")

    # the scheduler's SIGTERM, in a run that has resumed
    training.train(3)
    result = training.stop(signal.SIGTERM)
    assert result.code == 143
    assert re.search(r"resuming from checkpoint-\d+", result.out)
    assert training.state() == "preempted"
    training.check_record("Terminated")

    # the command is killed: the kernel sends a signal to the job's process, which ends too
    training.train(3)
    assert training.stop(signal.SIGKILL).code == -signal.SIGKILL
    assert training.state() in ("interrupted", "preempted")

    # and a last time, to the end
    result = r1nb(*training.command, cwd=tmp_path, runs=training.runs)
    assert result.code == 0, result.err[-3000:]
    assert int(re.search(r"resuming from checkpoint-(\d+)", result.out)[1]) >= 8
    assert run.status == "completed"
    assert run.manifest["starts"] == 4
    assert run.manifest["summary"]["steps"] == STEPS
    assert [r["step"] for r in run.metrics] == list(range(1, STEPS + 1))
    assert all("loss" in r and "reward" in r for r in run.metrics)
    assert set(statuses(record(run / "job.ipynb"))) == {"completed"}
    records = sorted(p.name for p in (run / "logs").glob("job-*.ipynb"))
    assert records == ["job-1.ipynb", "job-2.ipynb", "job-3.ipynb"]


@pytest.mark.slow
def test_a_killed_evaluation_resumes_without_loss_or_repetition(tmp_path, tiny_model):
    problems, samples = 60, 2
    data = "".join(
        json.dumps({"problem": f"{i} + {i} =", "answer": str(2 * i)}) + "\n"
        for i in range(problems)
    )
    (tmp_path / "sums.jsonl").write_text(data)
    runs, run = tmp_path / "runs", Run(tmp_path / "runs" / "evaluate" / "default")
    log = run / "results" / "samples-model.jsonl"
    arguments = ["evaluate", "--dataset_name", "sums.jsonl", "--model_name_or_path", tiny_model,
                 "--dtype", "float32", "--num_generations", samples, "--batch_size", 2,
                 "--max_new_tokens", 24]  # fmt: skip
    process = start(*arguments, cwd=tmp_path, runs=runs)
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 10, "samples", process)
    job = run.manifest["pid"]
    for pid in session_members(job):
        kill_process(pid)
    result = finish(process, tmp_path, 60)
    assert result.code == 137 and "killed by signal 9" in result.err
    assert listed(tmp_path, runs)["evaluate/default"]["state"] == "failed"
    with open(log, "a") as f:
        f.write('{"problem_id": "cut')  # as if it had been killed while writing
    first = log.read_text().splitlines()[:-1]
    assert 10 <= len(first) < problems * samples
    result = r1nb(*arguments, cwd=tmp_path, runs=runs)
    assert result.code == 0, result.err[-3000:]
    rows = log.read_text().splitlines()
    assert rows[: len(first)] == first  # earlier samples are unchanged
    keys = [(r["problem_id"], r["sample"]) for r in map(json.loads, rows)]
    assert len(keys) == len(set(keys)) == problems * samples
    table = pd.read_parquet(run / "results" / "model.parquet")
    assert table.groupby("problem_id")["sample"].agg(list).tolist() == [[0, 1]] * problems
    assert run.status == "completed" and run.manifest["starts"] == 2


def kill_process(pid):
    "Send SIGKILL to `pid`, unless it has ended."
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


# ---- any notebook as a job ---------------------------------------------------------------------


def notebook(path, *cells):
    nb = new_notebook(
        cells=[
            new_code_cell("steps = 2", metadata={"tags": ["parameters"]}),
            *map(new_code_cell, cells),
        ]
    )
    nbformat.write(nb, path)
    return path


def test_a_plain_notebook_runs_with_parameters(tmp_path):
    path = notebook(tmp_path / "plain.ipynb", "print('steps times two', steps * 2)")
    runs = tmp_path / "runs"
    result = r1nb("run", path, "-p", "steps", "21", cwd=tmp_path, runs=runs)
    assert result.code == 0, result.err
    assert "steps times two 42" in result.out
    run = Run(runs / "notebook" / "plain")
    assert run.status == "completed" and run.manifest["config"]["steps"] == 21
    assert "42" in record(run / "job.ipynb")[-1].outputs[0].text
    before = stamps(runs)
    again = r1nb("run", path, "-p", "steps", "21", cwd=tmp_path, runs=runs)
    assert again.code == 0 and "is complete" in again.out and stamps(runs) == before
    other = r1nb("run", path, "-p", "steps", "22", cwd=tmp_path, runs=runs)
    assert other.code == 2 and "steps: 21 -> 22" in other.err and stamps(runs) == before
    forced = r1nb("run", path, "-p", "steps", "22", "--force", cwd=tmp_path, runs=runs)
    assert forced.code == 0 and "steps times two 44" in forced.out


def test_a_cell_that_raises_fails_the_job_and_leaves_the_record(tmp_path):
    path = notebook(tmp_path / "bad.ipynb", "print('so far')\n1/0", "print('never')")
    runs = tmp_path / "runs"
    result = r1nb("run", path, cwd=tmp_path, runs=runs)
    assert result.code == 1
    run = Run(runs / "notebook" / "bad")
    assert "failed: ZeroDivisionError: division by zero\n" in result.err
    assert f"  the record so far: {run / 'job.ipynb'}" in result.err
    cells = record(run / "job.ipynb")
    assert statuses(cells) == ["completed", "failed", "pending"]
    assert errors(cells) == ["ZeroDivisionError"]
    shown = re.sub("\x1b\\[[0-9;]*m", "", "\n".join(cells[1].outputs[-1].traceback))
    assert "2 1/0" in shown
    assert "ZeroDivisionError" in shown
    assert cells[1].outputs[0].text == "so far\n"
    assert run.status == "failed" and "ZeroDivisionError" in run.manifest["error"]
    assert listed(tmp_path, runs)["notebook/bad"]["state"] == "failed"
    notebook(path, "print('mended')", "print('never')")
    again = r1nb("run", path, cwd=tmp_path, runs=runs)
    assert again.code == 0 and run.status == "completed" and (run / "logs" / "job-1.ipynb").exists()


def test_a_changed_copy_of_a_job_notebook_is_a_job_of_its_stage(tiny_model, tmp_path):
    """A copy of a job notebook with its own parameters and a reward registered in a new cell.

    Run and record are in one folder.
    """
    keys = {
        **TASK, **TRAINING, "split": "train", "num_problems": 8,
        "model_name_or_path": str(tiny_model), "max_steps": 2, "num_generations": 4,
        "per_device_train_batch_size": 8, "max_completion_length": 16, "reward_funcs": ["vowels"],
    }  # fmt: skip
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump(keys))
    nb = nbformat.read(ROOT / "nbs" / "jobs" / "grpo.ipynb", as_version=4)
    (parameters,) = (c for c in nb.cells if "parameters" in c.metadata.get("tags", []))
    parameters.source = (
        f"config = '{tmp_path}/grpo.yaml'\noverrides = {{'seed': 1}}\nrun_dir = 'mine'\nweight = 1"
    )
    reward = """
from r1nb.rewards import completion_texts, register_reward
@register_reward("vowels")
def vowels(completions, **columns):
    return [weight * sum(map(t.count, "aeiou")) for t in completion_texts(completions)]
"""
    nb.cells.insert(nb.cells.index(parameters) + 1, new_code_cell(reward.strip()))
    nbformat.write(nb, tmp_path / "mine.ipynb")
    result = r1nb(
        "run", "mine.ipynb", "-p", "weight", "3", "--max_steps", "1", cwd=tmp_path,
        runs=tmp_path / "runs",
    )  # fmt: skip
    assert result.code == 0, result.err[-3000:]
    run = Run(tmp_path / "mine")
    assert run.status == "completed"
    assert run.manifest["stage"] == "grpo"
    assert run.manifest["seed"] == 1
    assert len(run.metrics) == 1
    assert (run / "job.ipynb").exists()
    assert not (tmp_path / "runs").exists()
    total = round(8 * run.metrics[0]["reward"], 3)
    assert total > 0 and total % 3 == 0


# ---- a job that ends without its work ----------------------------------------------------------

EARLY = {
    "sys.exit": ("import sys; sys.exit(0)", "ended it early (sys.exit"),
    "SystemExit": ("raise SystemExit", "ended it early (sys.exit"),
    "quit": ("quit()", "ended it early (sys.exit"),
    "os._exit": ("import os; os._exit(0)", "without reporting a result: os._exit"),
    "forgotten": (None, "no `with running(run)` block ran to its end"),
    "empty": ("run.update(status='created')\nwith running(run): pass", "is missing or empty"),
}


def generate_job(folder, tiny_model, kind):
    "A recipe of generate, and a copy of its notebook that ends early in the way `kind`."
    keys = {
        **TASK, "split": "train", "num_problems": 2, "num_generations": 1,
        "teacher": "scripted", "model_name_or_path": str(tiny_model),
    }  # fmt: skip
    recipe = folder / "early.yaml"
    stages = {"generate": keys, "again": {"stage": "generate", **keys}}
    recipe.write_text(yaml.safe_dump({"name": "early", "stages": stages}, sort_keys=False))
    nb = nbformat.read(ROOT / "nbs" / "jobs" / "generate.ipynb", as_version=4)
    source, message = EARLY[kind]
    if kind in ("forgotten", "empty"):
        for cell in nb.cells:
            if cell.cell_type == "code" and "running(run)" in cell.source:
                cell.source = source or "print('later')"
        at = next(i for i, c in enumerate(nb.cells) if c.source in (source, "print('later')"))
        nb.cells = nb.cells[: at + 1]
    else:
        at = next(i for i, c in enumerate(nb.cells) if "parameters" in c.metadata.get("tags", []))
        nb.cells.insert(at + 2, new_code_cell(source))
    path = folder / "early.ipynb"
    nbformat.write(nb, path)
    return recipe, path, message


@pytest.mark.parametrize("kind", EARLY)
def test_a_stage_that_ends_without_its_work_has_failed(tiny_model, tmp_path, kind):
    recipe, path, message = generate_job(tmp_path, tiny_model, kind)
    result = r1nb(
        "run",
        path,
        "--config",
        f"{recipe}#generate",
        "--run-dir",
        "run",
        cwd=tmp_path,
        runs=tmp_path,
    )
    run = Run(tmp_path / "run")
    assert (result.code, run.status) == (1, "failed"), result.err[-2000:]
    assert message in result.err
    assert message in run.manifest["error"]
    assert "Traceback" not in result.err
    assert listed(tmp_path, tmp_path)["run"]["state"] == "failed"


@pytest.mark.parametrize("kind", ["sys.exit", "os._exit"])
def test_a_pipeline_stops_at_a_stage_that_has_not_done_its_work(tiny_model, tmp_path, kind):
    recipe, path, message = generate_job(tmp_path, tiny_model, kind)
    code = (
        "import sys\n"
        "from r1nb.pipeline import load_pipeline, run_pipeline\n"
        "pipeline = load_pipeline(sys.argv[1])\n"
        "pipeline.jobs['generate'].notebook = sys.argv[2]\n"
        "sys.exit(run_pipeline(pipeline, report=False))"
    )
    env = {**os.environ, "R1NB_RUNS": str(tmp_path / "runs")}
    assert (
        subprocess.run([sys.executable, "-c", code, recipe, path], env=env, timeout=300).returncode
        == 1
    )
    runs = tmp_path / "runs" / "early"
    assert Run(runs).status == "failed" and Run(runs / "generate").status == "failed"
    assert not (runs / "again").exists()


@pytest.mark.parametrize(
    "source, code, status",
    [
        ("import sys; sys.exit(0)", 0, "completed"),
        ("exit()", 0, "completed"),
        ("import os; os._exit(0)", 1, "failed"),
        ("import sys; sys.exit(4)", 1, "failed"),
    ],
)
def test_an_ordinary_notebook_may_end_when_it_likes(tmp_path, source, code, status):
    path = notebook(tmp_path / "plain.ipynb", source, "print('never')")
    result = r1nb("run", path, cwd=tmp_path, runs=tmp_path / "runs")
    assert (result.code, Run(tmp_path / "runs" / "notebook" / "plain").status) == (code, status), (
        result.err
    )


def test_parameters_have_the_types_that_papermill_gives_them(tmp_path):
    path = notebook(tmp_path / "plain.ipynb", "print('value', repr(steps))")
    expected = {
        "False": "False", "True": "True", "None": "None", "21": "21", "-3": "-3", "007": "7",
        "1e-5": "1e-05", "nan": "nan", "inf": "inf", "words": "'words'", '"5"': "'\"5\"'",
        "": "''", "[1, null]": "[1, None]", '{"a": true}': "{'a': True}", "false": "False",
        "1.0": "1.0", "[/INST]x": None,
    }  # fmt: skip
    from r1nb.cli import parameter_value
    from r1nb.settings import InputError

    for given, shown in expected.items():
        if shown is None:
            with pytest.raises(InputError, match="not valid JSON.*-r x"):
                parameter_value("x", given)
        else:
            assert repr(parameter_value("x", given)) == shown
    for option, given, shown in [
        ("-p", "False", "False"),
        ("-p", "nan", "nan"),
        ("-r", "007", "'007'"),
    ]:
        result = r1nb(
            "run", path, option, "steps", given, "--force", cwd=tmp_path, runs=tmp_path / "runs"
        )
        assert result.code == 0 and f"value {shown}\n" in result.out, result.err


def test_what_a_program_prints_is_on_the_screen_in_the_log_and_in_the_record(tmp_path):
    source = (
        "import logging, subprocess\n"
        "subprocess.run(['sh', '-c', 'echo said; echo \"\\033[31mbad\\033[0m\" >&2'])\n"
        "logging.warning('careful');"
    )
    path = notebook(tmp_path / "said.ipynb", source)
    result = r1nb("run", path, cwd=tmp_path, runs=tmp_path / "runs")
    assert result.code == 0, result.err
    run = Run(tmp_path / "runs" / "notebook" / "said")
    log = (run / "logs" / "rank-0.log").read_text().splitlines()
    assert {"said", "bad"} <= set(log)
    assert any("careful" in line for line in log)
    assert "\x1b" not in "".join(log)
    assert "said\n" in result.out and "bad\n" in result.err and "careful" in result.err
    outputs = {o.name: o.text for o in record(run / "job.ipynb")[-1].outputs}
    assert outputs["stdout"] == "said\n" and "\x1b[31mbad\x1b[0m\n" in outputs["stderr"]


def test_what_a_failing_cell_says_may_be_no_text(tmp_path):
    path = notebook(tmp_path / "half.ipynb", "print('half \\ud800')\nraise ValueError('\\ud800')")
    result = r1nb("run", path, cwd=tmp_path, runs=tmp_path / "runs")
    run = Run(tmp_path / "runs" / "notebook" / "half")
    assert (result.code, run.status) == (1, "failed"), result.err
    assert "ValueError: \\ud800" in run.manifest["error"]
    assert "half \\ud800" in (run / "logs" / "rank-0.log").read_text()
    assert errors(record(run / "job.ipynb")) == ["ValueError"]
    assert "Traceback (most" not in result.err.split("r1nb:")[-1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["r.ipynb"], "r.ipynb: the notebook is in r; the r1nb engine runs Python only"),
        (
            ["plain.ipynb", "-p", "steps", "[1, 2"],
            "-p steps: '[1, 2' begins like a list but is not valid JSON",
        ),
        (["plain.ipynb", "-p", "step", "3"], "unknown parameter 'step'; did you mean 'steps'?"),
        (["plain.ipynb", "--steps", "3"], "-p name value"),
        (["missing.ipynb"], "missing.ipynb does not exist"),
        (["text.ipynb", "-p", "steps", "3"], "text.ipynb is not a notebook"),
        (["text.ipynb"], "text.ipynb is not a notebook"),
        ([str(ROOT / "nbs" / "jobs" / "evaluate.ipynb"), "-p", "temperature", "1"], "--key value"),
    ],
)
def test_a_notebook_that_cannot_run_is_refused(tmp_path, arguments, message):
    notebook(tmp_path / "plain.ipynb", "1")
    (tmp_path / "text.ipynb").write_text("no notebook\n")
    (tmp_path / "r.ipynb").write_text('{"cells": [], "metadata": {"kernelspec": {"name": "ir"}}}')
    result = r1nb("run", *arguments, cwd=tmp_path, runs=tmp_path / "runs")
    assert result.code == 2, result.err
    assert message in result.err and "Traceback" not in result.err
    assert not Path(tmp_path / "runs").exists()
