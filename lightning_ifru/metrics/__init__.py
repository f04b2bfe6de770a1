"""What forgetting is measured by, each measure a pure function and, beside it, a ``torchmetrics.Metric``.

=================================  ====================  ==============================================================
function                           class                 what it says
=================================  ====================  ==============================================================
:func:`score_distance`             ScoreDistance         mean difference of sigmoid scores to another model's
:func:`noise_floor`                NoiseFloor            the same between retrained models of different seeds
:func:`completeness_ratio`         CompletenessRatio     distance to the retrained model, over that of the original
:func:`change_cosine`              ChangeCosine          whether scores move in retraining's direction
:func:`parameter_distance`         ParameterDistance     relative distance of parameters
:func:`embedding_distance`         EmbeddingDistance     mean distance of representations
:func:`affected_auroc`             AffectedAUROC         AUROC on all pairs, and on those that the forgotten touched
:func:`membership_auroc`           MembershipAUROC       how well an attacker finds out what was in the training data
:func:`topk_overlap`               TopKOverlap           the share of recommended items in common
:func:`ranking`                    LinkPredRecall,       Recall@k and NDCG@k; the classes are PyG's own, which are
                                   LinkPredNDCG          ``torchmetrics.Metric`` as they stand
=================================  ====================  ==============================================================

Pairs for the attack are found by :func:`matched_nonmembers`, negatives of implicit feedback by :func:`with_negatives`,
recommended items by :func:`top_items`, scores by :func:`pair_scores` and :func:`block_scores`, and :func:`evaluate`
puts together what an unlearning report says. No number alone shows that something was forgotten: an AUROC can rise
while the model moves away from the retrained one, and without a noise floor a distance has no scale. Values that are
not finite are refused by all of them.

The classes add up in float64, in chunks, batches and processes (``torch.distributed``) alike.
"""

from torch_geometric.metrics import LinkPredNDCG, LinkPredRecall

from lightning_ifru.metrics.affected import AffectedAUROC, affected_auroc
from lightning_ifru.metrics.completeness import (
    ChangeCosine,
    CompletenessRatio,
    NoiseFloor,
    ScoreDistance,
    change_cosine,
    completeness_ratio,
    noise_floor,
    score_distance,
)
from lightning_ifru.metrics.distance import (
    EmbeddingDistance,
    ParameterDistance,
    embedding_distance,
    parameter_distance,
)
from lightning_ifru.metrics.evaluation import evaluate, with_negatives
from lightning_ifru.metrics.matching import matched_nonmembers
from lightning_ifru.metrics.membership import MIN_MEMBERS, MembershipAUROC, membership_auroc
from lightning_ifru.metrics.overlap import TopKOverlap, topk_overlap
from lightning_ifru.metrics.retrieval import ranking, top_items
from lightning_ifru.metrics.scores import Decoder, auroc, block_scores, dot_product, pair_scores

__all__ = [
    "MIN_MEMBERS",
    "AffectedAUROC",
    "ChangeCosine",
    "CompletenessRatio",
    "Decoder",
    "EmbeddingDistance",
    "LinkPredNDCG",
    "LinkPredRecall",
    "MembershipAUROC",
    "NoiseFloor",
    "ParameterDistance",
    "ScoreDistance",
    "TopKOverlap",
    "affected_auroc",
    "auroc",
    "block_scores",
    "change_cosine",
    "completeness_ratio",
    "dot_product",
    "embedding_distance",
    "evaluate",
    "matched_nonmembers",
    "membership_auroc",
    "noise_floor",
    "pair_scores",
    "parameter_distance",
    "ranking",
    "score_distance",
    "top_items",
    "topk_overlap",
    "with_negatives",
]
