"""What all subcommands' parsers have in common: refusals of one sentence, flags, and sizes taken from the data."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from lightning_ifru.bounded import printable, reason
from lightning_ifru.config_files import check_config, check_config_size
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import DataError, UnlearningError


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the lines of descriptions and epilogues as they are."""


class CommandParser(LightningArgumentParser):
    """Refuses what cannot be parsed in one sentence on the standard error, with exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.options: LightningArgumentParser = self  # or that of the only subcommand

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config file, unless it is too long."""
        with self._refusing():
            check_config_size(path)
            return super().parse_path(path, *args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config, unless it stands for more than memory holds."""
        with self._refusing():
            check_config(content)
            return super().parse_string(content, *args, **kwargs)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except UnlearningError as error:
            self.error(str(error), error)
        except (ValueError, OSError, RecursionError, OverflowError) as error:
            self.error(f"the config cannot be read ({reason(error)}); correct it", error)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with 2, or raise where jsonargparse itself only tries whether something can be parsed."""
        if not self.exit_on_error:
            super().error(message, ex)
        command = self.prog.partition(" [options]")[0]
        said = sentence(message).replace(f" {command.rpartition(' ')[2]}.", " --")  # of a subcommand's own options
        meant = _meant(said, self.options)
        sys.stderr.write(f"{command}: {printable(said + meant)}; {command} --help lists what there is.\n")
        raise SystemExit(2)


def add_flag(parser: LightningArgumentParser, name: str, what: str) -> None:
    """Add an option that is false by default; ``--name`` alone is ``--name true``."""
    parser.add_argument(f"--{name}", type=bool, nargs="?", const=True, default=False, help=what)


def link_sizes(parser: LightningArgumentParser, prepare: Callable[[InteractionDataModule], None] | None = None) -> None:
    """Let the model have the data's ``num_users`` and ``num_items``, if it takes them.

    Args:
        parser: has both.
        prepare: called with the data as they were built, before their sizes are asked for.
    """

    def size_of(data: InteractionDataModule, name: str) -> Any:
        if prepare is not None:
            prepare(data)
        return getattr(data, name)

    for size in _SIZES:
        asked = partial(size_of, name=size)
        asked.__name__ = size  # type: ignore[attr-defined]  # which is shown by --help
        parser.link_arguments("data", f"model.init_args.{size}", asked, apply_on="instantiate")


def check_sizes(model: Namespace, data: InteractionDataModule) -> None:
    """Refuse a config that gives the model other sizes than those of the data, which the link would override unasked.

    Args:
        model: the ``model`` of the config as parsed, before anything is made of it.
        data: the data of the same config.

    Raises:
        DataError: a size contradicts the data's.
    """
    for size in _SIZES:
        wanted, found = model.get("init_args", Namespace()).get(size), getattr(data, size)
        if wanted not in (None, found):
            raise DataError(
                f"the config gives the model {size}={wanted}, and the data have {found}; leave it out, or name the "
                "source that the model was trained on."
            )


@contextmanager
def built(what: str, *faults: type[Exception]) -> Iterator[None]:
    """Refuse in one sentence what constructors say about their arguments; all else they raise is a fault of theirs.

    Args:
        what: is built in the block.
        faults: what a constructor raises about its arguments beside ``ValueError``, ``ImportError`` and ``OSError``.

    Raises:
        MisconfigurationException, UnlearningError: the arguments are refused.
    """
    faults = (ValueError, ImportError, OSError, *faults)
    try:
        yield
    except faults as error:
        said: BaseException = error
        ours = (MisconfigurationException, UnlearningError)
        while said.__cause__ is not None and not isinstance(said, ours):
            said = said.__cause__  # jsonargparse makes a ValueError of whatever was raised
        if isinstance(said, ours):
            raise said from error
        if not isinstance(said, faults):
            raise
        reason = f"{type(said).__name__}: {sentence(str(said))}"
        raise UnlearningError(f"{what} could not be built ({reason}); correct the config.") from error


def sentence(message: str) -> str:
    r"""Return one line for jsonargparse's paragraphs, without what helps nobody.

    Example:
        >>> print(sentence('Parser key "seed":\n  Errors:\n    - Expected a <class \'int\'>\n  Given value: x'))
        Parser key "seed": Expected a int; Given value: x
    """
    lines = (line.strip().removeprefix("- ") for line in message.splitlines())
    said = " ".join(line if line.endswith(":") else f"{line};" for line in lines if not _NOISE.fullmatch(line))
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", said).rstrip(":;.")


def _meant(said: str, parser: LightningArgumentParser) -> str:
    """Return a question with the name that comes nearest to one that is not known, if there is one."""
    unknown = re.search(r"""(?:[Oo]ption|[Kk]ey|rguments:) ['"]?(?:--)?([\w.]+)(?!.*")""", said)
    if unknown is None:
        return ""
    name, known = unknown[1], list(parser.get_defaults().keys())
    path = re.search(r"class_path '([\w.]+)\.(\w+)'", said)
    if path is not None:
        made = getattr(sys.modules.get(path[1]), path[2], None)
        known = list(inspect.signature(made).parameters) if callable(made) else []
    nearest = get_close_matches(name, known, n=1)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""


NO_TRAINER = "got a trainer without settings; write them below it, or leave it out"
#: Options of the fit alone, which a config that a fit has written or printed holds: the other commands pass over them.
OF_THE_FIT: dict[str, Any] = {"without": list[str] | str | None, "report": str | None, "overwrite": bool | None}
_SIZES = ("num_users", "num_items")
_NOISE = re.compile(
    r"|Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*"
    r"|Given value: (?:[{\[]|NestedArg|Namespace).*|Expected a <class 'NoneType'>"
)
