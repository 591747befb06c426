"""Reward functions: TRL's protocol, the forms, the registry."""

import subprocess
import sys
import textwrap

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from r1nb import curate
from r1nb.rewards import (
    REWARDS,
    RewardOptions,
    accuracy_reward,
    completion_texts,
    cosine_scaled_reward,
    format_reward,
    format_zero_reward,
    get_reward_funcs,
    ignored_options,
    len_reward,
    open_think,
    preview_rewards,
    reasoning_steps_reward,
    register_reward,
    repetition_penalty_reward,
    tag_count_reward,
)
from r1nb.settings import InputError

RIGHT = r"<think>9*2</think>\boxed{18}"


def chat(*texts):
    return [[{"role": "assistant", "content": t}] for t in texts]


def test_accuracy_for_strings_and_conversations():
    texts = [RIGHT, r"<think>9+2</think>\boxed{11}", "<think>18</think>18", RIGHT, RIGHT]
    answer = ["18", "18", "18", "", None]
    expected = [1.0, 0.0, 0.0, None, None]
    assert accuracy_reward(texts, answer) == expected
    columns = {"prompts": [[{"role": "user", "content": "?"}]] * 5, "ids": [1] * 5}
    assert accuracy_reward(completions=chat(*texts), answer=answer, **columns) == expected


def test_accuracy_of_a_symbolic_answer():
    texts = chat(r"\boxed{2\sqrt2}", r"\boxed{2\sqrt3}")
    assert accuracy_reward(texts, [r"\sqrt{8}"] * 2) == [1.0, 0.0]


def test_accuracy_logs_what_it_extracted():
    logged = {}
    accuracy_reward(chat(RIGHT, "18"), ["18", "18"], log_extra=logged.__setitem__)
    assert logged == {"extracted_answer": ["18", ""]}


def test_a_box_in_unfinished_reasoning_earns_nothing():
    cut = r"so \boxed{18}. But"
    rendered = "9*2?<|im_start|>assistant\n<think>\n"
    assert accuracy_reward([cut, cut], ["18"] * 2, prompts=["9*2?", rendered]) == [1.0, 0.0]
    (func,) = get_reward_funcs(["accuracy"], prefill=open_think(rendered))
    texts = chat(cut, "9*2</think>\\boxed{18}")
    assert func(completions=texts, prompts=None, answer=["18"] * 2) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "r1", "zero"),
    [
        ("<think>a</think>b", 1, 0),
        ("\n<think>\na\n</think>\n\nb\n", 1, 0),
        ("<think>2 < 3</think> 2 < 3", 1, 0),
        ("<think>a</think><answer>b</answer>", 1, 1),
        ("<think>\na\n</think>\n<answer>\nb\n</answer>\n", 1, 1),
        ("<think>a</think><answer>b</answer> c", 1, 0),
        ("<think>a</think><answer> </answer>", 1, 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 1, 0),
        ("<think>a</think>", 0, 0),
        ("<think>a</think>  \n", 0, 0),
        ("<think>  </think>b", 0, 0),
        ("<think>a", 0, 0),
        ("a</think>b", 0, 0),
        ("b", 0, 0),
        ("", 0, 0),
        ("x<think>a</think>b", 0, 0),
        ("<think>a</think>b<think>c</think>d", 0, 0),
        ("<think>a<think>b</think>c", 0, 0),
    ],
)
def test_forms(text, r1, zero):
    assert format_reward([text]) == format_reward(chat(text)) == [float(r1)]
    assert format_zero_reward([text]) == [float(zero)]
    (reason,) = curate.format(pd.DataFrame({"completion": [text]}), None)
    assert (reason == "") == bool(r1)  # what earns the reward is what a training sees


@given(st.text(max_size=40), st.text(max_size=40))
@example("0", "<think>")
@example("</think>", "b")
@settings(max_examples=200, deadline=None)
def test_form_of_any_thought_and_answer(thought, answer):
    tags = any(tag in text for tag in ("<think>", "</think>") for text in (thought, answer))
    expected = float(bool(thought.strip()) and bool(answer.strip()) and not tags)
    assert format_reward([f"<think>{thought}</think>{answer}"]) == [expected]


@pytest.mark.parametrize("func", [format_reward, format_zero_reward, tag_count_reward])
def test_a_prompt_that_ends_with_think_counts(func):
    text = "<think>\na\n</think>\n<answer>\nb\n</answer>"
    rest = text.removeprefix("<think>\n")
    assert func([text, rest]) == [1.0, 0.75 if func is tag_count_reward else 0.0]
    assert func([text, rest], prompts=["? <think>\n"] * 2) == [1.0, 1.0]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<think>\n"}]
    assert func(chat(text, rest), prompts=[messages] * 2) == [1.0, 1.0]
    user = [{"role": "user", "content": "What does this tag mean: <think>\n"}]
    assert func(chat(rest), prompts=[user]) != [1.0]
    (filled,) = get_reward_funcs([func.__name__.removesuffix("_reward")], prefill="<think>\n")
    assert filled.__name__ == func.__name__
    assert filled(completions=chat(text, rest), prompts=[user] * 2, answer=["b"] * 2) == [1.0, 1.0]
    assert filled(completions=[text, rest]) == [1.0, 1.0]


def test_tag_count_requires_exactly_one():
    pieces = ["<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>"]
    assert [tag_count_reward([p])[0] for p in pieces] == [0.25] * 4
    whole = "".join(pieces)
    texts = [whole, "".join(pieces[:2]), whole * 2, "<think></think>"]
    assert tag_count_reward(texts) == [1.0, 0.5, 0.0, 0.0]


def test_texts_of_messages():
    split = {"role": "assistant", "content": "b", "reasoning_content": "a"}
    pieces = [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]
    parts = {"role": "assistant", "content": pieces}
    tool = [*chat("call")[0], {"role": "tool", "content": "3"}, *chat("end")[0]]
    texts = completion_texts([[split], [parts], tool, *chat(None), []])
    assert texts == ["<think>\na\n</think>\nb", "xy", "end", "", ""]
    assert format_reward([[split]]) == [1.0]


def test_names():
    names = ["accuracy", "format", "tag_count", "r1nb.rewards:format_zero_reward"]
    expected = ["accuracy_reward", "format_reward", "tag_count_reward", "format_zero_reward"]
    assert [f.__name__ for f in get_reward_funcs(names)] == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", "did you mean 'accuracy'"),
        ("zzz", "valid: accuracy, binary_code"),
        ("no_such_module:f", "no_such_module"),
        ("r1nb.rewards:format_rewrd", "did you mean 'format_reward'"),
        ("r1nb.rewards:TAGS", "is not a function"),
        (":f", "cannot be imported"),
    ],
)
def test_unknown_names_are_explained(name, message):
    with pytest.raises(InputError, match="(?s)" + message):
        get_reward_funcs([name])


def test_names_must_be_a_list():
    with pytest.raises(InputError, match="list"):
        get_reward_funcs("accuracy")


def test_a_reward_of_the_user(monkeypatch, tmp_path):
    (tmp_path / "my_rewards.py").write_text(
        "def short(completions, **_): return [-len(c) for c in completions]"
    )
    monkeypatch.syspath_prepend(tmp_path)
    table = preview_rewards(["?"] * 2, ["ab", "abcd"], ["my_rewards:short"])
    assert table["my_rewards:short"].tolist() == [-2, -4]


def test_register():
    try:

        @register_reward("always_one")
        def always_one_reward(completions, **columns):
            return [1.0] * len(completions)

        assert get_reward_funcs(["always_one"])[0](completions=["a"]) == [1.0]
        register_reward("always_one")(always_one_reward)  # a notebook's cell run twice
        with pytest.raises(InputError, match="registered already"):
            register_reward("format")(always_one_reward)
        assert REWARDS["format"] is format_reward
    finally:
        REWARDS.pop("always_one", None)


def test_preview():
    table = preview_rewards(
        ["p"] * 3, chat(RIGHT, "18", RIGHT), ["accuracy", "format"], answer=["18", "18", ""]
    )
    assert list(table.columns) == ["prompt", "completion", "accuracy", "format"]
    assert table["accuracy"].fillna(-1).tolist() == [1, 0, -1]
    assert table["format"].tolist() == [1, 0, 1]
    with pytest.raises(InputError, match="answer: 1 values for 3"):
        preview_rewards(["p"] * 3, chat(RIGHT, "18", RIGHT), ["accuracy"], answer=["18"])


def test_import_is_light():
    code = textwrap.dedent("""
        import sys, r1nb.rewards
        print(sorted({'torch', 'sympy', 'trl', 'pandas'} & set(sys.modules)))""")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == "[]", out.stderr


# the shaping rewards: Open-R1's cases


def test_reasoning_steps_counts_a_numbered_list_only_at_the_start():
    texts = ["1. a\n2. b\n3. c", "\n- a\n- b\n* c", "Step 1: a Step 22: b"]
    assert reasoning_steps_reward(texts) == [1 / 3, 1.0, 2 / 3]


def test_length_is_compared_within_a_prompt():
    texts = [r"\boxed{1}".rjust(length) for length in (0, 100, 500, 900)]
    assert len_reward(texts, ["1"] * 4, prompts=["a", "a", "b", "b"]) == [0.5, -0.5, 0.5, -0.5]
    wrong = len_reward(texts[:2], ["2", "2"])
    assert wrong == [0.0, -0.5]  # short and wrong gains nothing
    assert len_reward(texts[:2], ["", "1"]) == [None, -0.5]


def test_cosine_of_length_and_verdict():
    half = r"\boxed{1}".rjust(500)
    assert cosine_scaled_reward([half, half], ["1", "2"]) == pytest.approx([0.75, -0.75])
    assert cosine_scaled_reward([half], solution=[r"so $\boxed{1}$"]) == pytest.approx([0.75])
    assert cosine_scaled_reward([half], [None]) == [None]


def test_a_missing_reference_column_is_named():
    with pytest.raises(InputError, match="column 'answer'"):
        cosine_scaled_reward([RIGHT])


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 5))
def test_repetition_is_the_share_of_seen_ngrams(words, n):
    (penalty,) = repetition_penalty_reward([" ".join(words)], ngram_size=n, max_penalty=-2.0)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    assert penalty == pytest.approx(-2.0 * (1 - len(set(grams)) / len(grams)) if grams else 0.0)


def test_repetition_in_chinese():
    pytest.importorskip("jieba")
    texts = ["我爱北京我爱北京", "我爱北京"]
    penalties = repetition_penalty_reward(texts, ngram_size=2, language="zh")
    assert penalties == pytest.approx([-0.4, 0.0])
    with pytest.raises(InputError, match="did you mean 'zh'"):
        repetition_penalty_reward(["a"], language="zhh")


def test_options_come_from_the_recipe():
    options = RewardOptions(
        reward_funcs=["soft_overlong_punishment", "format"],
        max_completion_len=10,
        soft_punish_cache=4,
        format_form="open_r1",
    )
    overlong, form = get_reward_funcs(options, prefill="<think>\n")
    ids = [[0] * 6, [0] * 8, [0] * 11]
    penalties = overlong(completions=["a"] * 3, prompts=["?"] * 3, completion_ids=ids)
    assert penalties == [0.0, -0.5, -1.0]
    texts = ["x\n</think>\n<answer>\n1\n</answer>", "x</think>1"]
    assert form(completions=texts, prompts=["?"] * 2) == [1.0, 0.0]
    assert overlong.__name__ == "soft_overlong_punishment_reward"
    assert form.__name__ == "format_reward"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reward_funcs": ["cf_code"], "code_provider": "piston"}, "not used by cf_code"),
        ({"reward_funcs": ["ioi_code", "code"], "code_provider": "e2b"}, "not used by ioi_code"),
        ({"reward_funcs": ["code"], "code_provider": "piston"}, ""),
        ({"reward_funcs": ["cf_code"]}, ""),
        ({"reward_funcs": ["soft_overlong_punishment"], "limit": 12_288}, "is always 0"),
        ({"reward_funcs": ["soft_overlong_punishment"], "limit": 12_289}, ""),
        ({"reward_funcs": ["soft_overlong_punishment"], "limit": None}, ""),
        ({"reward_funcs": ["accuracy"], "limit": 512}, ""),
    ],
)
def test_options_without_effect_are_named(options, words):
    limit = options.pop("limit", None)
    configured = RewardOptions(**options)
    configured.max_completion_length = limit  # TRL's field
    found = ignored_options(configured)
    assert len(found) == bool(words) and all(words in text for text in found)


def test_every_reward_takes_trls_call():
    "All of the registry on one call as TRL makes it: one number or None for each completion."
    info = {"language": "python", "test_cases": [{"input": "", "output": "18"}]}
    columns = dict(
        prompts=[[{"role": "user", "content": "?"}]] * 2,
        completions=chat(RIGHT, "```python\nprint(18)\n```"),
        completion_ids=[[1], [1, 2]],
        answer=["18"] * 2,
        verification=["{}"] * 2,
        verification_info=[info] * 2,
        trainer_state=None,
        official_tests=[[{"input": "", "output": "18"}]] * 2,
        language=["python"] * 2,
        id=["p"] * 2,
        score=[1.0] * 2,
        test_names=[[]] * 2,
        test_cases=[[]] * 2,
        time_limit=[1.0] * 2,
        memory_limit=[1 << 28] * 2,
    )
    rewards = zip(REWARDS, get_reward_funcs(list(REWARDS)), strict=True)
    values = {name: reward(**columns) for name, reward in rewards}
    numbers = {name for name, pair in values.items() if [type(v) for v in pair] == [float, float]}
    assert numbers == set(REWARDS) - {"reasoning_gym"}
    expected = {
        "accuracy": [1.0, 0.0],
        "format": [1.0, 0.0],
        "reasoning_gym": [None, None],  # these rows are not of a task
        "code": [0.0, 1.0],
        "binary_code": [0.0, 1.0],
        "ioi_code": [0.0, 0.0],
        "cf_code": [-1.0, 1.1],
    }
    assert {name: values[name] for name in expected} == expected
