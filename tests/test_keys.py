import os
import stat
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning_ifru import UnlearningRequest, keys
from lightning_ifru.errors import UnlearningError
from lightning_ifru.keys import KEY, KEY_FILE, digest_key, key_name, throwaway_key
from lightning_ifru.scan import scan


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No key anywhere, and a home folder of the test's own."""
    for name in (KEY, KEY_FILE, "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_environment_comes_first_then_the_file_named_then_the_home(home, monkeypatch):
    (home / "named").write_text("the key of the file\n")
    (home / "named").chmod(0o600)
    (home / "config/lightning-ifru").mkdir(parents=True)
    (home / "config/lightning-ifru/key").write_text("the key of the config\n")
    (home / "config/lightning-ifru/key").chmod(0o400)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    assert digest_key() == b"the key of the config"
    monkeypatch.setenv(KEY_FILE, str(home / "named"))
    assert digest_key() == b"the key of the file"
    monkeypatch.setenv(KEY, " the key of the environment\n")
    assert digest_key() == b"the key of the environment"
    monkeypatch.setenv(KEY, " ")
    assert digest_key() == b"the key of the file"
    assert not (home / ".config").exists()


@pytest.mark.parametrize("relative", ["", "somewhere"])
def test_a_key_is_made_once_for_its_owner_alone(home, monkeypatch, relative):
    monkeypatch.setenv("XDG_CONFIG_HOME", relative)
    key = digest_key()
    path = home / ".config/lightning-ifru/key"
    assert [p.name for p in path.parent.iterdir()] == ["key"]
    assert path.read_bytes().strip() == key == digest_key()
    assert len(bytes.fromhex(key.decode())) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    assert digest_key() != key


def test_a_file_that_is_named_and_not_there_is_made(home, monkeypatch):
    monkeypatch.setenv(KEY_FILE, str(home / "secrets/of/mine"))
    assert (home / "secrets/of/mine").exists() is False
    assert digest_key() == (home / "secrets/of/mine").read_bytes().strip()


def test_who_comes_at_the_same_time_gets_the_same_key():
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: digest_key(), range(8)))) == 1


def test_who_was_first_is_not_overwritten(home, monkeypatch):
    path = home / ".config/lightning-ifru/key"
    link = os.link

    def slower(source, target):
        path.write_text("the key of who was first")
        path.chmod(0o600)
        link(source, target)

    monkeypatch.setattr(keys.os, "link", slower)
    assert digest_key() == b"the key of who was first"
    assert [p.name for p in path.parent.iterdir()] == ["key"]


@pytest.mark.parametrize(
    ("content", "mode", "fragments"),
    [
        ("", 0o600, ["holds no key", "put back"]),
        (" \n", 0o600, ["holds no key"]),
        ("fifteen letters\n", 0o600, ["key of 15 bytes", "wanted 16 or more", "token_hex(32)"]),
        ("x" * 5000, 0o600, ["more than 4096 bytes"]),
        ("x", 0o640, ["by others (mode 640)", "chmod 600"]),
        ("x", 0o604, ["by others (mode 604)"]),
        ("x", 0o622, ["by others (mode 622)"]),
    ],
)
def test_a_file_that_holds_no_secret_is_refused(home, monkeypatch, content, mode, fragments):
    path = home / "key"
    path.write_text(content)
    path.chmod(mode)
    monkeypatch.setenv(KEY_FILE, str(path))
    with pytest.raises(UnlearningError) as caught:
        digest_key()
    for fragment in (*fragments, str(path)):
        assert fragment in str(caught.value)
    assert path.read_text() == content


def test_a_key_that_a_dictionary_has_is_refused(home, monkeypatch):
    monkeypatch.setenv(KEY, "fifteen letters ")
    with pytest.raises(UnlearningError, match=r"^LIGHTNING_IFRU_KEY holds a key of 15 bytes, .*token_hex\(32\)"):
        digest_key()
    monkeypatch.setenv(KEY, "sixteen letters!")
    assert digest_key() == b"sixteen letters!"


def test_what_is_no_file_is_refused(home, monkeypatch):
    os.mkfifo(home / "pipe", 0o600)
    monkeypatch.setenv(KEY_FILE, str(home / "pipe"))
    with pytest.raises(UnlearningError, match="no plain file"):
        digest_key()
    monkeypatch.setenv(KEY_FILE, str(home))
    with pytest.raises(UnlearningError, match="Is a directory"):
        digest_key()


def test_where_none_can_be_made_it_is_said(home, monkeypatch):
    (home / "file").write_text("in the way of a folder")
    monkeypatch.setenv(KEY_FILE, str(home / "file/key"))
    with pytest.raises(UnlearningError, match=r"neither read nor made in .*file/key .*set LIGHTNING_IFRU_KEY"):
        digest_key()
    monkeypatch.delenv(KEY_FILE)

    def nobody(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(keys.Path, "home", nobody)
    with pytest.raises(UnlearningError, match="Could not determine home directory"):
        digest_key()


def test_a_disk_that_is_full_leaves_nothing(home, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keys.os, "fsync", full)
    with pytest.raises(UnlearningError, match="No space left"):
        digest_key()
    assert list((home / ".config/lightning-ifru").iterdir()) == []


def test_the_name_of_a_key_says_nothing_of_it():
    assert key_name(b"a") != key_name(b"b")
    assert len(bytes.fromhex(key_name(b"a"))) == 8


def test_a_throwaway_key_is_of_its_block_alone(home, monkeypatch):
    seen = []
    for _ in range(2):
        with throwaway_key():
            seen.append(digest_key())
            assert digest_key() == seen[-1]
        assert KEY not in os.environ
    assert seen[0] != seen[1]
    assert list(home.iterdir()) == []
    monkeypatch.setenv(KEY, "the key of this test")
    with throwaway_key():
        assert digest_key() == b"the key of this test"
    assert os.environ[KEY] == "the key of this test"


def test_a_key_that_is_made_is_told_once(home):
    """On the error stream, where nobody has set up any logging."""
    program = "from lightning_ifru.keys import digest_key; digest_key(); digest_key()"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    (told,) = [line for line in done.stderr.splitlines() if "key" in line]
    assert f"a key for digests in {home / '.config/lightning-ifru/key'}; keep a copy" in told
    assert done.stdout == ""


def test_a_rehearsal_and_a_scan_make_no_key(home, trained):
    trainer, _, data = trained()
    request = UnlearningRequest(users=["person-003"])
    report = trainer.unlearn(data, request=request, dry_run=True)
    assert report.num_forgotten > 0
    assert report.digest == ""
    (home / "models").mkdir()
    trainer.save_checkpoint(home / "models/a.ckpt")
    report = scan(home / "models", request)
    assert report.findings
    assert report.digest == ""
    assert ["there is no key" in one.reason for one in report.unseen] == [True]
    assert not (home / ".config").exists()
    digest_key()
    report = scan(home / "models", request)
    assert report.digest == request.digest(digest_key())
    assert report.unseen == []


def test_a_key_beside_the_models_and_another_one_than_before_are_told(home, monkeypatch, trained):
    trainer, _, data = trained()
    monkeypatch.setenv(KEY_FILE, str(home / "models/secret/key"))
    first = key_name(digest_key())
    with pytest.warns(UserWarning, match=r"key of the digests is in .*models/secret/key, beside the models"):
        trainer.unlearn(data, request=UnlearningRequest(users=["person-003"]), output=home / "models/a.ckpt")

    def said(person, name):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.unlearn(data, request=UnlearningRequest(users=[person]), output=home / name)
        return [str(one.message) for one in caught if "key" in str(one.message)]

    monkeypatch.setenv(KEY_FILE, str(home / "key"))
    (told,) = said("person-004", "models/b.ckpt")
    assert f"under the key named {first!r}, and the present one is {key_name(digest_key())!r}" in told
    monkeypatch.setenv(KEY_FILE, str(home / "models/secret/key"))
    (home / "c").mkdir()
    (told,) = said("person-005", "c/c.ckpt")
    assert "under the key named" in told
