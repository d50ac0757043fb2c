"""Which certificates can be used, what is said of the others, and when new ones are taken. No sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from manager.access import certificates
from manager.access.certificates import CertificateError, Certificates, load, try_pair
from tests.authority import FUTURE, PAST, Authority, Pair, written


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    """Files that are no certificates, nor keys."""
    contents = {"junk": b"junk", "empty": b"", "binary": bytes(range(256))}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: str(tmp_path / name) for name in [*contents, "missing"]}


def test_a_good_pair_is_valid_until_its_end(authority: Authority) -> None:
    assert try_pair(*authority.server()) == ("Jan  1 00:00:00 3000 GMT", "")


def test_one_with_an_authority_in_between_is_good_as_well(tmp_path: Path) -> None:
    between = trustme.CA().create_child_ca()
    assert try_pair(*written(between.issue_cert("localhost"), tmp_path / "x"))[1] == ""


@pytest.mark.parametrize(
    ("validity", "trouble"), [(PAST, "certificate has expired"), (FUTURE, "certificate is not yet valid")]
)
def test_one_that_peers_will_refuse_is_known_as_such(
    authority: Authority, validity: dict[str, Any], trouble: str
) -> None:
    assert try_pair(*authority.server(**validity)) == ("", trouble)


def test_one_that_is_for_clients_only_is_known_as_such(tmp_path: Path, authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(PAST["not_before"])
        .not_valid_after(FUTURE["not_after"])
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pair = Pair(str(tmp_path / "c.pem"), str(tmp_path / "c.key"))
    Path(pair.cert).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    Path(pair.key).write_bytes(pem_of(key, serialization.NoEncryption()))
    assert try_pair(*pair) == ("", "unsuitable certificate purpose")


def pem_of(key: ec.EllipticCurvePrivateKey, how: serialization.KeySerializationEncryption) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def test_what_can_not_be_used_is_refused_with_its_reason(
    authority: Authority, texts: dict[str, str], tmp_path: Path
) -> None:
    good, other = authority.server(), authority.server()
    locked = tmp_path / "locked.key"
    how = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(pem_of(ec.generate_private_key(ec.SECP256R1()), how))
    cases = [
        (texts["junk"], good.key, f"{texts['junk']} holds no certificate in PEM"),
        (texts["empty"], good.key, f"{texts['empty']} holds no certificate in PEM"),
        (texts["binary"], good.key, f"{texts['binary']} holds no certificate in PEM"),
        (good.key, good.cert, f"{good.key} holds no certificate in PEM"),
        (good.cert, texts["junk"], f"{texts['junk']} holds no private key in PEM"),
        (good.cert, good.cert, f"{good.cert} holds no private key in PEM"),
        (good.cert, other.key, f"the key in {other.key} is not that of the certificate in {good.cert}"),
        (good.cert, str(locked), f"the key in {locked} is encrypted; one without a password is needed"),
    ]
    for cert, key, words in cases:
        with pytest.raises(CertificateError) as caught:
            try_pair(cert, key)
        assert str(caught.value) == words
    for cert, key in [(texts["missing"], good.key), (good.cert, texts["missing"])]:
        with pytest.raises(ValueError, match=f"can't read {texts['missing']}: No such file"):
            load(cert, key, None)


def test_an_authority_that_is_none_is_refused(authority: Authority, texts: dict[str, str]) -> None:
    pair = authority.server()
    load(*pair, authority.file)
    with pytest.raises(CertificateError, match=f"{texts['junk']} holds no certificate in PEM"):
        load(*pair, texts["junk"])
    with pytest.raises(ValueError, match=f"can't read {texts['missing']}"):
        load(*pair, texts["missing"])


# Renewal


class Served:
    """Certificates in use, and what gRPC gets when it asks at a handshake."""

    def __init__(self, pair: Pair, client_ca: str | None = None) -> None:
        self.certificates = Certificates(*pair, client_ca)
        self.certificates.credentials()

    def look(self, times: int = 3) -> None:
        for _ in range(times):
            self.certificates.look()

    def fetch(self) -> Any:
        return self.certificates._fetch()


def test_a_new_pair_is_given_to_grpc_once(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    pair = authority.server()
    with caplog.at_level("INFO", "muster.security"):
        served = Served(pair)
        assert served.fetch() is None
        pair.replace(authority.server())
        served.look()
        assert served.fetch() is not None
        assert served.fetch() is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{verb} the certificate in {pair.cert}, which is valid until Jan  1 00:00:00 3000 GMT"
        for verb in ("serving with", "going on with")
    ]


def test_another_authority_is_a_renewal_as_well(authority: Authority, tmp_path: Path) -> None:
    served = Served(authority.server(), authority.file)
    Path(authority.file).write_bytes(authority.pem + Authority(tmp_path, "new").pem)
    served.look()
    assert served.fetch() is not None


def test_half_a_pair_is_not_taken(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    pair, new = authority.server(), authority.server()
    served = Served(pair)
    old = Path(pair.key).read_bytes()
    pair.replace(new)
    Path(pair.key).write_bytes(old)
    served.look()
    assert served.fetch() is None
    (record,) = caplog.records
    assert "the certificates stay as they were: the key in" in record.getMessage()
    Path(pair.key).unlink()
    Path(pair.key).write_bytes(Path(new.key).read_bytes())
    served.look()
    assert served.fetch() is not None


def test_one_that_peers_will_refuse_is_served_but_said_loudly(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.server(**PAST)
    served = Served(pair)
    assert served.certificates.trouble == (
        f"peers will refuse the certificate in {pair.cert}: certificate has expired"
    )
    pair.replace(authority.server())
    served.look()
    assert served.certificates.trouble == ""
    record = caplog.records[0]
    assert record.levelname == "ERROR"
    assert record.getMessage() == (
        f"serving with the certificate in {pair.cert}, which peers will refuse: certificate has expired"
    )


def test_it_is_noticed_when_a_certificate_expires(
    authority: Authority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(authority.server())
    monkeypatch.setattr(certificates, "TRY_INTERVAL", -1.0)
    served.look()
    assert not caplog.records
    monkeypatch.setattr(certificates, "try_pair", lambda cert, key: ("", "certificate has expired"))
    served.look(5)
    (record,) = caplog.records
    assert record.getMessage().endswith("which peers will refuse: certificate has expired")
    assert served.fetch() is None
