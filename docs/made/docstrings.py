"""Docstrings as pages want them: their code in fences, their links as links.

In the source, code in a docstring stands as plain text, like everything else in it. Here a
paragraph that is Python, and more than a word of it, gets a fence; and `docs/steps.md` becomes a
link.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from griffe import Extension, Object

_PAGE = re.compile(r"(?<![\w/(`])docs/([\w/-]+)\.md")


class Docstrings(Extension):
    """What mkdocstrings does with each docstring before it is shown."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Changes the docstring of whatever has one."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """The text of a docstring as Markdown."""
    shown: list[str] = []
    code: list[str] = []
    for paragraph in [*text.split("\n\n"), ""]:
        if _is_code(paragraph):
            code.append(paragraph)
            continue
        if code:
            shown.append("```python\n" + "\n\n".join(code) + "\n```")
            code = []
        shown.append(_PAGE.sub(r"[\1](../\1.md)", paragraph))
    return "\n\n".join(shown).rstrip()


def _is_code(paragraph: str) -> bool:
    """Whether this is Python that does something: a call, an assignment, a statement."""
    try:
        body = ast.parse(paragraph).body
    except SyntaxError:
        return False
    return any(not isinstance(one, ast.Expr) or isinstance(one.value, ast.Call) for one in body)
