"""The exporter as a whole: a watcher, a collector, and the port that Prometheus scrapes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from inference_cache.contract import Contract
from inference_cache.errors import MissingExtra, UsageError
from inference_cache.exporter._settings import Settings
from inference_cache.exporter._watcher import Watcher

try:
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder
except ImportError as error:
    raise MissingExtra(module="prometheus_client", extra="observability") from error

from inference_cache.exporter._collector import CacheCollector

__all__ = ["Exporter"]


class Exporter:
    """Serves metrics of one server while it is open::

        with Exporter(url, contract=load(), listen=("127.0.0.1", 9122)) as exporter:
            print(f"http://{exporter.address}/metrics")

    ``/metrics`` answers also while the server is gone, with ``inference_cache_up`` at 0. ``/healthz`` says
    whether the exporter itself works. ``/readyz`` says whether the server was asked once, whatever came of
    it: an exporter that became unready with its server would drop out of the scrape just when it is needed.

    Raises:
        UsageError: a URL or setting that is wrong, or a port that cannot be listened on.
    """

    _watcher_type = Watcher

    def __init__(
        self,
        url: str,
        *,
        contract: Contract,
        settings: Settings | None = None,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        gate_metrics: Path | None = None,
    ) -> None:
        """Port 0 takes a free one; ``gate_metrics`` is the ``metrics.prom`` of the gate."""
        settings = settings or Settings()
        self.registry = CollectorRegistry()
        """May be given more collectors, such as one of adapters in this process."""
        self._watcher = self._watcher_type(url, contract=contract, settings=settings)
        self.registry.register(
            CacheCollector(self._watcher, contract=contract, settings=settings, gate_metrics=gate_metrics)
        )
        ProcessCollector(registry=self.registry)
        try:
            self._http = _Server(listen, _Handler)
        except OSError as error:
            self._watcher.close()
            raise UsageError(f"cannot listen on {listen[0]}:{listen[1]}: {error}") from error
        self._http.pages = {"/metrics": self._metrics, "/healthz": self._health, "/readyz": self._ready}
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.1,), name="exporter-http", daemon=True
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """``host:port`` to scrape."""
        host, port = self._http.server_address[:2]
        return f"{host!s}:{port}"

    def start(self) -> None:
        self._watcher.start()
        self._thread.start()

    def close(self) -> None:
        """Stop serving and asking. Safe to call twice."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()
        self._watcher.close()

    def _metrics(self, accept: str) -> tuple[int, str, bytes]:
        encode, content_type = choose_encoder(accept)
        return 200, content_type, encode(self.registry)

    def _health(self, _: str) -> tuple[int, str, bytes]:
        return _plain(self._watcher.alive, "the watching thread has ended")

    def _ready(self, _: str) -> tuple[int, str, bytes]:
        return _plain(self._watcher.snapshot().tried, "the server has not been asked yet")


def _plain(good: bool, otherwise: str) -> tuple[int, str, bytes]:
    return (200, "text/plain", b"ok\n") if good else (503, "text/plain", f"{otherwise}\n".encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    pages: Mapping[str, Callable[[str], tuple[int, str, bytes]]]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10  # a client that connects and says nothing must not hold a thread for ever

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            known = ", ".join(self.server.pages)
            status, content_type, body = 404, "text/plain", f"nothing here; there is {known}\n".encode()
        else:
            status, content_type, body = page(self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line each."""
