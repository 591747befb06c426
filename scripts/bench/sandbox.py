"""Programs per second in the sandbox, compared with the same programs without it.

    python scripts/bench/sandbox.py --programs 60 --rounds 3

The program reads a number and prints its square; nearly all of the time is starting Python and the
sandbox. Rounds alternate, so that a noisy machine affects all alike.
"""

import argparse
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from r1nb.sandbox import guarantees, run_program

SOURCE = "print(int(input()) ** 2)"


def bare(number: int) -> str:
    "The program's output without the sandbox."
    command = [sys.executable, "-I", "-c", SOURCE]
    return subprocess.run(command, input=str(number), stdout=subprocess.PIPE, text=True).stdout


def isolated(number: int) -> str:
    "The program's output in the sandbox."
    return run_program(SOURCE, stdin=str(number)).stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("isolation:", guarantees())
    runs = {
        f"{name}, {n} at once": (f, n)
        for name, f in (("bare", bare), ("sandbox", isolated))
        for n in (1, 2)
    }
    seconds = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, (f, n) in runs.items():
            with ThreadPoolExecutor(n) as threads:
                start = time.perf_counter()
                outputs = list(threads.map(f, range(args.programs)))
                seconds[name].append(time.perf_counter() - start)
            assert outputs == [f"{i * i}\n" for i in range(args.programs)]
    base = statistics.median(seconds["bare, 1 at once"])
    for name, values in seconds.items():
        median = statistics.median(values)
        rate, share = args.programs / median, base / median
        print(f"{name:20} {rate:6.1f} programs/s   {share:.2f} x bare, 1 at once")


if __name__ == "__main__":
    main()
