"""The key of all digests: whoever has it can tell whose a digest is, and nobody else can, not even by trying all ids.

So it stands outside of everything that an unlearning writes: in the environment, or in a file of its own.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_ifru.errors import UnlearningError

KEY, KEY_FILE = "LIGHTNING_IFRU_KEY", "LIGHTNING_IFRU_KEY_FILE"
#: Whoever tries all words of a dictionary as the key would find a shorter one.
LEAST_BYTES = 16
#: A key file holds one short line; what is longer is some other file.
MOST_BYTES = 4096

_log = logging.getLogger(__name__)


def digest_key() -> bytes:
    """Return the key of all digests; where there is none yet, make one that stays.

    It is the environment variable ``LIGHTNING_IFRU_KEY``; or else what is in the file named by
    ``LIGHTNING_IFRU_KEY_FILE``; or else what is in ``lightning-ifru/key`` below ``$XDG_CONFIG_HOME`` or ``~/.config``.
    A file that is not there yet is made, with a random key and for its owner alone, and that is said. Blanks around a
    key do not count, so that a file and a variable filled from it are the same key.

    Raises:
        UnlearningError: The key has fewer than 16 bytes; or the file can be read by others, holds no key, or can be
            neither read nor made.

    Example:
        >>> with throwaway_key():
        ...     digest_key() == digest_key()
        True
    """
    given = os.environ.get(KEY, "").strip()
    if given:
        return _long(os.fsencode(given), KEY)
    path: Path | str = "lightning-ifru/key of a home folder"
    try:
        path = _key_file()
        if not path.exists() and _make(path):
            # Not Lightning's way to say it, for what stands below it uses keys too; so loud that it is shown unasked.
            _log.warning(
                "Made a key for digests in %s; keep a copy, and give scheduled jobs the same one: under another key "
                "nobody can tell what was forgotten before.",
                path,
            )
        return _read(path)
    except (OSError, RuntimeError) as error:  # the latter where nobody knows of a home folder
        reason = getattr(error, "strerror", None) or error
        raise UnlearningError(
            f"the key of the digests can be neither read nor made in {path} ({reason}); set {KEY} to a secret, or "
            f"{KEY_FILE} to the path of a file that you can write."
        ) from error


def has_key() -> bool:
    """Return whether there is a key of digests, or :func:`digest_key` would make one.

    Example:
        >>> with throwaway_key():
        ...     has_key()
        True
    """
    try:
        return bool(os.environ.get(KEY, "").strip()) or _key_file().exists()
    except (OSError, RuntimeError):
        return False


def key_file_in(folder: Path) -> Path | None:
    """Return the key file if it stands below a folder, where whoever gets the folder gets the key."""
    if os.environ.get(KEY, "").strip() or not has_key():
        return None
    path = _key_file().resolve()
    return path if path.is_relative_to(folder.resolve()) else None


def key_name(key: bytes) -> str:
    """Return the name of a key, 16 hex digits, by which digests of another key are recognised; it is no secret.

    Example:
        >>> key_name(b"secret") == key_name(b"secret"), key_name(b"secret") == key_name(b"another")
        (True, False)
    """
    return hmac.digest(key, b"lightning-ifru: the name of this key", "sha256").hex()[:16]


@contextmanager
def throwaway_key() -> Iterator[None]:
    """Take a random key within the block and forget it, unless the environment has one; no file is read or made.

    Example:
        >>> with throwaway_key():
        ...     KEY in os.environ
        True
    """
    if os.environ.get(KEY, "").strip():
        yield
        return
    os.environ[KEY] = secrets.token_hex(32)
    try:
        yield
    finally:
        os.environ.pop(KEY, None)


def _key_file() -> Path:
    named = os.environ.get(KEY_FILE, "")
    if named:
        return Path(named)
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    # As the specification of these folders has it, a relative path does not count.
    base = Path(folder) if os.path.isabs(folder) else Path.home() / ".config"
    return base / "lightning-ifru" / "key"


def _make(path: Path) -> bool:
    """Make the file with a random key, whole or not at all; where another process was first, its key stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # for its owner alone
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)  # which fails where there is one, as O_EXCL does, and makes no part of a file
        except FileExistsError:
            return False
    finally:
        os.unlink(name)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        # What was forgotten under a key that a power cut has taken could never be recognised again.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return True


def _read(path: Path) -> bytes:
    # A pipe would otherwise be waited for.
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise UnlearningError(f"the key file {path} is no plain file; give {KEY_FILE} the path of one.")
        if os.name == "posix" and mode & 0o077:
            raise UnlearningError(
                f"the key file {path} can be read or written by others (mode {mode & 0o777:o}); take the right from "
                "them (chmod 600), and if others may have seen the key, choose another one."
            )
        key = file.read(MOST_BYTES + 1)
    if not key.strip() or len(key) > MOST_BYTES:
        held = "no key" if len(key) <= MOST_BYTES else f"more than {MOST_BYTES} bytes"
        raise UnlearningError(
            f"the key file {path} holds {held}; put back the key under which there were digests before, or delete the "
            "file, if there were none, to have one made."
        )
    return _long(key.strip(), f"the key file {path}")


def _long(key: bytes, where: str) -> bytes:
    if len(key) < LEAST_BYTES:
        raise UnlearningError(
            f"{where} holds a key of {len(key)} bytes, which a dictionary finds out; wanted {LEAST_BYTES} or more, by "
            "chance: python -c 'import secrets; print(secrets.token_hex(32))' makes one."
        )
    return key
