"""An audit as one page for readers who are no engineers: nothing outside of it is needed, and nothing in it runs."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from lightning_ifru.audit_figures import attack_figure, belief_figure, closeness_figure
from lightning_ifru.audit_report import number
from lightning_ifru.figures import embedded

if TYPE_CHECKING:
    from lightning_ifru.audit_report import AuditReport


def page(report: AuditReport) -> str:
    """Return the HTML page of an audit."""
    template = Template(files("lightning_ifru").joinpath("audit_page.html").read_text(encoding="utf-8"))
    count = len(report.retrained)
    parts = [f"{report.counts[name]:,} {text}" for name, text in _SPLITS.items() if report.counts[name]]
    return template.substitute(
        date=escape(report.date.replace("T", " ").replace("+00:00", " UTC")),
        verdict=escape(report.verdict),
        kind="people's choices, without ratings" if report.implicit else "people's ratings",
        forgotten=f"{report.counts['forgotten']:,}",
        parts=", ".join(parts),
        retrained_item=_retrained_item(count, report.paired),
        findings=_rows(
            ([f"<b>{escape(f.question)}</b><br>{escape(f.because)}", f"<span class='answer'>{f.answer}</span>"])
            for f in report.findings
        ),
        attacked=f"{report.attack.pairs:,}",
        people="1 person" if report.attack.users == 1 else f"{report.attack.users:,} people",
        attack_figure=embedded(attack_figure(report)),
        attack_alt=_values(report, "membership_auroc"),
        attack_goal=_GOAL if count else _NO_GOAL,
        belief_figure=embedded(belief_figure(report)),
        belief_alt=_values(report, "forgotten_probability"),
        belief_note=_RANKS if report.implicit else "",
        closeness=_closeness(report),
        kinds_of_pairs=_CHOSEN if report.implicit else _LIKED,
        usefulness=_rows(
            ([escape(name), *(number(figures[key]) for key in _USEFULNESS)] for name, figures in report.models),
            numbers=True,
        ),
        limits="\n".join(f"<li>{escape(said)}</li>" for said in report.limits),
        files=_rows(
            ([escape(f["role"]), escape(f["file"]), f"<span class='hash'>{f['sha256']}</span>"]) for f in report.files
        ),
        requests=_requests(report.requests),
        model=escape(report.model),
        versions=escape(", ".join(f"{name} {version}" for name, version in report.versions.items())),
        rules=_rows([escape(f.question), escape(f.rule)] for f in report.findings),
    )


def _retrained_item(count: int, paired: bool) -> str:
    if not count:
        return "<li>a <b>retrained</b> model, which would be the measure of all this, was not given.</li>"
    models = "a model" if count == 1 else f"{count} models"
    same = " from the same starting point, in the same order and with the same draws as the original (<i>paired</i>)"
    return f"<li><b>retrained</b>: {models} trained without the forgotten{same if paired else ''}: the goal.</li>"


def _closeness(report: AuditReport) -> str:
    if not report.closeness:
        missing = "no pairs to ask about" if report.retrained else "no retrained model to compare with"
        return f"<p><b>Not measured</b>: there were {missing}. The other numbers cannot take the place of this one.</p>"
    rows = []
    for name, close in report.closeness.items():
        each = f" ({min(close.ratios):.0%} to {max(close.ratios):.0%})" if len(close.ratios) > 1 else ""
        distances = [number(value) for value in (*close.distance.values(), close.noise_floor)]
        rows.append(
            [
                f"{_PAIRS[name]} ({close.pairs:,})",
                *distances,
                f"{close.ratio:.0%}{each}",
                f"{close.ratio_to_graph_swapped:.0%}",
            ]
        )
    floor = _FLOOR if any(close.noise_floor is not None for close in report.closeness.values()) else _NO_FLOOR
    return "\n".join(
        [
            f'<figure><img alt="The distances in the table" src="{embedded(closeness_figure(report))}">',
            f"<figcaption><b>How to read it.</b> {_DISTANCE} {floor}</figcaption></figure>",
            f"<table>{_head(_CLOSENESS)}<tbody>{_rows(rows, numbers=True)}</tbody></table>",
            f"<p class='note'><b>How to read it.</b> {_LEFT}</p>",
            *_further(report),
        ]
    )


def _further(report: AuditReport) -> Iterable[str]:
    """What else was compared with retrained models, a sentence each."""
    if report.overlap:
        shared = report.overlap
        among = "" if shared["retrained"] is None else f", and of two retrained models {shared['retrained']:.0%}"
        yield (
            f"<p>Of 20 recommendations, the unlearned model shares {shared['unlearned']:.0%} with a retrained model on "
            f"average, the original {shared['original']:.0%}{among}. More is nearer.</p>"
        )
    cosines = [
        f"{close.cosine:.2f} on {name} pairs" for name, close in report.closeness.items() if close.cosine is not None
    ]
    if cosines:
        yield (
            f"<p>The direction in which answers have changed agrees with that of retraining by {' and '.join(cosines)} "
            "(1: the same direction, 0: unrelated, -1: the opposite).</p>"
        )
    if report.parameter_distance:
        parameters, embeddings = report.parameter_distance, report.embedding_distance
        yield (
            f"<p>The model's inner numbers are {parameters['unlearned']:.3f} of their size away from the retrained "
            f"ones (the original's {parameters['original']:.3f}), the descriptions of people and items that it "
            f"computes {embeddings['unlearned']:.3f} (the original's {embeddings['original']:.3f}). 0 is the same.</p>"
        )


def _requests(requests: list[dict[str, Any]]) -> str:
    if not requests:
        return (
            "<p>The unlearned checkpoint holds no record of a request: it cannot be told for which one it was made.</p>"
        )
    rows = []
    for entry in requests:
        seconds = entry.get("seconds")
        rows.append(
            [
                f"<span class='hash'>{escape(str(entry.get('digest', '–')))}</span>",
                escape(str(entry.get("time", "–"))),
                *(f"{entry[name]:,}" for name in ("num_forgotten", "num_users_erased", "num_items_erased")),
                "–" if seconds is None else f"{seconds:.1f}",
            ]
        )
    return f"<table>{_head(_REQUEST)}<tbody>{_rows(rows)}</tbody></table>"


def _rows(rows: Iterable[list[str]], *, numbers: bool = False) -> str:
    """Rows of cells that are HTML already; with ``numbers`` all but the first are aligned at the right."""
    later = "<td class='n'>" if numbers else "<td>"
    return "\n".join(f"<tr><td>{f'</td>{later}'.join(cells)}</td></tr>" for cells in rows)


def _head(titles: Iterable[str]) -> str:
    return f"<thead><tr>{''.join(f'<th>{title}</th>' for title in titles)}</tr></thead>"


def _values(report: AuditReport, key: str) -> str:
    return escape("; ".join(f"{name}: {number(figures[key], 3)}" for name, figures in report.models))


_SPLITS = {"train": "from training", "val": "from validation", "test": "from testing"}
_PAIRS = {"test": "held back for testing", "forgotten": "forgotten, from training"}
_USEFULNESS = ("auroc", "auroc_or", "auroc_and", "recall@20", "ndcg@20")
_CLOSENESS = (
    *("Pairs", "original", "new graph only", "unlearned", "between retrained"),
    *("left of the original's", "left of the new graph's"),
)
_REQUEST = ("Digest of the request", "Time", "Interactions", "People erased", "Items erased", "Seconds")
_GOAL = (
    "The goal is the green band: within a hundredth of what the attacker gets from models that never saw these pairs."
)
_NO_GOAL = "What a model that never saw these pairs would give is not known: none was given to this audit."
_LIKED = "a pair that was liked above one that was not"
_CHOSEN = "an item that a person has chosen above one drawn at random for the same person"
_RANKS = "This model ranks, so these are no chances of anything; only compare them with each other."
_DISTANCE = (
    "Every model's answers, between 0 and 1, are compared with those of the retrained models; the bars are the average "
    "difference. A model that has forgotten has a low bar."
)
_FLOOR = (
    "Two retrained models differ too, because training has an element of chance: by the dashed line. No model needs to "
    "be nearer than that, unless it was paired with the retrained ones."
)
_NO_FLOOR = "How much of the difference is chance in training is not known: that takes two retrained models."
_LEFT = (
    "The last columns say which share of the distance to the retrained models is left: 100% is having done nothing, 0% "
    "having retrained, and above 100% the model has moved away. The very last compares with what removing the "
    "forgotten from the network alone would leave."
)
