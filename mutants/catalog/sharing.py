"""Systems on which four workloads do not go well together."""

from __future__ import annotations

from mutants.model import GoodSystem, Mutant, Way

__all__ = ["GOOD_SYSTEMS", "MUTANTS"]

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        id="I04",
        title="KEYS in the hot path",
        way=Way.ADAPTER,
        clause="SHR-02",
        implementation={"sessions": "mutants.sharing:KeysInTheHotPath"},
        incident="checkpointers that find a thread with KEYS: fine with a hundred, an outage with a million",
    ),
    Mutant(
        id="I06",
        title="values of 32 MiB on many connections, unpaced",
        way=Way.ADAPTER,
        clause="SHR-02",
        settings={"io-threads": "1"},
        implementation={"blobs": "mutants.sharing:UnpacedBigValues"},
        incident="an offloading engine that writes its whole batch at once, and every session waits",
    ),
    Mutant(
        id="H01",
        title="a script looks at every key before each read",
        way=Way.ADAPTER,
        clause="SHR-02",
        implementation={"sessions": "mutants.sharing:LooksByReading"},
        incident="clean-up in a Lua script: one client's housekeeping is everybody's pause",
    ),
    Mutant(
        id="H02",
        title="everything stands still for 1 s after every fifth write",
        way=Way.PROXY,
        clause="SHR-02",
        faults=({"fault": "StallWhenEvicting", "every": 5, "seconds": 1.0},),
        incident="transparent huge pages: the first write to each page after a fork copies 2 MiB",
    ),
    Mutant(
        id="H03",
        title="evicted_keys stands still",
        way=Way.PROXY,
        clause="SHR-01",
        faults=({"fault": "InfoRewrite", "info": {"evicted_keys": "0"}},),
        incident="a proxy that answers INFO by itself: data goes, and every dashboard stays green",
    ),
    Mutant(
        id="H04",
        title="keys vanish without being counted",
        way=Way.PROXY,
        clause="SHR-01",
        faults=({"fault": "WrongKeyEvict", "every": 40},),
        incident="a tidy-up job that deletes by age next to the server's own eviction",
    ),
    Mutant(
        id="H05",
        title="keys are attributed by their first word",
        way=Way.ADAPTER,
        clause="SHR-01",
        implementation={"sample": "mutants.sharing:attributes_to_first_word"},
        incident="exporters that split at the first colon: vllm:kv: is nobody's, and the flood has no name",
    ),
    Mutant(
        id="H06",
        title="maxmemory is a third of what was asked for",
        way=Way.CONFIGURATION,
        clause="SHR-03",
        settings={"maxmemory": "16mb"},
        incident="a chart's default that wins over the value meant for this release",
    ),
    Mutant(
        id="H07",
        title="hits are lost although everything fits",
        way=Way.PROXY,
        clause="SHR-03",
        faults=({"fault": "WrongKeyEvict", "every": 2},),
        incident="a second release of the service deletes what it does not know",
    ),
)

GOOD_SYSTEMS: tuple[GoodSystem, ...] = ()
