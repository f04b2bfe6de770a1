"""What a LightningModule says about itself so that it can be trained and unlearned by one objective."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor

from lightning_ifru.errors import ObjectiveError
from lightning_ifru.examples import Chunk, Examples
from lightning_ifru.losses import Loss, LossSpec, resolve_loss, takes_two
from lightning_ifru.node_rows import fresh_rows, node_kinds
from lightning_ifru.objective import NodeKind, Objective, check_rows
from lightning_ifru.parameters import Parameters
from lightning_ifru.stateless import Stateless, check_layer_weights, decoder_parameters, refuse_kept_graphs
from lightning_ifru.weight_decay import l2_decays, l2_penalty

if TYPE_CHECKING:
    _Base = lightning.LightningModule
else:
    _Base = object

Batch = dict[str, Tensor]

#: Where a checkpoint keeps the name of the loss.
_LOSS = "lightning_ifru_loss"


class IFRUMixin(_Base):
    r"""Makes a ``LightningModule`` a recommender that can forget: ``class MyGNN(IFRUMixin, LightningModule)``.

    A subclass gives :meth:`encode`, chooses :attr:`loss`, and where scores are no dot product :meth:`decode`. Training
    loss and unlearning objective are then one function, the mean over examples of ``loss`` plus
    :meth:`regularization`.

    Attributes:
        loss: a name that :func:`~lightning_ifru.losses.resolve_loss` knows, a callable ``(scores [B], targets [B]) ->
            [B]``, which may be a plain function in the body of the class, or a :class:`~lightning_ifru.losses.Loss`;
            :meth:`resolved_loss` reads it.
        node_parameters: which parameters hold rows of ``"user"``, ``"item"`` or ``"node"`` (users, then items);
            ``None``: inferred from the embedding tables, where their sizes leave no doubt.
        node_buffers: the same for buffers and frozen parameters, such as features, of which the rows of the erased are
            cleared; ``None``: inferred; ``{}``: none.
        message_passing_hops: how many edges away a node's representation reaches; ``None``: found by experiment.
        layer_weights: the weights :math:`\alpha_k` of an encoder :math:`\sum_k \alpha_k (D^{-1/2} A D^{-1/2})^k e` that
            is linear in one table of node rows, so that a small request can be solved around what is forgotten;
            ``None``: it is another one.

    Source: arXiv 2307.02147; the encoder-decoder form is that of Hamilton, *Graph Representation Learning*, 2020.
    """

    loss: LossSpec = "bpr"
    node_parameters: Mapping[str, NodeKind] | None = None
    node_buffers: Mapping[str, NodeKind] | None = None
    message_passing_hops: int | None = None
    layer_weights: tuple[float, ...] | None = None
    _edges: tuple[Tensor, Tensor] | None = None
    _targets_checked: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if lightning.LightningModule in cls.__mro__[: cls.__mro__.index(IFRUMixin)]:
            raise ObjectiveError(
                f"{cls.__name__} names LightningModule before IFRUMixin, whose training_step is then not found; wanted "
                f"class {cls.__name__}(IFRUMixin, LightningModule)."
            )

    def encode(self, edge_index: Tensor) -> Tensor:
        """Return the representations ``[num_nodes, d]`` of users and then items, given ``edge_index [2, 2E]``."""
        raise ObjectiveError(
            f"{type(self).__name__} does not implement encode; wanted encode(edge_index) -> [num_nodes, d]."
        )

    def decode(self, src: Tensor, dst: Tensor) -> Tensor:
        """Return the scores ``[B]`` of pairs of rows ``[B, d]``; by default their dot products."""
        return (src * dst).sum(-1)

    def regularization(self) -> Tensor:
        r"""Return Ω, the part of the objective that is no mean over examples; by default the optimiser's L2 penalty.

        By default it is what the optimiser adds by itself, :math:`\sum_p \frac{\lambda_p}{2} \|\theta_p\|^2` with its
        ``weight_decay`` :math:`\lambda_p`. Overridden, it is added to the training loss; a ``weight_decay`` of the
        optimiser still acts beside it, and counts.

        Raises:
            ObjectiveError: the optimiser's decay is decoupled from the gradient (AdamW) and thus no term of a risk,
                or the optimiser is not one of torch's, of which that is known.
        """
        return l2_penalty(dict(self.named_parameters()), l2_decays(self, self.configure_optimizers()))

    def node_regularization(self) -> Tensor | None:
        r"""Return the penalty of each node's own rows ``[num_nodes]``, of which a batch counts those of its nodes.

        A batch of :math:`B` examples adds :math:`\frac{1}{B} \sum_v \omega_v` over its users, items and negatives, each
        counting once: with ``1e-4 * self.embedding.weight.square().sum(1)`` it is the term of PyG's
        ``LightGCN.recommendation_loss``. In the objective each weighs by its chance of being in a batch, which depends
        on what is forgotten. By default there is none.
        """
        return None

    @torch.compiler.disable
    def resolved_loss(self) -> Loss:
        """Return :attr:`loss` as a :class:`Loss`; a function in the body of the class is no method of it.

        A method ``loss(self, scores, targets)`` is taken as one, and so is a module assigned to ``self.loss``.
        """
        declared: Any = inspect.getattr_static(self, "loss")
        if isinstance(declared, FunctionType) and takes_two(declared):
            return resolve_loss(declared)
        # A class attribute hides a submodule of the same name from attribute access.
        return resolve_loss(self._modules.get("loss") or self.loss)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the objective on a batch: the mean loss, and an overridden :meth:`regularization`."""
        loss = self._batch_loss(batch)
        weights = self.batch_weights(batch, self._data().num_users, self._data().num_items)
        if weights is not None:
            own = self._node_penalty(len(weights))
            loss = loss + own @ weights.to(own.dtype)
        if self.regularizes:
            loss = loss + self._penalty()
        if not loss.requires_grad:
            raise ObjectiveError(
                f"the training loss of {type(self).__name__} depends on no trainable parameter; unfreeze what is to be "
                "trained, or look for detach() in encode and decode."
            )
        self.log("train_loss", loss, batch_size=len(batch["user"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the mean loss as ``val_loss``."""
        self.log("val_loss", self._batch_loss(batch), prog_bar=True, batch_size=len(batch["user"]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the mean loss as ``test_loss``."""
        self.log("test_loss", self._batch_loss(batch), batch_size=len(batch["user"]))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the scores ``[B]`` of the batch's pairs."""
        h = self._representations()
        return self.decode(h[batch["user"]], h[batch["item"] + self._data().num_users])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the name of the loss, which hyper-parameters can hold as a name only."""
        checkpoint[_LOSS] = self.resolved_loss().name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse, before any weight is loaded, a checkpoint that remembers what the data have forgotten since.

        Raises:
            DataError: it does.
            ObjectiveError: it was trained with another loss.
        """
        trained, mine = checkpoint.get(_LOSS), self.resolved_loss().name
        if trained not in (None, mine):
            raise ObjectiveError(
                f"the checkpoint was trained with the loss '{trained}' and {type(self).__name__} has '{mine}'; give "
                "the module the loss it was trained with, loss=..."
            )
        trainer = getattr(self, "_trainer", None)
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "check_checkpoint"):
            data.check_checkpoint(checkpoint)

    def batch_weights(self, batch: Batch, num_users: int, num_items: int) -> Tensor | None:
        """Return the weight of each node's own penalty in a batch, ``[num_nodes]``; ``None`` where there is none."""
        if not self.penalizes_nodes:
            return None
        items = [batch[name].flatten() for name in ("item", "negative") if name in batch]
        weights = torch.zeros(num_users + num_items, device=batch["user"].device)
        weights[torch.cat([batch["user"], *(some + num_users for some in items)])] = 1 / len(batch["user"])
        return weights

    @torch.compiler.disable
    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log as Lightning does, which ``torch.compile`` of the whole module cannot trace in every version."""
        super().log(*args, **kwargs)

    @property
    def edge_index(self) -> Tensor:
        """The graph of the data the module is attached to, as it stands now, on the module's device."""
        graph = self._data().graph()
        if self._edges is None or self._edges[0] is not graph:
            with torch.inference_mode(False):  # first asked for in validation, it must still serve a later fit
                self._edges = (graph, graph.to(self.device))
            self._targets_checked = False
        return self._edges[1]

    def release_graph(self) -> None:
        """Drop the graph the module has last used, so that nothing of it outlives its data."""
        self._edges = None

    def objective(
        self, edge_index: Tensor, num_users: int, num_items: int, chunk_size: int = 1 << 16
    ) -> tuple[Objective, Parameters]:
        """Return the objective as a pure function, and the parameters it was trained to.

        Args:
            edge_index: a graph to try the module on.
            num_users: the offset of items among nodes.
            num_items: the number of items.
            chunk_size: pairs that go through a decoder of its own, and the loss, at a time.

        Raises:
            ObjectiveError: the module has no trainable parameters, leaves a doubt which hold node rows, has an
                optimiser whose decay is no term of a risk, or a layer that keeps a graph.
        """
        refuse_kept_graphs(self)
        parameters = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        if not parameters:
            raise ObjectiveError(
                f"{type(self).__name__} is frozen: none of its parameters requires a gradient; unfreeze what was "
                "trained before unlearning."
            )
        learnt = [n for n in parameters if n.startswith("loss.") and "loss" in self._modules]
        if learnt:
            raise ObjectiveError(
                f"the loss of {type(self).__name__} has parameters of its own ({', '.join(learnt)}); wanted a function "
                "of scores alone: put them into decode."
            )
        check_layer_weights(type(self).__name__, self.layer_weights)
        call = Stateless(self)
        dense = () if self.scores_dot_products else decoder_parameters(call, parameters, edge_index)
        decays = l2_decays(self, self.configure_optimizers())

        def encode(p: Parameters, graph: Tensor) -> Tensor:
            return call.on(p, "encode", graph)

        def decode(p: Parameters, src: Tensor, dst: Tensor) -> Tensor:
            return call.on(p, "decode", src, dst) if dense else self.decode(src, dst)

        def node_regularization(p: Parameters) -> Tensor:
            return call.on(p, "_node_penalty", num_users + num_items)

        def regularization(p: Parameters) -> Tensor:
            return call.on(p, "_penalty")

        return (
            Objective(
                encode=encode,
                decode=decode,
                loss=self.resolved_loss(),
                regularization=regularization if self.regularizes else None,
                num_users=num_users,
                num_items=num_items,
                node_parameters=node_kinds(self, self.node_parameters, num_users, num_items),
                decoder_parameters=dense,
                chunk_size=chunk_size,
                node_regularization=node_regularization if self.penalizes_nodes else None,
                name=type(self).__name__,
                weight_decay=decays,
                dot_product=self.scores_dot_products,
                linear=self.layer_weights is not None,
            ),
            parameters,
        )

    def initial_rows(self, name: str, rows: Tensor, seed: int = 0) -> Tensor:
        """Return fresh rows of a node parameter, as the module initialises them.

        By default the outermost module on the way to the parameter that has a ``reset_parameters`` is copied and
        reset: the rows have the distribution training started from, and nothing of a person.

        Args:
            name: the parameter, as in ``named_parameters``.
            rows: positions ``[n]`` in its first dimension.
            seed: of the random numbers; the global generator is left alone.

        Raises:
            ObjectiveError: no such module is found.
        """
        return fresh_rows(self, name, rows, seed)

    def _penalty(self) -> Tensor:
        """Return an own :meth:`regularization`, after a look at its shape."""
        penalty = self.regularization()
        self._check_shape("regularization", penalty, (), "a scalar tensor: sum the penalty of all weights")
        return penalty

    def _node_penalty(self, num_nodes: int) -> Tensor:
        """Return :meth:`node_regularization` where there is one, after a look at its shape."""
        penalty: Any = self.node_regularization()
        wanted = f"one penalty for each user and then each item, shape {(num_nodes,)}: sum over a row's columns"
        self._check_shape("node_regularization", penalty, (num_nodes,), wanted)
        return penalty

    def _check_shape(self, method: str, value: object, shape: tuple[int, ...], wanted: str) -> None:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        if not isinstance(value, Tensor) or value.shape != shape:
            raise ObjectiveError(f"{method} of {type(self).__name__} returned {got}; wanted {wanted}.")

    def _data(self) -> Any:
        data = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "graph"):
            raise ObjectiveError(
                f"{type(self).__name__} got {type(data).__name__} as its trainer's datamodule; wanted an "
                "InteractionDataModule: pass datamodule= to the trainer."
            )
        return data

    def _representations(self) -> Tensor:
        data = self._data()
        h = self.encode(self.edge_index)
        check_rows(h, type(self).__name__, data.num_users, data.num_items)
        return h

    def _batch_loss(self, batch: Batch) -> Tensor:
        data, user, loss = self._data(), batch["user"], self.resolved_loss()
        examples = Examples(user, batch["item"], 1 / len(user), batch.get("label"), batch.get("negative"))
        chunk = Chunk.of(data.num_users, examples)
        h = self._representations()
        if not self._targets_checked:  # of all at once and not of every batch, where it would hold up an accelerator
            loss.check_targets(data.train.label if "label" in batch else None)
            self._targets_checked = True
        scores = self.decode(h.index_select(0, chunk.source), h.index_select(0, chunk.destination))
        return chunk.risk(loss, scores)

    @property
    def scores_dot_products(self) -> bool:
        """Whether :meth:`decode` is the default."""
        return type(self).decode is IFRUMixin.decode and "decode" not in vars(self)

    @property
    def regularizes(self) -> bool:
        """Whether :meth:`regularization` is the module's own, and thus part of the training loss."""
        return type(self).regularization is not IFRUMixin.regularization

    @property
    def penalizes_nodes(self) -> bool:
        """Whether :meth:`node_regularization` is the module's own."""
        return type(self).node_regularization is not IFRUMixin.node_regularization
