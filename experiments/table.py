"""Plain-text tables that survive a log file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as aligned text: words to the left, what looks like a number to the right.

    Args:
        columns: which, in this order; those of the first row if None. Missing values are "-".

    >>> print(table([{"name": "ring", "s": "1.5"}, {"name": "star", "s": "12"}]))
    name    s
    ring  1.5
    star   12
    """
    columns = list(rows[0]) if columns is None else list(columns)
    cells = [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    right = [all(_is_number(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "  ".join(t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, widths, right)).rstrip()
        for line in [columns, *cells]
    ]
    return "\n".join(lines)


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as a table of Markdown, with the columns of the first row.

    >>> print(markdown_table([{"name": "ring", "s": "1.5"}]))
    | name | s |
    | --- | --- |
    | ring | 1.5 |
    """
    columns = list(rows[0])
    cells = [columns, ["---"] * len(columns), *([row[key] for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def sourced(paper: str) -> str:
    """A number at arXiv as text; any other source as it is.

    >>> sourced("2411.19870"), sourced("torchft")
    ('arXiv 2411.19870', 'torchft')
    """
    return f"arXiv {paper}" if _is_arxiv(paper) else paper


def linked(paper: str) -> str:
    """The same as a link of Markdown.

    >>> linked("2411.19870"), linked("-")
    ('[2411.19870](https://arxiv.org/abs/2411.19870)', '-')
    """
    return f"[{paper}](https://arxiv.org/abs/{paper})" if _is_arxiv(paper) else paper


def number(value: float | None, digits: int = 3) -> str:
    """A number of `digits` significant digits, without powers of ten up to a million.

    >>> number(0.012345), number(1639.7), number(2.0), number(None)
    ('0.0123', '1,640', '2', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 10**digits:
        return f"{float(f'{value:.{digits}g}'):,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:.{digits}g}"


def size(nbytes: float | None) -> str:
    """Bytes for a reader.

    >>> size(2.112e9), size(512)
    ('2.11 GB', '512 B')
    """
    if nbytes is None or not math.isfinite(nbytes):
        return "-"
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= scale:
            return f"{nbytes / scale:.3g} {unit}"
    return f"{nbytes:.3g} B"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return number(value) if isinstance(value, float) else str(value)


def _is_arxiv(paper: str) -> bool:
    return paper.replace(".", "").isdigit()


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in "-+<"
