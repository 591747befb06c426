"The scripts for sbatch, with fake Slurm commands: which arguments make which job."

import importlib.metadata
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, r1nb

from r1nb.runs import Run

# The fake srun runs all tasks of the check of the nodes, and prints the variables of the others.
FAKES = {
    "scontrol": 'echo localhost; [ "$SLURM_NNODES" = 1 ] || echo localhost',
    "scancel": ":",
    "srun": """for a in "$@"; do case $a in --output=*) exec >> "${a#--output=}" 2>&1 ;; esac; done
while [[ $1 == --* ]]; do shift; done
if [ "$3" = r1nb.nodes ]; then
  for i in $(seq 0 $((SLURM_NNODES - 1))); do
    tasks="$tasks $i" path=FAKE_PATH_$i
    export SLURMD_NODENAME=node$((i + 1)) SLURM_PROCID=$i SLURM_NTASKS=$SLURM_NNODES
    PYTHONPATH=${!path:-} "$@" &
  done
  code=0; for i in $tasks; do wait -n || code=$?; done; exit $code
fi
case "$3" in *R1NB_STAGE*) ;; *) exec "$@" ;; esac
for v in JOB ACCELERATOR PROCESSES NODES; do v=R1NB_$v; echo "$v=${!v:-}"; done
exit "${FAKE_CODE:-0}\"""",
}


@pytest.fixture
def batch(tmp_path):
    "`batch(script, *arguments)`: exit code, output, and what `srun` found in its environment."
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def run(script, *arguments, nodes=1, **extra):
        env = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "R1NB_PYTHON": sys.executable,
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NNODES": str(nodes),
            "SLURM_GPUS_ON_NODE": "8",
            "R1NB_RUNS": str(tmp_path / "runs"),
            **extra,
        }
        command = ["bash", ROOT / "scripts/slurm" / script, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
        )
        return done, dict(re.findall(r"^(R1NB_\w+)=(.*)$", done.stdout, re.M))

    return run


def test_sft_takes_model_dataset_accelerator(batch):
    done, found = batch("sft.slurm", "org/model", "org/data", "zero2", "--learning_rate", "1e-5")
    assert done.returncode == 0, done.stderr
    job = json.loads(found["R1NB_JOB"])
    keys = {"model_name_or_path": "org/model", "dataset_name": "org/data", "learning_rate": "1e-5"}
    assert (job["stage"], job["overrides"]) == ("sft", keys)
    assert found["R1NB_ACCELERATOR"].endswith("accelerate/zero2.yaml")
    assert found["R1NB_PROCESSES"] == "8"
    _, found = batch("sft.slurm", "org/model", "org/data", "--learning_rate", "1e-5", nodes=2)
    assert found["R1NB_ACCELERATOR"].endswith("accelerate/zero3.yaml")
    assert found["R1NB_NODES"] == "2"


def test_evaluate_takes_model_task_and_tp(batch):
    done, found = batch("evaluate.slurm", "org/model", "math_500,aime24", "--samples", "2")
    assert done.returncode == 0, done.stderr
    job = json.loads(found["R1NB_JOB"])
    keys = {"model_name_or_path": "org/model", "tasks": ["math_500", "aime24"], "samples": "2"}
    assert (job["stage"], job["overrides"], job["num_processes"]) == ("evaluate", keys, 8)
    assert found["R1NB_ACCELERATOR"].endswith("accelerate/ddp.yaml")
    assert found["R1NB_PROCESSES"] == "8"
    _, found = batch("evaluate.slurm", "org/model", "aime24", "tp")
    job = json.loads(found["R1NB_JOB"])
    assert job["overrides"]["tensor_parallel_size"] == "8" and found["R1NB_ACCELERATOR"] == "none"
    done, _ = batch("evaluate.slurm", "org/model")
    assert done.returncode == 2 and "usage:" in done.stderr


def test_train_takes_the_options_of_open_r1(batch):
    recipe = "scripts/recipes/quickstart.yaml#grpo"
    options = ("--model", "org/model", "--task", "grpo", "--config", recipe, "--accelerator", "ddp")
    done, found = batch("train.slurm", *options, "--args", "--max_steps 3 --beta 0.1")
    assert done.returncode == 0, done.stderr
    job = json.loads(found["R1NB_JOB"])
    assert (job["stage"], job["config"]) == ("grpo", recipe)
    assert job["overrides"] == {"model_name_or_path": "org/model", "max_steps": "3", "beta": "0.1"}


def test_train_finds_a_recipe_by_model_and_name(batch, tmp_path):
    "As in Open-R1, and with the model's owner; a folder of that name is the model to train."
    recipe = "scripts/recipes/Qwen2.5-1.5B-Instruct/grpo/config_demo.yaml"
    folder = tmp_path / "Qwen2.5-1.5B-Instruct"
    folder.mkdir()
    names = {
        "Qwen2.5-1.5B-Instruct": {},
        "Qwen/Qwen2.5-1.5B-Instruct": {},
        str(folder): {"model_name_or_path": str(folder)},
    }
    for model, keys in names.items():
        options = ("--model", model, "--task", "grpo", "--config", "demo", "--accelerator", "zero2")
        done, found = batch("train.slurm", *options)
        assert done.returncode == 0, done.stderr
        job = json.loads(found["R1NB_JOB"])
        assert (job["config"], job["overrides"]) == (recipe, keys)
    done, _ = batch("train.slurm", "--model", "Qwen/other", "--task", "grpo", "--config", "demo")
    assert done.returncode == 2 and "scripts/recipes/other/grpo/config_demo.yaml" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "sleep", "--config", "x"), "valid: sft, grpo"),
        (("--task", "sft", "--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--task", "sft", "--lr", "1"), "unknown option --lr"),
        (
            ("--task", "sft", "--config", "scripts/recipes/quickstart.yaml#sft", "--tp", "2"),
            "--server",
        ),
        (("--task",), "usage:"),
    ],
)
def test_train_refuses(batch, arguments, message):
    done, found = batch("train.slurm", *arguments)
    assert done.returncode == 2 and message in done.stderr and not found


def test_the_exit_code_is_the_job_s(batch):
    done, _ = batch("sft.slurm", "org/model", "org/data", "ddp", FAKE_CODE="7")
    assert done.returncode == 7 and "ended with exit code 7" in done.stdout


def test_nodes_that_do_not_match(batch, tmp_path):
    "Another version of a library on the second node: reported, recorded, and nothing is started."
    installed = tmp_path / "old" / "trl-0.9.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 0.9\n")
    Run(tmp_path / "run").update(stage="sft", status="queued")
    arguments = ("sft.slurm", "org/model", "org/data", "--output_dir", tmp_path / "run")
    done, found = batch(*arguments, nodes=3)
    assert done.returncode == 0, done.stderr
    assert "3 node(s) checked in" in done.stdout, done.stderr
    assert found["R1NB_NODES"] == "3", done.stderr
    done, found = batch(*arguments, nodes=3, FAKE_PATH_1=str(tmp_path / "old"))
    trl = importlib.metadata.version("trl")
    assert done.returncode == 1 and not found
    assert f"the nodes do not match\n  trl: 0.9 on node2; {trl} on node1, node3" in done.stderr
    error = Run(tmp_path / "run").manifest["error"]
    assert error.startswith("the nodes do not match: trl: 0.9 on node2")
    assert not list((tmp_path / "run" / "logs").glob(".nodes-*"))
    Run(tmp_path / "run").update(status="completed", error=None)
    done, _ = batch(*arguments, nodes=2, FAKE_PATH_1=str(tmp_path / "old"))
    # A completed run is not marked as failed.
    assert done.returncode == 1 and Run(tmp_path / "run").status == "completed"
    done, found = batch(*arguments, nodes=2, FAKE_PATH_1=str(tmp_path / "old"), R1NB_NODES_WAIT="0")
    assert done.returncode == 0 and found and "checked" not in done.stdout


@pytest.mark.parametrize(
    ("server", "code", "message"),
    [
        ("sleep 100", 1, "did not answer within 2 s"),
        ("bash -c 'echo no weights; exit 7'", 1, "died before it answered"),
        (f"{sys.executable} {{folder}}/server.py", 0, "the server answers after"),
    ],
)
def test_a_server_beside_the_training(batch, tmp_path, server, code, message):
    """The job waits for the server, up to a time limit, and shows its log if it dies.

    The training starts only once the server answers, and stops the server when it ends.
    """
    (tmp_path / "server.py").write_text(
        "import http.server as h, os\n"
        "class Healthy(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200 if self.path == '/health/' else 404)\n"
        "        self.end_headers()\n"
        "h.HTTPServer(('', int(os.environ['R1NB_SERVER_PORT'])), Healthy).serve_forever()\n"
    )
    options = (
        "--nodes", 2, "--server", server.format(folder=tmp_path),
        "--server_wait", 2 if "sleep" in server else 60, "--run-dir", tmp_path / "run",
    )  # fmt: skip
    shown = r1nb("grpo", *options, "--dry-run", cwd=tmp_path, runs=tmp_path)
    (tmp_path / "run/logs").mkdir(parents=True)
    (tmp_path / "job.slurm").write_text(shown.out)
    done, found = batch(tmp_path / "job.slurm", nodes=2)
    assert done.returncode == code and message in done.stdout, done.stdout + done.stderr
    assert ("R1NB_JOB" in found) == (code == 0)
    assert ("no weights" in done.stdout) == ("no weights" in server)
    processes = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"{tmp_path}/server.py" not in processes


def test_generate_takes_the_options_of_open_r1(batch, tmp_path):
    "generate.slurm's arguments; the client starts once a server over all nodes answers."
    (tmp_path / "server.py").write_text(
        "import http.server as h, json, os\n"
        "class Server(h.BaseHTTPRequestHandler):\n"
        "    def reply(self, body):\n"
        "        self.send_response(200 if self.path.startswith('/v1/') else 404)\n"
        "        self.end_headers()\n"
        "        self.wfile.write(json.dumps(body).encode())\n"
        "    def do_GET(self): self.reply({})\n"
        "    def do_POST(self):\n"
        "        choice = {'message': {'content': 'two'}, 'finish_reason': 'stop'}\n"
        "        self.reply({'choices': [choice]})\n"
        "h.HTTPServer(('', int(os.environ['R1NB_SERVER_PORT'])), Server).serve_forever()\n"
    )
    options = ("--hf-dataset", "AI-MO/NuminaMath-TIR", "--temperature", "0.6",
               "--prompt-column", "problem", "--model", "deepseek-ai/DeepSeek-R1",
               "--hf-output-dataset", "username/r1-dataset")  # fmt: skip
    more = (
        "--server",
        f"{sys.executable} {tmp_path}/server.py",
        "--num-generations",
        "4",
        "--private",
    )
    done, found = batch("generate.slurm", *options, *more, nodes=2)
    assert done.returncode == 0 and "asked: two" in done.stdout, done.stdout + done.stderr
    job = json.loads(found["R1NB_JOB"])
    assert (job["stage"], found["R1NB_NODES"], found["R1NB_ACCELERATOR"]) == (
        "generate",
        "1",
        "none",
    )
    assert job["overrides"] == {
        "hf_dataset": "AI-MO/NuminaMath-TIR",
        "model": "deepseek-ai/DeepSeek-R1",
        "temperature": "0.6",
        "prompt_column": "problem",
        "hf_output_dataset": "username/r1-dataset",
        "num_generations": "4",
        "private": "true",
        "base_url": "$R1NB_SERVER_URL/v1",
    }
    done, _ = batch("generate.slurm", "--hf-dataset", "org/data", "--model")
    assert done.returncode == 2 and "sbatch" in done.stderr
    done, _ = batch("generate.slurm", "--model=org/model")
    assert done.returncode == 2
    assert "--hf-dataset are needed" in done.stderr
    assert "--client-replicas" in done.stderr


def test_a_time_limit_while_the_server_loads(batch, tmp_path):
    "USR1 before the server answers: the job goes back into the queue, it is no failure."
    marker = tmp_path / "asked"
    (tmp_path / "scontrol").write_text(
        f'#!/bin/bash\n[ "$1" = requeue ] && echo "$2" > {marker}\necho localhost\n'
    )
    (tmp_path / "sleep").write_text(
        '#!/bin/bash\n[ "$1" = 30 ] || exec /bin/sleep "$@"\n'
    )  # the pause after a requeue
    (tmp_path / "sleep").chmod(0o755)
    server = "bash -c 'kill -USR1 $PPID; sleep 3; exit 1'"
    options = (
        "--hf-dataset", "org/data", "--model", "org/model", "--server", server,
        "--server-wait", "60",
    )  # fmt: skip
    done, found = batch("generate.slurm", *options)
    assert marker.read_text().strip() == "7", done.stdout + done.stderr
    assert "back into the queue" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1 and not found and "the end of its log" not in done.stdout


def test_a_server_over_all_nodes_joins_them_by_itself(tmp_path):
    "serve.sh: vLLM alone on one node; on two, a node's rank each, and one HTTP server."
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho node1; echo node2\n")
    (tmp_path / "vllm").write_text(f'#!/bin/bash\necho "vllm $*" > {tmp_path}/said\n')
    for file in tmp_path.iterdir():
        file.chmod(0o755)

    def serve(nodes, rank):
        env = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "R1NB_PYTHON": str(tmp_path / "python"),
            "R1NB_SERVER_PORT": "8000",
            "SLURM_STEP_NUM_NODES": str(nodes),
            "SLURM_STEP_NODELIST": "node[1-2]",
            "SLURM_PROCID": str(rank),
        }
        command = ["bash", ROOT / "scripts/slurm/serve.sh", "org/R1", "--tensor-parallel-size", "8"]
        assert subprocess.run(command, env=env, timeout=60).returncode == 0
        return (tmp_path / "said").read_text().strip()

    vllm = "vllm serve org/R1 --host 0.0.0.0 --port 8000 --tensor-parallel-size 8"
    assert serve(1, 0) == vllm
    joined = "--nnodes 2 --node-rank {} --master-addr node1 --master-port 8001"
    first, second = serve(2, 0), serve(2, 1)
    assert first == f"{vllm} {joined.format(0)} --data-parallel-rpc-port 8002"
    assert second == f"{vllm} {joined.format(1)} --data-parallel-rpc-port 8002 --headless"


@pytest.mark.vllm
def test_vllm_has_the_options_of_the_server_over_all_nodes():
    "vLLM's own parser takes them, spelled as in serve.sh."
    pytest.importorskip("vllm")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    text = (ROOT / "scripts/slurm/serve.sh").read_text().split("set -uo pipefail")[1]
    used = set(re.findall(r"--[a-z][a-z-]+", text))
    expected = {"--host", "--port", "--nnodes", "--node-rank", "--master-addr", "--master-port"}
    assert used == {*expected, "--data-parallel-rpc-port", "--headless"}
    known = set(make_arg_parser(FlexibleArgumentParser())._option_string_actions)
    assert used <= known
    assert {f"--{kind}-parallel-size" for kind in ("tensor", "pipeline", "data")} <= known


def test_two_submissions_of_sft_do_not_share_a_folder(batch, tmp_path):
    "The same arguments name the same folder, so that a second submission resumes; others do not."

    def folder(*arguments):
        done, found = batch("sft.slurm", "org/model", "org/data.v1", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(found["R1NB_JOB"])["run_dir"]

    first = folder("ddp", "--learning_rate", "1e-5")
    assert re.fullmatch(rf"{tmp_path}/runs/sft/model-data\.v1-[0-9a-f]{{8}}", first)
    assert folder("ddp", "--learning_rate", "1e-5") == first
    assert folder("ddp", "--learning_rate", "2e-5") != first
    assert folder("--run-dir", "mine") == "mine"


def test_a_pipeline_asks_for_what_its_stages_use(tmp_path):
    "`--dry-run` prints the script of every stage and of the report, each with its own request."
    site = {"R1NB_GPUS_PER_NODE": "8", "R1NB_SBATCH_OPTIONS": "--constraint=h100"}
    recipe = ROOT / "scripts/recipes/quickstart.yaml"
    options = ("--slurm", "--dry-run", "--time", "60", "--sbatch=--reservation=mine")
    shown = r1nb("pipeline", recipe, *options, cwd=tmp_path, runs=tmp_path, **site)
    assert shown.code == 0, shown.err
    parts = re.split(r"^### (\w+)(?:, with .+)?\n", shown.out, flags=re.M)[1:]
    scripts = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(scripts) == ["generate", "curate", "sft", "grpo", "evaluate", "greedy", "report"]
    assert "### sft, with --dependency=afterok:<job of curate>\n" in shown.out

    def asked(option):
        found = {k: re.findall(rf"^#SBATCH {option}(.*)$", s, re.M) for k, s in scripts.items()}
        return {k: v[-1] for k, v in found.items() if v}

    # The teacher of the quickstart is scripted; its evaluation runs in one process.
    assert asked("--gres=gpu:") == {"sft": "8", "grpo": "8", "evaluate": "1", "greedy": "1"}
    assert list(asked("--exclusive")) == list(asked("--mem=0")) == ["sft", "grpo"]
    assert asked("--signal=B:USR1@") == {
        k: "900" if k in ("sft", "grpo") else "180" for k in scripts
    }
    assert set(asked("--constraint=h100")) == set(asked("--reservation=mine")) == set(scripts)
    assert "evaluate asks for 1 of the 8 GPUs of a node" in shown.err


@pytest.mark.parametrize("stage", ["grpo", "generate"])
def test_the_server_loads_what_the_training_would(tmp_path, monkeypatch, stage):
    "A run's folder, the bundled model, a revision; and all GPUs of the node that fit its heads."
    from r1nb import slurm
    from r1nb.models import tiny_model

    monkeypatch.setattr(slurm, "is_vllm_for_cpu", lambda: False)
    tiny_model(tmp_path / "run" / "model")  # 4 heads
    (tmp_path / "run" / "manifest.json").write_text('{"stage": "sft"}')

    def words(model, **options):
        overrides = {"model_name_or_path": model, "model_revision": "v2"}
        options = slurm.SlurmOptions(server="vllm", gpus_per_node=8, **options)
        return slurm.server_command(slurm.Job(stage, overrides=overrides), options).split()

    found = words(str(tmp_path / "run"))
    assert str(tmp_path / "run" / "model") in found
    assert found[found.index("--revision") + 1] == "v2"
    tp = "--tensor_parallel_size" if stage == "grpo" else "--tensor-parallel-size"
    assert found[found.index(tp) + 1] == "4"
    found = words(str(tmp_path / "run"), tp=2)
    assert found[found.index(tp) + 1] == "2"
    if stage == "generate":  # the client asks for the model by the name in the recipe
        assert found[found.index("--served-model-name") + 1] == str(tmp_path / "run")
