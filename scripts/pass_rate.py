"""Measure how often a model solves each problem, and publish the problems in a range of rates.

python scripts/pass_rate.py --dataset_name DATASET --model_name_or_path MODEL [--num_generations 8]
    [--pass_rate_min 0.1] [--pass_rate_max 0.9] [--output_dataset_name OWNER/NAME | ./FOLDER]
    [--dataset_prompt_column COLUMN] [--reward_funcs NAME ...]
    [--dataset_start_index N --dataset_end_index N]
    [--config RECIPE] [--run_dir FOLDER] [--KEY VALUE ...]

Every key of `r1nb generate --keys` is accepted. A recipe may have all of these keys, under
Open-R1's names too; the command line wins. The same command resumes after a stop. With another
range the completions are rated again, not sampled again.
"""

import sys

from r1nb.jobs import Job, guarded, start_job
from r1nb.pass_rate import rate_run
from r1nb.problems import short_name
from r1nb.publish import PublishConfig, check_publish, push_folder
from r1nb.recipes import merge, parse_overrides, read_stage
from r1nb.runs import Run
from r1nb.settings import InputError, settings
from r1nb.stages import load_stage

# Open-R1's name → r1nb's name.
ALIASES = {
    "dataset_prompt_column": "prompt_column",
    "max_completion_length": "max_new_tokens",
    "model": "model_name_or_path",
}
# Keys of this script, which `generate` does not have, and their defaults.
OWN = {
    "pass_rate_min": "0.1",
    "pass_rate_max": "0.9",
    "output_dataset_name": None,
    "reward_funcs": None,
    "dataset_start_index": None,
    "dataset_end_index": None,
}


def rate(words: dict, config: str | None = None) -> int:
    """Generate the missing completions of a recipe's `words`, rate, publish.

    `config` is the file of the recipe. Returns the exit code."""
    own = {key: words.pop(key, default) for key, default in OWN.items()}
    for key in ("pass_rate_min", "pass_rate_max"):
        try:
            own[key] = float(own[key])
        except (TypeError, ValueError):
            raise InputError(f"{key}: {own[key]!r} is not a number between 0 and 1") from None
    if not 0 <= own["pass_rate_min"] <= own["pass_rate_max"] <= 1:  # before generating
        low, high = own["pass_rate_min"], own["pass_rate_max"]
        raise InputError(
            f"pass_rate_min {low} and pass_rate_max {high} must be in order, between 0 and 1"
        )
    first, last = own["dataset_start_index"], own["dataset_end_index"]
    if first is not None or last is not None:
        words["rows"] = f"[{first or 0}, {last or 'null'}]"
    folder, force = words.pop("run_dir", None), words.pop("force", None) is not None
    words.pop("debug", None)
    for key in ("dataset_name", "model_name_or_path"):
        if not words.get(key):
            where = f"{config} has no {key}" if config else "there is no recipe (--config)"
            raise InputError(f"--{key} is needed: {where}")
    words.setdefault("num_generations", 8)
    target = PublishConfig(own["output_dataset_name"])
    check_publish(target)
    parts = [words[key] for key in ("dataset_name", "model_name_or_path")]
    parts = [part if isinstance(part, list) else [part] for part in parts]
    name = "-".join(short_name(str(p)) for part in parts for p in part)
    run = Run(folder or settings().runs / "pass_rate" / name)
    job = Job("generate", overrides=words, run_dir=str(run.path), force=force)
    if code := start_job(job):
        return code
    funcs = [own["reward_funcs"]] if isinstance(own["reward_funcs"], str) else own["reward_funcs"]
    low, high = own["pass_rate_min"], own["pass_rate_max"]
    found = rate_run(run, low, high, funcs)
    print(
        f"{found['problems']} problems: {found['in_range']} with a pass rate from {low} to {high}, "
        f"{found['never']} never solved, {found['always']} always, "
        f"{found['unknown']} that cannot be verified"
    )
    print(run / "results" / "dataset")
    if target.hub_dataset:
        print(push_folder(run / "results" / "dataset", target, f"pass rates, {name}"))
    return 0


def main() -> int:
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return 0 if arguments else 2

    def run() -> int:
        words = parse_overrides(arguments)
        config = words.pop("config", None)
        aliases = {**load_stage("generate").aliases, **ALIASES}
        return rate(merge(read_stage(config) if config else {}, words, aliases), config)

    return guarded(run, "--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
