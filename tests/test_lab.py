"""JupyterLab: job notebooks cell by cell in a real kernel, interrupted and resumed.

Also jobs that run in the background, and the real page in a browser.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import httpx
import nbformat
import pytest
import yaml
from conftest import DEADLINE, ROOT, TASK, TRAINING, browser_program, wait_for

from r1nb.lab import launcher, run_job, submit, watch
from r1nb.ranks import free_port
from r1nb.runs import Run
from r1nb.settings import InputError
from r1nb.trainer import checkpoints

JOBS = ROOT / "nbs" / "jobs"


class Kernel:
    "A Jupyter kernel in `cwd`, as JupyterLab would start it."

    def __init__(self, cwd):
        from jupyter_client.manager import start_new_kernel

        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.manager, self.client = start_new_kernel(
            kernel_name="python3", cwd=str(cwd), env=environment
        )

    def run(self, source, interrupt=None):
        """The messages of `source`, run as a cell.

        `interrupt(messages)` says how many interrupts the kernel must have had by then.
        """
        number, end = self.client.execute(source), time.monotonic() + DEADLINE
        messages, presses = [], 0
        while time.monotonic() < end:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except Exception:  # queue.Empty: nothing in this second
                continue
            if message["parent_header"].get("msg_id") != number:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return messages
            messages.append((kind, content))
            while interrupt and presses < interrupt(messages):
                self.manager.interrupt_kernel()
                presses += 1
                time.sleep(0.2)
        pytest.fail(f"the cell did not end: {source[:200]}")

    def ok(self, source):
        "The messages of a cell that must not fail."
        messages = self.run(source)
        assert not errors(messages), errors(messages)
        return messages

    def close(self):
        if not self.manager.has_kernel:
            return
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def errors(messages):
    plain = ["\n".join(c["traceback"]) for kind, c in messages if kind == "error"]
    return [re.sub(r"\x1b\[[\d;]*m", "", text) for text in plain]


def printed(messages):
    shown = [c.get("text") or c.get("data", {}).get("text/plain", "") for _, c in messages]
    return "\n".join(shown)


def pictures(messages):
    "`(shown, updated)`: the display ids of figures, as they were shown and replaced."
    found = {"display_data": [], "update_display_data": []}
    for kind, content in messages:
        if kind in found and "image/png" in content["data"]:
            found[kind].append(content["transient"].get("display_id"))
    return found["display_data"], found["update_display_data"]


def bar_moves(messages):
    return sum(
        kind == "update_display_data" and "<progress" in str(c["data"]) for kind, c in messages
    )


def code_cells(stage, **parameters):
    "The sources of a job notebook's code cells, with other `parameters`."
    cells = [c for c in nbformat.read(JOBS / f"{stage}.ipynb", 4).cells if c.cell_type == "code"]
    for cell in cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = "\n".join(f"{k} = {v!r}" for k, v in parameters.items())
    return [c.source for c in cells]


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel(JOBS)
    yield kernel
    kernel.close()


SLOW_STEPS = """
import time
from transformers import Trainer
pause, training_step = 0, Trainer.training_step
def slow_step(trainer, *args, **kwargs):
    print("a step begins", flush=True)
    time.sleep(pause)
    return training_step(trainer, *args, **kwargs)
Trainer.training_step = slow_step
"""  # so that an interrupt meets a step, however slow this process is


@pytest.fixture(scope="module")
def sft_run(kernel, recipe, tmp_path_factory):
    "The run of an SFT notebook that was interrupted twice, and the messages of its three starts."
    folder = tmp_path_factory.mktemp("lab") / "sft"
    overrides = {"max_steps": 40, "save_steps": 1000, "per_device_train_batch_size": 4}
    cells = code_cells("sft", config=str(recipe), overrides=overrides, run_dir=str(folder))
    (training,) = (i for i, source in enumerate(cells) if "run_sft(run" in source)
    for source in cells[:training]:
        kernel.ok(source)
    run, starts = Run(folder), []
    kernel.ok(SLOW_STEPS)
    twice, once = ("a step begins", "interrupt again to stop at once"), ("a step begins",)
    for texts, pause in ((twice, 60), (once, 0.2), ((), 0)):
        kernel.ok(f"pause = {pause}")
        starts.append(
            kernel.run(cells[training], lambda m, t=texts: sum(text in printed(m) for text in t))
        )
        starts[-1].append(
            (
                "state",
                {"status": run.status, "saved": [p.name for p in checkpoints(run / "checkpoints")]},
            )
        )
    for source in cells[training + 1 :]:
        kernel.ok(source)
    return run, starts


def test_a_kernel_that_starts_beside_the_notebook_finds_the_checkout(kernel, sft_run):
    look = "from r1nb.recipes import read_stage\n"
    look += "read_stage('scripts/recipes/quickstart.yaml#sft')['model_name_or_path']"
    assert "'bundled'" in printed(kernel.ok(look))
    assert str(ROOT / "runs" / "x") in printed(
        kernel.ok("from r1nb.runs import Run\nprint(Run('runs/x').path)")
    )


def test_interrupting_twice_stops_at_once(sft_run):
    run, (start, *_) = sft_run
    assert errors(start)[-1].splitlines()[-1].startswith("KeyboardInterrupt: interrupted twice")
    assert start[-1][1] == {"status": "interrupted", "saved": []}


def test_interrupting_saves_the_step_and_the_cell_resumes_from_it(sft_run):
    run, (_, stopped, done) = sft_run
    saved = int(
        re.search(
            r"KeyboardInterrupt: saved at step (\d+); run this cell again", errors(stopped)[-1]
        )[1]
    )
    assert 0 < saved < 40 and "interrupted: this step ends and is saved" in printed(stopped)
    assert stopped[-1][1]["status"] == "interrupted"
    assert f"checkpoint-{saved}" in stopped[-1][1]["saved"]
    assert not errors(done) and f"resuming from checkpoint-{saved}" in printed(done)
    assert done[-1][1]["status"] == "completed" and bar_moves(done)
    assert (run / "model" / "model.safetensors").exists() and run.manifest["starts"] == 3
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in logged if "loss" in r] == list(
        range(1, 41)
    )  # the first start ended no step


def test_an_interrupt_leaves_no_trainer_in_memory(kernel, sft_run):
    source = "import gc, warnings; from transformers import Trainer\n"
    source += "warnings.simplefilter('ignore'); gc.collect()\n"
    source += "print('trainers', sum(isinstance(x, Trainer) for x in gc.get_objects()))"
    assert "trainers 0" in printed(kernel.ok(source))


def test_one_figure_is_updated_in_place(sft_run):
    _, *resumed = sft_run[1]
    assert len(resumed) == 2
    for start in resumed:
        shown, updated = pictures(start)
        assert len(shown) == 1 and shown[0] and updated and set(updated) == set(shown)


def test_a_mistake_in_a_recipe_is_one_line(kernel, sft_run):
    (message,) = errors(kernel.run("open_job('sft', config, {'learning_rat': 1}, run_dir)"))
    assert message.startswith("InputError: ")
    assert "did you mean 'learning_rate'" in message
    assert "\n" not in message


def test_grpo_plots_rewards_and_shows_completions(kernel, sft_run, tiny_model, tmp_path):
    keys = {
        **TASK,
        **TRAINING,
        "split": "train",
        "num_problems": 8,
        "model_name_or_path": str(tiny_model),
        "max_steps": 3,
    }
    keys |= {"num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 16}
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump(keys))
    cells = code_cells(
        "grpo", config=str(tmp_path / "grpo.yaml"), overrides={}, run_dir=str(tmp_path / "run")
    )
    messages = {source: kernel.ok(source) for source in cells}
    (training,) = (m for source, m in messages.items() if "run_grpo(run" in source)
    assert len(pictures(training)[0]) == 1
    samples = [
        str(c["data"])
        for m in messages.values()
        for k, c in m
        if k == "execute_result" and "<details>" in str(c)
    ]
    assert len(samples) == 2 and all(s.count("<details>") == 6 and "accuracy" in s for s in samples)
    assert [r["step"] for r in Run(tmp_path / "run").metrics if "reward" in r] == [1, 2, 3]


def test_a_job_in_the_background_outlives_the_kernel(kernel, recipe, tmp_path):
    names = {"config": str(recipe), "overrides": {}, "run_dir": str(tmp_path / "run")}
    assignments = "\n".join(f"{k} = {v!r}" for k, v in names.items())
    kernel.ok(f"%load_ext r1nb.lab\nfrom r1nb.lab import watch\n{assignments}")
    (message,) = errors(kernel.run("%run_job sft --accelerator zero4"))
    assert "InputError" in message and "zero4" in message and not (tmp_path / "run").exists()
    assert "watch(" in printed(kernel.ok("job = %run_job sft"))
    assert "is being run by process" in errors(kernel.run("%run_job sft"))[0]
    looked = kernel.run(
        "watch(job, every=0.5)", lambda m: sum(k == "update_display_data" for k, _ in m) > 2
    )
    assert not errors(looked) and "stopped watching; the job continues" in printed(looked)
    assert re.fullmatch("'(starting|running)'", looked[-1][1]["data"]["text/plain"])
    process = launcher(Run(tmp_path / "run"))
    kernel.close()  # the last test that needs it
    # the kernel has ended, the job has not
    assert process and launcher(Run(tmp_path / "run")) == process
    assert watch(tmp_path / "run", every=0.5) == "completed"
    wait_for(lambda: launcher(Run(tmp_path / "run")) is None, "end of the launcher")
    cells = nbformat.read(tmp_path / "run" / "job.ipynb", 4).cells
    figures = [
        c.source for c in cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    # a record has the curves once, at the end
    assert len(figures) == 1 and figures[0].startswith("curves(")


def test_a_job_for_the_queue_is_queued_until_it_starts(recipe, tmp_path, monkeypatch):
    "With fake Slurm commands; tests/test_slurm.py has a real cluster."
    replies = {
        "sbatch": 'cat > script; [ "$1" = --test-only ] || echo 41',
        "squeue": "[ ! -e script ] || echo 41 PENDING",
    }
    for name, reply in replies.items():
        (tmp_path / name).write_text(f"#!/bin/sh\ncd {tmp_path}\n{reply}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="not a Slurm time limit"):
        submit("sft", str(recipe), run_dir=folder, slurm=True, time="soon")
    assert not folder.exists()
    run = submit(
        "sft",
        str(recipe),
        {},
        folder,
        slurm=True,
        accelerator="ddp",
        num_processes=2,
        time="1:00:00",
    )
    assert (run.status, run.manifest["batch"]["job"]) == ("queued", 41)
    script = (tmp_path / "script").read_text()
    assert "#SBATCH --time=1:00:00" in script
    assert "R1NB_PROCESSES=2" in script
    assert f"R1NB_RUN_DIR={folder}" in script
    with pytest.raises(InputError, match="in the queue, as job 41"):
        submit("sft", str(recipe), {}, folder, slurm=True)
    (tmp_path / "squeue").write_text("#!/bin/sh\n")  # it has ended
    shutil.copy(JOBS / "sft.ipynb", tmp_path / "mine.ipynb")
    monkeypatch.setenv(
        "JPY_SESSION_NAME", str(tmp_path / "mine.ipynb")
    )  # as JupyterLab tells its kernels
    run_job(
        "sft --slurm --time 1:00:00", {"config": str(recipe), "run_dir": str(tmp_path / "mine")}
    )
    assert f'"notebook": "{tmp_path}/mine.ipynb"' in (tmp_path / "script").read_text()
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2; exit 1\n")
    with pytest.raises(InputError, match="invalid partition"):
        submit("sft", str(recipe), {}, tmp_path / "other", slurm=True)
    assert Run(tmp_path / "other").status == "created"


def copy_notebooks(home, recipe):
    "The start page and the SFT job in `home`; the job trains a tiny model for three steps."
    (home / "nbs" / "jobs").mkdir(parents=True)
    shutil.copy(ROOT / "nbs" / "index.ipynb", home / "nbs")
    notebook = nbformat.read(JOBS / "sft.ipynb", 4)
    lines = [
        f"config = {str(recipe)!r}",
        "overrides = {'max_steps': 3}",
        f"run_dir = {str(home / 'run')!r}",
    ]
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = "\n".join(lines)
    nbformat.write(notebook, home / "nbs" / "jobs" / "sft.ipynb")


@pytest.fixture(scope="module")
def jupyterlab(recipe, tmp_path_factory):
    "Address of a JupyterLab on a copy of the notebooks; its SFT notebook trains a tiny model."
    home = tmp_path_factory.mktemp("jupyter")
    copy_notebooks(home, recipe)
    port, log = free_port(), open(home / "log", "w")
    names = "JUPYTER_CONFIG JUPYTER_DATA JUPYTERLAB_SETTINGS JUPYTERLAB_WORKSPACES".split()
    own = {f"{name}_DIR": str(home / name) for name in names}
    arguments = [
        "--no-browser",
        f"--ServerApp.port={port}",
        "--IdentityProvider.token=t",
        *(["--allow-root"] if os.getuid() == 0 else []),
    ]
    words = (ROOT / "scripts" / "targets.sh").read_text().split()
    options = [w for w in words if w.startswith("--LabApp.default_url=")]  # as `make lab` opens it
    assert options
    command = [sys.executable, "-m", "jupyterlab", *arguments, *options]
    command.append(f"--ServerApp.root_dir={home}")
    environment = {**os.environ, **own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        command, stdout=log, stderr=log, cwd=home, env=environment, start_new_session=True
    )
    address = f"http://127.0.0.1:{port}"

    def answers():
        try:
            return httpx.get(f"{address}/api/status", params={"token": "t"}).is_success
        except httpx.HTTPError:
            return False

    wait_for(answers, f"answer of JupyterLab ({home / 'log'})", server)
    yield address, home
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
    log.close()


@pytest.mark.browser
def test_all_cells_of_a_job_in_a_browser(jupyterlab):
    program, (address, home), patience = browser_program(), jupyterlab, 240_000
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1300, "height": 1000})
        page.goto(f"{address}/?token=t")
        panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        panel.locator("h2", has_text="Run the stages").wait_for(timeout=patience)  # the start page
        panel.locator("a", has_text="jobs/sft").first.click()
        panel.locator("h1", has_text="supervised fine-tuning").wait_for(timeout=patience)
        # The indicator shows idle even before the kernel is connected; the status bar does not.
        page.locator("#jp-main-statusbar", has_text="Python 3 (ipykernel) | Idle").wait_for(
            timeout=patience
        )
        page.locator(".lm-MenuBar-item", has_text="Run").click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        panel.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*1]\]")).first.wait_for(
            timeout=patience
        )
        figures = panel.locator(".jp-OutputArea-output img")
        figures.nth(1).wait_for(
            state="attached", timeout=patience
        )  # the live one, then that of all curves
        status = panel.locator(".jp-Notebook-ExecutionIndicator")
        expect(status).to_have_attribute("data-status", "idle", timeout=patience)
        live = figures.first
        live.scroll_into_view_if_needed()
        assert live.evaluate("image => image.complete && image.naturalWidth > 100")
        page.screenshot(path=home / "sft.png")
        assert panel.locator("progress").count() == 1
        assert (
            panel.locator(
                ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
            ).count()
            == 0
        )
        chromium.close()
    assert Run(home / "run").status == "completed"
