"""Files of tokens: whatever is issued is found until it is revoked, and what can't be read is refused."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from manager.access.identity import Identity
from manager.access.tokens import (
    MAX_NAME,
    RANDOM_BYTES,
    TokensError,
    added,
    check_name,
    digest,
    make_token,
    parse,
    removed,
)

A, B = make_token(b"a" * RANDOM_BYTES), make_token(b"b" * RANDOM_BYTES)
HEX = "0" * 64


def valid(name: str) -> bool:
    try:
        check_name(name)
    except TokensError:
        return False
    return True


names = st.text(min_size=1, max_size=20).filter(valid)
randomness = st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES)


# Tokens


@given(randomness)
def test_a_token_can_be_told_from_other_text_and_travels_as_metadata(random: bytes) -> None:
    token = make_token(random)
    assert token.startswith("muster_")
    assert len(token) == len("muster_") + 43
    assert token.isascii()
    assert not set(token) & set(" =+/\"'")


@given(st.sets(randomness, min_size=2, max_size=2))
def test_other_random_bytes_are_another_token(random: set[bytes]) -> None:
    assert len({make_token(each) for each in random}) == 2


# Files


def test_a_file_of_tokens_is_read() -> None:
    text = f"# of the hospitals\n\nhospital-7 {digest(A).hex()}\n  hospital-8\t{digest(B).hex().upper()}  \n"
    tokens = parse(text)
    assert tokens.find(A) == Identity("hospital-7", digest(A))
    assert tokens.find(B) == Identity("hospital-8", digest(B))
    assert tokens.find(A + "x") is None
    assert tokens.count() == {"hospital-7": 1, "hospital-8": 1}


def test_the_hash_is_plain_sha_256_so_that_other_tools_can_make_it() -> None:
    assert digest("muster_x") == hashlib.sha256(b"muster_x").digest()


def test_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert parse(f"a {digest(A).hex()}\n").find(A) is not None
    assert compared == [(digest(A), digest(A))]


def test_an_empty_file_lets_nobody_in() -> None:
    tokens = parse("")
    assert len(tokens) == 0
    assert tokens.find("") is None
    assert tokens.find(A) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "line 1: write a name and the SHA-256"),
        (f"\n# x\na {HEX[1:]}", "line 3: write a name"),
        (f"a {HEX}0", "line 1: write a name"),
        (f"a {HEX[1:]}g", "line 1: write a name"),
        (f"a b {HEX}", "line 1: write a name"),
        (A, "line 1: write a name"),  # a token in the place of its hash
        (f"a {A}", "line 1: write a name"),
        (f"a {HEX}\nb {HEX}", "line 2: another name has the same token"),
        (f"anonymous-1 {HEX}", "line 1: a name must not begin with 'anonymous-'"),
        (f"\x07 {HEX}", "line 1: a name must be printable"),
        (f"{'n' * (MAX_NAME + 1)} {HEX}", "line 1: a name must have from 1 to 200 characters"),
    ],
)
def test_what_is_no_file_of_tokens_is_refused_and_not_shown(text: str, words: str) -> None:
    with pytest.raises(TokensError, match=words) as caught:
        parse(text)
    assert "muster_" not in str(caught.value)
    assert "000000" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_file_of_tokens_or_refused(text: str) -> None:
    try:
        tokens = parse(text)
    except TokensError:
        return
    assert all(valid(name) for name in tokens.count())


@pytest.mark.parametrize(
    "name", ["", "a b", "#a", "a\nb", "a\u2028b", "\N{NO-BREAK SPACE}", "anonymous-", "n" * 201]
)
def test_a_name_that_can_not_be_read_again_is_refused(name: str) -> None:
    with pytest.raises(TokensError):
        added("", name, A)


def test_all_but_the_last_token_of_a_name_can_be_revoked() -> None:
    text = added(added(added("", "a", A), "b", make_token(b"c" * RANDOM_BYTES)), "a", B)
    rotated, gone = removed(text, "a", keep_last=True)
    assert gone == 1
    assert parse(rotated).find(A) is None
    assert parse(rotated).find(B) is not None
    assert parse(rotated).count() == {"a": 1, "b": 1}
    assert removed(rotated, "a", keep_last=True) == (rotated, 0)


def test_comments_stay_where_they_are() -> None:
    text = f"# first\na {digest(A).hex()}\n\n# last, without an end of line"
    after = added(text, "b", B)
    assert after.startswith(text + "\n")
    assert removed(after, "b", keep_last=False) == (text + "\n", 1)


class File(RuleBasedStateMachine):
    """A file of tokens that is written over and over, beside what should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.text = "# tokens\n"
        self.expected: dict[str, list[str]] = {}
        self.revoked: set[str] = set()

    @rule(name=names, random=randomness)
    def issue(self, name: str, random: bytes) -> None:
        token = make_token(random)
        if token in self.revoked or any(token in tokens for tokens in self.expected.values()):
            return
        self.text = added(self.text, name, token)
        self.expected.setdefault(name, []).append(token)

    @rule(data=st.data(), keep_last=st.booleans())
    def revoke(self, data: st.DataObject, keep_last: bool) -> None:
        name = data.draw(st.sampled_from([*self.expected, "nobody"]))
        tokens = self.expected.pop(name, [])
        kept = tokens[-1:] if keep_last else []
        before = parse(self.text)
        self.text, gone = removed(self.text, name, keep_last=keep_last)
        assert gone == len(tokens) - len(kept)
        if kept:
            self.expected[name] = kept
        self.revoked.update(token for token in tokens if token not in kept)
        after = parse(self.text)
        for token in tokens:  # those who had come with it
            identity = before.find(token)
            assert identity is not None
            assert after.holds(identity) == (token in kept)

    @invariant()
    def each_token_is_whose_it_is(self) -> None:
        tokens = parse(self.text)
        for name, issued in self.expected.items():
            for token in issued:
                identity = tokens.find(token)
                assert identity == Identity(name, digest(token))
                assert tokens.holds(identity)
        assert not any(tokens.find(token) for token in self.revoked)
        assert tokens.count() == {name: len(issued) for name, issued in self.expected.items()}


TestFile = File.TestCase


def test_a_token_that_was_given_to_another_name_does_not_hold_for_the_old_one() -> None:
    before, after = parse(added("", "a", A)), parse(added("", "b", A))
    identity = before.find(A)
    assert identity is not None
    assert not after.holds(identity)


def test_who_has_shown_no_token_has_none_to_lose() -> None:
    assert parse("").holds(Identity("by certificate"))
