"""Good addresses pass as they are; bad ones say what is wrong with them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from participant_sdk import AddressError
from participant_sdk.address import check_address, host_and_port


@pytest.mark.parametrize(
    "address",
    [
        "localhost:1",
        "127.0.0.1:50051",
        "coordinator.example:65535",
        "[::1]:50051",
        "[fe80::1%eth0]:50051",
        "unix:/run/muster.sock",
        "unix:///run/muster.sock",
        "dns:///coordinator.example:50051",
        "ipv4:10.0.0.1:50051",
    ],
)
def test_good_addresses_pass(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("", "write host:port"),
        ("localhost", "write host:port"),
        (":50051", "write host:port"),
        ("localhost:", "write host:port"),
        ("localhost:http", "write host:port"),
        ("local host:1", "write host:port"),
        ("localhost:0", "port 0 isn't between"),
        ("localhost:65536", "port 65536 isn't between"),
        ("http://localhost:50051", "is a URL"),
        ("::1:50051", "[::1]:port"),
        (50051, "not int"),
        (None, "not NoneType"),
    ],
)
def test_bad_addresses_say_what_is_wrong(address: Any, text: str) -> None:
    with pytest.raises(AddressError) as caught:
        check_address(address)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("coordinator.example:50051", ("coordinator.example", 50051)),
        ("[::1]:50051", ("::1", 50051)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("dns:///coordinator.example:50051", ("coordinator.example", 50051)),
        ("dns:coordinator.example:50051", ("coordinator.example", 50051)),
        ("ipv4:10.0.0.1:50051", ("10.0.0.1", 50051)),
        ("ipv6:[::1]:50051", ("::1", 50051)),
        ("dns:1", ("dns", 1)),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", None),
        ("dns://8.8.8.8/coordinator.example:50051", None),
        ("unix:/run/muster.sock", None),
        ("vsock:2:1", None),
    ],
)
def test_where_an_address_leads(address: str, where: tuple[str, int] | None) -> None:
    assert check_address(address) == address
    assert host_and_port(address) == where


@given(st.text())
def test_any_text_passes_or_is_an_address_error(text: str) -> None:
    with contextlib.suppress(AddressError):
        assert check_address(text) == text
