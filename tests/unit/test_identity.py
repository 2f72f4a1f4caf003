"""Device keys: what can be proved with them, to whom, and that they stay where they are."""

from __future__ import annotations

import hmac
import pickle
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from m2m.errors import ConfigError
from m2m.identity import ANONYMOUS, PROOF_SIZE, Identity

A, B, EVE = (Identity(bytes([n]) * 32) for n in (1, 2, 3))


def test_two_hosts_prove_to_each_other_and_nobody_else() -> None:
    proof = A.prove(B.device, 7, b"moved")
    assert len(proof) == PROOF_SIZE
    assert B.proves(A.device, 7, b"moved", proof)
    assert not B.proves(A.device, 8, b"moved", proof)  # another session
    assert not B.proves(A.device, 7, b"Moved", proof)
    assert not B.proves(EVE.device, 7, b"moved", proof)
    assert not EVE.proves(A.device, 7, b"moved", proof)
    assert not B.proves(A.device, 7, b"moved", EVE.prove(B.device, 7, b"moved"))


def test_who_has_no_device_proves_nothing() -> None:
    assert not B.proves(ANONYMOUS, 7, b"moved", B.prove(ANONYMOUS, 7, b"moved"))


def test_a_point_that_shares_a_secret_with_everybody_shares_none() -> None:
    for point in (bytes(32), b"\1" + bytes(31)):  # of small order (RFC 7748 6.1)
        assert A.prove(point, 7, b"x") != B.prove(point, 7, b"x")


def test_the_device_is_the_public_key_of_the_secret() -> None:
    key = X25519PrivateKey.from_private_bytes(bytes([1]) * 32)
    assert A.device == key.public_key().public_bytes_raw()


def test_a_key_is_made_once_and_found_again(tmp_path: Path) -> None:
    file = tmp_path / "ue.device"
    made = Identity.load(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Identity.load(file).device == made.device
    file.unlink()
    assert Identity.load(file).device != made.device


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ue.device"
    file.write_bytes(bytes(31))
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="does not have 32 bytes"):
        Identity.load(file)
    file.write_bytes(bytes(32))
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 0640.*chmod 600"):
        Identity.load(file)
    with pytest.raises(ConfigError, match="cannot write"):
        Identity.load(tmp_path / "nowhere" / "ue.device")
    with pytest.raises(ConfigError, match="32 bytes, not 3"):
        Identity(b"abc")


def test_it_is_not_shown_or_stored() -> None:
    assert repr(A) == f"<Identity of device {A.device[:4].hex()}>"
    with pytest.raises(TypeError, match="not to be pickled"):
        pickle.dumps(A)


def test_a_proof_is_an_hmac_under_the_session_key() -> None:
    """RFC 2104, computed another way."""
    public = X25519PublicKey.from_public_bytes(B.device)
    shared = X25519PrivateKey.from_private_bytes(bytes([1]) * 32).exchange(public)
    key = hmac.digest(shared, b"m2m session" + (7).to_bytes(8, "big"), "sha256")
    for content in (b"", b"moved", b"x" * 200):
        expected = hmac.digest(key, content, "sha256")[:PROOF_SIZE]
        assert A.prove(B.device, 7, content) == expected
        assert A.prove(B.device, 7, content) == expected  # whatever has been proved before
