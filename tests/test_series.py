"The checkpoints of a training as a series of models, compared and merged, by the commands."

import json
import shutil

import pytest
from conftest import TASK, TRAINING, succeeds

from r1nb import grpo
from r1nb.cli import main
from r1nb.evaluate import load_results
from r1nb.recipes import configure
from r1nb.runs import Run, open_run, read_log, running


@pytest.fixture(scope="module")
def series(tmp_path_factory, tiny_model):
    "The folder of a LoRA training of four steps, whose checkpoints have been evaluated."
    folder = tmp_path_factory.mktemp("series")
    keys = {**TASK, "split": "train", "num_problems": 8, "model_name_or_path": str(tiny_model),
            **TRAINING, "use_peft": True, "lora_r": 2, "max_steps": 4, "save_steps": 2,
            "num_generations": 2, "per_device_train_batch_size": 2,
            "max_completion_length": 8}  # fmt: skip
    config, written = configure(grpo.stage, keys)
    with running(open_run(folder / "run", "grpo", written)) as summary:
        summary.update(grpo.run_grpo(Run(folder / "run"), *config))
    succeeds("evaluate", "--series", "run", "--limit", 4, "--samples", 2, cwd=folder)
    return folder


def test_checkpoints_are_models_over_steps(series):
    run = Run(series / "run" / "evaluations" / "series")
    config, results = run.manifest["config"], load_results(run)
    assert list(results["models"]) == ["step-0", "step-2", "step-4"]
    assert config["models"]["step-2"].endswith("checkpoints/checkpoint-2")  # an adapter
    assert config["models"]["step-4"] == str(series / "run" / "model")
    assert (config["split"], config["max_new_tokens"]) == ("heldout", 8)
    assert config["dataset_kwargs"] == TASK["dataset_kwargs"]
    assert len(results["differences"]) == 3  # of neighbours, and of the last and the first
    record = (run / "job.ipynb").read_text()
    assert "95 % interval" in record and record.count("image/png") >= 2
    assert not (run / "merged").exists()


@pytest.mark.slow
def test_an_interrupted_series_samples_only_what_is_missing(series):
    run = Run(series / "run" / "evaluations" / "series")
    files = {label: run / "results" / f"samples-{label}.jsonl" for label in ("step-2", "step-4")}
    before = {label: file.read_text() for label, file in files.items()}
    lines = before["step-2"].splitlines(keepends=True)
    files["step-2"].write_text("".join(lines[:-3]))
    run.update(status="interrupted")
    words = ("evaluate", "--series", "run", "--limit", 4, "--samples", 2)
    succeeds(*words, cwd=series)
    assert run.status == "completed"
    assert files["step-4"].read_text() == before["step-4"]
    assert files["step-2"].read_text().startswith("".join(lines[:-3]))
    assert len(read_log(files["step-2"])) == len(lines)


@pytest.mark.slow
def test_each_task_of_a_training_gets_its_series(series, tmp_path):
    shutil.copytree(series / "run", tmp_path / "both", ignore=shutil.ignore_patterns("evaluations"))
    training = Run(tmp_path / "both")
    config = {k: v for k, v in training.manifest["config"].items() if k not in TASK}
    products = {"dataset_name": "reasoning_gym/products", "num_problems": 8, "weight": 2.0}
    training.update(config={**config, "tasks": {"sums": TASK, "products": products}})
    words = ("evaluate", "--series", "both", "--limit", 2, "--samples", 1)
    succeeds(*words, cwd=tmp_path)
    for task, name in ("sums", TASK["dataset_name"]), ("products", "reasoning_gym/products"):
        run = Run(training / "evaluations" / f"series-{task}")
        assert run.status == "completed"
        assert (run.manifest["config"]["dataset_name"], len(run.manifest["config"]["models"])) == (
            name,
            3,
        )


def test_several_runs_are_compared_with_the_first(series, capsys):
    name = str(series / "run" / "evaluations" / "series")
    assert main(["evaluate", "--compare", name, name, name]) == 0
    said = capsys.readouterr().out
    assert "p (Holm)" in said and "corrected for 6 comparisons" in said
    assert main(["evaluate", "--compare", name]) == 2


def test_parts_become_one_result_or_are_refused(series, tmp_path, capsys):
    name = series / "run" / "evaluations" / "series"
    words = ["evaluate", "--merge", str(name), str(name), "--run-dir", str(tmp_path / "whole")]
    assert main(words) == 0
    merged, single = load_results(tmp_path / "whole"), load_results(name)
    assert merged["models"] == single["models"]  # the same samples count once
    assert merged["protocol"]["seed"] == [0, 0]
    assert Run(tmp_path / "whole").manifest["parents"] == [str(name)] * 2
    hot = json.loads((name / "results" / "results.json").read_text())
    hot["protocol"]["temperature"] = 2.0
    other = tmp_path / "hot"
    (other / "results").mkdir(parents=True)
    (other / "results" / "results.json").write_text(json.dumps(hot))
    (other / "manifest.json").write_text((name / "manifest.json").read_text())
    words = ["evaluate", "--merge", str(name), str(other), "--run-dir", str(tmp_path / "no")]
    assert main(words) == 2
    assert "the protocols differ: temperature: 0.6 -> 2.0" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
