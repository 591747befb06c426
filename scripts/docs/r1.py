"""Write scripts/docs/r1.json, what nbs/54_r1.ipynb shows of runs of `make r1`.

    python scripts/docs/r1.py runs/r1 runs/r1-seed1

For each run: the scores of every model on every task, the traces that rejection sampling gave, and
the reward at each step of both reinforcement learnings.
"""

import json
import sys
from pathlib import Path

from r1nb.r1 import stage_scores
from r1nb.runs import Run


def summary(run: Run) -> dict:
    "What the stage's `run` says of itself."
    return run.manifest.get("summary") or {}


def learned(run: Run) -> list[float]:
    "The reward of each step of the GRPO run."
    return [round(line["reward"], 4) for line in run.metrics if "reward" in line]


def of_run(folder: Path) -> dict:
    "What is shown of the pipeline run in `folder`."
    scores = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        for row in stage_scores(folder)
    ]
    select = summary(Run(folder / "select"))
    return {
        "name": folder.name,
        "scores": scores,
        "selected": {k: select[k] for k in ("traces", "kept") if k in select},
        "reward": {name: learned(Run(folder / name)) for name in ("reason", "mixed")},
    }


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    content = {"runs": [of_run(Path(folder)) for folder in sys.argv[1:]]}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    Path(__file__).with_name("r1.json").write_text(text + "\n", encoding="utf-8")
