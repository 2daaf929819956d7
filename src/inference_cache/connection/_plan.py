"""How to connect: what every connection of a client is made from."""

from __future__ import annotations

import random
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import valkey.exceptions as vke
from valkey.credentials import CredentialProvider

from inference_cache import __version__
from inference_cache.connection._url import Endpoint
from inference_cache.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """What may be tried again, always within the deadline of the call.

    Only what cannot have had an effect is repeated: opening a connection, and, with ``reads``, a command that
    only reads whose pooled connection broke. A write whose reply was lost is never sent again: the caller
    gets Unreachable or DeadlineExceeded and decides.
    """

    connect_attempts: int = 2
    """Tries to open a connection before giving up; 1 means no second one."""
    backoff_s: float = 0.02
    """Pause before the second try; doubles with each further one, and is cut at random by up to half."""
    backoff_max_s: float = 0.5
    reads: bool = True

    def __post_init__(self) -> None:
        if self.connect_attempts < 1 or self.backoff_s < 0 or self.backoff_max_s < 0:
            raise UsageError("a RetryPolicy needs connect_attempts >= 1 and pauses >= 0")

    def pause_s(self, attempt: int) -> float:
        """Seconds to wait after the given failed try, counted from 1."""
        longest_s: float = min(self.backoff_max_s, self.backoff_s * 2 ** (attempt - 1))
        return longest_s * random.uniform(0.5, 1)


class Credentials(CredentialProvider):
    """User and password; a password file is read for each connection, so that a rotated secret is used."""

    def __init__(self, username: str | None, password: str | None, password_file: Path | None) -> None:
        self._username = username
        self._password = password
        self._password_file = password_file

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._password or ""
        if self._password_file is not None:
            try:
                password = read_secret(self._password_file)
            except (OSError, UnicodeDecodeError) as error:
                raise vke.AuthenticationError(f"cannot read the password file: {error}") from error
        return (self._username, password) if self._username else (password,)


def read_secret(path: Path) -> str:
    return path.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that is needed to open a connection; shared by every connection of a client."""

    endpoint: Endpoint
    deadline_s: float
    connect_deadline_s: float
    credentials: Credentials | None
    sentinel_credentials: Credentials | None
    tls: ssl.SSLContext | None
    tls_server_name: str | None
    protocol: int
    client_name: str | None
    max_connections: int
    retry: RetryPolicy

    def for_sentinel(self, host: str, port: int) -> Plan:
        """The plan to ask one sentinel."""
        return replace(
            self,
            endpoint=replace(self.endpoint, kind="tcp", hosts=((host, port),), service=None, db=0),
            credentials=self.sentinel_credentials,
            protocol=2,
        )

    def connection_arguments(self) -> dict[str, Any]:
        """Keyword arguments of valkey-py's connections, sync and async."""
        return {
            "db": self.endpoint.db,
            "protocol": self.protocol,
            "client_name": self.client_name,
            "credential_provider": self.credentials,
            # Both connections keep the deadline themselves; this is for reads outside of any call.
            "socket_connect_timeout": self.connect_deadline_s,
            "lib_name": f"valkey-py(inference-cache_v{__version__})",
            "socket_read_size": 1 << 16,
        }
