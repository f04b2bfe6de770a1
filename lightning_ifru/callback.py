"""The callback that carries the method on a Trainer, applies requests, and remembers what was forgotten."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers.utilities import _log_hyperparams
from lightning.pytorch.utilities import rank_zero_info

from lightning_ifru.assessment import Assessment, of_request, recalled, retrained
from lightning_ifru.beginning import Beginning
from lightning_ifru.checkpoints import older_checkpoints, stand_for, warn_of
from lightning_ifru.clock import ticks
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import IncompleteError
from lightning_ifru.influence import IFRU
from lightning_ifru.ledger import Entry, entries_of, new_entry
from lightning_ifru.locality import WarmStates
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.node_buffers import clear_rows
from lightning_ifru.notices import warn
from lightning_ifru.pairs import check_pair
from lightning_ifru.processes import check_same, ranks_of, together
from lightning_ifru.progress import Phases, shown_phases
from lightning_ifru.ranks import Ranks
from lightning_ifru.report import UnlearningReport
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.retraining import check_retrainable, train_anew
from lightning_ifru.setups import check_setup, evaluation_mode, plainly
from lightning_ifru.target import Target
from lightning_ifru.transaction import Transaction, all_or_nothing
from lightning_ifru.unlearning import Unlearning
from lightning_ifru.verdict import ADVISED, Drift, Tolerance


class IFRUCallback(lightning.Callback):
    """Carries an unlearning method on a ``Trainer``: ``Trainer(callbacks=[IFRUCallback(IFRU())])``.

    With it on the trainer, ``trainer.unlearn(datamodule)`` applies what ``datamodule.forget`` has staged. With a
    ``request`` it does so by itself when fitting ends. Its state in the checkpoint is the ledger: for each unlearning
    a keyed digest of the request, counts, time and outcome, and no id.

    Args:
        method: the method and its hyper-parameters.
        request: applied when fitting ends: a request, or the path of a request file. Read and checked when fitting
            starts.
        evaluate: whether to measure what unlearning did to recommendations and to the forgotten pairs. All users'
            recommendations before and after can take far longer than one person's erasure; without, the report lacks
            metrics, recommendations changed and scores of the forgotten, and says so.
        tolerance: what an unlearning may leave before retraining is advised, and by how much loss and metrics may get
            worse before all is undone.
        on_incomplete: what to do where retraining is advised. ``"warn"``: say so. ``"raise"``: undo all and raise;
            the request stays staged. ``"retrain"``: draw the weights anew and fit again, from epoch 0 with the
            trainer's own limits, on the data without the forgotten; see
            :func:`~lightning_ifru.retraining.train_anew`.

    Attributes:
        report: of the last unlearning, ``None`` before the first; no part of a checkpoint.

    Raises:
        MisconfigurationException: an argument is none of these, or a fit would have to begin inside of another.

    Example:
        >>> IFRUCallback(IFRU(max_steps=2)).state_dict()
        {'ledger': []}
    """

    def __init__(
        self,
        method: IFRU | None = None,
        request: UnlearningRequest | str | Path | None = None,
        evaluate: bool = True,
        tolerance: Tolerance | None = None,
        on_incomplete: Literal["warn", "raise", "retrain"] = "warn",
    ) -> None:
        if not (method is None or isinstance(method, IFRU)):
            raise MisconfigurationException(
                f"IFRUCallback got {method!r} as method; wanted an IFRU: IFRUCallback(IFRU(...), request=...)."
            )
        if not isinstance(evaluate, bool):
            raise MisconfigurationException(
                f"IFRUCallback got evaluate={evaluate!r}; wanted True or False: whether to measure the model before "
                "and after."
            )
        if not (tolerance is None or isinstance(tolerance, Tolerance)):
            raise MisconfigurationException(
                f"IFRUCallback got {tolerance!r} as tolerance; wanted a Tolerance: IFRUCallback(tolerance=Tolerance())."
            )
        if on_incomplete not in ("warn", "raise", "retrain"):
            raise MisconfigurationException(
                f"IFRUCallback got on_incomplete={on_incomplete!r}; wanted 'warn', 'raise' or 'retrain'."
            )
        if on_incomplete == "retrain" and request is not None:
            raise MisconfigurationException(
                "IFRUCallback got request= and on_incomplete='retrain'; wanted one of them, for a fit cannot begin "
                "inside of another: after it, trainer.unlearn(data, request=...) can retrain."
            )
        self.method = IFRU() if method is None else method
        self.tolerance = Tolerance() if tolerance is None else tolerance
        self.on_incomplete = on_incomplete
        self.request = request
        self.evaluate = evaluate
        self.ledger: list[Entry] = []
        self.report: UnlearningReport | None = None
        self._states = WarmStates()
        self._beginning = Beginning()
        self._written: str | None = None  # the hash of the file that has the model as it is
        self._undone: Target | None = None  # where to write once the model has been trained anew

    def state_dict(self) -> dict[str, Any]:
        """Return the ledger, and the id of its last entry where the model was trained from the beginning since."""
        return {"ledger": [dict(entry) for entry in self.ledger], **self._beginning.state(self.ledger)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's ledger: what it does not know of was of other data, or it would be refused."""
        beginning = Beginning.of(state_dict)
        self.ledger = entries_of(state_dict)
        self._beginning, self._written = beginning, None

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take note that a checkpoint's weights have taken the place of those that were written."""
        self._written = None if trainer.ckpt_path else self._written

    on_test_start = on_predict_start = on_validation_start

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse before training what could not be forgotten after it."""
        self._states.forget()
        if self.request is not None:
            module, data = check_pair(pl_module, getattr(trainer, "datamodule", None))
            check_setup(trainer, module)
            with together(trainer):
                self.request = as_request(self.request)
                data.table.plan(self.request if data.pending is None else data.pending | self.request)
        self._beginning, self._written = self._beginning.fit_starts(trainer, self.ledger), None

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Take note that a fit from epoch 0 trains, for its checkpoints say so."""
        self._beginning = self._beginning.trains(trainer)

    def on_exception(self, *_: Any) -> None:
        """Take note that a fit has not come to its end."""
        self._beginning = self._beginning.breaks_off()

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Apply :attr:`request`, once."""
        self._beginning = self._beginning.fit_ends()
        if self.request is None:
            return
        module, data = check_pair(pl_module, getattr(trainer, "datamodule", None))
        device = module.device  # Lightning has taken the model off the accelerator by now
        with all_or_nothing(trainer, self, module, data) as transaction, together(trainer):
            data.forget(as_request(self.request))
            self.request = None
            module.to(trainer.strategy.root_device)
            try:
                self.unlearn(trainer, module, data, transaction)
            finally:
                module.to(device)

    def unlearn(
        self,
        trainer: lightning.Trainer,
        module: IFRUMixin,
        data: InteractionDataModule,
        transaction: Transaction,
        output: Path | None = None,
        dry_run: bool = False,
    ) -> UnlearningReport:
        """Apply the staged request of ``data`` to ``module``, inside of a running trainer and :func:`all_or_nothing`.

        On all ranks, :func:`~lightning_ifru.processes.together`. Use ``trainer.unlearn``, which sets up devices, loads
        checkpoints and keeps others out of the folder of ``output``.
        """
        with shown_phases(trainer) as phases:
            report = self._unlearn(trainer, module, data, transaction, output, dry_run, phases)
        if self._undone is None:
            self._tell(report)
        return report

    def retrains(self) -> bool:
        """Return whether the last unlearning has changed nothing, so that :meth:`retrain` follows."""
        return self._undone is not None

    def retrain(
        self, trainer: lightning.Trainer, module: IFRUMixin, data: InteractionDataModule, report: UnlearningReport
    ) -> UnlearningReport:
        """Train anew without what is staged, in place of an unlearning that was not to be trusted.

        Args:
            trainer: in which nothing runs, inside of the same :func:`all_or_nothing`.
            module: the model.
            data: the data.
            report: on that unlearning.
        """
        target, since = self._undone, ticks()
        assert target is not None  # or nothing was to be retrained
        self._undone = None
        removal = data.removal()
        data.commit(removal)
        clear_rows(module, data, removal)
        self._states.forget()
        beginning = self._beginning
        train_anew(trainer, module, data)
        self._beginning = beginning  # the model stands for the one before, whose line goes on
        seconds = report.seconds | {"retrain": ticks() - since}
        report = self._write(trainer, ranks_of(trainer), target, retrained(report), seconds)
        self._tell(report)
        return report

    def _tell(self, report: UnlearningReport) -> None:
        if report.verdict == ADVISED:
            warn(f"Retrain this model: {' '.join(report.verdict_reasons)}")
        warn_of(report.older_checkpoints)
        self.report = report

    def _unlearn(
        self,
        trainer: lightning.Trainer,
        module: IFRUMixin,
        data: InteractionDataModule,
        transaction: Transaction,
        output: Path | None,
        dry_run: bool,
        phases: Phases,
    ) -> UnlearningReport:
        def step(text: str) -> None:
            transaction.check()
            phases.step(text)

        ranks, laps = ranks_of(trainer), [ticks()]
        phases.begin("preparing")
        with plainly(trainer, module), evaluation_mode(module):
            check_same(ranks, module, data, self.method)
            place = (trainer, ranks, transaction, output, self.ledger, data.pending, self._written)
            target = None if dry_run else Target.of(*place)
            if not len(data.removal().positions):
                return self._nothing_left(trainer, ranks, data, target, laps[0])
            if self.on_incomplete == "retrain":
                check_retrainable(trainer, module)
            unlearning = Unlearning.of(module, data, self.method, ranks, self._states)
            assessment = Assessment(unlearning, self.tolerance, Drift.of(self._beginning.since(self.ledger)))
            if target is None:
                phases.begin("estimating")
                return ranks.first(assessment.preview())
            target.warn_of_later(self._beginning.own(self.ledger))
            laps.append(ticks())
            phases.begin("solving", steps=sum(unlearning.most))
            update = unlearning.solve(step)
            laps.append(ticks())
            phases.begin("evaluating" if self.evaluate else "applying")
            report = assessment.report(update, step, evaluate=self.evaluate, kept=self.on_incomplete == "warn")
            incomplete = report.verdict == ADVISED
            if incomplete and self.on_incomplete == "raise":
                raise IncompleteError(
                    f"{' '.join(report.verdict_reasons)} Nothing was changed: retrain, or choose on_incomplete='warn' "
                    "(--ifru.on_incomplete warn) or a larger Tolerance(doubt=..., removed=...) "
                    "(--ifru.tolerance.doubt, --ifru.tolerance.removed)."
                )
            if not (incomplete and self.on_incomplete == "retrain"):
                unlearning.commit(update)
        laps.append(ticks())
        seconds = _seconds(laps, update.seconds, report.seconds)
        if incomplete and self.on_incomplete == "retrain":
            self._undone = target
            return replace(report, seconds=seconds)
        phases.begin("writing")
        return self._write(trainer, ranks, target, report, seconds)

    def _write(
        self,
        trainer: lightning.Trainer,
        ranks: Ranks,
        target: Target,
        report: UnlearningReport,
        seconds: dict[str, float],
    ) -> UnlearningReport:
        """Enter what happened into the ledger, and write the checkpoint."""
        since = ticks()
        report = ranks.first(replace(report, seconds=seconds | {"total": sum(seconds.values())}))
        entry = new_entry(report, self.method, self.ledger, target.before, self._beginning.since(self.ledger))
        self.ledger, self._written = [*self.ledger, ranks.first(entry)], None  # until it is there
        # Adam's moments are averages of the gradients of what was forgotten.
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
        if target.path is not None:
            older = ranks.first(older_checkpoints(trainer, target.path, self.ledger))
            report = replace(report, checkpoint=str(target.path), older_checkpoints=older)
            stand_for(trainer, target.path)
        target.write()
        report = ranks.first(_timed(report, seconds, since))
        if getattr(trainer, "enable_autolog_hparams", True):
            _log_hyperparams(trainer)  # without the features of the erased, which loggers may write again
        for logger in trainer.loggers:
            logger.log_metrics(report.scalars(), step=trainer.global_step)
            logger.save()
        self._written = target.publish(self.ledger)
        return ranks.first(_timed(report, seconds, since))

    def _nothing_left(
        self,
        trainer: lightning.Trainer,
        ranks: Ranks,
        data: InteractionDataModule,
        target: Target | None,
        since: float,
    ) -> UnlearningReport:
        """All that is staged was forgotten before: change nothing, and say so, with the verdict if it was the last."""
        said = of_request(data, data.removal())
        report = UnlearningReport(**said, num_users_erased=0, num_items_erased=0, dry_run=target is None)
        if target is not None:
            report = recalled(report, self._beginning.since(self.ledger))
            if report.verdict == ADVISED and self.on_incomplete != "warn":
                raise IncompleteError(
                    f"All of the request was forgotten before, and retraining advised: "
                    f"{' '.join(report.verdict_reasons) or 'the ledger has no reasons.'} Nothing was changed: retrain, "
                    "or give the checkpoint from before and a new output (--ckpt_path, --output), or choose "
                    "on_incomplete='warn' (--ifru.on_incomplete warn)."
                )
            data.discard()
            target.leave(self.ledger)
            self._written = target.before
            if target.loaded is not None:
                older = older_checkpoints(trainer, target.loaded, self.ledger)
                report = replace(report, checkpoint=str(target.loaded), older_checkpoints=older)
        rank_zero_info("All of the request was forgotten before; nothing was changed, and nothing is written.")
        return ranks.first(replace(report, seconds={"total": ticks() - since}))


def _timed(report: UnlearningReport, seconds: dict[str, float], since: float) -> UnlearningReport:
    """The report with the time that the checkpoint has taken until now."""
    seconds = seconds | {"checkpoint": ticks() - since}
    return replace(report, seconds=seconds | {"total": sum(seconds.values())})


def _seconds(laps: list[float], solving: dict[str, float], measuring: dict[str, float]) -> dict[str, float]:
    """The seconds of every phase, none left out: what of the second lap is no solving is the checks around it."""
    prepare, solve, commit = (end - begin for begin, end in itertools.pairwise(laps))
    check, apply = solve - sum(solving.values()), commit - sum(measuring.values())
    return {"prepare": prepare, **solving, "check": check, **measuring, "apply": apply}


def as_request(request: UnlearningRequest | str | Path) -> UnlearningRequest:
    """Return a request, read from its file if it is a path."""
    return UnlearningRequest.from_file(request) if isinstance(request, (str, Path)) else request
