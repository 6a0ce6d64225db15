"""What mkdocs does beside its own: pages from files in the root, and a look at what was built.

CONTRIBUTING.md and CHANGELOG.md stand in the root, where people look for them. The site has them as
pages, with their links seen from there. Of the built pages none may fetch anything from elsewhere.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
FROM_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}

_IN_ROOT = {f"../{source}": page for page, source in FROM_ROOT.items()} | {
    "../README.md": "index.md"
}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon))"""
    r"""[^>]*\bhref=["']?(?:https?:)?//[^>]*>"""
    r"""|url\(["']?(?:https?:)?//[^)]*\)|@import ["'](?:https?:)?//[^;]*;"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages whose text stands in the root."""
    for page, source in FROM_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_LINK.sub(_seen_from_docs, text)))
    return files


def _seen_from_docs(link: re.Match[str]) -> str:
    """A link of the root's, as it is below docs/; of one to what the site has not, the text."""
    text, target = link.groups()
    pages = {source: page for page, source in FROM_ROOT.items()}
    path, mark, anchor = target.partition("#")
    if "://" in target or not path:
        return link[0]
    if path in pages:
        return f"[{text}]({pages[path]}{mark}{anchor})"
    if path.startswith("docs/"):
        return f"[{text}]({target.removeprefix('docs/')})"
    return text


def on_page_markdown(markdown: str, files: Files, page: Page, **kwargs: Any) -> str:
    """Links as a page wants them, where they are written for those who read the files.

    One whose text is a file's name shows the title; one to a file of the root goes to its page.
    """
    here = PurePosixPath(page.file.src_uri).parent

    def on_the_site(link: re.Match[str]) -> str:
        text, target = link.groups()
        path, mark, anchor = target.partition("#")
        found = posixpath.normpath((here / path).as_posix())
        if found in _IN_ROOT:
            target = posixpath.relpath(_IN_ROOT[found], here) + mark + anchor
        file = files.get_file_from_path(found)
        if file is not None and text.endswith(".md"):
            heading = re.search(r"^# (.+)$", file.content_string, re.MULTILINE)
            text = heading[1] if heading else text
        return f"[{text}]({target})"

    return _LINK.sub(on_the_site, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Fails the build where a page, a style or a picture would fetch something from elsewhere."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in {".html", ".css", ".svg"}:
            for found in _ELSEWHERE.finditer(path.read_text(encoding="utf-8")):
                raise PluginError(f"{path} fetches from elsewhere: {found[0][:200]}")
