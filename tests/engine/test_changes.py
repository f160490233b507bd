"""Messages to events, by hand: numbering, versions of tables, what an update left out, and bad orders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgrepl import events
from pgrepl.engine.changes import Changes
from pgrepl.engine.core import Core, Phase, TableState
from pgrepl.engine.linespool import LineSpool
from pgrepl.engine.routing import Router
from pgrepl.engine.versions import Versions
from pgrepl.errors import ProtocolError
from pgrepl.events import Event, Table
from pgrepl.lsn import Lsn
from pgrepl.pgoutput import messages
from pgrepl.pgoutput.messages import UNCHANGED
from tests.engine.tables import as_table, begin, column, commit, relation, table

T1, T2 = relation(1, "id", "a"), relation(2, "id")


def follow(changes: Changes, *sequence: messages.AnyMessage) -> list[Event]:
    return [event for number, message in enumerate(sequence) for event in changes.apply(Lsn(number + 1000), message)]


def changes(*, without: Iterable[int] = (), known: dict[int, Table] | None = None) -> Changes:
    hidden = set(without)
    return Changes(as_table, printed=lambda table: table.oid not in hidden, known=known or {})


class _Collected:
    """An output that keeps the events themselves."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.emit = self.add = self.events.append

    @staticmethod
    def format(event: Event) -> Event:
        return event


def framed(changes: Changes, *sequence: messages.AnyMessage) -> list[Event]:
    """Give what is printed with frames when every table is ready."""
    core = Core({oid: TableState(Phase.READY) for oid in range(10)}, Lsn(0))
    output: Any = _Collected()
    router = Router(core, output, LineSpool(), Versions(), frames=True, printed=lambda: None)
    for number, message in enumerate(sequence):
        found = changes.apply(Lsn(number + 1000), message)
        if isinstance(message, messages.Begin):
            core.begin(message.final_lsn)
            assert changes.transaction is not None
            router.begin(changes.transaction)
        for event in found:
            router.route(event)
        if isinstance(message, messages.Commit):
            router.commit(message.end_lsn)
            core.commit(message.end_lsn)
    return list(output.events)


def insert(oid: int, *values: bytes | None) -> messages.Insert:
    return messages.Insert(oid, values)


def test_numbering() -> None:
    """From 0 in each transaction; TRUNCATE counts once, relations, types, origins and messages not at all."""
    found = follow(
        changes(),
        begin(100),
        messages.Origin(Lsn(7), "elsewhere"),
        messages.Type(99, "s", "mood"),
        T1,
        insert(1, b"1", None),
        messages.Message(True, Lsn(50), "p", b"x"),
        T2,
        messages.Truncate((1, 2), False, True),
        messages.Delete(1, "key", (b"1", None)),
        commit(100),
        begin(200),
        insert(2, b"2"),
        commit(200),
    )
    places = [(type(event).__name__, event.transaction.commit_lsn, event.seq) for event in found]  # type: ignore[union-attr]
    assert places == [
        ("Insert", 100, 0),
        ("Message", 100, 1),
        ("Truncate", 100, 1),
        ("Delete", 100, 2),
        ("Insert", 200, 0),
    ]
    assert found[0].transaction.origin == "elsewhere"  # type: ignore[union-attr]
    assert found[-1].transaction.origin is None  # type: ignore[union-attr]
    assert found[0].start_lsn == 1004  # type: ignore[union-attr]
    truncate = found[2]
    assert isinstance(truncate, events.Truncate)
    assert [one.name for one in truncate.tables] == ["t1", "t2"]


def test_tables_that_are_not_wanted_count() -> None:
    sequence = (
        begin(100),
        T1,
        T2,
        insert(2, b"x"),
        insert(1, b"1", b"a"),
        messages.Truncate((1, 2), False, False),
        messages.Truncate((2,), False, False),
        messages.Update(2, None, None, (b"y",)),
        messages.Delete(2, "key", (b"y",)),
        insert(1, b"2", b"b"),
        commit(100),
    )
    found = follow(changes(without=[2]), *sequence)
    assert [(type(event), event.seq) for event in found] == [  # type: ignore[union-attr]
        (events.Insert, 1),
        (events.Truncate, 2),
        (events.Insert, 6),
    ]
    assert [len(event.tables) for event in found if isinstance(event, events.Truncate)] == [1]


def test_frames_surround_what_is_printed() -> None:
    message = messages.Message(True, Lsn(50), "p", b"x")
    aside = messages.Message(False, Lsn(60), "p", b"x")
    own = messages.Message(True, Lsn(50), "pgrepl", b"x")
    found = framed(
        changes(without=[2]),
        *(begin(100), T1, insert(1, b"1", b"a"), T2, insert(2, b"1"), message, commit(100)),
        *(begin(200), insert(2, b"1"), own, commit(200)),
        *(begin(300), message, commit(300)),
        aside,
        *(begin(400), aside, commit(400)),
        *(begin(500), relation(1, "id"), insert(1, b"1"), commit(500)),
    )
    assert [type(event).__name__ for event in found] == [
        *("Begin", "Insert", "Message", "Commit"),
        *("Begin", "Message", "Commit"),
        "Message",
        "Message",
        *("Begin", "SchemaChange", "Insert", "Commit"),
    ]
    assert [(event.rows, event.end_lsn) for event in found if isinstance(event, events.Commit)] == [
        (1, 108),
        (0, 308),
        (1, 508),
    ]


def test_transactionality_of_messages() -> None:
    inside, outside, aside = follow(
        changes(),
        begin(100),
        messages.Message(True, Lsn(50), "p", b"x"),
        messages.Message(False, Lsn(60), "p", b"y"),
        commit(100),
        messages.Message(False, Lsn(70), "q", b"z"),
    )
    assert isinstance(inside, events.Message)
    assert inside.transaction is not None
    assert (inside.start_lsn, inside.seq) == (50, 0)
    assert outside == events.Message("p", b"y", None, Lsn(60), None)
    assert aside == events.Message("q", b"z", None, Lsn(70), None)


@pytest.mark.parametrize(
    ("old_kind", "old", "new", "filled"),
    [
        (None, None, (b"1", UNCHANGED), (b"1", UNCHANGED)),
        ("key", (b"0", None), (b"1", UNCHANGED), (b"1", UNCHANGED)),
        ("key", (b"0", None), (UNCHANGED, UNCHANGED), (b"0", UNCHANGED)),
        ("full", (b"0", b"a"), (b"1", UNCHANGED), (b"1", b"a")),
        ("full", (b"0", None), (b"1", UNCHANGED), (b"1", None)),
        ("full", (b"0", b"a"), (UNCHANGED, b"b"), (b"0", b"b")),
    ],
)
def test_what_an_update_left_out(
    old_kind: messages.OldKind | None,
    old: messages.TupleData | None,
    new: messages.TupleData,
    filled: messages.TupleData,
) -> None:
    """An old row fills what it holds; of one that holds the key alone the rest is unknown, though it reads as NULL."""
    (event,) = follow(changes(), begin(100), T1, messages.Update(1, old_kind, old, new), commit(100))
    assert isinstance(event, events.Update)
    assert (event.new, event.old, event.old_kind) == (filled, old, old_kind)


def test_versions_of_a_table() -> None:
    known = {1: table("t1", column("id", attnum=1), column("a", attnum=2))}
    same = relation(1, "id", "a")
    wider = relation(1, "id", "a", "b")
    found = follow(
        changes(known=known),
        *(begin(100), same, insert(1, b"1", b"a"), commit(100)),
        *(begin(200), wider, insert(1, b"1", b"a", b"b"), wider, insert(1, b"1", b"a", b"b"), commit(200)),
        *(begin(300), relation(1, "id", "a", "b", name="renamed"), messages.Truncate((1,), False, False), commit(300)),
    )
    first, second, third, truncated = found
    assert isinstance(first, events.Insert)
    assert first.table is known[1]
    assert isinstance(second, events.Insert)
    assert [column.name for column in second.table.columns] == ["id", "a", "b"]
    assert isinstance(third, events.Insert)
    assert third.table is second.table
    assert isinstance(truncated, events.Truncate)
    assert truncated.tables[0].name == "renamed"


def test_tables_are_named_whenever_the_server_tells_of_them() -> None:
    """A table may have left the publication and come back meanwhile, as it was."""
    told: list[str] = []
    follower = Changes(
        as_table,
        printed=lambda one: one.oid != 2,
        known={3: table("t3", column("id", attnum=1), oid=3)},
        appeared=lambda one: told.append(one.name),
    )
    found = follow(
        follower,
        *(begin(100), T1, T2, relation(3, "id"), insert(1, b"1", b"a"), T1, commit(100)),
        *(begin(200), relation(1, "id", "a", "b"), commit(200)),
    )
    assert told == ["t1", "t3", "t1", "t1"]
    assert [type(event).__name__ for event in found] == ["Insert"]


def test_a_relation_that_was_resolved_is_not_resolved_again() -> None:
    """Asking the catalog costs a round trip, and its answer may be of a later version."""
    asked: list[int] = []

    def resolve(message: messages.Relation, transaction: events.Transaction) -> Table:
        asked.append(transaction.xid)
        return as_table(message, transaction)

    follower = Changes(resolve, printed=lambda _: True, known={})
    follow(follower, *(begin(100), T1, T1, commit(100)), *(begin(200), T1, commit(200)))
    assert asked == [100]


@pytest.mark.parametrize(
    "sequence",
    [
        [insert(1, b"1", b"a")],
        [T1],
        [commit(100)],
        [messages.Origin(Lsn(1), "x")],
        [messages.Truncate((1,), False, False)],
        [messages.Message(True, Lsn(1), "p", b"")],
        [begin(100), begin(200)],
        [begin(100), commit(200)],
        [begin(100), commit(100), commit(100)],
        [begin(100), insert(1, b"1", b"a")],
        [begin(100), messages.Update(1, None, None, (b"1",))],
        [begin(100), messages.Delete(1, "key", (b"1",))],
        [begin(100), T1, messages.Truncate((1, 2), False, False)],
        [begin(100), T1, insert(1, b"1")],
        [begin(100), T1, insert(1, b"1", b"a", b"b")],
        [begin(100), T1, messages.Update(1, "key", (b"1",), (b"1", b"a"))],
        [begin(100), T1, messages.Delete(1, "full", (b"1", b"a", b"b"))],
    ],
)
def test_what_cannot_stand_there(sequence: list[messages.AnyMessage]) -> None:
    with pytest.raises(ProtocolError):
        follow(changes(), *sequence)


_oids = st.integers(1, 3)
_values = st.none() | st.sampled_from([b"", b"x"])
_new = st.lists(_values | st.just(UNCHANGED), max_size=3).map(tuple)
_old = st.none() | st.lists(_values, max_size=3).map(tuple)
_kinds = st.sampled_from(["key", "full"])
_relations = st.builds(
    lambda oid, width, identity: relation(oid, *"abc"[:width], identity=identity),
    _oids,
    st.integers(0, 3),
    st.sampled_from("dnfi"),
)
_data = st.one_of(
    st.builds(messages.Insert, _oids, _new),
    st.builds(
        lambda oid, kind, old, new: messages.Update(oid, kind if old else None, old, new), _oids, _kinds, _old, _new
    ),
    st.builds(messages.Delete, _oids, _kinds, st.lists(_values, max_size=3).map(tuple)),
    st.builds(messages.Truncate, st.lists(_oids, min_size=1, unique=True).map(tuple), st.booleans(), st.booleans()),
)
_others = st.one_of(
    _relations,
    st.builds(messages.Message, st.booleans(), st.just(Lsn(5)), st.sampled_from(["p", "pgrepl"]), st.just(b"")),
    st.builds(messages.Origin, st.just(Lsn(5)), st.just("o")),
    st.builds(messages.Type, st.just(9), st.just("s"), st.just("n")),
)
_anything = st.lists(_data | _others | st.sampled_from([begin(100), commit(100), begin(200), commit(200)]))


@given(_anything)
@settings(max_examples=500)
def test_any_sequence_gives_events_or_a_protocol_error(sequence: list[messages.AnyMessage]) -> None:
    follower = changes(without=[3])
    for number, message in enumerate(sequence):
        try:
            follower.apply(Lsn(number), message)
        except ProtocolError:
            break


def _fits(message: messages.AnyMessage, widths: dict[int, int]) -> bool:
    """Whether the server could have sent this after relations of these widths."""
    match message:
        case messages.Insert(oid, row) | messages.Delete(oid, _, row):
            return widths.get(oid) == len(row)
        case messages.Update(oid, _, old, new):
            return widths.get(oid) == len(new) and (old is None or len(old) == len(new))
        case messages.Truncate(oids):
            return set(oids) <= set(widths)
        case _:
            return True


@given(st.lists(st.lists(_data | _others)), st.sets(_oids))
@settings(max_examples=300)
def test_the_numbering_does_not_depend_on_what_is_printed(
    transactions: list[list[messages.AnyMessage]], hidden: set[int]
) -> None:
    """Every data event has the number of the data messages before it, whatever is hidden; frames change nothing."""
    widths: dict[int, int] = {}
    sequence: list[messages.AnyMessage] = []
    expected: dict[tuple[int, int], type] = {}
    kinds = {
        messages.Insert: events.Insert,
        messages.Update: events.Update,
        messages.Delete: events.Delete,
        messages.Truncate: events.Truncate,
    }
    for number, transaction in enumerate(transactions, 1):
        count = 0
        sequence.append(begin(number * 100))
        for message in transaction:
            if isinstance(message, messages.Relation):
                widths[message.oid] = len(message.columns)
            if _fits(message, widths):
                sequence.append(message)
                if type(message) in kinds:
                    expected[(number * 100, count)] = kinds[type(message)]
                    count += 1
        sequence.append(commit(number * 100))
    data = (events.Insert, events.Update, events.Delete, events.Truncate)
    whole = {_place(event): event for event in follow(changes(), *sequence) if isinstance(event, data)}
    assert {place: type(event) for place, event in whole.items()} == expected
    printed = framed(changes(without=hidden), *sequence)
    for event in printed:
        if isinstance(event, data):
            assert type(event) is expected[_place(event)]
    depth = 0
    for event in printed:
        depth += isinstance(event, events.Begin) - isinstance(event, events.Commit)
        assert depth in (0, 1)
        assert depth == 1 or isinstance(event, events.Commit | events.Message)
    assert depth == 0


def _place(event: Event) -> tuple[int, int]:
    assert isinstance(event, events.Insert | events.Update | events.Delete | events.Truncate)
    return event.transaction.commit_lsn, event.seq
