"""Draw README's picture: held-out problems solved by stage, from one or more quickstart runs.

    python scripts/docs/picture.py runs/quickstart runs/quickstart-seed1 runs/quickstart-seed2

Writes scripts/docs/quickstart.svg: the report's plot of the first run, and a dot for each other
run.
"""

import json
import sys
from pathlib import Path

import matplotlib

from r1nb.report import accuracy_plot

matplotlib.use("svg")


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
    fig.savefig(
        Path(__file__).with_name("quickstart.svg"), bbox_inches="tight", metadata={"Date": None}
    )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
