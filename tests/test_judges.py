"""Verdicts about programs and texts: no output makes a judge raise, hang or accept it wrongly."""

import asyncio
import json
import math
import random
import re
import shutil
import time
import warnings
from decimal import Decimal

import pytest
from conftest import r1nb
from hypothesis import given, settings
from hypothesis import strategies as st

from r1nb import answers, benchmarks, rewards, templates
from r1nb.judges import (
    PROVIDERS,
    read_cases,
    same_output,
    score_codeforces,
    score_ioi,
    score_program,
    score_programs,
)
from r1nb.sandbox import Limits, guarantees
from r1nb.settings import InputError

STDIN = {"decimals": True, "test_cases": [{"input": "", "output": "1"}]}
F_OF_2 = {"type": "function_call", "fn_name": "f", "input": "[2]", "output": "[4]"}
CALL = {"language": "python", "test_cases": [{**F_OF_2, "wrapped": True}]}
# Finds the mark of the call, prints something behind it, and exits before the function is called.
LEAVES = """import os, sys
def say(text):
    print('\\n' + sys.modules['__main__'].call['mark'] + text, flush=True)
    os._exit(0)
"""
PRINTED = {
    "nesting": "'[' * 100_000",
    "signalling NaN": "'sNaN'",
    "NaN": "'NaN'",
    "a huge exponent": "'1e999999999'",
    "a tiny exponent": "'1e-999999999'",
    "a million digits": "'1' * 1_000_000",
    "infinity": "'Infinity'",
    "a zero byte": "chr(0)",
    "half a character": "'\\\\ud800'",
    "one long line": "'1 ' * 300_000",
    "many lines": "'1\\n' * 300_000",
    "nested objects": "'{\"a\":' * 50_000",
    "other line ends": "chr(0x2028) + chr(0x0b) + chr(0x1c) + '2'",
    "a terminal's escape": "chr(27) + '[2J'",
}


@pytest.mark.parametrize("name", PRINTED)
def test_nothing_printed_raises(name):
    text = PRINTED[name]
    assert score_program(f"print({text})", STDIN) == 0.0
    marked = f"{LEAVES}say({text})"
    assert score_program(marked, CALL) == 0.0
    returned = f"def f(n): return {text}"
    assert score_program(returned, CALL) == 0.0
    checker = "print(open(__import__('sys').argv[3]).read())"
    problem = {"official_tests": [{"input": "", "output": "2"}], "generated_checker": checker}
    assert score_codeforces(f"print({text})", problem, "python", "partial") == 0.0


def test_bytes_that_are_not_text_are_a_wrong_answer():
    assert score_program("import sys; sys.stdout.buffer.write(bytes(range(256)))", STDIN) == 0.0
    deep = "def f(n):\n    x = []\n    for _ in range(900): x = [x]\n    return x"
    assert score_program(deep, CALL) == 0.0
    itself = "def f(n):\n    x = []\n    x.append(x)\n    return x"
    assert score_program(itself, CALL) == 0.0


@given(st.text(max_size=60), st.text(max_size=60), st.booleans())
def test_comparing_any_two_texts(a, b, decimals):
    assert same_output(a, b, decimals) in (True, False)
    assert same_output(a, a, decimals) is True
    assert same_output(a, b, decimals) == same_output(b, a, decimals)


def test_blank_lines_around_an_output_do_not_count():
    info = {"language": "python", "test_cases": [{"input": "", "output": "a\n\nb\n"}]}
    assert score_program("print('\\n\\n a\\n\\nb\\n\\n')", info) == 1.0
    assert score_program("print('a\\nb')", info) == 0.0  # blank lines inside do


def test_a_guard_for_the_command_line_does_not_run():
    guarded = """class Solution:
    def f(self, n): return n * n
if __name__ == '__main__':
    print(int(input()))
"""
    assert score_program(guarded, CALL) == 1.0
    tools = """from __future__ import annotations
from dataclasses import dataclass
import pickle, sys, typing
@dataclass
class P:
    n: int
def f(n: int) -> int:
    assert typing.get_type_hints(f)['n'] is int and sys.modules[__name__].P is P
    return pickle.loads(pickle.dumps(P(n * n))).n
"""
    assert score_program(tools, CALL) == 1.0
    assert score_program("def g(n): return 4", CALL) == 0.0
    assert score_program("f = (", CALL) == 0.0
    braces = "def f(n): return {2: '{n}'}[n].format(n=n * n) == '4' and 4"
    assert score_program(braces, CALL) == 1.0


def test_a_program_that_reads_its_input_finds_none_and_is_called():
    reads = """import sys
data = sys.stdin.read()
def f(n): return n * n + len(data)
assert __file__.endswith('.py')
"""
    assert score_program(reads, CALL) == 1.0
    assert score_program("n = int(input())\ndef f(n): return 4", CALL) == 0.0


@pytest.mark.parametrize(
    ("returned", "output", "right"),
    [
        ("1.0", "1", True),
        ("True", "1", True),
        ("(1, (2, 3))", "[1, [2, 3]]", True),
        ("{3, 1}", "[1, 3]", True),
        ("{1: 2}", '{"1": 2}', True),
        ("None", "null", True),
        ("float('inf')", "Infinity", True),
        ("float('nan')", "NaN", False),
        ("[float('nan')]", "[NaN]", False),
        ("'1'", "1", False),
        ("[1]", "1", False),
        ("1e-17", "0", False),
        ("10**5000", "1", False),
    ],
)
def test_what_equals_a_returned_value(returned, output, right):
    source = f"def f(n): return {returned}"
    for expected, wrapped in ((output, False), (f"[{output}]", True)):
        info = {"test_cases": [{**F_OF_2, "output": expected, "wrapped": wrapped}]}
        assert score_program(source, info) == float(right), wrapped


@pytest.mark.parametrize(
    "hostile", ["# \ud800", "\0", "'" * 100_000, "(" * 100_000, "x = " + "9" * 100_000]
)
def test_no_source_raises(hostile):
    assert score_program(f"{hostile}\nprint(2)", STDIN) == 0.0
    assert score_program(f"{hostile}\ndef f(n): return 5", CALL) == 0.0
    text = f"```python\n{hostile}\nprint(2)\n```"
    assert rewards.code_reward([text], [STDIN]) == [0.0]
    row = {"problem_id": "a", "verification": json.dumps({"verification_info": STDIN})}
    assert benchmarks.judge("code", [text], [row])[1] == [False]
    problem = {"official_tests": [{"input": "", "output": "1"}]}
    assert score_codeforces(f"{hostile}\nprint(2)", problem, "python", "partial") == 0.0


def test_a_program_that_reads_the_mark_still_has_to_know_the_result():
    assert score_program(f"{LEAVES}say('[4]')", CALL) == 0.0
    # with the mark it can print the result, if it happens to know it
    assert score_program(f"{LEAVES}say('4')", CALL) == 1.0
    for said in ("'5'", "'null'", "''", "'5\\n4'"):
        assert score_program(f"{LEAVES}say({said})", CALL) == 0.0, said
    at_exit = """import atexit, sys
atexit.register(print, '\\n' + sys.modules['__main__'].call['mark'] + '5')
def f(n): return 4
"""
    assert score_program(at_exit, CALL) == 0.0
    equal = """class Any:
    def __eq__(self, other): return True
    def __repr__(self): return 'Any'
def f(n): return Any()
"""
    assert score_program(equal, CALL) == 0.0
    assert score_program("import sys\ndef f(n): sys.exit(0)", CALL) == 0.0


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ("[" * 100_000, "'test_cases'"),
        ({"test_cases": "x"}, "'test_cases'"),
        ({"test_cases": []}, "'test_cases'"),
        ({"test_cases": [3]}, "test case 1: a mapping is needed"),
        (
            {"test_cases": [{"input": "1", "output": "1"}, {"input": "1"}]},
            "test case 2: no 'output'",
        ),
        ({"test_cases": [{"input": "1", "output": "1", "type": ["x"]}]}, "test case 1: type"),
        ({"test_cases": [{"input": "1", "output": None}]}, "test case 1: no 'output'"),
        (
            {"language": "pyhton", "test_cases": [{"input": "1", "output": "1"}]},
            "did you mean 'python'",
        ),
        (None, "not 'None'"),
    ],
)
def test_tests_that_cannot_be_read_are_named_before_anything_runs(info, words):
    with pytest.raises(InputError, match=re.escape(words)):
        read_cases(info)
    with pytest.raises(InputError, match="program 2: "):
        score_programs(["print(1)"] * 2, [STDIN, info])


CODEFORCES = {"id": "1A", "official_tests": [{"input": "", "output": "1"}]}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"official_tests": "ab"}, "official_tests: a list is needed"),
        ({"official_tests": 5}, "official_tests: a list is needed"),
        ({"generated_tests": [None]}, "generated_tests, test 1"),
        ({"generated_tests": [{"input": "1"}]}, "generated_tests, test 1"),
        ({"generated_checker": 5}, "generated_checker"),
        ({"time_limit": math.nan}, "time_limit: nan"),
        ({"time_limit": -1}, "time_limit: -1"),
        ({"memory_limit": math.inf}, "memory_limit: inf"),
        ({"memory_limit": "much"}, "memory_limit: much"),
        ({"language": "pyhton"}, "did you mean 'python'"),
        ({"language": 5}, "language '5'"),
    ],
)
def test_a_codeforces_row_that_cannot_be_used_is_named_before_anything_runs(wrong, words):
    rows = [{**CODEFORCES, "language": "python"}, {**CODEFORCES, "language": "python", **wrong}]
    columns = {k: [row.get(k) for row in rows] for k in {**rows[0], **rows[1]}}
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("r1nb.judges.Program", lambda *_, **__: ran.append(1))
        with pytest.raises(InputError, match="program 2: .*" + re.escape(words)):
            rewards.cf_code_reward(["```python\nprint(1)\n```"] * 2, **columns)
    assert not ran


IOI = {
    "id": "twice",
    "score": 3,
    "test_names": ["a"],
    "test_cases": [["", "1"]],
    "time_limit": 1.0,
    "memory_limit": 2**28,
}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"time_limit": "x"}, "time_limit: x"),
        ({"time_limit": math.inf}, "time_limit: inf"),
        ({"memory_limit": math.nan}, "memory_limit: nan"),
        ({"score": "x"}, "score: x"),
        ({"test_cases": [[]]}, "test case 'a': a pair"),
        ({"test_cases": 5}, "test_cases: a list"),
        ({"test_names": 5}, "test_names: a list"),
        ({"test_names": ["a", "b"]}, "no test case 'b'"),
        ({"grader_files": [["a"]]}, "grader_files: a pair"),
        ({"grader_files": 7}, "grader_files: a list"),
    ],
)
def test_an_ioi_row_that_cannot_be_used_is_named_before_anything_runs(wrong, words):
    with pytest.raises(InputError, match="IOI subtask twice: .*" + re.escape(words)):
        score_ioi("int f() {}", {**IOI, **wrong})
    columns = {k: [IOI.get(k), {**IOI, **wrong}.get(k)] for k in {**IOI, **wrong}}
    with pytest.raises(InputError, match="program 2: IOI subtask twice: .*" + re.escape(words)):
        rewards.ioi_code_reward(["```cpp\nint f() {}\n```"] * 2, **columns)


@pytest.mark.parametrize("text", ["```cpp\nint f() {}\n```", "no program"])
def test_an_ioi_problem_with_a_manager_gets_no_verdict(text, monkeypatch):
    "Whatever the completion; comparing the outputs would misjudge it."
    monkeypatch.delattr("r1nb.judges.Program")  # nothing is run
    files = [["graders/grader.cpp", "int main() {}"], ["graders/manager.cpp", "int main() {}"]]
    columns = {key: [value] for key, value in {**IOI, "grader_files": files}.items()}
    with pytest.warns(UserWarning, match="with a manager"):
        assert rewards.ioi_code_reward([text], **columns) == [None]


IOI_CHECKERS = {
    "half": ('puts("0.5");', 0.5),
    "no number": ('puts("fine");', None),
    "too much": ('puts("2");', None),
    "nan": ('puts("nan");', None),
    "silent": ("", None),
    "failing": ('puts("1"); return 1;', None),
    "broken": ("return missing;", None),
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("name", IOI_CHECKERS)
def test_the_checker_of_an_ioi_problem_decides_where_outputs_differ(name):
    "One that gives no valid score leaves the program without a verdict, never with a wrong one."
    body, score = IOI_CHECKERS[name]
    checker = f"#include <cstdio>\nint main() {{ {body} }}"
    row = {**IOI, "grader_files": [["twice.h", "//"], ["checker/checker.cpp", checker]]}
    row |= {"test_names": ["a"], "test_cases": [["", "7"]]}
    program = '#include <cstdio>\nint main() { puts("%d"); }'
    assert score_ioi(program % 7, row)["score"] == 1.0  # as expected: the checker is not asked
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert score_ioi(program % 8, row)["score"] == score


def test_a_program_in_an_unfinished_thought_earns_nothing():
    block = "```python\nprint(1)\n```"
    texts = [
        f"<think>\n{block}\n",
        f"<think>\n{block}\n</think>\nNo.",
        f"<think>x</think>\n{block}",
        block,
    ]
    infos = [json.dumps(STDIN)] * 4
    assert rewards.code_reward(texts, infos) == [0.0, 0.0, 1.0, 1.0]
    assert rewards.binary_code_reward(texts, infos) == [0.0, 0.0, 1.0, 1.0]
    columns = {key: [value] * 4 for key, value in {**CODEFORCES, "language": "python"}.items()}
    columns["official_tests"] = [[{"input": "", "output": "1"}]] * 4
    assert rewards.cf_code_reward(texts, **columns) == [-1.0, -1.0, 1.1, 1.1]
    # and where the template has begun the thought
    prompts = ["? <think>\n"] * 2
    assert rewards.code_reward([block, f"x</think>{block}"], infos[:2], prompts) == [0.0, 1.0]


@pytest.mark.parametrize("info", ["{", "[" * 100_000, "[1]", None, 5, '{"language": "python"}'])
def test_the_reward_names_a_bad_verification_info(info):
    with pytest.raises(InputError, match="program 2: verification_info: a mapping"):
        rewards.code_reward(["```python\nprint(1)\n```"] * 2, [json.dumps(STDIN), info])


def test_lines_that_a_program_adds_to_a_remote_reply_are_refused():
    "A program that reaches the script's output writes its lines there."
    lines = [
        "[" * 100_000,
        '["ok"]',
        "[1, 2, 3, 4]",
        '["ok", null, "", 0]',
        '["what", "", "", 0]',
        '["ok", "1", "", 0]',
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2B_ROUTER_URL", "nowhere")
        patch.setattr("r1nb.judges._post", lambda *_: [{"text": "\n".join(lines)}])
        found = [r.status for r in PROVIDERS["e2b"]("", "python", [""] * 7, Limits())]
    assert found == ["killed"] * 5 + ["ok", "killed"]


# texts

PIECES = [
    *("<think>", "</think>", "<answer>", "</answer>", "\n", "```python", "```", "\\boxed{", "}"),
    *("<think>\n", "\n</think>\n<answer>\n", "\n</answer>", "\\text{", "$", "a", " ", "1", ",1"),
    *("Answer:", "#### 1", "B", "(", ".", "Step 1:"),
]
REWARDS_OF_FORM = ("format", "format_zero", "tag_count", "reasoning_steps", "code_format")
# Functions that read completions.
READERS = {
    "extract_answer": answers.extract_answer,
    "last_boxed": answers.last_boxed,
    "verify_answers": lambda t: answers.verify_answers([t], ["5"]),
    "extract_choice": benchmarks.extract_choice,
    "extract_program": benchmarks.extract_program,
    "extract_code": rewards.extract_code,
    "open_think": templates.open_think,
    **{
        name: lambda t, name=name: rewards.REWARDS[name](completions=[t])
        for name in (*REWARDS_OF_FORM, "repetition_penalty")
    },
    "open_r1 form": lambda t: rewards.format_reward([t], form="open_r1"),
}
REPEATED = [
    *PIECES,
    "<think>\n\n</think>\n<answer>\n",
    "<think>\n</think>\n<answer>\n```python```",
    "```python\n```",
    "#### 1" + " " * 5000,
    "#### " + "1," * 2500,
    "####\t",
    "Answer: " + "*" * 2000,
    "Answer" + " " * 3000,
    "\\boxed" + " " * 3000,
    "\\boxed{\\text{",
    "Step 1",
    "<think>" + " " * 3000,
    "\\( ",
    "√",
]


@pytest.mark.parametrize("reader", READERS)
def test_reading_takes_time_in_proportion_to_the_text(reader):
    read = READERS[reader]
    for piece in REPEATED:
        for tail in ("", "x", "\n</answer>", "</think>"):
            text = "<think>\n" * (tail == "\n</answer>") + piece * (200_000 // len(piece)) + tail
            begin = time.process_time()
            read(text)
            assert time.process_time() - begin < 3, (piece[:30], tail)


def old_code_format(text, language="python"):
    return bool(
        re.fullmatch(
            rf"<think>\n.*?\n</think>\n<answer>\n.*?```{language}.*?```.*?\n</answer>", text, re.S
        )
    )


OLD_GSM8K = re.compile(
    r"^####[ \t]*((?:\\?\$)?[-+]?\.?\d[\d,]*(?:\.\d+)?(?:[ \t]?\\?%)?)[ \t]*\.?[ \t]*$", re.M
)


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_the_linear_forms_agree_with_the_patterns(pieces):
    for text in ("".join(pieces), "<think>\n" + "".join(pieces) + "\n</answer>"):
        assert rewards.code_format_reward([text]) == [float(old_code_format(text))]
        assert answers._GSM8K.findall(text) == OLD_GSM8K.findall(text)


def test_the_linear_forms_on_longer_texts():
    rng = random.Random(0)
    good = "<think>\na\n</think>\n<answer>\nb ```python\nprint(1)\n``` c\n</answer>"
    assert rewards.code_format_reward([good]) == [1.0]
    for _ in range(3000):
        text = list(good)
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(text))
            text[at : at + rng.randrange(4)] = rng.choice(PIECES)
        text = "".join(text)
        assert rewards.code_format_reward([text]) == [float(old_code_format(text))], text
    right = ("#### 5", "#### $1,000.50 .  ", "#### 5 %", "####5 \t.\t ", "#### .5.")
    for line in (*right, "#### 5..", "#### 5 x"):
        assert answers._GSM8K.findall(line) == OLD_GSM8K.findall(line), line
        assert bool(answers._GSM8K.findall(line)) == (line in right), line


# rewards


def test_the_cosine_ends_at_its_length_and_long_wrong_answers_lose_less():
    lengths = (100, 500, 1000, 1500, 2000, 10**6)

    def cosine(answer):
        texts = [f"\\boxed{{{answer}}}".rjust(n) for n in lengths]
        return rewards.cosine_scaled_reward(texts, ["1"] * len(lengths))

    right, wrong = cosine(1), cosine(2)
    assert right == sorted(right, reverse=True) and right[2:] == [0.5] * 4
    assert wrong == sorted(wrong) and wrong[2:] == [-0.5] * 4
    options = rewards.RewardOptions(reward_funcs=["cosine"])
    (func,) = rewards.get_reward_funcs(options)
    short, long = func(completions=["\\boxed{2}", "\\boxed{2}".rjust(900)], answer=["1", "1"])
    assert short < long < 0


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format_form", "r2", "valid: open_r1, r1, r1_zero"),
        ("code_provider", "locall", "did you mean 'local'"),
        ("code_eval_scoring_mode", "passfail", "did you mean 'pass_fail'"),
        ("repetition_language", "de", "en"),
        ("cosine_max_len", 0, "not positive"),
        ("repetition_max_penalty", 1.0, "a penalty is 0 or less"),
        ("repetition_n_grams", 0, "not positive"),
        ("soft_punish_cache", 0, "not positive"),
        ("soft_punish_cache", 20_000, "more than max_completion_len"),
        ("max_completion_len", -1, "not positive"),
        ("reward_funcs", [], "at least one"),
        ("cosine_min_value_wrong", math.nan, "nan is not a finite number"),
        ("cosine_max_value_correct", math.inf, "inf is not a finite number"),
        ("repetition_max_penalty", -math.inf, "not a finite number"),
        ("repetition_n_grams", 1.5, "not a whole number"),
        ("parallel_code_exec_per_proc", 10**30, "valid: 1 to 1024"),
        ("code_language", "pyhton", "did you mean 'python'"),
        ("format_form", ["r1"], "valid: open_r1"),
    ],
)
def test_invalid_options_of_rewards(key, value, words):
    with pytest.raises(InputError, match=f"{key}: .*{words}"):
        rewards.RewardOptions(**{key: value})


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([float("nan"), 1.0], "'nan' for completion 0"),
        ([1.0, float("inf")], "'inf' for completion 1"),
        ([1.0], "1 values for 2 completions"),
        (["1", 1.0], "'1' for completion 0"),
        ([[1.0], 1.0], "'\\[1.0\\]' for completion 0"),
        ([10**400, 1.0], "'1000+' for completion 0"),
        (None, "'None' for 2 completions; a list is needed"),
    ],
)
def test_a_reward_that_is_not_a_number_is_named(returned, words):
    name = "of_a_test"
    rewards.REWARDS[name] = lambda completions, **_: returned
    try:
        (func,) = rewards.get_reward_funcs([name])
        with pytest.raises(ValueError, match=f"reward '{name}': {words}"):
            func(completions=["a", "b"])
        rewards.REWARDS[name] = lambda completions, **_: [None, True]
        assert rewards.get_reward_funcs([name])[0](completions=["a", "b"]) == [None, True]
    finally:
        del rewards.REWARDS[name]


def test_what_a_reward_may_return():
    import numpy as np
    import torch

    def given(returned):
        rewards.REWARDS["of_a_test"] = lambda completions, **_: returned
        try:
            return rewards.get_reward_funcs(["of_a_test"], prefill="<think>\n")[0](
                completions=["a", "b"]
            )
        finally:
            del rewards.REWARDS["of_a_test"]

    for numbers in (
        torch.tensor([0.5, 1]),
        [torch.tensor(0.5), 1],
        np.float32([0.5, 1]),
        (n for n in (0.5, 1)),
        (Decimal("0.5"), True),
    ):
        assert given(numbers) == [0.5, 1.0]


def test_an_asynchronous_reward_stays_one():
    from trl.trainer.utils import is_async_callable

    async def later(completions, worth=1.0, **_):
        return [worth for _ in completions]

    class Later:
        async def __call__(self, completions, **_):
            return [math.nan] * len(completions)

    rewards.REWARDS.update(of_a_test=later, of_another=Later())
    try:
        for prefill in ("", "<think>\n"):
            good, bad = rewards.get_reward_funcs(["of_a_test", "of_another"], prefill=prefill)
            assert is_async_callable(good) and is_async_callable(bad)
            assert not is_async_callable(rewards.get_reward_funcs(["format"])[0])
            assert asyncio.run(good(completions=["a", "b"])) == [1.0, 1.0]
            with pytest.raises(ValueError, match="reward 'of_another': 'nan' for completion 0"):
                asyncio.run(bad(completions=["a"]))
        assert rewards.preview_rewards(["a"], ["b"], ["of_a_test"])["of_a_test"].tolist() == [1.0]
    finally:
        del rewards.REWARDS["of_a_test"], rewards.REWARDS["of_another"]


def test_half_a_character_can_be_previewed():
    table = rewards.preview_rewards(
        ["?\ud800"], ["\\boxed{5}\ud800"], ["accuracy", "format"], answer=["5"]
    )
    assert table["accuracy"].tolist() == [1.0]
    assert table["completion"].tolist() == ["\\boxed{5}\ud800"]


def test_the_language_of_a_block_need_not_be_one_that_runs():
    for language in ("java", "bash", "r", "cpp", "javascript"):
        (func,) = rewards.get_reward_funcs(
            rewards.RewardOptions(reward_funcs=["code_format"], code_language=language)
        )
        text = f"<think>\na\n</think>\n<answer>\n```{language}\nx\n```\n</answer>"
        assert func(completions=[text]) == [1.0]


def test_weights_that_do_not_match_the_rewards(tiny_model):
    from r1nb.grpo import check, stage
    from r1nb.recipes import configure

    written = {
        "dataset_name": "reasoning_gym/chain_sum",
        "num_problems": 4,
        "model_name_or_path": str(tiny_model),
    }
    configuration, _ = configure(
        stage, {**written, "reward_funcs": ["accuracy", "format"], "reward_weights": [1.0]}, {}
    )
    with pytest.raises(
        InputError, match="reward_weights: 1 weights for the 2 rewards accuracy, format"
    ):
        check(*configuration)


def test_a_dry_run_checks_the_rewards_and_writes_nothing(tmp_path, tiny_model):
    words = [
        "grpo",
        "--model_name_or_path",
        tiny_model,
        "--dataset_name",
        "reasoning_gym/chain_sum",
    ]
    for wrong, said in (
        (["--cosine_max_len", "0"], "cosine_max_len: 0 is not positive"),
        (["--reward_weights", "[1.0]"], "reward_weights: 1 weights for the 2 rewards"),
    ):
        done = r1nb(
            *words, "--num_problems", 4, *wrong, "--dry-run", cwd=tmp_path, runs=tmp_path / "runs"
        )
        assert done.code == 2 and said in done.err and "Traceback" not in done.err, done.err
        assert not (tmp_path / "runs").exists()
    done = r1nb(*words, "--num_problems", 4, "--dry-run", cwd=tmp_path, runs=tmp_path / "runs")
    assert done.code == 0 and "#SBATCH" in done.out and not (tmp_path / "runs").exists(), done.err


@pytest.mark.skipif(not guarantees()["files"], reason="needs bubblewrap and user namespaces")
def test_verification_info_may_be_json():
    assert score_program("print(1)", json.dumps(STDIN)) == 1.0
