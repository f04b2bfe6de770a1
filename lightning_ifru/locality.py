"""Whether a request is solved around what is forgotten or over all data, and what is kept for the next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightning_ifru.draws import FrozenDraws
from lightning_ifru.errors import ObjectiveError
from lightning_ifru.influence import IFRU
from lightning_ifru.interactions import InteractionTable
from lightning_ifru.memory import check_memory, demand
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.neighbours import Neighbours
from lightning_ifru.objective import Objective
from lightning_ifru.warm import LinearModel, WarmState

#: A solve is local by itself if it looks at no more than this share of all examples. Of denser data it would look at
#: everybody anyway, and of a large request at most of what a pass over all data does.
SMALL = 1 / 20


@dataclass(frozen=True)
class Path:
    """How a request is solved.

    Attributes:
        model: the model, if the solve is local; ``None``: over all data.
        reason: why, without an id of anybody.
    """

    model: LinearModel | None
    reason: str

    @classmethod
    def of(cls, method: IFRU, module: IFRUMixin, objective: Objective, table: InteractionTable, ends: int) -> Path:
        """Choose the path of a request, by numbers alone that say nothing of labels.

        Args:
            method: the method, which may force one.
            module: the model.
            objective: its risk.
            table: the interactions.
            ends: users and items of what is forgotten.

        Raises:
            ObjectiveError: the local path is forced on a model that it cannot serve.
        """
        if method.locality == "full":
            return cls(None, "locality='full'")
        found = linear_model(module, objective)
        if isinstance(found, str):
            if method.locality == "local":
                raise ObjectiveError(
                    f"{objective.name} got IFRU(locality='local') and {found}; wanted a model whose scores are dot "
                    "products of a linear encoder that declares its layer_weights, such as MatrixFactorization or "
                    "LightGCN: use locality='auto'."
                )
            return cls(None, found)
        if method.locality == "local":
            return cls(found, "locality='local'")
        each = method.negatives if objective.loss.needs_negatives else 1
        everything = int(table.train_counts[0].sum()) * each
        nearby = (ends + method.max_rows) * method.examples_per_row
        reason = f"{nearby:,} examples at most around what is forgotten, of {everything:,}"
        return cls(found if nearby <= SMALL * everything else None, reason)


def linear_model(module: IFRUMixin, objective: Objective) -> LinearModel | str:
    """Return what of a module a local solve needs, or why there is none."""
    weights, tables = module.layer_weights, objective.node_parameters
    if weights is None:
        return "declares no layer_weights"
    if not objective.dot_product:
        return "has a decode of its own"
    if module.regularizes or module.penalizes_nodes:
        return "has a penalty of its own"
    if objective.loss.kind == "listwise":
        return f"its loss '{objective.loss.name}' takes several negatives at once"
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    if len(trained) != 1 or dict(tables) != {trained[0]: "node"}:
        return "has other parameters than one table of users and items"
    return LinearModel(objective, trained[0], tuple(weights))


class WarmStates:
    """Keeps the layers of the model that was last unlearned, for the next request; a copy of it keeps nothing."""

    def __init__(self) -> None:
        self._state: WarmState | None = None

    def __reduce__(self) -> tuple[type[WarmStates], tuple[()]]:
        return WarmStates, ()

    def state(
        self,
        model: LinearModel,
        table: Tensor,
        interactions: InteractionTable,
        graph: Callable[[], Tensor],
        negatives: int | None,
        seed: int,
    ) -> WarmState:
        """Return the layers of a model, those kept if they are still true.

        Args:
            model: the model.
            table: its rows ``[N, d]``.
            interactions: what it was trained on, as it is now.
            graph: returns their graph, if it is needed.
            negatives: negatives for each row; ``None`` where rows have labels.
            seed: of the negatives.

        Raises:
            ObjectiveError: the objective is stochastic, not finite or without curvature, or the encoder is not linear.
            UnlearningError: memory will not suffice.
        """
        wanted = interactions, model.weights, model.objective.loss, negatives, seed, table.dtype, table.device
        state = self._state
        candidates = interactions.candidates
        known = state is not None and state.origin == wanted and not state.stale and state.holds(table, candidates)
        if not model.objective.ranks.first(known) or state is None:
            self._state = state = None  # not two at a time
            examples = int(interactions.train_counts[0].sum())
            needed = demand(model.objective, {model.name: table}, examples, negatives or 0, cg_iterations=0)
            check_memory(needed, model.objective, table.device)
            draws = None
            if negatives is not None:
                draws = FrozenDraws(candidates, len(interactions.items), len(interactions), negatives, seed)
            state = WarmState(model, table, graph(), Neighbours(interactions), draws)
            state.origin = wanted
        state.model = model
        self._state = state
        return state

    def forget(self) -> None:
        """Let go of what is kept."""
        self._state = None
