"""Compare `verify_answers` with plain math-verify in one process, on MATH-500.

    R1NB_BENCHMARKS=<folder> python scripts/bench/answers.py --rounds 3
    R1NB_BENCHMARKS=<folder> python scripts/bench/answers.py --hostile 1000
    R1NB_BENCHMARKS=<folder> python scripts/bench/answers.py --references 20000 [--other FOLDER]

Completions are made from the benchmark's solutions: unchanged (right), with the next problem's
answer in the box (mostly wrong), with the answer written another way, and without an answer. Rounds
alternate, so that noise of the machine affects all graders equally. Every disagreement is listed.
`--hostile` grades strings made to hang, crash or fill the memory of a grader. `--references` asks
how often graders are wrong: references that they cannot read, that differ from themselves, and
different ones that they accept.
"""

import argparse
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from r1nb.answers import AnswerPool, extract_answer, verify_answers
from r1nb.problems import read_rows


def rewritten(answer: str, rng: random.Random) -> str:
    "Return the same answer in another notation."
    return rng.choice(
        [
            answer.replace("\\frac", "\\dfrac"),
            f"{answer}.",
            f"\\text{{}}{answer}",
            answer.replace(",", ", "),
            f" {answer} ",
        ]
    )


def completions(rows: list[dict], rng: random.Random) -> tuple[list[str], list[str]]:
    "Return texts and references, four for each row."
    texts, golds = [], []
    for row, following in zip(rows, rows[1:] + rows[:1], strict=True):
        texts += [
            row["solution"],
            f"<think>\n{row['solution'][:200]}\n</think>\n\\boxed{{{following['answer']}}}",
            f"<think>\nso\n</think>\n\\boxed{{{rewritten(row['answer'], rng)}}}",
            f"<think>\n{row['solution'][:200]}\n</think>\nI do not know.",
        ]
        golds += [row["answer"]] * 4
    return texts, golds


def plain(texts: list[str], golds: list[str]) -> list[bool]:
    "Grade with math-verify as in its README, in this process, on the text after the thought."
    from math_verify import LatexExtractionConfig, parse, verify

    verdicts = []
    for text, gold in zip(texts, golds, strict=True):
        reference = parse(f"\\boxed{{{gold}}}", [LatexExtractionConfig(boxed_match_priority=0)])
        answer = parse(
            text.rpartition("</think>")[2],
            [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)],
        )
        verdicts.append(bool(verify(reference, answer)))
    return verdicts


def hostile(count: int, rng: random.Random) -> list:
    "Return strings that have crashed graders, and variations of them."
    makers = [
        lambda n: "^".join(["{" + str(rng.randrange(2, 99)) + "}"] * n),
        lambda n: f"10^{{10^{{{n}}}}}",
        lambda n: f"{n * 1000}!",
        lambda n: f"{n}!!!!",
        lambda n: "(" * n * 50 + "1" + ")" * n * 50,
        lambda n: "{" * n * 99,
        lambda n: "}" * n,
        lambda n: f"(1+x)^{{{n * 5000}}}",
        lambda n: "\\frac{1}{" * n * 9 + "2" + "}" * n * 9,
        lambda n: "9" * n * 997,
        lambda n: "x" * (n << 15),
        lambda n: f"\\int_0^{{{n}}} e^{{x^x}} dx",
        lambda n: "\\sqrt{" * n * 7 + "2" + "}" * n * 7,
        lambda n: f"\\sum_{{k=1}}^{{{n}0000000}} k^k",
        lambda n: (
            "".join(chr(rng.randrange(32, 0x10000)) for _ in range(n * 30))
            .encode("utf-8", "ignore")
            .decode()
        ),
        lambda n: "import os; os.abort()",
        lambda n: "__import__('os').system('true')",
        lambda n: "\x00" * n,
        lambda n: "",
        lambda n: None,
        lambda n: "\\boxed{" * n,
        lambda n: f"\\begin{{pmatrix}}{'1&' * n * 20}1\\end{{pmatrix}}",
        lambda n: "\\sin(" * n * 5 + "x" + ")" * n * 5,
        lambda n: f"{n}^{{1/{n}}} + " * n * 3 + "1",
        lambda n: "2^{2^{2^{2^{" + str(n) + "}}}}",
    ]
    return [makers[i % len(makers)](i // len(makers) + 1) for i in range(count)]


def mutants(text: str) -> list[str]:
    "The same answer with another digit, sign, exponent, bracket, order or length."
    found = []
    for m in re.finditer(r"\d+", text):
        found.append(text[: m.start()] + str(int(m[0]) + 1) + text[m.end() :])
    for m in re.finditer(r"(?<![\\a-z])[+-]", text):
        found.append(text[: m.start()] + "+-"[m[0] == "+"] + text[m.end() :])
    if "," in text and r"\begin" not in text:
        for one, other in ("([", "[(", ")]", "])"):
            i = text.find(one)
            if i >= 0:
                found.append(text[:i] + other + text[i + 1 :])
    if m := re.fullmatch(r"\$?([(\[]?)([^()\[\]{}=]+,[^()\[\]{}=]+)([)\]]?)\$?", text):
        items = [item.strip() for item in m[2].split(",")]
        found.append(f"${m[1]}{', '.join(items[:-1])}{m[3]}$")
        if m[1] and items[0] != items[-1]:
            found.append(f"${m[1]}{', '.join(items[::-1])}{m[3]}$")
    return found


def judge_with_math_verify(pairs: list[list[str]]) -> dict:
    "What math-verify says about `[gold, answer]` pairs; each text is parsed once."
    from math_verify import LatexExtractionConfig, parse, verify

    start, parsed = time.perf_counter(), {}
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    for text in dict.fromkeys(text for pair in pairs for text in pair):
        found = parse(f"\\boxed{{{text}}}", config)
        parsed[text] = [p for p in found if not isinstance(p, str)]
    verdicts = [bool(parsed[g] and parsed[a] and verify(parsed[g], parsed[a])) for g, a in pairs]
    seconds = time.perf_counter() - start
    return {"read": [bool(parsed[g]) for g, _ in pairs], "same": verdicts, "seconds": seconds}


def judge(pairs: list[list[str]], folder: str | None) -> dict:
    "`judge_with_math_verify` in a process of its own, with the packages in `folder`."
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [folder, *sys.path]))}
    command = [sys.executable, __file__, "--judge"]
    done = subprocess.run(
        command, input=json.dumps(pairs), env=environment, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def judge_with_r1nb(pairs: list[list[str]]) -> dict:
    "The same by the package, with one worker."
    with AnswerPool(1) as pool:
        verify_answers(["\\boxed{x+1}"], ["y"], pool=pool)  # the worker starts here
        start = time.perf_counter()
        same = verify_answers(
            [f"\\boxed{{{a}}}" for _, a in pairs], [g for g, _ in pairs], pool=pool
        )
        seconds = time.perf_counter() - start
    return {"read": [s is not None for s in same], "same": same, "seconds": seconds}


def references(files: list[Path]) -> list[str]:
    "The references in the columns `answer`, `final_answer` or (in a box) `solution` of `files`."
    found = []
    for row in (row for file in files for row in read_rows(file)):
        value = next((row[k] for k in ("answer", "final_answer", "solution") if row.get(k)), None)
        parts = value if isinstance(value, list) else [value]
        text = ", ".join(map(str, parts))
        found.append(extract_answer(text) or text if "answer" not in row else text)
    return [text for text in found if text not in ("", "None")]


def run_references(files: list[Path], others: list[str], count: int, seed: int) -> None:
    "How often graders are wrong about references: alone, in pairs, and changed in one place."
    golds = references(files)
    print(f"{len(golds)} references of {', '.join(file.stem for file in files)}")
    rng = random.Random(seed)
    pairs = {
        "with itself": [[g, g] for g in golds],
        "random pairs": [rng.sample(golds, 2) for _ in range(count)],
        "one place changed": [[g, m] for g in golds if len(g) < 150 for m in mutants(g)],
    }
    graders = {"r1nb": judge_with_r1nb, "math-verify, installed": lambda p: judge(p, None)}
    for other in others:
        graders[f"math-verify, {other}"] = lambda p, other=other: judge(p, other)
    pairs["one place changed"] = rng.sample(pairs["one place changed"], count // 10)
    for name, grader in graders.items():
        asked = [pair for kind in pairs for pair in pairs[kind]]
        found = grader(asked)
        rate, at = len(asked) / found["seconds"], 0
        print(f"{name}: {rate:.0f} verdicts/s")
        for kind, part in pairs.items():
            there = range(at, at + len(part))
            at += len(part)
            unread = len({asked[i][0] for i in there if not found["read"][i]})
            accepted = [asked[i] for i in there if found["same"][i]]
            print(f"  {kind}: {len(accepted)} of {len(part)} are equal", end="")
            print(f"; references not read: {unread}" if kind == "with itself" else "")
            different = [p for p in accepted if p[0] != p[1]] if name == "r1nb" else []
            for gold, answer in different:
                print(f"      {gold!r} | {answer!r}")


def memory_mib() -> tuple[float, float]:
    "Return the peak resident memory of this process and of the largest finished worker."
    return tuple(
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def run_hostile(count: int, seed: int) -> None:
    inputs = hostile(count, random.Random(seed))
    boxed = [x if x is None or i % 3 == 0 else f"\\boxed{{{x}}}" for i, x in enumerate(inputs)]
    for name, texts, golds in (
        ("as completions", boxed, ["\\frac{\\pi}{2}"] * count),
        ("as references", ["\\boxed{1}"] * count, inputs),
    ):
        with AnswerPool(2) as pool:
            start = time.perf_counter()
            verdicts = verify_answers(texts, golds, deadline=1.0, pool=pool)
            seconds = time.perf_counter() - start
            kinds = ", ".join(f"{v} {verdicts.count(v)}" for v in (True, False, None))
            print(f"{count} hostile inputs {name}: {seconds:.1f} s; {kinds}")
            print(f"  {pool.timeouts} timed out, {pool.crashes} workers died")
    own, worker = memory_mib()
    print(
        f"peak memory: this process {own:.0f} MiB, largest worker {worker:.0f} MiB "
        "(limit 2048 of address space)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=500, help="number of problems (default: 500)")
    parser.add_argument(
        "--hostile", type=int, default=0, metavar="N", help="grade N hostile inputs instead"
    )
    parser.add_argument(
        "--sets", type=Path, nargs="+", metavar="FILE", help="with --references: of these files"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--references", type=int, default=0, metavar="N",
        help="compare references with themselves, with changed ones, and N random pairs",
    )  # fmt: skip
    parser.add_argument(
        "--other", action="append", default=[], metavar="FOLDER",
        help="with --references: also the math-verify in FOLDER (pip install --target FOLDER …)",
    )  # fmt: skip
    parser.add_argument("--judge", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.judge:
        result = judge_with_math_verify(json.load(sys.stdin))
        print(json.dumps(result))
        return None
    if args.hostile:
        return run_hostile(args.hostile, args.seed)
    folder = os.environ.get("R1NB_BENCHMARKS") or parser.error(
        "set R1NB_BENCHMARKS to a folder with math500.jsonl"
    )
    if args.references:
        usual = [Path(folder) / f"{name}.jsonl" for name in ("college_math_half", "math500")]
        return run_references(args.sets or usual, args.other, args.references, args.seed)
    rows = read_rows(Path(folder) / "math500.jsonl")[: args.limit]
    texts, golds = completions(rows, random.Random(args.seed))
    seconds = {"math-verify, 1 process": [], "r1nb, 1 worker": [], "r1nb, 2 workers": []}
    verdicts = {}
    with AnswerPool(1) as one, AnswerPool(2) as two:
        graders = [
            lambda: plain(texts, golds),
            lambda: verify_answers(texts, golds, pool=one),
            lambda: verify_answers(texts, golds, pool=two),
        ]
        for pool in (one, two):
            # workers start here, not in the measurement
            verify_answers(["\\boxed{x+1}"] * 2, ["y", "z"], pool=pool)
        for _ in range(args.rounds):
            for name, grader in zip(seconds, graders, strict=True):
                start = time.perf_counter()
                verdicts[name] = grader()
                seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["math-verify, 1 process"])
    for name, values in seconds.items():
        median = statistics.median(values)
        right = sum(v is True for v in verdicts[name])
        rate = len(texts) / median
        print(
            f"{name:24} {rate:7.0f} completions/s   {base / median:.2f} x   "
            f"right: {right} of {len(texts)}"
        )
    assert verdicts["r1nb, 1 worker"] == verdicts["r1nb, 2 workers"]
    ours, theirs = verdicts["r1nb, 2 workers"], verdicts["math-verify, 1 process"]
    different = [
        (g, t[-60:], a, b)
        for g, t, a, b in zip(golds, texts, ours, theirs, strict=True)
        if bool(a) != b
    ]
    period = sum(text.endswith(".}") for _, text, _, _ in different)
    without = [text for text in texts if not text.endswith(".}")]
    agreement = 1 - (len(different) - period) / len(without)
    print(
        f"{len(different)} disagreements, {period} of them about a period in the box; without "
        f"those completions {100 * agreement:.2f} % of {len(without)} agree"
    )
    for gold, text, a, b in different:
        if text.endswith(".}"):
            continue
        print(f"  reference {gold!r}, completion …{text!r}: r1nb {a}, math-verify {b}")


if __name__ == "__main__":
    main()
