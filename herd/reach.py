"""Which gateways a command talks to, and whether by TLS."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from llamaherd.client import Client, Tls
from llamaherd.client.connection import connections


@dataclass(frozen=True, slots=True)
class Reach:
    """As the command line has it.

    Attributes:
        tls: the system's root certificates say whom to believe.
        ca: a PEM file says so instead.
    """

    addresses: tuple[str, ...]
    tls: bool = False
    ca: Path | None = None

    @property
    def security(self) -> Tls | bool:
        """As a client takes it. Raises OSError if the file cannot be read."""
        return Tls(root_certificates=self.ca.read_bytes()) if self.ca is not None else self.tls

    def client(self, **options: Any) -> Client:
        """A client of these gateways; the options are its own. Raises OSError as `security` does."""
        return Client(self.addresses, tls=self.security, **options)

    def channel(self) -> grpc.Channel:
        """A bare connection to the first of them. Raises OSError as `security` does."""
        to = connections(self.addresses, self.security, None, (), ())
        if to.credentials is None:
            return grpc.insecure_channel(to.addresses[0], to.options)
        return grpc.secure_channel(to.addresses[0], to.credentials, to.options)
