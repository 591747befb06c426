"SFT's data: the same rows as TRL's, made once for all ranks, in memory that does not grow."

import gc
import json
import os
import subprocess
import sys

import nbformat
import pytest
import yaml
from conftest import ROOT, TRAINING, r1nb
from nbformat.v4 import new_code_cell
from transformers import LlamaForCausalLM
from trl import SFTTrainer

from r1nb import sft
from r1nb.models import ModelChoice, load_model, load_tokenizer
from r1nb.ranks import free_port
from r1nb.recipes import configure
from r1nb.runs import Run, append_jsonl, open_run
from r1nb.settings import InputError
from r1nb.sft import TracesConfig, TracesTrainer, load_traces


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "A cache of `datasets` for each test."
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def traces(tmp_path):
    "A file of 24 traces of different lengths; two of each problem."
    file = tmp_path / "traces.jsonl"
    rows = [
        {"problem": f"{a // 2} + {a} =", "completion": "a step, " * a + f"\\boxed{{{a + a // 2}}}"}
        for a in range(24)
    ]
    append_jsonl(file, rows)
    return file


def prepared(kind, folder, file, tmp_path, **keys):
    "The rows that the trainer `kind` makes of the traces in `file`."
    recipe = {"dataset_name": str(file), "model_name_or_path": str(folder), "dtype": "float32"}
    config, choice, args = configure(sft.stage, {**recipe, "cpu_shortcuts": False, **keys})[0]
    args.output_dir = str(tmp_path / "out")
    tokenizer = load_tokenizer(choice)
    train, heldout = load_traces(config, 0.3)
    trainer = kind(
        load_model(choice, tokenizer),
        args,
        train_dataset=train,
        eval_dataset=heldout,
        processing_class=tokenizer,
    )
    columns = [c for c in ("input_ids", "labels", "seq_lengths")]
    both = []
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        both.append([{k: row[k] for k in columns if k in row} for row in dataset])
    return both


@pytest.mark.parametrize(
    "keys",
    [
        {"max_length": 4096},
        {"max_length": None, "completion_only_loss": False},
        {"max_length": 160},  # leaves some traces without a token to train on
        {"max_length": 160, "truncation_mode": "keep_end", "shuffle_dataset": True},
        {"max_length": 170, "packing": True, "eval_packing": False},
        {"max_length": 170, "packing": True, "packing_strategy": "bfd_split"},
    ],
    ids=lambda keys: " ".join(map(str, keys.values())),
)
def test_rows_are_trls(keys, tiny_model, traces, tmp_path):
    expected = prepared(SFTTrainer, tiny_model, traces, tmp_path, **keys)
    found = prepared(TracesTrainer, tiny_model, traces, tmp_path, **keys)
    assert found == expected and all(found)
    assert any(-100 in row["labels"] for row in found[0]) == ("completion_only_loss" not in keys)


TWO_RANKS = """
import builtins, sys
import r1nb.sft as sft
from r1nb.models import load_tokenizer
from r1nb.ranks import join_ranks, leave_ranks
from r1nb.recipes import configure
from r1nb.runs import rank

def note(name, function):
    def noted(*args, **kwargs):
        print(f"{name} by {rank()}", file=log, flush=True)
        return function(*args, **kwargs)
    return noted

file, model, out, log = sys.argv[1], sys.argv[2], sys.argv[3], open(sys.argv[4], "a")
sft.iter_rows = note("rows", sft.iter_rows)
sft.trace_tokens = note("tokens", sft.trace_tokens)
join_ranks()
recipe = {"dataset_name": file, "model_name_or_path": model, "dtype": "float32"}
traces, choice, args = configure(sft.stage, recipe)[0]
args.output_dir = out
for _ in range(2):  # the job notebook's look at the data, and the training
    dataset, _ = sft.load_traces(traces)
trainer = sft.sft_trainer(traces, choice, args, load_tokenizer(choice))
assert len(trainer.train_dataset) == len(dataset) == 24
leave_ranks()
"""


def on_two_ranks(code, *arguments):
    "Run `code` in two processes that are ranks of a job; returns their exit codes and errors."
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, **common, "RANK": r, "LOCAL_RANK": r, "LOCAL_WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in ("0", "1")
    ]
    errors = [r.communicate()[1] for r in ranks]
    return [r.returncode for r in ranks], errors


@pytest.mark.slow
def test_two_ranks_prepare_once_and_a_second_start_not_at_all(tiny_model, traces, tmp_path):
    log = tmp_path / "log.txt"
    for expected in (["rows by 0"] + ["tokens by 0"] * 24, []):
        log.write_text("")
        codes, errors = on_two_ranks(TWO_RANKS, traces, tiny_model, tmp_path / "out", log)
        assert codes == [0, 0], errors
        assert log.read_text().splitlines() == expected


MEMORY = """
import sys
from pathlib import Path
import r1nb.sft as sft
from r1nb.sft import TracesConfig, load_traces

def own():
    "Memory of this process without mapped files, in MB."
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(l for l in lines if l.startswith("RssAnon")).split()[1]) / 1e3

load_traces(TracesConfig(sys.argv[1]))
before = own()
dataset, heldout = load_traces(TracesConfig(sys.argv[2]), 0.5)
print(own() - before, len(dataset) + len(heldout), sft.code_hash(sft.as_pair))
assert dataset.cache_files and heldout.cache_files
"""


def test_rows_stay_on_disk(tmp_path):
    "A file of 120 MB takes less than half of that in memory; a list of its rows took all of it."
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    for file, count in ((small, 10), (large, 2000)):
        with open(file, "w") as f:
            for number in range(count):
                row = {"problem": f"problem {number}", "completion": f"{number} " + "x" * 60_000}
                f.write(json.dumps(row) + "\n")
    command = [sys.executable, "-c", MEMORY, str(small), str(large)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    grown, rows, code = result.stdout.split()
    assert rows == "2000"
    assert float(grown) < 60
    assert code == sft.code_hash(sft.as_pair)  # so that another process finds the cached copy
    assert code != sft.code_hash(sft._pairs)


def test_a_bad_row_is_named_and_a_mended_file_is_read_again(tmp_path):
    file = tmp_path / "traces.jsonl"
    append_jsonl(file, [{"problem": "1 + 1 =", "completion": "2"}, {"problem": "1 + 2 ="}])
    for _ in range(2):  # nothing is cached of a file that cannot be read
        with pytest.raises(InputError, match="row 2: columns problem; needed: problem and"):
            load_traces(TracesConfig(str(file)))
    file.write_text("")
    append_jsonl(file, [{"problem": "1 + 1 =", "completion": "{{ 7 * 7 }} ${sft}"}])
    train, _ = load_traces(TracesConfig(str(file)))
    assert train[0]["completion"][0]["content"] == "{{ 7 * 7 }} ${sft}"
    assert len(load_traces(TracesConfig(str(file), system_prompt=""))[0][0]["prompt"]) == 1


def test_a_training_leaves_no_model_in_memory(tiny_model, traces, tmp_path):
    keys = {"dataset_name": str(traces), "model_name_or_path": str(tiny_model)}
    keys |= {"dtype": "float32", "max_steps": 1, "disable_tqdm": True}
    config, written = configure(sft.stage, keys)
    gc.collect()
    before = sum(isinstance(o, LlamaForCausalLM) for o in gc.get_objects())
    sft.run_sft(open_run(tmp_path / "run", "sft", written), *config)
    gc.collect()
    assert sum(isinstance(o, LlamaForCausalLM) for o in gc.get_objects()) == before


BROKEN = """
import r1nb.sampling
def fail(*args, **kwargs):
    raise RuntimeError("CUDA out of memory")
r1nb.sampling.TransformersSampler.__init__ = fail
"""


def test_a_preview_that_fails_does_not_fail_the_run(tiny_model, traces, tmp_path):
    nb = nbformat.read(ROOT / "nbs" / "jobs" / "sft.ipynb", as_version=4)
    nb.cells.insert(0, new_code_cell(BROKEN))
    nbformat.write(nb, tmp_path / "broken.ipynb")
    keys = {**TRAINING, "dataset_name": str(traces), "model_name_or_path": str(tiny_model)}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(keys | {"max_steps": 1}))
    options = ("--config", "r.yaml", "--run-dir", "run")
    result = r1nb("run", "broken.ipynb", *options, cwd=tmp_path, runs=tmp_path)
    assert result.code == 0, result.err[-3000:]
    assert Run(tmp_path / "run").status == "completed"
    assert result.err.count("no samples are shown: RuntimeError: CUDA out of memory") == 1


def test_choices_of_the_model_reach_the_tokens(tiny_model, traces, tmp_path):
    "Another tokenizer is another preparation."
    tokenizer = load_tokenizer(ModelChoice(str(tiny_model)))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    other = tmp_path / "other"
    load_model(ModelChoice(str(tiny_model), dtype="float32"), tokenizer).save_pretrained(other)
    tokenizer.save_pretrained(other)
    one, two = (prepared(TracesTrainer, m, traces, tmp_path)[0] for m in (tiny_model, other))
    assert len(one) == len(two) and len(one[0]["input_ids"]) > len(two[0]["input_ids"])


def test_a_max_length_that_leaves_nothing_is_refused(tiny_model, traces, tmp_path):
    with pytest.raises(InputError, match="max_length: all 17 traces .train. have prompts of 20 to"):
        prepared(TracesTrainer, tiny_model, traces, tmp_path, max_length=20)
