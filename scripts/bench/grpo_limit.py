"""How near a GRPO step on a CPU comes to the speed of the machine's matrix products.

    python scripts/bench/grpo_limit.py --quickstart runs/quickstart --threads 2

The quickstart must have run: its SFT model and its recipe are used. Generation and update of one
batch are timed apart, and their floating-point operations are counted by PyTorch in another pass
(a multiply-add is two). The limit is the time that these operations would take at the speed of a
plain product of the model's own shapes, measured in the same run: with many rows for the update,
with as many rows as completions for generation. Generation multiplies by another matrix each time,
until all weights were read, so its product is measured over as many matrices as the model has.

Where the rest goes is a profile of one more pass: the share of its time in products, in attention,
in copies (the cache of keys and values grows by them), in other operators, and in none, which is
Python.
"""

import argparse
import os
import platform
import time
from pathlib import Path

from cpu_shortcuts import build, grpo_keys, restart, timed, update


def product_speed(
    rows: int, width: int, columns: int, dtype, copies: int = 1, seconds: float = 3.0
) -> float:
    "Operations a second of the fastest products (rows, width) x (width, columns) with `copies`."
    import torch
    from torch.nn.functional import linear

    a = torch.randn(rows, width, dtype=dtype)
    weights = torch.randn(copies, columns, width, dtype=dtype)
    fastest, end = float("inf"), time.perf_counter() + seconds
    with torch.no_grad():
        while time.perf_counter() < end:
            begin = time.perf_counter()
            for weight in weights:
                linear(a, weight)
            fastest = min(fastest, time.perf_counter() - begin)
    return 2 * rows * width * columns * copies / fastest


GROUPS = {  # operators by the beginning of their names
    "products": ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "mkldnn_linear"),
    "attention": ("_scaled_dot_product", "scaled_dot_product", "_flash_attention"),
    "copies": ("cat", "copy_", "_to_copy", "index", "clone", "contiguous", "stack", "repeat"),
}


def shares(action) -> dict[str, float]:
    "Group of operators → its share of the time of `action()`."
    from torch.profiler import ProfilerActivity, profile

    begin = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        action()
        took = time.perf_counter() - begin
    found = dict.fromkeys([*GROUPS, "other operators"], 0.0)
    for event in profiled.key_averages():
        if event.key.startswith(("aten::", "mkldnn")):
            name = event.key.removeprefix("aten::")
            group = next((g for g, names in GROUPS.items() if name.startswith(names)), None)
            found[group or "other operators"] += event.self_cpu_time_total / 1e6 / took
    return {**found, "Python": max(0.0, 1 - sum(found.values()))}


def counted(action) -> float:
    "Floating-point operations of the matrix products and attention in `action()`."
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--completions", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    args = parser.parse_args()
    restart(args.threads)

    import torch

    trainer = build("grpo", **grpo_keys(args))
    batch = next(iter(trainer.get_train_dataloader()))
    config, dtype = trainer.model.config, trainer.model.dtype
    width, inner = config.hidden_size, config.intermediate_size

    def generate():
        torch.manual_seed(0)  # the same completions each time
        return trainer._generate_and_score_completions(batch)

    generate()  # warms up
    inputs = generate()
    inputs["advantages"][::2], inputs["advantages"][1::2] = 0.5, -0.5
    tokens = int(inputs["completion_mask"].sum())
    copies = trainer.model.num_parameters() // (width * inner)
    parts = {
        "generation": (generate, product_speed(args.completions, width, inner, dtype, copies)),
        "update": (lambda: update(trainer, inputs), product_speed(2048, width, inner, dtype)),
    }
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"{torch.get_num_threads()} threads, {dtype}; {args.completions} completions, ", end="")
    print(f"{tokens} tokens, all with an advantage")
    print(f"{'':12}{'GFLOP':>8}{'GFLOP/s of a product':>22}{'limit s':>9}{'took s':>8}{'ratio':>7}")
    limits, times = [], []
    for name, (action, speed) in parts.items():
        took = min(timed(action)[1][1] for _ in range(args.repeat))
        operations = counted(action)
        limit = operations / speed
        limits.append(limit)
        times.append(took)
        print(
            f"{name:12}{operations / 1e9:8.0f}{speed / 1e9:22.0f}{limit:9.2f}{took:8.2f}"
            f"{limit / took:7.2f}"
        )
    print(f"{'step':12}{'':30}{sum(limits):9.2f}{sum(times):8.2f}{sum(limits) / sum(times):7.2f}")
    for name, (action, _) in parts.items():
        found = ", ".join(f"{group} {share:.0%}" for group, share in shares(action).items())
        print(f"{name}: {found}")


if __name__ == "__main__":
    main()
