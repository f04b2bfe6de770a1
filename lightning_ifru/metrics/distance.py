"""How far a model's parameters and representations are from another's, beside what they do to scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_ifru.errors import UnlearningError
from lightning_ifru.metrics.checks import alike, mean


def parameter_distance(parameters: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Tensor:
    r"""Return the Euclidean distance between two models' parameters, relative to the norm of the reference.

    .. math::

        \|\theta - \theta^*\| / \|\theta^*\|

    Two models that were trained from different initialisations can be far apart here and score alike: it says
    something about paired models.

    Args:
        parameters: name -> tensor, as of ``dict(model.named_parameters())``.
        reference: the same names and shapes, of another model.

    Returns:
        A float64 scalar, 0 or more.

    Raises:
        UnlearningError: If names or shapes differ, a value is not finite, or the reference is zero altogether.

    Example:
        >>> float(parameter_distance({"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([3.0, 4.0])}))
        0.6
    """
    return _relative(_square_sums(parameters, reference))


def embedding_distance(h: Tensor, reference: Tensor) -> Tensor:
    r"""Return the mean Euclidean distance between the rows of two models' representations.

    .. math::

        \frac{1}{|V|} \sum_v \|h_v - h^*_v\|

    Scores do not change when all rows are rotated, but this distance does. So it means something for paired models
    only (the same initialisation and order); models of different seeds differ by a rotation first of all.

    Args:
        h: representations ``[num_nodes, d]``.
        reference: representations ``[num_nodes, d]`` of another model.

    Returns:
        A float64 scalar, 0 or more.

    Raises:
        UnlearningError: If there are no rows, shapes differ, or a value is not finite.

    Example:
        >>> float(embedding_distance(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]])))
        3.0
    """
    return mean(_row_sums(h, reference))


def _square_sums(parameters: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Tensor:
    """The squared norms of the difference and of the reference."""
    if parameters.keys() != reference.keys():
        odd = sorted(parameters.keys() ^ reference.keys())
        raise UnlearningError(f"only one of the two models has parameters {odd}; compare models of one class.")
    squares = []
    for name in reference:
        one, other = alike(**{f"parameters '{name}'": parameters[name], f"reference '{name}'": reference[name]})
        squares.append(torch.stack([(one - other).square().sum(), other.square().sum()]))
    return torch.stack(squares).sum(0) if squares else torch.zeros(2, dtype=torch.float64)


def _relative(squares: Tensor) -> Tensor:
    apart, norm = squares.sqrt()
    if not norm:
        raise UnlearningError(
            "the reference's parameters are all zero, or there are none; give those of a trained model."
        )
    return apart / norm


def _row_sums(h: Tensor, reference: Tensor) -> Tensor:
    """The sum of distances between rows, and the number of rows."""
    one, other = alike(h=h, reference=reference)
    if one.ndim != 2:
        raise UnlearningError(f"representations are of shape {list(h.shape)}; give [num_nodes, d].")
    return torch.stack([torch.linalg.vector_norm(one - other, dim=1).sum(), one.new_tensor(len(one))])


class ParameterDistance(Metric):
    """:func:`parameter_distance` over parts of a model and over processes.

    Every update takes other tensors, or other rows of a table, than those before. Where every process holds the whole
    model and gives all of it, both norms are counted equally often, and the distance is the same.

    Example:
        >>> metric = ParameterDistance()
        >>> for name, value in (("a", 3.0), ("b", 1.0)):
        ...     metric.update({name: torch.tensor(value)}, {name: torch.tensor(3.0 if name == "a" else 4.0)})
        >>> float(metric.compute())
        0.6
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("squares", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, parameters: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> None:
        """Add tensors of two models under the same names."""
        self.squares += _square_sums(parameters, reference).to(self.squares.device)

    def compute(self) -> Tensor:
        """Return the relative distance over all tensors so far."""
        return _relative(self.squares)


class EmbeddingDistance(Metric):
    """:func:`embedding_distance` over chunks of rows and processes.

    Example:
        >>> metric = EmbeddingDistance()
        >>> metric.update(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        >>> metric.update(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
        >>> float(metric.compute())
        3.0
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, h: Tensor, reference: Tensor) -> None:
        """Add rows ``[n, d]`` of two models."""
        self.sums += _row_sums(h, reference)

    def compute(self) -> Tensor:
        """Return the mean distance of all rows so far."""
        return mean(self.sums)
