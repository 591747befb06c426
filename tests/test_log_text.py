"What a job's log says, to somebody who reads it in a terminal."

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios

import nbformat
from conftest import DEADLINE, R1NB, r1nb
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from r1nb.runs import Run

HOSTILE = r"""
import pandas as pd
from IPython.display import HTML, Markdown, display

bad = "\x1b]0;owned\x07\x1b[2J\x9b3J\u202e" + "x" * 70
display(pd.DataFrame({"name": ["plain", bad], "value": [0.5, None], "more": ["y" * 90, "z"]}))
display(HTML("<script>alert(1)</script><b>4 &lt; 5</b> &#27;[2J<table><tr><td>a<td>b</table>"))
display(Markdown("**bold** &#42;"))
print("printed \x1b]52;c;cm0=\x07 \x1b[31mred\x1b[0m")
"""


def notebook(folder, *sources):
    "A notebook with a heading and the code cells `sources`."
    cells = [new_markdown_cell("# A title\n\nProse.\n\n## A part"), *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=cells), folder / "mine.ipynb")
    return folder / "mine.ipynb"


def section(text, title):
    "What a log has between the heading `title` and the next one."
    return re.search(rf"(?ms)^## {title}\n(.*?)(?=^##? |\Z)", text)[1]


def test_the_log_of_a_training_can_be_read(alone):
    text = (alone / "logs" / "rank-0.log").read_text()
    assert "..." not in text and not re.search(r"<[\w.]+ object|<Figure", text), text
    configuration = section(text, "Configuration")
    written = alone.manifest["config"]  # the default batch size too
    assert [key for key in written if f" {key} " not in configuration] == []
    assert "AcceleratorConfig" not in configuration
    assert "traces.jsonl" in re.sub(r"\s+|given", "", configuration)  # a path may be on two lines
    assert max(map(len, configuration.splitlines())) <= 100
    titles = re.findall(r"(?m)^## (.+)", text)
    assert titles[0] == "Configuration" and titles[-1] == "Summary"
    assert re.search(r"\[figure: loss, [^]]*job\.ipynb\]", text), text
    summary = section(text, "Summary")
    for part in (
        "sft, completed in 0:0",
        "traces 40, steps 6, train_loss ",
        "job.ipynb",
        "r1nb ask",
    ):
        assert part in summary, summary
    assert text.endswith(summary) and summary.count("\n") <= 12
    record = json.loads((alone / "job.ipynb").read_text())
    rich = [o["data"] for c in record["cells"] for o in c.get("outputs", ()) if "data" in o]
    assert any("text/html" in d for d in rich) and any("image/png" in d for d in rich)
    assert not any("r1nb-log" in mime for d in rich for mime in d)


def test_nothing_hostile_reaches_a_log(tmp_path):
    run = tmp_path / "run"
    result = r1nb("run", notebook(tmp_path, HOSTILE), "--run-dir", run, cwd=tmp_path, runs=tmp_path)
    assert result.code == 0, result.err
    text = (run / "logs" / "rank-0.log").read_text()
    for place in (text, result.out, result.err):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", place), place
    assert "alert" not in text and "owned" not in text
    table = section(text, "A part")
    assert (
        "".join(re.findall("x+", table)) == 70 * "x"
        and "".join(re.findall("y+", table)) == 90 * "y"
    )
    assert "4 < 5" in text and "a  b" in text and "**bold** *" in text and "printed  red" in text
    began, _, rest = text.partition("\n\n")
    assert began.startswith("command r1nb run mine.ipynb --run-dir run\nstarted 20")
    assert rest.startswith("\n# A title\n\n## A part\n") and "notebook, completed in" in rest


def test_a_terminal_gets_lines_of_its_width_and_no_commands(tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 72, 0, 0))
    command = [R1NB, "run", notebook(tmp_path, HOSTILE), "--run-dir", tmp_path / "run"]
    env = {**os.environ, "R1NB_RUNS": str(tmp_path)}
    with subprocess.Popen(command, stdout=slave, stderr=slave, cwd=tmp_path, env=env) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                if not (data := os.read(master, 1 << 16)):
                    break
            except OSError:  # the other end is closed
                break
            shown += data
        assert process.wait(DEADLINE) == 0
    os.close(master)
    text = shown.decode()
    assert set(re.findall(r"\x1b\S{0,3}", text)) <= {"\x1b[31", "\x1b[0m"} and "\x9b" not in text
    table = section(text.replace("\r\n", "\n"), "A part").partition("4 < 5")[0]
    assert 60 < max(map(len, table.splitlines())) <= 72 and "owned" not in text


def test_the_log_says_why_a_run_failed(tmp_path):
    path, run = notebook(tmp_path, "raise ValueError('no \\x1b[2J data')"), tmp_path / "run"
    result = r1nb("run", path, "--run-dir", run, cwd=tmp_path, runs=tmp_path)
    assert result.code == 1 and Run(run).status == "failed"
    text = (run / "logs" / "rank-0.log").read_text()
    assert "r1nb: failed: ValueError: no  data" in text.splitlines()[-2]
    assert "the record so far" in text.splitlines()[-1] and "\x1b" not in text + result.err
