"Evaluations while GRPO trains, groups that are sampled again, rests: whole runs on a tiny model."

import json
import sys
import types
import zlib
from pathlib import Path

import pytest
from conftest import LEVELS, TASK, TRAINING, losses
from safetensors.torch import load_file
from transformers import TrainerCallback

from r1nb import grpo
from r1nb.recipes import configure
from r1nb.runs import Preempted, append_jsonl, open_run
from r1nb.selection import ChosenGroups, HeldOutReward
from r1nb.settings import InputError
from r1nb.shared_prefix import OwnDecoding

NUMBERS = ("loss", "grad_norm", "reward", "groups/sampled", "groups/resampled", "groups/resting")


def lucky(completions, problem, **columns):
    "Right with a chance that depends on the problem: never, always, or one half."
    chances = [(0.0, 0.5, 1.0)[zlib.crc32(text.encode()) % 3] for text in problem]
    drawn = [zlib.crc32(c[0]["content"].encode()) / 2**32 for c in completions]
    return [float(number < chance) for number, chance in zip(drawn, chances, strict=True)]


@pytest.fixture
def configured(tiny_model, monkeypatch):
    "Call it with keys of a recipe: the stage's configuration and what is written of it."
    module = types.ModuleType("lottery")
    module.lucky = lucky
    monkeypatch.setitem(sys.modules, "lottery", module)
    recipe = {
        **TASK, **TRAINING, "split": "train", "num_problems": 60,
        "model_name_or_path": str(tiny_model), "max_steps": 6, "save_steps": 2,
        "num_generations": 4, "per_device_train_batch_size": 16, "max_completion_length": 8,
        "reward_funcs": ["lottery:lucky"], "disable_tqdm": True,
    }  # fmt: skip
    return lambda **keys: configure(grpo.stage, recipe, keys)


@pytest.fixture
def trained(configured, tmp_path):
    "Call it with the name of a run and keys: trains, or resumes, and returns run and summary."

    def call(name, callbacks=(), **keys):
        cfg, written = configured(**keys)
        grpo.check(*cfg)
        run = open_run(tmp_path / name, "grpo", written)
        return run, grpo.run_grpo(run, *cfg, callbacks=callbacks)

    return call


EVALUATION = {"eval_strategy": "steps", "eval_steps": 2, "num_eval_problems": 12}


def test_evaluations_keep_the_best_checkpoint_and_change_no_update(trained):
    best = {"load_best_model_at_end": True, "save_total_limit": 1}
    run, summary = trained("evaluated", **EVALUATION, **best)
    plain, _ = trained("plain")
    assert losses(run) == losses(plain) and len(losses(run)) == 6
    assert run.manifest["rewards"]["lottery:lucky"]["source"].startswith("def lucky(completions")
    rewards = {row["step"]: row["eval_reward"] for row in run.metrics if "eval_reward" in row}
    assert list(rewards) == [2, 4, 6] and len(set(rewards.values())) > 1
    assert all("eval_rewards/lucky/mean" in row for row in run.metrics if "eval_reward" in row)
    chosen = max(rewards, key=rewards.get)
    assert summary["best_step"] == chosen
    kept = {int(p.name.split("-")[1]) for p in (run / "checkpoints").glob("checkpoint-*")}
    assert kept == {chosen, 6}
    saved, best = (
        load_file(folder / "model.safetensors")
        for folder in (run / "model", run / "checkpoints" / f"checkpoint-{chosen}")
    )
    assert saved.keys() == best.keys() and all(saved[k].equal(best[k]) for k in saved)


class StopAt(TrainerCallback):
    "Asks for a stop, as a scheduler does, when `step` is done."

    def __init__(self, run, step):
        self.file, self.step = Path(run) / "stop", step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.file.touch()


@pytest.mark.parametrize("shortcuts", [True, False], ids=["shortcuts", "TRL"])
def test_a_resumed_run_meets_the_same_problems(trained, tmp_path, shortcuts):
    "Its losses, its groups and its evaluations are those of a run that was not stopped."
    keys = {"resample_rounds": 2, "rest_solved": 3, "rest_hopeless": 2, **EVALUATION}
    keys |= {"cpu_shortcuts": shortcuts, "num_problems": 30}
    whole, _ = trained("whole", **keys)
    with pytest.raises(Preempted):
        trained("stopped", [StopAt(tmp_path / "stopped", 3)], **keys)
    state = json.loads((tmp_path / "stopped/checkpoints/checkpoint-3/rests.json").read_text())
    assert len(state) > 5 and all(step > 3 for step in state.values())
    resumed, summary = trained("stopped", **keys)
    assert summary["steps"] == 6

    def curve(run):
        return [[row[k] for k in NUMBERS] for row in run.metrics if "reward" in row]

    def evaluations(run):
        return [row["eval_reward"] for row in run.metrics if "eval_reward" in row]

    assert curve(resumed) == curve(whole) and len(curve(whole)) == 6
    assert evaluations(resumed) == evaluations(whole)
    rows = [row for row in whole.metrics if "reward" in row]
    assert sum(row["groups/resampled"] for row in rows) > 3
    assert rows[-1]["groups/resting"] > 0
    for row in rows:
        left = row["groups/zero_std_before"] - row["groups/resampled"] / 4
        assert row["frac_reward_zero_std"] == pytest.approx(left)
    first = [row["groups/reward_before"] for row in rows][:2]
    assert summary["reward_first"] == pytest.approx(sum(first) / 2, abs=1e-4)


def test_a_resumed_curriculum_is_at_the_same_level(trained, tmp_path):
    "It climbs, and after a stop it asks what a run that was not stopped asks."
    keys = {"tasks": LEVELS, "curriculum": list(LEVELS), "curriculum_groups": 6}
    keys |= {"curriculum_raise": 0.2, "curriculum_lower": 0.0, "resample_rounds": 1}
    whole, _ = trained("whole", **keys)
    with pytest.raises(Preempted):
        trained("stopped", [StopAt(tmp_path / "stopped", 3)], **keys)
    state = json.loads((tmp_path / "stopped/checkpoints/checkpoint-3/level.json").read_text())
    assert state["task"] in LEVELS and len(state["rates"]) < 6
    resumed, _ = trained("stopped", **keys)

    def curve(run):
        numbers = (*NUMBERS, "groups/level")
        return [[row[k] for k in numbers] for row in run.metrics if "reward" in row]

    assert curve(resumed) == curve(whole)
    levels = [row[-1] for row in curve(whole)]
    assert levels[0] == 1 and max(levels) > 1
    for row in (row for row in whole.metrics if "reward" in row):
        asked = {name for name in LEVELS if f"reward/{name}" in row}
        assert list(LEVELS)[int(row["groups/level"]) - 1] in asked


def test_a_curriculum_that_is_not_one_of_the_tasks_is_an_error(configured):
    cases = {
        "curriculum: two, five; two or more tasks are needed, and all that there are: two, three": {
            "tasks": LEVELS, "curriculum": ["two", "five"],
        },
        "the recipe has no tasks": {"curriculum": ["two", "three"]},
        "curriculum_lower 0.2: it has to be below curriculum_raise, 0.1": {
            "tasks": LEVELS, "curriculum": list(LEVELS), "curriculum_raise": 0.1,
        },
    }  # fmt: skip
    for words, keys in cases.items():
        cfg, _ = configured(**keys)
        with pytest.raises(InputError, match=words):
            grpo.check(*cfg)


def test_what_is_known_of_a_completion_stays_with_it(configured, tmp_path):
    "The engine's log-probabilities, and what a reward function logs."
    cfg, _ = configured(resample_rounds=3)
    problems, model, args = cfg
    args.output_dir = str(tmp_path)
    trainer = grpo.make_trainer(problems, model, args, grpo.load_tokenizer(model))
    trainer.model.train()
    draw = OwnDecoding._generate_single_turn

    def with_logprobs(self, *rest, **options):
        ids, _ = draw(self, *rest, **options)
        return ids, [[float(token) for token in row] for row in ids]

    def logged(completions, log_extra, **columns):
        log_extra("text", [c[0]["content"] for c in completions])
        return lucky(completions, **columns)

    trainer.reward_funcs[0] = logged
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OwnDecoding, "_generate_single_turn", with_logprobs)
        inputs = [trainer.train_dataset[n] for n in range(4) for _ in range(4)]
        batch = trainer._generate_and_score_completions(inputs)
    written = batch["completion_mask"].bool()
    ids = batch["completion_ids"].float()
    assert batch["sampling_per_token_logps"][written].equal(ids[written])
    assert trainer._metrics["train"]["groups/sampled"][0] > 4
    texts = [c[0]["content"] for c in trainer._logs["completion"]]
    assert list(trainer._logs["extra"]["text"]) == texts and len(texts) == 16
    assert len(trainer._metrics["train"]["completions/mean_length"]) == 1
    spent = trainer._metrics["train"]["num_tokens"][0]
    assert spent > batch["prompt_mask"].sum() + written.sum()


def test_only_a_recipe_that_selects_gets_another_trainer(configured):
    "And one with a GPU, TRL's own way of generating."
    kinds = []
    for keys in ({}, {"resample_rounds": 1}, {"rest_solved": 1}, {"curriculum": ["a"]}, EVALUATION):
        args = configured(cpu_shortcuts=False, **keys)[0][2]
        kinds.append(grpo.trainer_class(args))
    assert kinds[0] is grpo.GRPOTrainer
    for kind in kinds:
        assert issubclass(kind, grpo.GRPOTrainer) and not issubclass(kind, OwnDecoding)
    both = grpo.trainer_class(configured(resample_rounds=1, **EVALUATION)[0][2])
    assert issubclass(both, grpo.GroupTrainer)
    assert issubclass(both, ChosenGroups) and issubclass(both, HeldOutReward)


def test_what_trl_has_of_dapo_goes_with_it(trained):
    keys = {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True}
    keys |= {"top_entropy_quantile": 0.5, "entropy_coef": 0.001, "steps_per_generation": 2}
    keys |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    run, summary = trained("dapo", resample_rounds=2, max_steps=4, **keys)
    assert summary["steps"] == 4 and all(value == value for value in losses(run))


@pytest.mark.parametrize("rounds", [0, 2])
def test_each_task_has_its_reward(trained, rounds):
    tasks = {
        "sums": {"num_problems": 16},
        "reversed": {
            "dataset_name": "reasoning_gym/spell_backward", "dataset_kwargs": {},
            "num_problems": 8,
        },
    }  # fmt: skip
    run, _ = trained("tasks", tasks=tasks, resample_rounds=rounds, max_steps=4, **EVALUATION)
    steps = [row for row in run.metrics if "reward" in row]
    assert len(steps) == 4
    for name in tasks:
        assert sum(f"reward/{name}" in row for row in steps) >= 3
        assert all(f"eval_reward/{name}" in row for row in run.metrics if "eval_reward" in row)
    if not rounds:  # four groups a step, so the mean of all is between those of the tasks
        for row in steps:
            parts = [row[f"reward/{name}"] for name in tasks if f"reward/{name}" in row]
            assert min(parts) - 1e-6 <= row["reward"] <= max(parts) + 1e-6


def test_an_evaluation_without_a_held_out_side_is_an_error(configured, tmp_path):
    few = tmp_path / "few.jsonl"
    append_jsonl(few, [{"problem": "1 + 1 =", "answer": "2"}])
    cases = {
        "needs split: train, not 'all'": {"split": "all"},
        "heldout_fraction is 0": {"heldout_fraction": 0.0},
        "num_eval_problems: 12: .*no problem on the 'heldout' side": {
            "dataset_name": str(few), "dataset_kwargs": {}, "num_problems": 1,
            "heldout_fraction": 0.001,
        },
        "metric_for_best_model: 'eval_rewrad'; did you mean 'eval_reward'": {
            "load_best_model_at_end": True, "metric_for_best_model": "eval_rewrad",
        },
    }  # fmt: skip
    for words, keys in cases.items():
        cfg, _ = configured(**{**EVALUATION, **keys})
        with pytest.raises(InputError, match=words):
            grpo.check(*cfg)
    with pytest.raises(InputError, match="resample_rounds"):
        configured(resample_rounds=-1)
    with pytest.raises(InputError, match="tasks.a: unknown key 'num_problem'; did you mean"):
        configured(tasks={"a": {"num_problem": 3}})
