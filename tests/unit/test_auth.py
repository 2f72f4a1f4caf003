"""The domain key: what is accepted as one, and that it is never shown."""

from __future__ import annotations

import hashlib
import hmac
import pickle
from pathlib import Path

import pytest

from m2m.auth import KEY_SIZE, MAC_SIZE, DomainKey
from m2m.errors import ConfigError

SECRET = bytes(range(100, 100 + KEY_SIZE))


def write_key(path: Path, secret: bytes = SECRET, mode: int = 0o600) -> Path:
    path.write_bytes(secret)
    path.chmod(mode)
    return path


def test_a_key_file_that_only_its_owner_can_read_is_loaded(tmp_path: Path) -> None:
    key = DomainKey.load(write_key(tmp_path / "key"))
    assert key.mac(b"data") == DomainKey(SECRET).mac(b"data")
    assert not key.is_insecure


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o620, 0o601])
def test_a_key_file_open_to_others_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = write_key(tmp_path / "key", mode=mode)
    with pytest.raises(ConfigError, match=rf"mode {mode:04o}.*chmod 600 {path}"):
        DomainKey.load(path)


@pytest.mark.parametrize("size", [0, KEY_SIZE - 1, 5000])
def test_a_key_file_of_a_wrong_size_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ConfigError, match="bytes, and a key has 32 to 4096"):
        DomainKey.load(write_key(tmp_path / "key", b"x" * size))


def test_a_missing_key_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*m2m-policy keygen"):
        DomainKey.load(tmp_path / "none")


def test_a_directory_is_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read key file"):
        DomainKey.load(tmp_path)


def test_generate_writes_a_fresh_private_key_that_load_accepts(tmp_path: Path) -> None:
    one = DomainKey.generate(tmp_path / "one")
    DomainKey.generate(tmp_path / "two")
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "one").read_bytes() != (tmp_path / "two").read_bytes()
    assert DomainKey.load(tmp_path / "one").mac(b"x") == one.mac(b"x")


def test_generate_never_overwrites(tmp_path: Path) -> None:
    path = write_key(tmp_path / "key")
    with pytest.raises(ConfigError, match="exists already"):
        DomainKey.generate(path)
    assert path.read_bytes() == SECRET


@pytest.mark.parametrize("size", [32, 63, 64, 65, 4096])
def test_the_mac_is_truncated_hmac_sha256(size: int) -> None:
    secret = (SECRET * 128)[:size]
    key = DomainKey(secret)
    for data in (b"data", b"", b"x" * 2000):
        assert key.mac(data) == hmac.new(secret, data, hashlib.sha256).digest()[:MAC_SIZE]


def test_verify_accepts_the_mac_and_nothing_near_it() -> None:
    key = DomainKey(SECRET)
    mac = key.mac(b"data")
    assert key.verify(b"data", mac)
    assert not key.verify(b"datb", mac)
    assert not key.verify(b"data", mac[:-1])
    assert not key.verify(b"data", b"")
    for bit in range(8 * MAC_SIZE):
        changed = (int.from_bytes(mac, "big") ^ 1 << bit).to_bytes(MAC_SIZE, "big")
        assert not key.verify(b"data", changed)
    assert not DomainKey(SECRET[::-1]).verify(b"data", mac)


def test_derived_keys_differ_by_context_and_from_their_parent() -> None:
    key = DomainKey(SECRET)
    macs = {
        k.mac(b"data")
        for k in (key, key.derive(b"ab"), key.derive(b"a", b"b"), key.derive(b"a"), key.derive())
    }
    assert len(macs) == 5
    assert key.derive(b"ab").mac(b"data") == DomainKey(SECRET).derive(b"ab").mac(b"data")


def test_the_insecure_key_is_the_same_everywhere_and_says_so() -> None:
    one, two = DomainKey.insecure(), DomainKey.insecure()
    assert one.mac(b"data") == two.mac(b"data")
    assert one.is_insecure
    assert one.derive(b"x").is_insecure
    assert repr(one) == "<DomainKey, insecure>"


def test_the_secret_is_not_in_repr_str_or_pickles() -> None:
    key = DomainKey(SECRET)
    assert repr(key) == str(key) == f"{key}" == "<DomainKey>"
    with pytest.raises(TypeError, match="not to be pickled"):
        pickle.dumps(key)
    assert not hasattr(key, "__dict__")
