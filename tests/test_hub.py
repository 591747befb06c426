"Trained models and their checkpoints on a stand-in of the Hub, by the commands that users run."

import json
import os
from dataclasses import replace
from functools import partial
from shutil import copytree
from unittest.mock import patch

import pytest
import yaml
from conftest import r1nb
from hub_server import TOKEN, serve
from huggingface_hub import HfApi

from r1nb.hub import Target, check_revision
from r1nb.runs import Run, append_jsonl, read_log
from r1nb.settings import InputError
from r1nb.trainer import checkpoints, weights


@pytest.fixture
def hub():
    "A Hub on this machine."
    with serve() as running:
        yield running


def online(hub):
    "Environment variables of a process that pushes to `hub`."
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "no_proxy": "127.0.0.1",
    }


def train(recipe, folder, hub, *options):
    "SFT on `recipe` in `folder`, as a command with `options` that reaches `hub`."
    words = ("sft", "--config", recipe, "--per_device_train_batch_size", 8, "--run-dir", "run")
    return r1nb(*words, *options, cwd=folder, runs=folder / "runs", **online(hub))


def card_of(content: bytes) -> tuple[dict, str]:
    "The metadata and the text of a card."
    _, front, body = content.decode().split("---\n", 2)
    return yaml.safe_load(front), body


def has_token(folder) -> list[str]:
    "The files below `folder` that contain the token."
    files = [p for p in folder.rglob("*") if p.is_file()]
    return [str(p) for p in files if TOKEN.encode() in p.read_bytes()]


def test_model_and_checkpoints_reach_the_hub_with_cards(recipe, tmp_path, hub):
    options = ("--push_to_hub", "--hub_model_id", "owner/sums", "--callbacks",
               "push_to_hub_revision", "--hub_model_revision", "main")  # fmt: skip
    result = train(recipe, tmp_path, hub, *options)
    assert result.code == 0, result.err[-3000:]
    branches, run = hub.repos["owner/sums"], Run(tmp_path / "run")
    steps = [f"main-step-{step:09d}" for step in (2, 4, 6)]
    assert sorted(branches) == ["main", *steps]
    for name in steps:
        assert {"model.safetensors", "README.md", "tokenizer.json"} <= set(branches[name])
        assert not [f for f in branches[name] if f.endswith((".pt", ".bin")) or "state" in f]
    assert branches["main"]["model.safetensors"] == (run / "model/model.safetensors").read_bytes()
    metadata, text = card_of(branches["main"]["README.md"])
    assert metadata["tags"][:3] == ["r1nb", "trl", "sft"] and "model-index" not in metadata
    assert "learning_rate: 0.001" in text and "r1nb sft --config recipe.yaml" in text
    assert "| steps | 6 |" in text and branches["main"]["curves.png"].startswith(b"\x89PNG")
    assert run.manifest["summary"]["pushed"].startswith(hub.url)
    assert {auth for _, auth in hub.requests} == {f"Bearer {TOKEN}"}
    assert has_token(tmp_path) == []
    # once more, by hand: the checkpoints are there already
    before = len(hub.requests)
    again = r1nb("push", "run", "--hub_model_id", "owner/sums", cwd=tmp_path, runs=tmp_path,
                 **online(hub))  # fmt: skip
    assert again.code == 0 and again.out.count("/commit/") == 1, again.err[-3000:]
    assert not [path for path, _ in hub.requests[before:] if "-step-" in path]


def test_a_hub_that_does_not_answer_costs_nothing(recipe, tmp_path, hub):
    hub.down = True
    result = train(recipe, tmp_path, hub, "--push_to_hub", "--hub_model_id", "owner/sums")
    assert result.code == 0, result.err[-3000:]
    run = Run(tmp_path / "run")
    assert run.status == "completed" and (run / "model" / "README.md").is_file()
    assert [p.name for p in checkpoints(run / "checkpoints")] == ["checkpoint-4", "checkpoint-6"]
    assert result.err.count("push of checkpoint-") == 3
    assert "the model is saved, its push failed" in result.err
    assert f"`r1nb push {run.path}` tries again" in result.err
    assert read_log(run / "pushed.jsonl") == [] and has_token(tmp_path) == []
    hub.down = False
    later = r1nb("push", "run", "--checkpoints", cwd=tmp_path, runs=tmp_path, **online(hub))
    assert later.code == 0, later.err[-3000:]
    assert sorted(hub.repos["owner/sums"]) == ["main", *(f"main-step-00000000{s}" for s in (4, 6))]


def test_a_card_has_the_scores_of_evaluations(recipe, alone, tmp_path):
    copytree(alone.path, tmp_path / "run")
    config = {"dataset_name": "reasoning_gym/chain_sum", "num_problems": 4, "num_generations": 1,
              "max_new_tokens": 8, "dtype": "float32", "model_name_or_path": str(tmp_path / "run"),
              "split": "heldout"}  # fmt: skip
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(config))
    words = ("evaluate", "--config", "e.yaml", "--run-dir", tmp_path / "runs" / "e")
    result = r1nb(*words, cwd=tmp_path, runs=tmp_path / "runs")
    assert result.code == 0, result.err[-3000:]
    result = r1nb("push", "run", "--card", cwd=tmp_path, runs=tmp_path / "runs")
    assert result.code == 0, result.err[-3000:]
    metadata, text = card_of((tmp_path / "run" / "model" / "README.md").read_bytes())
    (scored,) = metadata["model-index"][0]["results"]
    assert scored["dataset"]["type"] == "reasoning_gym/chain_sum"
    assert scored["metrics"][0]["name"] == "avg@1" and "## Evaluation" in text


def test_a_branch_of_another_run_is_not_overwritten(tmp_path, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.repos["owner/sums"] = {"main": {}, "v1-step-000000002": {}}
    run, target = Run(tmp_path / "run"), Target("owner/sums", "v1", model=False, by_step=True)
    with patch("huggingface_hub.HfApi", partial(HfApi, hub.url, TOKEN)):
        with pytest.raises(InputError, match="has the branch 'v1-step-000000002' already"):
            check_revision(run, target)
        check_revision(run, replace(target, revision="v2"))
        append_jsonl(run / "pushed.jsonl", [{"repo": "owner/sums"}])  # by this run, before
        check_revision(run, target)


SBATCH = """#!/bin/bash
[ "$1" = --test-only ] && exit 0
[ -n "$RANK$SLURM_JOB_ID$R1NB_STAGE" ] && exit 9
cat > "$SUBMITTED/$(date +%s%N).slurm"
echo 77
"""


@pytest.mark.slow
def test_benchmarks_submit_an_evaluation_of_each_checkpoint(recipe, tiny_model, tmp_path):
    "and the weights of older checkpoints stay for it."
    model = copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = 65536  # room for the benchmark's token limit
    (model / "config.json").write_text(json.dumps(config))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(SBATCH)
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SUBMITTED": str(tmp_path),
           "SLURM_JOB_ID": "7"}  # fmt: skip
    words = ("sft", "--config", recipe, "--per_device_train_batch_size", 8, "--run-dir", "run")
    keys = ("--benchmarks", "gsm8k", "--save_total_limit", 1, "--model_name_or_path", model)
    result = r1nb(*words, *keys, cwd=tmp_path, runs=tmp_path / "runs", **env)
    assert result.code == 0, result.err[-3000:]
    run = Run(tmp_path / "run")
    assert "evaluation of" not in result.err
    jobs = [p.read_text() for p in sorted(tmp_path.glob("*.slurm"))]
    assert [job.count("R1NB_STAGE=evaluate") for job in jobs] == [1, 1, 1]
    for step in (2, 4, 6):
        evaluation = Run(run / "evaluations" / f"step-{step:09d}")
        assert evaluation.manifest["batch"]["job"] == 77
        assert f"checkpoint-{step}" in jobs[step // 2 - 1]
    assert [p.name for p in checkpoints(run / "checkpoints")] == ["checkpoint-6"]
    assert list(weights(run / "checkpoints")) == [2, 4, 6]
    left = {p.name for p in (run / "checkpoints" / "checkpoint-2").iterdir()}
    assert "model.safetensors" in left and not left & {"optimizer.pt", "scheduler.pt"}
    assert json.loads((run / "checkpoints" / "checkpoint-2" / "weights.json").read_text())
