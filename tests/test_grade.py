"`r1nb grade`: usual columns of others' files, verdicts, and the disagreements with theirs."

import json

import pandas as pd
import pytest

from r1nb.answers import AnswerPool
from r1nb.cli import main
from r1nb.grade import grade, write_verdicts
from r1nb.settings import InputError

RIGHT, WRONG = r"So $\boxed{\frac{1}{2}}$.", r"<think>\boxed{0.5}</think> It is \boxed{2}."
ROWS = {
    "ours": [
        {"problem_id": "a", "sample": 0, "answer": "1/2", "completion": RIGHT},
        {"problem_id": "a", "sample": 1, "answer": "1/2", "completion": WRONG},
    ],
    "Open-R1": [
        {
            "problem": "?", "solution": r"It is \boxed{0.5}.", "answer": "0.5",
            "generations": [RIGHT, WRONG], "correctness_math_verify": [True, True],
        }
    ],
    "Qwen2.5-Math": [{"question": "?", "gt": "0.5", "code": [RIGHT, WRONG], "score": [True, True]}],
    "lighteval": [
        {
            "doc": {"query": "?", "choices": ["0.5"], "gold_index": [0]},
            "model_response": {"text": [RIGHT, WRONG]},
            "metric": {"pass@1": 0.5},
        }
    ],
    "chats": [
        {
            "prompt": "?", "reference": 0.5,
            "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}],
        }
        for text in (RIGHT, WRONG)
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def pool():
    with AnswerPool(workers=1) as p:
        yield p


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_usual_columns(kind, suffix, tmp_path, pool):
    file = tmp_path / f"drawn.{suffix}"
    if suffix == "parquet":
        pd.DataFrame(ROWS[kind]).to_parquet(file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]), "utf-8")
    graded = grade(file, pool=pool, deadline=60)
    assert list(graded.table["verdict"]) == [True, False]
    assert graded.accuracy.value == 0.5 and graded.accuracy.n_problems == 1
    assert len(graded.disagreements) == (kind in ("Open-R1", "Qwen2.5-Math"))


def test_command_prints_and_writes(tmp_path, capsys):
    file, out = tmp_path / "drawn.jsonl", tmp_path / "verdicts.jsonl"
    rows = [*ROWS["Qwen2.5-Math"], {"question": "!", "gt": r"\frac{1}{", "code": RIGHT, "score": 1}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["grade", str(file), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for part in (
        "3 completions of 2 rows",
        "reference from gt, completions from code, verdicts from score",
        "accuracy: 50.0 %",
        "references that cannot be read: 1",
        "differ from the file's: 1 of 2",
        "unreadable: row 1",
        "disagreements: row 0, sample 1",
    ):
        assert part in text, text
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["verdicts"] for line in lines] == [[True, False], [None]]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([], None, "no rows"),
        ([{"a": 1}], None, "no column of reference; looked for answer, gt"),
        ([{"gt": "1"}], None, "no column of completions"),
        ([{"gt": "1", "code": "2"}], {"reference": "gold"}, "no column 'gold' with values"),
        ([{"gt": "1", "code": 3}], None, "completions must be texts, not int"),
    ],
)
def test_what_is_missing_is_said(rows, columns, message):
    with pytest.raises(InputError, match=message):
        grade(rows, columns)


def test_no_verdict_without_a_reference(pool, tmp_path):
    rows = [{"gt": None, "code": [RIGHT]}, {"gt": "0.5", "code": [RIGHT, None]}]
    graded = grade(rows, pool=pool, deadline=60)
    assert list(graded.table["verdict"]) == [None, True, False]
    assert len(graded.unreadable) == 1 and graded.accuracy.n_problems == 1
    assert write_verdicts(graded, tmp_path / "v.jsonl").read_text().count("\n") == 2
