"MkDocs events: the pages, made from notebooks, modules and README.md, and their order."

import hashlib
import os
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File
from mkdocs.structure.pages import Page as MkDocsPage

sys.path.insert(0, str(Path(__file__).parent))
import messages  # noqa: E402
from notebooks import NBS, ROOT, Page, Site, listing, mathml, page_of, rooms, source_page  # noqa: E402

# the gallery of runs that build_docs.py made
GALLERY = Path(os.environ.get("R1NB_DOCS_GALLERY") or ROOT / "_proc" / "gallery")
SECTIONS = {
    "0": "Ground",
    "1": "Problems and verdicts",
    "2": "Models",
    "3": "Data",
    "4": "Training",
    "5": "Evaluation",
    "6": "Jobs",
    "7": "Reports, lab, command",
}
site: Site
# while `make docs-serve` runs: pages whose notebook has not changed
converted: dict[tuple, tuple] = {}


def on_startup(command, dirty):
    "While the site is served, render only the pages whose Markdown has changed."
    if command != "serve":
        return
    render, kept = MkDocsPage.render, {}
    names = ("content", "toc", "_title_from_render", "present_anchor_ids", "links_to_anchors")

    def remembered(page, config, files):
        text, result = kept.get(page.file.src_uri, (None, None))
        if text == page.markdown:
            page.__dict__.update(result)
            return
        text = page.markdown
        render(page, config, files)
        kept[page.file.src_uri] = (
            text,
            {name: page.__dict__[name] for name in names if name in page.__dict__},
        )

    MkDocsPage.render = remembered


def on_config(config):
    global site
    site = Site()
    sections = {}
    for notebook in rooms():
        job = notebook.parent != NBS
        name = "Job notebooks" if job else SECTIONS.get(notebook.stem[0], "More")
        sections.setdefault(name, []).append(
            {notebook.stem if job else notebook.stem[3:]: page_of(notebook)}
        )
    api = [{f"r1nb.{name}": f"api/{name}.md"} for name in in_order_of_rooms()]
    config.nav = [
        {"Overview": "index.md"},
        *({name: pages} for name, pages in sections.items()),
        {"API": ["api/index.md", *api]},
    ]
    if (GALLERY / "index.html").exists():
        config.nav.append({"Runs": "gallery/index.html"})
    config.nav.append({"Messages": messages.PAGE})
    config.nav.append({"Contributing": "contributing.md"})
    return config


def in_order_of_rooms():
    order = list(site.rooms)
    return sorted(
        site.modules, key=lambda name: (order.index(name) if name in order else len(order), name)
    )


def on_files(files, config):
    def add(path, content):
        files.append(File.generated(config, path, content=content))

    add("index.md", index())
    add(messages.PAGE, messages.page(site))
    add(
        "contributing.md",
        site.links((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "contributing.md", ""),
    )
    for notebook in rooms():
        for path, content in convert(notebook):
            add(path, content)
    rows = [
        "# API",
        "Every public name of the package, module by module in reading order.",
        "| module | |\n|---|---|",
    ]
    for name in in_order_of_rooms():
        module = site.modules[name]
        add(f"api/{name}.md", module.markdown(site))
        text = site.links(module.text.partition("\n")[0], "api/index.md", "r1nb", "")
        rows[-1] += f"\n| [r1nb.{name}]({name}.md) | {text} |"
    add("api/index.md", "\n\n".join(rows) + "\n")
    for path, content in site.images.items():  # pictures of README.md
        add(path, content)
    for path in sorted(site.sources):
        if path.endswith(".ipynb"):  # to take along
            add(path, (ROOT / path).read_bytes())
        else:
            add(listing(path), source_page(site, path))
    if (GALLERY / "index.html").exists():
        for path in sorted(p for p in GALLERY.rglob("*") if p.is_file()):
            add(f"gallery/{path.relative_to(GALLERY).as_posix()}", path.read_bytes())
    return files


def convert(notebook: Path) -> list[tuple]:
    "The page of `notebook` and its plots."
    global site
    page = Page(site, notebook)
    mark = (notebook, hashlib.sha256(repr((page.cells, site.symbols)).encode()).hexdigest())
    if mark not in converted:
        for old in [m for m in converted if m[0] == notebook]:
            del converted[old]
        whole, site = site, Site.__new__(Site)  # what this page alone adds
        site.__dict__ = {**whole.__dict__, "blocks": {}, "images": {}, "sources": set()}
        page.site = site
        converted[mark] = (page.markdown(), site.blocks, site.images, site.sources)
        site = whole
    text, blocks, images, sources = converted[mark]
    site.blocks |= blocks
    site.sources |= sources
    return [(page.page, text), *images.items()]


def index() -> str:
    "README.md, with the map of the pipeline before its second heading."
    text = site.links((ROOT / "README.md").read_text(encoding="utf-8"), "index.md", "")
    head, rest = text.split("\n## ", 1)
    svg = (Path(__file__).parent / "pipeline.svg").read_text(encoding="utf-8")
    known = {page_of(n) for n in rooms()}
    for target in re.findall(r'href="([^"#]+)\.html', svg):
        if f"{target}.md" not in known:
            raise SystemExit(f"scripts/docs/pipeline.svg: {target}.html is no page")
    return f"{head}\n{site.raw(f'<figure class=map>{svg}</figure>')}\n\n## {rest}"


def on_page_content(content, page, config, files):
    if page.file.src_uri.startswith("source/"):  # what fill() puts in, MkDocs does not look at
        page.present_anchor_ids |= set(re.findall(r'id="(L-\d+)"', site.fill(content)))
    # The search covers prose, signatures and docstrings; with all the code its index would be
    # most of what a page loads.
    no_prose = (
        r'details class="(?:export|answer)"',
        r'div class="language-\w+ highlight"',
        r'p class="(?:about|source)"',
    )
    content = re.sub(rf"<({'|'.join(no_prose)})", r"<\1 data-search-exclude", content)
    return site.fill(mathml(content)).replace("<table>", '<table tabindex="0">')


def on_post_build(config):
    for path in Path(config.site_dir).rglob(
        "*.map"
    ):  # of the theme's scripts: a megabyte for its developers
        path.unlink()
