"""Compare the time of `r1nb --help` with that of importing TRL's trainer.

    python scripts/bench/cli_startup.py [rounds]

The two alternate, so that a busy machine slows both. The first round warms the disk cache and is
not counted.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "r1nb --help": [str(Path(sys.executable).with_name("r1nb")), "--help"],
    "from trl import GRPOTrainer": [sys.executable, "-c", "from trl import GRPOTrainer"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


def seconds(command: list[str]) -> float:
    "Wall time of `command`, which must succeed."
    begin = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return time.perf_counter() - begin


def main(rounds: int = 5) -> None:
    "Print medians and ranges over `rounds`, and the ratio of the first two."
    times = {name: [] for name in COMMANDS}
    for i in range(rounds + 1):
        for name, command in COMMANDS.items():
            spent = seconds(command)
            if i:
                times[name].append(spent)
    print(f"{'command':<30}{'median':>9}{'lowest':>9}{'highest':>9}   seconds, {rounds} rounds")
    for name, values in times.items():
        print(f"{name:<30}{statistics.median(values):9.2f}{min(values):9.2f}{max(values):9.2f}")
    help_, trl, _ = (statistics.median(v) for v in times.values())
    print(f"\nr1nb --help answers {trl / help_:.0f} times sooner than TRL is imported")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
