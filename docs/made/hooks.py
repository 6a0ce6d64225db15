"""MkDocs hooks that add pages from the repository root, adapt links, and reject external resources.

CONTRIBUTING.md and CHANGELOG.md are in the repository root, where readers expect them. The site
includes both as pages, with their links adapted. The build fails if a built page loads a resource
from another site.
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
ROOT_PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}

# Pages made from files in the repository root, by the path of the file relative to docs/.
_PAGES_BY_SOURCE = {f"../{source}": page for page, source in ROOT_PAGES.items()} | {
    "../README.md": "index.md"
}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_EXTERNAL_RESOURCE = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon))"""
    r"""[^>]*\bhref=["']?(?:https?:)?//[^>]*>"""
    r"""|url\(["']?(?:https?:)?//[^)]*\)|@import ["'](?:https?:)?//[^;]*;"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose source is in the repository root."""
    for page, source in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_LINK.sub(_relative_to_docs, text)))
    return files


def _relative_to_docs(link: re.Match[str]) -> str:
    """Make a root file's link relative to docs/; return its text if the site has no such page."""
    text, target = link.groups()
    pages = {source: page for page, source in ROOT_PAGES.items()}
    path, separator, anchor = target.partition("#")
    if "://" in target or not path:
        return link[0]
    if path in pages:
        return f"[{text}]({pages[path]}{separator}{anchor})"
    if path.startswith("docs/"):
        return f"[{text}]({target.removeprefix('docs/')})"
    return text


def on_page_markdown(markdown: str, files: Files, page: Page, **kwargs: Any) -> str:
    """Adapt links, which are written for readers of the source files, to the site.

    A link whose text is a file name shows the page's title instead. A link to a file in the root
    points to the page made from it.
    """
    folder = PurePosixPath(page.file.src_uri).parent

    def adapted(link: re.Match[str]) -> str:
        text, target = link.groups()
        path, separator, anchor = target.partition("#")
        source = posixpath.normpath((folder / path).as_posix())
        if source in _PAGES_BY_SOURCE:
            target = posixpath.relpath(_PAGES_BY_SOURCE[source], folder) + separator + anchor
        file = files.get_file_from_path(source)
        if file is not None and text.endswith(".md"):
            heading = re.search(r"^# (.+)$", file.content_string, re.MULTILINE)
            text = heading[1] if heading else text
        return f"[{text}]({target})"

    return _LINK.sub(adapted, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Fail the build if a page, stylesheet or image would load a resource from another site."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix not in {".html", ".css", ".svg"}:
            continue
        if match := _EXTERNAL_RESOURCE.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path} loads an external resource: {match[0][:200]}")
