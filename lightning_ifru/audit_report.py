"""What an audit found, as numbers, as a table and as a page; never with an id of a person in it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from lightning_ifru.audit_verdict import Finding, findings, headline, limits
from lightning_ifru.finite import finite

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Closeness:
    """How near models answer to retrained ones about some pairs; all distances are mean |Δ sigmoid score|.

    Attributes:
        pairs: the number of pairs.
        distance: of ``original``, ``graph_swapped`` and ``unlearned``, mean over the retrained models.
        ratios: the completeness ratio against each retrained model; 1 is having done nothing, 0 having retrained.
        ratio: their mean.
        ratio_to_graph_swapped: the mean with the original on the new graph in the denominator: what is left of that
            which the change of the graph alone leaves.
        noise_floor: the mean distance between two retrained models; ``None`` if there is only one.
        among: the distances between any two retrained models.
        cosine: with paired retraining, of the signed changes, to the mean of the retrained models.
    """

    pairs: int
    distance: dict[str, float]
    ratios: list[float]
    ratio: float
    ratio_to_graph_swapped: float
    noise_floor: float | None = None
    among: list[float] = field(default_factory=list)
    cosine: float | None = None


@dataclass(frozen=True)
class Attack:
    """What the attack was tried on, and how much of its figures is chance: of which people the pairs happen to be.

    Attributes:
        pairs: forgotten pairs, and as many never seen.
        users: the people whose pairs they are.
        intervals: of every model, by its name in tables, within which 95 in 100 figures lie if people are drawn anew;
            empty with so few people that this says nothing.
        gap_errors: of ``original`` and ``unlearned``, by how much the difference to the nearest retrained model's
            figure varies so, 1.96 standard deviations; empty without retrained models.
    """

    pairs: int
    users: int
    intervals: dict[str, list[float]]
    gap_errors: dict[str, float]


@dataclass(frozen=True)
class AuditReport:
    """What an audit measured.

    Attributes:
        date: when, in UTC.
        model: the class of the model.
        versions: of the software.
        files: of every checkpoint its ``role``, ``file`` name and ``sha256``.
        requests: what the unlearned checkpoint's ledger has that the original's has not: ``digest`` (keyed), ``time``,
            counts, and ``seconds`` where they were written down.
        counts: interactions forgotten, in all (``forgotten``) and by split.
        erased: how many ``users`` and ``items`` have no interaction left to be trained on, whose rows are drawn anew.
        attack: what the attack was tried on, and how far chance goes.
        implicit: whether the feedback has no ratings, so that scores only rank.
        original, graph_swapped, unlearned, retrained: figures of each model: ``auroc`` on surviving test pairs,
            ``auroc_or`` and ``auroc_and`` on those whose user or (and) item the forgotten touched, ``recall@20``,
            ``ndcg@20``, ``membership_auroc``, and ``forgotten_probability``, the mean sigmoid score of the forgotten
            pairs that the attack was tried on, which are positive.
            ``graph_swapped`` is the original's parameters on the graph without the forgotten.
        paired: whether the retrained models were declared to be paired.
        closeness: on ``test`` and ``forgotten`` pairs; empty without retrained models.
        overlap: the mean share of the top 20 in common with retrained models, of ``original``, ``unlearned``, and
            ``retrained`` with each other.
        parameter_distance, embedding_distance: of ``original`` and ``unlearned`` to paired retrained models, mean,
            without the rows of the erased, which are drawn at random.
    """

    date: str
    model: str
    versions: dict[str, str]
    files: list[dict[str, str]]
    requests: list[dict[str, Any]]
    counts: dict[str, int]
    erased: dict[str, int]
    attack: Attack
    implicit: bool
    original: Figures
    graph_swapped: Figures
    unlearned: Figures
    retrained: list[Figures]
    paired: bool
    closeness: dict[str, Closeness]
    overlap: dict[str, float | None]
    parameter_distance: dict[str, float]
    embedding_distance: dict[str, float]

    @cached_property
    def findings(self) -> list[Finding]:
        """The questions, with answers by written rules."""
        return findings(self)

    @property
    def verdict(self) -> str:
        """What the findings amount to."""
        return headline(self.findings)

    @property
    def limits(self) -> list[str]:
        """What this does not prove."""
        return limits(self)

    @property
    def models(self) -> list[tuple[str, Figures]]:
        """The figures of every model, with the name it has in tables."""
        retrained = [(f"retrained {k}", figures) for k, figures in enumerate(self.retrained, start=1)]
        swapped = ("new graph only", self.graph_swapped)
        return [("original", self.original), swapped, ("unlearned", self.unlearned), *retrained]

    def to_json(self, indent: int | None = 2) -> str:
        """Return all attributes, the verdict, the findings and the limits as JSON."""
        said = {"verdict": self.verdict, "findings": [asdict(f) for f in self.findings], "limits": self.limits}
        return json.dumps(finite(asdict(self) | said), indent=indent, ensure_ascii=False)

    def to_html(self) -> str:
        """Return one self-contained HTML page for readers who are no engineers."""
        from lightning_ifru.audit_page import page

        return page(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._figures()
        if self.closeness:
            yield self._closeness()
        table = Table(title="Findings", show_header=False, show_lines=True)
        for finding in self.findings:
            table.add_row(f"{finding.question}\n{finding.because}", f"[bold]{finding.answer}")
        yield table
        yield f"[bold]Verdict.[/bold] {self.verdict}\n"
        yield "[bold]What this does not prove[/bold]"
        for said in self.limits:
            yield f" • {said}"

    def _figures(self) -> Table:
        table = Table(title=f"Audit of {self.counts['forgotten']:,} forgotten interactions")
        table.add_column("model")
        for heading in COLUMNS.values():
            table.add_column(heading, justify="right")
        for name, figures in self.models:
            table.add_row(name, *(number(figures[key], 3) for key in COLUMNS))
        return table

    def _closeness(self) -> Table:
        table = Table(title=f"Distance to {'paired ' if self.paired else ''}retrained models")
        table.add_column("pairs", no_wrap=True)
        last = "cosine" if self.paired else "chance"
        for heading in ("original", "new graph only", "unlearned", "left", last):
            table.add_column(heading, justify="right")
        for name, close in self.closeness.items():
            distances = [number(close.distance[one]) for one in ("original", "graph_swapped", "unlearned")]
            further = number(close.cosine, 2) if self.paired else number(close.noise_floor)
            table.add_row(f"{name} ({close.pairs:,})", *distances, f"{close.ratio:.0%}", further)
        return table


#: The figures of a model and their headings.
COLUMNS = {
    "auroc": "AUROC",
    "auroc_or": "or",
    "auroc_and": "and",
    "recall@20": "R@20",
    "ndcg@20": "N@20",
    "membership_auroc": "attack",
    "forgotten_probability": "belief",
}


def number(value: float | None, digits: int = 4) -> str:
    """Return a number for a table, or a dash.

    Example:
        >>> number(0.25, 3), number(None)
        ('0.250', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}"
