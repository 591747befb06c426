"""Isolated scorers of reasoning_gym: no answer is run, waited for, or changes the next verdict."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from r1nb.benchmarks import gym_scores, verify_completions
from r1nb.judges import EXTRA_RULES, default_task_pool, score_tasks
from r1nb.rewards import reasoning_gym_reward
from r1nb.sandbox import guarantees

sys.path.insert(0, str(ROOT / "scripts" / "bench"))
from judges import honest, hostile, own_scores, problems, tasks  # noqa: E402

EVALUATING = (
    "countdown",
    "puzzle24",
    "simple_integration",
    "intermediate_integration",
    "polynomial_multiplication",
    "n_queens",
    "string_insertion",
    "spiral_matrix",
    "binary_matrix",
    "number_sorting",
    "bitwise_arithmetic",
)


def attack(names, folder, highest=1.0):
    """Score every hostile text on one problem of each task and check that it had no effect.

    No score may exceed `highest`. Returns how many texts timed out.
    """
    file = folder / "escaped"
    entries = [problems(name, 1)[0] for name in names]
    references = [e["answer"] for e in entries]
    before = score_tasks(references, entries)
    late = default_task_pool().timeouts
    texts = hostile(str(file))
    for entry in entries:
        begin = time.monotonic()
        scores = score_tasks(texts, [entry] * len(texts), deadline=1.0)
        assert all(s is None or 0 <= s <= highest for s in scores), entry["reasoning_gym"]
        assert scores.count(None) < len(scores) / 2, entry["reasoning_gym"]
        assert time.monotonic() - begin < 60, entry["reasoning_gym"]
    assert list(folder.iterdir()) == []
    assert score_tasks(references, entries) == before
    return default_task_pool().timeouts - late


def test_hostile_answers_to_the_scorers_that_evaluate(tmp_path):
    assert attack(EVALUATING, tmp_path, highest=0.05) < 20  # the package's score for a wrong number


@pytest.mark.slow
def test_hostile_answers_to_every_task(tmp_path):
    assert len(tasks()) > 100
    attack([t for t in tasks() if t not in EVALUATING], tmp_path)


WITHOUT_ISOLATION = """if True:
    import json, sys
    from r1nb.judges import _judge_task, _prepare_task, _replace_evaluators
    import reasoning_gym
    _replace_evaluators()
    work = json.load(open(sys.argv[1]))
    scorers = {task: _prepare_task(task) for task in {entry['reasoning_gym'] for _, entry in work}}
    bad = []
    refused = ('os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'subprocess.Popen', 'os.kill',
               'socket.connect', 'ctypes.dlopen', 'os.remove', 'shutil.copyfile')
    def audit(event, arguments):
        mode = arguments[1] if event == 'open' else ''
        writes = isinstance(mode, str) and set('wxa+') & set(mode)
        if writes or event in refused: bad.append((event, str(arguments)[:80]))
    sys.addaudithook(audit)
    for answer, entry in work:
        _judge_task(scorers[entry['reasoning_gym']], json.dumps([answer, entry]).encode())
    print(len(work), bad)
"""


def test_without_isolation_the_evaluators_run_nothing_either(tmp_path):
    "Isolation is the second protection: a machine without it has the first."
    quick = [t for t in hostile(str(tmp_path / "escaped"))[:53] if "fork" not in t]
    work = [(text, problems(name, 1)[0]) for name in EVALUATING for text in quick]
    (tmp_path / "work.json").write_text(json.dumps(work))
    command = [sys.executable, "-c", WITHOUT_ISOLATION, str(tmp_path / "work.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    output = done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.split("\n")[-2] == f"{len(work)} []", output
    assert [p.name for p in tmp_path.iterdir()] == ["work.json"]


def test_an_answer_cannot_change_the_next_verdict():
    (entry,) = problems("polynomial_multiplication", 1)
    wrong = "x + 12345"
    takeover = "__import__('reasoning_gym').factory.DATASETS.clear()"
    scores = score_tasks([wrong, takeover, wrong, entry["answer"]], [entry] * 4)
    assert scores == [0.0, 0.0, 0.0, 1.0]
    completions = [rf"\boxed{{{a}}}" for a in (takeover, wrong)]
    rows = [json.dumps(entry)] * 2
    assert gym_scores(completions, rows) == [0.0, 0.0]
    assert reasoning_gym_reward(completions, rows) == [0.0, 0.0]
    row = {"problem_id": "p", "answer": entry["answer"], "verification": rows[0]}
    assert verify_completions(completions, [row] * 2) == [False, False]


def test_wrong_answers_of_different_form_earn_the_same_reward():
    "Else GRPO would learn the form from a group in which nobody is right."
    entry = {
        "reasoning_gym": "countdown",
        "metadata": {"numbers": [2, 3, 4], "target": 14},
        "answer": "2 + 3*4",
    }
    answers = ["3*4 + 2", "2*3 + 4", "no formula", None]
    assert score_tasks(answers, [entry] * 4)[:3] == [1.0, 0.05, 0.01]
    completions = ["I do not know" if a is None else rf"\boxed{{{a}}}" for a in answers]
    assert reasoning_gym_reward(completions, [json.dumps(entry)] * 4) == [1.0, 0.0, 0.0, 0.0]


def test_honest_answers_have_the_scores_of_the_library():
    answers, entries = honest(525, seed=4)
    ours, theirs = score_tasks(answers, entries), own_scores(answers, entries)
    assert min(theirs.count(1.0), theirs.count(0.0)) > len(answers) / 20  # right and wrong ones
    differing = [
        (e["reasoning_gym"], a, x, y)
        for a, e, x, y in zip(answers, entries, ours, theirs, strict=True)
        if x != y
    ]
    for task, answer, our, their in differing:
        if task in ("arc_agi", "rearc"):  # the library rejects its own reference read from JSON
            assert (our, their) == (1.0, 0.05)
        elif "Integral(" in str(answer):  # the library's own reference, which it could not solve
            assert (task, our) == ("intermediate_integration", 0.0)
        else:
            assert task in EXTRA_RULES and our == 0.0, (task, answer, our, their)


@pytest.mark.parametrize("name", sorted(EXTRA_RULES))
def test_the_extra_rule_accepts_the_reference(name):
    entries = problems(name, 10, seed=7)
    references = []
    for metadata, answer in [(e["metadata"], e["answer"]) for e in entries]:
        if name == "propositional_logic":  # its example answer is sometimes a premise
            references.append(f"({metadata['premises'][0]} ∨ ¬{metadata['variables'][0]})")
        elif name == "rush_hour":  # it has no reference
            references.append("A+1")
        else:
            references.append(metadata.get("example_answer", "") if answer is None else answer)
    assert score_tasks(references, entries) == own_scores(references, entries)


CHEATS = [
    ("puzzle24", "6*4*1*1"),
    ("game_of_life_halting", "x"),
    ("complex_arithmetic", "nan"),
    ("complex_arithmetic", "nan + 1i"),
    ("coin_flip", "0"),
    ("game_of_life", str([[0] * 10] * 10)),
    ("polynomial_multiplication", "expand((x + 1)*(x + 2))"),
    ("number_sorting", "['nan', 'nan', 'nan', 'nan']"),
    ("prime_factorization", "210"),
    ("knights_knaves", "Zoey is a knight, Zoey is a knave"),
    ("rush_hour", "A+1 A-1 " * 200),
]


@pytest.mark.parametrize(("name", "answer"), CHEATS)
def test_an_answer_that_solves_nothing_earns_nothing(name, answer):
    bare = answer.replace(" ", "")
    entries = [e for e in problems(name, 12, seed=9) if str(e["answer"]).replace(" ", "") != bare]
    if name == "puzzle24":
        entries = [e for e in entries if sorted(e["metadata"]["numbers"]) != [1, 1, 4, 6]]
    assert max(score_tasks([answer] * len(entries), entries)) <= 0.1
    echoes = [str(e["metadata"].get("integrand", "x")) for e in problems("simple_integration", 5)]
    asked = [f"Integral({text}, x)" for text in echoes]
    assert score_tasks(asked, problems("simple_integration", 5)) == [0.0] * 5


def test_problems_that_cannot_be_scored_give_none_and_no_error():
    (entry,) = problems("chain_sum", 1)
    entries = [
        {**entry, "reasoning_gym": "no_such_task"},
        {**entry, "reasoning_gym": "composite"},
        {**entry, "reasoning_gym": ["chain_sum"]},
        {**entry, "reasoning_gym": "x" * 100_000},
        {"reasoning_gym": "countdown", "metadata": None, "answer": None},
        entry,
    ]
    assert score_tasks([entry["answer"]] * 6, entries) == [None] * 4 + [0.01, 1.0]
    assert gym_scores(["\\boxed{1}"] * 3, [None, "not JSON", "[" * 100_000]) == [None] * 3


DEVICES = ("null", "full", "random", "urandom")


@pytest.mark.skipif(not guarantees()["files"], reason="needs bubblewrap and user namespaces")
def test_a_worker_has_no_way_out():
    pool = default_task_pool()
    (entry,) = problems("chain_sum", 1)
    assert score_tasks([entry["answer"]], [entry]) == [1.0]
    pid = next(iter(pool._alive)).process.pid
    while "python" not in os.readlink(f"/proc/{pid}/exe"):
        (pid,) = (int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    for name in ("net", "pid", "mnt", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    # another user without capabilities, or a user namespace
    status = Path(f"/proc/{pid}/status").read_text()
    if os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user"):
        assert re.search(r"^Uid:\t0", status, re.M) is None, status
        assert "CapEff:\t0000000000000000" in status
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"R1NB" not in environment and b"TOKEN" not in environment
    mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    writable = {line.split()[4] for line in mounts if "rw" in line.split()[5].split(",")}
    assert writable == {"/r1nb.work", "/dev/shm", *(f"/dev/{name}" for name in DEVICES)}
    root = Path(f"/proc/{pid}/root")
    assert (root / "r1nb.box/judges.py").exists()  # it can be read from here
    assert not (root / str(ROOT / "tests").lstrip("/")).exists()
    assert not (root / "root/.bashrc").exists()


def test_a_killed_worker_is_replaced_and_threads_may_score():
    entries = problems("chain_sum", 20)
    references = [e["answer"] for e in entries]
    assert score_tasks(references, entries) == [1.0] * 20
    for worker in list(default_task_pool()._alive):
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
    assert score_tasks(references, entries) == [1.0] * 20
    scores = []

    def check():
        scores.append(score_tasks(references, entries))

    threads = [threading.Thread(target=check) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert scores == [[1.0] * 20] * 4


def test_a_machine_without_isolation_scores_too_and_warns(tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("env", "prlimit"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    code = (
        "import warnings; warnings.simplefilter('always')\n"
        "from r1nb.judges import score_tasks\n"
        "from r1nb.answers import verify_answers\n"
        "entry = {'reasoning_gym': 'chain_sum', 'metadata': {}, 'answer': '12'}\n"
        "print(score_tasks(['12', '13'], [entry] * 2), verify_answers(['\\\\boxed{y+x}'], ['x+y']))"
    )
    environment = {**os.environ, "PATH": str(tmp_path / "bin")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[1.0, 0.0] [True]\n", done.stderr
    assert "without isolation" in done.stderr and "bubblewrap" in done.stderr
