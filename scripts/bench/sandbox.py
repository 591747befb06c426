"""Programs a second in the sandbox, beside the same programs without it.

    python scripts/bench/sandbox.py --programs 60 --rounds 3

The program reads a number and prints its square; nearly all of the time is starting Python and the walls.
Rounds alternate, so that a noisy machine hits all alike.
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
    return subprocess.run(
        [sys.executable, "-I", "-c", SOURCE],
        input=str(number),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def walled(number: int) -> str:
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
        for name, f in (("bare", bare), ("sandbox", walled))
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
        print(
            f"{name:20} {args.programs / median:6.1f} programs/s   {base / median:.2f} x bare, 1 at once"
        )


if __name__ == "__main__":
    main()
