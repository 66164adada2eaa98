"""MkDocs hooks: the README is the home page, and links out of docs/ find their files.

The pages are also read in the repository itself, so they link to it (`../benchmarks/...`). What a
page links to there is added to the site under `repository/`, Markdown as a page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)]*)?\))")
ELSEWHERE = "repository/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page, the changelog, and whatever the pages link to."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    waiting = ["CHANGELOG.md"]
    waiting += [link for page in files.documentation_pages() for link in _outside(page)]
    while waiting:
        path = waiting.pop()
        if files.get_file_from_path(ELSEWHERE + path) is not None:
            continue
        if not (ROOT / path).is_file():
            continue  # the link check of MkDocs names the page
        file = File.generated(config, ELSEWHERE + path, abs_src_path=str(ROOT / path))
        files.append(file)
        if path.endswith(".md"):
            waiting += _outside(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links into the repository to where the files are in the site."""
    return LINK.sub(lambda m: m[1] + _in_site(page.file, m[2]) + m[3], markdown)


def _outside(file: File) -> list[str]:
    """Files of the repository, outside of docs/, that a page links to."""
    paths = [_in_repository(file, link) for _, link, _ in LINK.findall(file.content_string)]
    return [path for path in paths if path is not None and not path.startswith("docs/")]


def _in_repository(file: File, link: str) -> str | None:
    """What a link means for a reader of the repository; None for addresses."""
    if "://" in link or link.startswith("mailto:"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(_origin(file)), link))


def _origin(file: File) -> str:
    uri = file.src_uri
    if uri == "index.md":
        return "README.md"
    return uri.removeprefix(ELSEWHERE) if uri.startswith(ELSEWHERE) else f"docs/{uri}"


def _in_site(file: File, link: str) -> str:
    path = _in_repository(file, link)
    if path is None:
        return link
    target = path.removeprefix("docs/") if path.startswith("docs/") else ELSEWHERE + path
    target = "index.md" if path == "README.md" else target
    return posixpath.relpath(target, posixpath.dirname(file.src_uri) or ".")
