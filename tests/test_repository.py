"The repository itself: notebooks and package in step, the form of notebooks, who may import whom."

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

ROOMS = sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))
JOBS = sorted((ROOT / "nbs" / "jobs").glob("*.ipynb"))


def cells(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def exports(notebook):
    "The modules that the notebook's `default_exp` directives name."
    return re.findall(
        r"^#\| *default_exp +(\w+)", "\n".join("".join(c["source"]) for c in cells(notebook)), re.M
    )


def named(notebook):
    return notebook.stem


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the files that nbdev reads, in a separate git repository."
    folder = tmp_path_factory.mktemp("copy") / "r1nb"
    folder.mkdir()
    for name in ("nbs", "r1nb"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    for name in ("pyproject.toml", "settings.ini", "README.md", "LICENSE", ".gitignore"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    git = [
        "git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@example.org",
        "-c", "commit.gpgsign=false",
    ]  # fmt: skip
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "copy"]):
        subprocess.run([*git, *command], check=True, capture_output=True, timeout=60)
    return folder


@pytest.mark.parametrize("command", ["nbdev-export", "nbdev-clean"])
def test_nbdev_changes_nothing(copy, command):
    program = Path(sys.executable).with_name(command)
    subprocess.run([program], cwd=copy, check=True, capture_output=True, timeout=300)
    status = subprocess.run(
        ["git", "-C", copy, "status", "--porcelain"], capture_output=True, text=True, check=True
    )
    changes = subprocess.run(
        ["git", "-C", copy, "diff", "--stat", "-p"], capture_output=True, text=True, check=True
    )
    assert status.stdout == "", changes.stdout[:3000]


@pytest.mark.parametrize("notebook", [*ROOMS, *JOBS], ids=named)
def test_a_notebook_is_valid_and_has_a_title(notebook):
    nbformat.validate(nbformat.read(notebook, as_version=4))
    first = cells(notebook)[0]
    assert first["cell_type"] == "markdown" and re.match(r"# \S", "".join(first["source"]))


@pytest.mark.parametrize("notebook", ROOMS, ids=named)
def test_a_notebook_exports_the_module_of_its_name(notebook):
    name = notebook.stem[3:]
    title = "".join(cells(notebook)[0]["source"])
    assert re.match(rf"# {name}\n+> \S", title), title[:80]
    assert exports(notebook) == [name] and (ROOT / "r1nb" / f"{name}.py").is_file()


def test_every_module_has_a_notebook():
    modules = {p.stem for p in (ROOT / "r1nb").glob("*.py")} - {"__init__", "_modidx"}
    assert modules == {n.stem[3:] for n in ROOMS} and len(ROOMS) == len(modules)


@pytest.mark.parametrize("map", ["README.md", "nbs/index.ipynb"])
def test_the_map_of_the_book_is_complete(map):
    "In order, each notebook once in the table."
    links = re.findall(
        r"\| \[(\d\d_\w+)\]\((?:nbs/)?\1\.ipynb\) \|", (ROOT / map).read_text("utf-8")
    )
    assert links == [n.stem for n in ROOMS]


@pytest.mark.parametrize("notebook", JOBS, ids=named)
def test_a_job_has_one_cell_of_parameters(notebook):
    from r1nb.engine import notebook_parameters

    tagged = [c for c in cells(notebook) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0]["cell_type"] == "code" and exports(notebook) == []
    expected = {"pipeline_dir"} if notebook.stem == "report" else {"config", "overrides", "run_dir"}
    assert set(notebook_parameters(notebook)) == expected


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_finds_nothing(command):
    "In notebooks, tests and scripts; lines of at most 100 columns are among its rules."
    command = [sys.executable, "-m", "ruff", *command, "--no-cache", "nbs", "tests", "scripts"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-500:]


def too_long(text, exempt=()):
    "Lines of more than 100 columns that do not start with one of `exempt`."
    lines = [line for line in text.splitlines() if len(line) > 100]
    return [line for line in lines if not line.lstrip().startswith(exempt)]


# Rows of tables, pictures, formulas and quoted titles are not broken.
UNBROKEN = ("|", "![", "$$", "\\rho", "\\underbrace")


@pytest.mark.parametrize("notebook", [*ROOMS, *JOBS], ids=named)
def test_prose_has_at_most_100_columns(notebook):
    prose = ["".join(c["source"]) for c in cells(notebook) if c["cell_type"] == "markdown"]
    assert [line for text in prose for line in too_long(text, UNBROKEN)] == []


def test_scripts_and_texts_have_at_most_100_columns():
    folders = (".", ".ci", "scripts", "scripts/slurm", "scripts/accelerate", "scripts/recipes")
    kinds = (".sh", ".slurm", ".yaml", ".yml", ".md", ".ini", ".toml", "")
    files = [f for folder in folders for f in (ROOT / folder).iterdir() if f.suffix in kinds]
    files = [f for f in files if f.is_file() and f.name not in ("LICENSE", ".lock")]
    found = {f.name: too_long(f.read_text(encoding="utf-8"), UNBROKEN) for f in files}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert {"Makefile", "README.md", "settings.ini", "body.sh", "run", "zero3.yaml"} <= set(found)


def test_modules_have_at_most_100_columns():
    "Except `__all__`, which nbdev breaks at 120, and its index."
    for file in sorted((ROOT / "r1nb").glob("[!_]*.py")):
        text = re.sub(r"(?ms)^__all__ = \[.*?\]$", "", file.read_text(encoding="utf-8"), count=1)
        assert too_long(text) == [], file.name


@pytest.mark.parametrize("notebook", ROOMS, ids=named)
def test_an_exported_cell_has_at_most_60_lines(notebook):
    sources = ["".join(c["source"]) for c in cells(notebook) if c["cell_type"] == "code"]
    exported = [s for s in sources if re.search(r"(?m)^#\| *export", s)]
    assert [s[:80] for s in exported if len(s.splitlines()) > 60] == []


ANSWER = {"jupyter": {"source_hidden": True, "outputs_hidden": True}, "tags": ["answer"]}


@pytest.mark.parametrize("notebook", [n for n in ROOMS if n.stem[0] in "12345"], ids=named)
def test_exercises_have_folded_answers(notebook):
    found = cells(notebook)
    sources = ["".join(c["source"]) for c in found]
    (start,) = [n for n, s in enumerate(sources) if s.startswith("## Exercises")]
    questions = re.findall(r"(?m)^(\d+)\. ", sources[start])
    code = [n for n in range(start + 1, len(found)) if found[n]["cell_type"] == "code"]
    answers = [n for n in code if not sources[n].startswith("#|")]
    assert len(questions) >= 2 and all(found[n]["metadata"] == ANSWER for n in answers)
    numbered = [m[1] for n in answers if (m := re.match(r"# (\d+)\. ", sources[n]))]
    assert numbered == questions


@pytest.mark.parametrize("notebook", JOBS, ids=named)
def test_a_job_names_its_stage(notebook):
    metadata = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]
    assert metadata["r1nb"] == {"stage": notebook.stem}


def imports(module):
    "Names of the r1nb modules that `module` imports, at the top or inside a function."
    tree = ast.parse((ROOT / "r1nb" / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and (
            node.level == 1 or (node.module or "").split(".")[0] == "r1nb"
        ):
            inner = node.module if node.level else node.module.partition(".")[2]
            names = [inner.split(".")[0]] if inner else [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name.split(".")[1] for a in node.names if a.name.startswith("r1nb.")]
        yield from names


@pytest.mark.parametrize("number", range(len(ROOMS)), ids=[n.stem for n in ROOMS])
def test_a_module_imports_only_from_earlier_notebooks(number):
    order = [n.stem[3:] for n in ROOMS]
    room, above = order[number], order[:number]
    below = {name for name in imports(room) if name in order and name not in above}
    assert below == set()


def test_no_text_names_this_machine_or_a_registry():
    git = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    pattern = re.compile(
        r"(?<![\w.~/-])/(?:root|work|home/\w+|Users/\w+|tmp/w)/[\w.]|"
        r"pypi[.](?:org|python)|pythonhosted[.]org|registry[.]npmjs|anaconda[.]org|crates[.]io"
    )
    found, looked = [], 0
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if (
            path.suffix not in (".ipynb", ".py", ".md", ".yaml", ".yml", ".sh", ".toml", ".ini")
            or not path.is_file()
        ):
            continue
        looked += 1
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{name}:{number}: {m[0]}" for m in pattern.finditer(line)]
    assert found == [] and looked > len(ROOMS)
    assert pattern.search("in /wor" + "k/main") and pattern.search("https://pyp" + "i.org/simple")
