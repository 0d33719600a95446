"""Bundles of model-signing, made by the reference implementation (tests/cases/signed) and by hand."""

import base64
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.node.signature import SignatureError, verify

SIGNED = Path(__file__).parents[1] / "cases/signed"
FILES = {
    path.relative_to(SIGNED / "model").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in (SIGNED / "model").rglob("*")
    if path.is_file()
}
KEY = ec.generate_private_key(ec.SECP256R1())
PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def case(name: str) -> bytes:
    return (SIGNED / name).read_bytes()


@pytest.mark.parametrize("curve", ["p256", "p384", "p521"])
def test_what_the_reference_implementation_signed_is_verified(curve: str) -> None:
    assert verify(case(f"{curve}.sig"), case(f"{curve}.pub")).files == FILES


def test_the_bundle_and_what_the_signer_ignored_are_left_out() -> None:
    signed = verify(case("ignoring.sig"), case("p256.pub"))
    assert all(map(signed.leaves_out, ("model.sig", "drafts", "drafts/one.json", ".git/config", ".gitattributes")))
    assert not any(map(signed.leaves_out, ("config.json", "drafts.json", "sub/model.sig")))


@pytest.mark.parametrize(
    ("bundle", "key", "says"),
    [
        ("p256.sig", "other.pub", "was made with another key"),
        ("p256.sig", "p384.pub", "was made with another key"),
        ("p256.sig", "ed25519.pub", "none of the curves P-256, P-384 and P-521"),
        ("p256.sig", "p256.sig", "not in PEM form"),
        ("p256.pub", "p256.pub", "no bundle of model-signing"),
        ("shards.sig", "p256.pub", "sign the model with SHA-256 of whole files"),
        ("blake2.sig", "p256.pub", "sign the model with SHA-256 of whole files"),
    ],
)
def test_what_cannot_be_verified_says_why(bundle: str, key: str, says: str) -> None:
    with pytest.raises(SignatureError, match=says):
        verify(case(bundle), case(key))


def test_a_changed_list_is_not_what_was_signed() -> None:
    bundle = json.loads(case("p256.sig"))
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    changed = payload.replace(FILES["config.json"].encode(), b"0" * 64)
    assert changed != payload
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
    with pytest.raises(SignatureError, match="does not hold: the bundle was changed"):
        verify(json.dumps(bundle).encode(), case("p256.pub"))


def test_nobody_else_can_sign_under_a_foreign_hint() -> None:
    bundle = json.loads(signed(statement()))
    bundle["verificationMaterial"] = json.loads(case("p256.sig"))["verificationMaterial"]
    with pytest.raises(SignatureError):
        verify(json.dumps(bundle).encode(), case("p256.pub"))


@settings(deadline=None, max_examples=200)
@given(place=st.integers(0, len(case("p256.sig")) - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_changes_what_is_believed(place: int, bit: int) -> None:
    bundle = bytearray(case("p256.sig"))
    bundle[place] ^= 1 << bit
    with suppress(SignatureError):  # in most places; in some, such as the hint, nothing is said
        assert verify(bytes(bundle), case("p256.pub")).files == FILES


WORDS = st.sampled_from(["mediaType", "dsseEnvelope", "payload", "payloadType", "signatures", "sig"]) | st.text()
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner),
)


@settings(deadline=None, max_examples=50)
@given(document=DOCUMENTS)
def test_any_document_is_a_bundle_or_refused(document: Any) -> None:
    with pytest.raises(SignatureError):
        verify(json.dumps(document).encode(), PEM)


# ---- what a signer with the right key may still get wrong


def statement(**over: Any) -> dict[str, Any]:
    resources = [{"name": path, "algorithm": "sha256", "digest": digest} for path, digest in sorted(FILES.items())]
    resources = over.pop("resources", resources)
    whole = hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in resources)).hexdigest()
    form = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, **over.pop("serialization", {})}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "m", "digest": {"sha256": whole}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"serialization": form, "resources": resources},
        **over,
    }


def signed(document: Any, payload_type: str = "application/vnd.in-toto+json") -> bytes:
    payload = json.dumps(document).encode()
    encoded = f"DSSEv1 {len(payload_type)} {payload_type} {len(payload)} ".encode() + payload
    signature = KEY.sign(encoded, ec.ECDSA(hashes.SHA256()))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    return json.dumps({"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": envelope}).encode()


def resource(path: str, digest: str = "0" * 64) -> dict[str, str]:
    return {"name": path, "algorithm": "sha256", "digest": digest}


def test_a_bundle_without_a_hint_is_verified() -> None:
    assert verify(signed(statement()), PEM).files == FILES


@pytest.mark.parametrize(
    "document",
    [
        statement(_type="https://in-toto.io/Statement/v0.1"),
        statement(predicateType="https://slsa.dev/provenance/v1"),
        statement(subject=[]),
        statement(subject=[{"name": "m", "digest": {"sha256": "0" * 64}}]),
        statement(resources=[resource("../outside")]),
        statement(resources=[resource("/etc/passwd")]),
        statement(resources=[resource("a"), resource("a", "1" * 64)]),
        statement(resources=[{**resource("a"), "algorithm": "md5"}]),
        statement(resources=[resource("a", "00" * 31)]),
        [],
        None,
    ],
)
def test_a_signed_document_that_is_no_list_of_files_is_refused(document: Any) -> None:
    with pytest.raises(SignatureError, match="is no list of a model's files"):
        verify(signed(document), PEM)


def test_a_signed_document_of_another_type_is_refused() -> None:
    with pytest.raises(SignatureError, match="no bundle of model-signing"):
        verify(signed(statement(), payload_type="text/plain"), PEM)


@pytest.mark.parametrize("everything", [".", "", "/", "..", "a/../.."])
def test_nobody_ignores_the_whole_folder(everything: str) -> None:
    assert not verify(signed(statement(serialization={"ignore_paths": [everything]})), PEM).leaves_out("config.json")
