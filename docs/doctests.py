"""A griffe extension: doctests of docstrings become code blocks of the reference pages."""

import re

import griffe

_DOCTEST = re.compile(r"(?:^|(?<=\n\n))(?P<indent> *)>>> .*?(?=\n\s*\n|\Z)", re.DOTALL)


class Doctests(griffe.Extension):
    """Fence every paragraph that begins with `>>>`; Markdown would take it for a quotation.

    Not where numpydoc has a section for examples, which griffe knows.
    """

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None and "\nExamples\n---" not in obj.docstring.value:
            obj.docstring.value = _DOCTEST.sub(_fenced, obj.docstring.value)


def _fenced(match: re.Match[str]) -> str:
    indent = match["indent"]
    return f"{indent}```pycon\n{match[0]}\n{indent}```"
