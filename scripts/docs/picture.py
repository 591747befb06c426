"""README's picture: held-out problems solved by stage, from the evaluations of one or more quickstart runs.

    python scripts/docs/picture.py runs/quickstart runs/quickstart-seed1 runs/quickstart-seed2

Writes scripts/docs/quickstart.svg: a bar is the first run with its 95 % interval, a dot is another run.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

STAGES = {"base": ("base model", "#9aa0a6"), "sft": ("after SFT", "#4c78a8"), "grpo": ("after GRPO", "#f58518")}


def score(results: dict) -> dict:
    "The average over samples, with its interval."
    return next(value for key, value in results.items() if key.startswith("avg@"))


def main(folders: list[str]) -> None:
    runs = [json.loads((Path(f) / "evaluate" / "results" / "results.json").read_text())["models"] for f in folders]
    plt.rcParams.update({"svg.hashsalt": "r1nb", "svg.fonttype": "none"})
    fig, ax = plt.subplots(figsize=(6.2, 1.9))
    labels = []
    for row, (name, (label, colour)) in enumerate(STAGES.items()):
        labels.append(label)
        first, *others = (score(run[name]) for run in runs)
        value, low, high = (100 * first[k] for k in ("value", "low", "high"))
        ax.barh(row, value, height=0.62, color=colour)
        ax.errorbar(value, row, xerr=[[value - low], [high - value]], color="black", capsize=3, linewidth=1)
        ax.plot([100 * o["value"] for o in others], [row] * len(others), "o", color="black", markersize=3)
        ax.text(high + 1.5, row, f"{value:.1f} %", va="center")
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set(xlim=(0, 75), xlabel="held-out problems solved, %")
    ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    fig.savefig(Path(__file__).with_name("quickstart.svg"), metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
