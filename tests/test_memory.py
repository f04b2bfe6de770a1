"""Memory is predicted before an unlearning begins: what it grows with, how near it is, what is said of too little."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_ifru import IFRUCallback, UnlearningError, UnlearningRequest, memory
from lightning_ifru.losses import resolve_loss
from lightning_ifru.memory import available, check_memory, demand
from lightning_ifru.objective import Objective
from lightning_ifru.ranks import Ranks

CPU = torch.device("cpu")


def recommender(nodes, width, dot_product=True, ranks=None, dtype=torch.float32):
    """An objective of ``nodes`` users and one item, and its table, which takes up no memory."""
    objective = Objective(
        encode=lambda p, _: p["w"],
        decode=lambda p, s, t: (s * t).sum(-1),
        loss=resolve_loss("bpr"),
        regularization=None,
        num_users=nodes,
        num_items=1,
        node_parameters={"w": "node"},
        dot_product=dot_product,
        chunk_size=1000,
        ranks=ranks or Ranks(),
    )
    return objective, {"w": torch.zeros((), dtype=dtype).expand(nodes + 1, width)}


SIZES = {
    "nodes": st.integers(1, 10**7),
    "width": st.integers(1, 512),
    "examples": st.integers(1, 10**8),
    "negatives": st.integers(0, 8),
    "cg_iterations": st.integers(1, 100),
}


def total(nodes, width, examples, negatives, cg_iterations, **changes):
    return demand(*recommender(nodes, width, **changes), examples, negatives, cg_iterations).total


@given(st.fixed_dictionaries(SIZES), st.sampled_from(list(SIZES)), st.integers(1, 1000), st.booleans())
def test_more_of_anything_never_needs_less(sizes, name, more, dot_product):
    larger = sizes | {name: sizes[name] + more}
    assert total(**larger, dot_product=dot_product) >= total(**sizes, dot_product=dot_product)
    if name in ("nodes", "width", "examples"):
        assert total(**larger, dot_product=dot_product) > total(**sizes, dot_product=dot_product)


@given(st.fixed_dictionaries(SIZES), st.integers(2, 16))
def test_ranks_divide_what_belongs_to_interactions(sizes, size):
    alone = demand(*recommender(sizes["nodes"], sizes["width"]), *list(sizes.values())[2:])
    shares = [
        demand(*recommender(sizes["nodes"], sizes["width"], ranks=Ranks(rank, size)), *list(sizes.values())[2:])
        for rank in range(size)
    ]
    assert sum(share.pairs for share in shares) == alone.pairs
    assert {share.vectors for share in shares} == {alone.vectors}


def test_double_precision_takes_twice_as_much_for_numbers():
    sizes = {"nodes": 1000, "width": 8, "examples": 5000, "negatives": 4, "cg_iterations": 20}
    single, double = (
        demand(*recommender(1000, 8, dtype=dtype), *list(sizes.values())[2:])
        for dtype in (torch.float32, torch.float64)
    )
    assert (double.vectors, double.block) == (2 * single.vectors, 2 * single.block)


def test_what_is_too_large_is_refused_with_figures(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 2**30)
    objective, table = recommender(10**7, 64)
    with pytest.raises(UnlearningError) as refused:
        check_memory(demand(objective, table, 10**6, 4, 20), objective, CPU)
    said = str(refused.value)
    found = re.search(r"needs about ([\d.e+]+) GiB .* for vectors .* and 1 GiB is available, ([\d.e+]+) GiB", said)
    needed, missing = (float(number) for number in found.groups())
    assert needed == pytest.approx(demand(objective, table, 10**6, 4, 20).total / 2**30, rel=1e-2)
    assert missing == pytest.approx(needed - 1, rel=1e-2)
    assert "IFRU(cg_iterations=5)" in said
    check_memory(demand(*recommender(1000, 64), 10**6, 4, 20), objective, CPU)


@pytest.mark.parametrize(
    ("sizes", "dot_product", "remedy"),
    [
        ((10, 1, 10**9, 4, 20), True, r"IFRU\(negatives=1\)"),
        ((10, 512, 10**5, 4, 20), False, r"IFRU\(chunk_size=1024\)"),
    ],
)
def test_the_largest_part_says_what_to_do(monkeypatch, sizes, dot_product, remedy):
    monkeypatch.setattr(memory, "available", lambda device: 2**24)
    objective, table = recommender(*sizes[:2], dot_product=dot_product)
    objective = replace(objective, chunk_size=10**6)
    with pytest.raises(UnlearningError, match=remedy):
        check_memory(demand(objective, table, *sizes[2:]), objective, CPU)


def test_what_does_not_fit_is_refused_before_anything_has_moved(trained, snapshot, monkeypatch):
    trainer, model, data = trained(max_epochs=1, callbacks=[IFRUCallback()])
    before = snapshot(model=model, data=data, trainer=trainer)
    monkeypatch.setattr(memory, "available", lambda device: 2**20)
    with pytest.raises(UnlearningError, match=r"LightGCN needs about .* on cpu .* 1 MiB is available"):
        trainer.unlearn(data, request=UnlearningRequest(users=["person-004"]))
    before.check()


LIMITS = {
    "v2": ("0::/job\n", {"job/memory.max": "3000", "job/memory.current": "1500"}, 500),
    "v2, a group above": (
        "0::/a/b\n",
        {"a/memory.max": "2000", "a/memory.current": "600", "a/b/memory.max": "max"},
        400,
    ),
    "v1": (
        "3:memory:/job\n",
        {"memory/job/memory.limit_in_bytes": "9000", "memory/job/memory.usage_in_bytes": "1200"},
        200,
    ),
}


@pytest.mark.parametrize("case", LIMITS)
def test_a_container_limits_what_is_available(tmp_path, case):
    groups, files, cached = LIMITS[case]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("1:cpu:/job\n" + groups)
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
        (path.parent / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    limit, used = list(files.values())[:2]
    assert memory._container(tmp_path) == [int(limit) - int(used) + cached]
    assert memory._container(tmp_path / "nowhere") == []


def test_this_machine_has_memory():
    assert 0 < available(CPU) < 2**50


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_says_what_it_has():
    free, whole = torch.cuda.mem_get_info()
    assert 0 < available(torch.device("cuda")) <= whole
    assert available(torch.device("cuda")) >= free


_MEASURED = """
import sys
import numpy as np, torch
from lightning_ifru import IFRU, InteractionDataModule, UnlearningRequest
from lightning_ifru.memory import demand
from lightning_ifru.models import LightGCN, MatrixFactorization
from lightning_ifru.unlearning import Unlearning

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

kind, users, items, pairs, width = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(1)
pairs = np.unique(np.random.default_rng(0).integers(0, users * items, pairs))
data = InteractionDataModule({"user": pairs // items, "item": pairs % items}, val_fraction=0, test_fraction=0)
model = {"mf": MatrixFactorization, "lightgcn": LightGCN}[kind](data.num_users, data.num_items, width).eval()
gone = range(0, len(data.train), 100)
ends = data.train.user[gone].tolist(), data.train.item[gone].tolist()
data.forget(UnlearningRequest(interactions=[(data.user_ids[u], data.item_ids[i]) for u, i in zip(*ends)]))
method = IFRU(locality="full", max_steps=1)
work = Unlearning.of(model, data, method)
retained = len(work.problem.retained)
wanted = demand(work.objective, work.parameters, retained, method.negatives, method.cg_iterations).total
held = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
method.update(work.objective, work.parameters, work.problem)
print(wanted, status("VmHWM") - held)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    "sizes", [("mf", 3000, 2000, 500000, 16), ("mf", 30000, 10000, 60000, 64), ("lightgcn", 20000, 10000, 100000, 64)]
)
def test_the_prediction_is_within_half_of_the_peak(sizes):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _MEASURED, *map(str, sizes)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    wanted, peak = map(int, done.stdout.split())
    assert peak > 2**27
    assert 1 / 1.5 < wanted / peak < 1.5
