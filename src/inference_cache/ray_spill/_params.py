"""What the storage is told: JSON in Ray's configuration, checked on the way out and on the way in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from inference_cache.connection import Options, parse_url
from inference_cache.errors import UsageError
from inference_cache.keyspace import Keyspace

__all__ = ["DEFAULT_IMPLEMENTATION", "SpillParams"]

DEFAULT_IMPLEMENTATION: Final = "inference_cache.ray_spill:SpillStorage"
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillParams:
    """Everything that can be set. Times in seconds, sizes in bytes."""

    url: str
    """Without a password: Ray passes its configuration on in command lines, which every user can read."""
    prefix: str = "ray:"
    contract: str | None = None
    """A contract that declares that spilled objects may be evicted, and up to which loss; None for none."""
    username: str | None = None
    password_env: str | None = None
    """An environment variable with the password, on every node."""
    password_file: str | None = None
    """A file with the password, on every node."""
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    tls_server_name: str | None = None
    connections: int = 1
    """For payloads, in each IO worker."""
    chunk_bytes: int = 64 * _MIB
    """Larger objects are stored in chunks of this; twice this is the memory that an IO worker needs."""
    call_s: float = 5.0
    """What a call may take, besides the time for its bytes."""
    slowest_bytes_per_s: int = 20 * _MIB
    """Below this a transfer is given up."""
    restore_s: float | None = 20.0
    """How long a read waits for a server that does not answer, before its caller gets an
    ObjectFetchTimedOutError; None for as long as it takes."""
    lease_s: float = 60.0
    """A node that has not renewed its lease for so long is looked at by the janitor."""
    abandoned_s: float | None = 86_400.0
    """A node that nobody can say anything about is taken for dead after so long; None for never."""
    sweep_every_s: float | None = 300.0
    """How often the janitor runs in each node; None for never."""
    rebuild: bool = False
    """Whether Ray is asked to make lost objects again, by running their tasks again; needs Ray 2.60."""
    reserve_bytes: int = 0
    """What must be free for spilled objects when the cluster starts."""
    metrics_folder: str | None = None
    """Where each IO worker keeps a .prom file, for the textfile collector of node_exporter."""
    implementation: str = DEFAULT_IMPLEMENTATION
    """Another class to use, as ``module:attribute``."""

    def __post_init__(self) -> None:
        if parse_url(self.url).password is not None:
            raise UsageError(
                "the URL holds a password, which Ray would show in its command lines; give the name of a "
                "variable as password_env, or of a file as password_file"
            )
        Keyspace(self.prefix)
        for name in ("connections", "chunk_bytes", "call_s", "slowest_bytes_per_s", "lease_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is above 0, not {getattr(self, name)!r}")
        for name in ("restore_s", "abandoned_s", "sweep_every_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is above 0, or None, not {value!r}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From what stood in Ray's configuration.

        Raises:
            UsageError: a name that does not exist, one that is missing, or a value that cannot be used.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(given.keys() - known):
            raise UsageError(
                f"object_spilling_config has no parameter {', '.join(unknown)}; there are "
                f"{', '.join(sorted(known))}"
            )
        if "url" not in given:
            raise UsageError("object_spilling_config needs a url, as in valkey://host:6379")
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def connect_options(self) -> Options:
        """For :func:`inference_cache.connection.connect`."""
        names = (
            "username",
            "password_env",
            "password_file",
            "tls_ca_file",
            "tls_cert_file",
            "tls_key_file",
            "tls_server_name",
        )
        given: Any = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        given["connect_deadline_s"] = 2.0
        options: Options = given
        return options

    def limit_s(self, size_bytes: int) -> float:
        """What moving so many bytes may take."""
        return self.call_s + size_bytes / self.slowest_bytes_per_s
