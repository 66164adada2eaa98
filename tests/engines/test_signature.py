"""Signatures beside a bundle, by key. Needs the extra `sign`; sigstore itself needs a network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from regcache_engines.errors import BundleError, ConfigError, VerificationError
from regcache_engines.signature import Signer, verify_signature


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"identity": "a@b.c"},
        {"issuer": "https://x"},
        {"identity": "a@b.c", "issuer": "https://x", "public_key": Path("k")},
    ],
    ids=str,
)
def test_who_must_be_said_whole(words: dict) -> None:
    with pytest.raises(ConfigError, match=r"--identity|--public-key"):
        Signer(**words)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ConfigError, match=r"regcache-deploy\[sign\]"):
        verify_signature(tmp_path, Signer(public_key=tmp_path / "key.pub"))


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with its signature beside it, and the public key."""
    signing = pytest.importorskip("model_signing.signing", reason="extra `sign`")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    encoding = serialization.Encoding.PEM
    private, public = tmp_path / "key", tmp_path / "key.pub"
    kinds = serialization.PrivateFormat.PKCS8, serialization.PublicFormat.SubjectPublicKeyInfo
    private.write_bytes(key.private_bytes(encoding, kinds[0], serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(encoding, kinds[1]))
    bundle = tmp_path / "x.regcache"
    bundle.mkdir()
    (bundle / "model.onnx").write_bytes(b"model")
    (bundle / ".hidden").write_bytes(b"hidden")
    signer = signing.Config().use_elliptic_key_signer(private_key=private)
    signer.sign(bundle, tmp_path / "x.regcache.sig")
    return bundle, public


def test_a_signature_holds_for_every_file(signed: tuple[Path, Path]) -> None:
    bundle, public = signed
    verify_signature(bundle, Signer(public_key=public))
    for name in ("model.onnx", ".hidden", "new"):
        path = bundle / name
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(b"other")
        with pytest.raises(VerificationError, match="no signature of"):
            verify_signature(bundle, Signer(public_key=public))
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
    verify_signature(bundle, Signer(public_key=public))


def test_what_is_missing_is_named(signed: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, public = signed
    with pytest.raises(ConfigError, match="no key"):
        verify_signature(bundle, Signer(public_key=tmp_path / "none"))
    with pytest.raises(BundleError, match="no signature"):
        verify_signature(bundle, Signer(public_key=public), tmp_path / "none.sig")
    (tmp_path / "x.regcache.sig").write_bytes(b"noise")
    with pytest.raises(VerificationError):
        verify_signature(bundle, Signer(public_key=public))
