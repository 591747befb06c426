"""Memory, seconds and disk of preparing a large SFT corpus on several ranks: r1nb and plain TRL.

    python scripts/bench/sft_data.py --gigabytes 2

Writes a synthetic corpus of traces of about ten thousand tokens, builds the trainer on it under
`accelerate launch`, r1nb's and TRL's (`load_dataset` and `SFTTrainer`), each twice, and prints a
Markdown table. Nothing is trained. Needs about twenty times the corpus on disk, most of it for TRL.
"""

import argparse
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WORDS = 10_000  # in a trace


def make_words() -> list[str]:
    "Words of three to five letters: with the space before them as long as a token of English is."
    letters = "abcdefghijklmnopqrstuvwxyz"
    draw = random.Random(0)
    return sorted({"".join(draw.choices(letters, k=draw.randint(3, 5))) for _ in range(20_000)})


def make_corpus(file: Path, size: int) -> int:
    "Write at least `size` bytes of traces to `file`. Returns how many traces."
    draw, words, count = random.Random(1), make_words(), 0
    with open(file, "w") as f:
        while f.tell() < size:
            thought = " ".join(draw.choices(words, k=WORDS))
            answer = f"<think>\n{thought}\n</think>\n\\boxed{{{count}}}"
            question = " ".join(draw.choices(words, k=50))
            row = {
                "prompt": [{"role": "user", "content": f"{count}: {question}"}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            f.write(json.dumps(row) + "\n")
            count += 1
    return count


def make_model(folder: Path) -> None:
    """Write a Llama of a million parameters to `folder`, with a token for each word.

    Such a tokenizer is faster than a real one, which would hide what the libraries take."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[UNK]"]
    vocabulary = {word: i for i, word in enumerate(special + make_words())}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="[UNK]",
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Memory(threading.Thread):
    "Samples the memory of this process: `own` without files that are mapped into it, and `all`."

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = {"own": 0, "all": 0}

    def run(self):
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            sizes = dict(line.split(":", 1) for line in lines)
            for name, key in (("own", "RssAnon"), ("all", "VmRSS")):
                self.peak[name] = max(self.peak[name], int(sizes[key].split()[0]))
            time.sleep(0.05)


def trainer_of(which: str, file: str, model: str, max_length: int, num_proc: int):
    "r1nb's trainer on `file`, or TRL's as its script makes it."
    keys = {"max_length": max_length, "dataset_num_proc": num_proc}
    if which == "r1nb":
        from r1nb.models import load_tokenizer
        from r1nb.recipes import configure
        from r1nb.sft import sft_trainer, stage

        recipe = {"dataset_name": file, "model_name_or_path": model, "dtype": "float32", **keys}
        traces, choice, args = configure(stage, recipe)[0]
        args.output_dir = tempfile.mkdtemp()
        return sft_trainer(traces, choice, args, load_tokenizer(choice))
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(tempfile.mkdtemp(), use_cpu=True, bf16=False, **keys)
    return SFTTrainer(model, args, train_dataset=load_dataset("json", data_files=file)["train"])


def worker(which: str, file: str, model: str, max_length: int, num_proc: int, out: str) -> None:
    "One rank: build the trainer and write what it took to a file in `out`."
    from datasets import Dataset

    from r1nb.ranks import join_ranks, leave_ranks
    from r1nb.runs import rank

    passes, once = [], Dataset._map_single

    @functools.wraps(once)
    def counted(*args, **kwargs):
        passes.append(kwargs.get("desc"))
        yield from once(*args, **kwargs)

    Dataset._map_single = staticmethod(counted)  # called for a pass that is not in the cache
    join_ranks()
    memory = Memory()
    memory.start()
    begin = time.time()
    trainer = trainer_of(which, file, model, max_length, num_proc)
    tokens = trainer.train_dataset.select_columns("input_ids").with_format("arrow")
    took = {
        "rank": rank(),
        "seconds": time.time() - begin,
        "passes": len(passes),
        "traces": len(trainer.train_dataset),
        "tokens of one": len(tokens[0]["input_ids"][0]),
        **memory.peak,
    }
    Path(out, f"{rank()}.json").write_text(json.dumps(took))
    leave_ranks()


def disk(folder: Path) -> float:
    "Size of the files in `folder` in GB."
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e9


def measure(which: str, start: str, options: argparse.Namespace, folder: Path) -> str:
    "A row of the table: one start of `which` on all ranks."
    from r1nb.ranks import accelerator_file, free_port

    cache, out = folder / f"cache-{which}", folder / f"{which}-{start}"
    out.mkdir()
    command = [
        *(sys.executable, "-m", "r1nb.jobs", "accelerate"),
        *("--config_file", accelerator_file("ddp"), "--num_machines", 1),
        *("--num_processes", options.ranks, "--main_process_port", free_port(), __file__),
        *("worker", which, folder / "corpus.jsonl", folder / "model"),
        *(options.max_length, options.num_proc, out),
    ]
    env = {**os.environ, "HF_DATASETS_CACHE": str(cache), "TOKENIZERS_PARALLELISM": "false"}
    env.setdefault("OMP_NUM_THREADS", "1")
    log = folder / f"{which}-{start}.log"
    with open(log, "w") as f:
        code = subprocess.run(list(map(str, command)), env=env, stdout=f, stderr=f).returncode
    if code:
        sys.exit(f"{which} failed, exit code {code}:\n{log.read_text()[-20000:]}")
    rows = [json.loads((out / f"{r}.json").read_text()) for r in range(options.ranks)]

    def each(key, scale=1.0, digits=0):
        return " / ".join(f"{row[key] * scale:.{digits}f}" for row in rows)

    print(rows, file=sys.stderr)
    seconds = max(row["seconds"] for row in rows)
    return (
        f"| {which} | {start} | {seconds:.0f} | {each('passes')} | {each('own', 2**-20, 2)} | "
        f"{each('all', 2**-20, 2)} | {disk(cache):.1f} |"
    )


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        which, file, model, max_length, num_proc, out = sys.argv[2:]
        return worker(which, file, model, int(max_length), int(num_proc), out)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the corpus")
    parser.add_argument("--ranks", type=int, default=2, help="processes")
    parser.add_argument("--max_length", type=int, default=16384, help="tokens of a trace at most")
    parser.add_argument("--num_proc", type=int, default=1, help="processes that make tokens")
    parser.add_argument("--only", choices=("r1nb", "trl"), help="leave the other out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        count = make_corpus(folder / "corpus.jsonl", int(options.gigabytes * 1e9))
        make_model(folder / "model")
        print(f"{count} traces, {options.gigabytes} GB, {options.ranks} ranks\n")
        print("| trainer | start | s | passes | own memory, GiB | with mapped files | cache, GB |")
        print("|---|---|---:|---|---|---|---:|")
        for which in (options.only,) if options.only else ("r1nb", "trl"):
            for start in ("first", "second"):
                print(measure(which, start, options, folder), flush=True)


if __name__ == "__main__":
    main()
