r"""What was forgotten, as keyed digests: enough to recognise it when it is named again, and no name.

A digest is :math:`\mathrm{HMAC}_K` with SHA-256, cut to 16 bytes, of an id's kind and text, or of a pair of such
digests. By a plain hash, whoever has the checkpoint could find every person by trying all ids; by this one, whoever has
the key alone (see :func:`~lightning_ifru.keys.digest_key`).

Of an interaction the digest is that of its pair, without the label: what was forgotten of a pair stays so, whichever
label it comes with again. A label alone does not tell a new rating from an old one that is read by another threshold,
or from the other of two occurrences, and what cannot be told is left out.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_ifru.errors import DataError, UnlearningError
from lightning_ifru.keys import KEY, KEY_FILE, key_name

#: Bytes of a digest: among a billion of them two are the same less than once in 10^20 times.
SIZE = 16
Digests = Mapping[bytes, int]


def id_digests(key: bytes, side: str, texts: Iterable[str]) -> list[bytes]:
    """Return the digests of ids, by their texts; users and items of the same text have different ones.

    Example:
        >>> [user] = id_digests(b"k", "user", ["42"])
        >>> len(user), user in id_digests(b"k", "item", ["42"]), user in id_digests(b"other", "user", ["42"])
        (16, False, False)
    """
    prefix = f"{side}\0".encode()
    return [hmac.digest(key, prefix + text.encode(errors="surrogatepass"), "sha256")[:SIZE] for text in texts]


def pair_digests(key: bytes, users: Iterable[bytes], items: Iterable[bytes]) -> list[bytes]:
    """Return the digests of pairs, from those of their ids."""
    prefix = b"interaction\0"
    return [hmac.digest(key, prefix + pair, "sha256")[:SIZE] for pair in map(bytes.__add__, users, items)]


@dataclass(frozen=True)
class Part:
    """What was forgotten under one key.

    Attributes:
        pairs: digests of the pairs forgotten.
        users: the position of every user without a row left, at that time, by digest.
        items: the same for items.
    """

    pairs: frozenset[bytes] = frozenset()
    users: Digests = field(default_factory=dict)
    items: Digests = field(default_factory=dict)

    def __or__(self, other: Part) -> Part:
        return Part(self.pairs | other.pairs, {**other.users, **self.users}, {**other.items, **self.items})

    def __bool__(self) -> bool:
        return bool(self.pairs or self.users or self.items)

    def beyond(self, other: Part) -> Part:
        """Return what the other lacks."""
        users, items = (
            {digest: place for digest, place in mine.items() if digest not in theirs}
            for mine, theirs in ((self.users, other.users), (self.items, other.items))
        )
        return Part(self.pairs - other.pairs, users, items)

    def state(self) -> dict[str, Tensor]:
        """Return sorted tensors, which say nothing of any order: digests uint8 ``[n, 16]``, positions int64 ``[n]``."""
        found = {"pairs": _tensor(sorted(self.pairs))}
        for name, digests in (("users", self.users), ("items", self.items)):
            ordered = sorted(digests)
            found[name] = _tensor(ordered)
            found[f"{name}_at"] = torch.tensor([digests[digest] for digest in ordered], dtype=torch.int64)
        return found

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Part:
        """Return the part of a state.

        Raises:
            DataError: It is none.
        """
        pairs, users, items = (_digests(state, name) for name in ("pairs", "users", "items"))
        sides = []
        for name, digests in (("users", users), ("items", items)):
            places = state.get(f"{name}_at")
            if not isinstance(places, Tensor) or places.dtype != torch.int64 or places.shape != (len(digests),):
                raise DataError(_DAMAGED.format(f"{name}_at"))
            sides.append(dict(zip(digests, places.tolist(), strict=True)))
        return cls(frozenset(pairs), *sides)


@dataclass(frozen=True)
class ForgottenRecord:
    """All that was forgotten, by the name of the key that it was recorded under; never changed in place.

    What was recorded under another key than the present one is kept, and cannot be asked.

    Example:
        >>> record = ForgottenRecord().adding(b"k", [("42", "a")], users={"42": 7})
        >>> known = record.under(b"k")
        >>> known.user("42"), known.user("43"), known.pair("42", "a"), known.pair("42", "b")
        (True, False, True, False)
        >>> record.under(b"another").user("42"), record.under(b"another").others == record.names
        (False, True)
    """

    parts: Mapping[str, Part] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.parts)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return sum(len(part.pairs) for part in self.parts.values())

    def __or__(self, other: ForgottenRecord) -> ForgottenRecord:
        """Return what either has; where positions differ, those of the first."""
        names = [*self.parts, *(name for name in other.parts if name not in self.parts)]
        none = Part()
        return ForgottenRecord({name: self.parts.get(name, none) | other.parts.get(name, none) for name in names})

    @property
    def names(self) -> list[str]:
        """The names of the keys, sorted."""
        return sorted(self.parts)

    def adding(
        self,
        key: bytes,
        pairs: Iterable[tuple[str, str]],
        users: Mapping[str, int] | None = None,
        items: Mapping[str, int] | None = None,
    ) -> ForgottenRecord:
        """Return the record with more, by the texts of the ids.

        Args:
            key: the key.
            pairs: the pairs forgotten.
            users: those of which no row is left, and their positions.
            items: the same for items.
        """
        users, items = users or {}, items or {}
        pairs = list(pairs)
        # An id of many pairs is digested once.
        sides: list[dict[str, bytes]] = []
        for side, texts, whole in (("user", (u for u, _ in pairs), users), ("item", (i for _, i in pairs), items)):
            distinct = [*dict.fromkeys([*texts, *whole])]
            sides.append(dict(zip(distinct, id_digests(key, side, distinct), strict=True)))
        of_user, of_item = sides
        part = Part(
            frozenset(pair_digests(key, (of_user[u] for u, _ in pairs), (of_item[i] for _, i in pairs))),
            {of_user[text]: place for text, place in users.items()},
            {of_item[text]: place for text, place in items.items()},
        )
        return self | ForgottenRecord({key_name(key): part}) if part else self

    def beyond(self, other: ForgottenRecord) -> ForgottenRecord:
        """Return what the other lacks."""
        none = Part()
        left = {name: part.beyond(other.parts.get(name, none)) for name, part in self.parts.items()}
        return ForgottenRecord({name: part for name, part in left.items() if part})

    def under(self, key: bytes) -> Known:
        """Return what can be asked with a key."""
        name = key_name(key)
        return Known(key, self.parts.get(name, Part()), [other for other in self.names if other != name])

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return plain dicts of tensors, by the names of the keys."""
        return {name: self.parts[name].state() for name in self.names}

    @classmethod
    def of_state(cls, state: Any) -> ForgottenRecord:
        """Return the record of a state.

        Raises:
            DataError: It is none.
        """
        if not isinstance(state, Mapping) or not all(isinstance(part, Mapping) for part in state.values()):
            raise DataError(_DAMAGED.format("forgotten_record"))
        return cls({str(name): Part.of_state(part) for name, part in state.items()})


@dataclass(frozen=True)
class Known:
    """A record as it answers to one key.

    Attributes:
        key: the key.
        part: what was recorded under it.
        others: the names of the keys that the rest was recorded under.
    """

    key: bytes
    part: Part
    others: list[str]

    def user(self, text: str) -> bool:
        """Whether all of a user was forgotten at some time."""
        return id_digests(self.key, "user", [text])[0] in self.part.users

    def item(self, text: str) -> bool:
        """Whether all of an item was forgotten at some time."""
        return id_digests(self.key, "item", [text])[0] in self.part.items

    def pair(self, user: str, item: str) -> bool:
        """Whether a pair was forgotten."""
        digests = (id_digests(self.key, side, [text]) for side, text in (("user", user), ("item", item)))
        return pair_digests(self.key, *digests)[0] in self.part.pairs

    def check(self) -> None:
        """Refuse to go on where the rest would have to be asked.

        Raises:
            UnlearningError: Something was recorded under other keys.
        """
        if self.others:
            raise UnlearningError(f"what was forgotten before cannot be told from the rest: {self.wanted}.")

    @property
    def wanted(self) -> str:
        """Which key would be needed, for a message."""
        names = " and ".join(map(repr, self.others))
        return (
            f"it was recorded under the key named {names} and the present one is {key_name(self.key)!r}; set {KEY} to "
            f"that key, or {KEY_FILE} to its file"
        )


def _tensor(digests: Sequence[bytes]) -> Tensor:
    """Digests ``[n]`` as uint8 ``[n, 16]``."""
    if not digests:
        return torch.empty(0, SIZE, dtype=torch.uint8)
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(-1, SIZE)


def _digests(state: Mapping[str, Any], name: str) -> list[bytes]:
    tensor = state.get(name)
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8 or tensor.shape[1:] != (SIZE,):
        raise DataError(_DAMAGED.format(name))
    joined = tensor.cpu().contiguous().numpy().tobytes()
    return [joined[k : k + SIZE] for k in range(0, len(joined), SIZE)]


_DAMAGED = "the state's record of what was forgotten has no {!r} as state() returns it; give another checkpoint."
