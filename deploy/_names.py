"""What things are called, from the contract's address: ``NAME.NAMESPACE.svc.cluster.local:PORT``."""

from __future__ import annotations

from dataclasses import dataclass

from inference_cache.contract import Contract
from inference_cache.errors import UsageError

__all__ = ["CONTRACT_FILE", "CONTRACT_FOLDER", "GATE_IMAGE", "PASSWORDS", "PASSWORD_FOLDER", "Names"]

GATE_IMAGE = "inference-cache"
"""Name of the image that gate and exporter run; ``images:`` in an overlay says where it really is."""
PASSWORDS = "valkey-passwords"
"""The Secret with a key for each user of the instance. It is never rendered."""
PASSWORD_FOLDER = "/var/run/secrets/valkey"
CONTRACT_FOLDER = "/etc/inference-cache"
CONTRACT_FILE = f"{CONTRACT_FOLDER}/contract.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names that several manifests share."""

    server: str
    namespace: str
    domain: str
    """What follows the namespace: ``svc.cluster.local``."""
    port: int

    @classmethod
    def of(cls, contract: Contract) -> Names:
        """The names that the contract's address implies.

        Raises:
            UsageError: the address is not one of a Service.
        """
        host, _, port = contract.instance.address.rpartition(":")
        parts = host.split(".")
        if len(parts) < 3 or parts[2] != "svc":
            raise UsageError(
                f"instance.address {contract.instance.address!r} of contract {contract.name} names no "
                "Service: write NAME.NAMESPACE.svc.cluster.local:PORT to have manifests for it"
            )
        return cls(server=parts[0], namespace=parts[1], domain=".".join(parts[2:]), port=int(port))

    @property
    def headless(self) -> str:
        """The Service that finds the server while it is not ready, too."""
        return f"{self.server}-headless"

    @property
    def contract(self) -> str:
        """The ConfigMap with the contract that gate and exporter hold the server against."""
        return f"{self.server}-contract"

    def host(self, service: str) -> str:
        return f"{service}.{self.namespace}.{self.domain}"

    def url(self, service: str, *, user: str = "") -> str:
        """The server's address; the password of ``user`` is read from its file."""
        if not user:
            return f"valkey://{self.host(service)}:{self.port}"
        return f"valkey://{user}@{self.host(service)}:{self.port}?password_file={PASSWORD_FOLDER}/{user}"

    def labels(self, name: str, component: str) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": name,
            "app.kubernetes.io/component": component,
            "app.kubernetes.io/part-of": "inference-cache",
        }

    def selector(self, name: str) -> dict[str, str]:
        return {"app.kubernetes.io/name": name}

    def metadata(self, name: str, component: str, *, of: str = "") -> dict[str, object]:
        """Metadata of an object called ``name`` that belongs to the workload ``of`` (itself without)."""
        return {"name": name, "namespace": self.namespace, "labels": self.labels(of or name, component)}
