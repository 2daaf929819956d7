"""From a URL and options to a client."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import Final, Literal, TypedDict, Unpack

from inference_cache.connection._asyncio import AsyncClient, AsyncPool
from inference_cache.connection._client import Client
from inference_cache.connection._cluster import ClusterClient
from inference_cache.connection._connections import Pool
from inference_cache.connection._plan import Credentials, Plan, RetryPolicy, read_secret
from inference_cache.connection._url import TRUTH, Endpoint, parse_url
from inference_cache.errors import UsageError

_DEFAULT_RETRY: Final = RetryPolicy()


class Options(TypedDict, total=False):
    """What :func:`connect` and :func:`connect_async` take besides the URL, all of it optional.

    Where the URL has a parameter of the same name, the value given here wins.
    """

    deadline_s: float
    """Bound on each call, in seconds, opening a connection included. 5 by default."""
    connect_deadline_s: float
    """Bound on opening a connection: name, TCP, TLS and handshake, in seconds. 2 by default."""
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
    """Whether the certificate and its name are checked. True by default."""
    protocol: Literal[2, 3] | None
    """Version of RESP. 2 by default."""
    max_connections: int
    """Per node of a cluster; a call waits for a free one until its deadline. 32 by default."""
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
    return Client(connection_pool=Pool(plan=plan, host=host, port=port), owns_pool=True)


def connect_async(url: str, **options: Unpack[Options]) -> AsyncClient:
    """The asyncio twin of :func:`connect`, called without ``await``; not for cluster URLs.

    Close the client with ``aclose()`` or ``async with``, in the loop that used it. Raises UsageError.
    """
    plan = _make_plan(url, **options)
    if plan.endpoint.kind == "cluster":
        raise UsageError(f"there is no asyncio client for a cluster ({plan.endpoint}); use connect()")
    host, port = plan.endpoint.hosts[0] if plan.endpoint.kind == "tcp" else ("", 0)
    return AsyncClient(connection_pool=AsyncPool(plan=plan, host=host, port=port), owns_pool=True)


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
    retry: RetryPolicy = _DEFAULT_RETRY,
) -> Plan:
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
    verify = TRUTH[given.get("tls_verify", "yes").lower()] if tls_verify is None else tls_verify
    return Plan(
        endpoint=endpoint,
        deadline_s=deadline_s,
        connect_deadline_s=connect_deadline_s,
        credentials=_credentials(endpoint, username, password, password_file, password_env),
        sentinel_credentials=(
            None if sentinel_password is None else Credentials(sentinel_username, sentinel_password, None)
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
) -> Credentials | None:
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
            read_secret(Path(file))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the password file: {error}") from error
        return Credentials(user, None, Path(file))
    if variable is not None:
        secret = os.environ.get(variable)
        if secret is None:
            raise UsageError(f"the environment variable {variable!r}, meant to hold the password, is not set")
    if user is not None and secret is None:
        raise UsageError(f"user {user!r} has no password; give password, password_file or password_env")
    return Credentials(user, secret, None) if secret is not None else None


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
