r"""Negatives drawn once and never stored: a permutation says what a row has drawn, and backwards who drew an item.

Every row of a table has ``K`` slots. A pseudo-random permutation :math:`\pi` of at least as many numbers sends slot
:math:`x` to item :math:`\pi(x) \bmod M`. So a row's negatives depend on nothing but the seed and its number, each item
is drawn equally often (up to one), and :math:`\pi^{-1}` finds the slots that drew an item without an index of them.

Where :math:`\pi(x)` stands for an item that is no candidate, :math:`\pi` is applied again. An item that is withdrawn
thus changes the draws that had hit it and no other.

Source: Black and Rogaway, *Ciphers with arbitrary finite domains*, CT-RSA 2002 (the cycle-walking Feistel network).
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 4
_WORD = 0xFFFFFFFF


class FrozenDraws:
    """The negatives of every row of a table.

    Args:
        candidates: which items can be drawn, a bool mask ``[num_items]``.
        num_rows: rows of the table, whether examples or not.
        per_row: negatives of each row.
        seed: another one draws others.

    Example:
        Four rows with one draw each among two items, of which each is drawn twice:

        >>> draws = FrozenDraws(torch.tensor([True, True]), num_rows=4, per_row=1, seed=0)
        >>> draws.items(torch.arange(4)).flatten().bincount()
        tensor([2, 2])
        >>> slots, _ = draws.slots(torch.tensor([1, 1]), torch.tensor([0, 1]))
        >>> draws.items(slots).flatten()
        tensor([1, 1])
    """

    def __init__(self, candidates: Tensor, num_rows: int, per_row: int, seed: int) -> None:
        self.candidates, self.num_rows, self.per_row = candidates, num_rows, per_row
        num_items = len(candidates)
        #: Values of the permutation that stand for each item.
        self.per_item = -(-num_rows * per_row // num_items)
        self._size = self.per_item * num_items
        self._half = (max(2, (self._size - 1).bit_length()) + 1) // 2
        generator = torch.Generator().manual_seed(seed)
        self._keys = torch.randint(1 << 31, (_ROUNDS,), generator=generator).tolist()

    def items(self, rows: Tensor) -> Tensor:
        """Return the items that ``rows [n]`` have drawn, ``[n, K]``."""
        slots = rows.unsqueeze(1) * self.per_row + torch.arange(self.per_row, device=rows.device)
        return self.drawn(slots.flatten()).view(-1, self.per_row)

    def drawn(self, slots: Tensor) -> Tensor:
        """Return the items in ``slots [n]``; slot ``k`` of row ``r`` has number ``r * per_row + k``."""
        value = self._forward(slots)
        while True:
            again = self._barred(value).nonzero().flatten()
            if not len(again):
                return value % len(self.candidates)
            value[again] = self._forward(value[again])

    def slots(self, items: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slots in which items were drawn, and for each an index into ``items``.

        Args:
            items: the items ``[n]``, candidates.
            which: for each, which of the values that stand for it, below :attr:`per_item`: all of an item's together
                give all of its slots.

        Returns:
            The slots ``[m]`` and where in ``items`` the item of each stands ``[m]``. Usually one for each value; none
            where it belongs to no row, and more where draws of an item that is no candidate have come to it.
        """
        value, place = items + which * len(self.candidates), torch.arange(len(items), device=items.device)
        found = []
        while len(place):
            value = self._backward(value)
            drawn = value < self.num_rows * self.per_row
            found.append((value[drawn], place[drawn]))
            further = self._barred(value)
            value, place = value[further], place[further]
        slots, places = zip(*found, strict=True) if found else ((items,), (place,))
        return torch.cat(slots), torch.cat(places)

    def without(self, items: Tensor) -> FrozenDraws:
        """Return the same draws, but for those of ``items [n]``, which have left the candidates."""
        if not len(items):
            return self
        other = object.__new__(FrozenDraws)
        other.__dict__.update(self.__dict__)
        other.candidates = self.candidates.index_fill(0, items, False)
        return other

    def _barred(self, value: Tensor) -> Tensor:
        return (value >= self._size) | ~self.candidates[value % len(self.candidates)]

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
