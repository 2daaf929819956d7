# mypy: allow-untyped-calls
# valkey-py is marked as typed, but most methods that are called and overridden here have no annotations.
"""From a URL to a client whose every call ends in time, with an answer or with a typed error.

::

    client = connect("valkey://valkey.ai-ml.svc.cluster.local:6379", deadline_s=0.5)
    client.get(b"emb:sha256:abc123")

    with deadline(0.05):          # tighter, for the calls inside; the earliest deadline wins
        client.get(b"session:user:123")

What differs from plain valkey-py, whose client this is:

- A call has one deadline for everything: waiting for a free connection, resolving the name, connecting, TLS,
  AUTH, sending, and the whole reply. A server that sends a byte a second cannot outlive it.
- A connection goes back to the pool only after a whole reply. After a deadline, a broken reply, an interrupt
  or a lost connection it is closed, so no caller ever reads the reply of another.
- Nothing is sent twice unless that is known to be safe: connecting is tried again, and a command that only
  reads is sent once more when an idle connection turns out to be dead. See :class:`RetryPolicy`.
- Failures are errors of :mod:`inference_cache.errors`. ``valkey.exceptions.WatchError`` passes as it is: it
  says that a watched key changed, and the caller's loop waits for it.
- Keys and values are bytes; replies are never decoded.

Connections open lazily: :func:`connect` does not fail when the server is down, the first call does.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache, partial
from ipaddress import ip_address
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self, TypeAlias, TypedDict, Unpack
from urllib.parse import parse_qsl, unquote

import valkey
import valkey.asyncio
import valkey.exceptions as vke
from valkey._parsers.encoders import Encoder as _BaseEncoder
from valkey.asyncio.client import Pipeline as _BaseAsyncPipeline
from valkey.asyncio.client import PubSub as _BaseAsyncPubSub
from valkey.asyncio.connection import AbstractConnection as _BaseAsyncConnection
from valkey.asyncio.connection import ConnectionPool as _BaseAsyncPool
from valkey.client import Pipeline as _BasePipeline
from valkey.client import PubSub as _BasePubSub
from valkey.cluster import ClusterNode, ClusterParser, ValkeyCluster
from valkey.commands.cluster import READ_COMMANDS
from valkey.connection import AbstractConnection, BlockingConnectionPool
from valkey.crc import key_slot
from valkey.credentials import CredentialProvider

from inference_cache import __version__
from inference_cache.errors import (
    AccessDenied,
    CacheError,
    ClusterUnavailable,
    CommandRejected,
    DeadlineExceeded,
    NotValkey,
    PersistenceFailed,
    ServerBusy,
    ServerFull,
    ServerLoading,
    ServerReadOnly,
    Unreachable,
    UsageError,
    WriteRefused,
)

__all__ = [
    "AsyncClient",
    "AsyncPipeline",
    "AsyncPubSub",
    "Client",
    "ClusterClient",
    "ClusterPipeline",
    "Endpoint",
    "Options",
    "Pipeline",
    "PubSub",
    "RetryPolicy",
    "connect",
    "connect_async",
    "deadline",
    "parse_url",
    "redact_url",
    "remaining_s",
]

# --- deadlines ---------------------------------------------------------------------------------------------

_ends_at_s: ContextVar[float | None] = ContextVar("inference_cache_deadline", default=None)


@contextmanager
def deadline(limit_s: float) -> Iterator[None]:
    """Every call inside must end within ``limit_s`` seconds from now.

    Scopes nest and only ever tighten: the earliest end wins. The scope belongs to the running thread or task
    (it is a context variable); a thread started inside does not inherit it.

    Raises UsageError when ``limit_s`` is not a positive number. Calls that run into the end raise
    DeadlineExceeded.
    """
    if not 0 < limit_s < float("inf"):
        raise UsageError(f"a deadline is a positive number of seconds, not {limit_s!r}")
    ends_at_s = time.monotonic() + limit_s
    outer = _ends_at_s.get()
    token = _ends_at_s.set(ends_at_s if outer is None else min(outer, ends_at_s))
    try:
        yield
    finally:
        _ends_at_s.reset(token)


def remaining_s() -> float | None:
    """Seconds left in the :func:`deadline` scope, negative when it has passed, None outside of one."""
    ends_at_s = _ends_at_s.get()
    return None if ends_at_s is None else ends_at_s - time.monotonic()


class _DeadlineSocket:
    """A socket that may wait only as long as the active deadline allows.

    A socket's own timeout starts anew at every call, so a server that drips bytes never hits it. This one
    sets it to the time left before each call. ``settimeout`` keeps its meaning as a further bound.
    """

    __slots__ = ("_greeted", "_sock", "_timeout_s")

    def __init__(self, sock: socket.socket, timeout_s: float | None) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self._greeted = False

    def settimeout(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s

    def gettimeout(self) -> float | None:
        return self._timeout_s

    def fileno(self) -> int:
        return self._sock.fileno()

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()

    def recv(self, size_bytes: int) -> bytes:
        self._arm()
        data = self._sock.recv(size_bytes)
        self._greet(data[:_GREETING_BYTES])
        return data

    def recv_into(self, buffer: bytearray | memoryview, size_bytes: int = 0) -> int:
        self._arm()
        count = self._sock.recv_into(buffer, size_bytes)
        self._greet(bytes(memoryview(buffer)[: min(count, _GREETING_BYTES)]))
        return count

    def sendall(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            self._arm()
            view = view[self._sock.send(view) :]

    def _arm(self) -> None:
        left_s = remaining_s()
        timeout_s = self._timeout_s
        if left_s is not None and timeout_s != 0:
            if left_s <= 0:
                raise TimeoutError("the deadline has passed")
            timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
        self._sock.settimeout(timeout_s)

    def _greet(self, data: bytes) -> None:
        if not self._greeted and data:
            self._greeted = True
            _require_resp(data)


_RESP_TYPES: Final = frozenset(b"+-:$*_#,(!=%~>|")
_GREETING_BYTES: Final = 24


def _require_resp(data: bytes) -> None:
    """Refuses a peer by its first byte: waiting for a line that never ends would take the whole deadline."""
    if data[0] not in _RESP_TYPES:
        raise vke.InvalidResponse(f"the first bytes of the answer are {data[:_GREETING_BYTES]!r}")


# --- where: the URL ----------------------------------------------------------------------------------------

Kind = Literal["tcp", "unix", "sentinel", "cluster"]

_SCHEMES: Final[Mapping[str, tuple[Kind, bool]]] = {
    **dict.fromkeys(("valkey", "redis"), ("tcp", False)),
    **dict.fromkeys(("valkeys", "rediss"), ("tcp", True)),
    **dict.fromkeys(("unix", "valkey+unix", "redis+unix", "redis-socket"), ("unix", False)),
    **dict.fromkeys(("valkey+sentinel", "redis+sentinel"), ("sentinel", False)),
    **dict.fromkeys(("valkeys+sentinel", "rediss+sentinel"), ("sentinel", True)),
    **dict.fromkeys(("valkey+cluster", "redis+cluster"), ("cluster", False)),
    **dict.fromkeys(("valkeys+cluster", "rediss+cluster"), ("cluster", True)),
}
_CANONICAL_SCHEME: Final[Mapping[tuple[Kind, bool], str]] = {
    ("tcp", False): "valkey",
    ("tcp", True): "valkeys",
    ("unix", False): "unix",
    ("sentinel", False): "valkey+sentinel",
    ("sentinel", True): "valkeys+sentinel",
    ("cluster", False): "valkey+cluster",
    ("cluster", True): "valkeys+cluster",
}
_TLS_PARAMETERS: Final = ("tls_ca_file", "tls_cert_file", "tls_key_file", "tls_server_name", "tls_verify")
_PARAMETERS: Final = ("client_name", "db", "password_env", "password_file", "protocol", *_TLS_PARAMETERS)
_TRUTH: Final[Mapping[str, bool]] = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a cache is and how to speak to it: what :func:`parse_url` reads from a URL.

    ``str()`` gives a URL without user, password and parameters, fit for logs.
    """

    kind: Kind
    tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    """Host and port: one for ``tcp``, the sentinels for ``sentinel``, seed nodes for ``cluster``."""
    path: str | None = None
    """The socket of a ``unix`` endpoint."""
    service: str | None = None
    """The name under which sentinels know the primary."""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Query parameters other than ``db``, checked; arguments of :func:`connect` of the same name win."""

    def __str__(self) -> str:
        scheme = _CANONICAL_SCHEME[self.kind, self.tls]
        if self.kind == "unix":
            return f"{scheme}://{self.path}" + (f"?db={self.db}" if self.db else "")
        hosts = ",".join(_host_port(host, port) for host, port in self.hosts)
        service = f"/{self.service}" if self.service else ""
        return f"{scheme}://{hosts}{service}" + (f"/{self.db}" if self.db else "")


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def redact_url(url: str) -> str:
    """The URL with passwords replaced by ``***``; of a malformed URL it hides rather too much."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return re.sub(r"[^@]*@", "***@", url)
    user, at, place = rest.rpartition("@")
    if at and not user.startswith("/"):
        name, colon, _ = user.partition(":")
        rest = f"{name}:***@{place}" if colon else f"***@{place}"
    # Without an '@' what should be a port may be a password.
    rest = re.sub(r"^([^/?,:@\[\]]*):(?!\d+(?:[/?,]|$))[^/?,@]+(?=[/?,]|$)", r"\1:***", rest)
    rest = re.sub(r"(?i)([?&][^=&]*(?:pass|pw|secret|token)[^=&]*=)[^&]*", _hide_unless_reference, rest)
    return f"{scheme}://{rest}"


def _hide_unless_reference(match: re.Match[str]) -> str:
    named = match[1][1:-1].lower()
    return match[0] if named in ("password_file", "password_env") else f"{match[1]}***"


def parse_url(url: str) -> Endpoint:
    """Reads a URL of a cache.

    ================================================  =============================================
    ``valkey://[user:password@]host[:6379][/db]``      one server (also ``redis://``)
    ``valkeys://...``                                  the same over TLS (also ``rediss://``)
    ``unix:///path/to/socket[?db=1]``                  a socket file (also ``valkey+unix://``)
    ``valkey+sentinel://h1[:26379],h2/service[/db]``   the primary that the sentinels name
    ``valkey+cluster://h1[:6379],h2``                  a cluster, through any of these nodes
    ``valkeys+sentinel://``, ``valkeys+cluster://``    these two over TLS
    ================================================  =============================================

    Parameters: ``db``, ``protocol``, ``client_name``, ``password_file``, ``password_env`` and the ``tls_...``
    arguments of :func:`connect`. User, password, path and service are percent-decoded.

    Raises UsageError that says what is wrong and what to write; never with the password in it.
    """

    def wrong(what: str) -> NoReturn:
        raise UsageError(f"{redact_url(url)}: {what}")

    scheme, mark, rest = url.partition("://")
    if not mark:
        wrong("no scheme; write valkey://host:port")
    found = _SCHEMES.get(scheme.lower())
    if found is None:
        wrong(f"unknown scheme {scheme!r}; write one of {', '.join(sorted(_SCHEMES))}")
    kind, tls = found
    # A socket path may hold any of these, and it starts after the authority.
    beginning = rest.partition("/")[0]
    is_path = kind == "unix" and (not beginning or beginning.endswith("@"))
    if not is_path and re.search("[/?#]", rest[: max(rest.rfind("@"), 0)]):
        wrong("in a user, password or parameter write '/' as %2F, '?' as %3F, '#' as %23 and '@' as %40")
    if "#" in rest:
        wrong("write '#' as %23")
    rest, _, query = rest.partition("?")
    parameters = _parameters(query, tls=tls, wrong=wrong)
    authority, slash, path = rest.partition("/")
    user, _, authority = authority.rpartition("@")
    username, colon, password = (unquote(part) for part in user.partition(":"))
    db = parameters.pop("db", None)
    who = Endpoint(
        kind=kind,
        tls=tls,
        username=username or None,
        password=password if colon and (username or password) else None,
        parameters=parameters,
    )
    if kind == "unix":
        if authority:
            wrong(f"a socket path starts with a slash; write {scheme}:///{authority}{slash}{path}")
        if not path:
            wrong(f"no path; write {scheme}:///path/to/socket")
        return replace(who, path="/" + unquote(path), db=_db(db, wrong))
    default_port = 26379 if kind == "sentinel" else 6379
    hosts = tuple(_host(text, default_port, wrong) for text in authority.split(","))
    if kind == "tcp" and len(hosts) > 1:
        wrong(f"one host only; for several write {scheme}+cluster:// or {scheme}+sentinel://.../service")
    service: str | None = None
    if kind == "sentinel":
        service, _, path = path.partition("/")
        service = unquote(service)
        if not service:
            wrong("no service name; write valkey+sentinel://host:26379/service")
    if path and db is not None:
        wrong("the database stands in the path and in ?db=; write it once")
    number = _db(path or db, wrong)
    if kind == "cluster" and number:
        wrong("a cluster has only database 0; leave it out")
    return replace(who, hosts=hosts, service=service, db=number)


def _parameters(query: str, *, tls: bool, wrong: Callable[[str], NoReturn]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _PARAMETERS:
            wrong(f"unknown parameter {name!r}; known are {', '.join(sorted(_PARAMETERS))}")
        if name in parameters:
            wrong(f"parameter {name!r} stands there twice")
        if not value:
            wrong(f"parameter {name!r} has no value; write {name}=value or leave it out")
        if name in _TLS_PARAMETERS and not tls:
            wrong(f"{name!r} needs TLS; write valkeys:// or leave it out")
        if name == "protocol" and value not in ("2", "3"):
            wrong(f"protocol is 2 or 3, not {value!r}")
        if name == "tls_verify" and value.lower() not in _TRUTH:
            wrong(f"tls_verify is yes or no, not {value!r}")
        parameters[name] = value
    return parameters


def _db(text: str | None, wrong: Callable[[str], NoReturn]) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        wrong(f"the database is a number from 0 up, not {text!r}; write .../0 or leave it out")
    return int(text)


def _host(text: str, default_port: int, wrong: Callable[[str], NoReturn]) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<name>[^\[\]:]*))(?::(?P<port>[^:]*))?", text)
    if match is None:
        wrong("cannot read the host; write host:port, and an IPv6 address as [::1]:6379")
    host: str = match["v6"] or match["name"]
    if not re.fullmatch(r"[\w.%:-]+", host):
        wrong("the host is missing or no host name; write valkey://host:port")
    port_text = match["port"]
    if port_text is None:
        return host, default_port
    if not (port_text.isascii() and port_text.isdigit() and 1 <= int(port_text) <= 65535):
        wrong("a port is a number from 1 to 65535, and a user and password end in '@'")
    return host, int(port_text)


# --- how: what a connection is made from -------------------------------------------------------------------


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


class _Credentials(CredentialProvider):
    """User and password; a password file is read for each connection, so that a rotated secret is used."""

    def __init__(self, username: str | None, password: str | None, password_file: Path | None) -> None:
        self._username = username
        self._password = password
        self._password_file = password_file

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._password or ""
        if self._password_file is not None:
            try:
                password = _read_secret(self._password_file)
            except (OSError, UnicodeDecodeError) as error:
                raise vke.AuthenticationError(f"cannot read the password file: {error}") from error
        return (self._username, password) if self._username else (password,)


def _read_secret(path: Path) -> str:
    return path.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """All that is needed to open a connection; shared by every connection of a client."""

    endpoint: Endpoint
    deadline_s: float
    connect_deadline_s: float
    credentials: _Credentials | None
    sentinel_credentials: _Credentials | None
    tls: ssl.SSLContext | None
    tls_server_name: str | None
    protocol: int
    client_name: str | None
    max_connections: int
    retry: RetryPolicy

    def for_sentinel(self, host: str, port: int) -> _Plan:
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


class _Encoder(_BaseEncoder):
    """Sends any buffer as its bytes: the stock one announces the length of a float32 view in floats."""

    def encode(self, value: Any) -> bytes | memoryview:
        if isinstance(value, (memoryview, bytearray)):
            view = memoryview(value)
            return view if view.nbytes == len(view) else view.cast("B")
        encoded: bytes | memoryview = super().encode(value)
        return encoded


class _KeepsReply:
    """Parsers keep the server's own words: valkey-py cuts the code off the error replies it knows."""

    # A single server of a cluster answers MOVED too, and the RESP3 parser would not know it otherwise.
    EXCEPTION_CLASSES = ClusterParser.EXCEPTION_CLASSES

    @classmethod
    def parse_error(cls, response: str) -> Exception:
        error: Exception = super().parse_error(response)  # type: ignore[misc]
        error.reply = response  # type: ignore[attr-defined]
        return error


@cache
def _keeping_reply(parser_class: type) -> type:
    return type(f"_{parser_class.__name__}KeepsReply", (_KeepsReply, parser_class), {})


def _address_infos(host: str, port: int) -> Sequence[tuple[socket.AddressFamily, Any]]:
    """Resolves a name within the deadline.

    The resolver of the C library knows no deadline, so a name is looked up by a thread that is left behind
    when the time is over. Raises OSError (gaierror), TimeoutError.
    """

    def look_up() -> list[tuple[socket.AddressFamily, Any]]:
        return [(info[0], info[4]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]

    try:
        ip_address(host)
    except ValueError:
        pass
    else:
        return look_up()
    answers: list[list[tuple[socket.AddressFamily, Any]] | OSError] = []

    def answer() -> None:
        try:
            answers.append(look_up())
        except OSError as error:
            answers.append(error)

    thread = threading.Thread(target=answer, name=f"resolve {host}", daemon=True)
    thread.start()
    left_s = remaining_s()
    thread.join(None if left_s is None else max(left_s, 0))
    if not answers:
        raise TimeoutError(f"the name {host!r} was not resolved in time")
    if isinstance(answers[0], OSError):
        raise answers[0]
    return answers[0]


def _open_tcp(host: str, port: int) -> socket.socket:
    """Connects to the first address that answers; the others share the time that is left fairly."""
    infos = _address_infos(host, port)
    failure: OSError = OSError(errno.EADDRNOTAVAIL, f"{host!r} has no address")
    for tried, (family, address) in enumerate(infos):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            left_s = remaining_s()
            if left_s is not None:
                if left_s <= 0:
                    raise TimeoutError("the deadline has passed")
                sock.settimeout(left_s / (len(infos) - tried))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def _open_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        left_s = remaining_s()
        sock.settimeout(None if left_s is None else max(left_s, 0.001))
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


class _Connection(AbstractConnection):
    """One connection, over TCP, TLS or a socket file; asks sentinels for its peer where there are some."""

    def __init__(self, *, plan: _Plan, host: str = "", port: int = 0, protocol: int | None = None) -> None:
        self._plan = plan
        self.host = host
        self.port = port
        self.reused = False
        """Whether the pool gave it out already connected."""
        self._closed_by = 0
        """The thread that closed it last: under another one a parser fails in any way."""
        super().__init__(**plan.connection_arguments(), socket_timeout=plan.deadline_s)

    def repr_pieces(self) -> list[tuple[str, Any]]:
        return [("endpoint", self._plan.endpoint), ("peer", self._host_error())]

    def set_parser(self, parser_class: type) -> None:
        super().set_parser(_keeping_reply(parser_class))

    def _construct_command_packer(self, packer: Any) -> Any:
        self.encoder = _Encoder("utf-8", "strict", False)
        return super()._construct_command_packer(packer)

    def _host_error(self) -> str:
        path = self._plan.endpoint.path
        return path if path is not None else _host_port(self.host, self.port)

    def disconnect(self, *args: Any) -> None:
        if self._sock is not None:
            self._closed_by = threading.get_ident()
        super().disconnect(*args)

    def connect(self) -> None:
        if self._sock is not None:
            return
        with deadline(self._plan.connect_deadline_s):
            try:
                super().connect()
            except (AttributeError, TypeError) as error:
                self.disconnect()
                raise vke.InvalidResponse(f"the answer to the handshake makes no sense: {error}") from error
            except BaseException:
                self.disconnect()
                raise

    def _connect(self) -> _DeadlineSocket:
        endpoint = self._plan.endpoint
        if endpoint.path is not None:
            return _DeadlineSocket(_open_unix(endpoint.path), self.socket_timeout)
        if endpoint.kind == "sentinel":
            self.host, self.port = _ask_sentinels(self._plan)
        sock = _open_tcp(self.host, self.port)
        try:
            if self._plan.tls is not None:
                left_s = remaining_s()
                sock.settimeout(None if left_s is None else max(left_s, 0.001))
                sock = self._plan.tls.wrap_socket(
                    sock, server_hostname=self._plan.tls_server_name or self.host
                )
            return _DeadlineSocket(sock, self.socket_timeout)
        except BaseException:
            sock.close()
            raise

    def on_connect(self) -> None:
        super().on_connect()
        if self._plan.endpoint.kind == "sentinel":
            self.send_command("ROLE")
            with suppress(vke.NoPermissionError):
                _require_primary(self.read_response())

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)
        except vke.ReadOnlyError:
            if self._plan.endpoint.kind == "sentinel":
                # The primary became a replica: the next call asks the sentinels again.
                self.disconnect()
            raise
        except (AttributeError, ValueError, TypeError, OverflowError, RecursionError) as error:
            self.disconnect()
            if self._closed_by != threading.get_ident():
                raise vke.ConnectionError("closed by another thread while it was in use") from error
            raise vke.InvalidResponse(f"a reply that cannot be read: {error}") from error


def _require_primary(role: Any) -> None:
    if not isinstance(role, list) or not role or role[0] != b"master":
        raise vke.ConnectionError("the server that the sentinels name is no primary: is a failover going on?")


def _primary_address(reply: Any, service: str | None) -> tuple[str, int]:
    if reply is None:
        raise vke.ConnectionError(f"knows no service {service!r}")
    try:
        host, port = reply
        return host.decode(), int(port)
    except (AttributeError, TypeError, ValueError) as error:
        raise vke.InvalidResponse(f"not the answer of a sentinel: {error}") from error


_ASK_PRIMARY: Final = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME")


def _ask_sentinels(plan: _Plan) -> tuple[str, int]:
    """Host and port of the primary, from the first sentinel that knows it; each gets a share of the time."""
    failures: list[str] = []
    sentinels = plan.endpoint.hosts
    for tried, (host, port) in enumerate(sentinels):
        left_s = remaining_s()
        if left_s is not None and left_s <= 0:
            break
        share_s = (plan.connect_deadline_s if left_s is None else left_s) / (len(sentinels) - tried)
        connection = _Connection(plan=plan.for_sentinel(host, port), host=host, port=port)
        try:
            with deadline(share_s):
                connection.connect()
                connection.send_command(*_ASK_PRIMARY, plan.endpoint.service)
                return _primary_address(connection.read_response(), plan.endpoint.service)
        except (vke.ValkeyError, OSError) as error:
            failures.append(f"{_host_port(host, port)}: {error}")
        finally:
            connection.disconnect()
    raise _no_primary(plan, failures)


def _no_primary(plan: _Plan, failures: Sequence[str]) -> vke.ConnectionError:
    reasons = "; ".join(failures)
    return vke.ConnectionError(f"no sentinel names the primary of {plan.endpoint.service!r}: {reasons}")


def _pool_is_empty(plan: _Plan, wait_s: float) -> str:
    return (
        f"all {plan.max_connections} connections to {plan.endpoint} were in use for {wait_s:.3g} s; "
        "raise max_connections, or find who holds them"
    )


class _Pool(BlockingConnectionPool):
    """Gives out connections that are open and have nothing left to read; waits for one until the deadline."""

    def __init__(self, *, plan: _Plan, host: str = "", port: int = 0, **_: Any) -> None:
        self.plan = plan
        super().__init__(
            max_connections=plan.max_connections,
            connection_class=_Connection,
            plan=plan,
            host=host,
            port=port,
            protocol=plan.protocol,
        )

    def get_connection(  # type: ignore[override]
        self, command_name: Any, *keys: Any, **options: Any
    ) -> _Connection:
        self._checkpid()
        left_s = remaining_s()
        wait_s = self.plan.deadline_s if left_s is None else max(left_s, 0)
        try:
            connection = self.pool.get(timeout=wait_s)
        except Empty:
            raise DeadlineExceeded(_pool_is_empty(self.plan, wait_s)) from None
        if connection is None:
            connection = self.make_connection()
        self._lent.add(connection)
        try:
            self._make_ready(connection)
        except BaseException:
            self.release(connection)
            raise
        ready: _Connection = connection
        return ready

    def reset(self) -> None:
        self._lent: set[_Connection] = set()
        super().reset()

    def release(self, connection: Any) -> None:
        # Taking a connection back twice would give it to two callers at once.
        if connection in self._lent:
            self._lent.discard(connection)
            super().release(connection)

    def _make_ready(self, connection: _Connection) -> None:
        connection.reused = connection._sock is not None
        if connection.reused:
            with suppress(vke.ConnectionError, OSError):
                if not connection.can_read():
                    return
            # Closed by the server while idle, or holding bytes that no caller asked for.
            connection.disconnect()
            connection.reused = False
        attempt = 1
        while True:
            try:
                connection.connect()
                return
            except vke.ConnectionError as error:
                pause_s = _pause_before_retry_s(self.plan.retry, attempt, error)
                if pause_s is None:
                    raise
            time.sleep(pause_s)
            attempt += 1


def _pause_before_retry_s(retry: RetryPolicy, attempt: int, error: Exception) -> float | None:
    """Seconds to wait before connecting again; None to give up, as a refusal by word or by TLS will stay."""
    if attempt >= retry.connect_attempts or type(error) is not vke.ConnectionError or hasattr(error, "reply"):
        return None
    cause = _os_error(error)
    if isinstance(cause, (ssl.SSLError, PermissionError)):
        return None
    if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
        return None
    pause_s = retry.pause_s(attempt)
    left_s = remaining_s()
    return pause_s if left_s is None or pause_s < left_s else None


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind one of valkey-py's, which it replaces by a text."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


# --- errors ------------------------------------------------------------------------------------------------

_BY_CODE: Final[Mapping[str, type[CacheError]]] = {
    "LOADING": ServerLoading,
    "OOM": ServerFull,
    "READONLY": ServerReadOnly,
    "MISCONF": PersistenceFailed,
    "NOREPLICAS": WriteRefused,
    "NOAUTH": AccessDenied,
    "WRONGPASS": AccessDenied,
    "NOPERM": AccessDenied,
    "DENIED": AccessDenied,
    "BUSY": ServerBusy,
    "CLUSTERDOWN": ClusterUnavailable,
    "MASTERDOWN": ClusterUnavailable,
    "TRYAGAIN": ClusterUnavailable,
}


class _NoScript(CommandRejected, vke.NoScriptError):
    """NOSCRIPT stays valkey-py's own error as well: ``register_script`` catches it to load the script."""


def _from_reply(error: Exception, *, where: str, what: str) -> CacheError:
    reply: str = getattr(error, "reply", None) or f"ERR {error}"
    code = reply.split(" ", 1)[0]
    # The server repeats the arguments of a command that it does not know, and those may be secret.
    reply = reply.partition(", with args beginning with")[0]
    message = f"{where} refused {what}: {reply}"
    if isinstance(error, vke.NoScriptError):
        return _NoScript(message, code=code)
    if "max number of clients" in reply:
        return ServerBusy(f"{message}; raise its maxclients, or lower max_connections of its clients")
    if isinstance(error, (vke.AuthenticationError, vke.NoPermissionError)):
        return AccessDenied(message)
    known = _BY_CODE.get(code)
    if known is not None:
        return known(message)
    if code in ("MOVED", "ASK"):
        message += "; this is a node of a cluster: write valkey+cluster://"
    return CommandRejected(message, code=code)


def _hint(error: BaseException, cause: OSError | None, *, plain_text: bool) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "its certificate is not trusted: give tls_ca_file, or the name in it as tls_server_name"
    if isinstance(cause, ssl.SSLError):
        return (
            "does it speak TLS, and does it accept this client's certificate? For plain text write valkey://"
        )
    if isinstance(cause, socket.gaierror):
        return "the name does not resolve here"
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens there: is the server running, is the port right?"
    if isinstance(cause, FileNotFoundError):
        return "there is no such socket: is the server running with unixsocket set?"
    if isinstance(cause, ConnectionError) or "closed by server" in str(error):
        hint = "the server ended the connection, and a command that writes may have been carried out"
        return f"{hint}; if it expects TLS write valkeys://" if plain_text else hint
    return "is the server running, and may this host connect to it?"


def _from_failure(error: BaseException, *, where: str, what: str, took_s: float) -> Exception | None:
    """The error to raise instead, or None for one that is not about talking to the cache."""
    if isinstance(error, vke.InvalidResponse):
        hint = "is this the port of another service?"
        if "b'\\x15\\x03" in str(error):
            hint = "it answers with TLS: write valkeys://"
        elif "b'HTTP/" in str(error):
            hint = "it is a web server"
        return NotValkey(f"{where} does not speak the protocol of Valkey: {error}; {hint}")
    if hasattr(error, "reply") and isinstance(error, Exception):
        return _from_reply(error, where=where, what=what)
    if isinstance(error, vke.AuthenticationError):
        return AccessDenied(f"{where} could not be asked ({what}): {error}")
    if isinstance(error, (vke.TimeoutError, TimeoutError)):
        detail = str(error) or str(error.__cause__ or "") or "it was under way"
        return DeadlineExceeded(f"{where} did not answer {what} within {took_s:.3g} s: {detail}")
    if isinstance(error, vke.ValkeyClusterException) and error.__cause__ is not None:
        inner = error.__cause__
        if isinstance(inner, vke.ValkeyClusterException):
            return ClusterUnavailable(f"{where}: {inner}")
        return _from_failure(inner, where=where, what=what, took_s=took_s)
    if isinstance(error, (vke.ClusterError, vke.ValkeyClusterException)):
        return ClusterUnavailable(f"{where} could not serve {what}: {error}")
    if isinstance(error, (vke.ConnectionError, OSError)):
        cause = _os_error(error)
        detail = (cause.strerror or str(cause)) if cause is not None else str(error)
        hint = _hint(error, cause, plain_text=where.startswith("valkey:"))
        return Unreachable(f"cannot reach {where} for {what} (tried for {took_s:.3g} s): {detail}; {hint}")
    if isinstance(error, vke.DataError):
        return UsageError(f"{what}: {error}")
    if isinstance(error, vke.ResponseError) and not isinstance(error, vke.LockError):
        return _from_reply(error, where=where, what=what)
    return None


@contextmanager
def _translated(plan: _Plan, what: str) -> Iterator[None]:
    began_s = time.monotonic()
    try:
        yield
    except CacheError:
        raise
    except (vke.ValkeyError, vke.ValkeyClusterException, OSError) as error:
        took_s = time.monotonic() - began_s
        better = _from_failure(error, where=str(plan.endpoint), what=what, took_s=took_s)
        if better is None:
            raise
        raise better from error


@contextmanager
def _call(plan: _Plan, what: str, limit_s: float) -> Iterator[None]:
    with _translated(plan, what), deadline(limit_s):
        yield


def _each_translated(results: Sequence[Any], plan: _Plan, what: str) -> list[Any]:
    return [
        (_from_failure(result, where=str(plan.endpoint), what=what, took_s=0) or result)
        if isinstance(result, Exception)
        else result
        for result in results
    ]


def _name(command: object) -> str:
    text = command.decode("utf-8", "replace") if isinstance(command, bytes) else str(command)
    return text.upper()


_READS: Final = READ_COMMANDS | {
    "CONFIG GET",
    "DBSIZE",
    "DUMP",
    "EXPIRETIME",
    "HSCAN",
    "INFO",
    "LASTSAVE",
    "MEMORY USAGE",
    "OBJECT ENCODING",
    "OBJECT FREQ",
    "OBJECT IDLETIME",
    "PEXPIRETIME",
    "PING",
    "ROLE",
    "SCAN",
    "SMISMEMBER",
    "SSCAN",
    "TIME",
    "TYPE",
    "XLEN",
    "XRANGE",
    "XREVRANGE",
    "ZMSCORE",
    "ZRANGEBYSCORE",
    "ZRANK",
    "ZSCAN",
}
"""Commands that change nothing, not even a cursor or a recency that matters, and may be sent twice."""


def _may_resend(plan: _Plan, connection: Any, command: str, error: Exception) -> bool:
    """Whether a lost connection was an idle one gone stale, and the command only reads."""
    return (
        connection.reused
        and plan.retry.reads
        and command in _READS
        and type(error) is vke.ConnectionError
        and not hasattr(error, "reply")
    )


# --- clients -----------------------------------------------------------------------------------------------

Key = bytes | str | memoryview
_SetOfBytes: TypeAlias = set[bytes]  # a class that has a method of that name cannot spell it
Value: TypeAlias = "bytes | bytearray | memoryview[Any] | str | int | float"


class _CleanReplies:
    """Shared by clients and pipelines: a connection that did not give a whole reply is closed at once.

    Without this, an interrupt between sending and reading, or an error while a reply is being converted in
    the middle of a pipeline, would leave replies for the next user of the connection to find.
    """

    def _send_command_parse_response(self, conn: Any, command_name: Any, *args: Any, **options: Any) -> Any:
        with _closed_unless_whole(conn):
            return super()._send_command_parse_response(  # type: ignore[misc]
                conn, command_name, *args, **options
            )


@contextmanager
def _closed_unless_whole(connection: _Connection) -> Iterator[None]:
    try:
        yield
    except (vke.ResponseError, vke.WatchError):
        raise  # a reply like any other, read to its end
    except BaseException:
        connection.disconnect()
        raise


class Client(_CleanReplies, valkey.Valkey):
    """A ``valkey.Valkey`` with deadlines, clean connections and typed errors; made by :func:`connect`.

    Everything that valkey-py's client offers is there. Bytes come out; str keys and values go in as UTF-8.
    ``monitor()`` is valkey-py's own: its errors are not translated.

    Raises, from every call that talks to the server: the CacheError tree, and UsageError for an argument that
    cannot be sent.
    """

    def __init__(
        self,
        *,
        connection_pool: _Pool,
        deadline_s: float | None = None,
        single_connection_client: bool = False,
        owns_pool: bool = False,
    ) -> None:
        self._plan = connection_pool.plan
        self.deadline_s = self._plan.deadline_s if deadline_s is None else deadline_s
        """Seconds that a call may take, unless a :func:`deadline` around it ends earlier."""
        super().__init__(connection_pool=connection_pool)
        self.auto_close_connection_pool = owns_pool
        if single_connection_client:
            with _call(self._plan, "connecting", self.deadline_s):
                self.connection = connection_pool.get_connection("_")

    @property
    def endpoint(self) -> Endpoint:
        return self._plan.endpoint

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._plan.endpoint} deadline_s={self.deadline_s}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections. A call that another thread is in ends with Unreachable."""
        super().close()

    def with_deadline(self, deadline_s: float) -> Client:
        """The same connections with another deadline per call, which may be longer, as for ``SAVE``."""
        return Client(connection_pool=self.connection_pool, deadline_s=deadline_s)

    def client(self) -> Client:
        """A client that keeps one connection for itself until it is closed; not for several threads."""
        return Client(
            connection_pool=self.connection_pool, deadline_s=self.deadline_s, single_connection_client=True
        )

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Sends one command and returns its reply, converted as valkey-py does for that command."""
        options.pop("keys", None)  # for valkey-py's client-side cache, which is never on
        command = _name(args[0])
        with _call(self._plan, command, self.deadline_s):
            connection = self.connection or self.connection_pool.get_connection(command)
            try:
                return self._send_command_parse_response(connection, args[0], *args, **options)
            except vke.ConnectionError as error:
                if not _may_resend(self._plan, connection, command, error):
                    raise
                return self._send_command_parse_response(connection, args[0], *args, **options)
            finally:
                if self.connection is None:
                    self.connection_pool.release(connection)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Commands sent together; with ``transaction`` between MULTI and EXEC. One deadline for the batch."""
        return Pipeline(self, transaction=transaction)

    def transaction(self, func: Callable[[Pipeline], Any], *watches: Key, **kwargs: Any) -> Any:
        """Optimistic locking as in valkey-py, but all tries together end within the deadline."""
        with deadline(self.deadline_s):
            return super().transaction(func, *watches, **kwargs)  # type: ignore[arg-type]

    def pubsub(self, **kwargs: Any) -> PubSub:
        """Subscriptions. Waiting for a message may take for ever; a message that has begun may not."""
        return PubSub(self.connection_pool, deadline_s=self.deadline_s, **kwargs)

    if TYPE_CHECKING:
        # What the commands that this project lives on give for a client of bytes; valkey-py types them all as
        # "an awaitable or anything".
        def ping(self, **kwargs: Any) -> bool: ...
        def set(self, name: Key, value: Value, *args: Any, **kwargs: Any) -> Any: ...
        def get(self, name: Key) -> bytes | None: ...
        def getrange(self, key: Key, start: int, end: int) -> bytes: ...
        def mget(self, keys: Key | Iterable[Key], *args: Key | float) -> list[bytes | None]: ...
        def exists(self, *names: Key) -> int: ...
        def delete(self, *names: Key) -> int: ...
        def unlink(self, *names: Key) -> int: ...
        def touch(self, *args: Key) -> int: ...
        def strlen(self, name: Key) -> int: ...
        def incr(self, name: Key, amount: int = 1) -> int: ...
        def ttl(self, name: Key) -> int: ...
        def pttl(self, name: Key) -> int: ...
        def persist(self, name: Key) -> bool: ...
        def type(self, name: Key) -> bytes: ...
        def dbsize(self, **kwargs: Any) -> int: ...
        def hget(self, name: Key, key: Key) -> bytes | None: ...  # type: ignore[override]
        def hgetall(self, name: Key) -> dict[bytes, bytes]: ...
        def hlen(self, name: Key) -> int: ...
        def llen(self, name: Key) -> int: ...
        def lrange(self, name: Key, start: int, end: int) -> list[bytes]: ...
        def smembers(self, name: Key) -> _SetOfBytes: ...
        def memory_usage(self, key: Key, samples: int | None = None, **kwargs: Any) -> int | None: ...
        def time(self, **kwargs: Any) -> tuple[int, int]: ...
        def scan(
            self,
            cursor: int = 0,
            match: Key | None = None,
            count: int | None = None,
            _type: str | None = None,
            **kwargs: Any,
        ) -> tuple[int, list[bytes]]: ...
        def scan_iter(
            self,
            match: Key | None = None,
            count: int | None = None,
            _type: str | None = None,
            **kwargs: Any,
        ) -> Iterator[bytes]: ...
        def info(self, section: str | None = None, *args: Any, **kwargs: Any) -> dict[str, Any]: ...
        def config_get(self, pattern: Key = "*", *args: Any, **kwargs: Any) -> dict[str, str]: ...


class Pipeline(_CleanReplies, _BasePipeline):
    """Commands sent together, under one deadline. A lost EXEC is an error, never a silent second try."""

    def __init__(self, client: Client, *, transaction: bool) -> None:
        self._plan = client._plan
        self._deadline_s = client.deadline_s
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        super().close()

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        return super().execute_command(*args, **kwargs)

    def watch(self, *names: Key) -> Any:
        return super().watch(*names)

    def multi(self) -> None:
        super().multi()

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Sends what was queued and gives the replies in order.

        The first error reply is raised, or with ``raise_on_error`` False stands in the list, as an error of
        :mod:`inference_cache.errors`. Raises ``valkey.exceptions.WatchError`` when a watched key changed.
        """
        commands = f"a pipeline of {len(self.command_stack)} commands"
        with _call(self._plan, commands, self._deadline_s):
            return _each_translated(super().execute(raise_on_error), self._plan, "a command of a pipeline")

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        with _call(self._plan, _name(args[0]), self._deadline_s):
            return super().immediate_execute_command(*args, **options)

    def reset(self) -> None:
        try:
            with deadline(self._deadline_s):
                super().reset()
        except (vke.ValkeyError, OSError):
            # UNWATCH got no answer: a connection that is closed watches nothing.
            self.watching = False
            if self.connection is not None:
                self.connection.disconnect()
            super().reset()

    def annotate_exception(self, exception: Exception, number: int, command: Sequence[Any]) -> None:
        _annotate(exception, number, command)

    def _execute_pipeline(self, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        with _closed_unless_whole(connection):
            return super()._execute_pipeline(connection, commands, raise_on_error)

    def _execute_transaction(self, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        with _closed_unless_whole(connection):
            return super()._execute_transaction(connection, commands, raise_on_error)

    def _disconnect_reset_raise(self, conn: Any, error: Exception) -> NoReturn:
        self._give_up(conn, error)

    def _disconnect_raise_reset(self, conn: Any, error: Exception) -> NoReturn:
        self._give_up(conn, error)

    def _give_up(self, connection: Any, error: Exception) -> NoReturn:
        # valkey-py makes a WatchError of this while a key is watched, at which callers start over: a
        # transaction whose EXEC was carried out and whose reply was lost would be carried out twice.
        connection.disconnect()
        self.watching = False
        self.reset()
        raise error


def _annotate(exception: Exception, number: int, command: Sequence[Any]) -> None:
    """Says which command of a pipeline failed. Its arguments stay out: they are the users' data."""
    where = f"command {number} of the pipeline ({_name(command[0])})"
    reply = getattr(exception, "reply", None) or str(exception)
    exception.reply = f"{reply} [{where}]"  # type: ignore[attr-defined]


class PubSub(_BasePubSub):
    """Subscriptions with typed errors; reconnects and subscribes again at the next call after a failure."""

    def __init__(self, connection_pool: _Pool, *, deadline_s: float, **kwargs: Any) -> None:
        self._plan = connection_pool.plan
        self._deadline_s = deadline_s
        super().__init__(connection_pool, **kwargs)

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        super().close()

    def execute_command(self, *args: Any) -> Any:
        with _call(self._plan, _name(args[0]), self._deadline_s):
            return super().execute_command(*args)

    def parse_response(self, block: bool = True, timeout: float | None = 0) -> Any:
        connection = self.connection
        if connection is None:
            return super().parse_response(block, timeout)  # raises, and says to subscribe first
        with _translated(self._plan, "waiting for a message"):
            wait_s = None if block else timeout
            if not self._execute(connection, connection.can_read, timeout=wait_s):
                if block:
                    raise DeadlineExceeded("no message came before the deadline")
                return None
        with _call(self._plan, "reading a message", self._deadline_s):
            return super().parse_response(block=False, timeout=0)


# --- cluster -----------------------------------------------------------------------------------------------


class _Cluster(ValkeyCluster):
    """valkey-py's map of a cluster, with its way of sending replaced.

    The stock one sends a command again when its reply was lost, sleeps without looking at a deadline, and
    forgets nodes that were away until it knows none.
    """

    def __init__(self, plan: _Plan) -> None:
        self._seeds = [ClusterNode(host, port) for host, port in plan.endpoint.hosts]
        self.stale = False
        """Whether the map must be drawn anew before the next command."""
        first = _host_port(*plan.endpoint.hosts[0])
        super().__init__(
            # Only with a URL does valkey-py use the pool class it is given.
            url=f"valkey://{first}",
            startup_nodes=self._seeds[1:],
            cluster_error_retry_attempts=0,
            connection_pool_class=partial(_Pool, plan=plan),
        )

    def refresh(self) -> None:
        """Asks the known nodes for the map of slots, the ones that failed lately last."""
        manager = self.nodes_manager
        known = {node.name: node for node in [*manager.nodes_cache.values(), *reversed(self._seeds)]}
        manager.startup_nodes = dict(sorted(known.items(), key=lambda item: item[0] in self._failed))
        manager.initialize()
        self._failed.clear()
        self.stale = False

    @property
    def _failed(self) -> set[str]:
        failed: set[str] = self.__dict__.setdefault("_failed_names", set())
        return failed

    def _execute_command(self, target_node: Any, *args: Any, **options: Any) -> Any:
        options.pop("keys", None)
        node, asking = target_node, False
        for _ in range(self.ValkeyClusterRequestTTL):
            try:
                return self._send(node, args, options, asking=asking)
            except vke.MovedError as error:
                self.stale = True
                node, asking = self._node_at(error), False
            except vke.AskError as error:
                node, asking = self._node_at(error), True
            except vke.TryAgainError:
                left_s = remaining_s()
                if left_s is not None and left_s < _TRY_AGAIN_PAUSE_S:
                    raise
                time.sleep(_TRY_AGAIN_PAUSE_S)
        raise vke.ClusterError(f"redirected {self.ValkeyClusterRequestTTL} times")

    def _send(self, node: Any, args: Sequence[Any], options: Mapping[str, Any], *, asking: bool) -> Any:
        client = self.get_valkey_connection(node)
        try:
            connection = client.connection_pool.get_connection(args[0])
            try:
                with _closed_unless_whole(connection):
                    if asking:
                        connection.send_command("ASKING")
                        connection.read_response()
                    connection.send_command(*args)
                    response = client.parse_response(connection, args[0], **options)
            finally:
                client.connection_pool.release(connection)
        except (vke.ConnectionError, vke.TimeoutError, vke.ClusterDownError):
            self._failed.add(node.name)
            self.stale = True
            raise
        callback = self.cluster_response_callbacks.get(args[0])
        return callback(response, **options) if callback is not None else response

    def _node_at(self, redirect: vke.AskError) -> Any:
        node = self.get_node(host=redirect.host, port=redirect.port)
        return node if node is not None else ClusterNode(redirect.host, redirect.port)


_TRY_AGAIN_PAUSE_S: Final = 0.02


class _Topology:
    """The map of a cluster, drawn at first use and again when it turned out to be wrong."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._cluster: _Cluster | None = None

    def current(self) -> _Cluster:
        left_s = remaining_s()
        if not self._lock.acquire(timeout=-1 if left_s is None else max(left_s, 0)):
            raise vke.TimeoutError("another thread is still asking for the map of the cluster")
        try:
            if self._cluster is None:
                self._cluster = _Cluster(self._plan)
            elif self._cluster.stale:
                self._cluster.refresh()
            return self._cluster
        finally:
            self._lock.release()

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.disconnect_connection_pools()


class ClusterClient(Client):
    """A :class:`Client` for a cluster; made by :func:`connect` from a cluster URL.

    ``mget``, ``mset``, ``delete``, ``unlink``, ``exists`` and ``touch`` take keys of any slots: they go out
    slot by slot, so not atomically. ``scan_iter`` walks all primaries. A transaction needs keys of one slot
    (give them a common hash tag), and WATCH is not available. Commands without a key go to one node, or to
    all primaries, as in valkey-py, and then give a dict by node. Redirects are followed within the deadline.
    """

    def __init__(
        self, *, plan: _Plan, deadline_s: float | None = None, topology: _Topology | None = None
    ) -> None:
        host, port = plan.endpoint.hosts[0]
        super().__init__(connection_pool=_Pool(plan=plan, host=host, port=port), deadline_s=deadline_s)
        self._owns_topology = topology is None
        self._topology = topology or _Topology(plan)

    def close(self) -> None:
        if self._owns_topology:
            self._topology.close()

    def with_deadline(self, deadline_s: float) -> ClusterClient:
        return ClusterClient(plan=self._plan, deadline_s=deadline_s, topology=self._topology)

    def client(self) -> NoReturn:
        raise UsageError("a cluster client has no single connection; connect to one node with valkey://")

    def execute_command(self, *args: Any, **options: Any) -> Any:
        command = _name(args[0])
        with _call(self._plan, command, self.deadline_s):
            try:
                return self._topology.current().execute_command(*args, **options)
            except vke.ConnectionError as error:
                if type(error) is not vke.ConnectionError or hasattr(error, "reply"):
                    raise
                if command not in _READS or not self._plan.retry.reads:
                    raise
                return self._topology.current().execute_command(*args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> ClusterPipeline:
        return ClusterPipeline(self, transaction=transaction)

    def pubsub(self, **kwargs: Any) -> PubSub:
        """Subscriptions through one node: a cluster passes messages on to all of them."""
        with _call(self._plan, "SUBSCRIBE", self.deadline_s):
            node = self._topology.current().get_default_node()
            pool = self._topology.current().get_valkey_connection(node).connection_pool
        return PubSub(pool, deadline_s=self.deadline_s, **kwargs)

    def mget(self, keys: Key | Iterable[Key], *args: Key | float) -> list[bytes | None]:
        names = [*([keys] if isinstance(keys, (bytes, str, memoryview)) else keys), *args]
        values: dict[bytes, bytes | None] = {}
        with deadline(self.deadline_s):
            for group in self._by_slot(names):
                values.update(zip(group, self.execute_command("MGET", *group), strict=True))
        return [values[self._encoded(name)] for name in names]

    def mset(self, mapping: Mapping[Any, Value]) -> bool:
        pairs = {self._encoded(name): value for name, value in mapping.items()}
        with deadline(self.deadline_s):
            for group in self._by_slot(pairs):
                self.execute_command("MSET", *(part for name in group for part in (name, pairs[name])))
        return True

    def delete(self, *names: Key) -> int:
        return self._sum_by_slot("DEL", names)

    def unlink(self, *names: Key) -> int:
        return self._sum_by_slot("UNLINK", names)

    def exists(self, *names: Key) -> int:
        return self._sum_by_slot("EXISTS", names)

    def touch(self, *args: Key) -> int:
        return self._sum_by_slot("TOUCH", args)

    def scan_iter(
        self,
        match: Key | None = None,
        count: int | None = None,
        _type: str | None = None,
        **kwargs: Any,
    ) -> Iterator[bytes]:
        options: list[Any] = []
        for option, value in (("MATCH", match), ("COUNT", count), ("TYPE", _type)):
            options += [] if value is None else [option, value]
        with _call(self._plan, "SCAN", self.deadline_s):
            nodes = self._topology.current().get_primaries()
        for node in nodes:
            cursor = 0
            while True:
                cursors, keys = self.execute_command("SCAN", cursor, *options, target_nodes=node)
                yield from keys
                cursor = cursors[node.name]
                if cursor == 0:
                    break

    def _encoded(self, name: Key | float) -> bytes:
        return bytes(_Encoder("utf-8", "strict", False).encode(name))

    def _by_slot(self, names: Iterable[Key | float]) -> list[list[bytes]]:
        groups: dict[int, list[bytes]] = {}
        for name in dict.fromkeys(map(self._encoded, names)):
            groups.setdefault(key_slot(name), []).append(name)
        return list(groups.values())

    def _sum_by_slot(self, command: str, names: Sequence[Key]) -> int:
        groups: dict[int, list[bytes]] = {}
        for name in map(self._encoded, names):
            groups.setdefault(key_slot(name), []).append(name)
        with deadline(self.deadline_s):
            return sum(self.execute_command(command, *group) for group in groups.values())


class ClusterPipeline(Pipeline):
    """Commands grouped by node and sent group by group; a transaction needs keys of one slot."""

    def __init__(self, client: ClusterClient, *, transaction: bool) -> None:
        self._client = client
        self._atomic = transaction
        super().__init__(client, transaction=transaction)

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = list(self.command_stack)
        what = f"a pipeline of {len(commands)} commands"
        try:
            with _call(self._plan, what, self._deadline_s):
                for script in self.scripts:
                    script.sha = self._client.script_load(script.script)
                run = self._run_transaction if self._atomic or self.explicit_transaction else self._run_groups
                return _each_translated(run(commands, raise_on_error), self._plan, "a command of a pipeline")
        finally:
            self.reset()

    def immediate_execute_command(self, *args: Any, **options: Any) -> NoReturn:
        raise UsageError("WATCH is not available on a cluster; use a script, whose keys share a slot")

    def _run_groups(self, commands: Sequence[Any], raise_on_error: bool) -> list[Any]:
        cluster = self._client._topology.current()
        groups: dict[str, tuple[Any, list[int]]] = {}
        for index, (args, _) in enumerate(commands):
            nodes = cluster._determine_nodes(*args)
            if len(nodes) != 1:
                raise UsageError(
                    f"{_name(args[0])} concerns {len(nodes)} nodes; send it outside of a pipeline"
                )
            groups.setdefault(nodes[0].name, (nodes[0], []))[1].append(index)
        replies: dict[int, Any] = {}
        for node, indices in groups.values():
            group = [commands[index] for index in indices]
            replies.update(zip(indices, self._on(cluster, node, self._execute_pipeline, group), strict=True))
        for index, reply in replies.items():
            if isinstance(reply, (vke.AskError, vke.TryAgainError)):
                # The node that answered this did not carry the command out.
                args, options = commands[index]
                try:
                    replies[index] = cluster.execute_command(*args, **options)
                except vke.ResponseError as error:
                    replies[index] = error
        ordered = [replies[index] for index in range(len(commands))]
        if raise_on_error:
            self.raise_first_error(commands, ordered)
        return ordered

    def _run_transaction(self, commands: Sequence[Any], raise_on_error: bool) -> list[Any]:
        if not commands:
            return []
        cluster = self._client._topology.current()
        slots = {cluster.determine_slot(*args) for args, _ in commands}
        if len(slots) != 1:
            raise UsageError(
                "the keys of a transaction on a cluster must share a slot: give them a common hash tag, "
                "or use pipeline(transaction=False)"
            )
        node = cluster.nodes_manager.get_node_from_slot(slots.pop())
        try:
            return self._on(cluster, node, self._execute_transaction, commands, raise_on_error)
        except vke.MovedError as error:
            # The slot has moved away: the server refused to queue the commands, so none was carried out.
            cluster.stale = True
            return self._on(
                cluster, cluster._node_at(error), self._execute_transaction, commands, raise_on_error
            )

    def _on(
        self, cluster: _Cluster, node: Any, run: Callable[..., Any], commands: Any, raises: bool = False
    ) -> list[Any]:
        pool = cluster.get_valkey_connection(node).connection_pool
        connection = pool.get_connection("PIPELINE")
        self.connection = connection
        try:
            replies: list[Any] = run(connection, commands, raises)
            return replies
        except (vke.ConnectionError, vke.TimeoutError):
            cluster.stale = True
            raise
        finally:
            self.connection = None
            pool.release(connection)


# --- asyncio -----------------------------------------------------------------------------------------------


class _GreetingReader(asyncio.StreamReader):
    """Refuses a peer by its first byte, as the socket of the sync connection does."""

    _greeted = False

    def feed_data(self, data: Any) -> None:
        if not self._greeted and data:
            self._greeted = True
            try:
                _require_resp(bytes(data[:_GREETING_BYTES]))
            except vke.InvalidResponse as error:
                self.set_exception(error)
        super().feed_data(data)


class _AsyncConnection(_BaseAsyncConnection):
    """The asyncio twin of :class:`_Connection`."""

    def __init__(self, *, plan: _Plan, host: str = "", port: int = 0, protocol: int | None = None) -> None:
        self._plan = plan
        self.host = host
        self.port = port
        self.reused = False
        super().__init__(**plan.connection_arguments(), socket_timeout=None, encoder_class=_Encoder)

    def repr_pieces(self) -> list[tuple[str, Any]]:
        return [("endpoint", self._plan.endpoint), ("peer", self._host_error())]

    def set_parser(self, parser_class: Any) -> None:
        super().set_parser(_keeping_reply(parser_class))

    def _host_error(self) -> str:
        path = self._plan.endpoint.path
        return path if path is not None else _host_port(self.host, self.port)

    async def connect(self) -> None:
        if self.is_connected:
            return
        with deadline(self._plan.connect_deadline_s):
            try:
                async with asyncio.timeout(remaining_s()):
                    await super().connect()
            except (AttributeError, TypeError) as error:
                await self.disconnect(nowait=True)
                raise vke.InvalidResponse(f"the answer to the handshake makes no sense: {error}") from error
            except TimeoutError as error:
                await self.disconnect(nowait=True)
                raise vke.TimeoutError(f"connecting to {self._host_error()} took too long") from error
            except BaseException:
                await self.disconnect(nowait=True)
                raise

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        reader = _GreetingReader(limit=1 << 20, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        endpoint = self._plan.endpoint
        transport: asyncio.Transport
        if endpoint.path is not None:
            transport, _ = await loop.create_unix_connection(lambda: protocol, endpoint.path)
        else:
            if endpoint.kind == "sentinel":
                self.host, self.port = await _ask_sentinels_async(self._plan)
            tls = self._plan.tls
            name = (self._plan.tls_server_name or self.host) if tls is not None else None
            transport, _ = await loop.create_connection(
                lambda: protocol, self.host, self.port, ssl=tls, server_hostname=name
            )
            peer = transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._reader = reader
        self._writer = asyncio.StreamWriter(transport, protocol, reader, loop)

    async def on_connect(self) -> None:
        await super().on_connect()
        if self._plan.endpoint.kind == "sentinel":
            await self.send_command("ROLE")
            with suppress(vke.NoPermissionError):
                _require_primary(await self.read_response())

    async def disconnect(self, nowait: bool = False) -> None:
        if nowait and self._writer is not None:
            # Bytes that are still to be sent belong to a call that has been given up.
            self._writer.transport.abort()
        with suppress(vke.TimeoutError):
            await super().disconnect(nowait)

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)
        except vke.ReadOnlyError:
            if self._plan.endpoint.kind == "sentinel":
                await self.disconnect(nowait=True)
            raise
        except AttributeError as error:
            await self.disconnect(nowait=True)
            raise vke.ConnectionError("closed by another task while it was in use") from error
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            await self.disconnect(nowait=True)
            raise vke.InvalidResponse(f"a reply that cannot be read: {error}") from error


async def _ask_sentinels_async(plan: _Plan) -> tuple[str, int]:
    failures: list[str] = []
    sentinels = plan.endpoint.hosts
    for tried, (host, port) in enumerate(sentinels):
        left_s = remaining_s()
        if left_s is not None and left_s <= 0:
            break
        share_s = (plan.connect_deadline_s if left_s is None else left_s) / (len(sentinels) - tried)
        connection = _AsyncConnection(plan=plan.for_sentinel(host, port), host=host, port=port)
        try:
            async with asyncio.timeout(share_s):
                await connection.connect()
                await connection.send_command(*_ASK_PRIMARY, plan.endpoint.service)
                return _primary_address(await connection.read_response(), plan.endpoint.service)
        except (vke.ValkeyError, OSError) as error:
            failures.append(f"{_host_port(host, port)}: {error}")
        finally:
            await connection.disconnect(nowait=True)
    raise _no_primary(plan, failures)


class _AsyncPool(_BaseAsyncPool):
    """The asyncio twin of :class:`_Pool`; the deadline around the call ends the wait for a connection."""

    def __init__(self, *, plan: _Plan, host: str = "", port: int = 0) -> None:
        self.plan = plan
        self._free = asyncio.Semaphore(plan.max_connections)
        super().__init__(
            connection_class=_AsyncConnection,
            max_connections=plan.max_connections,
            plan=plan,
            host=host,
            port=port,
            protocol=plan.protocol,
        )

    async def get_connection(self, command_name: Any, *keys: Any, **options: Any) -> Any:
        began_s = time.monotonic()
        try:
            await self._free.acquire()
        except asyncio.CancelledError:
            # The timeout around the call makes of this the cause of its error.
            raise asyncio.CancelledError(_pool_is_empty(self.plan, time.monotonic() - began_s)) from None
        try:
            connection = self.get_available_connection()
        except BaseException:
            self._free.release()
            raise
        try:
            await self._make_ready(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        if connection in self._in_use_connections:
            await super().release(connection)
            self._free.release()

    async def _make_ready(self, connection: Any) -> None:
        connection.reused = connection.is_connected
        if connection.reused:
            with suppress(vke.ValkeyError, OSError):
                if not (connection._reader.at_eof() or connection._reader._buffer):
                    return
            await connection.disconnect(nowait=True)
            connection.reused = False
        attempt = 1
        while True:
            try:
                await connection.connect()
                return
            except vke.ConnectionError as error:
                pause_s = _pause_before_retry_s(self.plan.retry, attempt, error)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)
            attempt += 1


@asynccontextmanager
async def _call_async(plan: _Plan, what: str, limit_s: float) -> AsyncIterator[None]:
    with _call(plan, what, limit_s):
        async with asyncio.timeout(remaining_s()):
            yield


@asynccontextmanager
async def _closed_unless_whole_async(connection: Any) -> AsyncIterator[None]:
    try:
        yield
    except (vke.ResponseError, vke.WatchError):
        raise
    except BaseException:
        await connection.disconnect(nowait=True)
        raise


class _CleanRepliesAsync:
    """The asyncio twin of :class:`_CleanReplies`; here a cancelled task is the usual reason."""

    async def _send_command_parse_response(
        self, conn: Any, command_name: Any, *args: Any, **options: Any
    ) -> Any:
        async with _closed_unless_whole_async(conn):
            return await super()._send_command_parse_response(  # type: ignore[misc]
                conn, command_name, *args, **options
            )


class AsyncClient(_CleanRepliesAsync, valkey.asyncio.Valkey):  # type: ignore[misc]
    """The asyncio twin of :class:`Client`, made by :func:`connect_async`; for one event loop.

    A call that is cancelled closes its connection. ``monitor()`` is valkey-py's own.
    """

    def __init__(
        self,
        *,
        connection_pool: _AsyncPool,
        deadline_s: float | None = None,
        single_connection_client: bool = False,
        owns_pool: bool = False,
    ) -> None:
        self._plan = connection_pool.plan
        self.deadline_s = self._plan.deadline_s if deadline_s is None else deadline_s
        super().__init__(connection_pool=connection_pool, single_connection_client=single_connection_client)
        self.auto_close_connection_pool = owns_pool

    @property
    def endpoint(self) -> Endpoint:
        return self._plan.endpoint

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._plan.endpoint} deadline_s={self.deadline_s}>"

    def with_deadline(self, deadline_s: float) -> AsyncClient:
        """The same connections with another deadline per call."""
        return AsyncClient(connection_pool=self._async_pool, deadline_s=deadline_s)

    def client(self) -> AsyncClient:
        """A client that keeps one connection for itself until it is closed."""
        return AsyncClient(
            connection_pool=self._async_pool, deadline_s=self.deadline_s, single_connection_client=True
        )

    @property
    def _async_pool(self) -> _AsyncPool:
        pool: Any = self.connection_pool
        assert isinstance(pool, _AsyncPool)
        return pool

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Sends one command and returns its reply, converted as valkey-py does for that command."""
        options.pop("keys", None)
        command = _name(args[0])
        async with _call_async(self._plan, command, self.deadline_s):
            await self.initialize()
            if self.connection is not None:
                async with self._single_conn_lock:
                    return await self._send_command_parse_response(self.connection, args[0], *args, **options)
            connection = await self.connection_pool.get_connection(command)
            try:
                return await self._send_command_parse_response(connection, args[0], *args, **options)
            except vke.ConnectionError as error:
                if not _may_resend(self._plan, connection, command, error):
                    raise
                return await self._send_command_parse_response(connection, args[0], *args, **options)
            finally:
                await self.connection_pool.release(connection)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> AsyncPipeline:
        """Commands sent together; with ``transaction`` between MULTI and EXEC. One deadline for the batch."""
        return AsyncPipeline(self, transaction=transaction)

    async def transaction(self, func: Callable[[AsyncPipeline], Any], *watches: Key, **kwargs: Any) -> Any:
        """Optimistic locking as in valkey-py, but all tries together end within the deadline."""
        with deadline(self.deadline_s):
            return await super().transaction(func, *watches, **kwargs)  # type: ignore[arg-type]

    def pubsub(self, **kwargs: Any) -> AsyncPubSub:
        """Subscriptions. Waiting for a message may take for ever; bound it with :func:`deadline`."""
        return AsyncPubSub(self._async_pool, deadline_s=self.deadline_s, **kwargs)


class AsyncPipeline(_CleanRepliesAsync, _BaseAsyncPipeline):  # type: ignore[misc]
    """The asyncio twin of :class:`Pipeline`."""

    def __init__(self, client: AsyncClient, *, transaction: bool) -> None:
        self._plan = client._plan
        self._deadline_s = client.deadline_s
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Sends what was queued and gives the replies in order, as :meth:`Pipeline.execute` does."""
        commands = f"a pipeline of {len(self.command_stack)} commands"
        async with _call_async(self._plan, commands, self._deadline_s):
            results = await super().execute(raise_on_error)
        return _each_translated(results, self._plan, "a command of a pipeline")

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        async with _call_async(self._plan, _name(args[0]), self._deadline_s):
            return await super().immediate_execute_command(*args, **options)

    async def reset(self) -> None:
        try:
            with deadline(self._deadline_s):
                async with asyncio.timeout(remaining_s()):
                    await super().reset()
        except (vke.ValkeyError, OSError):
            self.watching = False
            if self.connection is not None:
                await self.connection.disconnect(nowait=True)
            await super().reset()

    def annotate_exception(self, exception: Exception, number: int, command: Iterable[object]) -> None:
        _annotate(exception, number, list(command))

    async def _execute_pipeline(self, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        async with _closed_unless_whole_async(connection):
            return await super()._execute_pipeline(connection, commands, raise_on_error)

    async def _execute_transaction(self, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        async with _closed_unless_whole_async(connection):
            return await super()._execute_transaction(connection, commands, raise_on_error)

    async def _disconnect_reset_raise(self, conn: Any, error: Exception) -> NoReturn:
        await self._give_up(conn, error)

    async def _disconnect_raise_reset(self, conn: Any, error: Exception) -> NoReturn:
        await self._give_up(conn, error)

    async def _give_up(self, connection: Any, error: Exception) -> NoReturn:
        await connection.disconnect(nowait=True)
        self.watching = False
        await self.reset()
        raise error


class AsyncPubSub(_BaseAsyncPubSub):
    """The asyncio twin of :class:`PubSub`."""

    def __init__(self, connection_pool: _AsyncPool, *, deadline_s: float, **kwargs: Any) -> None:
        self._plan = connection_pool.plan
        self._deadline_s = deadline_s
        super().__init__(connection_pool, **kwargs)

    async def execute_command(self, *args: Any) -> Any:
        async with _call_async(self._plan, _name(args[0]), self._deadline_s):
            return await super().execute_command(*args)

    async def parse_response(self, block: bool = True, timeout: float = 0) -> Any:
        with _translated(self._plan, "waiting for a message"):
            async with asyncio.timeout(remaining_s()):
                return await super().parse_response(block, timeout)


# --- connecting --------------------------------------------------------------------------------------------


class Options(TypedDict, total=False):
    """What :func:`connect` and :func:`connect_async` take besides the URL, and with the default."""

    deadline_s: float
    """Bound on each call, in seconds, opening a connection included; 5."""
    connect_deadline_s: float
    """Bound on opening a connection: name, TCP, TLS and handshake, in seconds; 2."""
    username: str | None
    password: str | None
    password_file: str | os.PathLike[str] | None
    """A file with the password, read anew for each connection."""
    password_env: str | None
    """The name of an environment variable with the password."""
    sentinel_username: str | None
    sentinel_password: str | None
    """For the sentinels themselves, which are asked without a password otherwise."""
    tls_ca_file: str | os.PathLike[str] | None
    """Certificates of the authorities to trust, PEM; the system's otherwise."""
    tls_cert_file: str | os.PathLike[str] | None
    """This client's certificate, PEM, with its key unless ``tls_key_file`` holds it."""
    tls_key_file: str | os.PathLike[str] | None
    tls_server_name: str | None
    """The name to expect in the server's certificate, when it is not the host of the URL."""
    tls_verify: bool | None
    """False accepts any certificate; True."""
    protocol: Literal[2, 3] | None
    """Version of RESP; 2."""
    max_connections: int
    """Connections at most, per node of a cluster; a call waits for a free one until its deadline; 32."""
    client_name: str | None
    """For CLIENT LIST; printable ASCII without blanks."""
    retry: RetryPolicy


def connect(url: str, **options: Unpack[Options]) -> Client:
    """A client for the cache at ``url`` (see :func:`parse_url`); opens no connection yet.

    Returns a :class:`ClusterClient` for a cluster URL. Raises UsageError for a wrong URL or option, a file
    that cannot be read, a variable that is not set, or a password from two places.
    """
    plan = _make_plan(url, **options)
    if plan.endpoint.kind == "cluster":
        return ClusterClient(plan=plan)
    host, port = plan.endpoint.hosts[0] if plan.endpoint.kind == "tcp" else ("", 0)
    return Client(connection_pool=_Pool(plan=plan, host=host, port=port), owns_pool=True)


def connect_async(url: str, **options: Unpack[Options]) -> AsyncClient:
    """The asyncio twin of :func:`connect`, called without ``await``; not for cluster URLs.

    Close the client with ``aclose()`` or ``async with``, in the loop that used it. Raises UsageError.
    """
    plan = _make_plan(url, **options)
    if plan.endpoint.kind == "cluster":
        raise UsageError(f"there is no asyncio client for a cluster ({plan.endpoint}); use connect()")
    host, port = plan.endpoint.hosts[0] if plan.endpoint.kind == "tcp" else ("", 0)
    return AsyncClient(connection_pool=_AsyncPool(plan=plan, host=host, port=port), owns_pool=True)


def _make_plan(
    url: str,
    *,
    deadline_s: float = 5.0,
    connect_deadline_s: float = 2.0,
    username: str | None = None,
    password: str | None = None,
    password_file: str | os.PathLike[str] | None = None,
    password_env: str | None = None,
    sentinel_username: str | None = None,
    sentinel_password: str | None = None,
    tls_ca_file: str | os.PathLike[str] | None = None,
    tls_cert_file: str | os.PathLike[str] | None = None,
    tls_key_file: str | os.PathLike[str] | None = None,
    tls_server_name: str | None = None,
    tls_verify: bool | None = None,
    protocol: int | None = None,
    max_connections: int = 32,
    client_name: str | None = None,
    retry: RetryPolicy = RetryPolicy(),
) -> _Plan:
    endpoint = parse_url(url)
    given = endpoint.parameters
    for name, seconds in (("deadline_s", deadline_s), ("connect_deadline_s", connect_deadline_s)):
        if not 0 < seconds < float("inf"):
            raise UsageError(f"{name} is a positive number of seconds, not {seconds!r}")
    if max_connections < 1:
        raise UsageError(f"max_connections is at least 1, not {max_connections!r}")
    if protocol not in (None, 2, 3):
        raise UsageError(f"protocol is 2 or 3, not {protocol!r}")
    if client_name is not None and not re.fullmatch(r"[!-~]+", client_name):
        raise UsageError(f"client_name takes printable ASCII without blanks, not {client_name!r}")
    if not endpoint.tls:
        tls_arguments = (tls_ca_file, tls_cert_file, tls_key_file, tls_server_name, tls_verify)
        if any(argument is not None for argument in tls_arguments):
            raise UsageError(f"tls_... arguments need a TLS URL (valkeys://), and this is {endpoint}")
    if sentinel_password is not None and endpoint.kind != "sentinel":
        raise UsageError(f"sentinel_password is for a sentinel URL, and this is {endpoint}")
    verify = _TRUTH[given.get("tls_verify", "yes").lower()] if tls_verify is None else tls_verify
    return _Plan(
        endpoint=endpoint,
        deadline_s=deadline_s,
        connect_deadline_s=connect_deadline_s,
        credentials=_credentials(endpoint, username, password, password_file, password_env),
        sentinel_credentials=(
            None if sentinel_password is None else _Credentials(sentinel_username, sentinel_password, None)
        ),
        tls=(
            _tls_context(
                ca_file=tls_ca_file or given.get("tls_ca_file"),
                cert_file=tls_cert_file or given.get("tls_cert_file"),
                key_file=tls_key_file or given.get("tls_key_file"),
                verify=verify,
            )
            if endpoint.tls
            else None
        ),
        tls_server_name=tls_server_name or given.get("tls_server_name"),
        protocol=protocol or int(given.get("protocol", 2)),
        client_name=client_name or given.get("client_name"),
        max_connections=max_connections,
        retry=retry,
    )


def _credentials(
    endpoint: Endpoint,
    username: str | None,
    password: str | None,
    password_file: str | os.PathLike[str] | None,
    password_env: str | None,
) -> _Credentials | None:
    arguments = {"password": password, "password_file": password_file, "password_env": password_env}
    sources = {
        **{f"{name} in the URL": endpoint.parameters.get(name) for name in ("password_file", "password_env")},
        "the URL": endpoint.password,
        **arguments,
    }
    used = [name for name, value in sources.items() if value is not None]
    if len(used) > 1:
        raise UsageError(f"the password comes from {' and from '.join(used)}; give one of them")
    user = username or endpoint.username
    file = password_file or endpoint.parameters.get("password_file")
    variable = password_env or endpoint.parameters.get("password_env")
    secret = password if password is not None else endpoint.password
    if file is not None:
        try:
            _read_secret(Path(file))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the password file: {error}") from error
        return _Credentials(user, None, Path(file))
    if variable is not None:
        secret = os.environ.get(variable)
        if secret is None:
            raise UsageError(f"the environment variable {variable!r}, meant to hold the password, is not set")
    if user is not None and secret is None:
        raise UsageError(f"user {user!r} has no password; give password, password_file or password_env")
    return _Credentials(user, secret, None) if secret is not None else None


def _tls_context(
    *,
    ca_file: str | os.PathLike[str] | None,
    cert_file: str | os.PathLike[str] | None,
    key_file: str | os.PathLike[str] | None,
    verify: bool,
) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
        elif key_file is not None:
            raise UsageError("tls_key_file needs tls_cert_file, the certificate that it belongs to")
    except OSError as error:
        files = ", ".join(str(file) for file in (ca_file, cert_file, key_file) if file is not None)
        raise UsageError(f"cannot use the TLS files ({files}): {error}") from error
    return context
