"""What a CPU multiplies well, and what drawing a token costs: the figures of notebooks 03 and 05.

    python scripts/bench/cpu_numbers.py

Matrix products and training steps of the bundled model in float32 and in bfloat16; and one token a
row sampled with `torch.multinomial` and with `draw_index`. Prints each figure and the ratios.
"""

import statistics
import time

import torch

from r1nb.models import ModelChoice, load_model
from r1nb.sampling import draw_index

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(action, repeat=3):
    action()  # the first one allocates
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main():
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    m, k, n = 1440, 576, 1536
    rates = {}
    for name, dtype in DTYPES.items():
        a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
        rates[name] = 2 * m * k * n / seconds(lambda a=a, b=b: a @ b) / 1e9
    print(
        f"{m} x {k} x {n}: "
        + ", ".join(f"{name} {rate:.1f} GFLOP/s" for name, rate in rates.items())
    )
    steps = {}
    ids = torch.randint(5, 40000, (16, 90))
    for name in DTYPES:
        model = load_model(ModelChoice("bundled", dtype=name)).train()

        def step(model=model):
            model(input_ids=ids, labels=ids).loss.backward()
            model.zero_grad()

        steps[name] = seconds(step, repeat=1)
        print(f"training step of 16 x 90 tokens, {name}: {steps[name]:.1f} s", flush=True)
    print(f"bfloat16 / float32: {steps['bfloat16'] / steps['float32']:.1f}")
    p = torch.randn(128, 49152).softmax(-1)
    plain, ours = seconds(lambda: torch.multinomial(p, 1)), seconds(lambda: draw_index(p))
    times = f"multinomial {plain * 1e3:.0f} ms, draw_index {ours * 1e3:.0f} ms"
    print(f"a token for 128 rows: {times}; ratio {plain / ours:.0f}")


if __name__ == "__main__":
    main()
