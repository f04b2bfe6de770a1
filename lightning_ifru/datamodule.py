"""The interactions as a LightningDataModule: loaders, the graph, and the two steps of forgetting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import lightning
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import HeteroData

from lightning_ifru.array_settings import holds_data
from lightning_ifru.batches import Batch, HeldOutBatches, TrainingBatches, held_out_loader, training_loader
from lightning_ifru.data_state import check_state
from lightning_ifru.encoding import Duplicates
from lightning_ifru.errors import DataError, RequestError
from lightning_ifru.forgotten import ForgottenRecord
from lightning_ifru.graph import bipartite_edge_index
from lightning_ifru.hetero import node_counts
from lightning_ifru.interactions import Interactions, InteractionTable
from lightning_ifru.removal import Removal
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.sources import Source, read_source
from lightning_ifru.splits import FRACTION, SplitName, split_named


class InteractionDataModule(lightning.LightningDataModule):
    """Interactions from a file, a mapping of arrays or a ``HeteroData``, ready for training and for forgetting.

    The source is read on first use. With ``rating`` a batch holds ``user``, ``item`` and ``label`` (float32,
    all ``[B]``); without, it holds ``user``, ``item`` and ``negative`` (``[B, num_negatives]``), items drawn
    uniformly and without rejection: anew in training, always the same ones in validation and test.

    Positions are those of first appearance in the source. Of a ``HeteroData`` they are those of its nodes, all of
    them, so that ``data["user"].x`` has the features of position ``p`` in row ``p``; nodes without an edge have a
    position and are no candidates.

    A subclass's ``save_hyperparameters()`` keeps settings and paths, and no source of arrays: it would stay in
    ``hparams``, loggers and checkpoints as it was, with everybody who has been forgotten since.

    Args:
        source: Path of a CSV file with a header (UTF-8, possibly compressed) or of a Parquet file (needs pyarrow:
            ``lightning-ifru[parquet]``); a mapping of column name to a list, array, tensor or Series; or a
            ``HeteroData`` with one edge type from users to items. Reverse edges are not read.
        user: Name of the column of user ids; of a ``HeteroData`` that of the users' node type.
        item: Name of the column of item ids; of a ``HeteroData`` that of the items' node type.
        rating: Name of the column (of a ``HeteroData``: edge attribute) of ratings; without it the feedback is
            implicit.
        timestamp: Name of the column (edge attribute) of times: numbers, the larger the later, dates, or ISO 8601
            text, as of UTC where it names no zone. They decide which of a pair's interactions is the latest, and the
            splits that go by time.
        threshold: Ratings from here on are positive (label 1, an edge of the graph), those below have label
            0. Without it the label is the rating itself and every interaction is an edge.
        split: How train, validation and test are divided. ``"random"``: by a hash of the two ids and ``seed``.
            ``"temporal"``: the latest are test, those before them validation; needs ``timestamp``, and the same times
            stay together. ``"leave_one_out"``: of every user with three or more the last is test, the one before it
            validation; by ``timestamp``, by the order of the source where there is none or a tie. ``"given"``: by the
            column (edge attribute) ``split``, which holds ``train``, ``val`` or ``test``, or by the
            ``edge_label_index`` of a ``HeteroData``, whose edges are test. All occurrences of a pair are where its
            latest one belongs, and forgetting moves none of the others.
        val_fraction: Fraction of the pairs held out for validation. Under ``"leave_one_out"`` 0 holds nothing out and
            the default one of every user; no other fraction applies there, and under ``"given"`` the default alone.
        test_fraction: The same for testing.
        duplicates: What counts of a pair that occurs more than once: ``"latest"``, its latest occurrence alone, or
            ``"keep"``, each as an interaction and, if positive, an edge. A request for a pair forgets all of them.
        batch_size: Interactions per batch.
        num_negatives: Items drawn per interaction where the feedback is implicit.
        seed: Seed of the random split and of the negatives of validation and test.

    Raises:
        DataError: If an argument is out of range; on first use, if the source cannot be read.

    Example:
        >>> source = {"user": [7, 7, 9], "item": ["a", "b", "a"]}
        >>> data = InteractionDataModule(source, val_fraction=0, test_fraction=0)
        >>> data.num_users, data.num_items, data.graph().shape
        (2, 2, torch.Size([2, 6]))
        >>> data.forget(UnlearningRequest(interactions=[(7, "a")]))
        >>> data.commit(data.removal())
        >>> len(data.train), data.graph().shape, data.num_users
        (2, torch.Size([2, 4]), 2)
    """

    def __init__(
        self,
        source: Source,
        *,
        user: str = "user",
        item: str = "item",
        rating: str | None = None,
        timestamp: str | None = None,
        threshold: float | None = None,
        split: SplitName = "random",
        val_fraction: float = FRACTION,
        test_fraction: float = FRACTION,
        duplicates: Duplicates = "latest",
        batch_size: int = 2048,
        num_negatives: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if duplicates not in get_args(Duplicates):
            raise DataError(f"duplicates={duplicates!r} is not known; choose 'latest' or 'keep'.")
        for name, number in (("batch_size", batch_size), ("num_negatives", num_negatives)):
            if not isinstance(number, int) or number < 1:
                raise DataError(f"{name}={number!r} is not a positive whole number; choose 1 or more.")
        if not isinstance(seed, int):
            raise DataError(f"seed={seed!r} is not a whole number; choose one.")
        if threshold is not None and (rating is None or not np.isfinite(threshold)):
            raise DataError(f"threshold={threshold} is no finite number, or lacks ratings; name their column: rating=.")
        self.batch_size = batch_size
        self.num_negatives = num_negatives
        self.seed = seed
        self._threshold = threshold
        self._duplicates = duplicates
        self._split = split_named(split, val_fraction, test_fraction, seed, timed=timestamp is not None)
        self._columns: dict[str, Any] = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
        if split == "given":
            self._columns["split"] = "split"
        self._source: Any = source
        self._table: InteractionTable | None = None
        self._graph: Tensor | None = None
        self._next: tuple[Removal, Tensor] | None = None
        self._pending: UnlearningRequest | None = None

    @property
    def table(self) -> InteractionTable:
        """All interactions with their splits; read from the source on first use."""
        if self._table is None:
            frame = read_source(self._source, **self._columns)
            nodes = {}
            if isinstance(self._source, HeteroData):
                counts = node_counts(self._source, self._columns["user"], self._columns["item"])
                nodes = {"user_ids": range(counts[0]), "item_ids": range(counts[1])}
            self._table = InteractionTable(
                frame, threshold=self._threshold, split=self._split, duplicates=self._duplicates, **nodes
            )
            # No second copy: what is forgotten must not live on in arrays that the module still holds.
            self._source = None
        return self._table

    @property
    def num_users(self) -> int:
        """Number of positions of users, erased ones included."""
        return len(self.table.users)

    @property
    def num_items(self) -> int:
        """Number of positions of items, erased ones included."""
        return len(self.table.items)

    @property
    def user_ids(self) -> npt.NDArray[np.object_]:
        """The users' own ids by position; ``None`` where one was erased."""
        return self.table.users.ids

    @property
    def item_ids(self) -> npt.NDArray[np.object_]:
        """The items' own ids by position; ``None`` where one was erased."""
        return self.table.items.ids

    @property
    def labelled(self) -> bool:
        """Whether there are ratings, so that batches hold labels rather than negatives."""
        return self.table.labelled

    @property
    def train(self) -> Interactions:
        """The training interactions as they stand now."""
        return self.table.select("train")

    @property
    def val(self) -> Interactions:
        """The validation interactions as they stand now."""
        return self.table.select("val")

    @property
    def test(self) -> Interactions:
        """The test interactions as they stand now."""
        return self.table.select("test")

    @property
    def candidates(self) -> Tensor:
        """Positions (int64) of the items with an interaction in any split: those that may be drawn or recommended."""
        return self.table.candidates

    def graph(self, without: Removal | None = None) -> Tensor:
        """Return the ``edge_index`` ``[2, 2E]`` of the positive training interactions as they stand now.

        Users first, items offset by ``num_users``, both directions. The same tensor until something is forgotten.

        Args:
            without: return the graph as it will be after this removal, the very tensor that it then is.
        """
        if self._graph is None:
            edges = self.table.select("train", positive=True)
            self._graph = bipartite_edge_index(edges.user, edges.item, self.num_users)
        if without is None:
            return self._graph
        if self._next is None or self._next[0] is not without:
            kept = ~without.rows[self.table.rows("train", positive=True)]
            with torch.inference_mode(False):
                # Each edge is looked at once, for its two directions stand in two halves.
                half = self._graph[:, : len(kept)].index_select(1, kept.nonzero().flatten())
                graph = self._graph if bool(kept.all()) else torch.cat([half, half.flip(0)], dim=1)
            self._next = without, graph
        return self._next[1]

    @property
    def pending(self) -> UnlearningRequest | None:
        """What is staged to be forgotten, if anything."""
        return self._pending

    def forget(self, request: UnlearningRequest) -> None:
        """Stage a request, in addition to what is staged already; nothing is forgotten yet.

        What was forgotten before is no error, here or in a checkpoint taken over: there is then less to do, or nothing.

        Raises:
            RequestError: If it names what was never there or would leave nothing; what was staged before stays so.
            UnlearningError: If there is no key under which to record what is forgotten, and none can be made.
        """
        if not isinstance(request, UnlearningRequest):
            raise RequestError(f"got a {type(request).__name__}; pass UnlearningRequest(users=..., items=...).")
        staged = request if self._pending is None else self._pending | request
        self.table.plan(staged)
        self._pending = staged

    def discard(self) -> None:
        """Drop what is staged; nothing was forgotten."""
        self._pending = self._next = None

    def removal(self) -> Removal:
        """Return what the staged request would remove from the data as they stand now.

        Raises:
            RequestError: If nothing is staged, or it no longer fits the data.
        """
        if self._pending is None:
            raise RequestError("nothing is staged to be forgotten; call forget(UnlearningRequest(...)).")
        return self.table.plan(self._pending)

    def commit(self, removal: Removal) -> None:
        """Apply a removal to the data: loaders and graphs made from now on are without it."""
        graph = self._next[1] if self._next is not None and self._next[0] is removal else None
        if not len(removal.positions):
            graph = self._graph
        self.table.remove(removal)
        # Handed on, so that what a model keeps of this graph is made once for the solve and for all that follows.
        self._pending, self._graph, self._next = None, graph, None

    @contextmanager
    def revocable(self) -> Iterator[Callable[[], None]]:
        """Yield a function that undoes what the block has forgotten, loaded and staged until then."""
        pending, graph = self._pending, self._graph
        with self.table.revocable() as undo_table:

            def undo() -> None:
                undo_table()
                self._pending, self._graph, self._next = pending, graph, None

            yield undo

    def adopt(self, table: InteractionTable) -> None:
        """Put another table in place of the present one."""
        self._table, self._graph, self._next = table, None, None

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches, in an order that follows from torch's seed and the epoch.

        Paired retraining is a fit from the same seed on data from which the forgotten have been taken: the same
        batches and negatives, without them. Trainings that are to differ in them need seeds of their own, also within
        one process. A fit that resumes in the middle of an epoch begins that epoch's order anew.
        """
        seed, trainer = torch.initial_seed(), getattr(self, "trainer", None)
        if trainer is not None and trainer.world_size > 1:
            seed = trainer.strategy.broadcast(seed)  # without a seed every process would shuffle for itself
        num_negatives = 0 if self.labelled else self.num_negatives
        return training_loader(TrainingBatches(self.table, self.batch_size, num_negatives, seed))

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return the validation batches; no loader at all where nothing is held out."""
        return self._held_out("val")

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return the test batches; no loader at all where nothing is held out."""
        return self._held_out("test")

    def predict_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return the test batches: the pairs to score."""
        return self._held_out("test")

    def state_dict(self) -> dict[str, Any]:
        """Return positions, splits and holes for a checkpoint; see :meth:`InteractionTable.state`."""
        return self.table.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's positions, splits and holes; see :meth:`InteractionTable.restore`."""
        self.table.restore(state_dict)
        self._graph = self._next = None

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint whose weights remember what these data have forgotten since.

        Raises:
            DataError: The data have forgotten more than the checkpoint; nothing was changed.
        """
        state = checkpoint.get(type(self).__qualname__) or {}
        if not isinstance(state, Mapping):
            check_state(state)  # refuses it
        remembered = self.table.record.beyond(ForgottenRecord.of_state(state.get("forgotten_record", {})))
        if remembered:
            raise DataError(
                f"the checkpoint has forgotten {int(state.get('num_forgotten', 0))} interactions and the data "
                f"{self.table.num_forgotten}, some of them others, so that its weights would bring back what was "
                "forgotten; give the one that the last unlearning wrote, or read the data anew and request everything "
                "again."
            )

    def _set_hparams(self, hp: Any) -> None:
        """Keep settings alone; every hyper-parameter goes through here, whoever saves it and from wherever it is."""
        settings = self._to_hparams_dict(hp)
        source = getattr(self, "_source", None)
        super()._set_hparams({name: value for name, value in settings.items() if not holds_data(value, source)})

    def _held_out(self, split: str) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        interactions = self.table.select(split)
        if not len(interactions):
            return []
        negatives = None
        if not self.labelled:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randint(len(self.candidates), (len(interactions), self.num_negatives), generator=generator)
            negatives = self.candidates[drawn]
        return held_out_loader(HeldOutBatches(interactions, negatives), self.batch_size)
