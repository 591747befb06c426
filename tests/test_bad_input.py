"""Bad input of every kind: one message that names the place, exit code 2, nothing written.

Most cases are generated from the configurations' types: each field of each stage gets values that
its type or its range refuses. They are checked in this process, as `r1nb` checks them in a job's
process; a few go through the real command."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
import typing

import pytest
import yaml
from conftest import ROOT, r1nb

from r1nb import jobs, pipeline, recipes
from r1nb.recipes import RANGES, _types, default_of, rule_of
from r1nb.rewards import RewardOptions
from r1nb.runs import Run, append_jsonl
from r1nb.settings import InputError
from r1nb.stages import all_stages, load_stage


@pytest.fixture
def inputs(tmp_path_factory, tiny_model):
    "For each stage a recipe that would run."
    folder = tmp_path_factory.mktemp("inputs")
    rows = [{"problem": f"{i} + 1 =", "answer": str(i + 1)} for i in range(8)]
    append_jsonl(folder / "sums.jsonl", rows)
    append_jsonl(
        folder / "traces.jsonl",
        [{**r, "completion": f"<think>\n{r['answer']}\n</think>\n2"} for r in rows],
    )
    model, sums, traces = str(tiny_model), str(folder / "sums.jsonl"), str(folder / "traces.jsonl")
    asked = {"dataset_name": sums, "model_name_or_path": model}
    return {
        "generate": {**asked, "backend": "transformers"},
        "curate": {"dataset_name": [traces], "model_name_or_path": model},
        "sft": {"dataset_name": traces, "model_name_or_path": model},
        "grpo": {**asked, "num_generations": 4, "per_device_train_batch_size": 4},
        "evaluate": {**asked, "backend": "transformers"},
    }


def outcome(stage, recipe, overrides, capsys):
    "Exit code and messages of the check at the start of every job and submission."
    code = jobs.guarded(lambda: jobs.open_job(stage, recipe, overrides, "run") and 0)
    return code, capsys.readouterr().err


def refused(stage, recipe, overrides, here, capsys, *words):
    "Check that the input is refused: exit code 2, one message with `words`, nothing written."
    code, err = outcome(stage, recipe, overrides, capsys)
    assert code == 2, (stage, overrides, code, err)
    assert err.startswith("r1nb: error: ") and err.count("error:") == 1, (overrides, err)
    assert "Traceback" not in err, (overrides, err)
    assert not list(here.iterdir()), (overrides, list(here.iterdir()))
    for word in words:
        assert word in err, (overrides, err)


# ---- from the configurations' own types


def members(kind):
    "The types that the annotation `kind` accepts; for a list, those of its elements."
    found = []
    for k in typing.get_args(kind) or [kind]:
        found += members(k) if typing.get_args(k) and typing.get_origin(k) is not dict else [k]
    return set(found)


def fields_of(stage):
    "`(class, name, annotation)` of each field of `stage`; the first class that has the field."
    seen = {}
    for cls in load_stage(stage).classes:
        for name, kind in _types(cls).items():
            seen.setdefault(name, (cls, name, kind))
    return list(seen.values())


def is_number(kind):
    return members(kind) & {int, float} and typing.get_origin(kind) is not dict


OTHERS = set(_types(RewardOptions))  # `RewardOptions` checks its fields itself


def test_every_number_has_a_range():
    "A new field, ours or TRL's, needs a line in the table; and every default is in its range."
    seen = 0
    for stage in all_stages():
        for cls, name, kind in fields_of(stage):
            if not is_number(kind) or name in OTHERS:
                continue
            seen += 1
            rule = rule_of(RANGES, cls, name)
            assert rule is not None, f"{cls.__name__}.{name} ({kind}) has no line in RANGES"
            default = default_of(cls.__dataclass_fields__[name])
            if isinstance(default, (int, float)) and not isinstance(default, bool):
                assert default in rule, (name, default)
    assert seen >= 100


# Values that look invalid and are accepted.
ACCEPTED = {
    ("max_steps", -1): "means: as many as num_train_epochs gives",
    ("local_rank", -1): "means: one process",
}


def wrong_values(stage):
    "`(key, value)` for all fields of `stage`: values outside the field's type or range."
    for cls, name, kind in fields_of(stage):
        takes = members(kind)
        if name in OTHERS or name == "output_dir":
            continue
        if is_number(kind):
            rule = rule_of(RANGES, cls, name)
            values = [math.nan, math.inf, -math.inf, 10**30, -(10**30), -1, -7, 0, 1.5]
            for value in [*values, "nan", "-inf", "", "many", {"a": 1}]:
                whole = isinstance(value, int) or float in takes
                if not (isinstance(value, (int, float)) and value in rule and whole):
                    yield name, value
        elif takes & {bool} and str not in takes:
            yield from ((name, v) for v in ("maybe", 7, [True, False]))
        elif typing.get_origin(kind) is dict or dict in takes and str not in takes:
            yield from ((name, v) for v in (7, "[1, 2]", "word", {"a": {"b": math.nan}}))


def test_values_that_no_field_accepts(here, inputs, capsys):
    "Wrong type, nan, inf, negative, zero, huge, empty: over 200 cases; the message names the key."
    tried = 0
    for stage in all_stages():
        for key, value in wrong_values(stage):
            if any((key, value) == accepted for accepted in ACCEPTED):  # values may be unhashable
                continue
            recipe = {k: v for k, v in inputs[stage].items() if k != key}
            refused(stage, recipe, {key: value}, here, capsys, key)
            tried += 1
    assert tried >= 200, tried


def test_unusual_values_that_are_accepted(inputs):
    for key, value in (
        ("max_steps", -1),
        ("learning_rate", 0),
        ("top_k", 0),
        ("save_total_limit", None),
        ("seed", 2**32 - 1),
    ):
        configuration, _ = recipes.configure(load_stage("grpo"), inputs["grpo"], {key: value})
        found = [getattr(c, key) for c in configuration if hasattr(c, key)]
        assert found and set(found) == {value}, (key, found)


@pytest.mark.parametrize(
    ("stage", "key", "value", "words"),
    [
        ("sft", "learning_rate", "nan", "nan is not a finite number; valid: at least 0"),
        ("sft", "learning_rate", "-1", "-1.0 is negative"),
        ("sft", "max_steps", "-5", "-5 is not positive; valid: -1, or at least 1"),
        ("sft", "per_device_train_batch_size", "0", "0 is not positive"),
        ("sft", "lr_scheduler_type", "cosin", "constant_with_warmup"),
        ("sft", "loss_type", "chunked_nll", "valid: dft, nll"),
        ("sft", "report_to", "wandbb", "did you mean 'wandb'?"),
        ("sft", "lr_scheduler_kwargs", "{min_lr: .nan}", "nan is not a finite number"),
        ("sft", "lr_scheduler_kwargs", "{min_lrr: 1e-7}", "does not fit lr_scheduler_type"),
        ("grpo", "loss_type", "dapoo", "did you mean 'dapo'?"),
        ("grpo", "temperature", "0", "valid: above 0"),
        ("grpo", "top_k", "-7", "-7 is negative"),
        ("grpo", "num_generations", "1", "valid: at least 2"),
        ("grpo", "eval_strategy", "stepps", "steps or epoch"),
        ("evaluate", "temperature", "nan", "nan is not a finite number"),
        ("evaluate", "model_name_or_path", "x" * 5000, "File name too long"),
        ("sft", "model_name_or_path", "x/" + "y" * 5000, "File name too long"),
        ("generate", "dataset_name", "y" * 300 + ".jsonl", "too long"),
        ("generate", "dataset_name", "y" * 5000, "File name too long"),
        ("curate", "dataset_name", "y/" + "y" * 5000, "File name too long"),
        ("sft", "dataset_name", "y/" + "y" * 5000, "File name too long"),
        ("grpo", "dataset_name", "y" * 5000, "File name too long"),
        ("evaluate", "dataset_name", "y" * 5000, "File name too long"),
        ("curate", "weights", "2.0", "2.0 is out of range"),
    ],
)
def test_the_message_says_what_is_valid(here, inputs, capsys, stage, key, value, words):
    named = words if words.startswith("too long") else key
    refused(stage, inputs[stage], {key: value}, here, capsys, named, words)


def test_numbers_in_mappings_are_numbers(here, inputs):
    sft = recipes.configure(
        load_stage("sft"), inputs["sft"], {"lr_scheduler_kwargs": "{min_lr: 1e-7}"}
    )[0][2]
    assert sft.lr_scheduler_kwargs == {"min_lr": 1e-7}
    (here / "e.yaml").write_text(
        "tasks: [gsm8k, aime24]\nprotocol: {gsm8k: {temperature: 6e-1}, aime24: {top_p: 9E-1}}\n"
    )
    cfg = recipes.configure(load_stage("evaluate"), "e.yaml")[0][0]
    assert cfg.protocol["gsm8k"]["temperature"] == 0.6 and cfg.protocol["aime24"]["top_p"] == 0.9
    for own in (
        "{temperature: hot}",
        "{temperature: .nan}",
        "{top_p: 2}",
        "{num_generations: 0}",
        "[1]",
    ):
        with pytest.raises(InputError, match="protocol"):
            recipes.configure(
                load_stage("evaluate"), {"tasks": "gsm8k"}, {"protocol": f"{{gsm8k: {own}}}"}
            )


# ---- recipes

BILLION = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]\n", "contains itself"),
        ("a: &a {b: *a}\n", "contains itself"),
        (BILLION, "more than 100000 values"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("? [a, b]\n: 1\n", "line 1: a key must be a word, not a sequence"),
        ("? {a: b}\n: 1\n", "a key must be a word, not a mapping"),
        (
            "x-a: &a {seed: 1}\nx-b: &b {seed: 2}\nx-c: {<<: [*a, *b]}\n",
            "key 'seed' comes from two",
        ),
        ("seed: !!int x\n", "does not match its type"),
        (
            "seed: !!python/object/apply:os.system ['touch f']\n",
            "could not determine a constructor",
        ),
        ("seed: 2026-13-41\n", "does not match its type"),
        ("seed: " + "1" * 5000 + "\n", "does not match its type"),
        (b"# ok\na: \xff\n", "line 2: not UTF-8"),
        ("a: \x07\n", "unacceptable character"),
    ],
)
def test_hostile_yaml(here, inputs, capsys, text, words):
    path = here.parent / f"{here.name}-r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    begin = time.monotonic()
    refused("sft", str(path), {}, here, capsys, words, path.name)
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages: [sft]", "'stages' must map names to recipes"),
        ("stages: sft", "'stages' must map names to recipes"),
        ("stages: {sft: 5}", "stage 'sft': a mapping"),
        ("stages: {sft: [1]}", "stage 'sft': a mapping"),
        ("stages: {../x: {stage: sft}}", "'../x' is not a valid name of a stage"),
        ("stages: {a/b: {stage: sft}}", "'a/b' is not a valid name of a stage"),
        ("stages: {a: {stage: [sft]}}", "unknown stage"),
        ("minutes: 5\nstages: {sft: {}}", "minutes: a mapping"),
        ("minutes: {sft: soon}\nstages: {sft: {}}", "minutes.sft: 'soon' is not a number"),
        ("name: ../../x\nstages: {sft: {}}", "'../../x' is not a valid name"),
        ("name: /tmp/x\nstages: {sft: {}}", "'/tmp/x' is not a valid name"),
        ('name: ""\nstages: {sft: {}}', "'' is not a valid name"),
        ('name: "a\\nb"\nstages: {sft: {}}', "is not a valid name"),
        ("name: [a]\nstages: {sft: {}}", "is not a valid name"),
    ],
)
def test_a_pipeline_of_the_wrong_shape(here, capsys, text, words):
    path = here.parent / f"{here.name}-p.yaml"
    path.write_text(text)
    code = jobs.guarded(lambda: pipeline.load_pipeline(path) and 0)
    err = capsys.readouterr().err
    assert code == 2 and words in err and path.name in err and "Traceback" not in err, err


def test_a_pipeline_whose_name_leads_out_of_the_runs(here, capsys):
    path = ROOT / "scripts/recipes/quickstart.yaml"
    code = jobs.guarded(lambda: pipeline.load_pipeline(path, name="../x") and 0)
    assert code == 2 and "'../x' is not a valid name" in capsys.readouterr().err


def test_a_recipe_that_is_not_a_file(here, inputs, capsys):
    path = here.parent / f"{here.name}-pipe.yaml"
    os.mkfifo(path)
    refused("sft", str(path), {}, here, capsys, "is a device or a pipe")
    refused("sft", str(here.parent), {}, here, capsys, "is a folder, not a file")


def test_ordinary_yaml_is_read_as_before(here):
    text = """base: &b {seed: 1, packing: yes}
x: {<<: *b, seed: 2, revision: 12e45678, ratio: 1e-4, off: off}
"""
    (here / "r.yaml").write_text(text)
    from r1nb.recipes import convert, read_yaml

    x = read_yaml("r.yaml")["x"]
    assert (x["seed"], x["packing"], x[False]) == (2, True, False)  # YAML reads `off` as a boolean
    assert x["ratio"] == 1e-4 and convert(x["revision"], str) == "12e45678"


# ---- rows


def few_shot(n):
    "A prompt with a worked example before the question."
    turns = [("user", "1 + 1 ="), ("assistant", "2"), ("user", f"{n} + 1 =")]
    return [{"role": role, "content": content} for role, content in turns]


def test_a_few_shot_prompt_is_used_whole(here):
    append_jsonl(
        here / "d.jsonl", [{"prompt": few_shot(n), "answer": str(n + 1)} for n in (3, 4, 5)]
    )
    from r1nb.evaluate import EvaluateConfig, ProblemsConfig, SamplingConfig, load_tasks
    from r1nb.grpo import prompt_dataset

    problems = ProblemsConfig("d.jsonl")
    (task,) = load_tasks(EvaluateConfig(), problems, SamplingConfig())
    assert [m[1:] for _, m in task.prompts] == [few_shot(n) for n in (3, 4, 5)]
    assert [(r["prompt"][1:], r["problem"], r["answer"]) for r in prompt_dataset(problems)] == [
        (few_shot(n), f"{n} + 1 =", str(n + 1)) for n in (3, 4, 5)
    ]
    from r1nb.curate import as_traces
    from r1nb.sft import as_pair

    trace = as_traces({**task.rows[0], "completion": "4"}, 1, "d")[0]
    assert trace["problem_id"] == task.rows[0]["problem_id"]
    assert as_pair(trace, 1, "d", "S")["prompt"] == [
        {"role": "system", "content": "S"},
        *few_shot(3),
    ]


def test_reasoning_beside_a_message_is_kept(here):
    from r1nb.curate import as_traces
    from r1nb.sft import as_pair

    whole = "<think>\none more\n</think>\n2"
    for key in ("reasoning_content", "thinking"):
        said = {"role": "assistant", key: "one more", "content": "2"}
        asked = {"role": "user", "content": "1 + 1 ="}
        for row in (
            {"messages": [asked, said]},
            {"prompt": [asked], "completion": [said]},
            {"problem": "1 + 1 =", "completion": "2", key: "one more"},
        ):
            assert as_pair(row, 1, "f", None)["completion"] == [
                {"role": "assistant", "content": whole}
            ], row
            assert [t["completion"] for t in as_traces(row, 1, "f")] == [whole], row


BAD_ROWS = [
    ('{"problem": ["1 + 1"], "answer": "2"}', "row 1: problem: a text or a list of chat messages"),
    ('{"problem": 5, "answer": "2"}', "row 1: problem: a text or a list of chat messages"),
    ('{"problem": {"a": 1}, "answer": "2"}', "row 1: problem: a text or a list of chat messages"),
    ('{"problem": "", "answer": "2"}', "row 1: 'problem' is empty"),
    (
        '{"problem": [{"role": "assistant", "content": "x"}], "answer": "2"}',
        "row 1: the problem's last message",
    ),
    ('{"problem": "1 + 1 =", "answer": NaN}', "row 1: no answer"),
    (
        '{"problem": "1 + 1 =", "final_answer": ["2", "3"]}',
        "row 1: the answer must be one text or number, not a list of 2",
    ),
    (
        '{"problem": "1 + 1 =", "answer": {"x": 2}}',
        "row 1: the answer must be one text or number, not a dict",
    ),
    ('{"problem": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1: nested too deeply"),
    (
        '{"problem": "1 + 1 =", "m": ' + "[" * 150 + "]" * 150 + "}",
        "line 1: nested more than 100 deep",
    ),
]


@pytest.mark.parametrize(("line", "words"), BAD_ROWS)
@pytest.mark.parametrize("stage", ["grpo", "evaluate"])
def test_rows_that_are_not_problems(here, inputs, capsys, stage, line, words):
    path = here.parent / f"{here.name}.jsonl"
    path.write_text(line + "\n")
    refused(stage, inputs[stage], {"dataset_name": str(path)}, here, capsys, path.name, words)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"num_tokens": "many"}, "row 2: num_tokens: 'many' is not a whole number"),
        ({"num_tokens": -9}, "row 2: num_tokens: '-9' is not a whole number"),
        ({"pass_rate": "often"}, "row 2: pass_rate: 'often' is not a number"),
        ({"sample": "first"}, "row 2: sample: 'first'"),
        (
            {"verification_info": {"language": "python", "test_cases": [5]}},
            "row 2: verification_info",
        ),
        ({"completion": 5}, "row 2: completion 0: a text is expected"),
    ],
)
def test_traces_with_a_wrong_value(here, inputs, capsys, more, words):
    path = here.parent / f"{here.name}.jsonl"
    rows = [{"problem": "1 + 1 =", "answer": "2", "completion": "2"}] * 2
    append_jsonl(path, [rows[0], {**rows[1], **more}])
    refused("curate", inputs["curate"], {"dataset_name": str(path)}, here, capsys, path.name, words)


def test_answers_in_lists_and_with_nan(here):
    (here / "d.jsonl").write_text(
        '{"problem": "a", "final_answer": ["2"]}\n'
        '{"problem": "half \\ud800", "answer": NaN, "gold": "3"}\n'
    )
    from r1nb.problems import ProblemsConfig, load_problems

    assert load_problems(ProblemsConfig("d.jsonl"))["answer"] == ["2", "3"]
    assert load_problems(ProblemsConfig("d.jsonl"))["problem"] == ["a", "half \ufffd"]


def test_a_damaged_parquet_file(here, inputs, capsys):
    import pandas as pd

    path = here.parent / f"{here.name}.parquet"
    pd.DataFrame(
        {"problem": ["1 + 1 ="] * 4000, "answer": [str(i) for i in range(4000)]}
    ).to_parquet(path)
    whole = bytearray(path.read_bytes())
    for spoiled in (whole[:-200], whole[: len(whole) // 2], whole[:4] + bytes(2000) + whole[2004:]):
        path.write_bytes(spoiled)
        refused(
            "evaluate",
            inputs["evaluate"],
            {"dataset_name": str(path)},
            here,
            capsys,
            path.name,
            "is not a readable parquet file",
        )


# ---- references

UNREADABLE = r"\frac{1}{"


def test_a_reference_that_cannot_be_read(tmp_path, tiny_model):
    "An evaluation leaves the problem out and reports it; without any problem it does not start."
    rows = [{"problem": f"{i} + 1 =", "answer": str(i + 1)} for i in range(4)]
    append_jsonl(tmp_path / "d.jsonl", [*rows, {"problem": "half", "answer": UNREADABLE}])
    options = ["--model", tiny_model, "--dtype", "float32", "--backend", "transformers"]
    options += ["--samples", 1, "--max_new_tokens", 4, "--run-dir", "run"]
    done = r1nb("evaluate", "--dataset_name", "d.jsonl", *options, cwd=tmp_path, runs=tmp_path)
    assert done.code == 0, done.err[-2000:]
    results = json.loads((tmp_path / "run/results/results.json").read_text())
    (bad,) = results["left_out"]
    assert "1 problems are left out" in done.out and bad in done.out
    assert "1 of 5 problems left out" in results["notes"][0]
    assert Run(tmp_path / "run").manifest["summary"]["problems"] == 4
    append_jsonl(
        tmp_path / "none.jsonl", [{"problem": f"p{i}", "answer": UNREADABLE} for i in range(3)]
    )
    words = ["evaluate", "--dataset_name", "none.jsonl", *options[:-1], "none"]
    done = r1nb(*words, cwd=tmp_path, runs=tmp_path)
    assert done.code == 2 and "no reference answer of its 3 problems can be read" in done.err
    assert not (tmp_path / "none").exists()


def test_references_are_counted_before_a_training(here, inputs, capsys):
    path = here.parent / f"{here.name}.jsonl"
    rows = [
        {"problem": "p", "answer": UNREADABLE, "completion": "x"},
        {"problem": "q", "answer": "2", "completion": "x"},
    ]
    append_jsonl(path, rows)
    for stage in ("grpo", "curate"):
        loaded = load_stage(stage)
        given = {**inputs[stage], "dataset_name": str(path)}
        loaded.check(*recipes.configure(loaded, given)[0])
        err = capsys.readouterr().err
        assert "cannot be read" in err and "1 " in err and "frac" in err, err
    path.write_text(json.dumps(rows[0]) + "\n")
    refused(
        "grpo",
        inputs["grpo"],
        {"dataset_name": str(path)},
        here,
        capsys,
        "1 of 1 reference answers cannot be read",
    )


# ---- models


def rewrite(folder, change):
    "Let `change` alter the tensors of the model in `folder`."
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


DAMAGE = {
    "nan": (lambda f: rewrite(f, lambda t: t["model.norm.weight"].fill_(math.nan)), "not finite"),
    "one infinity": (
        lambda f: rewrite(f, lambda t: t["model.embed_tokens.weight"][7, 3].fill_(math.inf)),
        "not finite",
    ),
    "half": (
        lambda f: rewrite(f, lambda t: [t.pop(k) for k in list(t)[::2]]),
        "tensors are missing",
    ),
    "cut off": (
        lambda f: os.truncate(f / "model.safetensors", 50_000),
        "model.safetensors is cut off",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is empty"),
    "other": (
        lambda f: (f / "model.safetensors").write_bytes(b"x" * 999),
        "not a safetensors file",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "tokenizer": (lambda f: os.truncate(f / "tokenizer.json", 300), "tokenizer.json is damaged"),
    "another tokenizer": (
        lambda f: (f / "tokenizer.json").write_text('{"a": 1}'),
        "its tokenizer cannot be read",
    ),
    "config": (lambda f: (f / "config.json").write_text("nope"), "config.json is damaged"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "another config": (
        lambda f: (f / "config.json").write_text('{"model_type": "nosuch"}'),
        "config.json describes no",
    ),
}


@pytest.mark.parametrize("stage", ["generate", "sft", "grpo", "evaluate"])
def test_a_damaged_model(here, inputs, capsys, tiny_model, stage):
    folder = here.parent / f"{here.name}-model"
    for damage, words in DAMAGE.values():
        shutil.copytree(tiny_model, folder)
        damage(folder)
        code, err = outcome(stage, inputs[stage], {"model_name_or_path": str(folder)}, capsys)
        assert code == 2 and words in err and str(folder) in err, (words, err)
        assert "Traceback" not in err
        assert not list(here.iterdir())
        shutil.rmtree(folder)
    shutil.copytree(tiny_model, folder)
    assert outcome(stage, inputs[stage], {"model_name_or_path": str(folder)}, capsys)[0] == 0
    shutil.rmtree(here / "run")


# ---- a training that diverges


@pytest.mark.parametrize("logging", [1, 1000])
def test_a_training_that_diverges_fails(recipe, tmp_path, logging):
    "Detected in the log, or in the weights if nothing is logged; no model is written."
    words = ["sft", "--config", recipe, "--learning_rate", 100, "--weight_decay", 1e4]
    words += ["--max_steps", 20, "--logging_steps", logging, "--save_strategy", "no"]
    done = r1nb(*words, "--run-dir", "run", cwd=tmp_path, runs=tmp_path)
    run = Run(tmp_path / "run")
    assert done.code == 1 and run.status == "failed", done.err[-2000:]
    assert "Diverged" in run.manifest["error"] and "learning_rate" in run.manifest["error"]
    assert f"{'at' if logging == 1 else 'after'} step" in run.manifest["error"]
    assert not (run / "model").exists()


# ---- the real command


def test_the_real_command(tmp_path, inputs):
    "The same through `r1nb`, also if it only prints a batch script."
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(inputs["sft"]))
    (tmp_path / "cycle.yaml").write_text("a: &a [*a]\n")
    (tmp_path / "p.yaml").write_text("name: ../x\nstages: {sft: {}}\n")
    before, sft = sorted(os.listdir(tmp_path)), ["sft", "--config", "r.yaml", "--run-dir", "run"]
    cases = [
        ([*sft, "--learning_rate", "nan"], "learning_rate: nan is not a finite number"),
        (
            [*sft, "--learning_rate", "inf", "--slurm", "--dry-run"],
            "learning_rate: inf is not a finite number",
        ),
        ([*sft, "--max_steps", "-5", "--slurm", "--dry-run"], "max_steps: -5 is not positive"),
        (
            [*sft, "--per_device_train_batch_size", "0"],
            "per_device_train_batch_size: 0 is not positive",
        ),
        ([*sft, "--lr_scheduler_type", "cosin"], "lr_scheduler_type: 'cosin'"),
        (["sft", "--config", "cycle.yaml"], "contains itself"),
        (["pipeline", "p.yaml"], "'../x' is not a valid name"),
        (
            ["pipeline", "p.yaml", "--name", "/x", "--slurm", "--dry-run"],
            "'/x' is not a valid name",
        ),
        (["evaluate", "--temperature", "nan", "--dataset_name", "r.yaml"], "temperature: nan"),
        (["generate", "--top_k", "-7"], "top_k: -7 is negative"),
    ]
    for words, message in cases:
        done = r1nb(*words, cwd=tmp_path, runs=tmp_path / "runs")
        assert done.code == 2 and message in done.err, (words, done.err)
        assert done.err.count("error:") == 1 and "Traceback" not in done.err, (words, done.err)
        assert not done.out.strip(), (words, done.out)
    assert sorted(set(os.listdir(tmp_path)) - {"out.txt", "err.txt"}) == before


def test_rates_out_of_range_are_refused_before_sampling(tmp_path, tiny_model, inputs):
    command = [sys.executable, ROOT / "scripts/pass_rate.py", "--model_name_or_path", tiny_model]
    command += ["--dataset_name", inputs["generate"]["dataset_name"], "--run_dir", "run"]
    command += ["--pass_rate_max", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "pass_rate_max 2.0" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()
