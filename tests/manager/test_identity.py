"""Who a participant is: by its token, its certificate, and what its hello says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.access.identity import (
    Identity,
    ImpostorError,
    UnauthenticatedError,
    agreed,
    bearer,
    certified,
    claimed,
)

OF_A = Identity("a", b"digest")
tokens = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)
cases = st.sampled_from(["Bearer", "bearer", "BEARER"])


# Tokens


@given(tokens, cases)
def test_the_token_of_a_call_is_found(token: str, scheme: str) -> None:
    assert bearer([("user-agent", "x"), ("authorization", f"{scheme} {token}")]) == token


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ([], "a token is needed"),
        ([("Authorization", "Bearer x")], "a token is needed"),  # gRPC's keys are lower-case
        ([("authorization-bin", b"x")], "a token is needed"),
        ([("authorization", "Bearer a"), ("authorization", "Bearer b")], "exactly one token"),
        ([("authorization", b"Bearer a")], "exactly one token"),
        ([("authorization", "")], "must say: authorization: Bearer"),
        ([("authorization", "a")], "must say: authorization: Bearer"),
        ([("authorization", "Bearer")], "must say: authorization: Bearer"),
        ([("authorization", "Bearer  ")], "must say: authorization: Bearer"),
        ([("authorization", "Basic a")], "must say: authorization: Bearer"),
    ],
)
def test_a_call_without_a_token_is_told_how_to_send_one(
    metadata: list[tuple[str, str | bytes]], words: str
) -> None:
    with pytest.raises(UnauthenticatedError, match=words):
        bearer(metadata)


@given(st.lists(st.tuples(st.sampled_from(["authorization", "x"]), st.text() | st.binary())))
def test_any_metadata_has_a_token_or_is_refused_without_being_shown(
    metadata: list[tuple[str, str | bytes]],
) -> None:
    said = ""
    try:
        assert bearer(metadata)
    except UnauthenticatedError as error:
        said = str(error)
    assert not any(len(value) > 10 and str(value) in said for _, value in metadata)


# Certificates


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"x509_common_name": [b"hospital-7"], "x509_subject_alternative_name": [b"other"]}, "hospital-7"),
        ({"x509_common_name": [b""], "x509_subject_alternative_name": [b"first", b"second"]}, "first"),
        ({"x509_subject_alternative_name": [b"first"]}, "first"),
        ({"x509_common_name": ["Charité".encode()]}, "Charité"),
    ],
)
def test_the_name_in_a_certificate_is_found(properties: dict[str, list[bytes]], name: str) -> None:
    assert certified({"transport_security_type": [b"ssl"], **properties}) == name


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({}, "neither a common name nor an alternative name"),
        ({"x509_common_name": [b""]}, "neither a common name"),
        ({"x509_common_name": [b"\xff"]}, "not UTF-8"),
        ({"x509_common_name": [b"anonymous-1"]}, "begins with 'anonymous-'"),
    ],
)
def test_a_certificate_without_a_name_to_use_is_refused(
    properties: dict[str, list[bytes]], words: str
) -> None:
    with pytest.raises(UnauthenticatedError, match=words):
        certified(properties)


# Both


def test_a_token_or_a_certificate_alone_is_enough() -> None:
    assert agreed(None, None) is None
    assert agreed(OF_A, None) == OF_A
    assert agreed(None, "a") == Identity("a")


def test_both_must_be_the_same_participants() -> None:
    assert agreed(OF_A, "a") == OF_A
    with pytest.raises(UnauthenticatedError, match="that of a and the certificate that of b; both must"):
        agreed(OF_A, "b")


# The hello


def test_a_participant_that_does_not_say_who_it_is_gets_the_name_of_its_credentials() -> None:
    assert claimed(OF_A, "") == "a"
    assert claimed(OF_A, "a") == "a"


@given(st.text(min_size=1).filter(lambda name: name != "a"))
def test_it_can_not_be_another(name: str) -> None:
    with pytest.raises(ImpostorError, match=r"the credentials are those of a; leave the name out") as caught:
        claimed(OF_A, name)
    assert str(caught.value).isprintable()
