"Traces and problems: generated, interrupted, filtered, decontaminated, rated, published."

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml
from conftest import ROOT, finish, r1nb, start, succeeds, wait_for

from r1nb.runs import Run, read_log

LIMIT = ("--max_new_tokens", 8, "--dtype", "float32")


def script(name, *arguments, cwd, deadline=300):
    "Run a script of `scripts/` in a process."
    env = {**os.environ, "R1NB_RUNS": str(cwd / "runs"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "scripts" / name, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=deadline
    )


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def server(tiny_model):
    "`server(port)` starts a process that serves the tiny model; all are killed after the test."
    started = []

    def serve(port):
        process = subprocess.Popen(
            [sys.executable, ROOT / "tests/model_server.py", tiny_model, str(port)]
        )
        started.append(process)
        return process

    yield serve
    for process in started:
        process.kill()
        process.wait()


def connects(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def processes_of(folder):
    "Command lines that name `folder`."
    command = ["ps", "-ww", "-eo", "args"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(folder) in line]


def problems(path, n=30):
    "A file of `n` problems under another column's name, without answers."
    rows = [{"question": f"What is {a} + {a + 1}?", "extra": a} for a in range(n)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.slow
def test_open_r1_arguments_and_a_server_that_dies(server, tiny_model, tmp_path):
    """generate.py accepts open-r1's arguments.

    One of two servers is killed and restarted; then the command itself is killed, and resumes.
    """
    ports = [free_port(), free_port()]
    second = [server(port) for port in ports][1]
    wait_for(lambda: all(map(connects, ports)), "two servers", second)
    problems(tmp_path / "asked.jsonl")
    arguments = (
        "generate", "--hf-dataset", "asked.jsonl", "--prompt-column", "question",
        "--model", tiny_model, "--prompt-template", "Reason.\n{{ instruction }}",
        "--temperature", 0.8, "--top-p", 0.9, "--max-new-tokens", 8, "--num-generations", 4,
        "--input-batch-size", 2, "--client-replicas", 2, "--timeout", 60, "--retries", 20,
        "--hf-output-dataset", "./published", "--run-dir", "run",
        "--vllm-server-url", *(f"http://127.0.0.1:{p}/v1" for p in ports),
    )  # fmt: skip
    file = tmp_path / "run/dataset/traces.jsonl"
    process = start(*arguments, cwd=tmp_path, runs=tmp_path)
    wait_for(lambda: len(read_log(file)) >= 10, "ten traces", process)
    second.kill()
    had = len(read_log(file))
    wait_for(lambda: len(read_log(file)) >= had + 5, "traces from the other server", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {(r["problem_id"], r["sample"]): r["text"] for r in read_log(file)}
    server(ports[1])
    result = succeeds(*arguments, cwd=tmp_path)
    rows = read_log(file)
    # none lost, none twice
    assert len(rows) == len({(r["problem_id"], r["sample"]) for r in rows}) == 120
    assert all(r["text"] == before.get((r["problem_id"], r["sample"]), r["text"]) for r in rows)
    assert "tok/s" in result.err
    from datasets import load_dataset

    published = load_dataset(str(tmp_path / "published"), cache_dir=str(tmp_path / "cache"))[
        "train"
    ]
    assert len(published) == 120
    assert set(published["problem"]) == {f"What is {a} + {a + 1}?" for a in range(30)}
    card = (tmp_path / "published/README.md").read_text()
    assert "temperature: 0.8" in card and "num_generations: 4" in card and "Reason." in card
    assert Run(tmp_path / "run").manifest["summary"]["published"] == str(tmp_path / "published")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt_template", "Solve it"), ("does not use {{ instruction }}",)),
        (
            ("--prompt_template", "{{ instruction }} {{ ''.__class__ }}"),
            ("only {{ instruction }} is replaced",),
        ),
        (("--prompt_template", "{{ problem }}"), ("unknown name 'problem'",)),
        (
            ("--prompt_template", "{% for c in instruction %}{{ c }}{% endfor %}"),
            ("unknown name 'c'",),
        ),
        (("--prompt_column", "prompt"), ("row 1: no column 'prompt'", "question, extra")),
        (("--hub_dataset", "owner/x"), ("owner/x cannot be pushed to", "offline")),
        (("--hub_dataset", "traces"), ("'traces' is not a Hub id",)),
        (("--pipeline", "distilable"), ("did you mean 'distilabel'?",)),
        (("--rows", "[5, 2]"), ("rows: [5, 2]",)),
    ],
)
def test_what_generate_refuses(tiny_model, tmp_path, arguments, words):
    problems(tmp_path / "asked.jsonl")
    more = () if "--prompt_column" in arguments else ("--prompt_column", "question")
    result = r1nb(
        "generate", "--dataset_name", "asked.jsonl", "--model", tiny_model, *more, *arguments,
        "--run-dir", "run", cwd=tmp_path, runs=tmp_path,
    )  # fmt: skip
    assert result.code == 2 and all(w in result.err for w in words), result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_distilabel_pipeline_gives_the_same_traces(tiny_model, tmp_path):
    """distilabel gives the same traces as r1nb's own sampler, and its dataset is written.

    An interrupted pipeline leaves no process behind, and resumes.
    """
    pytest.importorskip("distilabel")
    problems(tmp_path / "asked.jsonl", 6)
    options = (
        "generate", "--dataset_name", "asked.jsonl", "--prompt_column", "question",
        "--model", tiny_model, *LIMIT, "--backend", "transformers", "--num_generations", 2,
        "--batch_size", 4,
    )  # fmt: skip
    succeeds(*options, "--run-dir", "direct", cwd=tmp_path)
    process = start(
        *options, "--pipeline", "distilabel", "--run-dir", "piped", cwd=tmp_path, runs=tmp_path
    )
    wait_for(lambda: read_log(tmp_path / "piped/dataset/traces.jsonl"), "a first trace", process)
    assert processes_of(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert finish(process, tmp_path).code in (0, 143)
    wait_for(lambda: not processes_of(tmp_path), "an end of its processes")
    succeeds(*options, "--pipeline", "distilabel", "--run-dir", "piped", cwd=tmp_path)
    a, b = (
        pd.read_parquet(tmp_path / name / "dataset/train.parquet") for name in ("direct", "piped")
    )
    assert len(a) == 12 and a.completion.tolist() == b.completion.tolist()
    from datasets import load_from_disk

    kept = load_from_disk(str(tmp_path / "piped/distiset/default"))["train"]
    assert sorted(map(len, kept["generation"])) == [2] * 6
    assert (tmp_path / "piped/distiset/distiset_configs/pipeline.yaml").exists()


@pytest.mark.slow
@pytest.mark.vllm
def test_the_distilabel_example_of_open_r1(tmp_path):
    "distilabel's own vLLM class, as open-r1's example of 2025 uses it, by `r1nb distilabel`."
    pytest.importorskip("distilabel")
    pytest.importorskip("vllm")
    from r1nb.models import resolve_model

    (tmp_path / "example.py").write_text(
        "from datasets import Dataset\n"
        "from distilabel.models import vLLM\n"
        "from distilabel.pipeline import Pipeline\n"
        "from distilabel.steps.tasks import TextGeneration\n"
        f"model_id = {resolve_model('bundled')!r}\n"
        "with Pipeline(name='distill', description='as pasted') as pipeline:\n"
        "    llm = vLLM(model=model_id, tokenizer=model_id,\n"
        "               extra_kwargs={'tensor_parallel_size': 1, 'max_model_len': 512},\n"
        "               generation_kwargs={'temperature': 0.6, 'max_new_tokens': 16})\n"
        "    TextGeneration(llm=llm, template='Solve:\\n{{ instruction }}', num_generations=2,\n"
        "                   input_mappings={'instruction': 'problem'})\n"
        "if __name__ == '__main__':\n"
        "    rows = Dataset.from_list([{'problem': f'{i} + 1'} for i in range(3)])\n"
        "    distiset = pipeline.run(dataset=rows, use_cache=False)\n"
        "    distiset['default']['train'].to_json('out.jsonl')\n"
    )
    result = r1nb("distilabel", "example.py", cwd=tmp_path, runs=tmp_path, deadline=400)
    assert result.code == 0, result.err[-3000:]
    rows = pd.read_json(tmp_path / "out.jsonl", lines=True)
    assert len(rows) == 6 and rows.generation.str.len().min() > 0


@pytest.fixture
def traces(tmp_path):
    "A file of right and wrong traces."
    right, where = "<think>\n{a} + {b} = {c}\n</think>\n\\boxed{{{c}}}", tmp_path / "traces.jsonl"
    rows = []
    for i in range(40):
        base = {
            "problem": f"Person {i} has {i} apples and buys {i + 1} more. "
            f"How many does person {i} have?",
            "answer": str(2 * i + 1),
        }
        good = right.format(a=i, b=i + 1, c=2 * i + 1)
        rows += [
            {**base, "completion": good},
            {**base, "completion": good.replace(f"{{{2 * i + 1}}}", "{-5}")},
        ]
    asked = {"problem": "What is 1 + 1?", "answer": "2"}
    rows += [
        {**asked, "completion": t}
        for t in (
            "<think>\n所以答案是二，因为一加一等于二。\n</think>\n\\boxed{2}",
            "<think>\n" + "so it is two and then again we get " * 9 + "\n</think>\n\\boxed{2}",
            "\\boxed{2}",
            "<think>\none and one\n</think>\n\\boxed{2}",
            "<think>\none and one\n</think>\n\\boxed{2}",
        )
    ]
    where.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return where


def test_every_step_of_curate(traces, tiny_model, tmp_path):
    """Each step removes the trace that it must, keeps the one that it must, and lists what matched.

    The split is by problem.
    """
    (tmp_path / "test.jsonl").write_text(
        json.dumps(
            {"problem": "Then Person 7 has 7 apples and buys 8 more. Say how many.", "answer": "15"}
        )
        + "\n"
    )
    rates = pd.DataFrame(
        [{"problem": r["problem"], "i": i // 2} for i, r in enumerate(read_log(traces))]
    )
    from r1nb.problems import problem_id

    ids = [problem_id(p) for p in rates.problem]
    pd.DataFrame({"problem_id": ids, "correct": [i < 38 for i in rates.i]}).to_parquet(
        tmp_path / "rates.parquet"
    )
    (tmp_path / "recipe.yaml").write_text(
        "dataset_name: traces.jsonl\n"
        "steps: [format, correct, language, repetition, distinct, decontaminate, pass_rate,"
        " per_problem]\n"
        "benchmarks: [test.jsonl]\n"
        "pass_rates: rates.parquet\n"
        "max_pass_rate: 1\n"
        "heldout_fraction: 0.25\n"
    )
    options = (
        "curate", "--config", "recipe.yaml", "--model_name_or_path", tiny_model,
        "--run-dir", "run", "--hub_dataset", "./corpus",
    )  # fmt: skip
    succeeds(*options, cwd=tmp_path)
    counts = {
        r["step"]: r["removed"]
        for r in json.loads((tmp_path / "run/results/funnel.json").read_text())
    }
    assert counts == {
        "traces": 0,
        "format": 1,
        "correct": 40,
        "language": 1,
        "repetition": 1,
        "distinct": 1,
        "decontaminate": 1,
        "pass_rate": 3,
        "per_problem": 0,
    }
    removed = {r["step"]: r for r in read_log(tmp_path / "run/results/removed.jsonl")}
    assert "han" in removed["language"]["reason"] and "repeated" in removed["repetition"]["reason"]
    (match,) = read_log(tmp_path / "run/results/decontaminate.jsonl")
    assert "person 7 has 7 apples and buys 8 more." in match["reason"]
    assert match["problem"].startswith("Person 7")
    train, heldout = (
        pd.read_parquet(tmp_path / f"run/dataset/{s}.parquet") for s in ("train", "heldout")
    )
    assert len(train) + len(heldout) == 37
    assert not set(train.problem_id) & set(heldout.problem_id)
    assert len(heldout) > 3
    assert not (tmp_path / "run/work").exists()
    from datasets import load_dataset

    corpus = load_dataset(str(tmp_path / "corpus"), cache_dir=str(tmp_path / "cache"))
    assert {k: len(v) for k, v in corpus.items()} == {"train": len(train), "heldout": len(heldout)}


def test_a_mixture_takes_problems_by_weight(traces, tiny_model, tmp_path):
    options = (
        "curate", "--dataset_name", "traces.jsonl", "traces.jsonl", "--weights", 1, 0.5,
        "--steps", "finished", "--model_name_or_path", tiny_model, "--run-dir", "run",
    )  # fmt: skip
    succeeds(*options, cwd=tmp_path)
    table = pd.read_parquet(tmp_path / "run/dataset/train.parquet")
    of_problem = table[table.problem.str.startswith("Person")].problem_id.value_counts()
    assert len(of_problem) == 40
    assert set(of_problem) == {2, 4}
    assert 8 <= (of_problem == 4).sum() <= 32
    both = ("--weights", 1, 0.5, "--heldout_fraction", 0.4, "--run-dir", "both")
    succeeds(*options[:4], *both, *options[7:-2], cwd=tmp_path)
    sides = [pd.read_parquet(tmp_path / f"both/dataset/{s}.parquet") for s in ("train", "heldout")]
    # the weights are independent of the split
    twice = [(t.problem_id.value_counts() == 4).mean() for t in sides]
    assert not set(sides[0].problem_id) & set(sides[1].problem_id)
    assert all(0.1 < share < 0.9 for share in twice)
    bad = r1nb(*options[:6], 1, 0.5, 0.2, *options[8:], "--force", cwd=tmp_path, runs=tmp_path)
    assert bad.code == 2 and "weights" in bad.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "corect"), ("did you mean 'correct'?",)),
        (("--steps", "decontaminate", "--benchmarks", "aime99"), ("aime99",)),
        (
            ("--steps", "decontaminate", "--benchmarks", "none.jsonl"),
            ("none.jsonl does not exist",),
        ),
        (
            ("--steps", "pass_rate", "--pass_rates", "traces.jsonl"),
            ("pass_rate (or correct) are needed",),
        ),
        (("--scripts", "latin", "greek"), ("scripts: 'greek'",)),
        (("--min_pass_rate", 0.9, "--max_pass_rate", 0.1), ("min_pass_rate: 0.9 is above",)),
    ],
)
def test_what_curate_refuses(traces, tiny_model, tmp_path, arguments, words):
    options = (
        "curate", "--dataset_name", "traces.jsonl", "--model_name_or_path", tiny_model,
        "--run-dir", "run",
    )  # fmt: skip
    result = r1nb(*options, *arguments, cwd=tmp_path, runs=tmp_path)
    assert result.code == 2 and all(w in result.err for w in words), result.err
    assert not (tmp_path / "run").exists()


def test_a_killed_curation_resumes(traces, tiny_model, tmp_path):
    "After SIGKILL during verification no trace is judged again, and the result is the same."
    rows, copies = read_log(traces), 180  # enough work that the kill comes before the end
    big = tmp_path / "big.jsonl"
    big.write_text(
        "".join(
            json.dumps({**r, "problem": f"{k}: {r['problem']}"}) + "\n"
            for k in range(copies)
            for r in rows
        )
    )
    options = (
        "curate", "--dataset_name", "big.jsonl", "--steps", "correct", "distinct",
        "--model_name_or_path", tiny_model, "--run-dir", "run",
    )  # fmt: skip
    process = start(*options, cwd=tmp_path, runs=tmp_path)
    judged = tmp_path / "run/work/00/correct.bin"
    wait_for(lambda: judged.exists() and judged.stat().st_size >= 1024, "a judged batch", process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    records = bytearray(judged.read_bytes())
    assert 0 < len(records) < copies * 85 and records[0] == 1
    records[0] = 0  # a right answer, marked as wrong: it stays wrong unless it is judged again
    judged.write_bytes(records)
    succeeds(*options, cwd=tmp_path)
    counts = [
        (r["step"], r["kept"])
        for r in json.loads((tmp_path / "run/results/funnel.json").read_text())
    ]
    assert counts == [
        ("traces", copies * 85),
        ("correct", copies * 45 - 1),
        ("distinct", copies * 44 - 1),
    ]


def test_decontaminate_marks_or_removes(tmp_path):
    """Exactly the planted problems are found, and all columns are kept.

    Without --cleanup rows are only marked.
    """
    planted = [
        f"Find the number of apples that are left when {i} friends share them evenly at the market."
        for i in range(20)
    ]
    (tmp_path / "test.jsonl").write_text(
        "".join(json.dumps({"problem": p, "answer": "1"}) + "\n" for p in planted)
    )
    rows = [
        {
            "id": i,
            "task": p
            if i % 2
            else f"Compute the {i}-th prime and explain how one finds it quickly.",
        }
        for i, p in enumerate(p for p in planted for _ in range(2))
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "mine.parquet")
    options = (
        "--dataset", "mine.parquet", "--problem_column", "task", "--benchmarks", "test.jsonl",
    )  # fmt: skip
    done = script("decontaminate.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    marked = pd.read_parquet(tmp_path / "mine_decontaminated/data")
    assert marked["contaminated_test.jsonl"].tolist() == [i % 2 == 1 for i in range(40)]
    assert marked.id.tolist() == list(range(40))
    done = script(
        "decontaminate.py", *options, "--cleanup", "--new_dataset_name", "./clean", cwd=tmp_path
    )
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[0])["contaminated"] == {"test.jsonl": 20}
    assert pd.read_parquet(tmp_path / "clean/data").id.tolist() == list(range(0, 40, 2))
    assert len(read_log(tmp_path / "clean/matches.jsonl")) == 20
    for wrong, word in (
        (("--dataset", "none.parquet"), "none.parquet does not exist"),
        (("--problem_column", "x"), "no column 'x'"),
        (("--ngram_size", "0"), "--ngram_size: 0"),
        (("--new_dataset_name", "a"), "'a' is not a Hub id"),
    ):
        done = script("decontaminate.py", *options, *wrong, cwd=tmp_path)
        assert done.returncode == 2 and word in done.stderr, done.stderr


@pytest.mark.slow
def test_pass_rates_are_sampled_once_and_used(tiny_model, tmp_path):
    """pass_rate.py accepts the arguments of open-r1's compute_pass_rate.py.

    A second range is rated without sampling again, and curate accepts the run.
    """
    (tmp_path / "p.jsonl").write_text(
        "".join(
            json.dumps({"problem": f"What is {a} + 1?", "answer": str(a + 1)}) + "\n"
            for a in range(6)
        )
    )
    options = (
        "--dataset_name", "p.jsonl", "--model_name_or_path", tiny_model, "--num_generations", 4,
        "--temperature", 1.0, "--max_completion_length", 8, "--dtype", "float32",
        "--dataset_start_index", 1, "--dataset_end_index", 5, "--run_dir", "run",
    )  # fmt: skip
    done = script("pass_rate.py", *options, "--output_dataset_name", "./rated", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    # the model is random
    assert "4 problems: 0 with a pass rate from 0.1 to 0.9, 4 never solved" in done.stdout
    drawn = (tmp_path / "run/dataset/traces.jsonl").stat().st_mtime_ns
    again = script("pass_rate.py", *options, "--pass_rate_min", 0, cwd=tmp_path)
    assert again.returncode == 0 and "4 with a pass rate from 0.0 to 0.9" in again.stdout
    assert (tmp_path / "run/dataset/traces.jsonl").stat().st_mtime_ns == drawn
    from datasets import load_dataset

    rows = load_dataset(str(tmp_path / "rated"), "default", cache_dir=str(tmp_path / "cache"))[
        "train"
    ]
    assert len(rows) == 4 and [len(r) for r in rows["pass_rate_generations"]] == [4] * 4
    # The same as a recipe, under Open-R1's names; the command line wins.
    keys = {k.removeprefix("--"): v for k, v in zip(options[::2], options[1::2], strict=True)}
    keys |= {"model_name_or_path": str(tiny_model), "pass_rate_min": 0, "pass_rate_max": 0.5}
    keys |= {"reward_funcs": ["accuracy"]}
    (tmp_path / "rate.yaml").write_text(yaml.safe_dump(keys))
    command = ("pass_rate.py", "--config", "rate.yaml", "--pass_rate_max", 0.4)
    again = script(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "4 with a pass rate from 0.0 to 0.4" in again.stdout
    assert (tmp_path / "run/dataset/traces.jsonl").stat().st_mtime_ns == drawn
    refused = script("pass_rate.py", "--dataset_name", "p.jsonl", cwd=tmp_path)
    assert refused.returncode == 2 and "--model_name_or_path is needed" in refused.stderr
    kept = r1nb(
        "curate", "--dataset_name", "run/dataset", "--steps", "pass_rate", "--pass_rates", "run",
        "--min_pass_rate", 0, "--model_name_or_path", tiny_model, "--run-dir", "kept",
        cwd=tmp_path, runs=tmp_path,
    )  # fmt: skip
    assert kept.code == 0, kept.err[-2000:]
    assert len(pd.read_parquet(tmp_path / "kept/dataset/train.parquet")) == 16


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Ten times as many rows take no more memory, except for a few bytes a row.

    A step that lists what it removes removes thousands.
    """
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"problem": "this is a problem of the test number one", "answer": "1"}) + "\n"
    )
    code = (
        "import sys, json, resource\nfrom pathlib import Path\nfrom r1nb.curate import *\n"
        "from r1nb.recipes import configure\n"
        "from r1nb.runs import open_run, read_log\n"
        "n, d = int(sys.argv[1]), Path(sys.argv[2])\n"
        "with open(d/'t.jsonl', 'w') as f:\n"
        "    for i in range(n):\n"
        "        about = 'this is a problem of the test number one' if i % 3 == 0 else 'one'\n"
        "        text = '<think>' + 'a thought that goes on ' * 100 + f'{i}</think>{i}'\n"
        "        row = {'problem': f'{about} {i}', 'completion': text,\n"
        "               'num_tokens': 9, 'finish_reason': 'stop'}\n"
        "        f.write(json.dumps(row) + chr(10))\n"
        "cfg, written = configure(stage, {'dataset_name': str(d/'t.jsonl'),\n"
        "    'benchmarks': [str(d.parent/'test.jsonl')],\n"
        "    'steps': ['finished', 'format', 'repetition', 'distinct', 'decontaminate',\n"
        "              'per_problem'],\n"
        "    'max_repeated': 1})\n"
        "summary = run_curate(open_run(d/'run', 'curate', written), *cfg)\n"
        "listed = read_log(d/'run/results/decontaminate.jsonl')\n"
        "assert summary['removed_decontaminate'] == n // 3 == len(listed), summary\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    peak = []
    for n in (3000, 30000):
        (tmp_path / str(n)).mkdir()
        command = [sys.executable, "-c", code, str(n), tmp_path / str(n)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        peak.append(int(done.stdout))
    corpus = 27000 * 2300 / 2**20  # MiB of text that the second has more: about 60
    assert peak[1] - peak[0] < corpus / 2, peak


def test_pass_rates_of_the_traces_keep_their_bounds(tiny_model, tmp_path):
    "The range is inclusive, also for numbers that have no exact binary form."
    rows = [
        {"problem": f"p{i}", "completion": "x", "pass_rate": i / 10, "num_tokens": 1}
        for i in range(11)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = ("--min_pass_rate", 0.2, "--max_pass_rate", 0.7, "--model_name_or_path", tiny_model)
    command = (
        "curate", "--dataset_name", "t.jsonl", "--steps", "pass_rate", *options,
        "--run-dir", "run",
    )  # fmt: skip
    succeeds(*command, cwd=tmp_path)
    assert pd.read_parquet(tmp_path / "run/dataset/train.parquet").problem.tolist() == [
        f"p{i}" for i in range(2, 8)
    ]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("# not a dataset of r1nb")
    refused = r1nb(*command, "--hub_dataset", "./mine", "--force", cwd=tmp_path, runs=tmp_path)
    assert refused.code == 2
    assert "not a dataset that r1nb wrote" in refused.err
    assert (tmp_path / "run/dataset").exists()


def test_curated_traces_train(tiny_model, tmp_path):
    "What curate writes is what sft reads."
    succeeds(
        "generate",
        "--config",
        ROOT / "scripts/recipes/quickstart.yaml#generate",
        "--num_problems",
        12,
        "--model_name_or_path",
        tiny_model,
        "--run-dir",
        "made",
        cwd=tmp_path,
    )
    succeeds(
        "curate", "--dataset_name", "made/dataset", "--heldout_fraction", 0.3,
        "--model_name_or_path", tiny_model, "--run-dir", "kept", cwd=tmp_path,
    )  # fmt: skip
    assert Run(tmp_path / "kept").manifest["parents"] == [str(tmp_path / "made")]
    from r1nb.sft import TracesConfig, load_traces

    train, _ = load_traces(TracesConfig(dataset_name=str(tmp_path / "kept/dataset")))
    assert len(train) == len(pd.read_parquet(tmp_path / "kept/dataset/train.parquet"))
