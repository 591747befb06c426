"""Check this machine's GPU in one command: what runs on it, how fast, and in how much memory.

    python scripts/bench/gpu.py [--out gpu.md] [--minutes 15] [--only packed,optimizer]
    python scripts/bench/gpu.py --toy    # tiny sizes, on any machine: does the check itself run

Models have random weights: the shape of Qwen2.5-1.5B (1.5 billion parameters, 151,936 tokens) and
SmolLM2-135M, bundled or of its shape. Nothing is downloaded, except a kernel for attention where
the package `kernels` is installed and the Hub may be reached (HF_HUB_OFFLINE=1 forbids it).

Each section runs in its own process, with a share of the time; what fails or does not fit is a row
of the table that says why, and what was measured before it stays. The table in Markdown is written
after each section, with the hardware and the versions.

MFU is the share of the GPU's dense bfloat16 peak that goes into the model: 6 operations a weight
and token and those of the causal attention within a text; what checkpointing computes again does
not count. Memory is torch's peak of allocated tensors, in GiB.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SECTIONS = {  # name -> (title, seconds at most)
    "packed": ("Packed SFT: forward and backward, checkpointing, texts of 1,024 tokens", 150),
    "loss": ("Packed against separate rows: the loss in bfloat16", 90),
    "optimizer": ("AdamW's step", 40),
    "head": ("The head on one long row: the loss without and with all logits", 40),
    "update": ("GRPO's update: padded rows, checkpointing", 120),
    "rollouts": ("GRPO with TRL: one step, by the way completions are made", 150),
    "jobs": ("The job notebooks, end to end", 180),
    "resume": ("SIGTERM, and resuming", 240),
    "plan": ("r1nb plan against the measured peak", 60),
}
PEAKS = {"H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362, "4090": 165, "A10": 125}
GIB = 2**30


@dataclass(frozen=True)
class Size:
    "What is measured; `toy` is for a CPU."

    text: int = 1024
    batches: tuple = ((4096, 1), (4096, 4), (4096, 8), (16384, 1))  # tokens in a row, rows
    steps: int = 3
    long: int = 16384
    prompt: int = 512
    completion: int = 1024
    new_tokens: int = 256
    completions: int = 32
    job_steps: int = 12


FULL = Size()
TOY = Size(32, ((64, 1), (64, 2)), 1, 128, 16, 16, 8, 4, 6)


class Bench:
    "A section's process: the device, the sizes, and the rows that it has measured so far."

    def __init__(self, toy: bool, file: Path, folder: Path):
        import torch

        self.toy, self.file, self.folder = toy, file, folder
        self.size = TOY if toy else FULL
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.gpu = self.device.type == "cuda"

    def row(self, case: str, **values) -> None:
        "Keep a row of the table: it is on disk before the next one is measured."
        with self.file.open("a") as f:
            f.write(json.dumps({"case": case, **values}) + "\n")

    @contextlib.contextmanager
    def case(self, case: str):
        "A row that says why, if what is measured here fails; memory is free again afterwards."
        import gc

        import torch

        try:
            yield
        except Exception as e:
            self.row(case, result=f"not run: {type(e).__name__}: {' '.join(str(e).split())[:160]}")
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()

    def measured(self, action, steps: int = 1) -> tuple[float, float | None]:
        "`(seconds, GiB)` of `action()`: the mean and the peak of `steps`, after one to warm up."
        import torch

        action()
        if self.gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        for _ in range(steps):
            action()
        if self.gpu:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - begin) / steps
        return seconds, torch.cuda.max_memory_allocated() / GIB if self.gpu else None

    def model(self, checkpointing: bool = True):
        "Qwen2.5-1.5B's shape with random bfloat16 weights and TRL's head, in training mode."
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM
        from trl.trainer.utils import add_fused_lm_head

        shape = {
            "vocab_size": 151936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
        }
        if self.toy:
            shape |= {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128}
            shape |= {"num_hidden_layers": 2, "num_attention_heads": 4}
        torch.manual_seed(0)
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with self.device:
                model = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **shape))
        finally:
            torch.set_default_dtype(dtype)
        add_fused_lm_head(model, outputs=("log_probs",))
        if checkpointing:
            model.gradient_checkpointing_enable()
        return model.train()

    def to_device(self, batch: dict) -> dict:
        "`batch` with its tensors on the device."
        return {k: v.to(self.device) if hasattr(v, "to") else v for k, v in batch.items()}

    def texts(self, tokens: int, vocabulary: int) -> list[dict]:
        "`tokens` random tokens as texts of `size.text`."
        numbers = random.Random(0)
        lengths = [self.size.text] * max(1, tokens // self.size.text)
        return [{"input_ids": [numbers.randrange(vocabulary) for _ in range(n)]} for n in lengths]

    def small(self) -> str:
        "The folder of a model for jobs: SmolLM2-135M; without its package, one of its shape."
        from r1nb.models import bundled_gguf, bundled_model, tiny_model

        if self.toy:
            return str(tiny_model(self.folder / "tiny"))
        if bundled_gguf():
            return str(bundled_model())
        folder = tiny_model(self.folder / "shape")
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig.from_pretrained(folder)
        config.update({"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30})
        config.update({"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64})
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
        return str(folder)


def rounded(value, digits: int = 3):
    "`value` with `digits` significant digits; a dash where there is none."
    return "—" if value is None else f"{value:.{digits}g}"


def attentions(bench: Bench) -> list[str]:
    "The implementations to compare: a recipe's usual ones, and those whose package is here."
    from transformers.utils import is_flash_attn_2_available, is_kernels_available

    names = ["sdpa", "flex_attention"]
    if bench.gpu and is_flash_attn_2_available():
        names.append("flash_attention_2")
    if bench.gpu and is_kernels_available():
        names += ["kernels-community/flash-attn2", "kernels-community/flash-attn3"]
    return names


def missing_attentions(bench: Bench) -> None:
    "A row for each implementation that is not compared, with the reason."
    here = attentions(bench)
    if "flash_attention_2" not in here:
        why = "flash-attn is not installed" if bench.gpu else "needs a GPU"
        bench.row("flash_attention_2", result=f"not run: {why}")
    if not any("/" in name for name in here):
        why = "kernels (extra gpu) is not installed" if bench.gpu else "needs a GPU"
        bench.row("kernels-community/flash-attn2, flash-attn3", result=f"not run: {why}")


def operations(model, tokens: int, text: int) -> float:
    "Operations of a forward and backward pass on `tokens` tokens in texts of `text`."
    config = model.config
    weights = sum(p.numel() for p in model.parameters())  # the tied embedding is the head
    attention = config.num_hidden_layers * config.hidden_size * text
    return 6 * tokens * (weights + attention)


def peak_rate() -> float | None:
    "Operations a second of this GPU's dense bfloat16 peak, if it is known."
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((rate * 1e12 for key, rate in PEAKS.items() if key in name), None)


def attention_kernels(bench: Bench, action) -> str:
    "The kernels of attention in `action()`, the slowest first."
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.gpu else [])]
    with profile(activities=kinds) as recorded:
        action()
    words = ("flash", "fmha", "attention", "attn", "flex", "mem_eff", "sdpa", "triton_tem")
    time_of = "self_device_time_total" if bench.gpu else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda e: -getattr(e, time_of))
    names = [e.key for e in events if any(w in e.key.lower() for w in words)]
    if bench.gpu:
        names = [e.key for e in events if e.key in names and str(e.device_type).endswith("CUDA")]
    return ", ".join(name[:60] for name in names[:2]) or "—"


def packed(bench: Bench) -> None:
    "Tokens a second, MFU, memory and kernels of packed rows, for each attention."
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    model = bench.model()
    for name in attentions(bench):
        with bench.case(name):
            model.set_attn_implementation(name)
            kernels = None
            for length, rows in bench.size.batches:
                with bench.case(f"{name}, {rows} × {length}"):
                    texts = bench.texts(length * rows, model.config.vocab_size)
                    batch = bench.to_device(collate(texts))

                    def step(batch=batch):
                        out = model(**batch, use_cache=False, fused_lm_head=True)
                        (-out.log_probs.mean()).backward()
                        model.zero_grad()

                    seconds, gib = bench.measured(step, bench.size.steps)
                    kernels = kernels or attention_kernels(bench, step)
                    tokens, peak = batch["input_ids"].numel(), peak_rate()
                    rate = operations(model, tokens, bench.size.text) / seconds
                    bench.row(
                        f"{name}, {rows} × {length}",
                        **{"tokens/s": rounded(tokens / seconds)},
                        MFU=f"{rate / peak:.0%}" if peak else "—",
                        GiB=rounded(gib),
                        kernels=kernels,
                    )
    missing_attentions(bench)


def loss(bench: Bench) -> None:
    "How far the loss of packed rows is from that of separate ones, for each attention."
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = bench.model(checkpointing=False)
    lengths = [bench.size.text // k for k in (1, 2, 3, 4)]
    numbers = random.Random(1)
    words = model.config.vocab_size
    texts = [{"input_ids": [numbers.randrange(words) for _ in range(n)]} for n in lengths]
    sides = [
        bench.to_device(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=free)(texts))
        for free in (True, False)
    ]
    for name in attentions(bench):
        with bench.case(name), torch.no_grad():
            model.set_attn_implementation(name)
            sums = [model(**b, use_cache=False, fused_lm_head=True).log_probs.sum() for b in sides]
            together, apart = (-s.item() / sum(lengths) for s in sums)
            difference = abs(together - apart) / apart
            bench.row(
                name,
                packed=f"{together:.5f}",
                separate=f"{apart:.5f}",
                difference=f"{difference:.1e}",
                result="equal" if difference < 1e-3 else "DIFFERENT",
            )
    missing_attentions(bench)


def optimizer(bench: Bench) -> None:
    "Time and memory of a step of AdamW, with and without float32 copies; memory of saving it."
    import torch

    from r1nb.trainer import MasterAdamW

    kinds = {
        "master_weights: true (MasterAdamW)": MasterAdamW,
        "master_weights: false (torch's fused AdamW)": lambda p: torch.optim.AdamW(p, fused=True),
    }
    for case, kind in kinds.items():
        with bench.case(case):
            model = bench.model(checkpointing=False)
            adamw = kind(model.parameters())
            for p in model.parameters():
                p.grad = torch.full_like(p, 1e-3)
            seconds, gib = bench.measured(adamw.step, bench.size.steps)
            count = sum(p.numel() for p in model.parameters())
            saving = None
            if bench.gpu:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                adamw.state_dict()
                saving = (torch.cuda.max_memory_allocated() - before) / GIB
            bench.row(
                case,
                **{"ms/step": rounded(1000 * seconds), "GiB": rounded(gib)},
                **{"bytes/parameter": rounded(gib and gib * GIB / count)},
                **{"GiB more to save": rounded(saving)},
            )
            del model, adamw


def head(bench: Bench) -> None:
    "Forward and backward on one long row: TRL's head against the model's own, with all logits."
    import torch

    model = bench.model()
    ids = torch.randint(0, model.config.vocab_size, (1, bench.size.long), device=bench.device)

    def fused():
        out = model(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True)
        (-out.log_probs.mean()).backward()
        model.zero_grad()

    def whole():
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()

    for case, step in (("TRL's fused head", fused), ("all logits", whole)):
        case = f"{case}, 1 × {bench.size.long}"
        with bench.case(case):
            seconds, gib = bench.measured(step, bench.size.steps)
            rate = rounded(bench.size.long / seconds)
            bench.row(case, **{"tokens/s": rate, "GiB": rounded(gib)})


def update(bench: Bench) -> None:
    "Forward and backward of GRPO's micro-batch: left-padded prompts, right-padded completions."
    import torch

    model, size = bench.model(), bench.size
    rows, length = 8, size.prompt + size.completion
    numbers = random.Random(0)
    mask = torch.zeros(rows, length, dtype=torch.long)
    for row in mask:
        begin = size.prompt - numbers.randint(size.prompt // 4, size.prompt)
        row[begin : size.prompt + numbers.randint(size.completion // 4, size.completion)] = 1
    ids = torch.randint(0, model.config.vocab_size, (rows, length))
    labels = torch.where((torch.arange(length) >= size.prompt) & mask.bool(), ids, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    batch, tokens = bench.to_device(batch), int(mask.sum())
    for name in attentions(bench):
        case = f"{name}, {rows} × ({size.prompt} + {size.completion})"
        with bench.case(case):
            model.set_attn_implementation(name)

            def step():
                out = model(**batch, use_cache=False, fused_lm_head=True)
                (-out.log_probs.mean()).backward()
                model.zero_grad()

            seconds, gib = bench.measured(step, size.steps)
            bench.row(case, **{"tokens/s": rounded(tokens / seconds), "GiB": rounded(gib)})
    missing_attentions(bench)


SUMS = {"dataset_name": "reasoning_gym/chain_sum", "split": "train", "num_problems": 64}


def grpo_seconds(bench: Bench, **keys) -> dict:
    "Seconds of the last of two steps of `run_grpo` with `keys`: all, and those of the completions."
    import torch
    from trl import GRPOTrainer

    from r1nb import grpo
    from r1nb.recipes import configure
    from r1nb.runs import open_run

    count, times = bench.size.completions, {"completions": 0.0, "step": 0.0, "tokens": 0}
    generate, step = GRPOTrainer._generate_single_turn, GRPOTrainer.training_step
    recipe = {
        **SUMS,
        "model_name_or_path": bench.small(),
        "reward_funcs": ["format"],
        "max_steps": 2,
        "save_strategy": "no",
        "per_device_train_batch_size": count,
        "num_generations": 4,
        "max_completion_length": bench.size.new_tokens,
        "cpu_shortcuts": False,  # TRL's trainer, on a CPU too
        "disable_tqdm": True,
        "report_to": "none",
        **keys,
    }

    def timed_generate(self, *args, **options):
        begin = time.perf_counter()
        result = generate(self, *args, **options)
        times["completions"] = time.perf_counter() - begin
        times["tokens"] = sum(map(len, result[0]))
        return result

    def timed_step(self, *args, **options):
        begin = time.perf_counter()
        result = step(self, *args, **options)
        if bench.gpu:
            torch.cuda.synchronize()
        times["step"] = time.perf_counter() - begin
        return result

    configuration, written = configure(grpo.stage, recipe)
    if bench.gpu:
        torch.cuda.reset_peak_memory_stats()
    GRPOTrainer._generate_single_turn, GRPOTrainer.training_step = timed_generate, timed_step
    try:
        with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
            grpo.run_grpo(open_run(Path(folder) / "run", "grpo", written), *configuration)
    finally:
        GRPOTrainer._generate_single_turn, GRPOTrainer.training_step = generate, step
    gib = torch.cuda.max_memory_allocated() / GIB if bench.gpu else None
    return {
        "completions, s": rounded(times["completions"]),
        "tokens/s": rounded(times["tokens"] / times["completions"]),
        "update, s": rounded(times["step"] - times["completions"]),
        "GiB": rounded(gib),
    }


def rollouts(bench: Bench) -> None:
    "GRPO's step by the way completions are made, and with an adapter, checkpointing and KL."
    adapter = {"use_peft": True, "gradient_checkpointing": True, "beta": 0.04}
    cases = {
        "generate": {},
        "LoRA, checkpointing, KL": adapter,
        "continuous batching": {"use_transformers_continuous_batching": True},
        "vLLM in this process": {"use_vllm": True, "vllm_gpu_memory_utilization": 0.3},
    }
    for case, keys in cases.items():
        if "vLLM" in case and (not bench.gpu or importlib.util.find_spec("vllm") is None):
            why = "vLLM is not installed" if bench.gpu else "needs a GPU"
            bench.row(case, result=f"not run: {why}")
            continue
        if case == "continuous batching" and not bench.gpu:
            bench.row(case, result="not run: needs a GPU")
            continue
        with bench.case(case):
            bench.row(case, **grpo_seconds(bench, **keys))


def write_traces(folder: Path, count: int = 96) -> str:
    "A file of `count` worked sums for SFT."
    from r1nb.generate import worked_solution
    from r1nb.runs import append_jsonl

    pairs = [(a, b) for a in range(10) for b in range(10)][:count]
    rows = [
        {"problem": f"{a} + {b} =", "completion": worked_solution([("+", a), ("+", b)])}
        for a, b in pairs
    ]
    append_jsonl(folder / "traces.jsonl", rows)
    return str(folder / "traces.jsonl")


def job(stage: str, folder: Path, keys: dict, wait: bool = True):
    "Start `r1nb STAGE` in run folder `folder`; its process, and when it has ended if `wait`."
    words = [f"--{k}={json.dumps(v) if isinstance(v, list) else v}" for k, v in keys.items()]
    command = [sys.executable, "-m", "r1nb.cli", stage, "--run-dir", str(folder), *words]
    log = (folder.parent / f"{folder.name}.log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    if wait:
        process.wait()
    return process


def last_words(folder: Path) -> str:
    "The last line that the job of `folder` wrote."
    lines = (folder.parent / f"{folder.name}.log").read_text().strip().splitlines()
    return lines[-1][:160] if lines else ""


def sft_keys(bench: Bench, folder: Path, **keys) -> dict:
    "Keys of a short SFT."
    return {
        "dataset_name": write_traces(folder),
        "model_name_or_path": bench.small(),
        "max_steps": bench.size.job_steps,
        "per_device_train_batch_size": 4,
        "max_length": 256,
        "learning_rate": 1e-4,
        "cpu_shortcuts": False,
        **keys,
    }


def jobs(bench: Bench) -> None:
    "Both job notebooks: seconds, status, and where the loss or the reward went."
    from r1nb.runs import Run

    for stage in ("sft", "grpo"):
        with bench.case(stage):
            keys = sft_keys(bench, bench.folder)
            if stage == "grpo":
                keys = {**SUMS, "model_name_or_path": bench.small(), "reward_funcs": ["format"]}
                keys |= {"max_steps": 2, "per_device_train_batch_size": bench.size.completions}
                keys |= {"num_generations": 4, "max_completion_length": bench.size.new_tokens}
            begin = time.perf_counter()
            process = job(stage, bench.folder / stage, keys)
            run = Run(bench.folder / stage)
            losses = [line["loss"] for line in run.metrics if "loss" in line]
            bench.row(
                f"r1nb {stage}, {keys['max_steps']} steps",
                seconds=rounded(time.perf_counter() - begin),
                **{"exit code": process.returncode},
                losses=f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else "—",
                result=run.status if not process.returncode else last_words(run.path),
            )


def losses_of(folder: Path) -> dict[int, float]:
    "Step → loss of the run in `folder`."
    from r1nb.runs import Run

    return {line["step"]: line["loss"] for line in Run(folder).metrics if "loss" in line}


def resume(bench: Bench) -> None:
    "A run that is told to stop half way, and continued, against one that is not."
    steps = 2 * bench.size.job_steps
    keys = sft_keys(bench, bench.folder, max_steps=steps, save_steps=1, dataloader_num_workers=0)
    with bench.case("SIGTERM, resume"):
        undisturbed = job("sft", bench.folder / "whole", keys)
        if undisturbed.returncode:
            raise RuntimeError(f"the run failed: {last_words(bench.folder / 'whole')}")
        stopped, folder = None, bench.folder / "stopped"
        process = job("sft", folder, keys, wait=False)
        while process.poll() is None and len(losses_of(folder)) < 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        stopped = process.wait()
        before = max(losses_of(folder), default=0)
        begin = time.perf_counter()
        again = job("sft", folder, keys)
        seconds = time.perf_counter() - begin
        whole, resumed = losses_of(bench.folder / "whole"), losses_of(folder)
        worst = max(abs(whole[s] - resumed.get(s, float("inf"))) for s in whole)
        bench.row(
            f"SIGTERM after step {before} of {steps}, resume",
            **{"exit code": f"{stopped}, then {again.returncode}"},
            **{"seconds again": rounded(seconds)},
            **{"largest difference of a loss": f"{worst:.1e}"},
            result="equal" if worst < 1e-2 else "DIFFERENT",  # a GPU sums in changing order
        )


def plan(bench: Bench) -> None:
    "What `r1nb plan` says of an SFT, and its peak."
    import torch

    from r1nb import sft
    from r1nb.recipes import configure
    from r1nb.runs import open_run

    case = "SFT of SmolLM2-135M's shape, 8 rows"
    keys = sft_keys(bench, bench.folder, per_device_train_batch_size=8, max_steps=3)
    if importlib.util.find_spec("r1nb.plan") is None:
        return bench.row(case, result="not run: this version of r1nb has no plan")
    with bench.case(case):
        from r1nb.plan import Machine, plan_stage

        said = plan_stage("sft", keys, machine=Machine(gpus=int(bench.gpu), reserve=0))
        configuration, written = configure(sft.stage, keys)
        if bench.gpu:
            torch.cuda.reset_peak_memory_stats()
        with contextlib.redirect_stdout(sys.stderr):
            sft.run_sft(open_run(bench.folder / "plan", "sft", written), *configuration)
        if bench.gpu:
            peak = torch.cuda.max_memory_allocated() / GIB
        else:  # of the process, libraries included
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        name = "measured, GiB" if bench.gpu else "measured with libraries, GiB"
        bench.row(case, **{"planned, GiB": rounded(said.peak), name: rounded(peak)})


def table(rows: list[dict]) -> str:
    "`rows` as a table in Markdown; a column for each key, in the order of appearance."
    keys = list(dict.fromkeys(k for row in rows for k in row))
    keys.sort(key=lambda k: k == "result")  # last
    text = [keys, ["---"] * len(keys), *([row.get(k, "") for k in keys] for row in rows)]
    return "\n".join("| " + " | ".join(str(v).replace("|", "\\|") for v in r) + " |" for r in text)


def heading(toy: bool) -> str:
    "Hardware and versions."
    import torch

    from r1nb.runs import git_revision, hardware, package_versions

    versions = {k: v for k, v in package_versions().items() if v}
    for name in ("kernels", "flash_attn", "vllm"):
        if name not in versions and importlib.util.find_spec(name):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
    machine = ", ".join(f"{k}: {v}" for k, v in hardware().items())
    lines = [f"# r1nb on this machine{' (toy sizes)' if toy else ''}", "", f"- {machine}"]
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        lines.append(f"- {gpu.name}, {gpu.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}")
    lines.append("- " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    return "\n".join([*lines, f"- r1nb {git_revision().get('revision', '')}".rstrip()])


def run_section(name: str, toy: bool, seconds: float, folder: Path) -> list[dict]:
    "The rows of section `name`, measured in a process of its own within `seconds`."
    file = folder / f"{name}.jsonl"
    command = [sys.executable, __file__, "--section", name, "--rows", str(file)]
    log = folder / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *(["--toy"] if toy else [])],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        late = False
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its jobs, too
        process.wait()
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if late:
        rows.append({"case": "the rest", "result": f"not run: no time after {seconds:.0f} s"})
    elif process.returncode or not rows:
        words = (log.read_text().strip().splitlines() or ["no output"])[-1][:200]
        why = f"not run: exit code {process.returncode}: {words}"
        rows.append({"case": "the rest", "result": why})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.md"), help="the table")
    parser.add_argument("--minutes", type=float, help="the whole check at most; default 15")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, for any machine")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        with tempfile.TemporaryDirectory() as folder:
            return globals()[args.section](Bench(args.toy, args.rows, Path(folder)))
    names = args.only.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"--only: {', '.join(unknown)}; valid: {', '.join(SECTIONS)}")
    minutes = args.minutes or (60 if args.toy else 15)  # CPUs that are tested on are often busy
    text, end = heading(args.toy), time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            title, most = SECTIONS[name]
            begin = time.monotonic()
            seconds = min(most * (6 if args.toy else 1), end - begin)
            rows = [{"case": "all", "result": "not run: no time left (--minutes)"}]
            if seconds > 5:
                rows = run_section(name, args.toy, seconds, Path(folder))
            part = f"## {title}\n\n{table(rows)}"
            text += f"\n\n{part}"
            args.out.write_text(text + "\n")
            print(f"{part}\n\n({name}: {time.monotonic() - begin:.0f} s)\n", flush=True)
    print(f"{args.out} written")


if __name__ == "__main__":
    main()
