"""Access tokens: what is taken, what is refused, and why."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from cloud_inference.access import BadToken, Grant, TokenKeys, mint
from cloud_inference.api.auth import patterns
from eyeline.errors import ConfigError, InvalidName
from tests.support.access import Issuer, Private, claims_of, public_pem, sign


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@pytest.fixture
def keys(issuer: Issuer) -> TokenKeys:
    return TokenKeys([issuer.public], "eyeline")


def test_a_token_says_what_it_grants(issuer: Issuer, keys: TokenKeys) -> None:
    grant = keys.grant(issuer.token("acme", ["yard/*", "plant/press"], ["read"], expires_s=60))
    assert (grant.tenant, grant.methods) == ("acme", frozenset({"read"}))
    assert grant.expires_s == pytest.approx(time.time() + 60, abs=5)
    assert grant.covers("yard", "gate")
    assert grant.covers("yard", "*")
    assert grant.covers("plant", "press")
    assert not grant.covers("plant", "*")
    assert not grant.covers("plant", "door")
    assert not grant.covers("yard2", "gate")
    assert not grant.everywhere
    assert not grant.expired
    assert Grant("acme", expires_s=time.time() - 60).expired


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": int(time.time()) - 60}, "it has expired"),
        ({"exp": None}, "it has no 'exp'"),
        ({"aud": "other"}, "it is not for 'eyeline'"),
        ({"aud": None}, "it has no 'aud'"),
        ({"tenant": None}, "it has no 'tenant'"),
        ({"cameras": None}, "it has no 'cameras'"),
        ({"methods": None}, "it has no 'methods'"),
        ({"cameras": []}, "not of the right form"),
        ({"cameras": "yard/*"}, "not of the right form"),
        ({"tenant": ["acme"]}, "not of the right form"),
        ({"cameras": ["yard/ga*"]}, "letters, digits"),
        ({"cameras": ["yard"]}, "must be SITE/CAMERA"),
        ({"tenant": "acme.>"}, "letters, digits"),
        ({"nbf": int(time.time()) + 600}, "it is not valid yet"),
    ],
)
def test_claims_that_do_not_do(claims: dict[str, Any], why: str, issuer: Issuer, keys: TokenKeys) -> None:
    with pytest.raises(BadToken, match=why) as caught:
        keys.grant(issuer.signed(**claims))
    assert "\n" not in str(caught.value)


def test_nobody_else_s_signature(issuer: Issuer, keys: TokenKeys, tmp_path: Path) -> None:
    other = Issuer(tmp_path / "other")
    unsigned = sign(None, None)
    header, body, _ = issuer.token().split(".")
    part = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()).decode().rstrip("=")
    # The public key taken for a shared secret.
    forged = hmac.new(issuer.public.read_bytes(), f"{part}.{body}".encode(), hashlib.sha256).digest()
    confused = f"{part}.{body}.{base64.urlsafe_b64encode(forged).decode().rstrip('=')}"
    for token in (
        other.token(),
        unsigned,
        unsigned + "x",
        confused,
        f"{header}.{body}.",
        f"{header}.{other.token(cameras=['a/b']).split('.')[1]}.{issuer.token().split('.')[2]}",
        sign(other.private, "EdDSA", headers={"kid": "issuer", "jwk": {"kty": "oct", "k": "AAAA"}}),
        sign(rsa.generate_private_key(65537, 2048), "RS256"),
        "",
        "a.b.c",
        "x" * 20_000,
        "\0",
    ):
        with pytest.raises(BadToken):
            keys.grant(token)


@pytest.mark.parametrize(
    ("key", "algorithm", "others"),
    [
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA", []),
        (ec.generate_private_key(ec.SECP256R1()), "ES256", []),
        (rsa.generate_private_key(65537, 2048), "RS256", ["PS256", "RS512"]),
    ],
)
def test_each_key_takes_its_own_algorithm(
    key: Private, algorithm: str, others: list[str], tmp_path: Path
) -> None:
    pem, jwks = tmp_path / "key.pem", tmp_path / "keys.json"
    pem.write_bytes(public_pem(key))
    as_jwk = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    jwks.write_text(json.dumps({"keys": [{**as_jwk, "kid": "first", "use": "sig"}]}))
    for file in (pem, jwks):
        keys = TokenKeys([file], "eyeline")
        assert keys.grant(sign(key, algorithm)).tenant == "acme"
        assert keys.grant(sign(key, algorithm, headers={"kid": "first"})).tenant == "acme"
        for other in others:
            with pytest.raises(BadToken):
                keys.grant(sign(key, other))


def test_several_keys_for_rotation(issuer: Issuer, tmp_path: Path) -> None:
    new = Issuer(tmp_path / "new")
    keys = TokenKeys([issuer.public, new.public], "eyeline")
    assert keys.grant(issuer.token()) == keys.grant(new.token())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "neither a public key"),
        (b"-----BEGIN PUBLIC KEY-----", "neither a public key"),
        (b"{", "not a JWKS"),
        (b'{"keys": 1}', "not a JWKS"),
        (b'{"keys": []}', "holds no key"),
        (b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "holds a secret key"),
        (b'{"keys": [{"kty": "OKP", "crv": "Ed25519"}]}', "not a JWKS"),
        (public_pem(ec.generate_private_key(ec.SECP384R1())), "keys are Ed25519, P-256"),
        (public_pem(rsa.generate_private_key(65537, 1024)), "at least 2048 bits"),  # noqa: S505  # on purpose
    ],
)
def test_key_files_that_do_not_do(content: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=why) as caught:
        TokenKeys([file], "eyeline")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        TokenKeys([tmp_path / "none"], "eyeline")


def test_minting_refuses_what_nobody_would_take(issuer: Issuer, tmp_path: Path) -> None:
    for wrong in ({"cameras": []}, {"methods": []}, {"methods": ["all"]}):
        with pytest.raises(ConfigError):
            issuer.token(**wrong)  # type: ignore[arg-type]
    for wrong in ({"tenant": "a b"}, {"cameras": ["yard"]}):
        with pytest.raises(InvalidName):
            issuer.token(**wrong)  # type: ignore[arg-type]
    for key in (issuer.public, tmp_path / "none"):
        with pytest.raises(ConfigError):
            mint(key, tenant="acme", cameras=["*/*"], methods=["read"], expires_s=1)
    assert issuer.private.stat().st_mode & 0o777 == 0o600
    assert set(claims_of()) == {"aud", "exp", "tenant", "cameras", "methods"}


@pytest.mark.parametrize(
    ("cameras", "subjects"),
    [
        ([("*", "*"), ("a", "b")], [("*", "*")]),
        ([("a", "*"), ("a", "b"), ("b", "c")], [("a", "*"), ("b", "c")]),
        ([("a", "b"), ("a", "b")], [("a", "b")]),
        ([("a", "*"), ("*", "b")], [("*", "*")]),
    ],
)
def test_filters_never_overlap(cameras: list[tuple[str, str]], subjects: list[tuple[str, str]]) -> None:
    assert patterns(Grant("acme", tuple(cameras))) == subjects
