"""From valkey-py's errors and the server's words to the errors of :mod:`inference_cache.errors`."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import valkey.exceptions as vke

from inference_cache.connection._deadlines import deadline
from inference_cache.connection._plan import Plan
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


class HandshakeTimeout(TimeoutError):
    """The peer took the connection and never answered the first word of TLS."""


class _NoScript(CommandRejected, vke.NoScriptError):
    """NOSCRIPT stays valkey-py's own error as well: ``register_script`` catches it to load the script."""


def from_reply(error: Exception, *, where: str, what: str) -> CacheError:
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


def os_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind one of valkey-py's, which it replaces by a text."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


_CERTIFICATE_EXPIRED: Final = 10
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED."""


def _hint(error: BaseException, cause: OSError | None, *, scheme: str) -> str:
    plain_text, over_tls = scheme == "valkey", scheme.startswith("valkeys")
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code == _CERTIFICATE_EXPIRED:
            return "renew the server's certificate, or set this machine's clock"
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
        if plain_text:
            return f"{hint}; if it expects TLS write valkeys://"
        if over_tls:
            return f"{hint}; if it asks for a client's certificate give tls_cert_file and tls_key_file"
        return hint
    return "is the server running, and may this host connect to it?"


def _from_failure(error: BaseException, *, where: str, what: str, took_s: float) -> Exception | None:
    """The error to raise instead, or None for one that is not about talking to the cache."""
    if isinstance(error, vke.InvalidResponse):
        hint = "is this the port of another service?"
        if "b'\\x15\\x03" in str(error):
            hint = "it answers with TLS: write valkeys://"
        elif any(beginning in str(error) for beginning in ("b'HTTP/", "b'<!", "b'<html")):
            hint = "it is a web server"
        return NotValkey(f"{where} does not speak the protocol of Valkey: {error}; {hint}")
    if hasattr(error, "reply") and isinstance(error, Exception):
        return from_reply(error, where=where, what=what)
    if isinstance(error, vke.AuthenticationError):
        return AccessDenied(f"{where} could not be asked ({what}): {error}")
    if isinstance(error, (vke.TimeoutError, TimeoutError)):
        cause = os_error(error)
        detail = str(error) or str(error.__cause__ or "") or "it was under way"
        if isinstance(cause, HandshakeTimeout):
            detail = "it took the connection and did not begin TLS; if it speaks plain text write valkey://"
        return DeadlineExceeded(f"{where} did not answer {what} within {took_s:.3g} s: {detail}")
    if isinstance(error, vke.ValkeyClusterException) and error.__cause__ is not None:
        inner = error.__cause__
        if isinstance(inner, vke.ValkeyClusterException):
            return ClusterUnavailable(f"{where}: {inner}")
        return _from_failure(inner, where=where, what=what, took_s=took_s)
    if isinstance(error, (vke.ClusterError, vke.ValkeyClusterException)):
        return ClusterUnavailable(f"{where} could not serve {what}: {error}")
    if isinstance(error, (vke.ConnectionError, OSError)):
        cause = os_error(error)
        detail = (cause.strerror or str(cause)) if cause is not None else str(error)
        hint = _hint(error, cause, scheme=where.partition(":")[0])
        return Unreachable(f"cannot reach {where} for {what} (tried for {took_s:.3g} s): {detail}; {hint}")
    if isinstance(error, vke.DataError):
        return UsageError(f"{what}: {error}")
    if isinstance(error, vke.ResponseError) and not isinstance(error, vke.LockError):
        return from_reply(error, where=where, what=what)
    return None


@contextmanager
def translated(plan: Plan, what: str) -> Iterator[None]:
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
def call(plan: Plan, what: str, limit_s: float) -> Iterator[None]:
    with translated(plan, what), deadline(limit_s):
        yield


def each_translated(results: Sequence[Any], plan: Plan, what: str) -> list[Any]:
    return [
        (_from_failure(result, where=str(plan.endpoint), what=what, took_s=0) or result)
        if isinstance(result, Exception)
        else result
        for result in results
    ]


def name_of(command: object) -> str:
    text = command.decode("utf-8", "replace") if isinstance(command, bytes) else str(command)
    return text.upper()


def annotate(exception: Exception, number: int, command: Sequence[Any]) -> None:
    """Says which command of a pipeline failed. Its arguments stay out: they are the users' data."""
    where = f"command {number} of the pipeline ({name_of(command[0])})"
    reply = getattr(exception, "reply", None) or str(exception)
    exception.reply = f"{reply} [{where}]"  # type: ignore[attr-defined]
