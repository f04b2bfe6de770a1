"""The processes of a Lightning trainer as ranks that unlearn together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning

from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.influence import IFRU
from lightning_ifru.keys import KEY, KEY_FILE, digest_key, key_name
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.ranks import ALONE, Ranks
from lightning_ifru.weight_decay import l2_decays


def ranks_of(trainer: lightning.Trainer) -> Ranks:
    """Return the ranks among which a trainer that has been set up divides an unlearning."""
    return Ranks.world() if trainer.world_size > 1 else ALONE


@contextmanager
def together(trainer: lightning.Trainer) -> Iterator[Ranks]:
    """Let the block end on all of a trainer's processes in the same way, see :meth:`~.ranks.Ranks.together`.

    What Lightning exchanges in the block by itself, as it looks for its folder or waits until a checkpoint is written,
    fails as well where another rank has failed: it would wait for that one forever.
    """
    ranks, strategy = ranks_of(trainer), trainer.strategy
    if ranks.size == 1:
        yield ranks
        return
    broadcast = strategy.broadcast

    def broadcast_unless_failed(value: Any, src: int = 0) -> Any:
        ranks.meet()
        return broadcast(value, src)

    def meet(*_: Any, **__: Any) -> None:
        ranks.meet()

    strategy.broadcast, strategy.barrier = broadcast_unless_failed, meet  # type: ignore[method-assign, assignment]
    try:
        with ranks.together():
            yield ranks
    finally:
        del strategy.broadcast, strategy.barrier


def check_keys(ranks: Ranks, *, throwaway: bool = False) -> None:
    """Refuse ranks with different keys of digests, which would know different things forgotten.

    Machines without a common home folder would each make a key of their own.

    Args:
        ranks: the ranks.
        throwaway: whether this one has a :func:`~lightning_ifru.keys.throwaway_key`, which then is rank 0's on all.

    Raises:
        RankError: they have different keys.
    """
    if ranks.size == 1:
        return
    names = [None if throwaway else key_name(digest_key())]
    ranks.check_equal({"keys of digests": names}, f"set {KEY}, or {KEY_FILE}, to the same key on every rank")
    if throwaway:
        os.environ[KEY] = ranks.first(os.environ[KEY])


def check_same(ranks: Ranks, module: IFRUMixin, data: InteractionDataModule, method: IFRU) -> None:
    """Refuse ranks of which one would solve something else than the others.

    Raises:
        RankError: they have different data, requests, models, methods or keys of digests.
    """
    if ranks.size == 1:
        return
    check_keys(ranks)
    columns = [getattr(data.table, name) for name in ("user", "item", "label", "alive", "split")]
    settings = [data.num_users, data.num_items, data.labelled, data.batch_size, data.num_negatives, data.seed]
    request = None if data.pending is None else data.pending.digest(b"ranks")
    decays = sorted(l2_decays(module, module.configure_optimizers()).items())
    model = [type(module).__name__, module.resolved_loss().name, decays, *module.state_dict().values()]
    parts = {"data": [*columns, *settings], "requests": [request], "models": model, "methods": [method]}
    ranks.check_equal(parts)
