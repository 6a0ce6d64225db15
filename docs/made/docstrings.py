"""Converts docstrings to Markdown for the API pages.

Docstrings in the source contain code as plain paragraphs and refer to pages by path. This griffe
extension puts code paragraphs into fenced blocks and turns references such as `docs/steps.md` into
links.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from griffe import Extension, Object

_PAGE = re.compile(r"(?<![\w/(`])docs/([\w/-]+)\.md")


class Docstrings(Extension):
    """Griffe extension that converts each docstring before mkdocstrings renders it."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Convert the docstring of the object, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Return a docstring's text as Markdown."""
    converted: list[str] = []
    code: list[str] = []
    for paragraph in [*text.split("\n\n"), ""]:
        if _is_code(paragraph):
            code.append(paragraph)
            continue
        if code:
            converted.append("```python\n" + "\n\n".join(code) + "\n```")
            code = []
        converted.append(_PAGE.sub(r"[\1](../\1.md)", paragraph))
    return "\n\n".join(converted).rstrip()


def _is_code(paragraph: str) -> bool:
    """Check whether the paragraph is Python code with a call, an assignment, or another statement.

    A single expression without a call, such as one word of prose, does not count as code.
    """
    try:
        body = ast.parse(paragraph).body
    except SyntaxError:
        return False
    return any(
        not isinstance(statement, ast.Expr) or isinstance(statement.value, ast.Call)
        for statement in body
    )
