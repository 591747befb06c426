"The outputs stored in notebooks are what their code prints now (scripts/outputs.py)."

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import outputs  # noqa: E402

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_current(notebook):
    found = outputs.differences(notebook)
    assert not found, "\n".join(map(str, found))


def stream(text):
    return [{"output_type": "stream", "name": "stdout", "text": text.splitlines(True)}]


def display(**data):
    data = {key.replace("_", "/"): value for key, value in data.items()}
    return [{"output_type": "display_data", "metadata": {}, "data": data}]


def write_notebook(path, cells):
    "A notebook of code cells, each (id, source, stored outputs, tags)."
    cells = [
        {"cell_type": "code", "execution_count": None, "id": name, "metadata": {"tags": tags},
         "outputs": stored, "source": source.splitlines(True)}
        for name, source, stored, tags in cells
    ]  # fmt: skip
    content = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    return path


def test_a_changed_output_is_found_and_stored(tmp_path):
    png = "display({'image/png': 'iVBORw0KGgo=', 'text/plain': 'plot'}, raw=True)"
    cells = [
        ("current", "print('loss', 0.5012, 'after 3.1 s')", stream("loss 0.5 after 2 s\n"), []),
        ("outdated", "print('640 traces')", stream("641 traces\n"), []),
        ("missing", "1 + 1", [], []),
        ("plot", png, display(image_png="AAAA", text_plain=["plot"]), []),
        ("no-plot", png, display(text_plain=["plot"]), []),
        ("varies", "print('12 MiB')", stream("900 MiB\n"), ["varies"]),
        ("machine", "print('it says 12')", stream("it said 13\n"), ["machine"]),
        ("silent", "pass", stream("it said 13\n"), ["machine"]),
        ("left-out", "#| slow\nprint('now')", stream("before\n"), []),
        ("stderr", "import sys; print('warning', file=sys.stderr)", [], []),
        ("log", "print('[2026-11-27 06:53:34,464] [WARNING] [a.py:1:f] b')", [], []),
        ("twice", "print('a'); print('b', flush=True); print('c')", stream("a\nb\nc\n"), []),
    ]
    path = write_notebook(tmp_path / "small.ipynb", cells)
    before = json.loads(path.read_text())["cells"]
    found = outputs.differences(path, write=True)
    assert [d.cell for d in found] == ["outdated", "missing", "no-plot", "silent"]
    assert "-641 traces\n+640 traces" in str(found[0])
    assert "small.ipynb, cell outdated" in str(found[0])
    after = json.loads(path.read_text())["cells"]
    changed = [a["id"] for a, b in zip(after, before, strict=True) if a != b]
    assert changed == ["outdated", "missing", "no-plot", "silent"]
    assert after[1]["outputs"] == stream("640 traces\n")
    written = path.read_bytes()
    assert outputs.differences(path, write=True) == [] and path.read_bytes() == written


def test_a_cell_that_fails_is_named(tmp_path):
    path = write_notebook(tmp_path / "bad.ipynb", [("broken", "1 / 0", [], [])])
    with pytest.raises(Exception, match="ZeroDivisionError") as error:
        outputs.differences(path)
    assert error.value.__notes__ == [f"in {path}, cell broken"]


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("loss 0.501", "loss 0.509", True),
        ("loss 0.501", "loss 0.529", False),
        ("0.02", "0.03", True),  # one unit of the last digit
        ("1.2e-03", "1.9e-03", False),
        ("7.4e-09", "-1.5e-07", True),
        ("128 tokens", "129 tokens", False),
        ("1,024.5 rows", "1024.6 rows", True),
        ("47.5 %", "47.9 %", True),
        ("1.5 GiB", "1.5 MiB", False),
        ("<a.B at 0x7f01>", "<a.B at 0x7f99>", True),
        ("/tmp/tmpab12cd_9/run", "/var/tmp/tmpzzzzzzz1/run", True),
        ("started 2026-11-27T03:52:05", "started 2026-11-28 04:00", True),
        ("took 12.3 s", "took 8 s", True),
        ("{'train_runtime': '0.83', 'loss': '2'}", "{'train_runtime': '1.2', 'loss': '2'}", True),
        ("Result(status='ok', seconds=0.084)", "Result(status='ok', seconds=0.031)", True),
        ("| a   | 1.50 |\n|-----|-------|", "| a | 1.5 |\n|---|---|", True),
        ("node3", "node4", False),
        ("-0.5", "0.5", False),
    ],
)
def test_what_counts_as_the_same(a, b, equal):
    assert outputs.same(stream(a), stream(b)) is equal


def test_tables_are_compared_as_text():
    table = "<style>td {color: %s}</style><table id='T_%s'><tr><td>%s</td><td>x</td></tr></table>"
    old, new, other = (
        table % values for values in (("red", 1, 1.0), ("blue", 2, 1.0), ("red", 1, 9.0))
    )
    assert outputs.same(display(text_html=[old]), display(text_html=[new]))
    assert not outputs.same(display(text_html=[old]), display(text_html=[other]))
