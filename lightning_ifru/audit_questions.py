"""What an audit asks every model: about held-out, forgotten and never seen pairs, and what to recommend."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_ifru.audit_chance import attack_resamples
from lightning_ifru.errors import UnlearningError
from lightning_ifru.interactions import Interactions, InteractionTable
from lightning_ifru.metrics import (
    MIN_MEMBERS,
    affected_auroc,
    block_scores,
    matched_nonmembers,
    membership_auroc,
    pair_scores,
    ranking,
    top_items,
    with_negatives,
)
from lightning_ifru.metrics.checks import check_finite
from lightning_ifru.metrics.retrieval import unseen_counts
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.objective import check_rows

#: The length of recommended lists.
TOP = 20


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model says.

    Attributes:
        test: logits ``[n]`` of the test pairs.
        forgotten: logits ``[f]`` of the forgotten training pairs.
        top: the recommended items ``[users, 20]``.
        h: representations ``[num_nodes, d]``.
        attacks: the attack's AUROC ``[resamples]`` for people drawn anew, the same ones for every model.
        figures: ``auroc``, ``auroc_or``, ``auroc_and``, ``recall@20``, ``ndcg@20``, ``membership_auroc`` and
            ``forgotten_probability``.
    """

    test: Tensor
    forgotten: Tensor
    top: Tensor
    h: Tensor
    attacks: Tensor
    figures: dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Questions:
    """Pairs and users that every model is asked about, the same for all of them.

    Attributes:
        num_users, num_items: sizes of the model.
        test: surviving test pairs; with implicit feedback as many pairs of the same users, with items drawn
            uniformly and label 0, follow them.
        user_touched, item_touched: whether user or item of a test pair occurs in a forgotten training pair.
        forgotten: the training pairs that were to be forgotten.
        members: of these the positive pairs, each once, whose users have left something unseen.
        nonmembers: as many pairs never seen, matched by user and popularity.
        held_out: surviving test pairs that are positive.
        seen: surviving training pairs.
        candidates: items that may be recommended.
        users: users with surviving training pairs who have not seen all but a few candidates.
        seed: of what is drawn.
    """

    num_users: int
    num_items: int
    test: Interactions
    user_touched: Tensor
    item_touched: Tensor
    forgotten: Interactions
    members: Interactions
    nonmembers: tuple[Tensor, Tensor]
    held_out: Interactions
    seen: Interactions
    candidates: Tensor
    users: Tensor
    seed: int

    @classmethod
    def of(
        cls, before: InteractionTable, after: InteractionTable, forgotten: Tensor, seed: int, device: torch.device
    ) -> Questions:
        """Choose what to ask about rows ``forgotten`` of the table ``before``, of which ``after`` is what is left.

        Raises:
            UnlearningError: too few forgotten pairs for an attack.
        """
        num_users, num_items = len(before.users), len(before.items)
        trained = _rows(before, forgotten & before.rows("train"))
        everything, choice = _rows(before, before.alive), before.candidates
        members = _rows(before, forgotten & before.rows("train", positive=True)).distinct()
        # Only of users who have not seen everything there is a pair never seen to compare with.
        members = members[unseen_counts(everything, choice, num_users)[members.user] > 0]
        if len(members) < MIN_MEMBERS:
            raise UnlearningError(
                f"of {int(forgotten.sum())} forgotten interactions {len(members)} can be used for a membership attack "
                "(positive, in the training data, each pair once, their user has left something unseen), which needs "
                f"{MIN_MEMBERS}; audit several requests together."
            )
        edges = before.select("train", positive=True)
        nonmembers = matched_nonmembers(
            members.user,
            members.item,
            everything.user,
            everything.item,
            num_users,
            num_items,
            torch.bincount(edges.item, minlength=num_items),
            seed,
            choice,
        )
        test, candidates, seen = after.select("test"), after.candidates, after.select("train")
        held_out = test[test.label > 0]
        if not before.labelled:
            test = with_negatives(test, candidates, seed)
        known = torch.bincount(seen.user, minlength=num_users) > 0
        users = (known & (unseen_counts(seen, candidates, num_users) >= TOP)).nonzero().flatten()
        return cls(
            num_users=num_users,
            num_items=num_items,
            test=test.to(device),
            user_touched=torch.isin(test.user, trained.user).to(device),
            item_touched=torch.isin(test.item, trained.item).to(device),
            forgotten=trained.to(device),
            members=members.to(device),
            nonmembers=(nonmembers[0].to(device), nonmembers[1].to(device)),
            held_out=held_out.to(device),
            seen=seen.to(device),
            candidates=candidates.to(device),
            users=users.to(device),
            seed=seed,
        )

    @torch.no_grad()
    def ask(self, module: IFRUMixin, edge_index: Tensor, role: str) -> Answers:
        """Return what a module in evaluation mode answers on a graph ``[2, 2E]``.

        Args:
            module: the module, on the device of the questions.
            edge_index: the graph of what it was trained on, on that device too.
            role: what it is called where it is refused.

        Raises:
            ObjectiveError: its representations are not one row for each user and item.
            UnlearningError: a score is not finite.
        """
        h = module.encode(edge_index)
        check_rows(h, type(module).__name__, self.num_users, self.num_items)
        check_finite(**{f"what the {role} model encodes": h})
        decode = None if module.scores_dot_products else module.decode

        def scores(user: Tensor, item: Tensor) -> Tensor:
            found = pair_scores(module.decode, h, user, item + self.num_users)
            check_finite(**{f"the {role} model's scores": found})
            return found

        test, forgotten = (scores(some.user, some.item) for some in (self.test, self.forgotten))
        auroc = affected_auroc(test, self.test.label > 0, self.user_touched, self.item_touched)
        members, nonmembers = scores(self.members.user, self.members.item), scores(*self.nonmembers)
        return Answers(
            test=test,
            forgotten=forgotten,
            top=top_items(
                lambda users: block_scores(decode, h, users, self.candidates + self.num_users),
                self.users,
                self.seen,
                self.candidates,
                TOP,
            ),
            h=h.clone(),  # of matrix factorisation it is the parameter, which the next model overwrites
            attacks=attack_resamples(members, nonmembers, self.members.user, self.seed),
            figures={
                "auroc": auroc["all"],
                "auroc_or": auroc["or"],
                "auroc_and": auroc["and"],
                **ranking(decode, h, self.num_users, self.held_out, self.seen, self.candidates, TOP),
                "membership_auroc": float(membership_auroc(members, nonmembers)),
                "forgotten_probability": float(members.double().sigmoid().mean()),
            },
        )


def _rows(table: InteractionTable, rows: Tensor) -> Interactions:
    return Interactions(table.user[rows], table.item[rows], table.label[rows])
