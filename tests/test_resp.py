"""The RESP codec cuts any stream into the same frames, wherever the network cuts it."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.faults import resp
from fixtures.faults.resp import Command, Decoder, Frame, ProtocolError

LINES = st.binary(max_size=20).map(lambda text: text.replace(b"\r", b"").replace(b"\n", b""))
LEAVES = st.one_of(
    LINES.map(resp.simple),
    LINES.map(resp.error),
    st.integers().map(resp.integer),
    st.binary(max_size=300).map(resp.bulk),
    st.binary(max_size=30).map(resp.verbatim),
    st.binary(max_size=30).map(lambda text: b"!%d\r\n%b\r\n" % (len(text), text)),
    st.sampled_from([resp.null(2), resp.null(3), resp.null_array(2), b"#t\r\n", b",-inf\r\n", b"(9\r\n"]),
)
ATTRIBUTE = b"|1\r\n+ttl\r\n:3600\r\n"


def aggregates(items: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    lists = st.lists(items, max_size=4)
    return st.one_of(
        st.builds(resp.aggregate, st.sampled_from([b"*", b"~", b">"]), lists),
        lists.map(lambda pairs: resp.aggregate(b"%", pairs + pairs)),
        items.map(lambda item: ATTRIBUTE + item),
    )


FRAMES = st.lists(st.recursive(LEAVES, aggregates, max_leaves=12), max_size=6)
ARGVS = st.lists(st.binary(max_size=60), min_size=1, max_size=6).map(tuple)


def fed_in_pieces(decoder: Decoder, stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    frames = []
    for start, stop in itertools.pairwise(edges):
        frames += [bytes(frame) for frame in decoder.feed(stream[start:stop])]
    return frames


@given(frames=FRAMES, cuts=st.lists(st.integers(min_value=0), max_size=8))
def test_replies_are_cut_the_same_wherever_the_stream_is_split(frames: list[bytes], cuts: list[int]) -> None:
    assert fed_in_pieces(Decoder(), b"".join(frames), cuts) == frames


@given(argvs=st.lists(ARGVS, max_size=5), cuts=st.lists(st.integers(min_value=0), max_size=8))
def test_commands_come_back_with_their_arguments_and_raw_bytes(
    argvs: list[tuple[bytes, ...]], cuts: list[int]
) -> None:
    stream = b"".join(resp.encode_command(argv) for argv in argvs)
    frames = fed_in_pieces(Decoder(commands=True), stream, cuts)
    assert [Command(frame).argv for frame in frames] == argvs
    assert [Command(frame).name for frame in frames] == [argv[0].upper() for argv in argvs]
    assert b"".join(frames) == stream


def test_every_single_split_point_gives_the_same_frames() -> None:
    nested = b"%1\r\n+a\r\n*2\r\n$3\r\nx\r\n\r\n_\r\n"
    frames = [nested, b"$-1\r\n", ATTRIBUTE + b":7\r\n", b">1\r\n$0\r\n\r\n"]
    stream = b"".join(frames)
    for cut in range(len(stream) + 1):
        assert fed_in_pieces(Decoder(), stream, [cut]) == frames
    assert fed_in_pieces(Decoder(), stream, list(range(len(stream)))) == frames


@given(frames=FRAMES)
def test_the_items_of_an_aggregate_are_its_bytes(frames: list[bytes]) -> None:
    frame = Frame(resp.array(frames))
    assert [bytes(item.raw) for item in frame.items] == frames


@pytest.mark.parametrize(
    ("raw", "kind", "value"),
    [
        (b"+OK\r\n", b"+", b"OK"),
        (b"-ERR no\r\n", b"-", b"ERR no"),
        (b":-12\r\n", b":", -12),
        (b"$3\r\na\r\n\r\n", b"$", b"a\r\n"),
        (b"$0\r\n\r\n", b"$", b""),
        (b"$-1\r\n", b"$", None),
        (b"*-1\r\n", b"*", None),
        (b"_\r\n", b"_", None),
        (b"#t\r\n", b"#", True),
        (b",1.5\r\n", b",", 1.5),
        (b"(34928903284092385093248509\r\n", b"(", 34928903284092385093248509),
        (b"=8\r\ntxt:some\r\n", b"=", b"some"),
        (b"!5\r\nERR x\r\n", b"!", b"ERR x"),
        (ATTRIBUTE + b":7\r\n", b":", 7),
    ],
)
def test_a_frame_tells_its_kind_and_value(raw: bytes, kind: bytes, value: object) -> None:
    frame = Frame(raw)
    assert (frame.kind, frame.value) == (kind, value)
    assert frame.is_null == (value is None)
    assert frame.is_error == (kind in (b"-", b"!"))


def test_attributes_stand_beside_the_reply_that_they_describe() -> None:
    name, value = Frame(ATTRIBUTE + b":7\r\n").attributes
    assert (name.value, value.value) == (b"ttl", 3600)


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        (b"PING\r\n", (b"PING",)),
        (b"  SET a\t'b c' \n", (b"SET", b"a", b"b c")),
        (rb'SET a "\x00\n\"q\""' + b"\r\n", (b"SET", b"a", b'\x00\n"q"')),
        (b"SET a ''\r\n", (b"SET", b"a", b"")),
        (b"\r\n", ()),
        (b'SET a "b\r\n', (b"SET", b"a", b'"b')),
    ],
)
def test_inline_commands_are_split_by_the_servers_quoting(line: bytes, argv: tuple[bytes, ...]) -> None:
    [frame] = Decoder(commands=True).feed(line)
    assert Command(frame).argv == argv
    assert bytes(frame) == line


def test_empty_commands_are_frames_without_a_name() -> None:
    frames = Decoder(commands=True).feed(b"*0\r\n*-1\r\nPING\r\n")
    assert [Command(frame).name for frame in frames] == [b"", b"", b"PING"]


@pytest.mark.parametrize(
    ("commands", "stream"),
    [(True, b"*1\r\n:1\r\n"), (False, b"hello\r\n"), (False, b"$x\r\n"), (False, b"\x001\r\n")],
)
def test_what_is_not_resp_is_refused_and_handed_back(commands: bool, stream: bytes) -> None:
    decoder = Decoder(commands=commands)
    with pytest.raises(ProtocolError):
        decoder.feed(stream)
    assert bytes(decoder.rest()) == stream


@pytest.mark.parametrize("size_mib", [1, 64, 150])
def test_big_values_cost_time_in_proportion_to_their_size(size_mib: int) -> None:
    value = bytes(size_mib << 20)
    stream = resp.encode_command((b"SET", b"k", value)) + b"PING\r\n"
    decoder = Decoder(commands=True)
    started = time.perf_counter()
    frames: list[memoryview] = []
    for at in range(0, len(stream), 128 << 10):
        frames += decoder.feed(memoryview(stream)[at : at + (128 << 10)])
    elapsed_s = time.perf_counter() - started
    assert [Command(frame).name for frame in frames] == [b"SET", b"PING"]
    assert frames[0] == stream[:-6]
    assert elapsed_s < 1 + size_mib / 25
