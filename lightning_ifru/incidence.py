"""Which rows of a table belong to each user or item, so that a request reads its own rows and no others."""

from __future__ import annotations

import torch
from torch import Tensor


class Incidence:
    r"""The rows of every position, as a CSR matrix of positions by rows that is built once.

    Row numbers ascend within a position. What is dropped leaves no trace but a shorter list: the places behind its
    end are blank, so that no forgotten row can be found again by joining the incidences of users and items.

    Attributes:
        counts: Number of rows of every position, int64 ``[size]``; not to be written to.

    Args:
        position: The position of every row, int64 ``[n]``; a row with a negative one is left out.
        size: The number of positions.

    Example:
        >>> some = Incidence(torch.tensor([1, 0, 1, -1]), size=3)
        >>> some.rows(torch.tensor([2, 1, 0]))
        (tensor([0, 2, 1]), tensor([1, 1, 2]))
        >>> some.drop(torch.tensor([0]), torch.tensor([1]))
        >>> some.rows(torch.tensor([1]))[0], some.counts
        (tensor([2]), tensor([1, 1, 0]))
    """

    @torch.inference_mode(False)  # built in a validation loop, it must still serve a later request
    def __init__(self, position: Tensor, size: int) -> None:
        self._num_rows = len(position)
        order = position.argsort(stable=True)
        self._rows = order[int((position < 0).sum()) :].clone()
        self.counts = torch.bincount(position.index_select(0, self._rows), minlength=size)
        self._start = self.counts.cumsum(0) - self.counts

    def __len__(self) -> int:
        """Return the number of positions."""
        return self.counts.numel()

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers ``[k]`` of all rows of ``positions [m]``, and of each whose it is: an index into ``[m]``.

        The rows of the first position come first, ascending; a position that is named twice gives its rows twice.
        """
        places, which = self._places(positions)
        return self._rows.index_select(0, places), which

    def at(self, positions: Tensor, place: Tensor) -> Tensor:
        """Return the row at ``place [k]`` of the list of each of ``positions [k]``, which is that long at least."""
        return self._rows[self._start[positions] + place]

    def drop(self, rows: Tensor, positions: Tensor) -> None:
        """Take ``rows [k]`` out, of which ``positions [k]`` are the positions; what is not there is passed over."""
        touched, whose = positions.unique(return_inverse=True)
        places, which = self._places(touched)
        found = self._rows.index_select(0, places)
        # Both ascend, so that a search finds each row; to sort a hub's thousands took ten times as long.
        key, wanted = which * self._num_rows + found, whose * self._num_rows + rows
        at = torch.searchsorted(key, wanted)
        at = at[key.index_select(0, at.clamp(max=len(key) - 1)) == wanted] if len(key) else at[:0]
        kept = torch.ones_like(found, dtype=torch.bool)
        kept[at] = False
        left = torch.bincount(which[kept], minlength=len(touched))
        self._rows[places] = -1
        self.counts[touched] = left
        self._rows[self._places(touched)[0]] = found[kept]

    def _places(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Where the rows of some positions stand, and an index into ``positions`` for each."""
        counts = self.counts.index_select(0, positions)
        which = torch.arange(len(positions), device=counts.device).repeat_interleave(counts)
        # Within a position the places count up from its start: a range for each, without a loop over them.
        offset = self._start.index_select(0, positions) - (counts.cumsum(0) - counts)
        return torch.arange(len(which), device=counts.device) + offset.index_select(0, which), which
