"The engine in real processes: the papermill command line, signals, crashes."

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DEADLINE = 90  # seconds; each of these processes takes two or three on an idle machine
PAPERMILL = [sys.executable, "-m", "papermill", "--engine", "r1nb", "--no-progress-bar"]
TICKING = "import time\nfor i in range(100000):\n    print('tick', i, time.time()); time.sleep(.05)"


def write(folder, *cells, parameters="x = 1"):
    "A job notebook with a parameters cell in front of `cells`."
    cells = [new_code_cell(c) if isinstance(c, str) else c for c in cells]
    nb = new_notebook(cells=[new_code_cell(parameters, metadata={"tags": ["parameters"]}), *cells])
    nb.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "python3"}
    path = folder / "in.ipynb"
    nbformat.write(nb, path)
    return path


def start(command, **kwargs):
    env = {**os.environ, "PYTHONUNBUFFERED": "1", **kwargs.pop("env", {})}
    env.pop("MPLBACKEND", None)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        list(map(str, command)), stdout=pipe, stderr=pipe, text=True, env=env, **kwargs
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def papermill(folder, path, *args, **kwargs):
    return finish(start([*PAPERMILL, path, folder / "out.ipynb", *args], cwd=folder, **kwargs))


def record(folder):
    "The executed notebook's code cells. Reading validates it."
    nb = nbformat.read(folder / "out.ipynb", as_version=4)
    nbformat.validate(nb)
    return [c for c in nb.cells if c.cell_type == "code"]


def states(cells):
    return [c.metadata.papermill.status for c in cells]


def text(cell, name="stdout"):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == name)


def wait_for(condition, what):
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"no {what} within {DEADLINE} s")


def gone(pid):
    "Whether process `pid` has ended (it may be a zombie)."
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def ticking(tmp_path):
    "A process in the middle of a cell that prints the time, run by run_notebook."
    path = write(tmp_path, TICKING, "print('never')")
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from r1nb.engine import run_notebook; run_notebook(sys.argv[1], sys.argv[2])"
    )
    process = start([sys.executable, "-c", code, path, tmp_path / "out.ipynb"])
    try:
        assert "tick 0" in process.stdout.readline()
        yield tmp_path, process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_outputs_of_every_kind(tmp_path):
    path = write(
        tmp_path,
        new_markdown_cell("# text"),
        "print('out', x); import sys; print('err', file=sys.stderr)",
        "import logging, warnings; logging.warning('logged'); warnings.warn('warned')",
        "'value'",
        "'quiet';",
        "import pandas as pd; pd.DataFrame({'a': [x]})",
        "%matplotlib inline\nimport matplotlib.pyplot as plt\n"
        "plt.plot([1]); plt.show(); print('after')\nplt.figure(); plt.plot([2]);",
        "assert not plt.get_fignums()\nimport matplotlib; matplotlib.use('Agg')\nplt.plot([3]);",
        "from IPython.display import display, clear_output, Image, JSON\n"
        "h = display('first', display_id=True); display(JSON({'a': 1}))",
        "h.update('second')",
        "print('gone'); clear_output(wait=True); print('kept')",
        "!echo from the shell\n%time y = 2",
        "import asyncio\nawait asyncio.sleep(.01); 'awaited'",
        "import pickle\ndef f(v): return v + 1\n"
        "assert pickle.loads(pickle.dumps(f)) is f and __name__ == '__main__'",
        "import multiprocessing as mp\n"
        "with mp.get_context('fork').Pool(1) as p: r = p.map(f, [1])\nr",
        "get_ipython().run_line_magic('cd', '-q /')\n"
        "display(Image(data=b'\\x89PNG\\r\\n\\x1a\\n'))",
    )
    begin = time.monotonic()
    rc, out, err = papermill(tmp_path, path, "-p", "x", "7")
    assert rc == 0, err
    elapsed = time.monotonic() - begin
    cells = record(tmp_path)
    assert set(states(cells)) == {"completed"}
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    stream, logs, value, quiet, frame, inline, agg, first, update, cleared = cells[2:12]
    shell, awaited, _, forked, image = cells[12:]
    assert awaited.metadata.papermill.duration >= 0.01  # its sleep
    assert sum(c.metadata.papermill.duration for c in cells) < elapsed
    assert (text(stream), text(stream, "stderr")) == ("out 7\n", "err\n")
    assert "logged" in text(logs, "stderr") and "UserWarning: warned" in text(logs, "stderr")
    result = {"output_type": "execute_result", "data": {"text/plain": "'value'"}, "metadata": {}}
    assert value.outputs == [{**result, "execution_count": value.execution_count}]
    assert quiet.outputs == []
    assert "<table" in frame.outputs[0].data["text/html"]
    assert "7" in frame.outputs[0].data["text/plain"]
    assert [o.output_type for o in inline.outputs] == ["display_data", "stream", "display_data"]
    plots = [inline.outputs[0], inline.outputs[2], agg.outputs[0]]
    assert all(o.data["image/png"].startswith("iVBOR") for o in plots)
    assert first.outputs[0].data["text/plain"] == "'second'"
    assert first.outputs[1].data["application/json"] == {"a": 1}
    assert update.outputs == []
    assert text(cleared) == "kept\n"
    assert text(shell).startswith("from the shell\n") and "Wall time" in text(shell)
    assert awaited.outputs[0].data["text/plain"] == "'awaited'"
    assert forked.outputs[0].data["text/plain"] == "[2]"
    assert image.outputs[0].data["image/png"].startswith("iVBOR")
    nb = json.loads((tmp_path / "out.ipynb").read_text())
    assert nb["metadata"]["language_info"]["name"] == "python"
    assert nb["metadata"]["papermill"]["exception"] is None
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_a_failing_cell_leaves_a_partial_record(tmp_path):
    path = write(tmp_path, "print('before'); print(undefined_name)", "print('never')")
    rc, out, err = papermill(tmp_path, path)
    assert rc != 0 and "PapermillExecutionError" in err
    cells = record(tmp_path)
    assert states(cells) == ["completed", "failed", "pending"]
    failed = cells[1]
    assert failed.metadata.papermill.exception is True and failed.metadata.papermill.duration > 0
    assert text(failed) == "before\n"
    error = failed.outputs[-1]
    assert error.ename == "NameError" and "\x1b[" in error.traceback[-1]
    lines = "\n".join(error.traceback)
    assert "undefined_name" in lines and "r1nb" not in lines  # only the cell's own frames
    assert cells[2].execution_count is None and cells[2].metadata.papermill.start_time is None


@pytest.mark.parametrize(
    "source, ename, state",
    [
        ("import sys; sys.exit(3)", "SystemExit", "failed"),
        ("import sys; sys.exit(0)", None, "completed"),
        ("1 +", "SyntaxError", "failed"),
        ("%nosuchmagic", "UsageError", "failed"),
        ("raise ExceptionGroup('several', [OSError(1)])", "ExceptionGroup", "failed"),
    ],
)
def test_how_a_cell_ends(tmp_path, source, ename, state):
    from papermill import PapermillExecutionError

    from r1nb.engine import run_notebook

    try:
        run_notebook(write(tmp_path, source, "print('never')"), tmp_path / "out.ipynb", live=False)
        raised = None
    except PapermillExecutionError as e:
        raised = e.ename
    assert (raised, states(record(tmp_path))) == (ename, ["completed", state, "pending"])
    assert "To exit: use" not in (tmp_path / "out.ipynb").read_text()


def test_tags(tmp_path):
    from r1nb.engine import run_notebook

    path = write(
        tmp_path,
        new_code_cell("int('x')", metadata={"tags": ["raises-exception"]}),
        new_code_cell("1/0", metadata={"tags": ["skip-execution"]}),
        "print('reached')",
    )
    run_notebook(path, tmp_path / "out.ipynb", live=False)
    cells = record(tmp_path)
    assert states(cells) == ["completed", "completed", "pending", "completed"]
    assert "ValueError" in text(cells[1], "stderr") and text(cells[3]) == "reached\n"


@pytest.mark.parametrize(
    "metadata, language",
    [
        ({"kernelspec": {"name": "ir", "language": "R", "display_name": "R"}}, "r"),
        ({"kernelspec": {"name": "ir", "display_name": "R"}}, "r"),
        ({"kernelspec": {"name": "julia-1.10", "display_name": "Julia 1.10"}}, "julia"),
        ({"kernelspec": {"name": "mine", "display_name": "x", "language": "bash"}}, "bash"),
        ({"language_info": {"name": "julia"}}, "julia"),
        (
            {"kernelspec": {"name": "python2", "language": "python", "display_name": "x"}},
            "python 2",
        ),
    ],
)
def test_only_python(tmp_path, metadata, language):
    from r1nb.engine import run_notebook
    from r1nb.settings import InputError

    nb = new_notebook(cells=[new_code_cell("open('ran', 'w')")], metadata=metadata)
    nbformat.write(nb, tmp_path / "in.ipynb")
    message = f"in.ipynb: the notebook is in {language}; the r1nb engine runs Python only"
    with pytest.raises(InputError, match=message):
        run_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb")
    if language in ("r", "julia"):
        rc, out, err = papermill(tmp_path, tmp_path / "in.ipynb", "-k", "python3", "-l", "python")
        assert rc != 0 and f"the notebook is in {language}" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.ipynb"]


def test_progress_bars_are_one_line_and_live(tmp_path):
    path = write(
        tmp_path,
        "from tqdm.auto import tqdm\nfor i in tqdm(range(300), mininterval=0, desc='train'):\n"
        "    if i % 100 == 0: print('loss', i)",
    )
    rc, out, err = papermill(tmp_path, path, env={"R1NB_LIVE": "1"})
    assert rc == 0, err
    cell = record(tmp_path)[1]
    assert text(cell) == "loss 0\nloss 100\nloss 200\n"
    (bar,) = [line for line in text(cell, "stderr").splitlines() if line]
    assert bar.startswith("train: 100%") and len(cell.outputs) == 2
    assert out.count("loss") == 3 and err.count("train:") >= 300  # the terminal sees every update


@pytest.mark.parametrize(
    "signum, ename, rc",
    [(signal.SIGTERM, "Terminated", 1), (signal.SIGINT, "KeyboardInterrupt", -2)],
)
def test_signals_complete_the_record(ticking, signum, ename, rc):
    folder, process = ticking
    sent = time.time()
    process.send_signal(signum)
    if signum == signal.SIGTERM:
        process.send_signal(signum)  # launchers repeat themselves
    code, out, err = finish(process)
    assert code == rc and ename in err.splitlines()[-1]
    cells = record(folder)
    assert states(cells) == ["completed", "failed", "pending"]
    assert cells[1].outputs[-1].ename == ename and cells[1].metadata.papermill.end_time
    last = float(text(cells[1]).split()[-1])
    assert sent - last < 1  # nothing is lost


def test_a_cell_cannot_swallow_sigterm(tmp_path):
    swallow = "import time\ntry: print('here'); time.sleep(80)\nexcept BaseException: print('ha')"
    path = write(tmp_path, swallow, "print('never')")
    process = start([*PAPERMILL, "--log-output", path, tmp_path / "out.ipynb"])
    for line in process.stdout:
        if "here" in line:
            break
    process.send_signal(signal.SIGTERM)
    rc, out, err = finish(process)
    cells = record(tmp_path)
    assert rc != 0 and "Terminated" in err and states(cells) == ["completed", "failed", "pending"]
    assert text(cells[1]) == "here\nha\n" and cells[1].outputs[-1].ename == "Terminated"


def test_sigkill_loses_seconds_only(ticking):
    folder, process = ticking
    time.sleep(8)  # longer than an autosave interval
    killed = time.time()
    process.kill()
    finish(process)
    cells = record(folder)
    assert states(cells) == ["completed", "running", "pending"]
    assert killed - float(text(cells[1]).splitlines()[-1].split()[-1]) < 7


def test_a_silent_cell_is_saved_too(tmp_path):
    path = write(tmp_path, "import time\nprint('last words'); time.sleep(80)")
    process = start([*PAPERMILL, "--autosave-cell-every", "1", path, tmp_path / "out.ipynb"])
    out = tmp_path / "out.ipynb"
    try:
        wait_for(
            lambda: out.exists() and '"last words' in out.read_text(), "autosave of a silent cell"
        )
    finally:
        process.kill()
        process.communicate()
    assert text(record(tmp_path)[1]) == "last words\n"


def test_handlers_and_streams_are_restored(tmp_path):
    path = write(
        tmp_path,
        "import os, signal\nassert callable(signal.getsignal(signal.SIGTERM))\nv = os.getcwd(); v",
    )
    code = f"""if 1:
        import signal, sys, os
        from r1nb.engine import run_notebook
        main, handler = sys.modules['__main__'], signal.getsignal
        def state():
            handlers = [handler(signal.SIGTERM), handler(signal.SIGINT)]
            return [*handlers, sys.stdout, sys.modules['__main__'] is main]
        before = state()
        nb = run_notebook({str(path)!r}, 'deep/er/out.ipynb', live=False, cwd='/')
        assert before == state()
        assert nb.cells[-1].outputs[0].data['text/plain'] == repr('/'), nb.cells[-1]
        run_notebook({str(path)!r}, os.devnull, live=False)
        assert not os.path.isfile(os.devnull)
        from IPython import get_ipython
        print(get_ipython(), os.listdir('deep/er'))"""
    rc, out, err = finish(start([sys.executable, "-c", code], cwd=tmp_path))
    assert rc == 0 and out == "None ['out.ipynb']\n", err


def test_wrong_parameters_are_named(tmp_path):
    from r1nb.engine import check_parameters, run_notebook
    from r1nb.settings import InputError

    path = write(tmp_path, parameters="learning_rate = 1e-4\nsteps: int = 3")
    check_parameters(path, ["steps", "learning_rate"])
    message = "unknown parameter 'learning_rat'; did you mean 'learning_rate'?"
    with pytest.raises(InputError, match=message):
        run_notebook(path, tmp_path / "out.ipynb", {"learning_rat": 1})
    with pytest.raises(InputError, match="nowhere.ipynb: cannot be read: No such file"):
        check_parameters(tmp_path / "nowhere.ipynb", [])
    nbformat.write(new_notebook(), path)
    with pytest.raises(InputError, match="none of its cells is tagged 'parameters'"):
        check_parameters(path, ["x"])
    path.write_text("not json")
    with pytest.raises(InputError, match="is not a notebook"):
        check_parameters(path, ["x"])
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_child_dies_with_its_parent(tmp_path):
    child = (
        "from r1nb.engine import die_with_parent; import os, time, pathlib\n"
        "die_with_parent(); pathlib.Path('pid.tmp').write_text(str(os.getpid()))\n"
        "os.rename('pid.tmp', 'pid'); time.sleep(80)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = start([sys.executable, "-c", parent], cwd=tmp_path)
    pid = int(
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "child")
    )
    process.kill()
    process.wait()

    wait_for(lambda: gone(pid), "end of the child")
    process.communicate()


def test_importing_the_engine_is_light():
    heavy = {"torch", "IPython", "papermill", "nbformat"}
    code = f"import r1nb.engine, sys; print({heavy} & set(sys.modules))"
    rc, out, err = finish(start([sys.executable, "-c", code]))
    assert (rc, out) == (0, "set()\n"), err


# ---- odd output

PLAIN = st.text(
    st.characters(exclude_characters="\r\n\x1b", exclude_categories=["Cs"]), max_size=12
)
COLOURS = ["\x1b[31m", "\x1b[1m", "\x1b[0m", "\x1b[38;5;28m", "\x1b[38:2::1:2:3m", "\x1b[m"]
OTHERS = [
    *["\x1b[?25l", "\x1b[?2004h", "\x1b[2J", "\x1b[10;20H", "\x1b[5C", "\x1b[>4;1m"],  # CSI
    *["\x1b7", "\x1b(B", "\x1bc"],
    *["\x1b]8;;http://a/b;c\x07", "\x1b]8;;\x1b\\", "\x1b]0;a title\x1b\\"],  # OSC
    *["\x1bPq#0\x1b\\", "\x1b_Gi=1\x1b\\"],
]
ESCAPES = st.sampled_from(COLOURS + OTHERS)


def in_pieces(text, cuts):
    "`text`, cut at `cuts`."
    places = sorted({min(c, len(text)) for c in cuts})
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def shown(*texts):
    "What the record and a log make of writes."
    from r1nb.engine import Lines, Screen

    screen, log = Screen(), io.StringIO()
    lines = Lines(log)
    for text in texts:
        screen.write(text)
        lines.write(text)
    screen.close()
    lines.close()
    return str(screen), log.getvalue()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.one_of(PLAIN, ESCAPES), max_size=6), max_size=4),
    st.lists(st.integers(0, 120), max_size=9),
)
def test_the_visible_text_is_what_was_printed(lines, cuts):
    plain = "".join("".join(p for p in line if p not in COLOURS + OTHERS) + "\n" for line in lines)
    record, log = shown(*in_pieces("".join("".join(line) + "\n" for line in lines), cuts))
    assert re.sub(r"\x1b\[[\d;:]*m", "", record) == plain
    assert log == plain
    assert [e for line in lines for e in line if e in COLOURS] == re.findall(
        r"\x1b\[[\d;:]*m", record
    )


@settings(max_examples=500, deadline=None)
@given(
    st.text(
        st.sampled_from("\x1b\x1b\x1b[[]PX^_\\;:?09mKABGhl \x07\r\n\x08\x9b\x9d\x9cab\ud800é"),
        max_size=40,
    ),
    st.lists(st.integers(0, 40), max_size=6),
)
def test_no_text_can_raise_and_where_it_is_cut_does_not_matter(text, cuts):
    assert shown(*in_pieces(text, cuts)) == shown(text)


def test_a_sequence_without_an_end_loses_no_line():
    record, log = shown(
        "\x1b]8;;http", "://x\n", "a" * 9000 + "\n", "\x1b]", "b" * 9000, "\n", "last\x1b["
    )
    assert record == log.rstrip("\n") == "8;;http://x\n" + "a" * 9000 + "\n" + "b" * 9000 + "\nlast"


ODD = {
    "colour": ("print('\\x1b[31mred\\x1b[0m')", "\x1b[31mred\x1b[0m\n"),
    "cursor": ("print('\\x1b[?25lhidden\\x1b[?25h')", "hidden\n"),
    "link": ("print('\\x1b]8;;http://a\\x07link\\x1b]8;;\\x07')", "link\n"),
    "lone": (
        "import sys\nsys.stdout.write('a\\x1b'); sys.stdout.write('[1mb\\x1b'); print(end='[')",
        "a\x1b[1mb",
    ),
    "c1": ("print('\\x9b31mx\\x85')", "\x9b31mx\x85\n"),
    "huge": ("print('\\x1b[' + '9' * 9000 + 'Bx')", "x\n"),
    "surrogate": ("print('half \\ud800')", "half \\ud800\n"),
    "bytes": (
        "import sys\nfor b in 'é\\n'.encode(): n = sys.stdout.buffer.write(bytes([b]))",
        "é\n",
    ),
    "closed": ("import sys\nsys.stdout.close()\nprint('still')", "still\n"),
    "replaced": (
        "import io, sys\nsys.stdout, old = io.StringIO(), sys.stdout\n"
        "print('x')\nold.write('y\\n');",
        "y\n",
    ),
    "rich": (
        "from rich.console import Console\n"
        "Console(force_terminal=True, width=40).print('[bold]loud[/] x')",
        "\x1b[1mloud\x1b[0m x\n",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_things_to_print(tmp_path, kind):
    from r1nb.engine import run_notebook

    source, expected = ODD[kind]
    if kind == "rich":
        pytest.importorskip("rich")
    stdout, log = sys.stdout, io.StringIO()
    run_notebook(
        write(tmp_path, source, "import sys"), tmp_path / "out.ipynb", live=False, stdout=log
    )
    assert sys.stdout is stdout
    cells = record(tmp_path)
    assert set(states(cells)) == {"completed"}
    assert text(cells[1]) == expected


def test_a_coloured_logging_formatter_does_not_end_the_job(tmp_path):
    path = write(
        tmp_path,
        "import logging, sys\nhandler = logging.StreamHandler(sys.stderr)\n"
        "handler.setFormatter(logging.Formatter('\\x1b[33m%(levelname)s\\x1b[0m %(message)s'))\n"
        "log = logging.getLogger('coloured')\nlog.addHandler(handler)\nlog.propagate = False\n"
        "log.warning('careful')",
    )
    rc, out, err = papermill(tmp_path, path)
    assert rc == 0, err
    assert text(record(tmp_path)[1], "stderr") == "\x1b[33mWARNING\x1b[0m careful\n"


@pytest.mark.parametrize(
    "source, ename, words",
    [
        ("raise ValueError('half \\ud800')", "ValueError", r"half \\ud800"),
        (
            "class Mute(Exception):\n    def __str__(self): raise RuntimeError('no')\nraise Mute",
            "Mute",
            "no|failed",
        ),
        ("{'\\udcff': 1}['\\ud800']", "KeyError", "ud800"),
    ],
)
def test_what_an_exception_says_can_be_written(tmp_path, source, ename, words):
    from papermill import PapermillExecutionError

    from r1nb.engine import run_notebook

    with pytest.raises(PapermillExecutionError) as raised:
        run_notebook(write(tmp_path, source), tmp_path / "out.ipynb", live=False)
    # IPython itself may fail over an exception that cannot be printed
    names = {ename, "RuntimeError"} if ename == "Mute" else {ename}
    assert raised.value.ename in names and re.search(words, raised.value.evalue)
    assert record(tmp_path)[1].outputs[-1].ename in names
    # no half of a surrogate pair is left
    json.dumps(record(tmp_path)[1].outputs, ensure_ascii=False).encode()


def test_display_data_can_be_written(tmp_path):
    from r1nb.engine import run_notebook

    path = write(
        tmp_path,
        "from IPython.display import display\n"
        "data = {'text/plain': 'a\\ud800', 'application/json': {'\\ud800': ['\\udfff']}}\n"
        "display(data, raw=True, metadata={'a': '\\ud800'})",
    )
    run_notebook(path, tmp_path / "out.ipynb", live=False)
    (output,) = record(tmp_path)[1].outputs
    assert output.data == {"text/plain": "a\\ud800", "application/json": {"\\ud800": ["\\udfff"]}}
    assert output.metadata == {"a": "\\ud800"}


# ---- threads and forked children

THREADS = """
import logging, sys, threading
stream, log = sys.stdout, logging.getLogger('thread')
log.addHandler(logging.StreamHandler(sys.stderr))
log.propagate = False
def work(i):
    while True:
        print('thread', i)
        stream.write('held %d\\n' % i)
        log.error('logged %d', i)
for i in range(4): threading.Thread(target=work, args=(i,), daemon=True).start()
import time; time.sleep(.05); print('main')
"""


def test_threads_that_print_while_everything_ends(tmp_path):
    code = (
        "import sys; from r1nb.engine import run_notebook\n"
        "run_notebook(sys.argv[1], sys.argv[2], live=sys.argv[3] == '1')"
    )
    path, bad = write(tmp_path, THREADS), []
    for trial in range(20):
        with open(tmp_path / "errors.txt", "w+") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", code, path, tmp_path / "out.ipynb", str(trial % 2)],
                stdout=subprocess.DEVNULL if trial % 4 < 2 else errors, stderr=errors,
            )  # fmt: skip
            rc = process.wait(DEADLINE)
            errors.seek(0)
            said = errors.read()
        if rc or "Traceback" in said or "Fatal" in said:
            bad.append((trial, rc, said[-500:]))
        cells = record(tmp_path)
        assert states(cells) == ["completed", "completed"] and "main" in text(cells[1])
    assert not bad


FORKS = {
    "falls off the cell": "print('child', flush=True)",
    "raises": "raise ValueError('child')",
    "exits": "print('child'); sys.exit(3)",
    "displays": "display('child')\n'parent'",
}


@pytest.mark.parametrize("kind", FORKS)
def test_a_forked_child_that_outlives_the_notebook_leaves_the_record_alone(tmp_path, kind):
    after = "open('pids.txt', 'a').write(f'{os.getpid()}\\n'); print('later', child)"
    fork = f"import os, sys, time\nchild = os.fork()\nif not child: time.sleep(2); {FORKS[kind]}"
    path = write(tmp_path, fork, after)
    process = start([*PAPERMILL, path, tmp_path / "out.ipynb"], cwd=tmp_path)
    wait_for(lambda: process.poll() is not None, "end of the notebook")
    before = (tmp_path / "out.ipynb").read_bytes()
    rc, out, err = finish(process)  # the child has the pipes, too: this waits for its end
    assert rc == 0 and len((tmp_path / "pids.txt").read_text().splitlines()) == 1
    cells = record(tmp_path)
    assert states(cells) == ["completed"] * 3 and text(cells[2]).startswith("later ")
    child = int(text(cells[2]).split()[1])
    assert child > 0
    wait_for(lambda: gone(child), "end of the child")
    assert (tmp_path / "out.ipynb").read_bytes() == before and '"error"' not in before.decode()
    assert "child" not in "".join(text(c) for c in cells)
    if kind != "displays":
        assert "child" in out + err


# ---- input, time limits, asyncio tasks, what a cell leaves behind


REFUSED = "StdinNotImplementedError"
ASKING = {
    "input": ("input('name? ')", REFUSED, "'name? ': a batch job cannot ask for input"),
    "getpass": ("from getpass import getpass\ngetpass()", REFUSED, "cannot ask for input"),
    "debugger": ("breakpoint()\n1", REFUSED, "cannot ask for input"),
    "read": (
        "import sys\nassert sys.stdin.read() == '' and not sys.stdin.readline(); 1/0",
        "ZeroDivisionError",
        "",
    ),
    "child": (
        "import subprocess\nassert subprocess.run(['cat'], capture_output=True).stdout == b''; 1/0",
        "ZeroDivisionError",
        "",
    ),
    "descriptor": ("import os\nassert os.read(0, 9) == b''; 1/0", "ZeroDivisionError", ""),
}


@pytest.mark.parametrize("kind", ASKING)
def test_a_cell_that_asks_does_not_wait(tmp_path, kind):
    source, ename, words = ASKING[kind]
    command = [*PAPERMILL, write(tmp_path, source), tmp_path / "out.ipynb"]
    process = start(command, stdin=subprocess.PIPE)  # open, silent
    try:
        wait_for(lambda: process.poll() is not None, "end")
    finally:
        process.kill()
        finish(process)
    error = record(tmp_path)[1].outputs[-1]
    assert error.ename == ename and words in error.evalue


def test_stdin_is_given_back(tmp_path):
    code = (
        "import sys; from r1nb.engine import run_notebook\n"
        "run_notebook(sys.argv[1], sys.argv[2], live=False); print(input())"
    )
    command = [sys.executable, "-c", code, write(tmp_path, "1"), tmp_path / "out.ipynb"]
    process = start(command, stdin=subprocess.PIPE)
    out, err = process.communicate("words\n", timeout=DEADLINE)
    assert (process.returncode, out) == (0, "words\n"), err


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(80)",
        "while True: pass",
        "import time\ntry: time.sleep(80)\nexcept Exception: print('caught')",
        "import subprocess\nsubprocess.run(['sleep', '80'])",
        "import asyncio\nawait asyncio.sleep(80)",
    ],
)
def test_execution_timeout_ends_a_cell(tmp_path, source):
    path = write(tmp_path, source, "print('never')")
    rc, out, err = papermill(tmp_path, path, "--execution-timeout", "1")
    assert rc != 0 and "CellTimeoutError" in err
    cells = record(tmp_path)
    assert states(cells) == ["completed", "failed", "pending"]
    error = cells[1].outputs[-1]
    assert error.ename == "CellTimeoutError" and "within 1 s" in error.evalue


def test_a_timeout_that_cannot_be_kept_is_refused(tmp_path):
    import threading

    from r1nb.engine import run_notebook
    from r1nb.settings import InputError

    path, seen = write(tmp_path, "1"), []

    def work():
        try:
            run_notebook(path, tmp_path / "out.ipynb", live=False, timeout=5)
        except InputError as e:
            seen.append(str(e))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "execution_timeout 5: only the main thread" in seen[0]
    assert not (tmp_path / "out.ipynb").exists()
    # a timeout that is long enough changes nothing
    run_notebook(path, tmp_path / "out.ipynb", live=False, timeout=60)
    assert states(record(tmp_path)) == ["completed", "completed"]


def test_asyncio_tasks_go_on_between_cells(tmp_path):
    from r1nb.engine import run_notebook

    path = write(
        tmp_path,
        "import asyncio\n"
        "async def work(n):\n    await asyncio.sleep(n); print('done', n); return n",
        "short = asyncio.create_task(work(.05))\nlong = asyncio.ensure_future(work(600))",
        "await asyncio.sleep(.2)\nshort.result()",
        "async def main(): return await asyncio.create_task(work(0))\nasyncio.run(main())",
    )
    run_notebook(path, tmp_path / "out.ipynb", live=False)
    cells = record(tmp_path)
    assert "done 0.05" in text(cells[3]) and cells[3].outputs[-1].data["text/plain"] == "0.05"
    assert text(cells[4]) == "done 0\n"
    message = "1 asyncio tasks were pending at the end of the notebook and were cancelled: work"
    assert message in text(cells[4], "stderr")


def test_what_a_cell_leaves_behind_ends_with_the_notebook(tmp_path):
    path = write(
        tmp_path,
        "import os, shutil, sys, threading, warnings\nsys.settrace(lambda *_: None)",
        "threading.excepthook = lambda args: print('thread', args.exc_type.__name__)\n"
        "t = threading.Thread(target=lambda: 1/0); t.start(); t.join()",
        "warnings.simplefilter('error')",
        "os.mkdir('gone'); os.chdir('gone'); shutil.rmtree('../gone'); print('here')",
        "print('still here')",
    )
    code = """if 1:
        import os, sys, threading, warnings
        from r1nb.engine import run_notebook

        def state():
            errors = [f for f in warnings.filters if f[0] == 'error' and f[2] is Warning]
            return sys.gettrace(), threading.excepthook, errors, os.getcwd()

        before = state()
        run_notebook('in.ipynb', 'out.ipynb', live=False)
        assert state() == before, (before, state())"""
    rc, out, err = finish(start([sys.executable, "-c", code], cwd=path.parent))
    assert rc == 0, err
    cells = record(tmp_path)
    assert set(states(cells)) == {"completed"} and text(cells[5]) == "still here\n"
    assert text(cells[2]) == "thread ZeroDivisionError\n"


# ---- what does not pass through Python

linux_only = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="what programs print is recorded on Linux only"
)
OUTSIDE = [
    "import os, subprocess, sys, logging\nlogging.warning('a log line')",
    "!echo from the shell",
    "print('before'); subprocess.run(['echo', 'from a program']); print('after')",
    "subprocess.run(['ls', '/nowhere/at/all']); print('err', file=sys.stderr)",
    "os.write(1, b'descriptor \\xff\\n'); os.write(2, 'é\\n'.encode()); print('then');",
    "subprocess.run(['sh', '-c', 'echo given'], stdout=sys.stdout, stderr=sys.stdout);",
    "import ctypes\nlibc = ctypes.CDLL(None); libc.puts(b'from C'); libc.fflush(None);",
    "subprocess.run([sys.executable, '-c', 'print(\"x\" * 3_000_000)']); print('end')",
    # 3 MB at once, with Python's lock held
    "ctypes.PyDLL(None).dprintf(1, b'%s', b'y' * 3_000_000);",
]


@linux_only
@pytest.mark.parametrize("live", ["0", "1"])
def test_what_does_not_pass_through_python_is_recorded(tmp_path, live):
    rc, out, err = papermill(tmp_path, write(tmp_path, *OUTSIDE), env={"R1NB_LIVE": live})
    assert rc == 0, err[-3000:]
    log, shell, program, failing, descriptor, given, c, large, held = record(tmp_path)[1:]
    assert text(log, "stderr") == "a log line\n"
    assert text(shell) == "from the shell\n"
    assert text(program) == "before\nfrom a program\nafter\n"
    assert "/nowhere/at/all" in text(failing, "stderr")
    assert text(failing, "stderr").endswith("\nerr\n")
    assert text(descriptor) == "descriptor \\xff\nthen\n" and text(descriptor, "stderr") == "é\n"
    assert text(given) == "given\n" and text(c) == "from C\n"
    assert text(large) == "x" * 3_000_000 + "\nend\n" and text(held) == "y" * 3_000_000
    assert ("from a program" in out, "a log line" in err) == (live == "1", live == "1")
    recorded = "".join(text(x, n) for x in record(tmp_path) for n in ("stdout", "stderr"))
    assert "Executing" not in recorded


def test_the_progress_bar_and_papermills_messages_are_not_output(tmp_path):
    path = write(tmp_path, "import subprocess; subprocess.run(['echo', 'x'])")
    options = ["--log-output", "--progress-bar"]
    command = [*PAPERMILL[:-1], *options, path, tmp_path / "out.ipynb"]
    rc, out, err = finish(start(command, cwd=tmp_path))
    assert rc == 0 and "Executing" in err and "x\n" in out
    assert text(record(tmp_path)[1]) == "x\n" and text(record(tmp_path)[1], "stderr") == ""


@linux_only
def test_a_programs_output_is_recorded_while_it_runs(tmp_path):
    run = "import subprocess\nsubprocess.run(['sh', '-c', 'echo started; sleep 80'])"
    command = [*PAPERMILL, "--autosave-cell-every", "1", write(tmp_path, run)]
    process = start([*command, tmp_path / "out.ipynb"], start_new_session=True)
    out = tmp_path / "out.ipynb"
    try:
        wait_for(
            lambda: out.exists() and '"started' in out.read_text(), "output of a running program"
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_the_last_words_of_a_crash_are_on_the_screen(tmp_path):
    path = write(
        tmp_path, "import os\nos.write(2, b'what(): the reason\\n' * 1000); os.abort()", "1"
    )
    rc, out, err = papermill(tmp_path, path)
    assert rc == -signal.SIGABRT
    recorded = text(record(tmp_path)[1], "stderr")
    assert err.count("what(): the reason") + recorded.count("the reason") >= 1000


def test_a_program_that_outlives_the_notebook_can_still_print(tmp_path):
    child = "import sys, time; time.sleep(2); print('still there', flush=True); open('alive', 'w')"
    source = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}])"
    path = write(tmp_path, source)
    rc, out, err = papermill(tmp_path, path)
    assert rc == 0 and out == "still there\n" and (tmp_path / "alive").exists()
    assert text(record(tmp_path)[1]) == ""


def test_descriptors_are_given_back(tmp_path):
    path = write(tmp_path, "import os; os.system('echo inside')")
    code = (
        "import os, sys; from r1nb.engine import run_notebook\n"
        "run = lambda: run_notebook(sys.argv[1], sys.argv[2], live=False)\n"
        "opened = lambda: sorted(os.listdir('/proc/self/fd'))\n"
        "run(); before = opened(); run(); after = opened()\n"
        "assert before == after, (before, after)\n"
        "os.write(1, b'one\\n'); print('two', flush=True); os.system('echo three')"
    )
    rc, out, err = finish(start([sys.executable, "-c", code, path, tmp_path / "out.ipynb"]))
    assert (rc, out) == (0, "one\ntwo\nthree\n"), err
    assert text(record(tmp_path)[1]) == "inside\n"
