"R1-Zero's recipe for a laptop, shortened, on a tiny model: prompts, rewards, completions, scores."

import pandas as pd
import pytest
import yaml
from conftest import ROOT, r1nb

from r1nb.evaluate import load_results
from r1nb.recipes import read_recipe
from r1nb.zero import completions_at

RECIPE = ROOT / "scripts/recipes/r1-zero/laptop.yaml"
SHORT = {
    "grpo": {"num_problems": 16, "max_steps": 2, "per_device_train_batch_size": 16},
    "evaluate": {"num_problems": 4},
    "greedy": {"num_problems": 4},
}


@pytest.mark.slow
def test_the_laptop_recipe_runs_as_a_whole(tiny_model, tmp_path):
    whole = yaml.safe_load(RECIPE.read_text("utf-8"))
    examples = whole["x-task"]["examples"]
    for name, keys in SHORT.items():
        whole["stages"][name] |= keys
    text = yaml.safe_dump(whole, sort_keys=False).replace("bundled", str(tiny_model))
    (tmp_path / "zero.yaml").write_text(text)
    done = r1nb("pipeline", "zero.yaml", cwd=tmp_path, runs=tmp_path / "runs", deadline=300)
    assert done.code == 0, done.err[-2000:]

    run = tmp_path / "runs/zero"
    rows = completions_at(run / "grpo", [1, -1])
    assert [row["step"] for row in rows] == [1, 1, 2, 2]
    assert {"accuracy_reward", "format_zero_reward"} <= set(rows[0])
    table = pd.read_parquet(run / "grpo/checkpoints/completions/completions_00001.parquet")
    turns = [message["content"] for message in table.prompt[0]]
    assert turns[:-1] == [text for pair in examples for text in pair]
    assert turns[-1] == rows[0]["problem"]

    sampled, greedy = load_results(run / "evaluate"), load_results(run / "greedy")
    assert list(sampled["models"]) == list(greedy["models"]) == ["base", "zero"]
    assert "avg@4" in sampled["models"]["zero"] and "avg@1" in greedy["models"]["zero"]
    assert 0 < sampled["best_constant"]["value"] <= 1
    assert "The best constant answer, " in done.out


def test_training_and_evaluation_ask_alike():
    stages = read_recipe(RECIPE)["stages"]
    keys = ("dataset_kwargs", "system_prompt", "examples", "heldout_fraction")
    of_training = {key: stages["grpo"]["values"][key] for key in keys}
    for name in ("evaluate", "greedy"):
        assert {key: stages[name]["values"][key] for key in keys} == of_training
        assert stages[name]["values"]["split"] == "heldout"
        assert stages[name]["values"]["dataset_seed"] != stages["grpo"]["values"]["dataset_seed"]
