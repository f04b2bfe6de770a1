"""Config files, looked at before they are parsed: a few lines of YAML can stand for more than any memory holds."""

from __future__ import annotations

import os
from contextlib import suppress

import yaml

from lightning_ifru.errors import DataError

#: Bytes of a config: a hundred times the longest that LightningCLI writes.
MAX_CONFIG = 1 << 20
#: Values in a config with every alias written out, some hundred times what a config has.
MAX_VALUES = 20_000
#: Levels of a config: a trainer's callback's init_args' method's init_args are at the eighth.
MAX_LEVELS = 50


def check_config_size(path: str | os.PathLike[str]) -> None:
    """Refuse a config file that is too long, before it is read.

    Raises:
        DataError: it is.
    """
    if os.path.isfile(path) and os.path.getsize(path) > MAX_CONFIG:
        raise DataError(f"the config has more than {MAX_CONFIG:,} bytes; give the settings alone, and data as files.")


def check_config(text: str) -> None:
    r"""Refuse a config that is too long, nested too deep, or has aliases that stand for too much.

    Raises:
        DataError: it is. What is no YAML passes: the parser says what is wrong with it.

    Example:
        >>> check_config("a: &one [1, 2]\nb: [*one, *one]")
        >>> laughs = [f"{x}: &{x} [{', '.join(30 * ['*' + y])}]" for x, y in ("ba", "cb", "dc", "ed")]
        >>> check_config("a: &a 1\n" + "\n".join(laughs))
        Traceback (most recent call last):
        lightning_ifru.errors.DataError: the config has more than 20,000 values ...
    """
    if len(text.encode(errors="surrogatepass")) > MAX_CONFIG:
        raise DataError(f"the config has more than {MAX_CONFIG:,} bytes; give the settings alone, and data as files.")
    total, sizes = 0, dict[str, int]()
    open_nodes: list[tuple[str | None, int]] = []
    with suppress(yaml.YAMLError):
        for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, total))
                total += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_nodes.pop()
                sizes |= {} if anchor is None else {anchor: total - before}
            elif isinstance(event, yaml.AliasEvent):
                if any(anchor == event.anchor for anchor, _ in open_nodes):
                    raise DataError(f"the config has a value that holds itself (*{event.anchor}); write it out.")
                total += sizes.get(event.anchor, 1)
            elif isinstance(event, yaml.ScalarEvent):
                total += 1
                sizes |= {} if event.anchor is None else {event.anchor: 1}
            if total > MAX_VALUES:
                raise DataError(f"the config has more than {MAX_VALUES:,} values with its aliases; write fewer.")
            if len(open_nodes) > MAX_LEVELS:
                raise DataError(f"the config is nested deeper than {MAX_LEVELS} levels; write it flatter.")
