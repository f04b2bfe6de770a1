"""All methods of forgetting behind one interface, by name."""

from __future__ import annotations

from collections.abc import Callable

from lightning_ifru import IFRU
from methods.finetuning import FineTuning, SlowFineTuning
from methods.gradient import GradientStep
from methods.ifru import InfluenceUnlearning
from methods.interface import Method
from methods.local import Local
from methods.partial import sisa
from methods.receraser import receraser
from methods.retraining import Retraining
from methods.scif import DirectInfluence

_METHODS: list[Callable[[], Method]] = [
    lambda: InfluenceUnlearning("ifru"),
    lambda: Retraining("retraining-paired"),
    lambda: Retraining("retraining-free", shift=1000),
    lambda: Retraining("retraining-jittered", jitter=1e-6),
    lambda: FineTuning("finetuning-1", epochs=1),
    lambda: FineTuning("finetuning-5", epochs=5),
    lambda: FineTuning("finetuning-10", epochs=10),
    lambda: FineTuning("finetuning-25", epochs=25),
    lambda: SlowFineTuning("finetuning-25-slow", epochs=25),
    lambda: FineTuning("control-variate-5", epochs=5, control_variate=True),
    lambda: Local("graph-swap", reset=False),
    lambda: Local("reset-rows", reset=True),
    lambda: DirectInfluence("scif", IFRU(curvature="gauss-newton", max_steps=1), endpoints_only=True),
    lambda: GradientStep("gradient-step"),
    sisa,
    receraser,
    # Ablations: ours but for one thing.
    lambda: DirectInfluence("ifru-no-spillover"),
    lambda: InfluenceUnlearning("ifru-undamped", IFRU(damping=0.0)),
    lambda: InfluenceUnlearning("ifru-one-step", IFRU(max_steps=1)),
    lambda: InfluenceUnlearning("ifru-gauss-newton", IFRU(curvature="gauss-newton")),
    lambda: InfluenceUnlearning("ifru-hessian", IFRU(curvature="hessian")),
    lambda: InfluenceUnlearning("ifru-keep-0.1", IFRU(keep_ratio=0.1)),
    lambda: InfluenceUnlearning("ifru-keep-0.3", IFRU(keep_ratio=0.3)),
    lambda: InfluenceUnlearning("ifru-keep-0.5", IFRU(keep_ratio=0.5)),
    lambda: InfluenceUnlearning("ifru-hops-0", IFRU(keep_ratio=0.3, hops=0)),
    lambda: InfluenceUnlearning("ifru-hops-1", IFRU(keep_ratio=0.3, hops=1)),
]

#: Every method by its name: ``METHODS["ifru"]()`` is ours with its defaults, curvature ``auto``, ``keep_ratio`` 1. The
#: other end of the ablation of hops, 2, is ``ifru-keep-0.3``.
METHODS: dict[str, Callable[[], Method]] = {make().name: make for make in _METHODS}
