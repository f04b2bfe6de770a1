r"""Negatives drawn once and never stored: a permutation says what a row has drawn, and backwards who drew an item.

Every row of a table has ``K`` slots, and the :math:`M` candidates stand on a ring in random order. A pseudo-random
permutation :math:`\pi` of at least as many numbers as there are slots sends slot :math:`x` to the place :math:`\pi(x)
\bmod M` of the ring. So a row's negatives depend on nothing but the seed and its number, each item is drawn equally
often (up to one), and :math:`\pi^{-1}` finds the slots that drew an item without an index of them. An item that is
withdrawn leaves its place to the next one on the ring: the draws that had hit it change and no other.

Source: Black and Rogaway, *Ciphers with arbitrary finite domains*, CT-RSA 2002 (the cycle-walking Feistel network).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

_ROUNDS = 4
_WORD = 0xFFFFFFFF


class FrozenDraws:
    """The negatives of every row of a table.

    Args:
        candidates: the items ``[M]`` that are drawn from.
        num_items: how many items there are.
        num_rows: rows of the table, whether examples or not.
        per_row: negatives of each row.
        seed: another one draws others.

    Example:
        Four rows with one draw each among two items, of which each is drawn twice:

        >>> draws = FrozenDraws(torch.tensor([0, 1]), num_items=2, num_rows=4, per_row=1, seed=0)
        >>> draws.items(torch.arange(4)).flatten().bincount()
        tensor([2, 2])
        >>> slots, _ = draws.slots(torch.tensor([1, 1]), torch.tensor([0, 1]))
        >>> draws.items(slots).flatten()
        tensor([1, 1])
    """

    def __init__(self, candidates: Tensor, num_items: int, num_rows: int, per_row: int, seed: int) -> None:
        self.per_row, self._num_slots, places = per_row, num_rows * per_row, len(candidates)
        self._per_place = -(-self._num_slots // places)
        self._size = self._per_place * places
        self._half = (max(2, (self._size - 1).bit_length()) + 1) // 2
        generator = torch.Generator().manual_seed(seed)
        self._keys = torch.randint(1 << 31, (_ROUNDS,), generator=generator).tolist()
        self._ring = candidates[torch.randperm(places, generator=generator)]
        self._place = torch.full((num_items,), -1)
        self._place[self._ring] = torch.arange(places)
        # Every place is held by an item on the ring: by its own, or where that is withdrawn by the next that is not.
        self._holder = torch.arange(places)
        self._held = torch.ones_like(self._holder)

    @property
    def candidates(self) -> Tensor:
        """The items that are drawn from now, ascending."""
        return self._ring[self._held > 0].sort().values

    def some(self, most: int, generator: torch.Generator) -> Tensor:
        """Return all candidates or a random sample of about ``most`` of them, at the cost of the sample."""
        ring = len(self._ring)
        start = int(torch.randint(ring, (1,), generator=generator))
        # What stands side by side on the ring was put there at random.
        places = (start + torch.arange(min(most, ring))) % ring
        here = places[self._held[places] > 0]
        return self._ring[here if len(here) else self._holder[places[:1]]]

    def items(self, rows: Tensor) -> Tensor:
        """Return the items that ``rows [n]`` have drawn, ``[n, K]``."""
        slots = rows.unsqueeze(1) * self.per_row + torch.arange(self.per_row)
        return self.drawn(slots.flatten()).view(-1, self.per_row)

    def drawn(self, slots: Tensor) -> Tensor:
        """Return the items in ``slots [n]``; slot ``k`` of row ``r`` has number ``r * per_row + k``."""
        return self._ring[self._holder[self._walk(slots, self._forward) % len(self._ring)]]

    def lengths(self, items: Tensor) -> Tensor:
        """Return how many values of the permutation stand for each of ``items [n]``: a slot each, or none."""
        place = self._place[items]
        return self._held[place] * (place >= 0) * self._per_place

    def slots(self, items: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slots in which items were drawn.

        Args:
            items: the items ``[n]``.
            which: for each, which of the values that stand for it, below its :meth:`lengths`: all of an item's together
                give all of its slots.

        Returns:
            The slots ``[m]``, and for each where in ``items`` its item stands; a value may belong to no row.
        """
        place = (self._place[items] - which // self._per_place) % len(self._ring)
        slots = self._walk(place + which % self._per_place * len(self._ring), self._backward)
        index = (slots < self._num_slots).nonzero().flatten()
        return slots[index], index

    def without(self, items: Tensor) -> FrozenDraws:
        """Return the same draws, but for those of ``items [n]``, which have left the candidates."""
        other = copy.copy(self)
        other._holder, other._held = self._holder.clone(), self._held.clone()
        for place in self._place[items].tolist():
            heir = int(other._holder[(place + 1) % len(self._ring)])
            places = (place - torch.arange(int(other._held[place]))) % len(self._ring)
            other._holder[places] = heir
            other._held[heir] += other._held[place]
            other._held[place] = 0
        return other

    def _walk(self, value: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
        """Permute the numbers below the size by a permutation of some more: go on until one is met that is below."""
        value = step(value)
        while True:
            beyond = (value >= self._size).nonzero().flatten()
            if not len(beyond):
                return value
            value[beyond] = step(value[beyond])

    def _forward(self, value: Tensor) -> Tensor:
        left, right = self._halves(value)
        for key in self._keys:
            left, right = right, left ^ self._scramble(right, key)
        return (left << self._half) | right

    def _backward(self, value: Tensor) -> Tensor:
        left, right = self._halves(value)
        for key in reversed(self._keys):
            left, right = right ^ self._scramble(left, key), left
        return (left << self._half) | right

    def _halves(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return value >> self._half, value & ((1 << self._half) - 1)

    def _scramble(self, value: Tensor, key: int) -> Tensor:
        # The finaliser of a 32-bit hash; products of 32 and 27 bits stay within int64.
        value = ((value * 0x45D9F3B) + key) & _WORD
        value = ((value >> 16 ^ value) * 0x45D9F3B) & _WORD
        return (value >> 15 ^ value) & ((1 << self._half) - 1)
