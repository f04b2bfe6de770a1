"""The classes against their functions: one update or many, one process or two, nothing added or all of it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import distributed
from torch.multiprocessing import start_processes
from torchmetrics import Metric

from lightning_ifru import metrics
from lightning_ifru.errors import UnlearningError


@dataclass(frozen=True)
class Case:
    """A class, the value of the function on everything, and everything in three parts of different size."""

    make: Callable
    wanted: object
    parts: list
    tolerance: float = 1e-12


def draw(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def split(values, dim):
    """A tensor, or a dictionary of three, in three parts."""
    if isinstance(values, dict):
        return [{name: value} for name, value in values.items()]
    return values.tensor_split([values.shape[dim] * 3 // 7, values.shape[dim] * 5 // 7], dim)


def case(make, function, *inputs, dim=-1, tolerance=1e-12):
    parts = [*zip(*(split(values, dim) for values in inputs), strict=True)]
    return Case(make, function(*inputs), parts, tolerance)


def ranked(make):
    """PyG's metrics of seven users, who are numbered anew in every part."""
    top, item = draw(7, 9, seed=1).argsort(1)[:, :4], draw(7, 9, seed=2).argsort(1)[:, :2]
    places = torch.arange(7).repeat_interleave(2)

    def numbered(rows):
        return top[rows], torch.stack([places[: 2 * len(rows)], item[rows].flatten()])

    parts = [numbered(rows) for rows in split(torch.arange(7), 0)]
    whole = make()
    whole.update(*numbered(torch.arange(7)))
    return Case(make, whole.compute(), parts, tolerance=1e-6)


def cases():
    seeds, masks = draw(3, 4, 70, seed=3), draw(3, 70, seed=4) > 0
    weights = [{name: draw(5, seed=seed + at) for at, name in enumerate("abc")} for seed in (5, 8)]
    lists = draw(2, 14, 12, seed=6).argsort(2)[:, :, :5]
    listed = [
        case(metrics.ScoreDistance, metrics.score_distance, *seeds[:2, 0]),
        case(metrics.NoiseFloor, metrics.noise_floor, seeds[0]),
        case(metrics.CompletenessRatio, metrics.completeness_ratio, *seeds[:, 0]),
        case(metrics.ChangeCosine, metrics.change_cosine, *seeds),
        case(metrics.ParameterDistance, metrics.parameter_distance, *weights),
        case(metrics.EmbeddingDistance, metrics.embedding_distance, *seeds[:2, 0].view(2, 14, 5), dim=0),
        case(metrics.AffectedAUROC, metrics.affected_auroc, seeds[0, 0], *masks),
        case(metrics.MembershipAUROC, metrics.membership_auroc, seeds[0, 0] + 1, seeds[1, 0]),
        case(metrics.TopKOverlap, metrics.topk_overlap, *lists, dim=0),
        ranked(lambda: metrics.LinkPredRecall(4)),
        ranked(lambda: metrics.LinkPredNDCG(4)),
    ]
    return {type(each.make()).__name__: each for each in listed}


CASES = cases()


def accumulate(each, parts):
    metric = each.make()
    for part in parts:
        metric.update(*part)
    return metric


def value(each, wanted=None):
    """The case's number or numbers, as something that others may be compared with."""
    wanted = each.wanted if wanted is None else wanted
    if isinstance(wanted, dict):
        return {name: pytest.approx(some, abs=each.tolerance) for name, some in wanted.items()}
    return pytest.approx(float(wanted), abs=each.tolerance)


def test_every_class_has_a_case():
    public = {name for name in metrics.__all__ if isinstance(getattr(metrics, name), type)}
    assert {name for name in public if issubclass(getattr(metrics, name), Metric)} == {*CASES}


@pytest.fixture(params=[*CASES])
def each(request):
    return CASES[request.param]


def test_updates_by_parts_are_one_update(each):
    assert accumulate(each, each.parts).compute() == value(each)
    assert accumulate(each, each.parts[::-1]).compute() == value(each)
    assert accumulate(each, each.parts[:1]).compute() != value(each)


def test_a_reset_metric_remembers_nothing(each):
    metric = accumulate(each, each.parts[:1])
    metric.reset()
    for part in each.parts:
        metric.update(*part)
    assert metric.compute() == value(each)


def test_a_metric_is_carried_in_a_checkpoint(each):
    first = accumulate(each, each.parts[:2])
    first.persistent(True)
    second = each.make()
    second.persistent(True)
    second.load_state_dict(first.state_dict())
    second.update(*each.parts[2])
    assert second.compute() == value(each)


# ---------------------------------------------------------------- two processes


def process(rank, folder):
    """What one of two processes finds: with a share of the parts each, and with all of them in the first process."""
    torch.set_num_threads(1)  # a forked process has none of the threads that its parent computes with
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for name, each in CASES.items():
        for share, parts in (("divided", each.parts[rank::2]), ("lopsided", each.parts if rank == 0 else [])):
            metric = accumulate(each, parts)
            found[name, share] = metric.compute()
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    # Forking spares both processes the imports, which take much longer than all that is tested.
    method = "fork" if sys.platform == "linux" else "spawn"
    start_processes(process, args=(str(folder),), nprocs=2, start_method=method)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("share", ["divided", "lopsided"])
@pytest.mark.parametrize("name", [*CASES])
def test_two_processes_find_what_one_does(processes, name, share):
    for found in processes:
        assert found[name, share] == value(CASES[name])


# ---------------------------------------------------------------- refusals


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("LinkPredRecall", "LinkPredNDCG")])
def test_without_an_update_there_is_nothing_to_compute(name):
    if name == "AffectedAUROC":
        assert CASES[name].make().compute() == dict.fromkeys(["all", "or", "and"])
    else:
        with pytest.raises(UnlearningError):
            CASES[name].make().compute()


def test_too_few_pairs_for_an_attack_are_refused_of_all_updates_together():
    metric, some = metrics.MembershipAUROC(), torch.arange(19.0)
    metric.update(some, some)
    with pytest.raises(UnlearningError, match="20 of each are needed"):
        metric.compute()
    metric.update(some[:1], some[:1])
    assert float(metric.compute()) == 0.5


def test_masks_that_do_not_fit_are_refused_with_their_update():
    metric, mask = metrics.AffectedAUROC(), torch.ones(2, dtype=torch.bool)
    with pytest.raises(UnlearningError, match="positive"):
        metric.update(torch.ones(3), mask, mask, mask)
