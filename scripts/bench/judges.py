"""Scores of reasoning_gym's tasks: in isolation, and by the library's scorers in this process.

    python scripts/bench/judges.py --honest 2000
    python scripts/bench/judges.py --hostile

`--honest N`: N answers that are not attacks (references, other problems' answers, references in
other words) over all tasks of the package, scored both ways: which scores differ, and verdicts per
second for the cheap tasks. `--hostile`: a hundred texts made to run code, to hang or to crash a
scorer, on every task; afterwards the references are scored again.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from r1nb.judges import EXTRA_RULES, default_task_pool, score_tasks

CHEAP = (
    "chain_sum",
    "leg_counting",
    "gcd",
    "simple_equations",
    "letter_counting",
    "spell_backward",
    "count_bits",
)

# {file}: the file that a successful attack creates.
CODE = (
    '__import__("os").system("touch {file}")',
    '[__import__("os").system("touch {file}")]',
    '[[__import__("os").system("touch {file}"), 1], [2, 3]]',
    '(1, __import__("os").system("touch {file}"))',
    '{{"a": __import__("os").system("touch {file}")}}',
    '1 + __import__("os").system("touch {file}")',
    'x + __import__("os").system("touch {file}")',
    'open("{file}", "w").write("x")',
    '[open("{file}", "w").write("x")]',
    'open("{file}", "w") or x**2',
    "exec(\"open('{file}', 'w')\")",
    "eval(\"open('{file}', 'w')\")",
    '(lambda: open("{file}", "w"))()',
    '[c for c in ().__class__.__base__.__subclasses__() if open("{file}", "w")]',
    '().__class__.__base__.__subclasses__()[0].__init__.__globals__["open"]("{file}", "w")',
    "sympify(\"__import__('os').system('touch {file}')\")",
    'S(\'open("{file}", "w")\')',
    'Symbol("x").func.__init__.__globals__["__builtins__"]["open"]("{file}", "w")',
    'lambdify(x, "open(\\"{file}\\", \\"w\\")")(1)',
    'Lambda(x, open("{file}", "w"))',
    "parse_expr(\"open('{file}', 'w')\")",
    "f\"{{open('{file}', 'w')}}\"",
    '__import__("pathlib").Path("{file}").touch()',
    '__import__("subprocess").run(["touch", "{file}"])',
    '__import__("ctypes").CDLL(None).creat(b"{file}", 438)',
    '__import__("socket").create_connection(("127.0.0.1", 9))',
    '__import__("shutil").copy("/etc/passwd", "{file}")',
    '__builtins__["open"]("{file}", "w")',
    "().__reduce_ex__(2)",
    'type("X", (), {{"__del__": lambda s: open("{file}", "w")}})()',
    '{{"__class__": "os.system", "args": ["touch {file}"]}}',
    "!!python/object/apply:os.system ['touch {file}']",
    "cposix\nsystem\n(S'touch {file}'\ntR.",
    "{{{{ ''.__class__ }}}}",
    "$(touch {file})",
    "`touch {file}`",
    "; touch {file}",
    "<script>alert(1)</script>",
    '\\input{{|"touch {file}"}}',
    "\\write18{{touch {file}}}",
    '__import__("reasoning_gym").factory.DATASETS.clear()',
    '[setattr(__import__("builtins"), "float", lambda *a: 1.0)]',
    '__import__("sys").modules.clear()',
    'setattr(__import__("reasoning_gym.dataset").dataset.ProceduralDataset, '
    '"score_answer", lambda *a: 1.0)',
    "[globals().update(DATASETS={{}})]",
    '__import__("os")._exit(0)',
    '__import__("os").kill(1, 9)',
    '__import__("os").kill(__import__("os").getppid(), 9)',
    '[__import__("os").fork() for _ in range(99)]',
    "exit()",
    "(yield)",
    "await x",
    "print(1) or 5",
)
SLOW = (
    "9**9**9**9",
    "[9**9**9**9]",
    "9**99999999",
    "(10**9)!",
    "x**9**9**9",
    "(x+1)**100000",
    "exp(exp(exp(exp(x**x**x))))",
    "1<<10**10",
    '"a"*10**10',
    "[0]*10**10",
    "range(10**12)",
    "sum(range(10**12))",
    "sin(" * 300 + "x" + ")" * 300,
    "(" * 900 + "1" + ")" * 900,
    "[" * 900 + "]" * 900,
    "(" * 1900,
    "[" * 1900,
    "{" * 1900,
    "-" * 1900 + "1",
    "not " * 400 + "1",
    "1+" * 900 + "1",
    "1," * 900,
    "9" * 1900,
    "0x" + "f" * 1900,
    "1e999999999",
    "1" + "0" * 1000 + "." + "1" * 800,
    "a" * 1900,
    "aA" * 900 + "!",
    " " * 1900,
    "\n" * 1900,
    "1 " * 900,
    '"' * 1900,
    "\\" * 1900,
    '{"a":' * 300 + "1" + "}" * 300,
)
ODD = (
    *("", " ", "\x00", "\ud800", "\U0001f4a5", "nan", "inf", "-inf", "None", "True"),
    *("[]", "{}", "()", "''", "[[]]", "[None]", "NaN", "1/0", "0/0", "٣", "\uff11\uff12"),
    *("-0", "1_000", "0b1", "oo", "I", "[1, [2, {3: ()}]]"),
)


def hostile(file: str) -> list[str]:
    "All hostile texts, more than a hundred."
    return [text.format(file=file) for text in CODE] + [*SLOW, *ODD]


def tasks() -> list[str]:
    "Every task of the package that needs no configuration."
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - {"composite"})


def problems(task: str, size: int, seed: int = 1) -> list[dict]:
    "Problems of `task` as in a data row."
    import reasoning_gym

    made = reasoning_gym.create_dataset(task, size=size, seed=seed)
    rows = [
        {"reasoning_gym": task, "metadata": row["metadata"], "answer": row["answer"]}
        for row in made
    ]
    return [json.loads(json.dumps(row, default=str)) for row in rows]


def honest(size: int, seed: int) -> tuple[list, list]:
    "`(answers, entries)`: references, other problems' references, references in other words, none."
    rng, answers, entries = random.Random(seed), [], []
    names = tasks()
    each = -(-size // (len(names) * 5))
    for task in names:
        made = problems(task, each + 1, seed + 1)
        for entry, other in zip(made[:each], made[1:], strict=True):
            reference = str(entry["answer"])
            answers += [
                reference,
                str(other["answer"]),
                f" {reference}\n",
                f"The answer is {reference}.",
                None,
            ]
            entries += [entry] * 5
    order = rng.sample(range(len(answers)), min(size, len(answers)))
    return [answers[i] for i in order], [entries[i] for i in order]


def own_scores(answers: list, entries: list) -> list[float]:
    "The scores of the library's scorers, in this process and without isolation."
    from reasoning_gym import get_score_answer_fn

    scorers, scores = {}, []
    for answer, entry in zip(answers, entries, strict=True):
        task = entry["reasoning_gym"]
        if task not in scorers:
            scorers[task] = get_score_answer_fn(task)
        try:
            scores.append(float(scorers[task](answer, json.loads(json.dumps(entry)))))
        except Exception:
            scores.append(0.0)
    return scores


def run_honest(size: int, seed: int, rounds: int) -> None:
    answers, entries = honest(size, seed)
    theirs, ours = own_scores(answers, entries), score_tasks(answers, entries)
    print(f"{len(answers)} honest answers to {len(tasks())} tasks")
    differing = [
        (e["reasoning_gym"], a, x, y)
        for a, e, x, y in zip(answers, entries, ours, theirs, strict=True)
        if x != y
    ]
    print(f"  {len(differing)} scores differ from the library's:")
    for task, answer, x, y in differing:
        rule = " (extra rule)" if task in EXTRA_RULES else ""
        print(f"    {task}{rule}: {answer!r:.70}: {x}, library {y}")
    rows = [entry for task in CHEAP for entry in problems(task, 60)]
    texts = list(map(str, range(len(rows))))
    seconds = {"library, in this process": [], "in isolation": []}
    for _ in range(rounds):
        for name, score in zip(seconds, (own_scores, score_tasks), strict=True):
            begin = time.perf_counter()
            score(texts, rows)
            seconds[name].append(time.perf_counter() - begin)
    for name, values in seconds.items():
        print(f"  cheap tasks, {name}: {len(texts) / statistics.median(values):.0f} verdicts/s")


def run_hostile(deadline: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "escaped"
        texts, slowest, high = hostile(str(file)), 0.0, []
        references = [problems(task, 1)[0] for task in tasks()]
        before = score_tasks([e["answer"] for e in references], references)
        begin = time.perf_counter()
        for entry in references:
            for text in texts:
                start = time.perf_counter()
                (score,) = score_tasks([text], [entry], deadline)
                slowest = max(slowest, time.perf_counter() - start)
                if score is not None and score >= 0.5:
                    high.append((entry["reasoning_gym"], text, score))
        seconds = time.perf_counter() - begin
        pool = default_task_pool()
        after = score_tasks([e["answer"] for e in references], references)
        changed = sum(a != b for a, b in zip(before, after, strict=True))
        print(f"{len(texts)} hostile texts x {len(references)} tasks: {seconds:.0f} s")
        print(f"  slowest verdict: {slowest:.1f} s")
        print(f"  {pool.timeouts} timed out after {deadline} s")
        print(f"  {pool.crashes} workers or children died")
        print(f"  files created: {sorted(p.name for p in Path(folder).iterdir())}")
        print(f"  references scored differently afterwards: {changed}")
        for task in dict.fromkeys(task for task, *_ in high):
            found = [(text, score) for name, text, score in high if name == task]
            text, score = max(found, key=lambda pair: pair[1])
            print(f"  {task}: {len(found)} score 0.5 or more, such as {text!r:.50}: {score}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--honest", type=int, default=0, metavar="N")
    parser.add_argument("--hostile", action="store_true")
    parser.add_argument("--deadline", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.honest or not args.hostile:
        run_honest(args.honest or 2000, args.seed, args.rounds)
    if args.hostile:
        run_hostile(args.deadline)


if __name__ == "__main__":
    main()
