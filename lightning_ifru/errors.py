"""The package's own errors: what was got, what was wanted, what to do.

Everything that a caller could have got right raises a subclass of :class:`UnlearningError`, with one sentence that
can be shown to a person as it stands. Where Lightning itself would refuse (a missing callback, an unsuitable
strategy), Lightning's ``MisconfigurationException`` is raised instead.
"""


class UnlearningError(Exception):
    """Base of everything this package raises on purpose; model, data and files are as they were."""


class DataError(UnlearningError):
    """The interactions cannot be read or do not fit what they are used for."""


class RequestError(UnlearningError):
    """The request names something that cannot be forgotten: unknown, empty, or everything."""


class ObjectiveError(UnlearningError):
    """The training objective cannot be differentiated as it stands: stochastic, not finite, without curvature."""


class SolverError(UnlearningError):
    """The linear system or the call to its solver is ill-posed."""


class RankError(UnlearningError):
    """The processes that share an unlearning do not agree, or one of them has failed."""


class DegradationError(UnlearningError):
    """The corrected model would be worse than the tolerance allows: its loss or a metric."""


class IncompleteError(UnlearningError):
    """The correction is not to be trusted, and the callback is to refuse it then."""
