"`grpo_loss` and `advantages` are TRL's, for every loss type, level of importance sampling and KL."

import inspect
import itertools
import re

import pytest
import torch
from datasets import Dataset

from r1nb import models
from r1nb.grpo import LOSS_TYPES, GRPOTrainer, Terms, TRLGRPOConfig, grpo_loss, vespo
from r1nb.rewards import advantages

QUESTIONS = ("2 + 3 =", "How much is 7 times 8?")
PROMPTS = [{"prompt": [{"role": "user", "content": q}]} for q in QUESTIONS for _ in range(4)]
REWARDS = [0.0, 1.0, 0.5, 1.0, 1.0, 0.0, 0.25, None]
LEVELS = ("token", "sequence")
# narrow enough that the ratios of the batch below are on both sides of them
LIMITS = {
    "token": {"epsilon": 0.2, "epsilon_high": 0.28},
    "sequence": {"epsilon": 0.02, "epsilon_high": 0.03},
}


def rewards_in_order(completions, **columns):
    return REWARDS[: len(completions)]


def add_noise(model, size):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn_like(parameter)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models.tiny_model(tmp_path_factory.mktemp("tiny"))


def trainer_of(folder, output, **options):
    "TRL's trainer of the tiny model, with TRL's own configuration."
    choice = models.ModelChoice(str(folder), dtype="float32")
    tokenizer = models.load_tokenizer(choice)
    args = TRLGRPOConfig(
        str(output),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=24,
        **options,
    )
    trainer = GRPOTrainer(
        models.load_model(choice, tokenizer),
        rewards_in_order,
        args,
        Dataset.from_list(PROMPTS),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    trainer.model.train()
    return trainer


@pytest.fixture(scope="module")
def sampled(folder, tmp_path_factory):
    """A batch that TRL sampled, and the weights of a policy that has moved on since.

    Reference, sampling policy and trained policy differ by noise."""
    torch.manual_seed(0)
    trainer = trainer_of(folder, tmp_path_factory.mktemp("trl"), beta=0.1, num_iterations=2)
    add_noise(trainer.model, 0.03)
    batch = trainer._generate_and_score_completions(PROMPTS)
    add_noise(trainer.model, 0.03)
    return batch, trainer.model.state_dict()


def token_logp(model, batch):
    "Log-probabilities of the completion tokens, from the logits."
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = model(ids, attention_mask=mask).logits[:, :-1]
    logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return logp[:, -batch["completion_ids"].shape[1] :]


def ours(model, batch, args, **more):
    "`grpo_loss` with the options of TRL's configuration."
    objective, _ = LOSS_TYPES[args.loss_type]
    names = [name for name in inspect.signature(objective).parameters if name != "terms"]
    return grpo_loss(
        token_logp(model, batch),
        batch["old_per_token_logps"],
        batch["advantages"],
        batch["completion_mask"],
        args.loss_type,
        args.importance_sampling_level,
        args.beta,
        batch["ref_per_token_logps"],
        args.use_bias_correction_kl,
        max_completion_length=args.max_completion_length,
        **{name: getattr(args, name) for name in names},
        **more,
    )


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def compare(trainer, batch):
    "Assert that both losses and all gradients agree; returns the loss."
    model = trainer.model
    expected = trainer._compute_loss(model, batch)
    found = ours(model, batch, trainer.args)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5, rel=1e-5)
    theirs, of_ours = gradients(model, expected), gradients(model, found)
    for name, gradient in theirs.items():
        torch.testing.assert_close(of_ours[name], gradient, atol=1e-5, rtol=1e-4)
    assert any(g.abs().max() > 1e-3 for g in theirs.values())
    return found.item()


def test_every_loss_type_of_trl_is_here():
    "TRL names its loss types in the help of its configuration and in the code of its loss."
    text = TRLGRPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    listed = re.search(r"Supported values are (.*?)\.", text).group(1)
    assert set(re.findall(r"'(\w+)'", listed)) == set(LOSS_TYPES)
    code = inspect.getsource(GRPOTrainer._compute_loss)
    tests = re.findall(r"self\.loss_type (?:==|in) (\[[^]]*\]|\"\w+\")", code)
    assert set(re.findall(r"\"(\w+)\"", " ".join(tests))) == set(LOSS_TYPES)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients_are_trls(loss_type, level, beta, sampled, folder, tmp_path):
    batch, weights = sampled
    limits = LIMITS[level] if loss_type != "cispo" else {"epsilon_high": 1.0}
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": beta}
    trainer = trainer_of(folder, tmp_path, **options, **limits)
    trainer.model.load_state_dict(weights)
    compare(trainer, batch)
    metrics = trainer._metrics["train"]
    for name in ("clip_ratio/low_mean", "clip_ratio/high_mean", "cispo_clip_ratio"):
        if name in metrics:  # the limits act on both sides, and not everywhere
            assert 0 < metrics[name][-1] < 1
    assert ("kl" in metrics) == bool(beta)


@pytest.mark.parametrize(
    "options",
    [
        {"delta": 1.1},
        {"epsilon": 0.1},
        {"beta": 0.1, "use_bias_correction_kl": False},
        {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0},
        {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_neg": 1.0},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_of_the_objectives(options, sampled, folder, tmp_path):
    batch, weights = sampled
    plain, changed = (
        trainer_of(folder, tmp_path, **given)
        for given in ({k: v for k, v in options.items() if k in ("loss_type", "beta")}, options)
    )
    losses = []
    for trainer in (plain, changed):
        trainer.model.load_state_dict(weights)
        losses.append(compare(trainer, batch))
    assert losses[0] != pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("rate", [2.0, 1e-6])
def test_vespo_of_extreme_ratios(rate, sign):
    "Ratios beyond its limits: of a token (e^±20) and of a completion (1e-8 to e^20)."
    log_ratio = torch.tensor([[30.0, -25.0], [-30.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    mask, logp = torch.ones(4, 2), -torch.ones(4, 2)
    options = {"k_pos": 1.0, "lambda_pos": rate, "k_neg": 1.0, "lambda_neg": rate}
    advantage = torch.full((4, 1), sign)
    expected = GRPOTrainer.get_gamma_weights(advantage, log_ratio, mask, None, **options)
    options = {f"vespo_{name}": value for name, value in options.items()}
    terms = Terms(logp, log_ratio, log_ratio.exp(), advantage, mask)
    found = vespo(terms, **options) / (advantage * logp)
    torch.testing.assert_close(found, expected.expand(4, 2), atol=0, rtol=1e-5)
    assert len(set(expected.flatten().tolist())) > 2


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_accumulated_micro_batches(loss_type, sampled, folder, tmp_path):
    """The sum of TRL's losses of two micro-batches.

    All types but bnpo give the same as the whole batch, which is what `num_tokens` is for."""
    batch, weights = sampled
    trainer = trainer_of(folder, tmp_path, loss_type=loss_type, gradient_accumulation_steps=2)
    trainer.model.load_state_dict(weights)
    halves = [
        {k: v[half] if v.dim() else v for k, v in batch.items()}
        for half in (slice(0, 4), slice(4, 8))
    ]
    tokens = batch["num_items_in_batch"]
    expected = sum(trainer._compute_loss(trainer.model, half) for half in halves).item()
    found = [ours(trainer.model, half, trainer.args, num_tokens=tokens) for half in halves]
    by_batch = LOSS_TYPES[loss_type][1] == "batch"
    found = sum(found).item() / (1 if by_batch else 2)
    assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
    whole = ours(trainer.model, batch, trainer.args).item()
    assert (found == pytest.approx(whole, abs=1e-5, rel=1e-5)) == (loss_type != "bnpo")


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_advantages_are_trls(scale_rewards, folder, tmp_path):
    "Also with a completion that has no verdict."
    trainer = trainer_of(folder, tmp_path, scale_rewards=scale_rewards)
    batch = trainer._generate_and_score_completions(PROMPTS)
    rewards = torch.tensor([torch.nan if r is None else r for r in REWARDS]).view(2, 4)
    found = advantages(rewards, scale_rewards).flatten()
    torch.testing.assert_close(found, batch["advantages"], atol=1e-6, rtol=1e-5)
    assert found[-1] == 0 and found[0] < 0


def test_a_single_verdict_teaches_nothing():
    one = torch.tensor([[1.0, torch.nan, torch.nan], [0.0, 1.0, 1.0]])
    for scale_rewards in ("group", "batch", "none"):
        assert advantages(one, scale_rewards)[0].tolist() == [0.0, 0.0, 0.0]


def test_what_is_not_valid_is_refused():
    logp, mask = torch.zeros(2, 3), torch.ones(2, 3)
    batch = (logp, logp, torch.ones(2), mask)
    for options, error, message in (
        ({"importance_sampling_level": "seq"}, ValueError, "'seq'; valid: 'token', 'sequence'"),
        ({"loss_type": "dr_grpo"}, ValueError, "max_completion_length"),
        ({"loss_type": "ppo"}, KeyError, "ppo"),
        ({"loss_type": "cispo", "delta": 2.0}, TypeError, "delta"),
    ):
        with pytest.raises(error, match=message):
            grpo_loss(*batch, **options)


def test_a_completion_without_tokens_counts_as_one():
    "`mask_truncated_completions` leaves rows without tokens: no division by zero."
    logp = torch.full((2, 3), -1.0, requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    for loss_type, level in itertools.product(LOSS_TYPES, LEVELS):
        options = {"importance_sampling_level": level, "max_completion_length": 3}
        loss = grpo_loss(logp, logp.detach(), torch.ones(2), mask, loss_type, **options)
        (gradient,) = torch.autograd.grad(loss, logp)
        assert loss.isfinite() and gradient.isfinite().all() and not gradient[1].any()
