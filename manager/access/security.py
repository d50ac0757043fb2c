"""How participants are served and known: encrypted or not, with which certificate, by which tokens.

Decides what goes together and what is refused. Only names of files are here, nothing that is secret;
certificates.py and tokens.py read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import fspath
from pathlib import Path

from manager.errors import StartError
from manager.listen import Address
from manager.typed import check_types

_ENCRYPT = (
    "give --tls-cert and --tls-key (`coordinator certs` makes some to begin with), or --insecure if that is "
    "what you want"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """Names of files; they are made absolute. By default there is neither encryption nor authentication.

    Raises ValueError for what doesn't go together.
    """

    tls_cert: str | Path | None = None  # of this server, with what is between it and the authority; PEM
    tls_key: str | Path | None = None
    tls_client_ca: str | Path | None = None  # participants need a certificate of this authority; PEM
    tokens: str | Path | None = None  # participants need a token of this file (manager/access/tokens.py)
    insecure: bool = False  # plaintext may be served on any address

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("tls_cert", "tls_key", "tls_client_ca", "tokens"):
            file = getattr(self, name)
            if file is not None:
                object.__setattr__(self, name, fspath(Path(file).absolute()))
        if (self.tls_cert is None) != (self.tls_key is None):
            there, missing = (
                ("--tls-key", "--tls-cert") if self.tls_cert is None else ("--tls-cert", "--tls-key")
            )
            raise ValueError(f"{there} is of no use without {missing}: TLS needs a certificate and its key")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca is of no use without --tls-cert and --tls-key")

    def check(self, listen: Address) -> None:
        """Raises ValueError if participants would be served in a way that has to be asked for."""
        if self.insecure or self._is_private(listen):
            return
        if self.tokens is not None:
            raise ValueError(f"tokens would travel to {listen} for everybody to read: {_ENCRYPT}")
        raise ValueError(
            f"participants would connect to {listen} without encryption, from wherever that is: {_ENCRYPT}"
        )

    def warning(self, listen: Address) -> str | None:
        """What a person should know who has asked for it."""
        if listen.is_loopback:
            return None
        if self.tls_cert is not None:
            if self.tokens is not None or self.tls_client_ca is not None:
                return None
            return (
                f"participants at {listen} need neither a token (--tokens) nor a certificate "
                f"(--tls-client-ca): whoever can reach it can take part, and take any participant's place"
            )
        if not self.insecure:
            return None
        who = (
            "whoever can reach it can take part and take any participant's place"
            if self.tokens is None
            else "the tokens of participants are there to be copied"
        )
        return (
            f"INSECURE: participants connect to {listen} without encryption (--insecure): whoever is on the "
            f"way can read and change all models and results, and {who}"
        )

    def _is_private(self, listen: Address) -> bool:
        return self.tls_cert is not None or listen.is_loopback

    @property
    def tls(self) -> tuple[str, str, str | None] | None:
        """Certificate, key, and the authority of participants; None without TLS."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        authority = self.tls_client_ca
        return fspath(self.tls_cert), fspath(self.tls_key), None if authority is None else fspath(authority)

    def verify(self) -> None:
        """Reads the files. Raises StartError for the first that can't be used."""
        from manager.access.certificates import load  # grpc loads here: --help needs nothing of it
        from manager.access.token_file import read_tokens

        try:
            if self.tls is not None:
                load(*self.tls)
            if self.tokens is not None:
                read_tokens(fspath(self.tokens))
        except ValueError as error:
            raise StartError(str(error)) from None

    def arguments(self) -> list[str]:
        """The same as options of ``manager start``."""
        files = {
            "--tls-cert": self.tls_cert,
            "--tls-key": self.tls_key,
            "--tls-client-ca": self.tls_client_ca,
            "--tokens": self.tokens,
        }
        arguments = [f"{name}={file}" for name, file in files.items() if file is not None]
        return [*arguments, "--insecure"] if self.insecure else arguments
