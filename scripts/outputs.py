"""Check that the outputs stored in notebooks are what their code prints now, or store new ones.

    python scripts/outputs.py                            # check all notebooks of nbs/
    python scripts/outputs.py --write nbs/33_generate.ipynb

Each notebook runs in a Jupyter kernel of its own, without the cells that nbdev-test leaves out.
Compared are the text of stdout, results and displays (tables in HTML too) and which kinds of output
there are. A plot has to be there, but its pixels are not compared. stderr (progress bars, warnings)
is neither compared nor stored.

Integers have to be equal, other numbers equal within 2 %, one unit of the last digit shown or
1e-5. Addresses, temporary paths, times of day, durations in seconds, a trainer's rates and
libraries' log lines are ignored. In a cell tagged `varies` (memory, rates, process ids) all
numbers are. In a cell tagged `machine` only the kinds of output are compared: what a model says in
bfloat16 on one processor it may not say in float32 on another.
"""

import argparse
import difflib
import html
import json
import os
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 0.02  # relative, of numbers with a decimal point or an exponent
NOISE = 1e-5  # absolute: sums that would be zero without rounding
CELL_TIMEOUT = 600  # seconds

# What differs between two runs of the same code, and what takes its place.
IGNORED = [
    (r"\x1b\[[0-9;?]*[A-Za-z]", ""),  # colours
    (r"(?: at)? 0x[0-9a-f]+", ""),
    (r"(?:/[\w.+-]+)*/(?:tmp[a-z0-9_]{8}|ipykernel_\d+)\b", "<tmp>"),
    (r"<ipython-input-[\w-]+>", "<cell>"),
    (r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?", "<date>"),
    (r"\b\d+(?:\.\d+)?(?:e-?\d+)?(?= ?(?:s|ms|us|µs|seconds)\b)", "<time>"),
    (r"(?<= in )\d+:\d\d:\d\d\b", "<time>"),
    (r"\b(seconds|\w+_runtime|\w+_per_second)(['\"]?[=:] *'?)[\d.e+-]+", r"\1\2<time>"),
    (r"([-=#─━])\1{2,}", r"\1\1\1"),  # rules of tables and bars, as wide as their numbers
]
LOG_LINE = re.compile(r"(?m)^\[\d{4}-[^]\n]*\] \[[A-Z]+\].*\n?")  # of deepspeed, on stdout
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass
class Difference:
    "A cell whose stored outputs are not what its code prints now."

    notebook: Path
    cell: str
    stored: list
    now: list

    def __str__(self):
        lines = difflib.unified_diff(
            readable(self.stored), readable(self.now), "stored", "now", lineterm="", n=1
        )
        return "\n".join([f"{self.notebook}, cell {self.cell}:", *list(lines)[:40]])


def left_out(source: str) -> bool:
    "Whether nbdev-test does not run a cell with this `source`."
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    flags = "|".join(settings["tool"]["nbdev"]["tst_flags"].split())
    return bool(re.search(rf"(?m)^#\| *(?:(?:{flags})\b|eval: *false)", source))


def run(notebook: Path) -> dict[str, list]:
    """Execute `notebook` from its folder. Returns the outputs of each executed cell by its id.

    Raises nbclient's `CellExecutionError`, whose notes name the cell, if one fails."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    nb = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(notebook.parent)}}
    client = NotebookClient(nb, timeout=CELL_TIMEOUT, kernel_name="python3", resources=resources)
    client.extra_arguments = ["--log-level=ERROR"]  # of the kernel
    # With pytest's variable a kernel does not capture what child processes print.
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    outputs = {}
    with client.setup_kernel(env=env):
        for index, cell in enumerate(nb.cells):
            if cell.cell_type != "code" or left_out(cell.source):
                continue
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as error:
                error.add_note(f"in {notebook}, cell {cell.id}")
                raise
            outputs[cell.id] = storable(cell.outputs)
    return outputs


def storable(outputs: list) -> list:
    "`outputs` of a kernel as notebooks store them: no stderr, no execution counts, lists of lines."
    stored = []
    for output in json.loads(json.dumps(outputs)):
        if output.get("name") == "stderr":
            continue
        if "execution_count" in output:
            output["execution_count"] = None
        if stored and output.get("name") == "stdout" == stored[-1].get("name"):
            stored[-1]["text"] += output["text"]
            continue
        stored.append(output)
    for output in stored:
        if "text" in output:
            output["text"] = LOG_LINE.sub("", output["text"]).splitlines(True)
        for kind, value in output.get("data", {}).items():
            if isinstance(value, str) and kind != "image/png":
                output["data"][kind] = value.splitlines(True)
    return [output for output in stored if output.get("text") != []]


def readable(outputs: list) -> list[str]:
    "What is compared of `outputs`, line by line."
    lines, stdout = [], ""
    for output in outputs:
        data = output.get("data", {})
        if output["output_type"] == "stream":
            stdout += "".join(output["text"]) * (output["name"] == "stdout")
        elif output["output_type"] == "error":
            lines.append(f"{output['ename']}: {output['evalue']}")
        for kind in sorted(data):
            lines.append(f"[{kind}]")
            if kind == "text/html":
                lines += words_of_html("".join(data[kind])).splitlines()
            elif kind.startswith("text/") and "text/html" not in data:
                lines += "".join(data[kind]).splitlines()
    return stdout.splitlines() + lines


def words_of_html(text: str) -> str:
    "The text of an HTML fragment, a line for each row of a table."
    text = re.sub(r"(?s)<style.*?</style>|<script.*?</script>|\n", " ", text)
    text = re.sub(r"</(?:tr|p|div|li|h\d|pre)>|<br ?/?>", "\n", text)
    return html.unescape(re.sub(r"<[^>]*>", " ", text))


def normal(outputs: list) -> str:
    "The text of `outputs` without what differs between two runs of the same code."
    text = "\n".join(readable(outputs))
    for pattern, replacement in IGNORED:
        text = re.sub(pattern, replacement, text)
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line)


def kinds(outputs: list) -> list[str]:
    "The kinds of output in `outputs`, each once: stdout, text/plain, image/png, ..."
    found = set()
    for output in outputs:
        found |= {output["name"]} if output["output_type"] == "stream" else set(output["data"])
    return sorted(found - {"stderr"})


def same(stored: list, now: list, tags: list[str] = ()) -> bool:
    """Whether two lists of outputs show the same.

    `tags` of the cell: with `varies` numbers are not compared, with `machine` no text is."""
    if "machine" in tags:
        return kinds(stored) == kinds(now)
    stored, now = normal(stored), normal(now)
    if NUMBER.sub("#", stored) != NUMBER.sub("#", now):
        return False
    pairs = zip(NUMBER.findall(stored), NUMBER.findall(now), strict=True)
    return "varies" in tags or all(close(a, b) for a, b in pairs)


def close(a: str, b: str) -> bool:
    "Whether two printed numbers are equal, within the tolerance if both are no integers."
    if a == b:
        return True
    if not all(re.search(r"[.eE]", number) for number in (a, b)):
        return False
    x, y = (float(number.replace(",", "")) for number in (a, b))
    last_digit = max(unit(a), unit(b))
    return abs(x - y) <= max(TOLERANCE * max(abs(x), abs(y)), 1.001 * last_digit, NOISE)


def unit(number: str) -> float:
    "The value of one in the last digit of a printed number: 0.01 for '3.14', 100 for '1.2e3'."
    mantissa, _, exponent = number.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def differences(notebook: Path, write: bool = False) -> list[Difference]:
    "The cells of `notebook` whose stored outputs are outdated; with `write`, store the new ones."
    content = json.loads(notebook.read_text(encoding="utf-8"))
    now, found = run(notebook), []
    for cell in content["cells"]:
        if cell["id"] not in now:
            continue
        stored, tags = cell["outputs"], cell["metadata"].get("tags", [])
        if not same(stored, now[cell["id"]], tags):
            found.append(Difference(notebook, cell["id"], stored, now[cell["id"]]))
            cell["outputs"] = now[cell["id"]]
    if write and found:
        text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True)
        notebook.write_text(text + "\n", encoding="utf-8")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="only report differences (default)")
    action.add_argument("--write", action="store_true", help="store the outputs that changed")
    parser.add_argument(
        "notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all of nbs/"
    )
    args = parser.parse_args()
    from nbclient.exceptions import CellExecutionError

    outdated, failed = 0, 0
    for notebook in args.notebooks or sorted((ROOT / "nbs").glob("*.ipynb")):
        try:
            found = differences(notebook.resolve(), args.write)
        except CellExecutionError as error:
            print(*error.__notes__, error, sep="\n", flush=True)
            failed += 1
            continue
        for difference in found:
            print(difference, flush=True)
        outdated += len(found)
    action = "stored" if args.write else "outdated"
    print(f"{outdated} cells {action}, {failed} notebooks failed")
    return int(failed > 0 or outdated > 0 and not args.write)


if __name__ == "__main__":
    sys.exit(main())
