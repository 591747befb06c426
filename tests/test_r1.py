"R1's stages in turn: the laptop's recipe on a tiny model, shortened, and the recipe for GPUs."

import pandas as pd
import pytest
import yaml
from conftest import ROOT, r1nb

from r1nb.plan import Assumptions, Machine, plan_stage, verdict
from r1nb.r1 import stage_scores
from r1nb.recipes import configure, read_recipe
from r1nb.runs import Run, as_launched
from r1nb.stages import load_stage

FOLDER = ROOT / "scripts/recipes/r1"
FIRST = ("generate", "curate", "cold_start", "products")  # left out here
MODELS = ["base", "cold-start", "reason", "restart", "mixed"]
SHORT = {
    "generate": {"num_problems": 24},
    "curate": {"num_traces": 16},
    "cold_start": {"max_steps": 2},
    "reason": {"max_steps": 2, "per_device_train_batch_size": 16, "max_completion_length": 16},
    "sample_sums": {"num_problems": 8, "max_new_tokens": 16},
    "sample_products": {"num_problems": 8, "max_new_tokens": 16},
    "select": {"num_traces": 16, "steps": ["length"]},  # a random model solves nothing
    "restart": {"max_steps": 2},
    "mixed": {"max_steps": 2, "per_device_train_batch_size": 16, "max_completion_length": 16},
    "sums": {"num_problems": 4, "max_new_tokens": 16},
    "products": {"num_problems": 4, "max_new_tokens": 16},
}


@pytest.mark.slow
def test_the_laptop_recipe_runs(tiny_model, tmp_path):
    "From the first RL to the scores: what comes before is as in the quickstart."
    whole = yaml.safe_load((FOLDER / "laptop.yaml").read_text("utf-8"))
    assert list(whole["stages"]) == list(SHORT)
    for name, keys in SHORT.items():
        whole["stages"][name] |= keys
    for name in FIRST:
        del whole["stages"][name], whole["minutes"][name]
    text = yaml.safe_dump(whole, sort_keys=False).replace("bundled", str(tiny_model))
    text = text.replace("${cold_start}", str(tiny_model))
    (tmp_path / "r1.yaml").write_text(text)
    done = r1nb("pipeline", "r1.yaml", cwd=tmp_path, runs=tmp_path / "runs", deadline=500)
    assert done.code == 0, done.err[-2000:]

    run = tmp_path / "runs/r1"
    sampled = [pd.read_parquet(next((run / f"sample_{t}/dataset").glob("*.parquet")))
               for t in ("sums", "products")]  # fmt: skip
    assert str(run / "reason") in sampled[0].teacher[0]
    assert str(tiny_model) in sampled[1].teacher[0]
    selected = pd.read_parquet(run / "select/dataset/train.parquet")
    assert set(selected.source) == {"reasoning_gym/chain_sum", "reasoning_gym/products"}
    assert not selected.verification.str.contains("turns").any()  # no examples in front
    keys = {"eval_reward/sums", "eval_reward/products", "reward/sums", "reward/products"}
    assert keys & set().union(*Run(run / "mixed").metrics)
    rows = stage_scores(run)
    assert [row["model"] for row in rows] == MODELS
    assert {row["task"] for row in rows} == {"sums"}


def test_the_first_half_has_the_keys_of_the_quickstart():
    "So a quickstart that has run says what these stages would give."
    quickstart = read_recipe(ROOT / "scripts/recipes/quickstart.yaml")["stages"]
    stages = read_recipe(FOLDER / "laptop.yaml")["stages"]
    same = {"generate": "generate", "curate": "curate", "sft": "cold_start", "grpo": "reason"}
    for name, other in same.items():
        one, two = quickstart[name]["values"], stages[other]["values"]
        differ = {k for k in {*one, *two} if one.get(k) != two.get(k)}
        assert differ <= {"dataset_name", "model_name_or_path"}, other


def test_the_recipe_for_gpus_is_valid_and_fits(seven):
    assumed = Assumptions(model=seven, examples=5000)
    machine = Machine(8, accelerator="zero3")
    for name, stage in read_recipe(FOLDER / "8xh100.yaml")["stages"].items():
        trains = stage["stage"] in ("sft", "grpo")
        with as_launched(8 if trains else 1):
            configure(load_stage(stage["stage"]), stage["values"])
        if trains:
            plan = plan_stage(stage["stage"], stage["values"], {}, machine, assumed)
            assert plan.fits, f"{name}: {verdict(plan)}"
