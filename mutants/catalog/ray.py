"""Systems that spill Ray's objects wrongly."""

from __future__ import annotations

from mutants.model import GoodSystem, Mutant, Way

__all__ = ["GOOD_SYSTEMS", "MUTANTS"]


def _storage(id: str, title: str, clause: str, attribute: str, incident: str = "") -> Mutant:
    return Mutant(
        id=id,
        title=title,
        way=Way.ADAPTER,
        clause=clause,
        implementation={"ray_spill": f"mutants.ray_spill:{attribute}"},
        incident=incident,
    )


MUTANTS: tuple[Mutant, ...] = (
    _storage("R01", "restore ignores the offset", "RAY-01", "IgnoresTheOffset"),
    _storage(
        "R02",
        "a short or altered value is returned as an object",
        "RAY-06",
        "TrustsWhatItFinds",
        "Ray's own storages compare lengths that the file itself names, and no checksum",
    ),
    _storage(
        "R05",
        "the chunks of a large object stay when it is deleted",
        "RAY-05",
        "ForgetsTheChunks",
        "clients that split large values and delete by the name that they were given",
    ),
    _storage(
        "R13",
        "a node restores only what it has spilled itself",
        "RAY-08",
        "ReadsItsOwnOnly",
        "Ray's own file system storage: with the node its spilled objects are gone",
    ),
    _storage("R03", "the owner's address is zeroed", "RAY-07", "ZeroesTheOwner"),
    _storage(
        "R04",
        "delete does nothing",
        "RAY-02",
        "DeletesNothing",
        "Ray's smart_open storage: delete_spilled_objects is `pass`",
    ),
    _storage(
        "R06",
        "restoring a lost object waits for ever",
        "RAY-03",
        "WaitsForEver",
        "any storage whose restore raises: ray.get never returns",
    ),
    _storage(
        "R07",
        "one object of each batch is acknowledged and not there",
        "RAY-01",
        "AcknowledgesTooMuch",
        "partial writes, as of Ray's UnstableFileStorage, whose failure rate is 1 or 0 by a slip",
    ),
    _storage(
        "R08", "restore answers with an older object of the same length", "RAY-01", "AnswersWithAnOlderObject"
    ),
    _storage(
        "R09",
        "live objects have a TTL",
        "RAY-01",
        "ExpiresLiveObjects",
        "buckets with a lifecycle rule under a Ray that runs for longer",
    ),
    _storage(
        "R10",
        "destroy removes what other nodes spilled",
        "RAY-02",
        "DestroysTheSession",
        "a head that starts builds the storage under a dummy id, and destroys it",
    ),
    _storage(
        "R11",
        "the janitor takes a late lease for a death",
        "RAY-02",
        "TrustsTheLeaseAlone",
        "a paused process comes back and finds its data deleted",
    ),
    _storage(
        "R12",
        "objects that cannot be spilled are sent over and over",
        "RAY-04",
        "SendsOverAndOver",
        "2837 attempts in 75 s at a full server, each with all its bytes",
    ),
    _storage(
        "R14",
        "a spill storage that was refused a read never reads again",
        "AVL-02",
        "GivesUpReading",
        "a password is rotated, the IO workers outlive it, and every restore after that times out",
    ),
)

GOOD_SYSTEMS: tuple[GoodSystem, ...] = ()
