"""Decoding on a CPU: attention implementations side by side, on the bundled model.

    python scripts/bench/generate_cpu.py --batch 64 --new-tokens 32 --rounds 3

Generates groups of eight completions, with prompts of half to twice --prompt-tokens, as the sampler
does. Prints tokens a second (without the time of the prompts) for each implementation and the ratio
to the first. Rounds alternate, so that a noisy machine slows all implementations.
"""

import argparse
import statistics
import time

import torch

from r1nb.models import BUNDLED, ModelChoice, load_model, load_tokenizer
from r1nb.sampling import draw_tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=60)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--attention", nargs="+", default=["sdpa", "eager", "grouped"])
    args = parser.parse_args()

    choice = ModelChoice(args.model)
    tokenizer = load_tokenizer(choice)
    model = load_model(choice, tokenizer).eval()
    lengths = torch.randint(
        args.prompt_tokens // 2, 2 * args.prompt_tokens, (max(1, args.batch // 8),)
    ).tolist()
    groups = [torch.randint(100, len(tokenizer) - 100, (n,)).tolist() for n in lengths]
    prompts = [groups[i % len(groups)] for i in range(args.batch)]
    rates = {name: [] for name in args.attention}
    for round_number in range(args.rounds + 1):
        for name in args.attention:
            model.set_attn_implementation(name)
            seconds = []
            for new in (1, args.new_tokens + 1):  # the first: time of the prompts
                start = time.perf_counter()
                draw_tokens(model, prompts, new, [-1], tokenizer.pad_token_id)
                seconds.append(time.perf_counter() - start)
            if round_number:  # the first round warms up
                rates[name].append(args.batch * args.new_tokens / (seconds[1] - seconds[0]))
    base = statistics.median(rates[args.attention[0]])
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"{name:10} {rate:7.0f} tokens/s   {rate / base:.2f} x {args.attention[0]}")


if __name__ == "__main__":
    main()
