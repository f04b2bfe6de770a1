"""What a scan looks for: a request's ids in columns, in numbers and in bytes, and which of them say something anywhere.

A ``42`` in a file of metrics is nobody. So an id that is short, one word or a small number is looked for only where a
name says what stands there: a column, a key, a table of ids. One that is long or unusual is looked for everywhere.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lightning_ifru.ids import id_text, whole_text
from lightning_ifru.request import LineKey, UnlearningRequest

Kind = Literal["user", "item"]
Found = Counter[int]
"""How often each entry of the request was found, by its number."""

#: Bytes by which the search goes, and thus the shortest form of an id that it can find.
_KEY = 6
#: Bytes between the two ids of a pair, at most, where no columns or keys tell that they are one.
_NEAR = 256
#: Characters of a name that is none of a column or key any more, and how many names are kept.
_LONG_NAME, _MOST_NAMES = 256, 1 << 12
#: Bytes times forms that are sooner looked for one by one.
_FEW = 1 << 16


def is_telling(text: str) -> bool:
    """Return whether an id is long or unusual enough to mean the same wherever it stands.

    Numbers from ten digits on, other figures and words of plain letters from twelve characters on, and all else from
    six bytes on.

    Example:
        >>> [is_telling(text) for text in ("42", "1234567890", "2024-05-01", "accuracy", "person-003", "李雷")]
        [False, True, False, False, True, True]
    """
    if re.fullmatch(r"[0-9]+", text):
        return len(text) >= 10
    if re.fullmatch(r"[0-9eE.,:/+ -]+|[A-Za-z]+", text):
        return len(text) >= 12
    return len(text.encode()) >= _KEY


class Needles:
    """The ids of a request in the forms in which they can stand in a file.

    Args:
        request: what is looked for.
        user: what users' ids are called in columns and keys, apart from "user"; case, underscores and a final "id" or
            "s" do not matter.
        item: the same for items.

    Attributes:
        keys: of each entry its key in the request's ``texts``.
        labels: what each entry is called, by its place in the request and without its id.
        spelled: of each entry its ids as they are written, and without the .0 behind whole numbers.
        quiet: how many entries only a name beside them would give away.
        longest: bytes of the longest form of an id.

    Example:
        >>> needles = Needles(UnlearningRequest(users=[42, "person-003"]), user="member")
        >>> [needles.kind_of(name) for name in ("user_ids", "memberId", "num_users", "id")]
        ['user', 'user', None, None]
        >>> needles.in_column("user", ["42", "43"]), needles.in_values([42], None)
        (Counter({0: 1}), Counter())
        >>> needles.in_bytes(b"seen: person-003, not person-0031", text=True)
        Counter({1: 1})
    """

    def __init__(self, request: UnlearningRequest, user: str = "user", item: str = "item") -> None:
        self.keys = list(request.texts)
        self.labels = [_label(request, key, number) for number, key in enumerate(self.keys)]
        self._names = {"user": {"user", _plain_name(user)} - {""}, "item": {"item", _plain_name(item)} - {""}}
        self._kinds: dict[str, Kind | None] = {}  # with the needles, for a name can be somebody's
        self._whole: dict[str, dict[str, int]] = {"user": {}, "item": {}}
        self._pairs: dict[tuple[str, str], int] = {}
        self.spelled: list[list[tuple[str, ...]]] = []
        for number, (kind, key) in enumerate(self.keys):
            texts: tuple[str, ...] = (key,) if isinstance(key, str) else key  # type: ignore[assignment]
            self.spelled.append([*itertools.product(*map(_spellings, texts))])
            for one in self.spelled[-1]:
                if kind == "interaction":
                    self._pairs.setdefault((one[0], one[1]), number)
                else:
                    self._whole[kind].setdefault(one[0], number)
        self.quiet = sum(not all(map(is_telling, itertools.chain(*entry))) for entry in self.spelled)
        whole = [text for texts in self._whole.values() for text in texts]
        parts = {part for pair in self._pairs for part in pair}
        forms = {text.encode(): text for text in parts.union(whole) if is_telling(text)}
        self.longest = max(map(len, forms), default=_KEY)
        self._text = _Search(forms)
        self._binary = _Search(forms | {form: text for text in forms.values() for form in _binary(text)})
        self._numbers = {value: text for text in whole if (value := _number(text)) is not None}

    def ids(self, kind: Kind) -> list[str]:
        """Return the ids that the request names, alone or in a pair."""
        side = ("user", "item").index(kind)
        return [*self._whole[kind], *(pair[side] for pair in self._pairs)]

    def kind_of(self, name: Any) -> Kind | None:
        """Return whose ids stand under this name of a column or key, or ``None``."""
        if not isinstance(name, str) or len(name) > _LONG_NAME:
            return None
        if name not in self._kinds:
            plain = _plain_name(name)
            kind: Kind | None = "user" if plain in self._names["user"] else None
            kind = "item" if kind is None and plain in self._names["item"] else kind
            if len(self._kinds) == _MOST_NAMES:
                self._kinds.clear()
            self._kinds[name] = kind
        return self._kinds[name]

    def in_column(self, kind: Kind, texts: Iterable[str]) -> Found:
        """Find whole ids in a column of them, however short they are."""
        known = self._whole[kind]
        return Counter(known[text] for text in texts if text in known) if known else Counter()

    def in_pairs(self, users: Iterable[str], items: Iterable[str]) -> Found:
        """Find pairs in two columns of ids."""
        if not self._pairs:
            return Counter()
        return Counter(self._pairs[pair] for pair in zip(users, items, strict=True) if pair in self._pairs)

    def is_telling_pair(self, pair: tuple[str, str]) -> bool:
        """Return whether a pair that stands alone is one of the request's, and no two small numbers."""
        return pair in self._pairs and any(map(is_telling, pair))

    def in_values(self, values: Sequence[Any], kind: Kind | None) -> Found:
        """Find ids among plain values of which a name says ``kind``, or nothing."""
        strings = [value for value in values if isinstance(value, str)]
        numbers = [
            id_text(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        found = self.in_column(kind, [*strings, *numbers]) if kind else Counter()
        if numbers:
            found |= self._anywhere(numbers)
        if strings:
            found |= self.in_bytes("\0".join(strings).encode(errors="surrogatepass"), text=True)
        return found

    def in_numbers(self, array: npt.NDArray[Any], kind: Kind | None) -> Found:
        """Find ids in an array of numbers: all those of ``kind``, and long ones in any."""
        named = self._whole[kind] if kind else {}
        wanted = {number: text for number, text in self._numbers.items() if text in named or is_telling(text)}
        if array.dtype.kind in "iu":
            limits = np.iinfo(array.dtype)
            wanted = {number: text for number, text in wanted.items() if limits.min <= number <= limits.max}
        elif array.dtype != np.float64:  # coarser ones hold no number of ten digits
            wanted = {number: text for number, text in wanted.items() if text in named}
        found: Found = Counter()
        if not wanted or array.dtype.kind not in "iuf":
            return found
        hits = array[np.isin(array, np.array(list(wanted), dtype=array.dtype))]
        for value, count in zip(*np.unique(hits, return_counts=True), strict=True):
            text = wanted.get(int(value), "")
            for each, known in self._whole.items():
                if text in known and (each == kind or is_telling(text)):
                    found[known[text]] += int(count)
        return found

    def in_bytes(self, data: bytes, *, text: bool) -> Found:
        """Find ids that say something wherever they stand; pairs where both are in one line and near each other.

        Args:
            data: the bytes.
            text: whether they are text, in which words have borders and numbers are written out.
        """
        return self.in_lines(data, text=text)[0]

    def in_lines(self, data: bytes, *, text: bool) -> tuple[Found, int]:
        """Return what :meth:`in_bytes` does, and in which line the first stands, from 0 on."""
        search = self._text if text else self._binary
        hits = [
            (place, search.forms[form])
            for place, form in search.hits(data)
            if form != search.forms[form].encode() or _bordered(data, place, place + len(form), text=text)
        ]
        found: Found = Counter()
        if not hits:
            return found, 0
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n"))
        lines = np.searchsorted(ends, [place for place, _ in hits]).tolist()
        first = None
        for number, (place, text_here) in enumerate(hits):
            here = self._anywhere([text_here])
            for other in range(number + 1, len(hits)) if self._pairs else ():
                if hits[other][0] > place + _NEAR or lines[other] != lines[number]:
                    break
                both = text_here, hits[other][1]
                here.update(self._pairs[pair] for pair in (both, both[::-1]) if pair in self._pairs)
            found.update(here)
            first = lines[number] if here and first is None else first
        return found, first or 0

    def _anywhere(self, texts: Iterable[str]) -> Found:
        """Find those that say something wherever they stand."""
        found: Found = Counter()
        for text in texts:
            for known in self._whole.values():
                if text in known and is_telling(text):
                    found[known[text]] += 1
        return found


class _Search:
    """Many forms of ids at once: by their first bytes, then in full."""

    def __init__(self, forms: dict[bytes, str]) -> None:
        self.forms = forms
        self._lengths: dict[int, set[int]] = {}
        for form in forms:
            self._lengths.setdefault(_first(form), set()).add(len(form))
        self._keys = np.array(sorted(self._lengths), dtype=np.uint64)
        self._begins = np.zeros(1 << 16, dtype=np.bool_)
        self._begins[(self._keys & np.uint64(0xFFFF)).astype(np.int64)] = True

    def hits(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield where a form stands, and the form."""
        if not self.forms or len(data) < _KEY:
            return
        if len(data) * len(self.forms) < _FEW:
            yield from sorted((place, form) for form in self.forms for place in _places(form, data))
            return
        padded = data + bytes(16)
        places = []
        for shift in range(8):
            words = np.frombuffer(padded, dtype="<u8", offset=shift, count=len(data) // 8 + 1)
            # Few beginnings are anybody's: the rest is not looked at further.
            some = np.flatnonzero(self._begins[(words & np.uint64(0xFFFF)).astype(np.int64)])
            keys = words[some] & np.uint64((1 << 8 * _KEY) - 1)
            places.append(some[np.isin(keys, self._keys)] * 8 + shift)
        for place in np.sort(np.concatenate(places)).tolist():
            for length in self._lengths[_first(padded[place : place + _KEY])]:
                if (form := data[place : place + length]) in self.forms:
                    yield place, form


def _places(form: bytes, data: bytes) -> Iterator[int]:
    """Where a form stands; a pattern of it would stay in the cache of patterns of the process."""
    place = data.find(form)
    while place >= 0:
        yield place
        place = data.find(form, place + 1)


def _first(form: bytes) -> int:
    return int.from_bytes(form[:_KEY], "little")


def _binary(text: str) -> Iterator[bytes]:
    """A long number as arrays and pickles hold it."""
    number = _number(text)
    if number is None or number < 0:
        return
    yield struct.pack("<Q", number)
    yield struct.pack(">Q", number)
    if number >= 1 << 31:
        size = number.bit_length() // 8 + 1
        yield b"\x8a" + bytes([size]) + number.to_bytes(size, "little")


def _number(text: str) -> int | None:
    """The whole number that an id is, if that is its only spelling."""
    return int(text) if re.fullmatch(r"0|-?[1-9][0-9]{0,19}", text) and -(1 << 63) <= int(text) < 1 << 64 else None


def _bordered(data: bytes, begin: int, end: int, *, text: bool) -> bool:
    """Whether an id stands by itself, and is no part of a longer word or number."""
    before, after = data[max(0, begin - 2) : begin], data[end : end + 2]
    if not text and before and before[-1] == end - begin:
        return True  # the length that binary formats put before a text
    inside = _WORD if text else _DIGIT
    if any(
        inside.match(edge) and inside.match(beside)
        for edge, beside in (
            (data[begin : begin + 1], before[-1:]),
            (data[end - 1 : end], after[:1]),
        )
    ):
        return False
    # No decimals of a number, and no number that has decimals.
    number = data[begin:end].isdigit()
    return not (number and (_WHOLE_PART.fullmatch(before) or _DECIMALS.fullmatch(after)))


_WORD, _DIGIT = re.compile(rb"[0-9A-Za-z\x80-\xff]"), re.compile(rb"[0-9]")
_WHOLE_PART, _DECIMALS = re.compile(rb"[0-9]\."), re.compile(rb"\.[0-9]")


def _plain_name(name: str) -> str:
    return re.sub(r"s$", "", re.sub(r"ids?$", "", re.sub(r"[^0-9a-z]", "", name.casefold())))


def _spellings(text: str) -> list[str]:
    """An id as it is written, and without the .0 that tables with gaps write behind whole numbers."""
    whole = whole_text(text)
    return [text] if whole is None else [text, whole]


def _label(request: UnlearningRequest, key: LineKey, number: int) -> str:
    for what, places in (("line", request.lines), ("row", request.rows)):
        if key in places:
            return f"{key[0]} ({what} {places[key]})"
    return f"{key[0]} (entry {number + 1})"
