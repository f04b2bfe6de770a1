r"""How much memory an unlearning needs at its peak, told before it begins.

With :math:`P` parameters, :math:`N` nodes, representations of :math:`d` numbers and :math:`n` retained examples of
:math:`c` pairs each, of which this process has a share, it is about

.. math::

    \underbrace{(m / 2 + 24)\, P\, b}_{\text{vectors}} + \underbrace{10\, N d\, b}_{\text{representations}}
    + \underbrace{n c\, (32 + 3 b)}_{\text{pairs}} + \underbrace{12\, \min(n c, B)\, b}_{\text{a block}}

bytes and 64 MiB beside the model and the data, :math:`b` being the bytes of a number and :math:`m` the products that a
linear solve may take, of which it seldom takes more than half. It depends neither on the number of layers nor on that
of chunks. The numbers 24, 10 and 12 were chosen so that peaks as measured, of 117 MiB to 1.3 GiB, are within a factor
of 1.5 (most of what exceeds the vectors alive is memory that the allocator keeps). What an encoder of one's own keeps
for its derivatives is not in it: that shows only when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from lightning_ifru.dot_products import SPARSE
from lightning_ifru.errors import UnlearningError
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import Parameters

#: Vectors held beside those of the linear solve: the parts of equation 1, masks, the metric, and the steps tried.
_VECTORS = 24
#: Representations held at once: those of the model, a derivative, a product, and what an encoder puts together.
_REPRESENTATIONS = 10
#: Bytes of a pair: its negative, and its place in a sparse pattern and in the transposed one.
_PATTERN = 32
#: Numbers kept for a pair, its second derivatives.
_KEPT = 3
#: Numbers of a pair of a block while it is worked on.
_WORKING = 12
#: What even the smallest of problems takes.
_LEAST = 1 << 26
_REMEDIES = {
    "vectors": "a device with more memory, a model with fewer parameters, or fewer vectors with IFRU(cg_iterations=5)",
    "representations": "a device with more memory, or a model with fewer parameters",
    "pairs": "a device with more memory, more machines to divide them among, or where negatives are drawn fewer with "
    "IFRU(negatives=1)",
    "block": "a device with more memory, or where the decoder is no dot product IFRU(chunk_size=1024)",
}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Demand:
    """Bytes that an unlearning holds at its peak beside model and data.

    Attributes:
        vectors: of the parameters' size: gradients, and the space of a linear solve.
        representations: of the nodes.
        pairs: of retained interactions with their negatives.
        block: for the pairs that are worked on at once.
    """

    vectors: int
    representations: int
    pairs: int
    block: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.vectors + self.representations + self.pairs + self.block + _LEAST


def demand(objective: Objective, parameters: Parameters, examples: int, negatives: int, cg_iterations: int) -> Demand:
    """Predict what a solve needs, for this process's share of the examples.

    Args:
        objective: the risk.
        parameters: of the model.
        examples: retained examples, of all ranks.
        negatives: of each example; 0 without any.
        cg_iterations: products of a linear solve, at most.

    Example:
        >>> from lightning_ifru.losses import resolve_loss
        >>> objective = Objective(
        ...     encode=lambda p, _: p["w"], decode=lambda p, s, t: (s * t).sum(-1), loss=resolve_loss("bpr"),
        ...     regularization=None, num_users=60, num_items=40, node_parameters={"w": "node"}, dot_product=True)
        >>> table = {"w": torch.zeros(100, 8)}
        >>> demand(objective, table, examples=1000, negatives=4, cg_iterations=10)
        Demand(vectors=92800, representations=32000, pairs=220000, block=240000)
    """
    size = max(tensor.element_size() for tensor in parameters.values())
    rows = {"user": objective.num_users, "item": objective.num_items, "node": objective.num_nodes}
    tables = [parameters[name].numel() // max(1, rows[kind]) for name, kind in objective.node_parameters.items()]
    width = max(1, sum(tables))
    share = objective.ranks.share(examples)
    pairs = (share.stop - share.start) * (1 + negatives)
    if objective.dot_product:
        held, block = pairs * (_PATTERN + _KEPT * size), min(pairs, SPARSE) * _WORKING * size
    else:  # rows are gathered for a chunk of pairs, and nothing is kept of them
        held, block = pairs * 8, min(pairs, objective.chunk_size) * _WORKING * width * size
    vectors = cg_iterations // 2 + _VECTORS
    return Demand(
        vectors=vectors * size * sum(tensor.numel() for tensor in parameters.values()),
        representations=_REPRESENTATIONS * size * objective.num_nodes * width,
        pairs=held,
        block=block,
    )


def available(device: torch.device) -> int:
    """Return the bytes that can still be had on a device; on the CPU what machine and container allow."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([int(psutil.virtual_memory().available), *_container(Path("/"))])


def check_memory(wanted: Demand, objective: Objective, device: torch.device) -> None:
    """Refuse what would end for lack of memory.

    Args:
        wanted: see :func:`demand`.
        objective: the risk, whose ranks ask at the same time.
        device: that the parameters are on.

    Raises:
        UnlearningError: it needs more than there is; the message says how much, how much is missing, and what to do.
    """
    # On a processor the ranks of one machine share its memory.
    there = available(device) // (objective.ranks.on_this_machine() if device.type == "cpu" else 1)
    missing = wanted.total - there
    if missing <= 0:
        return
    parts = {field.name: getattr(wanted, field.name) for field in fields(wanted)}
    most = max(parts, key=lambda name: parts[name])
    raise UnlearningError(
        f"unlearning {objective.name} needs about {_said(wanted.total)} of memory on {device} beside what is in use, "
        f"most of it for {most} ({_said(parts[most])}), and {_said(there)} is available, {_said(missing)} too little; "
        f"wanted {_REMEDIES[most]}."
    )


def _container(root: Path) -> list[int]:
    """What each group of processes that this one is in may still take, of those that have a limit."""
    left = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no such thing here
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        new = not controllers
        if not new and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("" if new else "memory")
        names = ("memory.max", "memory.current") if new else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        inside = Path(path.lstrip("/"))
        for folder in (inside, *inside.parents):
            try:
                limit, used = ((top / folder / name).read_text().strip() for name in names)
                stat = dict(row.split() for row in (top / folder / "memory.stat").read_text().splitlines())
            except OSError:
                continue
            if limit.isdigit():
                # Files that were read once are in the group's memory, and are let go of when it is asked for.
                kept = int(used) - int(stat.get("inactive_file", 0))
                left.append(max(0, int(limit) - kept))
    return left


def _said(size: int) -> str:
    amount = float(size)
    for unit in _UNITS:
        if amount < 1024 or unit == _UNITS[-1]:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    raise AssertionError
