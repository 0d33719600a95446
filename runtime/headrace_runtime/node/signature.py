"""Signatures of models in the form of OpenSSF's model-signing: is this the list of files that the key's owner signed?

A Sigstore bundle (`model.sig`, beside the weights) with a DSSE envelope around an in-toto statement, which lists the
SHA-256 of each file: what `model_signing sign key` writes from version 1.0 on, with an elliptic-curve key. Verified
with `cryptography` alone, since the package itself brings 50 MB that a verifier with a key has no use for. Pure; no
word of a statement is read before its signature holds. Called by `weights.py`, which compares the files.

https://github.com/sigstore/model-transparency, https://github.com/secure-systems-lab/dsse
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

BUNDLE = "model.sig"
"""Where the bundle is, relative to the model's folder."""

_BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_HASHES: Mapping[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
_HEX = re.compile(r"[0-9a-f]{64}")
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class SignatureError(Exception):
    """No list of files comes of this bundle and this key. The message says why and names no path of a node."""


@dataclass(frozen=True)
class Signed:
    """What the key's owner says of a model's folder."""

    files: Mapping[str, str]
    """SHA-256 in hex by path relative to the folder."""
    ignored: tuple[str, ...]
    """Files, and folders with all below them, that the signer left out; the bundle itself is always among them."""

    def leaves_out(self, path: str) -> bool:
        whole = PurePosixPath(path)
        return any(whole.is_relative_to(part) for part in self.ignored)


def verify(bundle: bytes, public_key: bytes) -> Signed:
    """The files that the owner of `public_key` (PEM) signed for in `bundle`. Raises SignatureError."""
    key = _key(public_key)
    try:
        payload = _payload(json.loads(bundle), key)
    except _MALFORMED as error:
        raise SignatureError(f"{BUNDLE} is no bundle of model-signing 1.0 or later") from error
    try:
        return _statement(json.loads(payload))
    except _MALFORMED as error:
        raise SignatureError(f"what {BUNDLE} signs is no list of a model's files") from error


def _key(pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError("the signer's public key is not in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise SignatureError("the signer's public key is none of the curves P-256, P-384 and P-521")
    return key


def _payload(bundle: Any, key: ec.EllipticCurvePublicKey) -> bytes:
    """What was signed, once the signature holds."""
    if bundle["mediaType"] != _BUNDLE_TYPE or bundle["dsseEnvelope"]["payloadType"] != _PAYLOAD_TYPE:
        raise ValueError("another type")
    envelope = bundle["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"], validate=True)
    (signature,) = (base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"])
    signed = b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)
    try:
        key.verify(signature, signed, ec.ECDSA(_HASHES[key.curve.name]()))
    except InvalidSignature as error:
        hint = bundle.get("verificationMaterial", {}).get("publicKey", {}).get("hint")
        other = hint is not None and hint != _fingerprint(key)
        why = "was made with another key" if other else "does not hold: the bundle was changed"
        raise SignatureError(f"the signature in {BUNDLE} {why}") from error
    return payload


def _fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _statement(statement: Any) -> Signed:
    if statement["_type"] != _STATEMENT_TYPE or statement["predicateType"] != _PREDICATE_TYPE:
        raise ValueError("another type")
    predicate = statement["predicate"]
    form = predicate["serialization"]
    if (form["method"], form["hash_type"]) != ("files", "sha256"):
        raise SignatureError(
            f"{BUNDLE} lists {form['hash_type']} of {form['method']}: sign the model with SHA-256 of whole files"
        )
    files: dict[str, str] = {}
    whole = hashlib.sha256()
    for resource in predicate["resources"]:
        path, digest = resource["name"], resource["digest"]
        if resource["algorithm"] != "sha256" or not _HEX.fullmatch(digest) or path in files or not _relative(path):
            raise ValueError("no file's digest")
        files[path] = digest
        whole.update(bytes.fromhex(digest))
    (subject,) = statement["subject"]
    if subject["digest"]["sha256"] != whole.hexdigest():
        raise ValueError("the digest of all is not that of the list")
    return Signed(files, (BUNDLE, *(path for path in form.get("ignore_paths", ()) if _relative(path))))


def _relative(path: str) -> bool:
    """Whether it names something below the folder, and not the folder itself."""
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts
