"""The callback that carries the method on a Trainer, applies requests, and remembers what was forgotten."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch._dynamo import OptimizedModule

from lightning_ifru.checkpoints import older_checkpoints, stand_for, warn_of
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.influence import IFRU
from lightning_ifru.keys import digest_key
from lightning_ifru.ledger import Entry, new_entry
from lightning_ifru.locality import WarmStates
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.processes import check_same, ranks_of, together
from lightning_ifru.progress import Phases, shown_phases
from lightning_ifru.ranks import Ranks
from lightning_ifru.report import UnlearningReport
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.setups import check_setup, evaluation_mode, plainly
from lightning_ifru.target import Target
from lightning_ifru.transaction import Transaction, all_or_nothing
from lightning_ifru.unlearning import Unlearning


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

    Attributes:
        report: of the last unlearning, ``None`` before the first; no part of a checkpoint.

    Raises:
        MisconfigurationException: the method is no ``IFRU``.

    Example:
        >>> IFRUCallback(IFRU(max_steps=2)).state_dict()
        {'ledger': []}
    """

    def __init__(
        self,
        method: IFRU | None = None,
        request: UnlearningRequest | str | Path | None = None,
        evaluate: bool = True,
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
        self.method = IFRU() if method is None else method
        self.request = request
        self.evaluate = evaluate
        self.ledger: list[Entry] = []
        self.report: UnlearningReport | None = None
        self._states = WarmStates()

    def state_dict(self) -> dict[str, Any]:
        """Return the ledger."""
        return {"ledger": [dict(entry) for entry in self.ledger]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's ledger, keeping what was forgotten in this process since."""
        loaded = [dict(entry) for entry in state_dict["ledger"]]
        self.ledger = loaded + [entry for entry in self.ledger if entry not in loaded]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse before training what could not be forgotten after it."""
        self._states.forget()
        if self.request is None:
            return
        module, data = check_pair(pl_module, getattr(trainer, "datamodule", None))
        check_setup(trainer, module)
        with together(trainer):
            self.request = as_request(self.request)
            data.table.plan(self.request if data.pending is None else data.pending | self.request)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Apply :attr:`request`, once."""
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
        if report.residual_before and not report.steps:
            rank_zero_warn(
                "No step lowered the residual: the data and the graph are without the forgotten, the parameters are as "
                "they were, apart from rows of the erased, which are drawn anew; retrain, or train further before."
            )
        warn_of(report.older_checkpoints)
        self.report = report
        return report

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

        ranks, laps = ranks_of(trainer), [time.perf_counter()]
        phases.begin("preparing")
        with plainly(trainer, module), evaluation_mode(module):
            check_same(ranks, module, data, self.method)
            target = None if dry_run else Target.of(trainer, ranks, transaction, output, self.ledger)
            if not len(data.removal().positions):
                return self._nothing_left(trainer, ranks, data, target, laps[0])
            unlearning = Unlearning.of(module, data, self.method, ranks, self._states)
            if target is None:
                phases.begin("estimating")
                return ranks.first(unlearning.preview())
            target.warn_of_later(self.ledger)
            laps.append(time.perf_counter())
            phases.begin("solving", steps=sum(unlearning.most))
            update = unlearning.solve(step)
            laps.append(time.perf_counter())
            phases.begin("evaluating" if self.evaluate else "applying")
            report = unlearning.commit(update, step, evaluate=self.evaluate)
        laps.append(time.perf_counter())
        phases.begin("writing")
        seconds = _seconds(laps, update.seconds, report.seconds)
        report = ranks.first(replace(report, seconds=seconds | {"total": sum(seconds.values())}))
        self.ledger = [*self.ledger, ranks.first(new_entry(report, self.method, self.ledger, target.before))]
        # Adam's moments are averages of the gradients of what was forgotten.
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
        if target.path is not None:
            older = ranks.first(older_checkpoints(trainer, target.path))
            report = replace(report, checkpoint=str(target.path), older_checkpoints=older)
            stand_for(trainer, target.path)
        target.write()
        report = ranks.first(_timed(report, seconds, laps[-1]))
        for logger in trainer.loggers:
            logger.log_metrics(report.scalars(), step=trainer.global_step)
            logger.save()
        target.publish(self.ledger)
        return ranks.first(_timed(report, seconds, laps[-1]))

    def _nothing_left(
        self,
        trainer: lightning.Trainer,
        ranks: Ranks,
        data: InteractionDataModule,
        target: Target | None,
        since: float,
    ) -> UnlearningReport:
        """All that is staged was forgotten before: change nothing, and say so."""
        removal, request = data.removal(), data.pending
        assert request is not None  # the removal was planned from it
        report = UnlearningReport(
            digest=request.digest(digest_key()),
            num_forgotten=0,
            forgotten_by_split=removal.counts,
            num_users_erased=0,
            num_items_erased=0,
            already_absent=removal.absent,
            dry_run=target is None,
        )
        if target is not None:
            data.discard()
            target.leave(self.ledger)
            if target.loaded is not None:
                older = older_checkpoints(trainer, target.loaded)
                report = replace(report, checkpoint=str(target.loaded), older_checkpoints=older)
        rank_zero_info("All of the request was forgotten before; nothing was changed, and nothing is written.")
        return ranks.first(replace(report, seconds={"total": time.perf_counter() - since}))


def _timed(report: UnlearningReport, seconds: dict[str, float], since: float) -> UnlearningReport:
    """The report with the time that the checkpoint has taken until now."""
    seconds = seconds | {"checkpoint": time.perf_counter() - since}
    return replace(report, seconds=seconds | {"total": sum(seconds.values())})


def _seconds(laps: list[float], solving: dict[str, float], measuring: dict[str, float]) -> dict[str, float]:
    """The seconds of every phase, none left out: what of the second lap is no solving is the checks around it."""
    prepare, solve, commit = (end - begin for begin, end in itertools.pairwise(laps))
    check, apply = solve - sum(solving.values()), commit - sum(measuring.values())
    return {"prepare": prepare, **solving, "check": check, **measuring, "apply": apply}


def check_pair(module: Any, data: Any, asking: str = "unlearn") -> tuple[IFRUMixin, InteractionDataModule]:
    """Return a module, without ``torch.compile`` around it, and its data if they can forget.

    ``asking`` is who wants to know.

    Raises:
        MisconfigurationException: they cannot; the message says what would.
    """
    if isinstance(module, OptimizedModule):
        module = module._orig_mod
    if not isinstance(module, IFRUMixin):
        raise MisconfigurationException(
            f"{asking} got {type(module).__name__} as model; wanted a LightningModule with IFRUMixin: "
            "class MyModel(IFRUMixin, LightningModule)."
        )
    if not isinstance(data, InteractionDataModule):
        raise MisconfigurationException(
            f"{asking} got {type(data).__name__} as datamodule; wanted the InteractionDataModule that the model was "
            "trained on."
        )
    return module, data


def as_request(request: UnlearningRequest | str | Path) -> UnlearningRequest:
    """Return a request, read from its file if it is a path."""
    return UnlearningRequest.from_file(request) if isinstance(request, (str, Path)) else request
