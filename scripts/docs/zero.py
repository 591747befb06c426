"""Write scripts/docs/zero.json, what nbs/46_zero.ipynb shows of runs of `make zero`.

    python scripts/docs/zero.py runs/zero runs/zero-seed1 runs/zero-seed2

For each run: the metrics of each step, and scores on held-out problems with intervals, sampled at
temperature 1 and greedily. Of the last run: completions at some steps.
"""

import json
import sys
from pathlib import Path

from r1nb.evaluate import load_results
from r1nb.runs import Run
from r1nb.zero import completions_at

KEYS = (
    "rewards/accuracy_reward/mean",
    "rewards/format_zero_reward/mean",
    "completions/mean_length",
    "entropy",
)
SCORES = ("avg@1", "avg@4", "pass@4", "value", "low", "high", "p_value")


def rounded(value):
    "`value` with four decimals, and of a mapping only the scores."
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items() if k in SCORES or k in ("base", "zero")}
    return round(value, 4) if isinstance(value, float) else value


def of_run(folder: Path) -> dict:
    "What is shown of the pipeline run in `folder`."
    grpo, sampled = Run(folder / "grpo"), load_results(folder / "evaluate")
    lines = [line for line in grpo.metrics if "reward" in line]
    (difference,) = sampled["differences"]
    return {
        "name": folder.name,
        "minutes": round(Run(folder).manifest["seconds"] / 60, 1),
        "steps": [line["step"] for line in lines],
        "metrics": {key: [rounded(float(line[key])) for line in lines] for key in KEYS},
        "best_constant": sampled["best_constant"],
        "sampled": rounded(sampled["models"]),
        "difference": rounded(difference),
        "greedy": rounded(load_results(folder / "greedy")["models"]),
    }


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folders = [Path(folder) for folder in sys.argv[1:]]
    shown = completions_at(folders[-1] / "grpo", [1, 5, 10, -1], count=3)
    shown = [{k: row[k] for k in ("step", "problem", "completion")} for row in shown]
    content = {"runs": [of_run(folder) for folder in folders], "completions": shown}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    Path(__file__).with_name("zero.json").write_text(text + "\n", encoding="utf-8")
