"""What one worker does: an original, the models it is compared with, and one method after another."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time

from averages import keep_scores
from measure import Probe, View, measure
from methods.interface import Method
from methods.partial import PartialRetraining
from plan import ALL_METHODS, Job, by_deletion
from protocol import Deletion, Ratings
from recipes import Scorer, Trained
from rows import Row, key_of, peak_memory, provenance, reset_peak_memory, resident_memory
from store import Store

from lightning_ifru import UnlearningRequest

#: Free retraining takes seeds that nothing else has.
_FREE = 2000


@dataclass(frozen=True)
class Setting:
    """What all jobs of a run share.

    Attributes:
        ratings: the data.
        folder: where rows, models and scores are kept.
        workers: processes at work, as a row says.
    """

    ratings: Ratings
    folder: Path
    workers: int


@dataclass(frozen=True)
class Event:
    """What a worker has to say: what it does now, a finished row, or what has failed."""

    doing: str = ""
    row: Row | None = None
    failed: str = ""


@dataclass(frozen=True)
class _Case:
    """One original and one deletion, with everything that methods are compared with."""

    original: Trained
    request: UnlearningRequest
    probe: Probe
    before: View
    swapped: View
    paired: View
    free: list[View]
    seconds: dict[str, float]


def work(job: Job, setting: Setting) -> Iterator[Event]:
    """Run the tasks of a job, and tell as it goes."""
    store = Store(setting.folder / "models", setting.ratings)
    prepared: dict[str, tuple[Method, Scorer, float]] = {}
    original: Trained | None = None
    for deletion, tasks in by_deletion(job):
        where = f"{job.name}, {deletion.name}"
        yield Event(f"{where}: training")
        references = key_of(of=sorted(task["key"] for task in tasks))
        try:
            # What is planted in the data is the same for all deletions of a job, and so is the original.
            original = original or store.trained(job.recipe, deletion, job.seed, retrained=False)
            case = _case(original, deletion, store, tasks[0]["settings"]["retraining_seeds"])
            keep_scores(setting.folder, references, original=case.before, swapped=case.swapped, paired=case.paired)
        except Exception:  # nor must a deletion take other deletions with it
            yield Event(failed=f"{where}, before any method: {traceback.format_exc()}")
            continue
        for task in tasks:
            name = task["method"]
            yield Event(f"{where}: {name}")
            try:
                if name not in prepared:
                    prepared[name] = _prepare(name, original)
                row = _run(task, case, *prepared[name], setting)
                row["references"] = references
            except Exception:  # a method that fails must not take the others with it
                yield Event(failed=f"{where}, {name}: {traceback.format_exc()}")
            else:
                yield Event(row=row)


def _case(original: Trained, deletion: Deletion, store: Store, free_seeds: int) -> _Case:
    paired = store.trained(original.recipe, deletion, original.seed, retrained=True)
    free = [store.trained(original.recipe, deletion, _FREE + k, retrained=True) for k in range(free_seeds)]
    module, data = original.copy()
    request = store.ratings.request(deletion, data)
    data.forget(request)
    probe = Probe.of(data, data.removal(), store.ratings.settings.seed)
    return _Case(
        original,
        request,
        probe,
        before=probe.view(original.scorer),
        swapped=probe.view(Scorer.of(module, paired.data)),
        paired=probe.view(paired.scorer),
        free=[probe.view(model.scorer) for model in free],
        seconds={"original": original.seconds, "retraining": paired.seconds},
    )


def _prepare(name: str, original: Trained) -> tuple[Method, Scorer, float]:
    method, since = ALL_METHODS[name](), perf_counter()
    scorer = method.prepare(original)
    return method, scorer, perf_counter() - since


def _run(task: Row, case: _Case, method: Method, start: Scorer, preparation: float, setting: Setting) -> Row:
    """Let a method forget, and measure it."""
    reset_peak_memory()
    resident, since = resident_memory(), process_time()
    forgotten = method.forget(case.original, case.request)
    cpu, peak = process_time() - since, peak_memory()
    after = case.probe.view(forgotten.scorer)
    before, swapped, paired, own = case.before, case.swapped, case.paired, dict[str, View]()
    if isinstance(method, PartialRetraining):
        # It trains models of its own, which only its own retraining says what to expect of. How good they are still is
        # to be compared with the one model that all others are.
        before, swapped = case.probe.view(start), None
        paired = replace(case.paired, scores=case.probe.view(method.again(case.original, case.request)).scores, h=None)
        own = {"original": before, "paired": paired}
    keep_scores(setting.folder, task["key"], unlearned=after, **own)
    return {
        **task,
        **provenance(setting.workers),
        "peak_memory_mb": peak,
        "memory_before_mb": resident,
        # Beside the method's total: of the processor, which a busy machine lengthens far less (reading the data for the
        # copy included), what came before the request, and what the method is compared with.
        "seconds": {
            **forgotten.seconds,
            "cpu": cpu,
            "prepare": preparation,
            **{f"of_{name}": value for name, value in case.seconds.items()},
        },
        "details": dict(forgotten.details),
        "forgotten": len(case.probe.groups["forgotten"][0]),
        "metrics": measure(after, before, swapped, paired, case.free),
    }
