"""The memory limit of a live server's pod, from a fake Kubernetes API: one answer, over real HTTPS."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from fixtures.targets.kubernetes import pod_limit
from inference_cache.connection import parse_url

ENDPOINT = parse_url("valkey://valkey.ai-ml.svc.cluster.local:6379")
TOKEN = "account-token"


def pod(limit: str | None = "2Gi") -> dict[str, Any]:
    resources = {} if limit is None else {"limits": {"memory": limit}}
    return {
        "kind": "Pod",
        "metadata": {"name": "valkey-0"},
        "spec": {
            "containers": [
                {
                    "name": "exporter",
                    "image": "oliver006/redis_exporter",
                    "resources": {"limits": {"memory": "64Mi"}},
                },
                {"name": "valkey", "image": "valkey/valkey:8", "resources": resources},
            ]
        },
    }


@contextmanager
def fake_api(
    folder: Path, answer: Any, status: int = 200
) -> Iterator[tuple[dict[str, str], Path, list[str]]]:
    """Environment and account folder of a pod whose API gives this one answer, and the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            self.send_response(status if authorized else 401)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing on the terminal."""

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    account = folder / "account"
    account.mkdir()
    (account / "token").write_text(TOKEN + "\n", "utf-8")
    authority.cert_pem.write_to_path(str(account / "ca.crt"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            port = str(server.server_address[1])
            environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port, "PATH": ""}
            yield environ, account, asked
        finally:
            server.shutdown()
            thread.join(10)


def test_limit_of_the_servers_container_is_taken(tmp_path: Path) -> None:
    """Not that of the exporter beside it; one pod is asked for, by name."""
    with fake_api(tmp_path, pod()) as (environ, account, asked):
        found = pod_limit(ENDPOINT, environ=environ, account=account)
    assert found is not None
    assert found.limit_bytes == 2 * 1024**3
    assert "valkey-0" in found.source
    assert asked == ["/api/v1/namespaces/ai-ml/pods/valkey-0"]


@pytest.mark.parametrize(
    ("answer", "status", "told"),
    [
        (pod(None), 200, "has no memory limit"),
        ({"kind": "Status"}, 403, "403"),
        (
            {"kind": "Pod", "spec": {"containers": [{"image": "nginx"}]}},
            200,
            "no workload with a valkey-server",
        ),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, answer: Any, status: int, told: str) -> None:
    """The contract's limit is used then, and the report says why."""
    with fake_api(tmp_path, answer, status) as (environ, account, _):
        found = pod_limit(ENDPOINT, environ=environ, account=account)
    assert found is not None
    assert found.limit_bytes is None
    assert told in found.source


def test_kubectl_is_asked_outside_of_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake kubectl that answers as the real one does, and one that is not logged in."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f"#!/bin/sh\ncat <<'E'\n{json.dumps(pod('8Gi'))}\nE\n", "utf-8")
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = pod_limit(ENDPOINT, environ={"PATH": str(tmp_path)}, account=tmp_path)
    assert found is not None
    assert found.limit_bytes == 8 * 1024**3
    kubectl.write_text("#!/bin/sh\necho 'error: You must be logged in' >&2\nexit 1\n", "utf-8")
    found = pod_limit(ENDPOINT, environ={"PATH": str(tmp_path)}, account=tmp_path)
    assert found is not None
    assert found.limit_bytes is None
    assert "logged in" in found.source


def test_address_that_is_no_service_is_not_asked_about(tmp_path: Path) -> None:
    for url in ("valkey://127.0.0.1:6379", "valkey://cache.example:6379", "unix:///run/valkey.sock"):
        assert pod_limit(parse_url(url), environ={"PATH": ""}, account=tmp_path) is None
    assert pod_limit(ENDPOINT, environ={"PATH": ""}, account=tmp_path) is None
