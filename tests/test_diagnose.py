"Runs that go wrong on purpose, with tiny models: each sign is named, with its remedy, on the way."

import shutil
import sys
import types
from pathlib import Path

import pytest
from conftest import TASK, TRAINING
from transformers import TrainerCallback

from r1nb import grpo
from r1nb.answers import extract_answer
from r1nb.diagnose import PATIENCE, SIGNS, WINDOW, open_signs, read_diagnosis
from r1nb.models import ModelChoice, load_model, load_tokenizer, tiny_model
from r1nb.recipes import configure
from r1nb.rewards import completion_texts
from r1nb.runs import Preempted, open_run, read_log
from r1nb.templates import CHATML

RECIPE = {
    **TASK,
    **TRAINING,
    "num_problems": 64,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 8,
    "max_steps": WINDOW,
    "save_strategy": "no",
    "disable_tqdm": True,
}
ENDING = 3.0  # added to the logit of the end of turn: 17 % of a random policy's tokens
OPENED = CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\nOkay,' }}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A random model whose characters include `</think>` and two answers as tokens of their own."
    path = tiny_model(tmp_path_factory.mktemp("words"))
    choice = ModelChoice(str(path), dtype="float32")
    tokenizer, model = load_tokenizer(choice), load_model(choice)
    tokenizer.add_tokens(["</think>", r"\boxed{4}", r"\boxed{7}"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ids(folder):
    "The number of a token."
    return load_tokenizer(ModelChoice(str(folder))).convert_tokens_to_ids


def always(completions, **columns):
    return [1.0] * len(completions)


def six_different(completions, **columns):
    return [float(len(set(text)) >= 6) for text in completion_texts(completions)]


def says_4(completions, **columns):
    return [float(extract_answer(text) == "4") for text in completion_texts(completions)]


def small_letters(completions, **columns):
    texts = completion_texts(completions)
    return [sum(c.islower() for c in text) / max(1, len(text)) for text in texts]


@pytest.fixture
def trained(folder, tmp_path, monkeypatch, capfd):
    "Trains with a reward, a function of this file or a name; returns the run and its stderr."
    module = types.ModuleType("ill")
    for func in (always, six_different, says_4, small_letters):
        setattr(module, func.__name__, func)
    monkeypatch.setitem(sys.modules, "ill", module)

    def train(reward, callbacks=(), **keys):
        name = reward if isinstance(reward, str) else f"ill:{reward.__name__}"
        recipe = {**RECIPE, "model_name_or_path": str(folder), "reward_funcs": [name], **keys}
        cfg, written = configure(grpo.stage, recipe)
        run = open_run(tmp_path / "run", "grpo", written)
        capfd.readouterr()
        grpo.run_grpo(run, *cfg, callbacks=callbacks)
        return run, capfd.readouterr().err

    return train


def found(run):
    return {row["sign"]: row for row in read_diagnosis(run)}


def test_a_run_that_learns_has_no_sign(trained, ids):
    keys = {"max_completion_length": 12, "learning_rate": 1e-2, "max_steps": PATIENCE}
    keys |= {"per_device_train_batch_size": 32, "num_generations": 8}
    keys["generation_kwargs"] = {"sequence_bias": [[[ids("<|im_end|>")], ENDING]]}
    run, err = trained(small_letters, **keys)
    rewards = [row["reward"] for row in run.metrics if "reward" in row]
    assert sum(rewards[-WINDOW:]) > 1.5 * sum(rewards[:WINDOW])
    assert found(run) == {} and "To do" not in err


def test_solved(trained):
    run, err = trained(always, beta=0.04)
    assert {"solved", "KL without signal"} <= found(run).keys()
    assert found(run)["solved"]["since"] == WINDOW
    assert f"step {WINDOW}: solved: in 100% of the groups" in err
    assert f"To do: {SIGNS['solved'].remedy}" in err
    row = next(row for row in run.metrics if row["step"] == 3)
    assert row["groups/equal"] == 1.0 and "reward" in row  # in the line of TRL's own metrics


def test_collapse(trained):
    keys = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 24, "learning_rate": 1.0}
    run, err = trained(six_different, beta=0.001, max_steps=28, **keys)
    row = found(run)["collapse"]
    assert row["numbers"]["best"] > 0.5 and row["numbers"]["score"] < 0.4
    assert row["numbers"]["kl"] > max(1, 3 * row["numbers"]["kl_before"])
    assert "nats a token" in row["sentence"] and "learning_rate" in row["remedy"]
    assert len(row["completions"]) > 0 and ": collapse: the score fell" in err


def test_a_template_that_opens_the_thought(trained, folder, ids, tmp_path):
    tokenizer = load_tokenizer(ModelChoice(str(folder)))
    shutil.copytree(folder, tmp_path / "opened")
    tokenizer.chat_template = OPENED
    tokenizer.save_pretrained(tmp_path / "opened")
    often = {"sequence_bias": [[[ids("</think>")], ENDING]]}
    run, err = trained(
        "format", model_name_or_path=str(tmp_path / "opened"), generation_kwargs=often
    )
    row = found(run)["template opens <think>"]
    assert row["numbers"]["unopened"] > 0.5
    assert "format_reward is 0.00" in row["sentence"] and "chat template" in row["remedy"]
    assert any("</think>" in c["completion"] for c in row["completions"])
    assert "format never paid" not in found(run)


def test_one_answer_to_everything(trained):
    keys = {"per_device_train_batch_size": 64, "num_generations": 8, "learning_rate": 1e-2}
    run, err = trained(says_4, max_steps=24, **keys)
    row = found(run)["one answer to everything"]
    assert row["numbers"]["same"] > row["numbers"]["best_constant"] + 0.3
    assert all(extract_answer(c["completion"]) == "4" for c in row["completions"])
    assert "balance the answers" in row["remedy"] and "one answer to everything" in err


class StopAt10(TrainerCallback):
    "Asks for a stop, as a batch script does before its time limit."

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 9:
            (Path(args.output_dir).parent / "stop").touch()


def test_a_resumed_run_neither_repeats_nor_loses_a_sign(trained):
    keys = {"save_strategy": "steps", "save_steps": 100, "max_steps": 14}
    with pytest.raises(Preempted):
        trained("accuracy", callbacks=[StopAt10()], **keys)
    run, err = trained("accuracy", **keys)
    assert "To do" not in err
    events = read_log(run / "diagnosis.jsonl")
    signs = [event["sign"] for event in events]
    assert signs.count("too hard") == signs.count("length limit") == 1
    assert {"too hard", "length limit"} <= set(open_signs(events))
    assert all("groups/equal" in row for row in run.metrics if "reward" in row)
