"""The memory that `r1nb plan` predicts beside what a training takes, for small models on a CPU.

    python scripts/bench/plan.py [--cases sft-float32 ...]

Each case trains a random model of 5 to 30 million parameters for two steps in a process of its own,
with `cpu_shortcuts: false`. Measured is the largest resident memory during the training, above
that before the model was loaded; a tiny model was trained in the same process before, so that
libraries are loaded. malloc is told to return freed memory (MALLOC_MMAP_THRESHOLD_).
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = {
    "llama": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "vocab_size": 16_000,
    },
    "qwen2": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 6,
        "vocab_size": 2000,
    },
}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 2000}
SFT = {"max_length": 256, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
GRPO = {
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 160,
}
CASES = {
    "sft-float32": ("sft", "llama", {"dtype": "float32"}),
    "sft-float32-recomputed": (
        "sft",
        "llama",
        {"dtype": "float32", "gradient_checkpointing": True},
    ),
    "sft-bfloat16": ("sft", "llama", {"dtype": "bfloat16"}),
    "sft-bfloat16-eager": ("sft", "llama", {"dtype": "bfloat16", "attn_implementation": "eager"}),
    "sft-bfloat16-accumulated": (
        "sft",
        "qwen2",
        {"dtype": "bfloat16", "gradient_accumulation_steps": 3, "gradient_checkpointing": True},
    ),
    "sft-bfloat16-adapter": ("sft", "qwen2", {"dtype": "bfloat16", "use_peft": True}),
    "sft-float32-adapter": ("sft", "llama", {"dtype": "float32", "use_peft": True}),
    "sft-float32-packed": (
        "sft",
        "llama",
        {"dtype": "float32", "packing": True, "packing_strategy": "bfd_split"},
    ),
    "grpo-float32": ("grpo", "llama", {"dtype": "float32"}),
    "grpo-bfloat16": ("grpo", "qwen2", {"dtype": "bfloat16"}),
    "grpo-bfloat16-recomputed": (
        "grpo",
        "qwen2",
        {"dtype": "bfloat16", "gradient_checkpointing": True},
    ),
    "grpo-float32-reference": ("grpo", "llama", {"dtype": "float32", "beta": 0.04}),
    "grpo-bfloat16-adapter": ("grpo", "llama", {"dtype": "bfloat16", "use_peft": True}),
}


def write_model(kind: str, folder: Path, **sizes) -> Path:
    "Write a random model of `kind` with the tiny model's tokenizer to `folder`."
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from r1nb.models import tiny_model
    from r1nb.templates import align_tokens

    tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.for_model(
        kind,
        **sizes,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    align_tokens(tokenizer, model)
    model.save_pretrained(folder)
    return folder


def recipe_of(stage: str, model: Path, folder: Path, keys: dict) -> dict:
    "The recipe of a case; the traces are written to `folder`."
    recipe = {
        "model_name_or_path": str(model),
        "cpu_shortcuts": False,
        "gradient_checkpointing": False,
        "max_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if stage == "grpo":
        task = {"dataset_name": "reasoning_gym/chain_sum", "num_problems": 8}
        return recipe | GRPO | task | {"system_prompt": "Add."} | keys
    file = folder / "traces.jsonl"
    sizes = [400 - 30 * (n % 4) for n in range(64)]  # the longest fills max_length
    rows = [{"prompt": "1 + 1", "completion": "12" * (n // 2)} for n in sizes]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return recipe | SFT | {"dataset_name": str(file)} | keys


def resident(field: str = "VmRSS") -> int:
    "Bytes of resident memory of this process; `VmHWM`: the most since it was reset."
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if field in s)
    return int(line.split()[1]) * 1024


def run_stage(stage: str, recipe: dict, folder: Path) -> None:
    "Train as the stage does."
    from r1nb.recipes import configure
    from r1nb.runs import open_run
    from r1nb.stages import load_stage

    loaded = load_stage(stage)
    configuration, written = configure(loaded, recipe)
    loaded.run(open_run(folder, stage, written), *configuration)


def child(case: str) -> None:
    "Measure `case` in this process; prints a line of JSON."
    stage, kind, keys = CASES[case]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small = write_model(kind, folder / "small", **SMALL)
        model = write_model(kind, folder / "model", **MODELS[kind])
        for name, chosen in (("warm", small), ("measured", model)):
            recipe = recipe_of(stage, chosen, folder, keys)
            if name == "warm":
                recipe |= {"max_completion_length": 8} if stage == "grpo" else {}
            gc.collect()  # the trainer of before is in reference cycles
            before = resident()
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            run_stage(stage, recipe, folder / name)
        print(json.dumps({"measured": resident("VmHWM") - before, "recipe": recipe}))
        from r1nb.plan import Machine, plan_rows, plan_stage

        plan = plan_stage(stage, recipe, {}, Machine(gpus=0))
        result = {"predicted": plan.peak * 2**30, "phase": plan.worst, "rows": plan_rows(plan)}
        print(json.dumps(result | {"parameters": plan.count.trained + plan.count.frozen}))


def measure(case: str) -> dict:
    "Measured and predicted bytes of `case`, from a process of its own."
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, __file__, "--child", case]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith(('{"measured"', '{"predicted"')):
            found |= json.loads(line)
    if "predicted" not in found:
        raise SystemExit(f"{case}: {done.stderr[-3000:]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--child", choices=CASES)
    parser.add_argument("--phases", action="store_true", help="print the plan of each case")
    args = parser.parse_args()
    if args.child:
        return child(args.child)
    print(f"{'case':<28}{'million':>8}{'predicted':>11}{'measured':>10}{'ratio':>7}  phase")
    for case in args.cases:
        r = measure(case)
        predicted, measured = r["predicted"] / 1e6, r["measured"] / 1e6
        print(
            f"{case:<28}{r['parameters'] / 1e6:>8.1f}{predicted:>8.0f} MB{measured:>7.0f} MB"
            f"{predicted / measured:>7.2f}  {r['phase']}",
            flush=True,
        )
        for row in r["rows"] if args.phases else ():
            print("   ", row)


if __name__ == "__main__":
    main()
