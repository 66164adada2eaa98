"""Who signed a bundle: signatures of the OpenSSF's model-signing, beside the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import BundleError, ConfigError, VerificationError

SUFFIX = ".sig"
"""`NAME.regcache.sig` lies beside `NAME.regcache`: inside, it would have to sign itself."""


@dataclass(frozen=True)
class Signer:
    """Whose signature is asked for: an identity of sigstore, or the owner of a key.

    Attributes:
        identity: e-mail address or URI in sigstore's certificate.
        issuer: OpenID provider that vouched for it (https://accounts.google.com).
        public_key: PEM file of an elliptic curve key, in place of both.

    Raises:
        ConfigError: neither of the two, both, or an identity without an issuer.
    """

    identity: str | None = None
    issuer: str | None = None
    public_key: Path | None = None

    def __post_init__(self) -> None:
        if (self.identity is None) is (self.public_key is None):
            raise ConfigError("a signature is checked by --identity or by --public-key; give one")
        if (self.identity is None) is not (self.issuer is None):
            raise ConfigError("--identity and --issuer go together: who, and who vouches for it")


def verify_signature(bundle: Path, signer: Signer, signature: Path | None = None) -> None:
    """Hold every file of a bundle, hidden ones too, against a signature.

    Args:
        bundle: folder.
        signer: who must have signed.
        signature: file; None is `NAME.regcache.sig` beside the bundle.

    Raises:
        ConfigError: model-signing is not installed (extra `sign`), or there is no such key.
        BundleError: there is no signature.
        VerificationError: somebody else's signature, or of other files; or sigstore's roots of
            trust cannot be had.
    """
    try:
        from model_signing import hashing, verifying
    except ImportError as error:
        raise ConfigError(
            f"signatures need model-signing, which is not installed or does not load ({error}); "
            "run: pip install 'regcache-deploy[sign]'"
        ) from error
    place = signature or bundle.with_name(bundle.resolve().name + SUFFIX)
    if not place.is_file():
        raise BundleError(f"there is no signature {place}; give its file with --signature")
    if signer.public_key is not None and not signer.public_key.is_file():
        raise ConfigError(f"there is no key {signer.public_key}; check --public-key")
    config = verifying.Config().set_hashing_config(hashing.Config())
    try:
        if signer.public_key is not None:
            config = config.use_elliptic_key_verifier(public_key=signer.public_key)
        else:
            config = config.use_sigstore_verifier(
                identity=signer.identity, oidc_issuer=signer.issuer
            )
        config.verify(bundle, place)
    except Exception as error:  # the library, sigstore and the network each raise their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VerificationError(
            f"{place} is no signature of {bundle} by "
            f"{signer.identity or signer.public_key}: {reason:.300}"
        ) from error
