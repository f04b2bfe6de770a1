"""The audit: what a model still knows of what it was to forget, measured, and written down."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_ifru.audit_evidence import Evidence, Exhibit, edges
from lightning_ifru.audit_questions import Answers, Questions
from lightning_ifru.audit_report import Attack, AuditReport, Closeness
from lightning_ifru.audit_verdict import MIN_PEOPLE, measured
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import DataError
from lightning_ifru.metrics import (
    change_cosine,
    completeness_ratio,
    embedding_distance,
    noise_floor,
    parameter_distance,
    score_distance,
    topk_overlap,
)
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.node_rows import node_kinds
from lightning_ifru.pairs import check_pair
from lightning_ifru.splits import SPLITS
from lightning_ifru.versions import versions


def audit(
    trainer: lightning.Trainer,
    datamodule: InteractionDataModule | None = None,
    *,
    model: lightning.LightningModule | None = None,
    original: str | Path,
    unlearned: str | Path,
    retrained: str | Path | Sequence[str | Path] = (),
    paired: bool = False,
    output: str | Path | None = None,
    weights_only: bool | None = None,
) -> AuditReport:
    """Measure what an unlearned model still knows of the forgotten, against the original and retrained models.

    The forgotten are the interactions that the original checkpoint's data have and the unlearned one's have not. Every
    model is asked on the graph of its own data; neither ``model`` nor ``datamodule`` is changed.

    Args:
        trainer: gives the device and loads the checkpoints.
        datamodule: the source with the forgotten still in it, read anew; by default that of the trainer.
        model: a model of the checkpoints' class and sizes, whatever its weights; by default that of the trainer.
        original: checkpoint from before the unlearning.
        unlearned: checkpoint from after it.
        retrained: checkpoints of models trained without the forgotten, on the same positions and split:
            ``data.forget(request)``, ``data.commit(data.removal())``, then fit. Two or more give a noise floor; of one
            the path will do.
        paired: the retrained models have the original's initialisation, order of batches and negatives.
        output: where ``audit.html`` and ``audit.json`` are written: an existing folder, or the two paths without their
            endings. All or nothing: after an error, what was there before is as it was.
        weights_only: passed on to Lightning's loading of the checkpoints; ``False`` allows any Python object in them.

    Returns:
        The numbers, with a verdict and with what they do not prove.

    Raises:
        MisconfigurationException: no model or no data, or a trainer with several processes.
        UnlearningError: the checkpoints fit neither each other nor the data, there are too few forgotten pairs for an
            attack, a score is not finite, or nothing can be written to ``output``.
    """
    if trainer.world_size > 1:
        raise MisconfigurationException(
            f"audit got a trainer with {trainer.world_size} processes; it runs in one: Trainer(devices=1, "
            "num_nodes=1), on the command line --trainer.devices 1."
        )
    found = model if model is not None else trainer.lightning_module
    module, data = check_pair(found, datamodule or getattr(trainer, "datamodule", None), "audit")
    retrained = [retrained] if isinstance(retrained, str | Path) else retrained
    targets = {} if output is None else _targets(output)
    # Never the model itself: its weights would be gone, and Lightning would no longer know which it has loaded.
    module = copy.deepcopy(module)
    module.configure_model()
    module.to(trainer.strategy.root_device).eval()
    roles = ["original", "unlearned", *(f"retrained {k + 1}" for k in range(len(retrained)))]
    exhibits = [
        Exhibit.load(role, path, trainer, data, module, weights_only)
        for role, path in zip(roles, [original, unlearned, *retrained], strict=True)
    ]
    evidence = Evidence.gather(exhibits[0], exhibits[1], exhibits[2:], data.table)
    report = _measure(evidence, module, data, paired)
    if targets:
        _write({targets["html"]: report.to_html(), targets["json"]: report.to_json() + "\n"})
    return report


def _measure(evidence: Evidence, module: IFRUMixin, data: InteractionDataModule, paired: bool) -> AuditReport:
    before, after = evidence.before, evidence.after
    questions = Questions.of(before, after, evidence.forgotten, data.seed, module.device)
    old, new = (edges(table).to(module.device) for table in (before, after))

    def ask(exhibit: Exhibit, graph: Tensor, name: str) -> Answers:
        exhibit.fill(module)
        return questions.ask(module, graph, name)

    original = ask(evidence.original, old, "original")
    swapped = ask(evidence.original, new, "graph-swapped original")
    unlearned = ask(evidence.unlearned, new, "unlearned")
    retrained = [ask(exhibit, new, exhibit.role) for exhibit in evidence.retrained]
    closeness, parameters, embeddings = {}, {}, {}
    for pairs in ("test", "forgotten") if retrained else ():
        if len(getattr(original, pairs)):
            sides = {"original": original, "graph_swapped": swapped, "unlearned": unlearned}
            logits = {name: getattr(answers, pairs) for name, answers in sides.items()}
            closeness[pairs] = _closeness(logits, torch.stack([getattr(one, pairs) for one in retrained]), paired)
    if retrained and paired:
        kept = evidence.kept
        kinds = node_kinds(module, module.node_parameters, len(before.users), len(before.items))
        rows = {name: kept[kinds[name]] if name in kinds else ... for name, _ in module.named_parameters()}
        for exhibit, answers in ((evidence.original, original), (evidence.unlearned, unlearned)):
            mine, *others = (
                {name: one.weights[name].cpu()[index] for name, index in rows.items()}
                for one in (exhibit, *evidence.retrained)
            )
            parameters[exhibit.role] = _mean(parameter_distance(mine, other) for other in others)
            embeddings[exhibit.role] = _mean(
                embedding_distance(answers.h.cpu()[kept["node"]], other.h.cpu()[kept["node"]]) for other in retrained
            )
    return AuditReport(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        model=type(module).__name__,
        versions=versions(),
        files=[{"role": e.role, "file": e.file, "sha256": e.sha256} for e in evidence.exhibits],
        requests=[{name: entry[name] for name in _OF_REQUESTS if name in entry} for entry in evidence.requests],
        counts={
            "forgotten": int(evidence.forgotten.sum()),
            **{name: int((evidence.forgotten & before.rows(name)).sum()) for name in SPLITS},
        },
        erased={name: len(rows) for name, rows in evidence.erased.items()},
        attack=_attack(questions, original, swapped, unlearned, retrained),
        implicit=not before.labelled,
        original=original.figures,
        graph_swapped=swapped.figures,
        unlearned=unlearned.figures,
        retrained=[one.figures for one in retrained],
        paired=paired,
        closeness=closeness,
        overlap=_overlap(original, unlearned, retrained) if retrained and len(questions.users) else {},
        parameter_distance=parameters,
        embedding_distance=embeddings,
    )


def _closeness(logits: dict[str, Tensor], retrained: Tensor, paired: bool) -> Closeness:
    """Compare the logits ``[n]`` of each side with those of retrained models ``[m, n]``."""
    original, unlearned = logits["original"], logits["unlearned"]
    ratios = [float(completeness_ratio(unlearned, original, one)) for one in retrained]
    cosine = None
    if paired and not torch.equal(unlearned, original):  # where nothing was changed, the change has no direction
        cosine = float(change_cosine(unlearned.expand_as(retrained), original.expand_as(retrained), retrained))
    return Closeness(
        pairs=len(original),
        distance={name: _mean(score_distance(side, one) for one in retrained) for name, side in logits.items()},
        ratios=ratios,
        ratio=sum(ratios) / len(ratios),
        ratio_to_graph_swapped=_mean(completeness_ratio(unlearned, logits["graph_swapped"], one) for one in retrained),
        noise_floor=float(noise_floor(retrained)) if len(retrained) > 1 else None,
        among=[float(score_distance(one, other)) for one, other in combinations(retrained, 2)],
        cosine=cosine,
    )


def _attack(
    questions: Questions, original: Answers, swapped: Answers, unlearned: Answers, retrained: Sequence[Answers]
) -> Attack:
    """Say how far the attack's figures depend on whose pairs they are of."""
    models = {"original": original, "new graph only": swapped, "unlearned": unlearned}
    models |= {f"retrained {k}": answers for k, answers in enumerate(retrained, start=1)}
    quantiles = torch.tensor([0.025, 0.975], dtype=torch.float64)
    errors = {}
    for name in ("original", "unlearned") if retrained else ():
        mine = measured(models[name].figures, "membership_auroc")
        nearest = min(retrained, key=lambda other: abs(measured(other.figures, "membership_auroc") - mine))
        errors[name] = 1.96 * float((models[name].attacks - nearest.attacks).std())
    users = len(questions.members.user.unique())
    known = models if users >= MIN_PEOPLE else {}
    return Attack(
        pairs=len(questions.members),
        users=users,
        intervals={name: answers.attacks.quantile(quantiles).tolist() for name, answers in known.items()},
        gap_errors=errors,
    )


def _overlap(original: Answers, unlearned: Answers, retrained: Sequence[Answers]) -> dict[str, float | None]:
    among = [topk_overlap(one.top, other.top) for one, other in combinations(retrained, 2)]
    return {
        "original": _mean(topk_overlap(original.top, one.top) for one in retrained),
        "unlearned": _mean(topk_overlap(unlearned.top, one.top) for one in retrained),
        "retrained": _mean(among) if among else None,
    }


def _mean(values: Iterable[Tensor]) -> float:
    return float(torch.stack(list(values)).mean())


#: What of a ledger's entry goes into the report: nothing but what may be attached to the request.
_OF_REQUESTS = ("digest", "time", "num_forgotten", "num_users_erased", "num_items_erased", "seconds")


def _targets(output: str | Path) -> dict[str, Path]:
    """Return the paths to write by kind, after making sure that they can be written."""
    stem = Path(output) / "audit" if Path(output).is_dir() else Path(output)
    if stem.suffix in (".html", ".json"):
        stem = stem.with_suffix("")
    targets = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in ("html", "json")}
    blocked = next((path for path in targets.values() if path.is_dir()), None)
    if blocked is not None or not os.access(stem.parent, os.W_OK | os.X_OK):
        raise DataError(
            f"no report can be written to {blocked or stem.parent}; give as output an existing folder in which files "
            "can be written, or a path in one."
        )
    return targets


def _write(contents: dict[Path, str]) -> None:
    """Write all files or none: beside their places first, and then into them."""
    parent = next(iter(contents)).parent
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".audit-") as folder:
            waiting = {path: Path(folder) / path.name for path in contents}
            for path, place in waiting.items():
                place.write_text(contents[path], encoding="utf-8")
            for path, place in waiting.items():
                os.replace(place, path)
    except OSError as error:
        raise DataError(
            f"no report can be written to {parent} ({error.strerror}); give as output an existing folder in which "
            "files can be written, or a path in one."
        ) from error
