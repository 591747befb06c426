"""Draw README's pictures, from one or more quickstart runs.

    python scripts/docs/picture.py runs/quickstart runs/quickstart-seed1 runs/quickstart-seed2

Writes scripts/docs/learning.svg: the reward at each step of GRPO, and the mean of the last four,
for each run; and scripts/docs/quickstart.svg: held-out problems solved by stage, the report's plot
of the first run, and a dot for each other run.
"""

import json
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from r1nb.report import accuracy_plot
from r1nb.runs import Run

matplotlib.use("svg")
WINDOW = 4  # steps


def save(fig, name: str) -> None:
    "Write `fig` as scripts/docs/`name`, the same bytes each time."
    path = Path(__file__).with_name(name)
    fig.savefig(path, bbox_inches="tight", metadata={"Date": None})


def learning(folders: list[str]):
    "The reward of each run's GRPO by step: dots, and the mean of the last `WINDOW` steps."
    fig, ax = plt.subplots(figsize=(6, 3))
    for folder in folders:
        rewards = [line["reward"] for line in Run(f"{folder}/grpo").metrics if "reward" in line]
        steps = range(1, len(rewards) + 1)
        last = [rewards[max(0, n - WINDOW) : n] for n in steps]
        (line,) = ax.plot(steps, [sum(part) / len(part) for part in last], label=Path(folder).name)
        ax.plot(steps, rewards, ".", color=line.get_color(), alpha=0.4)
    ax.set(xlabel="step of GRPO", ylabel="completions that are right", ylim=(0, None))
    ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    ax.legend(frameon=False)
    return fig


def main(folders: list[str]) -> None:
    runs = [
        json.loads((Path(f) / "evaluate" / "results" / "results.json").read_text()) for f in folders
    ]
    matplotlib.rcParams["svg.hashsalt"] = "r1nb"
    fig = accuracy_plot(runs[0])
    score = next(k for k in runs[0]["models"]["sft"] if k.startswith("avg@"))
    for other in runs[1:]:
        values = [100 * other["models"][m][score]["value"] for m in runs[0]["models"]]
        beside_the_interval = [i + 0.2 for i in range(len(values))]
        circle = {"markersize": 4, "color": "black", "markerfacecolor": "white"}
        fig.axes[0].plot(beside_the_interval, values, "o", **circle)
    save(fig, "quickstart.svg")
    save(learning(folders), "learning.svg")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
