"Run folders when something fails: damaged manifests, full disks, simultaneous starts, kills."

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT, TASK, finish, r1nb, start, wait_for
from nbformat.v4 import new_code_cell, new_notebook

from r1nb import runs as runs_module
from r1nb.runs import (
    Run,
    atomic_path,
    list_runs,
    open_run,
    process_mark,
    read_log,
    running,
    write_text,
)
from r1nb.settings import InputError, load_settings

GONE = 2**22 + 1  # no process has this number


# ---- damaged manifests -------------------------------------------------------------------------

WHOLE = {
    "stage": "sft",
    "name": "x",
    "status": "failed",
    "started": "2026-01-01T00:00:00+00:00",
    "config": {},
}
DAMAGED = {
    "cut off": '{"stage": "sft", "na',
    "empty": "",
    "no JSON": "hello",
    "a list": "[1, 2]",
    "a text": '"sft"',
    "not UTF-8": b'{"stage": "\xff\xfe"}',
    "deep": "[" * 200_000,
    "huge number": '{"starts": ' + "9" * 5000 + "}",
    **{
        f"{key}: {value!r}": json.dumps({**WHOLE, key: value})
        for key, value in {
            "started": 5,
            "batch": "x",
            "pid": "abc",
            "config": None,
            "status": "done",
            "stage": ["sft"],
            "summary": [],
            "inputs": {"data": "file"},
            "seconds": "1",
            "starts": -1,
            "host": None,
            "git": "abc",
        }.items()
    },
    "batch.job": json.dumps({**WHOLE, "batch": {"job": "1; touch f"}}),
}


def damage(folder, text):
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def good(tmp_path):
    "A runs folder with one complete run in it."
    with running(open_run(tmp_path / "runs/sft/good", "sft", {"learning_rate": 1e-4})) as summary:
        summary["train_loss"] = 1.5
    return tmp_path / "runs"


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_manifest_costs_its_own_run_only(text, good):
    damage(good / "sft/bad", text)
    assert [r.status for r in list_runs(good)] == ["completed", "damaged"]
    bad = Run(good / "sft/bad")
    assert str(bad / "manifest.json") in bad.damage and "restore it" in bad.damage
    before = (bad / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=re.escape(str(bad / "manifest.json"))):
        open_run(bad.path, "sft", {})
    assert (bad / "manifest.json").read_bytes() == before
    assert os.listdir(bad.path) == ["manifest.json"]
    assert open_run(bad.path, "sft", {}, force=True).status == "created"


def test_damaged_manifests_on_the_command_line(good, tmp_path):
    for i, text in enumerate(DAMAGED.values()):
        damage(good / f"bad/{i}", text)
    (good / "bad/folder/manifest.json").mkdir(parents=True)
    damage(good / "bad/loose metrics", json.dumps(WHOLE))
    (good / "bad/loose metrics/metrics.jsonl").write_text('[1]\n{"step": "one"}\n{"loss": 2}\n')
    damage(
        good / "bad/loose summary",
        json.dumps({**WHOLE, "summary": {"train_loss": "low"}, "hardware": {"gpus": [1]}}),
    )
    damage(good / "bad/escapes", json.dumps({**WHOLE, "stage": "\x1b[2J"}))

    listed = r1nb("runs", cwd=tmp_path, runs=good)
    assert listed.code == 0 and "Traceback" not in listed.err and "\x1b" not in listed.out
    lines = {line.split("  ")[0]: line for line in listed.out.splitlines()}
    assert "completed" in lines["sft/good"]
    damaged = [f"bad/{name}" for name in (*range(len(DAMAGED)), "folder")]
    assert all("damaged" in lines[name] and "manifest.json" in lines[name] for name in damaged)
    assert all(str(good / name / "manifest.json") in listed.err for name in damaged)
    rows = [
        json.loads(line)
        for line in r1nb("runs", "--json", cwd=tmp_path, runs=good).out.splitlines()
    ]
    assert sum(row["state"] == "damaged" for row in rows) == len(damaged)
    assert len(rows) == len(damaged) + 4

    page = r1nb("runs", "--html", tmp_path / "page", cwd=tmp_path, runs=good)
    assert page.code == 0, page.err
    text = (tmp_path / "page/index.html").read_text(errors="replace")
    assert "sft/good" in text and text.count("manifest.json cannot be read") == len(damaged)

    damage(good / "bad/half a pair", json.dumps({**WHOLE, "stage": "\ud800"}))
    listed = r1nb("runs", cwd=tmp_path, runs=good)
    assert listed.code == 0 and "bad/half a pair" in listed.out, listed.err
    for name in ("bad/0", "bad/folder"):
        shown = r1nb("show", name, cwd=tmp_path, runs=good)
        assert shown.code == 2
        assert str(good / name / "manifest.json") in shown.err
        assert shown.err.count("\n") == 1
        for command in ("logs", "cancel"):
            assert r1nb(command, name, cwd=tmp_path, runs=good).code == 2
    assert "learning_rate" in r1nb("show", "sft/good", cwd=tmp_path, runs=good).out


def write_notebook(path, code):
    nbformat.write(new_notebook(cells=[new_code_cell(code)]), path)


def test_a_start_on_a_damaged_run_says_so(tmp_path):
    write_notebook(tmp_path / "one.ipynb", "1 + 1")
    damage(tmp_path / "runs/one", '{"stage": "noteb')
    result = r1nb("run", "one.ipynb", "--run-dir", "runs/one", cwd=tmp_path, runs=tmp_path / "runs")
    assert result.code == 2, result.err
    assert "manifest.json" in result.err, result.err
    assert result.err.count("\n") == 1, result.err
    result = r1nb(
        "run", "one.ipynb", "--run-dir", "runs/one", "--force", cwd=tmp_path, runs=tmp_path / "runs"
    )
    assert result.code == 0 and Run(tmp_path / "runs/one").status == "completed"


@pytest.mark.skipif(
    os.getuid() == 0 and not shutil.which("setpriv"), reason="root reads everything"
)
def test_a_manifest_of_another_user(good, tmp_path):
    damage(good / "sft/bad", json.dumps(WHOLE))
    os.chmod(good / "sft/bad/manifest.json", 0)
    code = "import sys; from r1nb.runs import Run; print(Run(sys.argv[1]).damage)"
    command = [sys.executable, "-c", code, str(good / "sft/bad")]
    if os.getuid() == 0:
        for folder in (good, *good.parents):
            if folder.stat().st_uid == 0 and folder.is_relative_to(tmp_path.parent.parent):
                folder.chmod(0o755)
        command = ["setpriv", "--reuid=65534", "--clear-groups", *command]
    said = subprocess.run(command, capture_output=True, text=True, cwd="/")
    if "Permission denied" in said.stderr:
        pytest.skip("another user cannot import r1nb here")
    assert "cannot be read: Permission denied" in said.stdout, said.stderr


# ---- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "  ", "\n"])
@pytest.mark.parametrize("key, default", [("runs", "runs"), ("cache", "~/.cache/r1nb")])
def test_an_empty_path_is_the_default(key, default, text, tmp_path, monkeypatch):
    file = tmp_path / "settings.ini"
    file.write_text(f"[paths]\n{key} ={text}\n")
    wanted = tmp_path / "runs" if key == "runs" else Path(default).expanduser()
    assert getattr(load_settings(file), key) == wanted
    monkeypatch.setenv(f"R1NB_{key.upper()}", text)
    assert getattr(load_settings(file), key) == wanted
    file.write_text(f"[paths]\n{key} = there\n")
    assert getattr(load_settings(file), key) == tmp_path / "there"


@pytest.mark.parametrize(
    "text, path", [("~/x", Path.home() / "x"), ("a/../b", "a/../b"), ("/x", "/x"), ("a b", "a b")]
)
def test_a_path_of_the_settings(text, path, tmp_path, monkeypatch):
    file = tmp_path / "settings.ini"
    file.write_text(f"[paths]\nruns = {text}\n")
    assert load_settings(file).runs == tmp_path / path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("R1NB_RUNS", text)
    assert load_settings(file).runs == tmp_path / path


@pytest.mark.parametrize(
    "text", ['"/scratch/runs"', "'runs'", "# where runs go", "~nobody-of-this-name/runs"]
)
def test_a_path_that_cannot_be_meant(text, tmp_path):
    (tmp_path / "settings.ini").write_text(f"[paths]\nruns = {text}\n")
    with pytest.raises(InputError, match="runs = "):
        load_settings(tmp_path / "settings.ini")


def test_no_runs_means_not_the_current_folder(tmp_path):
    open_run(tmp_path / "stray", "sft", {})
    (tmp_path / "settings.ini").write_text("[paths]\nruns =\n")
    listed = r1nb("runs", cwd=tmp_path, runs="", R1NB_SETTINGS=str(tmp_path / "settings.ini"))
    assert (listed.code, listed.out) == (0, f"no runs below {tmp_path / 'runs'}\n")


# ---- the process of a manifest -----------------------------------------------------------------


@pytest.fixture
def sleeper():
    "A process that has nothing to do with any run."
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def start_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_cancel_signals_the_process_of_the_run_and_no_other(sleeper, tmp_path):
    me = {**process_mark(), "status": "running", "stage": "sft"}
    theirs = {**me, "pid": sleeper.pid, "process_start": start_of(sleeper.pid)}
    cases = {
        "zero": {**me, "pid": 0},
        "all": {**me, "pid": -1},
        "group": {**me, "pid": -os.getpgrp()},
        "text": {**me, "pid": str(sleeper.pid)},
        "list": {**me, "pid": [sleeper.pid]},
        "yes": {**me, "pid": True},
        "init": {**me, "pid": 1, "process_start": start_of(1)},
        "parent": me,
        "recycled": {**theirs, "process_start": "1"},
        "no mark": {**theirs, "process_start": None},
        "half": {**theirs, "pid": sleeper.pid + 0.5},
        "large": {**theirs, "pid": 2**70},
        "none": {**theirs, "pid": None},
    }
    for name, manifest in cases.items():
        damage(tmp_path / "runs" / name, json.dumps(manifest))
        result = r1nb("cancel", name, cwd=tmp_path, runs=tmp_path / "runs")
        assert result.code == 2, name
        assert result.err.startswith("r1nb: error:"), name
        assert "Traceback" not in result.err, name
        assert sleeper.poll() is None
    damage(tmp_path / "runs/unlocked", json.dumps(theirs))
    (tmp_path / "runs/unlocked/.lock").write_text("")
    result = r1nb("cancel", "unlocked", cwd=tmp_path, runs=tmp_path / "runs")
    assert result.code == 2 and "no process holds the lock" in result.err and sleeper.poll() is None


# ---- writing -----------------------------------------------------------------------------------


def folder_of(path, number):
    path.mkdir()
    for name in ("a", "b"):
        (path / name).write_text(str(number))


def test_a_folder_is_replaced_without_a_gap(tmp_path):
    target = tmp_path / "model"
    if not runs_module._exchange(
        *(Path(shutil.copytree(ROOT / "scripts/accelerate", tmp_path / n)) for n in "xy")
    ):
        pytest.skip("this file system cannot swap two names")
    code = (
        "import os, sys\nmissing = count = 0\nprint('ready', flush=True)\n"
        "while not os.path.exists(sys.argv[2]):\n"
        "    count += 1\n    missing += not os.path.isdir(sys.argv[1])\n"
        "print(count, missing)"
    )
    with atomic_path(target) as t:
        folder_of(t, 0)
    reader = subprocess.Popen(
        [sys.executable, "-c", code, target, tmp_path / "end"], stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout.readline() == "ready\n"
    for number in range(200):
        with atomic_path(target) as t:
            folder_of(t, number)
    (tmp_path / "end").write_text("")
    count, missing = map(int, reader.communicate(timeout=60)[0].split())
    assert missing == 0 and count > 200
    assert (target / "a").read_text() == "199"
    assert not [p for p in os.listdir(tmp_path) if p.startswith(".")]


def test_a_folder_is_replaced_where_names_cannot_be_swapped(tmp_path, monkeypatch):
    monkeypatch.setattr(runs_module, "_exchange", lambda a, b: False)
    for number in range(2):
        with atomic_path(tmp_path / "model") as t:
            folder_of(t, number)
    assert (tmp_path / "model/a").read_text() == "1" and os.listdir(tmp_path) == ["model"]
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "model") as t:
        folder_of(t, 2)
        raise KeyboardInterrupt
    assert (tmp_path / "model/a").read_text() == "1" and os.listdir(tmp_path) == ["model"]


KILLED = """
import os, signal, sys
from pathlib import Path
from r1nb import runs
runs._exchange = lambda a, b: False
rename, count = os.rename, 0
def kill(a, b):
    global count
    count += 1
    if count > int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
    rename(a, b)
os.rename = kill
with runs.atomic_path(Path(sys.argv[1])/'model') as t:
    t.mkdir()
    (t/'a').write_text('new')
"""


@pytest.mark.parametrize("renamed, text", [(0, "old"), (1, "old")])
def test_the_next_start_puts_an_old_folder_back(renamed, text, tmp_path):
    run = open_run(tmp_path / "run", "sft", {})
    (run / "model").mkdir()
    (run / "model/a").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, run.path, str(renamed)])
    assert done.returncode == -signal.SIGKILL
    open_run(run.path, "sft", {})
    assert (run / "model/a").read_text() == text
    assert sorted(os.listdir(run.path)) == [".lock", "config.yaml", "manifest.json", "model"]


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(sleeper, tmp_path):
    run = open_run(tmp_path / "run", "sft", {})
    below = open_run(run / "stage", "sft", {})
    living = [
        f".model.{sleeper.pid}.tmp",
        f".data.parquet.{sleeper.pid}.tmp",
        f".job.ipynb.{sleeper.pid}.part",
    ]
    dead = [
        f".model.{GONE}.tmp",
        f".data.parquet.{GONE}.tmp",
        f".job.ipynb.{GONE}.part",
        f".m.{sleeper.pid}-1-{0:08x}.tmp",
    ]
    host = f"{runs_module.zlib.crc32(socket.gethostname().encode()):08x}"
    living.append(f".m.{sleeper.pid}-{start_of(sleeper.pid)}-{host}.tmp")
    dead.append(f".m.{sleeper.pid}-1-{host}.tmp")
    other = [".gitignore", ".cache", ".model.tmp", ".x.tmp"]
    (run / "results").mkdir()
    for folder in (run.path, run / "results", below.path):
        for name in living + dead + other:
            (folder / name).mkdir() if name.startswith(".model") else (folder / name).write_text("")
    open_run(run.path, "sft", {}, keep=True)
    runs_module.release(run)
    for folder in (run.path, run / "results"):
        left = [p for p in os.listdir(folder) if p.startswith(".") and p != ".lock"]
        assert sorted(left) == sorted(living + other), folder
    assert set(dead) <= set(os.listdir(below.path))  # another run: its next start removes them
    with atomic_path(below / "model") as t:  # or the next write of the same file
        folder_of(t, 1)
    assert f".model.{GONE}.tmp" not in os.listdir(below.path)


# ---- a full disk -------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path_factory):
    "A file system of 80 MiB, a little more than a job needs to start."
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder):
    "Use all free space on the disk of `folder`."
    with open(folder / "filler", "wb", buffering=0) as f:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    f.write(b"x" * size)
            except OSError:
                pass


def generation(tmp_path, tiny_model, problems=400, **more):
    "The path of a recipe for `generate` with the scripted teacher."
    keys = {
        **TASK,
        "split": "train",
        "num_problems": problems,
        "num_generations": 4,
        "teacher": "scripted",
        "model_name_or_path": str(tiny_model),
        "batch_size": 8,
        **more,
    }
    (tmp_path / "generate.yaml").write_text(yaml.safe_dump(keys))
    return tmp_path / "generate.yaml"


@pytest.mark.parametrize("what", ["samples", pytest.param("manifest", marks=pytest.mark.slow)])
def test_a_full_disk_fails_the_run_and_the_next_start_resumes(what, disk, tmp_path, tiny_model):
    command = [
        "generate",
        "--config",
        generation(tmp_path, tiny_model, 3000),
        "--run-dir",
        disk / "run",
    ]
    process = start(*command, cwd=tmp_path, runs=tmp_path / "runs")
    file = disk / "run/dataset/traces.jsonl"
    wait_for(lambda: file.exists() and file.stat().st_size > 4096, "samples", process)
    fill(disk)
    if what == "manifest":  # no space for the manifest either
        (disk / "run/.lock").write_bytes(b"")
        fill(disk)
    result = finish(process, tmp_path)
    assert result.code == 1
    assert "No space left on device" in result.err
    assert str(disk / "run") in result.err
    assert (
        "No space left on device" in result.err.rstrip().rpartition("r1nb: failed")[2]
    )  # said last
    run, kept = Run(disk / "run"), len(read_log(file))
    assert run.status in (["failed"] if what == "samples" else ["failed", "interrupted"])
    assert kept > 0
    again = r1nb(*command, cwd=tmp_path, runs=tmp_path / "runs")
    assert again.code == 2
    assert re.search("MiB free|No space left", again.err)
    assert len(read_log(file)) == kept
    (disk / "filler").unlink()
    again = r1nb(*command, cwd=tmp_path, runs=tmp_path / "runs")
    assert again.code == 0 and run.status == "completed", again.err
    keys = [(r["problem_id"], r["sample"]) for r in read_log(file)]
    assert len(keys) == len(set(keys)) == 12000


def test_an_error_of_the_disk_names_the_file(disk):
    open_run(disk / "run", "sft", {})
    fill(disk)
    for write in (
        lambda p: write_text(p, "x" * 9000),
        lambda p: runs_module.append_jsonl(p, [{"text": "x" * 9000}]),
    ):
        with pytest.raises(OSError) as caught:
            write(disk / "run/file.txt")
        assert caught.value.filename == str(disk / "run/file.txt")
        assert "No space left" in str(caught.value)
    with pytest.raises(OSError) as caught, atomic_path(disk / "run/data.parquet") as t:
        import pandas as pd

        pd.DataFrame({"a": list(range(9000))}).to_parquet(t)
    assert str(disk / "run/data.parquet") in str(caught.value)
    assert sorted(os.listdir(disk / "run")) == [".lock", "config.yaml", "file.txt", "manifest.json"]


# ---- two starts at once, and a folder that is removed ------------------------------------------

AT_ONCE = """
import json, pathlib, sys, time
from r1nb import jobs
from r1nb.engine import import_papermill
import_papermill()
pathlib.Path(sys.argv[2] + '.ready').write_text('')
while not pathlib.Path(sys.argv[3]).exists(): time.sleep(0.001)
sys.exit(jobs.main(['job', sys.argv[1]]))
"""


def start_at_once(folder, count):
    "Exit code, process number and messages of `count` starts on one run folder at the same moment."
    write_notebook(folder / "wait.ipynb", "import time; time.sleep(3)")
    job = json.dumps(
        {
            "stage": "notebook",
            "notebook": str(folder / "wait.ipynb"),
            "run_dir": str(folder / "run"),
        }
    )
    processes = []
    for i in range(count):
        with open(folder / f"{i}.err", "w") as err:
            command = [sys.executable, "-c", AT_ONCE, job, str(folder / str(i)), str(folder / "go")]
            processes.append(
                subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=err)
            )
    for i, p in enumerate(processes):
        wait_for(lambda i=i: (folder / f"{i}.ready").exists(), "a process that is ready", p)
    (folder / "go").write_text("")
    return [
        (p.wait(120), p.pid, (folder / f"{i}.err").read_text()) for i, p in enumerate(processes)
    ]


@pytest.mark.parametrize(
    "trial", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 5))]
)
def test_one_of_six_starts_at_the_same_moment_runs(trial, tmp_path):
    ended = start_at_once(tmp_path, 6)
    winners = [pid for code, pid, _ in ended if code == 0]
    assert len(winners) == 1 and sorted(code for code, *_ in ended) == [0, 2, 2, 2, 2, 2], ended
    for code, _, err in ended:
        assert (
            code == 0 or f"is being run by process {winners[0]} on {socket.gethostname()}" in err
        ), err
        assert "Traceback" not in err
    assert Run(tmp_path / "run").status == "completed"
    assert Run(tmp_path / "run").manifest["starts"] == 1


def test_a_killed_process_leaves_no_lock(tmp_path):
    write_notebook(
        tmp_path / "wait.ipynb",
        "import pathlib, time\nif not pathlib.Path('go').exists(): time.sleep(600)",
    )
    command = ["run", "wait.ipynb", "--run-dir", "run"]
    process = start(*command, cwd=tmp_path, runs=tmp_path)
    run = Run(tmp_path / "run")
    wait_for(lambda: run.status == "running" and (run / "job.ipynb").exists(), "a run", process)
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "wait.ipynb", tmp_path / "other")
    other = r1nb(
        "run", tmp_path / "wait.ipynb", "--run-dir", run.path, cwd=tmp_path / "other", runs=tmp_path
    )
    assert other.code == 2, other.err
    assert f"is being run by process {run.manifest['pid']} " in other.err, other.err
    os.kill(run.manifest["pid"], signal.SIGKILL)
    assert finish(process, tmp_path).code == 128 + signal.SIGKILL
    (tmp_path / "go").write_text("")
    assert r1nb(*command, cwd=tmp_path, runs=tmp_path).code == 0 and run.status == "completed"


@pytest.mark.parametrize(
    "again", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["removed", "recreated"]
)
def test_a_run_folder_that_is_removed_while_it_runs(again, tmp_path, tiny_model):
    command = [
        "generate",
        "--config",
        generation(tmp_path, tiny_model, 3000),
        "--run-dir",
        tmp_path / "run",
    ]
    process = start(*command, cwd=tmp_path, runs=tmp_path / "runs")
    file = tmp_path / "run/dataset/traces.jsonl"
    wait_for(lambda: file.exists() and file.stat().st_size > 4096, "samples", process)
    os.rename(tmp_path / "run", tmp_path / "away")  # in one step; rm -r would race with the writer
    if again:
        (tmp_path / "run").mkdir()
    result = finish(process, tmp_path)
    assert result.code == 1, result.err
    assert "the run folder was removed while its job ran" in result.err, result.err
    assert str(tmp_path / "run") in result.err.rstrip().rpartition("r1nb: failed")[2]  # said last
    assert os.listdir(tmp_path / "run") == [] if again else not (tmp_path / "run").exists()


def test_a_notebook_whose_folder_is_removed(tmp_path):
    write_notebook(tmp_path / "one.ipynb", "import shutil, os; shutil.rmtree('run'); print('done')")
    result = r1nb("run", "one.ipynb", "--run-dir", "run", cwd=tmp_path, runs=tmp_path)
    assert result.code == 1, result.err
    assert "the run folder was removed while its job ran" in result.err, result.err
    assert "Traceback" not in result.err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "kind, trials",
    [
        ("manifest", 3),
        pytest.param("generate", 2, marks=pytest.mark.slow),
        pytest.param("evaluate", 2, marks=pytest.mark.slow),
    ],
)
def test_kills_at_random_moments(kind, trials):
    script = ROOT / "scripts/bench/kill_writers.py"
    command = [sys.executable, script, "--trials", str(trials), "--seed", "11", "--kinds", kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{trials} of {trials} ok" in done.stdout, done.stdout + done.stderr


# ---- text that reaches a shell -----------------------------------------------------------------

NASTY = [
    "a; touch f #",
    "$(touch f)",
    "`touch f`",
    "a' ; touch f; '",
    'a"; touch f; "',
    "$(shell touch f)",
    "a\ntouch f",
    "a | touch f",
    "a && touch f",
    "-x",
    "../../f",
    "a b",
    "${f:=x}",
    "a > f",
]


@pytest.fixture
def stubbed(tmp_path):
    "A virtual environment whose `r1nb` prints its arguments, and a setup that creates a file."
    bin = tmp_path / "venv/bin"
    bin.mkdir(parents=True)
    (bin / "r1nb").write_text('#!/bin/bash\nfor a in "$@"; do printf \'%q\\n\' "$a"; done\n')
    (bin / "r1nb").chmod(0o755)
    for name in ("Makefile", "scripts/targets.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "scripts/setup.sh").write_text("touch set-up; exit 3\n")

    # As from a shell: `make test` passes its own flags and values to every `make` that it runs.
    theirs = re.search(r"^VALUES := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", *theirs}
    outside = {k: v for k, v in os.environ.items() if k not in inherited}

    def make(*arguments, **env):
        done = subprocess.run(
            ["make", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**outside, "VENV": "venv", **env},
            timeout=60,
        )
        words = done.stdout.splitlines()[1:]
        unquoted = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {' '.join(words)}"], capture_output=True, text=True
        )
        return done, unquoted.stdout.split("\0")[:-1]

    return make


@pytest.mark.parametrize("value", NASTY)
@pytest.mark.parametrize("key", ["MODEL", "TASK", "ARGS", "PARALLEL", "NUM_GPUS"])
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_make_evaluate_passes_text_on_and_runs_none(value, key, way, stubbed, tmp_path):
    given = {"MODEL": "o/m", "TASK": "aime24", key: value}
    if way == "argument":
        done, words = stubbed("evaluate", *(f"{k}={v}" for k, v in given.items()))
    else:
        done, words = stubbed("evaluate", **given)
    assert not (tmp_path / "f").exists() and not (tmp_path / "set-up").exists()
    if done.returncode:
        assert key == "ARGS" and "cannot be split" in done.stdout + done.stderr
        return
    if key == "ARGS":
        expected = shlex.split(value)
    else:
        expected = value.split() if key == "TASK" else [value]
    assert words[0] == "evaluate" and set(expected) <= set(words), words
    folder = Path(words[words.index("--run-dir") + 1])
    assert folder.parent == Path("runs/evaluate"), folder
    assert re.fullmatch(r"[\w+@=-][\w.+@=-]*", folder.name), folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate"],
        ["evaluate", "MODEL=o/m"],
        ["evaluate", "TASK=aime24", "MODEL="],
        ["evaluate", "MODEL=o/m", "TASK= "],
    ],
)
def test_make_evaluate_says_its_usage_before_it_sets_up(arguments, stubbed, tmp_path):
    done, _ = stubbed(*arguments, VENV="nothing-here")
    assert done.returncode == 2 and done.stdout.startswith("usage: make evaluate MODEL=")
    assert not (tmp_path / "set-up").exists()
    stubbed("evaluate", "MODEL=o/m", "TASK=aime24", VENV="nothing-here")
    assert (tmp_path / "set-up").exists()


def test_words_of_make_evaluate(stubbed):
    _, words = stubbed(
        "evaluate",
        "MODEL=runs/x/model/",
        "TASK=math_500 lcb:v6",
        'ARGS=--limit 10 --models "{a: b c}" *',
    )
    assert words == [
        "evaluate",
        "--model",
        "runs/x/model/",
        "--tasks",
        "math_500",
        "lcb:v6",
        "--run-dir",
        "runs/evaluate/model-math_500-lcb-v6",
        "--limit",
        "10",
        "--models",
        "{a: b c}",
        "*",
    ]


@pytest.mark.parametrize("value", NASTY)
def test_make_quickstart_passes_text_on_and_runs_none(value, stubbed, tmp_path):
    done, _ = stubbed("quickstart", f"SEED={value}")
    assert done.returncode == 2 and "is not a whole number" in done.stdout
    done, words = stubbed("quickstart", "SEED=3", f"RECIPE={value}")
    assert words == ["pipeline", value, "--seed", "3", "--name", "quickstart-seed3"]
    for target in ("clean", "docs", "setup"):
        stubbed(
            "-n", target, f"VENV={value}", f"RUNS={value}", f"EXTRAS={value}", f"PYTHON={value}"
        )
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(("target", "folder"), [("zero", "r1-zero"), ("r1", "r1")])
def test_make_zero_and_make_r1_have_their_recipes(target, folder, stubbed):
    recipe = ["pipeline", f"scripts/recipes/{folder}/laptop.yaml"]
    assert stubbed(target)[1] == recipe
    assert stubbed(target, "SEED=2")[1] == [*recipe, "--seed", "2", "--name", f"{target}-seed2"]
    assert stubbed("quickstart")[1] == ["pipeline", "scripts/recipes/quickstart.yaml"]


@pytest.mark.parametrize("value", NASTY)
def test_batch_scripts_hold_text_and_run_none(value, tmp_path):
    from r1nb.jobs import Job
    from r1nb.slurm import SlurmOptions, batch_script

    job = Job(
        "sft",
        overrides={"model_name_or_path": value, value: "1", "chat_template": value},
        config=None,
        run_dir=str(tmp_path / "runs" / value.replace("/", "_")),
    )
    if "\n" in value:
        with pytest.raises(InputError, match="cannot be printed"):
            batch_script(job, SlurmOptions())
        job.run_dir = str(tmp_path / "runs/plain")
    options = SlurmOptions(nodes=2, server="", account="a b" if value == "a b" else None)
    script = batch_script(job, options)
    assert all(line.startswith(("#SBATCH --", "#!")) for line in script.splitlines()[:6])
    assert script.count("#SBATCH --job-name=") == 1
    for name, text in {
        "scontrol": "echo localhost; echo localhost",
        "scancel": ":",
        "srun": "exit 0",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script)
    assert subprocess.run(["bash", "-n", tmp_path / "job.sh"]).returncode == 0
    env = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "R1NB_NODES_WAIT": "0",
    }
    (tmp_path / "work").mkdir()
    script = re.sub(r"(?m)^cd .*$", f"cd {tmp_path}/work", script, count=1)
    (tmp_path / "job.sh").write_text(script + "\n")
    done = subprocess.run(
        ["bash", tmp_path / "job.sh"],
        env=env,
        capture_output=True,
        text=True,
        cwd=tmp_path / "work",
    )
    assert done.returncode == 0 and "ended with exit code 0" in done.stdout, done.stderr
    assert os.listdir(tmp_path / "work") == [] and not list(tmp_path.glob("**/f"))


@pytest.mark.parametrize("field", ["partition", "account", "qos", "dependency"])
def test_a_line_break_in_an_option_of_slurm(field):
    from r1nb.slurm import SlurmOptions, header

    with pytest.raises(InputError, match=f"--{field}"):
        header(SlurmOptions(**{field: "gpu\ntouch f"}), "name", "log")
    assert f'--{field}="gpu # x"' in header(SlurmOptions(**{field: "gpu # x"}), "name", "log")


def test_an_error_with_invalid_text_can_be_written(tmp_path):
    run = open_run(tmp_path / "run", "notebook", {})
    with pytest.raises(ValueError, match="half"), running(run):
        raise ValueError("half \ud800 a pair")
    assert run.status == "failed" and run.manifest["error"] == "ValueError: half \ud800 a pair"
    result = r1nb("show", run.path, cwd=tmp_path, runs=tmp_path)
    assert result.code == 0 and "half" in result.out
    assert r1nb("runs", "--html", "pages", cwd=tmp_path, runs=tmp_path).code == 0
