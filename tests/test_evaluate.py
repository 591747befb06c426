"Benchmarks end to end: replayed, killed, on two ranks, from a server, and through lighteval."

import base64
import importlib.util
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, r1nb, start, wait_for

from r1nb.benchmarks import BENCHMARKS
from r1nb.runs import Run, append_jsonl, read_log

REAL = os.environ.get("R1NB_BENCHMARKS")
needs_data = pytest.mark.skipif(
    not REAL, reason="needs R1NB_BENCHMARKS, the folder with benchmarks"
)
needs_lighteval = pytest.mark.skipif(
    importlib.util.find_spec("lighteval") is None, reason="needs the extra evaluate"
)
FAST = ("--dtype", "float32", "--backend", "transformers")


SIGNATURE = "class Solution:\n    def add(self, a: int, b: int) -> Optional[int]:\n"


def packed(pairs, kind):
    text = json.dumps([{"input": i, "output": o, "testtype": kind} for i, o in pairs])
    return base64.b64encode(zlib.compress(pickle.dumps(text))).decode()


def code_problem(number):
    "A problem of LiveCodeBench's form: print the sum of two numbers and `number`, or return it."
    row = {
        "question_content": f"Add two numbers and {number}.",
        "difficulty": "easy",
        "platform": "x",
        "metadata": "{}",
    }
    pairs = [("1 2", str(3 + number)), ("5 6", str(11 + number))]
    if number % 2:
        row |= {
            "starter_code": SIGNATURE,
            "metadata": '{"func_name": "add"}',
        }
        pairs = [(i.replace(" ", "\n"), o) for i, o in pairs]
    kind = "functional" if number % 2 else "stdin"
    return {**row, "public_test_cases": json.dumps([]), "private_test_cases": packed(pairs, kind)}


def program(number):
    body = f"return a + b + {number}"
    if number % 2:
        return f"```python\n{SIGNATURE}        {body}\n```"
    return f"```python\na, b = map(int, input().split())\nprint(a + b + {number})\n```"


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    "A folder with a small file of every benchmark's form."
    folder = tmp_path_factory.mktemp("benchmarks")
    sums = [
        {"problem": f"What is {i} + {i}?", "answer": 2 * i, "level": 1 + i % 5, "subject": "sums"}
        for i in range(12)
    ]
    for name in ("math_500", "aime24", "aime25", "amc23"):
        append_jsonl(folder / f"{name}.jsonl", sums)
    gsm = [
        {"question": r["problem"], "answer": f"Twice {i} is\n#### {r['answer']}"}
        for i, r in enumerate(sums)
    ]
    append_jsonl(folder / "gsm8k_test.jsonl", gsm)
    wrong = {f"Incorrect Answer {i}": f"{i}" for i in (1, 2, 3)}
    choices = [
        {"Question": r["problem"], "Correct Answer": f"{100 + i}", **wrong}
        for i, r in enumerate(sums)
    ]
    append_jsonl(folder / "gpqa_diamond.jsonl", choices)
    for name in ("test5", "test6"):
        append_jsonl(folder / f"{name}.jsonl", [code_problem(i) for i in range(4)])
    return folder


@contextmanager
def benchmarks_at(folder):
    "This process reads benchmarks from `folder`."
    from r1nb.settings import settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("R1NB_BENCHMARKS", str(folder))
        settings.cache_clear()
        yield
    settings.cache_clear()


def answers(task, shift=0):
    "Two completions per problem i of `task`, with the reference of problem i + shift."
    from r1nb.benchmarks import read_benchmark

    rows, _ = read_benchmark(BENCHMARKS[task])
    kind = BENCHMARKS[task].kind
    texts = {
        "math": [f"<think>\nhm\n</think>\n\\boxed{{{r['answer']}}}" for r in rows],
        "choice": [f"Answer: {r['answer']}" for r in rows],
        "code": [program(i) for i in range(len(rows))],
    }[kind]
    others = [texts[(i + shift) % len(texts)] for i in range(len(rows))]
    if kind == "choice" and shift:
        others = [f"Answer: {'ABCD'[('ABCD'.index(r['answer']) + 1) % 4]}" for r in rows]
    return [
        {
            "problem_id": r["problem_id"],
            "sample": k,
            "text": t,
            "num_tokens": 9,
            "finish_reason": "stop",
        }
        for r, t in zip(rows, others, strict=True)
        for k in range(2)
    ]


GROUPS = (["math_500", "aime24", "aime25", "amc23", "gsm8k"], ["gpqa:diamond"], ["lcb", "lcb:v6"])


@pytest.fixture(scope="module")
def replayed(benchmarks, tmp_path_factory):
    "Evaluations that replay right answers, and answers to other problems, for each of `GROUPS`."
    from r1nb.evaluate import check, configure, run_evaluate
    from r1nb.runs import open_run, running

    folder = tmp_path_factory.mktemp("replayed")
    with benchmarks_at(benchmarks):
        for name in ("right", "other"):
            for i, tasks in enumerate(GROUPS):
                # a problem may be in several tasks, under the same id
                rows = [r for t in tasks for r in answers(t, int(name == "other"))]
                append_jsonl(
                    folder / f"{name}-{i}.jsonl",
                    list({(r["problem_id"], r["sample"]): r for r in rows}.values()),
                )
                recipe = {
                    "model": "org/any",
                    "tasks": tasks,
                    "samples": 2,
                    "replay": str(folder / f"{name}-{i}.jsonl"),
                }
                configuration, written = configure(recipe)
                check(*configuration)
                run = open_run(folder / f"{name}-{i}", "evaluate", written)
                with running(run) as summary:
                    summary.update(run_evaluate(run, *configuration))
    return folder


@pytest.mark.parametrize(("name", "expected"), [("right", 1.0), ("other", 0.0)])
def test_references_score_100_and_other_answers_0(name, expected, replayed):
    "Every task, from stored completions to results.json."
    from r1nb.evaluate import results_by_task

    for i, tasks in enumerate(GROUPS):
        results = results_by_task(replayed / f"{name}-{i}")
        scores = {t: r["models"]["any"]["avg@2"]["value"] for t, r in results.items()}
        assert scores == dict.fromkeys(tasks, expected)
        # twelve problems are not the benchmark
        assert all(r["notes"] for r in results.values())
    math = results_by_task(replayed / f"{name}-0")["math_500"]
    assert [g["level"] for g in math["groups"]["level"]["any"]] == ["1", "2", "3", "4", "5"]


@needs_data
@pytest.mark.parametrize("task", ["math_500", "aime24", "amc23", "gsm8k"])
def test_the_real_references_score_100(task, tmp_path):
    from r1nb.benchmarks import judge, read_benchmark

    rows, notes = read_benchmark(BENCHMARKS[task])
    assert notes == []  # as many as there should be, and their contents are those of the record
    assert all(judge("math", [f"\\boxed{{{r['answer']}}}" for r in rows], rows)[1])
    other = [f"\\boxed{{{rows[i - 1]['answer']}}}" for i in range(len(rows))]
    same = [str(rows[i - 1]["answer"]) == str(r["answer"]) for i, r in enumerate(rows)]
    right = judge("math", other, rows)[1]
    assert all(right[i] for i, equal in enumerate(same) if equal)
    assert sum(right) <= sum(same) + 2  # neighbours whose answers differ in writing only


def test_a_low_cap_is_flagged_and_a_short_context_is_refused(benchmarks, tiny_model, tmp_path):
    env = {"R1NB_BENCHMARKS": str(benchmarks)}
    command = ("evaluate", "--model", tiny_model, *FAST, "--tasks", "aime24", "--samples", 2)
    done = r1nb(
        *command, "--max_new_tokens", 16, "--run-dir", tmp_path / "a", cwd=tmp_path,
        runs=tmp_path, **env,
    )  # fmt: skip
    assert done.code == 0, done.err[-3000:]
    assert "cut off at 16 tokens" in done.out and "warning: many are cut off" in done.out
    task = json.loads((tmp_path / "a/results/results.json").read_text())["tasks"]["aime24"]
    model = task["models"][tiny_model.name]
    assert model["truncated"] > 0.5 and task["reported"] == []
    assert "max_new_tokens 16, not 32768" in task["notes"]
    done = r1nb(*command, "--run-dir", tmp_path / "b", cwd=tmp_path, runs=tmp_path, **env)
    assert done.code == 2 and "do not fit into the 2048 positions" in done.err
    assert "set --max_new_tokens to" in done.err
    assert not (tmp_path / "b").exists()


def test_a_killed_evaluation_resumes_without_loss_or_repetition(benchmarks, tiny_model, tmp_path):
    "SIGKILL in the middle of 600 samples, twice."
    env = {"R1NB_BENCHMARKS": str(benchmarks)}
    command = (
        "evaluate", "--model", tiny_model, *FAST, "--tasks", "math_500", "--samples", 50,
        "--batch_size", 50, "--max_new_tokens", 24, "--probe", 2, "--run-dir", tmp_path / "run",
    )  # fmt: skip
    file = tmp_path / f"run/results/math_500/samples-{tiny_model.name}.jsonl"
    for least in (50, 200):
        process = start(*command, cwd=tmp_path, runs=tmp_path, **env)
        wait_for(
            lambda least=least: file.exists() and file.read_bytes().count(b"\n") >= least,
            "samples",
            process,
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(lambda: Run(tmp_path / "run").status != "running", "the end of the job's process")
    done = r1nb(*command, cwd=tmp_path, runs=tmp_path, **env)
    assert done.code == 0, done.err[-3000:]
    keys = [(r["problem_id"], r["sample"]) for r in read_log(file)]
    assert len(keys) == len(set(keys)) == 600
    assert len(pd.read_parquet(tmp_path / f"run/results/math_500/{tiny_model.name}.parquet")) == 600


@pytest.mark.slow
def test_two_ranks_share_the_samples(benchmarks, tiny_model, tmp_path):
    env = {"R1NB_BENCHMARKS": str(benchmarks)}
    command = (
        "evaluate", "--model", tiny_model, *FAST, "--tasks", "amc23", "--samples", 2,
        "--max_new_tokens", 16,
    )  # fmt: skip
    done = r1nb(
        *command, "--parallel", "data", "--num_gpus", 2, "--run-dir", tmp_path / "two",
        cwd=tmp_path, runs=tmp_path, **env,
    )  # fmt: skip
    assert done.code == 0, done.err[-3000:]
    folder = tmp_path / "two/results/amc23"
    files = [read_log(folder / f"samples-{tiny_model.name}{r}.jsonl") for r in ("", ".rank1")]
    assert [len(rows) for rows in files] == [12, 12]
    assert len(pd.read_parquet(folder / f"{tiny_model.name}.parquet")) == 24
    manifest = json.loads((tmp_path / "two/manifest.json").read_text())
    assert manifest["status"] == "completed" and manifest["world_size"] == 2
    done = r1nb(
        *command, "--accelerator", "zero3", "--run-dir", tmp_path / "no", cwd=tmp_path,
        runs=tmp_path, **env,
    )  # fmt: skip
    assert done.code == 2 and "tensor_parallel_size" in done.err


class Server:
    "An OpenAI-compatible server around a sampler; `down` makes it fail."

    def __init__(self, sampler):
        self.down, self.served, self.counts = False, 0, True
        own = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, status, body):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if own.down:
                    return self.answer(503, {"error": "starting"})
                if asked["model"] == "missing":
                    return self.answer(
                        404, {"error": {"message": "the model missing does not exist"}}
                    )
                own.served += 1
                with own.lock:
                    c = sampler([asked["messages"]], 1, asked["seed"])[0][0]
                choice = {
                    "index": 0,
                    "message": {"role": "assistant", "content": c.text},
                    "finish_reason": c.finish_reason,
                }
                usage = {"completion_tokens": c.num_tokens} if own.counts else None
                self.answer(
                    200,
                    {
                        "id": "x",
                        "object": "chat.completion",
                        "created": 0,
                        "model": "m",
                        "system_fingerprint": "",
                        "choices": [choice],
                        "usage": usage,
                    },
                )

        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def servers(tiny_model):
    from r1nb.models import ModelChoice
    from r1nb.sampling import SamplingConfig, TransformersSampler

    cfg = SamplingConfig(max_new_tokens=8, temperature=1.0)
    made = [
        Server(TransformersSampler(ModelChoice(str(tiny_model), dtype="float32"), cfg))
        for _ in range(2)
    ]
    yield made
    for server in made:
        server.http.shutdown()


@pytest.mark.slow
def test_servers_share_the_work_and_one_may_fail(servers, benchmarks, tmp_path):
    env = {"R1NB_BENCHMARKS": str(benchmarks)}
    good, bad = servers
    bad.down, good.counts = True, False
    command = (
        "evaluate", "--model", "served", "--tasks", "amc23", "--samples", 2, "--batch_size", 2,
        "--base_url", good.url, bad.url,
    )  # fmt: skip
    done = r1nb(*command, "--run-dir", tmp_path / "a", cwd=tmp_path, runs=tmp_path, **env)
    assert done.code == 0, done.err[-3000:]
    assert good.served == 24
    good.down = True
    done = r1nb(
        *command, "--retries", 0, "--run-dir", tmp_path / "b", cwd=tmp_path, runs=tmp_path, **env
    )
    assert done.code == 1 and "no server answers" in done.err and "503" in done.err
    good.down = bad.down = False
    done = r1nb(
        *command, "--retries", 0, "--run-dir", tmp_path / "b", cwd=tmp_path, runs=tmp_path, **env
    )
    assert done.code == 0 and bad.served > 0
    done = r1nb(
        *command, "--served_model", "missing", "--run-dir", tmp_path / "c", cwd=tmp_path,
        runs=tmp_path, **env,
    )  # fmt: skip
    assert done.code == 1 and "the model missing does not exist" in done.err


def test_compare(replayed, tmp_path):
    done = r1nb(
        "evaluate",
        "--compare",
        replayed / "right-1",
        replayed / "other-1",
        cwd=tmp_path,
        runs=tmp_path,
    )
    assert done.code == 0 and "gpqa:diamond" in done.out and "+100.0 points" in done.out, done.err
    done = r1nb(
        "evaluate",
        "--compare",
        replayed / "right-1",
        replayed / "right-2",
        cwd=tmp_path,
        runs=tmp_path,
    )
    assert done.code == 2 and "no task in common" in done.err
    done = r1nb(
        "evaluate", "--compare", replayed / "right-1", tmp_path / "no", cwd=tmp_path, runs=tmp_path
    )
    assert done.code == 2 and "no run" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "aime23"), "'aime23' is not a benchmark; did you mean 'aime2"),
        (
            ("--tasks", "aime24", "--protocol", "{aime25: {top_p: 1}}"),
            "'aime25' is not one of the tasks",
        ),
        (("--tasks", "aime24", "--protocol", "{aime24: {top_q: 1}}"), "unknown key 'top_q'"),
        (("--tasks", "aime24", "--temperature", "0"), "greedy completions"),
        (("--tasks", "lcb", "--replay", "nowhere"), "nowhere does not exist"),
        (("--backend", "server"), "base_url is needed"),
    ],
)
def test_bad_choices(arguments, message, benchmarks, tiny_model):
    from r1nb.evaluate import check, configure
    from r1nb.recipes import parse_overrides
    from r1nb.settings import InputError

    overrides = parse_overrides(["--model", str(tiny_model), *arguments])
    with benchmarks_at(benchmarks), pytest.raises(InputError, match=re.escape(message)):
        check(*configure(None, overrides)[0])


def test_pass_at_1_does_not_move_with_the_number_of_samples():
    "200 problems of known difficulty, n from 1 to 64: no trend, and intervals cover the truth."
    from r1nb.statistics import avg_at_n

    rng = np.random.default_rng(0)
    means, covered, repeats = {}, 0, 1000
    for n in (1, 4, 16, 64):
        estimates = []
        for _ in range(repeats // 4):
            p = rng.beta(0.6, 0.6, 200)
            e = avg_at_n(rng.random((200, n)) < p[:, None])
            estimates.append(e.value - 0.5)  # other problems each time
            covered += e.low <= 0.5 <= e.high
        means[n] = np.mean(estimates)
    assert all(abs(m) < 4 * 0.03 / np.sqrt(repeats / 4) for m in means.values()), means
    assert 0.93 <= covered / repeats <= 0.97


@needs_lighteval
@needs_data
@pytest.mark.slow
def test_lighteval_scores_the_same(tmp_path):
    "The real model, greedily, on real problems: two programs, the same texts and score."
    problems = (Path(REAL) / "gsm8k_test.jsonl").read_text().splitlines()[:3]
    easy = {"question": "Repeat exactly this: \\boxed{7}", "answer": "#### 7"}
    (tmp_path / "gsm8k.jsonl").write_text("\n".join([*problems, json.dumps(easy)]))
    env = {"R1NB_BENCHMARKS": str(tmp_path)}
    command = (
        "evaluate", "--model", "bundled", "--dtype", "float32", "--backend", "transformers",
        "--tasks", "gsm8k", "--samples", 1, "--temperature", 0, "--top_p", 1,
        "--max_new_tokens", 48, "--run-dir", tmp_path / "ours",
    )  # fmt: skip
    done = r1nb(*command, cwd=tmp_path, runs=tmp_path, **env)
    assert done.code == 0, done.err[-3000:]
    ours = pd.read_parquet(tmp_path / "ours/results/gsm8k/bundled.parquet")
    model = (
        "pretrained=bundled,dtype=float32,batch_size=4,"
        "generation_parameters={temperature:0,max_new_tokens:48}"
    )
    done = r1nb(
        "lighteval", "accelerate", model, "custom|gsm8k|0|0", "--use-chat-template",
        "--save-details", "--output-dir", tmp_path / "theirs", cwd=tmp_path, runs=tmp_path,
        deadline=500, **env,
    )  # fmt: skip
    assert done.code == 0, done.err[-3000:]
    details = pd.read_parquet(next((tmp_path / "theirs/details").rglob("details_gsm8k*.parquet")))
    theirs = {
        d["specific"]["problem_id"]: m["text"][0]
        for d, m in zip(details.doc, details.model_response, strict=True)
    }
    texts = dict(zip(ours.problem_id, ours.completion, strict=True))
    assert set(theirs) == set(texts)
    assert [theirs[k].strip() for k in texts] == [texts[k].strip() for k in texts]
    results = next((tmp_path / "theirs/results").rglob("results_*.json"))
    score = json.loads(results.read_text())["results"]["gsm8k|0"]
    assert score["avg@n"] == ours.correct.mean()


@needs_lighteval
def test_old_commands_of_lighteval_are_translated(tmp_path):
    import yaml

    from r1nb.lighteval import modernise
    from r1nb.settings import InputError

    arguments = "pretrained=a/b,dtype=float16,max_model_length=32768,gpu_memory_utilisation=0.8"
    prompt = "Please reason step by step, and box it."
    words = modernise(
        [
            "vllm",
            arguments,
            "custom|aime24|0|0",
            "--custom-tasks",
            "src/open_r1/evaluate.py",
            "--use-chat-template",
            f"--system-prompt={prompt}",
            "--remove-reasoning-tags",
            "--output-dir",
            "out",
        ],
        tmp_path,
    )
    values = yaml.safe_load(Path(words[1]).read_text())["model_parameters"]
    assert words[0] == "vllm" and words[2] == "aime24|0"
    assert words[3:] == [
        "--custom-tasks",
        "r1nb.lighteval",
        "--remove-reasoning-tags",
        "--output-dir",
        "out",
    ]
    assert (
        values["model_name"],
        float(values["gpu_memory_utilization"]),
        values["system_prompt"],
    ) == (
        "a/b",
        0.8,
        prompt,
    )
    assert values["generation_parameters"] == {"temperature": 0.6, "top_p": 0.95}
    for bad, message in (
        (["vllm", "aime24"], "give backend"),
        (["vllm", arguments, "aime24,lcb"], "system prompts"),
        (["vllm", "dtype=float16", "aime24"], "names no model"),
        (["vllm", arguments, "aime23"], "not a benchmark"),
    ):
        with pytest.raises(InputError, match=message):
            modernise(bad, tmp_path)


def test_make_evaluate_says_how_it_is_used():
    # what it passes on, and that it runs nothing of it, is in test_runs.py
    command = ["make", "evaluate", f"VENV={Path(sys.prefix)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "usage: make evaluate MODEL=" in done.stdout
