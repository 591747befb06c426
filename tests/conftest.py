"Shared by the tests: the `r1nb` command in a process with a time limit, a tiny model and pipeline."

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock

for key in [k for k in os.environ if k.startswith("R1NB_") and k != "R1NB_BENCHMARKS"]:
    del os.environ[key]  # the tests must not depend on the settings of the user who runs them
os.environ["HF_HUB_OFFLINE"] = "1"
TRACKIO = tempfile.TemporaryDirectory()
os.environ["TRACKIO_DIR"] = TRACKIO.name  # read when trackio is imported, which TRL does

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # two processes of two threads would wait for each other

ROOT = Path(__file__).parent.parent
R1NB = Path(sys.executable).with_name("r1nb")
DEADLINE = 300  # seconds; generous, because the machine may be busy

TASK = {
    "dataset_name": "reasoning_gym/chain_sum",
    "dataset_kwargs": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
}
LEVELS = {  # tasks of a curriculum
    name: {"dataset_kwargs": {"min_terms": n, "max_terms": n, "max_digits": 1}, "num_problems": 20}
    for name, n in (("two", 2), ("three", 3), ("four", 4))
}
TRAINING = {"dtype": "float32", "gradient_checkpointing": False, "learning_rate": 1e-3}


def pytest_terminal_summary(terminalreporter, config):
    "Print the seconds of the slowest files and tests; in a rerun those of the first run too."
    files, tests = {}, {}
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        if seconds := getattr(report, "duration", 0):
            for times, name in (files, report.nodeid.split("::")[0]), (tests, report.nodeid):
                times[name] = times.get(name, 0) + seconds
    if sum(files.values()) < 60:
        return
    before = config.cache.get("r1nb/seconds", "") if config.option.lf else ""

    def longest(times, count):
        rows = sorted(times.items(), key=lambda row: -row[1])[:count]
        return [f"{seconds:6.0f} s  {name}" for name, seconds in rows]

    lines = ["files of tests by their time", *longest(files, 16), "tests", *longest(tests, 24)]
    config.cache.set("r1nb/seconds", "\n".join(lines))
    for line in [*(["in the first run:", *before.splitlines()] if before else []), "", *lines]:
        terminalreporter.write_line(line)


def start(*arguments, cwd, runs, **env):
    "Start `r1nb`, which writes to `out.txt` and `err.txt` in `cwd` and puts its runs in `runs`."
    # Files, not pipes: a leftover process would hold a pipe open and the test would wait for it.
    streams = [open(Path(cwd) / name, "w") for name in ("out.txt", "err.txt")]
    try:
        return subprocess.Popen(
            [R1NB, *map(str, arguments)],
            cwd=cwd,
            stdout=streams[0],
            stderr=streams[1],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "R1NB_RUNS": str(runs), "OMP_NUM_THREADS": "1", **env},
        )
    finally:
        for stream in streams:
            stream.close()


def finish(process, cwd, deadline=DEADLINE):
    "Wait for `process`; returns its `code`, `out` and `err`."
    out, err = Path(cwd) / "out.txt", Path(cwd) / "err.txt"
    try:
        code = process.wait(deadline)
    except subprocess.TimeoutExpired:
        process.kill()
        messages = err.read_text()[-2000:]
        pytest.fail(f"{process.args} did not end within {deadline} s: {messages}")
    return SimpleNamespace(code=code, out=out.read_text(), err=err.read_text())


def r1nb(*arguments, cwd, runs, deadline=DEADLINE, **env):
    "Run the `r1nb` command to its end; returns `code`, `out` and `err`."
    return finish(start(*arguments, cwd=cwd, runs=runs, **env), cwd, deadline)


def succeeds(*arguments, cwd):
    "Run the `r1nb` command in `cwd`, with its runs there too, and check that it succeeds."
    result = r1nb(*arguments, cwd=cwd, runs=cwd)
    assert result.code == 0, result.err[-3000:]
    return result


def browser_program():
    "Path of Chromium, installed or playwright's own; skips the test if there is none."
    sync_playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright (extra browser)"
    ).sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    if path := next(filter(None, map(shutil.which, names)), None):
        return path
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    if Path(path).exists():
        return path
    pytest.skip("no Chromium: apt-get install chromium")


def wait_for(condition, what, process=None, deadline=DEADLINE):
    "The first true value of `condition()`; fails if `process` ends before, or after `deadline` s."
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if value := condition():
            return value
        if process is not None and process.poll() is not None:
            pytest.fail(f"the process ended (code {process.returncode}) without {what}")
        time.sleep(0.05)
    pytest.fail(f"no {what} within {deadline} s")


def losses(run):
    "The logged losses of `run`, step by step."
    return [row["loss"] for row in run.metrics if "loss" in row]


def session_members(session):
    "Ids of the live processes in session `session` (the id of its first process)."
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty working folder; runs go to `runs` in it."
    from r1nb import settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("R1NB_RUNS", str(tmp_path / "runs"))
    settings.settings.cache_clear()
    yield tmp_path
    settings.settings.cache_clear()


@pytest.fixture(autouse=True)
def one_engine(request, tmp_path_factory, worker_id):
    "Tests that fill a device run one at a time, whatever worker runs them."
    if worker_id == "master" or not {"gpu", "vllm"} & request.node.keywords.keys():
        yield
        return
    with FileLock(tmp_path_factory.getbasetemp().parent / "device.lock"):
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    "Folder of a random model of thirty thousand parameters."
    from r1nb.models import tiny_model

    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory, tiny_model):
    "A pipeline recipe of all five stages on the tiny model: a few seconds of work each."
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    model = str(tiny_model)
    stages = {
        "generate": {**TASK, "split": "train", "num_problems": 24, "num_generations": 2,
                     "teacher": "scripted", "model_name_or_path": model},
        "curate": {"dataset_name": "${generate}", "model_name_or_path": model, "max_tokens": 400},
        "sft": {"dataset_name": "${curate}", "model_name_or_path": model, **TRAINING,
                "max_steps": 4, "per_device_train_batch_size": 4, "max_length": 256},
        "grpo": {**TASK, "split": "train", "num_problems": 8, "model_name_or_path": "${sft}",
                 **TRAINING, "max_steps": 4, "save_steps": 2, "num_generations": 4,
                 "per_device_train_batch_size": 8, "max_completion_length": 16},
        "evaluate": {**TASK, "split": "heldout", "num_problems": 8, "dtype": "float32",
                     "num_generations": 2, "max_new_tokens": 16,
                     "models": {"base": model, "sft": "${sft}", "grpo": "${grpo}"}},
    }  # fmt: skip
    recipe = {"name": "tiny", "minutes": dict.fromkeys(stages, 0.3), "stages": stages}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, tiny_model):
    "SFT on forty traces, six steps; the number of examples a step is set on the command line."
    from r1nb.generate import worked_solution
    from r1nb.runs import append_jsonl

    folder = tmp_path_factory.mktemp("sums")
    sums = [(a, b) for a in range(8) for b in range(5)]
    rows = [
        {"problem": f"{a} + {b} =", "completion": worked_solution([("+", a), ("+", b)])}
        for a, b in sums
    ]
    append_jsonl(folder / "traces.jsonl", rows)
    keys = {
        **TRAINING,
        "dataset_name": str(folder / "traces.jsonl"),
        "model_name_or_path": str(tiny_model),
        "max_length": 256,
        "max_steps": 6,
        "save_steps": 2,
    }
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


@pytest.fixture(scope="session")
def alone(recipe, tmp_path_factory):
    "The finished run of one process on `recipe`, eight examples a step."
    folder = tmp_path_factory.mktemp("alone")
    options = ("--config", recipe, "--per_device_train_batch_size", 8, "--run-dir", folder / "run")
    result = r1nb("sft", *options, cwd=folder, runs=folder)
    assert result.code == 0, result.err[-3000:]
    from r1nb.runs import Run

    return Run(folder / "run")


@pytest.fixture(scope="session")
def seven(tmp_path_factory):
    "A folder with the configuration of a model of 7.6 billion parameters, and no weights."
    from transformers import Qwen2Config

    folder = tmp_path_factory.mktemp("seven")
    Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
        architectures=["Qwen2ForCausalLM"],
    ).save_pretrained(folder)
    return str(folder)
