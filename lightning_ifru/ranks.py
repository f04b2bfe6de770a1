r"""The processes that share an unlearning: whose examples are whose, sums over all of them, and one end for all.

A risk is a sum over examples and so are its gradient and its products with vectors. Each of :math:`k` processes, the
*ranks*, sums over its own examples :math:`S_r`, and the sums are added up:

.. math::  \nabla J = \sum_{r=0}^{k-1} \sum_{z \in S_r} w_z \nabla \ell(z) + \nabla \Omega, \qquad w_z = 1 / |S|

so that each rank then has the whole, to the bit. What is decided by comparing numbers is decided by rank 0's.
"""

from __future__ import annotations

import hashlib
import platform
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from lightning_ifru.bounded import reason
from lightning_ifru.errors import RankError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The ranks and which of them this process is; by default the only one, for which nothing is exchanged.

    But for :meth:`share` every method is called by all ranks, in the same order. Before it exchanges anything it asks
    whether some rank has failed in :meth:`together`, so that none waits for one that will not come.

    Args:
        rank: this process, from 0.
        size: how many there are.

    Raises:
        RankError: every method but :meth:`share`: another rank has failed.

    Example:
        >>> Ranks(rank=1, size=3).share(10)
        slice(3, 6, None)
        >>> alone = Ranks()
        >>> alone.share(10), alone.sum(torch.ones(2)), alone.first(0.5)
        (slice(0, 10, None), (tensor([1., 1.]),), 0.5)
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def world(cls) -> Ranks:
        """Return all processes of :mod:`torch.distributed`, or this one alone where it is not set up."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def share(self, length: int) -> slice:
        """Return this rank's part of ``length`` examples: contiguous, and as long as any other's but for one."""
        return slice(length * self.rank // self.size, length * (self.rank + 1) // self.size)

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the sums over ranks of tensors, the same to the bit on every rank."""
        if self.size == 1:
            return tensors
        self.meet()
        # One exchange for each type: many small ones would cost more than what they carry.
        totals = {
            dtype: torch.cat([tensor.reshape(-1) for tensor in tensors if tensor.dtype == dtype])
            for dtype in {tensor.dtype: None for tensor in tensors}
        }
        with _connected():
            for total in totals.values():
                distributed.all_reduce(total)
        parts = {
            dtype: iter(total.split([tensor.numel() for tensor in tensors if tensor.dtype == dtype]))
            for dtype, total in totals.items()
        }
        return tuple(next(parts[tensor.dtype]).view(tensor.shape) for tensor in tensors)

    def first(self, value: T) -> T:
        """Return rank 0's ``value``: a tensor of one shape everywhere, or anything that can be pickled."""
        if self.size == 1:
            return value
        self.meet()
        with _connected():
            if isinstance(value, Tensor):
                copy = value.clone()
                distributed.broadcast(copy, 0)
                return cast(T, copy)
            if isinstance(value, float):  # without a round of pickling: a solve asks for many
                number = torch.tensor([value], dtype=torch.float64, device=_device())
                distributed.broadcast(number, 0)
                return cast(T, float(number))
            objects = [value]
            distributed.broadcast_object_list(objects, 0)
            return objects[0]

    def spread(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Return the results of all jobs, of which each is done by one rank; they can be pickled."""
        mine = {number: job() for number, job in enumerate(jobs) if number % self.size == self.rank}
        everybody = self._gather(mine)
        done = {number: result for results in everybody for number, result in results.items()}
        return [done[number] for number in range(len(jobs))]

    def on_this_machine(self) -> int:
        """Return how many ranks there are on the machine that this one is on."""
        return self._gather(platform.node()).count(platform.node())

    def meet(self, error: BaseException | None = None) -> None:
        """Wait for all ranks; if some come with an ``error``, raise on those that come without."""
        if self.size == 1:
            return
        failures = torch.tensor([error is not None], dtype=torch.int32, device=_device())
        with _connected():
            distributed.all_reduce(failures)
            if not bool(failures):
                return
            said: list[Any] = [None] * self.size
            distributed.all_gather_object(said, None if error is None else f"{type(error).__name__}: {error}")
        if error is None:
            rank, what = next((rank, text) for rank, text in enumerate(said) if text is not None)
            raise RankError(f"rank {rank} of {self.size} has failed, and so all end ({what}).")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let the block end on all ranks in the same way: an error on one of them is a :class:`RankError` on others."""
        try:
            yield
            self.meet()
        except RankError:
            raise
        except BaseException as error:
            self.meet(error)
            raise

    def check_equal(
        self, parts: Mapping[str, Sequence[Any]], remedy: str = "read one file, use one seed, and stage one request"
    ) -> None:
        """Refuse, on all ranks, what is not the same on all of them.

        Args:
            parts: by name what is compared: tensors by their bytes, all else by its ``repr``.
            remedy: what to do where they differ.

        Raises:
            RankError: a part differs from rank 0's; the message names it, the ranks, and what to do.
        """
        if self.size == 1:
            return
        # With a key, so that nobody on the way learns from the digests who is to be forgotten.
        key = self.first(secrets.token_bytes(32))
        everybody = self._gather({name: _digest(values, key) for name, values in parts.items()})
        for name in parts:
            others = [rank for rank, digests in enumerate(everybody) if digests[name] != everybody[0][name]]
            if others:
                raise RankError(
                    f"the ranks have different {name} (rank {', '.join(map(str, others))} than rank 0), with which "
                    f"they would not do the same; wanted the same on every rank: {remedy}."
                )

    def _gather(self, value: T) -> list[T]:
        if self.size == 1:
            return [value]
        self.meet()
        found: list[Any] = [None] * self.size
        with _connected():
            distributed.all_gather_object(found, value)
        return found


#: The one process that shares with nobody.
ALONE = Ranks()


def _device() -> torch.device:
    """Where small messages travel from: NCCL knows no other memory than that of its devices."""
    return torch.device("cuda" if "nccl" in distributed.get_backend() else "cpu")


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Gloo says where in its source, what happened, and whom to ask.
        said = re.sub(r"^\[\S+\] ", "", reason(error)).partition(". ")[0]
        raise RankError(
            f"the connection to the other ranks broke ({said}); look at the first error of any rank, which may have "
            "been ended or have run out of memory."
        ) from error


def _digest(values: Sequence[Any], key: bytes) -> bytes:
    """Return a keyed digest of values."""
    digest = hashlib.blake2b(key=key)
    for value in values:
        if isinstance(value, Tensor):
            digest.update(repr((value.dtype, value.shape)).encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.digest()
