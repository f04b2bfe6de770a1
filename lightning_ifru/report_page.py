"""A report as a piece of HTML for a notebook: nothing outside of it is needed, and nothing in it runs."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from lightning_ifru.figures import embedded
from lightning_ifru.report_figures import report_figure
from lightning_ifru.report_table import METRIC_HEADINGS, metrics, summary, title

if TYPE_CHECKING:
    from lightning_ifru.report import UnlearningReport


def fragment(report: UnlearningReport) -> str:
    """Return the tables of a report, and its figure unless it is of a dry run."""
    parts = [_table(title(report), summary(report))]
    if report.verdict is not None:
        parts.append(f"<p><b>Verdict: {escape(report.verdict)}</b></p>")
    parts += [f"<p>{escape(reason)}</p>" for reason in report.verdict_reasons]
    if report.metrics_before:
        parts.append(_table("Surviving test pairs", metrics(report), METRIC_HEADINGS))
    if not report.dry_run:
        image = f'<img alt="What the tables do not show: whom it has changed" src="{embedded(report_figure(report))}"'
        parts.append(f'{image} style="max-width:100%;background:#fff">')
    page = f'<div style="max-width:56em">{"".join(parts)}</div>'
    # Entities are read right whatever character set a saved page is taken for.
    return page.encode("ascii", "xmlcharrefreplace").decode()


def _table(caption: str, rows: Iterable[tuple[str, ...]], headings: Iterable[str] = ()) -> str:
    head = "".join(f"<th {_CELL}>{escape(text)}</th>" for text in headings)
    body = "".join(
        f"<tr><th {_NAME}>{escape(name)}</th>{''.join(f'<td {_CELL}>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    caption = f'<caption style="font-weight:bold;text-align:left">{escape(caption)}</caption>'
    return f'<table style="margin-bottom:1em">{caption}{f"<tr>{head}</tr>" if head else ""}{body}</table>'


_CELL = 'style="text-align:right;white-space:nowrap;padding:.1em .6em"'
_NAME = 'scope="row" style="text-align:left;white-space:nowrap;font-weight:normal;padding:.1em .6em"'
