"Talking to models: `r1nb ask`, and `ask` and `%ask` in a notebook."

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import nbformat
import pytest
from conftest import DEADLINE, R1NB, r1nb
from nbformat.v4 import new_code_cell, new_notebook

from r1nb.cli import main
from r1nb.runs import open_run, running

SHORT = ("--max_new_tokens", "12")


def test_a_run_answers_and_the_verdict_is_shown(alone, tmp_path, capsys):
    words = ("0 + 1 =", "--answer", "1", *SHORT)
    result = r1nb("ask", alone.path, *words, cwd=tmp_path, runs=tmp_path / "runs")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0] == str(alone.path)
    verdict = r"\[12 tokens in \d+\.\d s, cut off at max_new_tokens 12\] wrong"
    assert re.search(verdict, result.out)
    assert main(["ask", str(alone.path), *words[1:], words[0]]) == 0  # the problem last
    again = capsys.readouterr().out
    assert re.search(verdict, again) and again.splitlines()[1] == result.out.splitlines()[1]
    with pytest.raises(SystemExit) as ended:
        main(["ask", "--help"])
    assert ended.value.code == 0 and "--answer TEXT" in capsys.readouterr().out


def test_several_models_and_samples(alone, tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("0 + 1 ="))
    words = [str(alone.path), str(tiny_model), "-", "--samples", "3", "--answer", "1", *SHORT]
    assert main(["ask", *words]) == 0
    out = capsys.readouterr().out
    assert out.count("0 of 3 right") == 2 and out.count("cut off") >= 2
    assert out.index(str(alone.path)) < out.index(str(tiny_model))


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "which model?"),
        (["2 + 2"], "no problem; give it in quotes"),
        (["{home}/runs/none", "2 + 2"], "is not a folder or a Hub id"),
        (["stopped", "2 + 2"], "not completed"),
        (["{home}/runs/stopped", "{home}/runs/none"], "no problem"),
        (["scores", "2 + 2"], "has no model; it worked with bundled"),
        (["bundled", "  "], "the problem is empty"),
        (["bundled", "2 + 2", "--temperature", "warm"], "temperature"),
        (["bundled", "2 + 2", "--temprature", "1"], "temperature"),
        (["bundled", "2 + 2", "--samples", "0"], "num_generations: 0 is not positive"),
    ],
)
def test_bad_input_is_named(here, capsys, monkeypatch, words, message):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    open_run(here / "runs" / "stopped", "sft", {})
    with running(open_run(here / "runs" / "scores", "evaluate", {"models": {"base": "bundled"}})):
        pass
    assert main(["ask", *(w.format(home=here) for w in words)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == "", captured


class Server(BaseHTTPRequestHandler):
    "Streams a hostile answer, as a server with a reasoning parser does."

    def do_POST(self):
        Server.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        pieces = [{"reasoning_content": "2 and \x1b[2"}, {"reasoning_content": "J2"}]
        pieces += [
            {"content": "\x1b]0;ow"},
            {"content": "ned\x07\\box"},
            {"content": "ed{4}\x9b2J"},
        ]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece in pieces:
            event = {"choices": [{"delta": piece}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    "The address of a `Server`."
    http = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()


def test_what_a_server_streams_cannot_control_the_terminal(server, here, capsys):
    words = ["R1", "What is 2 + 2?", "--base_url", server, "--answer", "4"]
    assert main(["ask", *words, "--system_prompt", ""]) == 0
    out = capsys.readouterr().out
    assert "<think>\n2 and 2\n</think>" in out and "\\boxed{4}" in out and "] right" in out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", out) and "owned" not in out
    assert Server.asked["messages"] == [{"role": "user", "content": "What is 2 + 2?"}]
    assert main(["ask", *words, "--fold"]) == 0
    assert "[a thought of 3 words]" in capsys.readouterr().out


def test_no_server_is_one_message(here, capsys):
    assert main(["ask", "R1", "2 + 2", "--base_url", "http://127.0.0.1:9/v1"]) == 2
    assert "base_url: http://127.0.0.1:9/v1: ConnectError" in capsys.readouterr().err


def test_a_conversation_in_a_terminal(alone, tmp_path):
    ours, theirs = pty.openpty()
    command = [R1NB, "ask", alone.path, *SHORT]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, **streams, cwd=tmp_path) as process:
        os.close(theirs)
        shown, sent = "", ["0 + 1 =\n", "\x04"]
        while True:
            try:
                shown += os.read(ours, 1 << 16).decode(errors="replace")
            except OSError:  # the other end is closed
                break
            if sent and shown.endswith("problem> "):
                os.write(ours, sent.pop(0).encode())
        assert process.wait(DEADLINE) == 0
    os.close(ours)
    assert shown.count("problem> ") == 2 and "12 tokens in" in shown, shown


def test_a_notebook_shows_what_models_say_as_text(server, alone, tmp_path):
    from r1nb.engine import run_notebook

    cells = [
        "%load_ext r1nb.lab",
        f"%ask R1 'What is 2 + 2?' --base_url {server} --answer 4",
        f"%%ask {alone.path} --max_new_tokens 12\n0 + 1 =",
    ]
    nbformat.write(new_notebook(cells=list(map(new_code_cell, cells))), tmp_path / "a.ipynb")
    log = io.StringIO()
    nb = run_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb", live=False, stdout=log)
    (page,), (other,) = (c.outputs for c in nb.cells[1:])
    html = page.data["text/html"]
    assert "<details>" in html and "2 and 2" in html and "<b>right</b>" in html
    assert "\x1b" not in html + log.getvalue() and "owned" not in html
    assert "<think>\n2 and 2\n</think>" in log.getvalue() and "] right" in log.getvalue()
    assert "12 tokens" in other.data["text/html"] and str(alone.path) in other.data["text/html"]


@pytest.mark.slow
def test_the_bundled_model_answers(capsys):
    words = ["bundled", "What is 2 + 2?", "--samples", "2", "--max_new_tokens", "64"]
    assert main(["ask", *words]) == 0
    out = capsys.readouterr().out
    assert "sample 2" in out and re.search(r"(?m)^2 +\d+ +(yes|cut off)", out), out
