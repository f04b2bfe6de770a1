"""Pairs never seen that are like the forgotten ones: of the same user, with an item about as popular."""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor

from lightning_ifru.errors import UnlearningError
from lightning_ifru.metrics.checks import check_finite


def matched_nonmembers(
    user: Tensor,
    item: Tensor,
    seen_user: Tensor,
    seen_item: Tensor,
    num_users: int,
    num_items: int,
    popularity: Tensor,
    seed: int,
    candidates: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find for every forgotten pair one of the same user that was never seen, with an item as popular as possible.

    Without the matching an attack would only find that active users and popular items score higher. Items are put in
    the order of their popularity, those equally popular in random order. A user's forgotten items take turns, in
    random order, at the nearest item in that order which the user has never seen and no other has taken; of two that
    are equally near, a random one. Where a user has more forgotten items than unseen ones, these are taken again.

    Args:
        user: users ``[n]`` of the forgotten pairs.
        item: their items ``[n]``.
        seen_user: users ``[s]`` of every other interaction there ever was, in whatever split; the forgotten count as
            seen, whether they are among these or not.
        seen_item: their items ``[s]``.
        num_users: the number of users.
        num_items: the number of items.
        popularity: interactions per item ``[num_items]``, as the original model was trained on them.
        seed: of the random choices.
        candidates: the items ``[M]`` that may be chosen, by default all. Where some were in no interaction at all,
            leave them out: a model knows nothing of them, and a forgotten pair would stand out for that alone.

    Returns:
        Users and items ``[n]``, pair for pair; the users are ``user``.

    Raises:
        UnlearningError: If a user has seen every candidate, or a position, a shape or the seed does not fit.

    Example:
        >>> nothing = torch.empty(0, dtype=torch.long)
        >>> one = torch.tensor([0]), torch.tensor([1])
        >>> matched_nonmembers(*one, nothing, nothing, 1, 4, popularity=torch.tensor([1, 8, 3, 2]), seed=0)
        (tensor([0]), tensor([2]))
    """
    _check(user, item, num_users, num_items)
    _check(seen_user, seen_item, num_users, num_items)
    if popularity.shape != (num_items,):
        raise UnlearningError(
            f"popularity is of shape {list(popularity.shape)}; give one number for each of {num_items} items."
        )
    check_finite(popularity=popularity)
    candidates = torch.arange(num_items) if candidates is None else candidates.cpu()
    _check_positions("candidate", candidates, num_items)
    if not -(2**63) <= seed < 2**64:
        raise UnlearningError(f"seed={seed} is not of 64 bits; give a number from 0 to {2**64 - 1}.")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(num_items, generator=generator)
    order = shuffled[popularity.cpu()[shuffled].argsort(stable=True)]
    rank = order.argsort()
    allowed = torch.zeros(num_items, dtype=torch.bool).index_fill_(0, rank[candidates], value=True)
    owner, place = user.cpu(), rank[item.cpu()]
    seen = torch.cat([owner, seen_user.cpu()]), torch.cat([place, rank[seen_item.cpu()]])
    by_user = seen[0].argsort(stable=True)
    seen_by, seen_at = seen[0][by_user], seen[1][by_user]
    turns = torch.randperm(len(owner), generator=generator)
    turns = turns[owner[turns].argsort(stable=True)]
    coins = (torch.rand(len(owner), generator=generator) < 0.5).tolist()
    matched = torch.empty_like(place)
    users, counts = owner[turns].unique_consecutive(return_counts=True)
    bounds = torch.stack([torch.searchsorted(seen_by, users), torch.searchsorted(seen_by, users, right=True)], dim=1)
    for one, mine, (start, stop) in zip(users.tolist(), turns.split(counts.tolist()), bounds.tolist(), strict=True):
        unseen = allowed.clone()
        unseen[seen_at[start:stop]] = False
        free: list[int] = []
        for turn in mine.tolist():
            # Taken again only when all have been.
            free = free or unseen.nonzero().flatten().tolist()
            if not free:
                raise UnlearningError(
                    f"user {one} has seen every one of {int(allowed.sum())} items, so that no pair was never seen; "
                    "leave this user's pairs out of the attack."
                )
            matched[turn] = free.pop(_nearest(free, int(place[turn]), coins[turn]))
    return user, order[matched].to(user.device)


def _nearest(ordered: list[int], value: int, upwards: bool) -> int:
    """Where the number nearest to ``value`` stands; of two equally near the higher one if ``upwards``."""
    above = bisect_left(ordered, value)
    if above == 0 or above == len(ordered):
        return min(above, len(ordered) - 1)
    up, down = ordered[above] - value, value - ordered[above - 1]
    return above if up < down or (up == down and upwards) else above - 1


def _check(user: Tensor, item: Tensor, num_users: int, num_items: int) -> None:
    if user.shape != item.shape or user.ndim != 1:
        raise UnlearningError(f"users {list(user.shape)} and items {list(item.shape)} make no pairs; give [n] of both.")
    _check_positions("user", user, num_users)
    _check_positions("item", item, num_items)


def _check_positions(name: str, positions: Tensor, limit: int) -> None:
    odd = (positions < 0) | (positions >= limit)
    if odd.any():
        raise UnlearningError(
            f"{name} {int(positions[odd][0])} is none of {limit} {name}s; give positions from 0 to {limit - 1}."
        )
