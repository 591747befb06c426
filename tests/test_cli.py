"""The command line answers at once; bad input gives exit code 2, one message, and no files written.

Most cases run in this process, also what `r1nb` would do in the job's process: importing torch for
each would take many seconds. A few cases run the real command.
"""

import json
import os
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from conftest import R1NB, ROOT, TASK, finish, r1nb, start, wait_for
from nbformat.v4 import new_code_cell, new_notebook

from r1nb import cli, jobs, pipeline, settings
from r1nb.runs import Run, open_run, running
from r1nb.stages import all_stages

HEAVY = {"torch", "transformers", "trl", "papermill", "IPython", "pandas", "datasets", "matplotlib"}


def tree(folder):
    "Every path below `folder` with its contents."
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


@pytest.fixture
def command(here, monkeypatch, capfd):
    "`command(*arguments)`: `code`, `out` and `err` of `r1nb`, with its jobs run in this process."

    def start_here(job):
        return jobs.guarded(lambda: jobs.execute_job(job), debug=job.debug)

    monkeypatch.setattr(jobs, "start_job", start_here)
    monkeypatch.setattr(pipeline, "start_job", start_here)

    def run(*arguments):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as e:  # argparse
            code = e.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def refused(command, here):
    "`refused(arguments, *words)`: exit code 2, one message that contains `words`, nothing written."

    def check(arguments, *words):
        before = tree(here)
        code, out, err = command(*arguments)
        assert code == 2, (code, out, err)
        assert tree(here) == before and not (here / "runs").exists()
        assert "Traceback" not in err and err.count("error:") == 1 and out == ""
        for word in words:
            assert word in err, (word, err)
        return err

    return check


@pytest.fixture
def evaluation(here, tiny_model):
    "Arguments of an evaluation that would work."
    (here / "sums.jsonl").write_text(
        "".join(f'{{"problem": "{i} + 1 =", "answer": "{i + 1}"}}\n' for i in range(20))
    )
    return [
        "evaluate", "--dataset_name", "sums.jsonl", "--model_name_or_path", str(tiny_model),
        "--dtype", "float32",
    ]  # fmt: skip


# ---- answering at once -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "from r1nb.cli import make_parser; make_parser()",
        "from r1nb.cli import main; assert main(['runs']) == 0",
        "from r1nb.cli import main; assert main(['--version']) == 0",
        "from r1nb.cli import main; assert main(['sft', 'stray']) == 2",
    ],
)
def test_the_command_line_imports_nothing_heavy(tmp_path, code):
    code += f"; import sys; assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)"
    env = {**os.environ, "R1NB_RUNS": str(tmp_path / "runs")}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=env, cwd=tmp_path)


def test_the_tab_key_completes_runs(tmp_path):
    from r1nb.runs import Run

    Run(tmp_path / "runs" / "sft" / "first").update(stage="sft", status="completed")
    script = 'eval "$(r1nb --completion bash)"; COMP_CWORD=$1; shift; COMP_WORDS=("$@"); _r1nb; '
    script += 'echo "${COMPREPLY[@]}"'
    env = {
        **os.environ,
        "R1NB_RUNS": str(tmp_path / "runs"),
        "PATH": f"{R1NB.parent}:/bin:/usr/bin",
    }
    for words, found in (
        (["r1nb", "as"], "ask"),
        (["r1nb", "ask", "runs/"], "runs/sft/first"),
        (["r1nb", "grpo", "--model_name_or_path", ""], "runs/sft/first"),
        (["r1nb", "ask", "sf"], "sft/first"),
        (["r1nb", "grpo", "--reward_funcs", "accuracy", "format"], "format format_zero"),
        (["r1nb", "logs", "--f"], "--follow"),
    ):
        command = ["bash", "-c", script, "bash", str(len(words) - 1), *words]
        shown = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert (shown.stdout.strip(), shown.stderr) == (found, "")


def test_help_and_version(tmp_path):
    runs = tmp_path / "runs"
    result = r1nb("--help", cwd=tmp_path, runs=runs)
    assert result.code == 0 and result.err == ""
    for name in (*all_stages(), "pipeline", "run", "runs", "show", "doctor"):
        assert f"\n  {name}" in result.out or f"\n    {name}" in result.out
    result = r1nb("sft", "--help", cwd=tmp_path, runs=runs)
    assert result.code == 0 and "--config RECIPE" in result.out and "--keys" in result.out
    result = r1nb("--version", cwd=tmp_path, runs=runs)
    assert result.code == 0 and result.out.strip().count(".") == 2
    result = r1nb(cwd=tmp_path, runs=runs)
    assert result.code == 2 and "usage: r1nb" in result.out + result.err


def test_keys_are_listed_with_their_defaults(command):
    code, out, err = command("evaluate", "--keys", "num_")
    assert code == 0
    assert "--num_problems  (None)\n      Maximum number of problems" in out
    assert "--temperature" not in out
    assert all("num_" in line for line in out.splitlines() if line.startswith("--"))


# ---- bad input ---------------------------------------------------------------------------------


def test_an_unknown_key_is_named_with_the_nearest(refused, here, evaluation):
    refused(
        [*evaluation, "--num_problms", 3],
        "unknown key 'num_problms'",
        "did you mean 'num_problems'?",
    )
    (here / "r.yaml").write_text("dataset_name: sums.jsonl\ntemperatur: 1\n")
    refused(
        ["evaluate", "--config", "r.yaml"],
        "r.yaml: unknown key 'temperatur'",
        "did you mean 'temperature'?",
    )


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("num_problems", "many", "expected int"),
        ("num_problems", "2.5", "expected int"),
        ("temperature", "hot", "expected float"),
        ("trust_remote_code", "maybe", "expected bool"),
        ("dataset_kwargs", "[1, 2]", "expected dict"),
        ("num_problems", "0", "num_problems: 0 is not positive"),
        ("split", "heldut", "did you mean 'heldout'?"),
        ("dtype", "bfloat61", "did you mean 'bfloat16'?"),
        ("backend", "vlm", "did you mean 'vllm'?"),
        ("models", "{a/b: bundled}", "label 'a/b'"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_valid(refused, evaluation, key, value, words):
    refused([*evaluation, f"--{key}", value], key, words)


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("r.yml", None, "recipe r.yml does not exist"),
        ("rr.yaml", "near", "did you mean 'r.yaml'?"),
        ("r.yaml", "seed: 1\nseed: 2\n", "line 2: key 'seed' is already set in line 1"),
        ("r.yaml", "a: [1\n", "line 2"),
        ("r.yaml", "- a\n- b\n", "a mapping 'key: value' is expected, not a list"),
        (
            "r.yaml#evalute",
            "stages: {evaluate: {}}",
            "no stage 'evalute'; did you mean 'evaluate'?",
        ),
        ("r.yaml", b"a: \xff\n", "r.yaml"),
    ],
)
def test_a_recipe_that_cannot_be_read(refused, here, name, text, words):
    if text is not None:
        (here / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(["evaluate", "--config", name], words)


LINE = '{"problem": "1 + 1 =", "answer": "2"}\n'


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("sum.jsonl", None, ["file sum.jsonl does not exist", "did you mean 'sums.jsonl'?"]),
        ("nowhere/d.jsonl", None, ["nowhere/d.jsonl does not exist", "nor does its folder"]),
        ("d.jsonl", LINE * 16 + '{"problem": "1 +\n' + LINE, ["line 17", "not valid JSON"]),
        ("d.jsonl", LINE * 16 + "[1]\n", ["d.jsonl, line 17", "JSON object is expected, not list"]),
        ("d.jsonl", LINE.encode() + b'{"problem": "\xff"}\n', ["d.jsonl, line 2: not UTF-8"]),
        ("d.jsonl", LINE + '{"text": "", "answer": "2"}\n', ["row 2: no column for 'problem'"]),
        ("d.jsonl", LINE + '{"problem": "1 + 1"}\n', ["row 2: no answer in columns problem"]),
        ("d.jsonl", "", ["d.jsonl has no rows"]),
        ("d.jsonl", "\n\n", ["d.jsonl has no rows"]),
        ("d.parquet", "no parquet", ["d.parquet is not a readable parquet file"]),
        ("d.txt", "1 + 1", ["d.txt", "unknown kind '.txt'; valid: .jsonl, .parquet"]),
        ("folder", None, ["folder folder has 0 .jsonl or .parquet files"]),
        ("reasoning_gym/chain_sums", None, ["did you mean 'chain_sum'?"]),
        ("mth500", None, ["'mth500' is not a file, folder, benchmark or Hub id"]),
    ],
    ids=["missing", "no-folder", "broken-line", "no-object", "no-utf8", "no-problem", "no-answer",
         "empty", "blank", "damaged", "kind", "folder", "task", "benchmark"],
)  # fmt: skip
def test_a_dataset_that_cannot_be_read(refused, here, evaluation, name, text, words):
    (here / "folder").mkdir()
    if text is not None:
        (here / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused([*evaluation, "--dataset_name", name], *words)


def test_traces_that_cannot_be_curated(refused, here, tiny_model):
    arguments = ["curate", "--model_name_or_path", tiny_model]
    refused(arguments, "dataset_name is missing: set it to")
    (here / "t.jsonl").write_text('{"problem": "1 + 1 =", "answer": "2"}\n')
    refused(
        [*arguments, "--dataset_name", "t.jsonl"],
        "t.jsonl, row 1: no column for 'completion'",
        "found problem, answer",
    )
    pd.DataFrame({"problem": []}).to_parquet(here / "e.parquet")
    refused([*arguments, "--dataset_name", "e.parquet"], "e.parquet has no rows")


def test_problems_that_the_scripted_teacher_cannot_work_out(refused, here, tiny_model):
    (here / "legs.jsonl").write_text(
        '{"problem": "How many legs do 3 cats have?", "answer": "12"}\n'
    )
    arguments = ["generate", "--dataset_name", "legs.jsonl", "--model_name_or_path", tiny_model]
    refused(
        [*arguments, "--teacher", "scripted"],
        "chains of sums and differences only",
        "How many legs",
    )
    refused([*arguments, "--teacher", "script"], "did you mean 'scripted'?")


def test_more_problems_than_a_task_has(refused, evaluation):
    task = [
        "--dataset_name",
        TASK["dataset_name"],
        "--dataset_kwargs",
        "{max_terms: 2, max_digits: 1}",
    ]
    refused(
        [*evaluation, *task, "--num_problems", 5000], "has only", "fewer than num_problems 5000"
    )
    refused([*evaluation, *task[:2], "--dataset_kwargs", "{max_term: 2}"], "max_term")


def test_a_model_that_is_not_there(refused, here, evaluation):
    (here / "models" / "small").mkdir(parents=True)
    refused(
        [*evaluation, "--model_name_or_path", "./models/smal"],
        "'./models/smal' is no",
        "did you mean 'small'?",
    )
    refused([*evaluation, "--model_name_or_path", "models/small"], "models/small: no config.json")
    refused([*evaluation, "--model_name_or_path", here / "gone" / "model"], "gone does not exist")
    data = ["evaluate", "--dataset_name", "sums.jsonl"]
    refused([*data, "--models", "{base: ./nothing}"], "./nothing")
    both = [*evaluation, "--models", "{base: bundled}"]
    refused(both, "models and model_name_or_path are both given: base, and")


@pytest.fixture
def small_disk(tmp_path_factory):
    "A file system of one MiB."
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_an_output_folder_that_cannot_be_written(refused, here, evaluation):
    (here / "file").write_text("")
    for option in ("--run-dir", "--run_dir", "--output_dir"):
        refused([*evaluation, option, "file"], "is a file", "choose another")
    refused(
        [*evaluation, "--run-dir", "file/below/it"], f"{here / 'file'} is a file", "choose another"
    )
    refused(
        [*evaluation, "--run-dir", "/proc/r1nb-test"],
        "/proc/r1nb-test cannot be written",
        "choose another",
    )


def test_an_output_folder_on_a_full_disk(refused, small_disk, evaluation):
    refused([*evaluation, "--run-dir", small_disk / "run"], "MiB free", "choose another")
    (small_disk / "rest").write_bytes(bytes(2**20 - len(os.listdir(small_disk)) - 8192))
    with pytest.raises(OSError), open(small_disk / "more", "wb") as f:
        f.write(bytes(2**20))
    refused([*evaluation, "--run-dir", small_disk / "run"], str(small_disk), "choose another")
    assert sorted(os.listdir(small_disk)) == ["more", "rest"]


def test_settings_that_cannot_be_read(refused, here, evaluation, monkeypatch):
    settings_file = here / "site.ini"
    settings_file.write_text("[paths]\nruns = runs\n[slurm]\npartiton = a\n")
    monkeypatch.setenv("R1NB_SETTINGS", str(settings_file))
    for arguments in (
        evaluation,
        ["runs"],
        ["pipeline", str(ROOT / "scripts" / "recipes" / "quickstart.yaml")],
    ):
        settings.settings.cache_clear()
        refused(arguments, "unknown key 'partiton' in [slurm]; did you mean 'partition'?")


def test_a_run_folder_with_another_configuration(command, here, evaluation):
    code, out, err = command(*evaluation, "--num_problems", 0)
    assert code == 2
    run = open_run(here / "old", "evaluate", {"num_problems": 3})
    before = tree(here)
    code, out, err = command(*evaluation, "--num_problems", 4, "--run-dir", run.path)
    assert code == 2 and "num_problems: 3 -> 4" in err and "--force" in err and tree(here) == before
    code, out, err = command("curate", "--dataset_name", here, "--run-dir", run.path)
    assert code == 2 and tree(here) == before


def test_debug_shows_the_traceback(command, evaluation):
    arguments = [*evaluation, "--num_problems", "many"]
    assert "Traceback" not in command(*arguments)[2]
    code, out, err = command(*arguments, "--debug")
    assert code == 2 and "Traceback (most recent call last)" in err and "expected int" in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["sfft"], "invalid choice: 'sfft'"),
        (["sft", "stray"], "'stray': recipe keys are given as --key value"),
        (["runs", "--jsn"], "unknown option --jsn"),
        (["show"], "run"),
        (["show", "nothing"], "no run 'nothing'"),
        (["doctor", "--fix"], "unknown option --fix"),
        (["pipeline"], "recipe"),
        (["pipeline", "gone.yaml"], "recipe gone.yaml does not exist"),
    ],
)
def test_a_command_that_is_not_one(refused, arguments, words):
    refused(arguments, words)


# ---- pipelines ---------------------------------------------------------------------------------

PIPELINE = """name: demo
stages:
  generate:
    dataset_name: reasoning_gym/chain_sum
    num_problems: 4
    teacher: scripted
    model_name_or_path: {model}
  curate: {{dataset_name: "${{generate}}", model_name_or_path: {model}}}
  {last}
"""


@pytest.mark.parametrize(
    "last, options, words",
    [
        ("evalute: {}", "", "stage 'evalute': unknown stage 'evalute'; did you mean 'evaluate'?"),
        ("score: {stage: evalute}", "", "stage 'score': unknown stage 'evalute'"),
        (
            'evaluate: {model_name_or_path: "${sft}"}',
            "",
            "evaluate.model_name_or_path: ${sft} is not an earlier stage",
        ),
        ('evaluate: {models: {a: "${evaluate}"}}', "", "${evaluate} is not an earlier stage"),
        (
            "evaluate: {}\nstagse: {}",
            "",
            "unknown key 'stagse' of a pipeline; did you mean 'stages'?",
        ),
        ("evaluate: {}", "--from evalute", "no stage 'evalute'"),
        (
            "evaluate: {}",
            "--evalute.num_problems 3",
            "overrides of a pipeline are given as stage.key",
        ),
        ("evaluate: {}", "--num_problems 3", "overrides of a pipeline are given as stage.key"),
    ],
)
def test_a_pipeline_recipe_with_a_slip(refused, here, tiny_model, last, options, words):
    (here / "p.yaml").write_text(PIPELINE.format(model=tiny_model, last=last))
    refused(["pipeline", "p.yaml", *options.split()], words)


@pytest.mark.parametrize(
    "last, words",
    [
        (
            "evaluate: {num_problms: 3}",
            ["p.yaml#evaluate: unknown key 'num_problms'", "did you mean 'num_problems'?"],
        ),
        ("evaluate: {num_problems: many}", ["p.yaml#evaluate: num_problems: 'many'"]),
        (
            "evaluate: {model_name_or_path: MODEL, dataset_name: gone.jsonl}",
            ["evaluate", "gone.jsonl does not exist"],
        ),
        ("evaluate: {model_name_or_path: ./gone}", ["evaluate", "'./gone' is not a folder"]),
        (
            "grpo: {model_name_or_path: MODEL, reward_funcs: [acuracy]}",
            ["grpo", "did you mean 'accuracy'?"],
        ),
    ],
    ids=["key", "type", "dataset", "model", "reward"],
)
def test_the_last_stage_is_checked_before_the_first_starts(tmp_path, tiny_model, last, words):
    recipe, runs = tmp_path / "p.yaml", tmp_path / "runs"
    recipe.write_text(
        PIPELINE.format(model=tiny_model, last=last.replace("MODEL", str(tiny_model)))
    )
    result = r1nb("pipeline", "p.yaml", cwd=tmp_path, runs=runs)
    assert result.code == 2, result.err
    assert "Traceback" not in result.err and result.out == "" and not runs.exists()
    assert result.err.count("error:") == 1
    for word in words:
        assert word in result.err


# ---- the real command --------------------------------------------------------------------------


def test_bad_input_through_the_real_command(tmp_path, tiny_model):
    "One case a process: a stage with TRL's configuration, one without, an unknown command."
    runs = tmp_path / "runs"
    grpo = [
        "grpo", "--dataset_name", TASK["dataset_name"], "--num_problems", 4,
        "--model_name_or_path", tiny_model,
    ]  # fmt: skip
    (tmp_path / "d.jsonl").write_text(LINE * 16 + "{\n")
    for arguments, words in [
        (
            [*grpo, "--reward_funcs", "acuracy"],
            "unknown reward 'acuracy'; did you mean 'accuracy'?",
        ),
        (
            [*grpo, "--learning_rat", "1e-4"],
            "unknown key 'learning_rat'; did you mean 'learning_rate'?",
        ),
        (
            ["evaluate", "--dataset_name", "d.jsonl", "--model_name_or_path", tiny_model],
            "d.jsonl, line 17",
        ),
        (["evalute"], "invalid choice: 'evalute'"),
    ]:
        result = r1nb(*arguments, cwd=tmp_path, runs=runs)
        assert result.code == 2, result.err
        assert words in result.err
        assert "Traceback" not in result.err
        assert result.out == ""
        assert not runs.exists()


def test_doctor(tmp_path):
    result = r1nb("doctor", cwd=tmp_path, runs=tmp_path / "runs")
    lines = {line[:16].strip(): line for line in result.out.splitlines()[2:]}
    assert {
        "machine",
        "settings",
        "torch",
        "trl",
        "run folder",
        "CUDA",
        "vLLM",
        "Slurm",
        "Hub",
    } <= set(lines)
    import torch

    assert " ok " in lines["torch"] and torch.__version__ in lines["torch"]
    assert (" ok " in lines["CUDA"]) == torch.cuda.is_available()
    assert result.code == int(any(" FAIL " in line for line in lines.values()))
    assert "Traceback" not in result.err and not (tmp_path / "runs").exists()


# ---- looking at runs ---------------------------------------------------------------------------


def test_no_runs(command, here):
    code, out, err = command("runs")
    assert (code, err) == (0, "") and out == f"no runs below {here / 'runs'}\n"
    assert command("runs", "--json") == (0, "", "")
    assert command("runs", "--stage", "sft")[1] == f"no runs below {here / 'runs'} of stage 'sft'\n"


def test_runs_and_show(command, here):
    a = open_run(here / "runs" / "sft" / "a", "sft", {"learning_rate": 1e-4}, seed=3)
    with running(a) as summary:
        a.log(1, loss=2.0)
        a.log(2, loss=1.5)
        summary["steps"] = 2
    b = open_run(here / "runs" / "grpo" / "a", "grpo", {})
    with pytest.raises(ZeroDivisionError), running(b):
        b.log(1, reward=0.25)
        raise ZeroDivisionError("by zero")
    code, out, err = command("runs", "--json")
    rows = {row["run"]: row for row in map(json.loads, out.splitlines())}
    assert {name: (row["state"], row["step"], row["last"]) for name, row in rows.items()} == {
        "sft/a": ("completed", 2, "loss 1.5"), "grpo/a": ("failed", 1, "reward 0.25"),
    }  # fmt: skip
    code, out, err = command("runs")
    head, _, *lines = out.splitlines()
    assert head.split()[:3] == ["run", "stage", "state"] and len(lines) == 2
    code, out, err = command("runs", "--stage", "sft")
    assert "sft/a" in out and "grpo" not in out

    code, out, err = command("show", "sft/a")
    assert code == 0
    for words in (
        "stage: sft",
        "status: completed",
        "learning_rate: 0.0001",
        "seed: 3",
        "steps: 2",
        "revision:",
    ):
        assert words in out or words == "revision:" and not (ROOT / ".git").exists()
    assert "error: 'ZeroDivisionError: by zero'" in command("show", b.path)[1]
    code, out, err = command("show", "a")
    assert code == 2 and "'a' names 2 runs" in err

    with open(a / "metrics.jsonl", "a") as f:
        f.write('{"step": 3, "lo')  # a writer that has not finished, or never will
    before = tree(here)
    assert json.loads(command("runs", "--json", "--stage", "sft")[1])["step"] == 2
    assert tree(here) == before  # looking changes nothing
    (a / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    assert json.loads(command("runs", "--json", "--stage", "sft")[1])["step"] == "?"


def test_the_name_of_a_run_stands_for_its_folder(here, evaluation):
    data = open_run(here / "runs" / "data" / "sums", "curate", {})
    with running(data):
        (data / "dataset").mkdir()
        (here / "sums.jsonl").rename(data / "dataset" / "train.jsonl")
    more = ("--dataset_name", "data/sums", "--num_problems", 2, "--max_new_tokens", 2)
    done = r1nb(*evaluation, *more, "--run-dir", "scores", cwd=here, runs=here / "runs")
    assert done.code == 0, done.err
    manifest = Run(here / "scores").manifest
    assert manifest["config"]["dataset_name"] == str(data.path)
    assert manifest["parents"] == [str(data.path)]


def test_output_into_a_closed_pipe(tmp_path):
    "`r1nb runs | head -1` ends without an error."
    for i in range(3):
        open_run(tmp_path / "runs" / "sft" / f"{i}", "sft", {})
    env = {**os.environ, "R1NB_RUNS": str(tmp_path / "runs")}
    command = ["bash", "-c", f"set -o pipefail; '{R1NB}' runs --json | true"]
    result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert result.stderr == "" and result.returncode == 0


def test_a_run_is_followed_and_cancelled(tmp_path):
    code = "import time\nfor i in range(10000): print('tick', i); time.sleep(0.1)"
    nb = new_notebook(cells=[new_code_cell(code)])
    nbformat.write(nb, tmp_path / "ticks.ipynb")
    runs, log = tmp_path / "runs", tmp_path / "runs/one/logs/rank-0.log"
    (tmp_path / "follow").mkdir()
    process = start("run", "ticks.ipynb", "--run-dir", "runs/one", cwd=tmp_path, runs=runs)
    wait_for(lambda: log.exists() and "tick 9\n" in log.read_text(), "ten ticks", process)
    follower = start("logs", "one", "-f", cwd=tmp_path / "follow", runs=runs)
    wait_for(
        lambda: "tick 0\n" in (tmp_path / "follow/out.txt").read_text(),
        "what was printed",
        follower,
    )
    (tmp_path / "cancel").mkdir()
    cancelled = r1nb("cancel", "one", cwd=tmp_path / "cancel", runs=runs)
    assert cancelled.code == 0 and "told to stop" in cancelled.out, cancelled.err
    assert finish(process, tmp_path).code == 130
    followed = finish(follower, tmp_path / "follow")
    assert followed.code == 0 and followed.out == log.read_text() and "tick 9" in followed.out
    again = r1nb("cancel", "one", cwd=tmp_path / "cancel", runs=runs)
    assert again.code == 2 and "is not running: it is interrupted" in again.err
    missing = r1nb("logs", "one", "--rank", 3, cwd=tmp_path / "cancel", runs=runs)
    assert missing.code == 2 and "no log of rank 3" in missing.err and "rank-0.log" in missing.err


def test_a_list_of_runs_needs_no_transformers():
    "`r1nb runs` answers in less than a second, while importing transformers takes several."
    code = "import sys, r1nb.cli, r1nb.report; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
