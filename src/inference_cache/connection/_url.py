"""Where a cache is: the URL, read into an :class:`Endpoint`, and shown without its secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NoReturn
from urllib.parse import parse_qsl, unquote

from inference_cache.errors import UsageError

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
TRUTH: Final[Mapping[str, bool]] = {"yes": True, "true": True, "no": False, "false": False}


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
        hosts = ",".join(host_port(host, port) for host, port in self.hosts)
        service = f"/{self.service}" if self.service else ""
        return f"{scheme}://{hosts}{service}" + (f"/{self.db}" if self.db else "")


def host_port(host: str, port: int) -> str:
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
        if name == "tls_verify" and value.lower() not in TRUTH:
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
