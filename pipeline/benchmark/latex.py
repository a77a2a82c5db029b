"""Tables of the report in, LaTeX out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.markdown import plain


def latex(text: str) -> str:
    """Text that LaTeX shows as it is, in one line."""
    return "".join(
        {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}.get(
            char, f"\\{char}" if char in "&%$#_{}" else char
        )
        for char in plain(text)
    )


def latex_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A `tabular` for the booktabs package: the first column left, all others right."""
    lines = [
        f"\\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
        "\\toprule",
        " & ".join(map(latex, headings)) + r" \\",
        "\\midrule",
        *(" & ".join(map(latex, row)) + r" \\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"
