"The documentation site in a real browser: pages, search, formulas, plots, colours, code width."

import ast
import functools
import gzip
import html
import http.server
import json
import os
import re
import subprocess
import sys
import threading

import pytest
from conftest import ROOT, browser_program, r1nb

pytestmark = pytest.mark.browser

LOOK = (ROOT / "tests" / "page_flaws.js").read_text(encoding="utf-8")
CONTRAST = (ROOT / "tests" / "page_contrast.js").read_text(encoding="utf-8")


# As in the job notebooks; the last two lead nowhere.
LINKS = "[loss](../42_sft.ipynb) [next](evaluate.ipynb) [x](#none) [report](runs/..html)"


def demo_runs(root):
    "Three runs without a model: one of SFT, with a plot in its notebook, and two of GRPO."
    import base64
    import io

    import matplotlib.figure
    import nbformat

    from r1nb.runs import open_run, running

    picture = io.BytesIO()
    figure = matplotlib.figure.Figure(figsize=(3, 2))
    figure.subplots().plot([2, 1])
    figure.savefig(picture, format="png")
    sft = open_run(root / "demo/sft", "sft", {"model_name_or_path": "bundled"}, seed=0)
    with running(sft) as summary:
        for step in range(1, 21):
            sft.log(step, loss=0.5 + 1 / step)
        summary.update(train_loss=0.68)
    data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
    plot = nbformat.v4.new_output("display_data", data)
    cells = [
        nbformat.v4.new_markdown_cell("# sft\n\n" + LINKS),
        nbformat.v4.new_code_cell("plot()", outputs=[plot]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), sft / "job.ipynb")
    for seed in (0, 1):
        run = open_run(
            root / f"demo/grpo-{seed}",
            "grpo",
            {"model_name_or_path": str(sft / "model")},
            seed=seed,
        )
        with running(run) as summary:
            for step in range(1, 11):
                run.log(step, loss=0.01, reward=0.4 + step * 0.03 + seed / 10)
            summary.update(reward_first=0.43, reward_last=0.7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "The site, built as `make docs` builds it, in a folder `r1nb`."
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("web") / "r1nb"
    demo_runs(runs)
    command = [sys.executable, ROOT / "scripts/build_docs.py", "--out", out, "--runs", runs]
    env = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return out


@pytest.fixture(scope="module")
def base(folder):
    "The site's address: below /r1nb/, as on GitHub Pages."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder.parent)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/r1nb/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    program = browser_program()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, folder, base):
    "Function that opens a page; `page.troubles` collects its errors and requests to other hosts."
    contexts = []
    nothing = {
        **json.loads((folder / "search/search_index.json").read_text(encoding="utf-8")),
        "docs": [],
    }

    def open_at(address, scheme="light", width=1280, search=False):
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.troubles, page.loaded = [], []
        page.on(
            "console",
            lambda m: page.troubles.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda e: page.troubles.append(str(e)))
        page.on(
            "requestfailed",
            lambda r: "ABORTED" in r.failure or page.troubles.append(f"failed: {r.url}"),
        )

        def response(r):
            if r.status >= 400:
                page.troubles.append(f"{r.status}: {r.url}")
            page.loaded.append(r.url)

        page.on("response", response)
        own = (base, "file://", "data:", "blob:")
        page.on(
            "request",
            lambda r: None if r.url.startswith(own) else page.troubles.append(f"external: {r.url}"),
        )
        if not search:  # or each page would build its index, which takes longer than the page
            page.route("**/search_index.json", lambda r: r.fulfill(json=nothing))
        page.goto(address)
        return page

    yield open_at
    for context in contexts:
        context.close()


def test_every_page(folder, base, open_page):
    pages = sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*.html") if p.name != "404.html"
    )
    listings = [p for p in pages if p.startswith("source/")]
    pages = [p for p in pages if p not in listings[2:]]  # two are enough: they are all alike
    rooms = {n.stem for n in (ROOT / "nbs").glob("[0-9][0-9]_*.ipynb")}
    assert rooms <= {p[:-5] for p in pages}
    assert {
        "index.html",
        "api/rewards.html",
        "gallery/index.html",
        "messages.html",
    } <= set(pages)
    page, flaws, seen = open_page(base), {}, {}
    for name in pages:
        page.goto(base + name)
        seen[name] = page.evaluate(LOOK)
        if found := seen[name]["found"] + page.troubles:
            flaws[name] = found
        page.troubles.clear()
    assert flaws == {}
    assert seen["15_statistics.html"]["formulas"] > 40 and seen["45_grpo.html"]["images"] >= 2
    assert seen["gallery/runs/demo-sft.notebook.html"]["images"] == 1


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "r1nb").glob("[a-z]*.py")))
def test_every_public_name_has_signature_text_and_source(folder, name):
    tree = ast.parse((ROOT / f"r1nb/{name}.py").read_text(encoding="utf-8"))
    public = next(
        ast.literal_eval(n.value) for n in tree.body if ast.unparse(n).startswith("__all__")
    )
    page = (folder / f"api/{name}.html").read_text(encoding="utf-8")
    sections = {
        m[1]: m[0] for m in re.finditer(r'(?s)<h2 id="([^"]+)">.*?(?=<h2 |</article>)', page)
    }
    assert set(sections) == set(public)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in public:
            section = html.unescape(re.sub(r"<[^>]+>", "", sections[node.name]))
            arguments = (
                [a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)]
                if hasattr(node, "args")
                else []
            )
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            words = re.findall(r"\w{4,}", re.sub(r"\]\([^)]*\)", "]", summary))  # links: their text
            assert [w for w in arguments + words if w not in section] == [], node.name
            assert f'href="../source/r1nb/{name}.py.html#L-{node.lineno}"' in sections[node.name]


def test_answers_of_exercises_are_folded(base, open_page):
    page, shown = open_page(base), 0
    for notebook in sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        answers = [c for c in cells if "answer" in c["metadata"].get("tags", [])]
        if not answers:
            continue
        page.goto(f"{base}{notebook.stem}.html")
        found = page.locator("details.answer")
        assert found.count() == len(answers), notebook.name
        for i, cell in enumerate(answers):
            details, code = found.nth(i), found.nth(i).locator("code").first
            assert details.locator("summary").inner_text() == "Answer"
            assert not code.is_visible()
            details.locator("summary").click()
            assert code.is_visible()
            assert code.inner_text().strip() == "".join(cell["source"]).strip()
        shown += len(answers)
    assert shown >= 3 and page.troubles == []


def test_the_first_page_is_light(folder, base, open_page):
    page = open_page(base + "index.html", search=True)
    page.wait_for_load_state("networkidle")
    files = {
        u[len(base) :]: (folder / u[len(base) :]).read_bytes()
        for u in page.loaded
        if u.startswith(base)
    }
    assert page.troubles == [] and {"index.html", "search/search_index.json"} <= set(files)
    # compressed, as GitHub Pages sends them
    sizes = {name: len(gzip.compress(content)) for name, content in files.items()}
    assert 50_000 < sum(sizes.values()) < 420_000, sizes


def hits(page, text):
    # a letter that is typed before the search has loaded is lost
    page.wait_for_load_state("networkidle")
    page.keyboard.press("/")
    page.get_by_role("textbox", name="Search").press_sequentially(text, delay=20)
    page.locator(".md-search-result__link", has_text=text).first.wait_for(timeout=20000)
    return page.eval_on_selector_all(".md-search-result__link", "links => links.map(a => a.href)")


@pytest.mark.parametrize("where", ["http", "file"])
def test_search_finds_a_function(folder, base, open_page, where):
    page = open_page(
        (base if where == "http" else folder.as_uri() + "/") + "index.html", search=True
    )
    found = hits(page, "accuracy_reward")
    assert "api/rewards.html" in found[0] and page.troubles == []
    page.goto(found[0])
    assert page.locator("#accuracy_reward").is_visible() and page.troubles == []


KNOWN_MESSAGES = (  # of problems, models, hub, slurm and runs
    "folder path has number .jsonl or .parquet files; give the path of one of them",
    "file is damaged: not valid JSON (reason)",
    "callbacks: 'name' is unknown; [did you mean 'name'? / valid: names]",
    "--nodes: nodes is not positive",
    "run is being run by process pid on host[, batch job job]",
)


def test_the_page_of_messages_is_complete(folder):
    page = (folder / "messages.html").read_text(encoding="utf-8")
    headings = re.findall(r'(?s)<h3 class="(?:message|sign)" id="([^"]+)">(.*?)<a class', page)
    anchors, texts = zip(*headings, strict=True)
    assert len(set(anchors)) == len(anchors) > 300
    assert [t for t in texts if re.search(r"<(?!/?em>)|\{[^}]*[.(\[!][^}]*\}", t)] == []
    plain = [html.unescape(re.sub(r"</?em>", "", t)) for t in texts]
    assert [m for m in KNOWN_MESSAGES if m not in plain] == []
    source = (ROOT / "r1nb/diagnose.py").read_text(encoding="utf-8")
    signs = re.findall(r'@sign\(\s+"([^"]+)"', source)
    assert len(signs) >= 17 and set(signs) <= set(plain)
    assert page.count("<p>To do: ") == len(signs)
    docs = json.loads((folder / "search/search_index.json").read_text(encoding="utf-8"))["docs"]
    indexed = [d["title"] for d in docs if d["location"].startswith("messages.html#")]
    assert [m for m in KNOWN_MESSAGES if m not in map(html.unescape, indexed)] == []


def paste(page, text):
    "The addresses that the search finds for `text`, the best first."
    page.keyboard.press("/")
    page.get_by_role("textbox", name="Search").fill("")
    page.keyboard.insert_text(text)
    page.keyboard.press("End")  # the search looks when a key is released
    page.wait_for_timeout(1000)
    return page.eval_on_selector_all(".md-search-result__link", "links => links.map(a => a.href)")


@pytest.mark.parametrize("where", ["http", "file"])
def test_search_finds_messages_as_they_are_printed(tmp_path, folder, base, open_page, where):
    empty = tmp_path / "empty"
    empty.mkdir()
    commands = {
        "problems-folder-path-has-number": ["grade", empty],
        "runs-no-run-name-below": ["show", "sft-7"],
        "slurm-nodes-nodes-is-not-positive": ["sft", "--slurm", "--nodes", "0"],
    }
    page = open_page(
        (base if where == "http" else folder.as_uri() + "/") + "index.html", search=True
    )
    hits(page, "accuracy_reward")  # the search is ready
    for anchor, command in commands.items():
        refused = r1nb(*command, cwd=tmp_path, runs=tmp_path / "runs")
        assert refused.code == 2
        found = paste(page, refused.err.strip())
        address = re.compile(rf"/messages\.html(\?h=[^#]*)?#{anchor}")
        assert any(map(address.search, found[:4])), (refused.err, found[:4])
    assert page.troubles == []


def test_a_formula_is_laid_out(base, open_page):
    page = open_page(base + "45_grpo.html")
    fraction = page.locator("math mfrac").first
    above, below = (fraction.locator(":scope > *").nth(i).bounding_box() for i in (0, 1))
    assert above["y"] + above["height"] <= below["y"] + 2
    assert above["height"] > 5 and page.troubles == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(base, open_page, scheme):
    page, flaws = open_page(base, scheme), {}
    pages = [
        "index.html",
        "45_grpo.html",
        "34_curate.html",
        "api/settings.html",
        "source/r1nb/settings.py.html",
        "messages.html",
        "gallery/index.html",
        "gallery/runs/demo-sft.html",
    ]
    for name in pages:
        page.goto(base + name)
        result = page.evaluate(CONTRAST)
        assert result["looked"] > 20, name
        if result["found"]:
            flaws[name] = result["found"]
    assert flaws == {}
    # the check does find texts that are too pale
    page.evaluate("document.querySelector('h1').style.color = '#888'")
    page.evaluate("document.querySelector('p').style.color = '#777'")
    assert len(page.evaluate(CONTRAST)["found"]) >= 1


def test_the_switch_to_dark_is_remembered(base, open_page):
    page = open_page(base + "index.html")
    page.locator("label[title=Dark]").click()
    page.goto(base + "45_grpo.html")
    assert page.get_attribute("body", "data-md-color-scheme") == "slate"


def test_the_map_leads_through_the_pipeline(base, open_page):
    page = open_page(base + "index.html")
    targets = page.eval_on_selector_all(".map a", "links => links.map(a => a.href.baseVal)")
    stages = ["33_generate", "34_curate", "42_sft", "45_grpo", "50_evaluate"]
    assert {f"{stage}.html" for stage in stages} <= set(targets)
    page.locator(".map a", has_text="GRPO").click()
    page.wait_for_url("**/r1nb/45_grpo.html")


CUT_OFF = """() => {
  document.querySelectorAll('details').forEach(d => d.open = true)
  const longest = e => Math.max(...e.innerText.split('\\n').map(line => line.trimEnd().length))
  return [...document.querySelectorAll('pre > code, pre.output, pre.listing')]
    .filter(e => longest(e) <= 100 && e.scrollWidth > e.clientWidth)
    .map(e => e.innerText.slice(0, 80))
}"""


def test_code_of_100_columns_is_shown_whole(folder, base, open_page):
    page, flaws = open_page(base, width=1220), {}  # the narrowest window with both side bars
    pages = [p.name for p in folder.glob("[0-9][0-9]_*.html")]
    for name in [*pages, "api/runs.html", "source/r1nb/settings.py.html"]:
        page.goto(base + name)
        if found := page.evaluate(CUT_OFF):
            flaws[name] = found
    assert flaws == {}
    # the check does find code that is cut off
    page.set_viewport_size({"width": 500, "height": 900})
    page.goto(f"{base}12_problems.html")
    assert page.evaluate(CUT_OFF) != []


def test_nothing_sticks_out_of_a_narrow_window(base, open_page):
    page = open_page(base, width=380)
    for name in ("index", "15_statistics", "60_engine", "api/engine", "messages", "gallery/index"):
        page.goto(f"{base}{name}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= 381, name


def test_the_gallery_compares_runs(base, open_page):
    page = open_page(base + "gallery/index.html")
    assert page.locator("tbody tr").count() == 3
    assert page.get_by_role("img", name="reward over step").count() == 1
    reward = page.locator("svg", has=page.locator("text=reward"))
    lines = reward.locator("[id^=run-] path")
    assert lines.count() == 2 and all(lines.nth(i).bounding_box()["width"] > 100 for i in (0, 1))
    page.get_by_role("checkbox", name="demo/grpo-0").uncheck()
    assert [lines.nth(i).is_visible() for i in (0, 1)].count(True) == 1
    page.get_by_role("link", name="demo/sft").click()
    page.wait_for_url("**/demo-sft.html")
    page.get_by_role("link", name="The executed notebook").click()
    page.wait_for_url("**/demo-sft.notebook.html")
    page.locator("img").wait_for()
    assert page.locator("img").count() == 1 and page.troubles == []
    links = ["demo/sft", "All runs", "¶", "loss", "next"]
    assert page.locator("a[href]").all_inner_texts() == links
    page.get_by_role("link", name="loss").click()
    page.wait_for_url("**/42_sft.html")


def test_the_command_writes_the_gallery(tmp_path, open_page):
    demo_runs(tmp_path / "runs")
    runs, pages = tmp_path / "runs", tmp_path / "pages"
    result = r1nb("runs", "--html", pages, "--stage", "grpo", cwd=tmp_path, runs=runs)
    assert (result.code, result.out.strip()) == (0, str(pages / "index.html")), result.err
    page = open_page((pages / "index.html").as_uri())
    assert sorted(page.locator("tbody th").all_inner_texts()) == ["demo/grpo-0", "demo/grpo-1"]
    assert page.get_by_role("img", name="reward over step").count() == 1 and page.troubles == []
    refused = r1nb("runs", "--html", runs, cwd=tmp_path, runs=runs)
    assert refused.code == 2 and "not a gallery" in refused.err
    assert (runs / "demo/sft/job.ipynb").exists()
