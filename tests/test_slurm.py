"A real Slurm of two nodes with fake GPUs: submitted jobs, time limits, dependencies, refusals."

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from cluster import Cluster, available
from conftest import ROOT, TASK, losses, r1nb, wait_for

from r1nb import scheduler  # noqa: F401  runs ask the queue from here on
from r1nb.runs import Run, read_log
from r1nb.trainer import last_checkpoint

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not available(), reason="needs root, slurmctld, slurmd and munged"),
]
SITE = {"R1NB_GPUS_PER_NODE": "1", "R1NB_INTERFACE": "lo"}
SMALL = ("--per_device_train_batch_size", 4)
WAIT = 240  # seconds for a job; most of it is imports, on every node


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm")).start()
    yield cluster
    cluster.stop()


def submit(*arguments, cwd):
    "The number of the job that the command submits."
    result = r1nb(*arguments, "--slurm", cwd=cwd, runs=cwd / "runs", **SITE)
    assert result.code == 0, result.err
    return [int(n) for n in re.findall(r"^job (\d+):", result.out, re.M)]


def state(job):
    text = subprocess.run(
        ["scontrol", "show", "job", "-o", str(job)], capture_output=True, text=True
    ).stdout
    return (re.search(r"JobState=(\w+)", text) or [None, "UNKNOWN"])[1]


def log(folder):
    return "".join(p.read_text() for p in folder.glob("**/slurm-*.out"))


def until(job, states, folder, deadline=WAIT):
    end = time.monotonic() + deadline
    while state(job) not in states:
        assert time.monotonic() < end, f"job {job} is {state(job)}\n{log(folder)[-3000:]}"
        assert state(job) in (*states, "PENDING", "RUNNING", "COMPLETING", "REQUEUED"), log(folder)[
            -3000:
        ]
        time.sleep(0.2)


@pytest.fixture(scope="module")
def two_nodes(cluster, recipe, tmp_path_factory):
    "SFT over both nodes, undisturbed."
    folder = tmp_path_factory.mktemp("two")
    options = ("sft", "--config", recipe, *SMALL, "--nodes", 2, "--run-dir", "run")
    dry = r1nb(*options, "--slurm", "--dry-run", cwd=folder, runs=folder / "runs", **SITE)
    assert dry.code == 0 and not (folder / "run").exists()
    (job,) = submit(*options, cwd=folder)
    assert Run(folder / "run").status in ("queued", "created", "running")
    until(job, ["COMPLETED"], folder)
    return folder, dry.out


@pytest.mark.slow
def test_training_over_both_nodes(two_nodes, alone):
    folder, dry = two_nodes
    run = Run(folder / "run")
    assert run.status == "completed" and run.manifest["world_size"] == 2 and len(losses(run)) == 6
    assert losses(run) == pytest.approx(losses(alone), abs=2e-3)  # DDP, with the same global batch
    assert (run / "logs" / "rank-1.log").exists() and (run / "model" / "model.safetensors").exists()
    assert (run / "logs" / "job.slurm").read_text() == dry  # what was shown is what was submitted
    assert "sft on 2 node(s) (node[1-2])" in log(folder) and "2 node(s) checked in" in log(folder)
    shown = r1nb("logs", "run", cwd=folder, runs=folder)
    assert shown.code == 0 and "[rank" not in shown.out and "traces; the first has" in shown.out


@pytest.mark.slow
def test_a_time_limit_costs_nothing(cluster, recipe, two_nodes, tmp_path):
    "USR1, as Slurm sends it near the limit: the job saves, is requeued and resumes; same losses."
    (job,) = submit(
        "sft", "--config", recipe, *SMALL, "--nodes", 2, "--run-dir", "run", cwd=tmp_path
    )
    run = Run(tmp_path / "run")
    wait_for(lambda: run.metrics, "a first step", deadline=WAIT)
    subprocess.run(["scancel", "--batch", "--signal=USR1", str(job)], check=True)
    wait_for(lambda: "back into the queue" in log(tmp_path), "the requeue", deadline=WAIT)
    steps = [row["step"] for row in run.metrics]
    assert run.manifest["status"] == "preempted" and steps[-1] < 6, log(tmp_path)
    assert last_checkpoint(run / "checkpoints").name == f"checkpoint-{steps[-1]}"
    until(job, ["COMPLETED"], tmp_path, 2 * WAIT)
    assert run.status == "completed"
    assert run.manifest["starts"] == 2
    assert "restart 1" in log(tmp_path)
    assert losses(run) == pytest.approx(losses(Run(two_nodes[0] / "run")), abs=2e-3)


@pytest.mark.slow
def test_a_pipeline_by_dependencies(cluster, tiny_model, tmp_path):
    stages = {
        "generate": {
            **TASK,
            "split": "train",
            "num_problems": 16,
            "num_generations": 2,
            "teacher": "scripted",
            "model_name_or_path": str(tiny_model),
        },
        "curate": {
            "dataset_name": "${generate}",
            "model_name_or_path": str(tiny_model),
            "max_tokens": 400,
        },
    }
    (tmp_path / "p.yaml").write_text(
        yaml.safe_dump({"name": "p", "stages": stages}, sort_keys=False)
    )
    jobs = submit("pipeline", "p.yaml", cwd=tmp_path)
    assert len(jobs) == 3  # and the report
    shown = subprocess.run(
        ["scontrol", "show", "job", "-o", str(jobs[1])], capture_output=True, text=True
    ).stdout
    assert f"afterok:{jobs[0]}" in shown
    until(jobs[1], ["COMPLETED"], tmp_path)
    assert Run(tmp_path / "runs/p/curate").status == "completed"


def test_what_slurm_grants(cluster, recipe, tmp_path):
    "CPUs, memory, GPUs and any other option, as the queue shows them; none for a stage without."
    options = ("--cpus_per_task", 3, "--mem", "500M", "--sbatch=--comment=mine", "--sbatch=--hold")
    (job,) = submit("sft", "--config", recipe, "--run-dir", "run", *options, cwd=tmp_path)
    shown = cluster.ask("scontrol", "show", "job", "-o", str(job))
    for part in (
        "CPUs/Task=3",
        "MinMemoryNode=500M",
        "gres:gpu:1",
        "Comment=mine",
        "OverSubscribe=NO",
    ):
        assert part in shown, shown
    subprocess.run(["scancel", str(job)], check=True)
    traces = tmp_path / "traces.jsonl"
    traces.write_text('{"problem": "1 + 1 =", "completion": "2"}\n')
    (job,) = submit(
        "curate", "--dataset_name", traces, "--steps", "format", "--sbatch=--hold", cwd=tmp_path
    )
    shown = cluster.ask("scontrol", "show", "job", "-o", str(job))
    assert "gpu" not in shown.replace("r1nb", "") and "OverSubscribe=OK" in shown, shown
    subprocess.run(["scancel", str(job)], check=True)
    wait_for(lambda: not cluster.ask("squeue", "-h"), "an empty queue")


def test_cancel(cluster, recipe, tmp_path):
    options = ("--run-dir", "runs/run", "--max_steps", "5000", "--time", "5")  # outlasts the test
    (job,) = submit("sft", "--config", recipe, *options, "--dependency", "singleton", cwd=tmp_path)
    rows = r1nb("runs", "--json", cwd=tmp_path, runs=tmp_path / "runs")
    assert '"state": "queued"' in rows.out or '"state": "running"' in rows.out
    again = r1nb(
        "sft", "--config", recipe, *options, "--slurm", cwd=tmp_path, runs=tmp_path / "runs", **SITE
    )
    assert again.code == 2 and f"job {job}" in again.err
    result = r1nb("cancel", "run", cwd=tmp_path, runs=tmp_path / "runs")
    assert result.code == 0 and f"job {job} of" in result.out, result.out + result.err
    until(job, ["CANCELLED"], tmp_path)
    rows = r1nb("runs", "--json", cwd=tmp_path, runs=tmp_path / "runs")
    assert '"state": "queued"' not in rows.out
    assert r1nb("cancel", "run", cwd=tmp_path, runs=tmp_path / "runs").code == 2
    run = Run(tmp_path / "runs/run")
    run.update(status="running", host="node9", pid=1)  # a node that died: only the queue knows
    assert run.status == "interrupted"
    (again,) = submit("sft", "--config", recipe, *options, cwd=tmp_path)
    run.update(host="node9")
    assert run.status in ("running", "created", "queued")
    subprocess.run(["scancel", str(again)], check=True)


def test_a_job_cancelled_after_the_notice_stays_cancelled(cluster, recipe, tmp_path):
    options = ("--run-dir", "runs/run", "--max_steps", "5000", "--time", "30")
    (job,) = submit("sft", "--config", recipe, *options, cwd=tmp_path)
    wait_for(lambda: "command r1nb sft" in log(tmp_path), "the job's start", deadline=WAIT)
    subprocess.run(["scancel", "--batch", "--signal=USR1", str(job)], check=True)
    wait_for(lambda: "the time limit is near" in log(tmp_path), "the notice")
    subprocess.run(["scancel", str(job)], check=True)
    # It may have saved, and be back in the queue, before that: then it is cancelled there.
    ends = ("ended with exit code", "back into the queue")
    wait_for(lambda: any(e in log(tmp_path) for e in ends), "the job's end", deadline=WAIT)
    until(job, ["CANCELLED"], tmp_path)
    wait_for(lambda: not cluster.ask("squeue", "-h"), "an empty queue")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--partition", "nowhere"), "invalid partition"),
        (("--gpus_per_node", "9"), "not available"),
        (("--time", "4h"), "not a slurm time limit"),
        (("--nodes", "2", "--num_processes", "3"), "cannot be spread evenly"),
        (("--learning_rat", "1"), "did you mean 'learning_rate'"),
    ],
)
def test_refused_before_anything_is_queued(cluster, recipe, tmp_path, options, message):
    before = cluster.ask("squeue", "-h", "-o", "%i")
    result = r1nb(
        "sft", "--config", recipe, "--run-dir", "run", "--slurm", *options, cwd=tmp_path,
        runs=tmp_path, **SITE,
    )  # fmt: skip
    assert result.code == 2 and message in result.err.lower(), result.err
    assert not (tmp_path / "run").exists() and cluster.ask("squeue", "-h", "-o", "%i") == before


@pytest.mark.slow
def test_the_script_for_sbatch(cluster, recipe, tiny_model, tmp_path):
    keys = yaml.safe_load(recipe.read_text())
    command = [
        "sbatch",
        "--parsable",
        "--gres=gpu:1",
        f"--output={tmp_path}/slurm-%j.out",
        ROOT / "scripts/slurm/sft.slurm",
        tiny_model,
        keys["dataset_name"],
        "ddp",
        "--max_steps",
        2,
        "--output_dir",
        tmp_path / "out",
        "--dtype",
        "float32",
        "--max_length",
        256,
    ]
    env = {**os.environ, "R1NB_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    until(int(done.stdout.split(";")[0]), ["COMPLETED"], tmp_path)
    assert Run(tmp_path / "out").status == "completed"


def served_traces(folder, model, problems, max_new_tokens, *more):
    "Submit generate.slurm with a real (small) server over both nodes; returns the job's number."
    path = folder / "p.jsonl"
    path.write_text("".join(f'{{"question": "What is {i} + 1?"}}\n' for i in range(problems)))
    model_server = f"{sys.executable} {ROOT}/tests/model_server.py {model} $R1NB_SERVER_PORT"
    server = (
        f"bash -c 'if [ $SLURM_PROCID = 0 ]; then exec {model_server}; else exec sleep 1000; fi'"
    )
    command = ["sbatch", "--parsable", "--nodes=2", "--gres=gpu:1",
               f"--output={folder}/slurm-%j.out", "scripts/slurm/generate.slurm",
               "--server", server, "--server-wait", 200, "--hf-dataset", path,
               "--prompt-column", "question", "--model", model, "--temperature", 0.6,
               "--num-generations", 2, "--max-new-tokens", max_new_tokens, *more]  # fmt: skip
    env = {
        **os.environ,
        "R1NB_PYTHON": sys.executable,
        "R1NB_RUNS": str(folder / "runs"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def named(pattern):
    "Numbers of the processes with `pattern` in their command line."
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True
    ).stdout.splitlines()[1:]
    lines = [line.split(maxsplit=1) for line in listed]
    return [int(number) for number, line in lines if re.search(pattern, line)]


@pytest.mark.slow
def test_traces_from_a_server_over_both_nodes(cluster, tiny_model, tmp_path):
    """generate.slurm waits for a real (small) server; the client gets its traces from it.

    No process is left afterwards.
    """
    publish = ("--hf-output-dataset", tmp_path / "published", "--private")
    job = served_traces(tmp_path, tiny_model, 6, 8, *publish)
    until(job, ["COMPLETED"], tmp_path, 2 * WAIT)
    said = log(tmp_path)
    assert "the server answers after" in said
    assert "asked:" in said
    assert "ended with exit code 0" in said
    run = Run(tmp_path / "runs/generate/p-model")
    assert run.manifest["summary"]["traces"] == 12, said
    assert (tmp_path / "published/README.md").exists(), said
    assert not named(re.escape(str(tiny_model)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "signum", "said"),
    [
        (
            r"^\S*python\S* \S*/tests/model_server.py .*{model}",
            signal.SIGKILL,
            "the server died during the job",
        ),
        (
            r"bash \S*/job0*{job}/slurm_script",
            signal.SIGKILL,
            "",
        ),  # no process is left to report it
        (
            r"^\S*python\S* -m r1nb.jobs job .*{model}",
            signal.SIGKILL,
            "ended with exit code 137",
        ),
    ],
    ids=["server", "shell", "client"],
)
def test_a_death_on_a_node(cluster, tiny_model, tmp_path, pattern, signum, said):
    """Server, batch shell or client dies while traces arrive.

    The job ends, no process is left, and a second job resumes.
    """
    job, run = served_traces(tmp_path, tiny_model, 80, 32), Run(tmp_path / "runs/generate/p-model")
    traces = run / "dataset" / "traces.jsonl"
    wait_for(lambda: len(read_log(traces)) >= 20 or state(job) == "FAILED", "twenty traces")
    (victim,) = named(pattern.format(job=job, model=re.escape(str(tiny_model))))
    os.kill(victim, signum)
    until(job, ["FAILED", "CANCELLED"], tmp_path)
    wait_for(lambda: not named(re.escape(str(tiny_model))), "end of server and client")
    kept = [(row["problem_id"], row["sample"]) for row in read_log(traces)]
    assert 20 <= len(kept) < 160 and len(set(kept)) == len(kept)
    assert run.status in ("failed", "preempted"), run.manifest
    assert said in log(tmp_path)
    until(served_traces(tmp_path, tiny_model, 80, 32), ["COMPLETED"], tmp_path, 2 * WAIT)
    rows = [(row["problem_id"], row["sample"]) for row in read_log(traces)]
    assert len(rows) == len(set(rows)) == 160
    assert rows[: len(kept)] == kept
    assert run.status == "completed"
