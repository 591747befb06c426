"The plan of a recipe: formulas, what is refused, the command, the memory of real trainings."

import importlib.util
import json
import re

import pytest
from conftest import ROOT, r1nb

from r1nb.cli import main
from r1nb.models import tiny_model
from r1nb.plan import (
    GIB,
    Assumptions,
    Machine,
    NoPlan,
    cache_bytes,
    mend,
    plan_recipe,
    plan_stage,
    states,
    verdict,
)
from r1nb.recipes import read_stage
from r1nb.settings import InputError

GRPO = {
    "dataset_name": "reasoning_gym/chain_sum",
    "num_problems": 16,
    "max_prompt_length": 64,
    "max_completion_length": 64,
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("tiny")))


def test_states_are_those_of_the_zero_paper():
    "Figure 1 of arXiv 1910.02054: 7.5 billion parameters on 64 GPUs."
    for name, expected in {"ddp": 120, "zero1": 31.4, "zero2": 16.6, "zero3": 1.9}.items():
        total = sum(states(7.5e9, ranks=64, accelerator=name).values()) / 1e9
        assert total == pytest.approx(expected, abs=0.05), name


def test_phases_of_a_large_model(seven):
    "Weights, gradients and optimizer by hand; nothing is loaded."
    recipe = {"model_name_or_path": seven, "dataset_name": "owner/traces", "max_length": 4096}
    plan = plan_stage("sft", recipe, {}, Machine(8, accelerator="zero3"), Assumptions())
    n = plan.count.trained
    assert n == 7_615_616_512
    update = plan.phases["update"]
    for kind, each in {"weights": 2, "gradients": 2, "optimizer": 12}.items():
        assert update[kind] == pytest.approx(n * each / 8), kind
    alone = plan_stage("sft", recipe, {}, Machine(8), Assumptions())
    assert alone.phases["save"]["optimizer"] == 12 * n and not alone.fits
    assert alone.phases["step"]["buffers"] == 2 * n  # DDP's buckets
    assert plan.estimate.steps is None


def test_packed_rows_need_a_mask_only_in_sdpa(seven):
    recipe = {"model_name_or_path": seven, "dataset_name": "owner/traces", "max_length": 8192}
    recipe |= {"per_device_train_batch_size": 2, "packing": True}
    machine = Machine(8, 8, accelerator="zero3")
    plans = [
        plan_stage("sft", recipe, keys, machine, Assumptions())
        for keys in ({}, {"attn_implementation": "sdpa"}, {"packing_strategy": "wrapped"})
    ]
    kernel, dense, wrapped = (plan.phases["update"]["activations"] for plan in plans)
    mask = (2 * 8192) ** 2 * (1 + 2)  # as truth values, and as the numbers that sdpa takes
    copies = 2 * (28 - 4) * 128 * 2 * 8192 * 2  # keys and values for each query head
    assert dense - kernel == pytest.approx(mask + copies, rel=0.01)
    assert wrapped == pytest.approx(kernel, rel=0.01)
    assert "a dense mask of packed rows" in verdict(plans[1])
    assert plans[0].work.update.attention == "flash or flex"


def test_gpus_that_share_a_sequence_share_its_activations(seven):
    recipe = {"model_name_or_path": seven, "dataset_name": "owner/traces", "max_length": 32_768}
    recipe |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 10}
    machine = Machine(8, accelerator="zero3")
    alone = plan_stage("sft", recipe, {}, machine, Assumptions())
    shared = plan_stage("sft", recipe, {"sequence_parallel_size": 4}, machine, Assumptions())
    activations = [plan.phases["update"]["activations"] for plan in (alone, shared)]
    assert 3 < activations[0] / activations[1] < 4.2
    assert (alone.estimate.sequences, shared.estimate.sequences) == (8, 2)
    with pytest.raises(InputError, match="sequence_parallel_size: 3 does not divide 8 GPUs"):
        plan_stage("sft", recipe, {"sequence_parallel_size": 3}, machine, Assumptions())


def test_an_adapter_and_a_reference_model(seven):
    recipe = GRPO | {"model_name_or_path": seven}
    adapter = plan_stage("grpo", recipe, {"use_peft": "true", "beta": "0.1"}, Machine())
    whole = plan_stage("grpo", recipe, {"beta": "0.1"}, Machine())
    n = whole.count.trained
    assert adapter.count.frozen == n and adapter.count.trained < n / 100
    assert adapter.phases["load"]["weights"] == 2 * n + 4 * adapter.count.trained
    assert whole.phases["load"]["weights"] == 4 * n


def test_generation_takes_the_cache_of_all_its_sequences(seven):
    from transformers import AutoConfig

    keys = {"gradient_accumulation_steps": "8"}
    plan = plan_stage("grpo", GRPO | {"model_name_or_path": seven}, keys, Machine())
    token = cache_bytes(AutoConfig.from_pretrained(seven))
    assert token == 2 * 28 * 4 * 128 * 2
    assert plan.phases["generate"]["cache"] == pytest.approx(32 * 128 * token, rel=0.05)


@pytest.mark.parametrize(
    "stage,keys,machine,message",
    [
        ("grpo", {"num_generations": 3}, {}, "divisible by num_generations"),
        ("grpo", {"max_completion_length": 4000}, {}, "context has 2048"),
        ("grpo", {"use_peft": True}, {"gpus": 2, "accelerator": "zero3"}, "under ZeRO-3"),
        ("grpo", {"num_generation": 4}, {}, "unknown key 'num_generation'"),
        ("grpo", {}, {"accelerator": "zero9"}, "--accelerator: 'zero9'"),
        ("grpo", {}, {"mfu": 1.5}, "--mfu: 1.5"),
        ("curate", {}, {}, "stage 'curate' has no plan"),
    ],
    ids=str,
)
def test_nonsense_is_refused(tiny, stage, keys, machine, message):
    recipe = GRPO | {"model_name_or_path": tiny} if stage == "grpo" else {}
    with pytest.raises(InputError, match="(?s)" + message.replace("(", r"\(")):
        plan_stage(stage, recipe | keys, {}, Machine(**machine))


def test_a_batch_of_several_ranks_is_that_of_all(tiny):
    keys = {"model_name_or_path": tiny, "per_device_train_batch_size": 1}
    assert plan_stage("grpo", GRPO | keys, {}, Machine(4)).estimate.sequences == 4
    with pytest.raises(InputError, match="num_generations"):
        plan_stage("grpo", GRPO | keys, {}, Machine(2))


def test_the_smallest_change_is_found(seven, tiny):
    recipe = {
        "model_name_or_path": seven,
        "dataset_name": "owner/traces",
        "max_length": 16_384,
        "per_device_train_batch_size": 4,
        "gradient_checkpointing": False,
    }
    plan = plan_stage("sft", recipe, {}, Machine(8, accelerator="zero3"))
    assert not plan.fits and re.search(
        r"most of it activations, .* no gradient_checkpointing\); does not fit", verdict(plan)
    )
    found = mend(plan)
    assert found[0].startswith("gradient_checkpointing: ")
    tight = Machine(memory=1)  # less than the reserve
    assert mend(plan_stage("grpo", GRPO | {"model_name_or_path": tiny}, {}, tight)) == []


def test_a_pipeline_is_planned_before_its_models_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("R1NB_RUNS", str(tmp_path))
    plans = plan_recipe(str(ROOT / "scripts" / "recipes" / "quickstart.yaml"))
    assert [p.name for p in plans] == ["sft", "grpo", "evaluate", "greedy"]
    assert [p.fits for p in plans] == [True] * 4
    assert plans[1].count.frozen == plans[0].count.trained


def test_an_evaluation_is_of_its_largest_model(seven, tiny):
    recipe = {"dataset_name": "reasoning_gym/chain_sum", "models": {"a": tiny, "b": seven}}
    keys = {"backend": "vllm", "max_new_tokens": "1024"}
    plan = plan_stage("evaluate", recipe, keys, Machine(), Assumptions(prompt=100))
    assert plan.count.trained > 7e9 and plan.fits
    with pytest.raises(InputError, match="no room for 14.2 GiB of weights"):
        plan_stage("evaluate", recipe, keys, Machine(memory=16), Assumptions(prompt=100))


def test_a_share_for_vllm_must_hold_the_weights(seven):
    keys = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.1}
    recipe = GRPO | {"model_name_or_path": seven} | keys
    with pytest.raises(InputError, match="vLLM's share of 0.1 of 80 GiB has no room"):
        plan_stage("grpo", recipe, {}, Machine(8, accelerator="zero3"))


FOLDER = ROOT / "scripts/recipes"
RECIPES = sorted(FOLDER.glob("*/*/*.yaml")) + sorted(FOLDER.glob("dataset_filtering/*.yaml"))


def hardware(path):
    "The machine that the comments of a recipe name, and the keys that belong to it."
    text = path.read_text("utf-8")
    words = re.search(r"^# Hardware: (.*?)Not run", text, re.M | re.S)[1].replace("\n#", "")
    processes = re.search(r"^# Processes: (\d+)", text, re.M)
    ranks = int(processes[1]) if processes else 1
    accelerator = re.search(r"--accelerator (\w+)", words)
    nodes = -(-ranks // 8)
    memory = float(re.search(r"of (\d+) GB", words)[1])
    machine = Machine(ranks // nodes, nodes, memory, accelerator[1] if accelerator else "none")
    return machine, {"vllm_mode": "server"} if "vLLM server" in words else {}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(FOLDER).with_suffix("")))
def test_a_recipe_fits_the_hardware_that_it_names(path):
    stage = {"dataset_filtering": "generate"}.get(path.parent.name, path.parent.name)
    machine, keys = hardware(path)
    recipe = read_stage(path)
    if stage == "generate":  # the others are pass_rate.py's
        own = ("pass_rate_min", "pass_rate_max", "reward_funcs")
        recipe = {k: v for k, v in recipe.items() if k not in own} | {"backend": "vllm"}
    plan = plan_stage(stage, recipe, keys, machine)
    assert plan.fits, verdict(plan)
    assert plan.machine.ranks == 1 or stage in ("sft", "grpo")
    if plan.work.vllm in ("colocate", "engine"):
        assert plan.work.held >= 8, plan.work.notes  # sequences at once


def test_vllm_needs_room_for_its_longest_sequence(seven):
    "vLLM does not start otherwise, however short the completions are."
    keys = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.25}
    recipe = GRPO | {"model_name_or_path": seven} | keys
    plan = plan_stage("grpo", recipe, {}, Machine())
    token = 2 * 28 * 4 * 128 * 2
    room = 0.25 * 80 * GIB - 2 * plan.count.trained - GIB  # weights; graphs and what is not torch's
    assert 0.8 * room / (128 * token) < plan.work.held < room / (128 * token)
    small = Machine(memory=66)  # 0.25 of it: the weights, a trial batch, and not 32,768 tokens
    with pytest.raises(InputError, match="one sequence of 32768 tokens, 1.75 GiB"):
        plan_stage("grpo", recipe, {}, small)
    assert plan_stage("grpo", recipe | {"vllm_max_model_length": 1024}, {}, small).work.held > 8


def test_less_for_vllm_is_a_change_that_is_found(seven):
    keys = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.9, "gradient_checkpointing": True}
    recipe = GRPO | {"model_name_or_path": seven} | keys
    plan = plan_stage("grpo", recipe, {}, Machine(8, accelerator="zero3"))
    assert not plan.fits and "vllm_gpu_memory_utilization 0.9" in verdict(plan)
    assert any(line.startswith("vllm_gpu_memory_utilization 0.") for line in mend(plan))


def test_a_model_is_described_by_a_file(seven, tmp_path):
    "A Hub id that cannot be reached: NoPlan, unless its config.json is given."
    recipe = {"model_name_or_path": "owner/away", "dataset_name": "owner/traces"}
    with pytest.raises(NoPlan, match="--model-config"):
        plan_stage("sft", recipe, {}, Machine())
    for file in (seven, f"{seven}/config.json"):
        plan = plan_stage("sft", recipe, {}, Machine(), Assumptions(model=file))
        assert plan.count.trained == 7_615_616_512


def test_the_job_is_checked_and_planned_as_its_ranks(tiny, tmp_path):
    "Before it enters the queue: groups of 14 are whole on seven ranks with two completions each."
    keys = ["--model_name_or_path", tiny, "--dataset_name", "reasoning_gym/chain_sum"]
    keys += ["--num_problems", 4, "--num_generations", 14, "--per_device_train_batch_size", 2]
    keys += ["--gradient_accumulation_steps", 1, "--gpus-per-node", 8, "--accelerator", "zero2"]
    keys = ["grpo", *keys, "--slurm", "--dry-run"]
    done = r1nb(*keys, "--num_processes", 7, cwd=tmp_path, runs=tmp_path)
    assert done.code == 0 and "--gres=gpu:8" in done.out, done.err
    assert "r1nb: peak: " in done.err and "fits 80 GiB" in done.err
    done = r1nb(*keys, cwd=tmp_path, runs=tmp_path)
    assert done.code == 2 and "divisible by num_generations (14)" in done.err
    done = r1nb(*keys, "--use_peft", "--accelerator", "zero3", cwd=tmp_path, runs=tmp_path)
    assert done.code == 2


def test_the_command_says_whether_it_fits(tiny, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(GRPO | {"model_name_or_path": tiny}))

    def run(*options):
        code = main(["plan", str(recipe), "--stage", "grpo", *options])
        return code, *capsys.readouterr()

    code, out, _ = run("--gpus", "2", "--max_steps", "7")
    assert code == 0 and "fits 80 GiB" in out and "7 steps" in out
    code, out, _ = run("--gpu-memory", "1")
    assert code == 1 and "does not fit 1 GiB" in out and "what would fit:" in out
    code, _, err = run("--max_completion_length", "9000")
    assert code == 2 and "context has 2048" in err


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sft-bfloat16", "grpo-float32"])
def test_predicted_memory_is_close_to_measured(case):
    "Within 15 %."
    file = ROOT / "scripts" / "bench" / "plan.py"
    spec = importlib.util.spec_from_file_location("bench_plan", file)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    found = bench.measure(case)
    assert found["predicted"] / found["measured"] == pytest.approx(1, abs=0.15)
    assert found["predicted"] > 0.1 * GIB
