"The recipes in scripts/recipes: keys, arithmetic, and two steps of each on a random small model."

import dataclasses
import json
import re

import pytest
import yaml
from conftest import ROOT

from r1nb import grpo, sft
from r1nb.jobs import Job, run_folder
from r1nb.pipeline import load_pipeline
from r1nb.problems import R1_SYSTEM_PROMPT
from r1nb.recipes import configure, read_stage, read_yaml
from r1nb.runs import append_jsonl, as_launched, open_run
from r1nb.settings import InputError
from r1nb.stages import load_stage

FOLDER = ROOT / "scripts/recipes"
TRAINING = sorted(p for s in ("sft", "grpo") for p in FOLDER.glob(f"*/{s}/config_*.yaml"))
FILTERING = sorted(FOLDER.glob("dataset_filtering/*.yaml"))
GRPO = [p for p in TRAINING if p.parent.name == "grpo"]

# Model → model type, and context in tokens (max_position_embeddings), as published; there is no
# network here to read them from the Hub.
MODELS = {
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", 32768),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", 32768),
    "Qwen/Qwen2.5-1.5B": ("qwen2", 131072),
    "Qwen/Qwen2.5-7B": ("qwen2", 131072),
    "Qwen/Qwen2.5-Coder-7B-Instruct": ("qwen2", 32768),
    "Qwen/Qwen2.5-Coder-32B-Instruct": ("qwen2", 32768),
    "Qwen/Qwen2.5-Math-1.5B": ("qwen2", 4096),
    "Qwen/Qwen2.5-Math-1.5B-Instruct": ("qwen2", 4096),
    "Qwen/Qwen2.5-Math-7B": ("qwen2", 4096),
    "Qwen/Qwen3-1.7B-Base": ("qwen3", 32768),
    "Qwen/Qwen3-4B-Base": ("qwen3", 32768),
    "Qwen/Qwen3-8B-Base": ("qwen3", 32768),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ("qwen2", 131072),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": ("qwen2", 131072),
    "open-r1/Qwen2.5-Math-7B-RoPE-300k": ("qwen2", 32768),
    "open-r1/R1-Distill-Qwen-Math-7B": ("qwen2", 32768),
    "open-r1/R1-Distill-Qwen-Math-7B-Merges": ("qwen2", 32768),
}


def named(path):
    return str(path.relative_to(FOLDER).with_suffix(""))


def stage_of(path):
    return load_stage({"dataset_filtering": "generate"}.get(path.parent.name, path.parent.name))


def generates(path):
    "A recipe of pass_rate.py without that script's own keys: those of generate."
    own = {"pass_rate_min", "pass_rate_max", "reward_funcs"}
    return {k: v for k, v in read_stage(path).items() if k not in own}


def head(path):
    "What the comments at the top of a recipe state: processes, global batch and its unit."
    found = re.search(
        r"^# Processes: (\d+)\. Global batch: (\d+) (sequences|completions)\.$",
        path.read_text("utf-8"),
        re.M,
    )
    assert found, f"{path}: no line '# Processes: N. Global batch: N sequences|completions.'"
    return int(found[1]), int(found[2]), found[3]


@pytest.fixture
def parsed():
    "Reads a recipe as one of the processes that its head states would."

    def read(path):
        with as_launched(head(path)[0] if path in TRAINING else 1):
            return configure(stage_of(path), path if path in TRAINING else generates(path))[0]

    return read


def test_recipes_have_run_folders_of_their_own(tmp_path):
    "`r1nb grpo --config …/config_demo.yaml` for two models; the recipe's own output_dir wins."
    folders = [run_folder(Job(p.parent.name, config=str(p))) for p in TRAINING]
    assert len(set(folders)) == len(TRAINING)
    assert {f.parent.name for f in folders} == {"sft", "grpo"}
    text = GRPO[0].read_text("utf-8")
    (tmp_path / "own.yaml").write_text(f"{text}\noutput_dir: {tmp_path}/data/mine\n")
    job = Job("grpo", config=str(tmp_path / "own.yaml"))
    assert run_folder(job) == tmp_path / "data/mine"
    assert (
        run_folder(dataclasses.replace(job, overrides={"output_dir": f"{tmp_path}/b"}))
        == tmp_path / "b"
    )
    pipeline = {"name": "p", "stages": {"sft": {"output_dir": "data/mine"}}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(pipeline))
    with pytest.raises(InputError, match="stage 'sft': output_dir"):
        load_pipeline(tmp_path / "p.yaml")


def test_recipes_are_found():
    assert len(TRAINING) > 15 and len(FILTERING) == 3
    others = {p for p in FOLDER.rglob("*.yaml")} - {*TRAINING, *FILTERING}
    assert {named(p) for p in others} == {"quickstart", "r1-zero/laptop", "r1/laptop", "r1/8xh100"}


@pytest.mark.parametrize("path", [*TRAINING, *FILTERING], ids=named)
def test_a_recipe_is_read(path, parsed):
    "All keys are known, all values valid; flat, with short lines, and its source and hardware."
    parsed(path)
    text = path.read_text("utf-8")
    assert [line for line in text.splitlines() if len(line) > 100] == []
    assert re.search(r"^# Source: .", text, re.M)
    assert re.search(r"^# Hardware: .", text, re.M) and "Not run on a GPU yet." in text
    values = yaml.safe_load(text)
    nested = {k for k, v in values.items() if isinstance(v, dict)}
    assert nested <= {"lr_scheduler_kwargs", "gradient_checkpointing_kwargs"}


@pytest.mark.parametrize("path", TRAINING, ids=named)
def test_the_global_batch_is_the_stated_one(path, parsed):
    args = parsed(path)[-1]
    processes, batch, unit = head(path)
    at_a_time = processes // getattr(
        args, "sequence_parallel_size", 1
    )  # ranks with rows of their own
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * at_a_time
    assert rows == batch
    assert unit == ("sequences" if path.parent.name == "sft" else "completions")


@pytest.mark.parametrize("path", GRPO, ids=named)
def test_groups_are_whole(path, parsed):
    "In what is sampled at once, and in each update."
    args = parsed(path)[-1]
    _, batch, _ = head(path)
    assert args.generation_batch_size % batch == 0
    assert batch % args.num_generations == 0
    assert args.reward_weights is None or len(args.reward_weights) == len(args.reward_funcs)


@pytest.mark.parametrize("path", [*TRAINING, *FILTERING], ids=named)
def test_texts_fit_into_the_context(path, parsed):
    configuration = parsed(path)
    by_name = {type(c).__name__: c for c in configuration}
    _, context = MODELS[by_name["ModelChoice"].model_name_or_path]
    args = configuration[-1]
    if path in FILTERING:
        assert by_name["SamplingConfig"].max_new_tokens < context
    elif path.parent.name == "sft":
        assert args.max_length <= context
    else:
        assert args.max_prompt_length + args.max_completion_length <= context
        if args.vllm_max_model_length:
            assert args.max_prompt_length + args.max_completion_length <= args.vllm_max_model_length
            assert args.vllm_max_model_length <= context
        if "soft_overlong_punishment" in args.reward_funcs:
            assert args.max_completion_len == args.max_completion_length


# ---- two steps of each recipe -------------------------------------------------------------------

# Everything in which the short run differs from the recipe; only keys that a recipe has, except
# those under ALWAYS.
ALWAYS = {
    "max_steps": 2,
    "use_cpu": True,
    "dtype": "float32",
    "bf16": False,
    "cpu_shortcuts": False,  # TRL's own trainer, as on a GPU
    "disable_tqdm": True,
    "gradient_accumulation_steps": 1,
}
CHANGED = {  # the batch is one group, see short_run
    "model_revision": "main",
    "attn_implementation": None,  # flash-attn
    "optim": "adamw_torch",  # bitsandbytes
    "sequence_parallel_size": 1,  # one process
    "use_vllm": False,
    "dataset_num_proc": None,
    "max_length": 256,
    "max_prompt_length": 2000,  # characters, on the small tokenizer
    "max_completion_length": 8,
    "vllm_max_model_length": None,
    "per_device_eval_batch_size": 1,
    "generation_batch_size": None,  # two updates' worth, see short_run
    "save_steps": 1,
    "eval_steps": 1,
    "log_completions": False,
}
# Set by r1nb itself: older checkpoints are deleted only once a newer one is complete.
OURS = {"save_total_limit": None}

TRACE = "<think>\n1 + 1 = 2\n</think>\nThe answer is \\boxed{2}."
MESSAGES = [{"role": "user", "content": "1 + 1 = ?"}, {"role": "assistant", "content": TRACE}]
PYTHON_TESTS = [{"input": "1\n", "output": "1\n", "type": "stdin_stdout"}]
# Columns of the datasets that matter here, as published.
ROWS = {
    "open-r1/Mixture-of-Thoughts": {"messages": MESSAGES, "num_tokens": 30, "source": "x"},
    "open-r1/codeforces-cots": {
        "id": "1/A",
        "prompt": "Solve it.",
        "generation": TRACE,
        "messages": MESSAGES,
    },
    "open-r1/OpenR1-Math-220k": {
        "problem": "1 + 1 = ?",
        "solution": "It is 2.",
        "answer": "2",
        "generations": [TRACE],
        "messages": MESSAGES,
    },
    "HuggingFaceH4/Bespoke-Stratos-17k": {"system": "Think.", "messages": MESSAGES},
    "AI-MO/NuminaMath-TIR": {
        "problem": "1 + 1 = ?",
        "solution": "It is $\\boxed{2}$.",
        "messages": MESSAGES,
    },
    "DigitalLearningGmbH/MATH-lighteval": {
        "problem": "1 + 1 = ?",
        "level": "Level 1",
        "type": "Algebra",
        "solution": "It is $\\boxed{2}$.",
    },
    "open-r1/DAPO-Math-17k-Processed": {
        "prompt": "1 + 1 = ?",
        "solution": "2",
        "data_source": "math_dapo",
        "ability": "MATH",
        "reward_model": {"ground_truth": "2", "style": "rule"},
    },
    "openai/gsm8k": {"question": "1 + 1 = ?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
    "open-r1/verifiable-coding-problems-python": {
        "problem_statement": "Print the number.",
        "gold_standard_solution": "print(input())",
        "verification_info": {"language": "python", "test_cases": PYTHON_TESTS},
    },
    "open-r1/codeforces": {
        "id": "1/A",
        "prompt": "Print the number.",
        "language": "python",
        "time_limit": 2.0,
        "memory_limit": 256.0,
        "input_mode": "stdio",
        "official_tests": [{"input": "1\n", "output": "1\n"}],
        "generated_checker": None,
    },
    "open-r1/ioi": {
        "year": 2024,
        "id": "nile",
        "problem": "Implement f.",
        "subtask": "01-small",
        "score": 10.0,
        "time_limit": 2.0,
        "memory_limit": 2**28,
        "test_names": ["1"],
        "test_cases": [["1\n", "1\n"]],
        "grader_files": [],
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "Folders of random models of two layers, by model type."
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from r1nb.models import tiny_model
    from r1nb.templates import align_tokens

    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(folder / "llama"))
    for kind in {kind for kind, _ in MODELS.values()}:
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            kind,
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=4096,
            pad_token_id=0,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        align_tokens(tokenizer, model)
        model.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return folder


def short_run(path, models, folder):
    "The recipe for two steps: `(stage, recipe, keys that were changed)`."
    recipe = read_yaml(path)
    kind, _ = MODELS[recipe["model_name_or_path"]]
    data = folder / "data.jsonl"
    text = json.dumps(ROWS[recipe["dataset_name"]])
    append_jsonl(data, [json.loads(text.replace("1 + 1 =", f"{n} + 1 =")) for n in range(20)])
    changed = {k: v for k, v in CHANGED.items() if k in recipe}
    changed |= {**ALWAYS, "model_name_or_path": str(models / kind), "dataset_name": str(data)}
    rows = recipe.get("num_generations", 8)  # one group
    changed["per_device_train_batch_size"] = rows
    if "generation_batch_size" in recipe:
        changed["generation_batch_size"] = 2 * rows
    if path.parent.name == "grpo":
        changed["max_completion_length"] = CHANGED["max_completion_length"]
    return path.parent.name, recipe, changed


@pytest.mark.slow
@pytest.mark.parametrize("path", TRAINING, ids=named)
def test_two_steps(path, models, tmp_path, monkeypatch):
    "Every key reaches TRL: the trainer's arguments have the recipe's values, and it trains."
    stage, recipe, changed = short_run(path, models, tmp_path)
    module = {"sft": sft, "grpo": grpo}[stage]
    seen, train = [], module.train

    def watched(run, trainer, *others):
        summary = train(run, trainer, *others)
        seen.append(trainer)
        return summary

    monkeypatch.setattr(module, "train", watched)
    configuration, written = configure(module.stage, {**recipe, **changed})
    run = open_run(tmp_path / "run", stage, written)
    module.stage.check(*configuration)
    summary = module.stage.run(run, *configuration)
    (trainer,) = seen
    assert summary["steps"] == 2 and (run / "model" / "model.safetensors").exists()
    arguments = {f.name for f in dataclasses.fields(trainer.args)}
    for key, value in written.items():
        if key in arguments:
            assert getattr(trainer.args, key) == OURS.get(key, value), key
        own = getattr(trainer, key, None)  # what the trainer computes with: beta, temperature, ...
        if isinstance(own, (bool, int, float, str)):
            assert own == value, key
    assert trainer.lr_scheduler.base_lrs[0] == trainer.args.learning_rate
    adapter = getattr(trainer.model, "peft_config", {}).get("default")
    assert bool(adapter) == recipe.get("use_peft", False)
    for key in ("r", "lora_alpha", "lora_dropout"):
        name = key if key.startswith("lora") else f"lora_{key}"
        assert name not in recipe or getattr(adapter, key) == recipe[name]
    assert trainer.processing_class.eos_token == recipe.get("eos_token", "<|im_end|>")
    if stage == "grpo":
        assert len(trainer.reward_funcs) == len(written.get("reward_funcs", ["accuracy", "format"]))
        system = trainer.train_dataset[0]["prompt"][0]
        assert system["role"] == "system"
        assert system["content"] == recipe.get("system_prompt", R1_SYSTEM_PROMPT)
