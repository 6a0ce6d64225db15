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

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_BARE = re.compile(r"\[(?:[\w/.-]+\.md)\]\(([\w/.-]+\.md)(#[\w-]*)?\)")
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
    """Links that show a file's name, as they do where files are read, show the page's title."""

    def titled(link: re.Match[str]) -> str:
        path = (PurePosixPath(page.file.src_uri).parent / link[1]).as_posix()
        target = files.get_file_from_path(posixpath.normpath(path))
        heading = target and re.search(r"^# (.+)$", target.content_string, re.MULTILINE)
        return f"[{heading[1]}]({link[1]}{link[2] or ''})" if heading else link[0]

    return _BARE.sub(titled, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Fails the build where a page, a style or a picture would fetch something from elsewhere."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in {".html", ".css", ".svg"}:
            for found in _ELSEWHERE.finditer(path.read_text(encoding="utf-8")):
                raise PluginError(f"{path} fetches from elsewhere: {found[0][:200]}")
