"""Do the sessions of the role have settings that replication can live with?"""

from __future__ import annotations

from collections.abc import Iterator

from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.units import size_text

_SHORT_SENDER_MS = 30_000
_MUCH_MEMORY_KB = 1 << 20
_LONG_SILENCE_S = 300
_TIMEOUTS = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
)
_CANCELS = {
    "statement_timeout": "cancels the copy of a large table",
    "lock_timeout": "cancels the making of a slot that waits for a transaction",
    "idle_in_transaction_session_timeout": "ends the session that holds the snapshot",
    "transaction_timeout": "ends the copy of a large table",
}


def only_the_role(context: Context, setting: str) -> str:
    """Say that nobody but the role itself can tell."""
    return f"{setting} comes from a setting of {context.server.user}'s: connect as {context.role_name} to see its own"


class SenderTimeout(Check):
    """wal_sender_timeout is neither off nor too short.

    The server hangs up on a reader that has not answered for so long. A reader answers at once when it is asked, also
    when it waits for its own output; one that works on a long transaction and does not is cut off.

    Risk: with 0 a reader that has died without a word holds its slot until TCP gives up, for hours perhaps. With less
    than 30 s slow readers are cut off again and again, and start over.

    Fix: 60 s, the default, for the role.

    See: https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-WAL-SENDER-TIMEOUT
    """

    id = "cfg.sender_timeout"
    title = "wal_sender_timeout leaves time, and has an end"

    def run(self, context: Context) -> Iterator[Finding]:
        found = context.amount_for_role("wal_sender_timeout")
        if found is None:
            yield self.finding(Status.UNKNOWN, only_the_role(context, "wal_sender_timeout"))
            return
        milliseconds = found[0]
        # What the walsender itself says counts more.
        if context.role_is_connected and context.walsender_timeout is not None:
            milliseconds = context.walsender_timeout * 1000
        evidence = {"wal_sender_timeout_ms": milliseconds}
        if milliseconds >= _SHORT_SENDER_MS:
            yield self.finding(Status.PASS, f"{milliseconds / 1000:g} s", evidence)
            return
        yield self.finding(
            Status.WARN,
            "wal_sender_timeout is 0: a reader that died holds its slot until TCP notices"
            if milliseconds == 0
            else f"wal_sender_timeout is {milliseconds / 1000:g} s: a reader that is busy for so long is cut off",
            evidence,
            fix=context.change_for_role("wal_sender_timeout", "'60s'"),
        )


class DecodingMemory(Check):
    """The memory for decoding fits the number of slots.

    Each walsender that decodes may use logical_decoding_work_mem. A transaction beyond it is written to disk, or
    streamed before its end with protocol version 2 and newer.

    Risk: too much of it, times the slots in use, takes the server's memory; too little makes large transactions slow.

    Fix: set it for the role. Memory cannot be seen through SQL: what the machine has is for you to know.

    See: https://www.postgresql.org/docs/current/runtime-config-resource.html#GUC-LOGICAL-DECODING-WORK-MEM
    """

    id = "cfg.decoding_mem"
    title = "the memory for decoding is moderate"

    def run(self, context: Context) -> Iterator[Finding]:
        found = context.amount_for_role("logical_decoding_work_mem")
        if found is None:
            yield self.finding(Status.UNKNOWN, only_the_role(context, "logical_decoding_work_mem"))
            return
        kilobytes = int(found[0])
        active = max(sum(slot.active and not slot.physical for slot in context.slots), 1)
        evidence = {"logical_decoding_work_mem_kb": kilobytes, "active_logical_slots": active}
        summary = f"{size_text(kilobytes * 1024)} for each of {active} slot{'s'[: active != 1]} in use"
        if kilobytes * active > _MUCH_MEMORY_KB:
            yield self.finding(
                Status.INFO,
                f"{summary}: up to {size_text(kilobytes * 1024 * active)}",
                evidence,
                fix=context.change_for_role("logical_decoding_work_mem", f"'{_MUCH_MEMORY_KB // 4 // active}kB'"),
            )
        else:
            yield self.finding(Status.PASS, summary, evidence)


class Timeouts(Check):
    """No time limit ends a snapshot of the role.

    statement_timeout, lock_timeout, idle_in_transaction_session_timeout and (from 17 on) transaction_timeout may be
    set for the role, the database or the server. pgrepl turns them off in its own sessions; other readers may not.
    lock_timeout cancels CREATE_REPLICATION_SLOT, too, while it waits for the transactions that run.

    Risk: the copy of a large table is cancelled again and again, and starts over.

    Fix: set them to 0 for the role.

    See: https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-STATEMENT-TIMEOUT
    """

    id = "cfg.timeouts"
    title = "no time limit ends a snapshot"

    def run(self, context: Context) -> Iterator[Finding]:
        seen, unseen = {}, []
        for name in _TIMEOUTS:
            if name not in context.session_settings:
                continue
            found = context.amount_for_role(name)
            if found is None:
                unseen.append(name)
            else:
                seen[name] = int(found[0])
        limits = {name: milliseconds for name, milliseconds in seen.items() if milliseconds}
        for name, milliseconds in limits.items():
            yield self.finding(
                Status.WARN,
                f"{name} is {milliseconds / 1000:g} s and {_CANCELS[name]}",
                {f"{name}_ms": milliseconds},
                object=name,
                fix=context.change_for_role(name, "0"),
            )
        if unseen:
            yield self.finding(Status.UNKNOWN, only_the_role(context, ", ".join(unseen)))
        elif not limits:
            yield self.finding(Status.PASS, "there is none", {f"{name}_ms": 0 for name in seen})


class TcpKeepalive(Check):
    """A dead connection is noticed, and a quiet one kept open, by TCP keepalives.

    The system's default is to probe a silent connection after two hours. Firewalls and NAT gateways forget a silent
    connection after minutes.

    Risk: a stream of a quiet publication is cut by something in between, and neither end knows.

    Fix: ``keepalives_idle=30`` in the connection string, or tcp_keepalives_idle for the role.

    See: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-KEEPALIVES-IDLE
    """

    id = "cfg.tcp_keepalive"
    title = "TCP keepalives come before firewalls forget"

    def run(self, context: Context) -> Iterator[Finding]:
        if context.conn.info.host.startswith(("/", "@")):
            yield self.finding(Status.SKIP, "a socket has no keepalives")
            return
        client = context.conn.info.get_parameters().get("keepalives_idle", "0")
        found = context.amount_for_role("tcp_keepalives_idle")
        if found is None:
            yield self.finding(Status.UNKNOWN, only_the_role(context, "tcp_keepalives_idle"))
            return
        evidence = {"tcp_keepalives_idle_s": int(found[0]), "client_keepalives_idle_s": int(client)}
        times = [seconds for seconds in evidence.values() if seconds > 0]
        if times and min(times) <= _LONG_SILENCE_S:
            yield self.finding(Status.PASS, f"after {min(times)} s of silence", evidence)
            return
        yield self.finding(
            Status.INFO,
            f"a silent connection is probed after {min(times)} s" if times else "the system decides, usually 2 hours",
            evidence,
            fix=[
                Fix("action", "connect with keepalives_idle=30"),
                *context.change_for_role("tcp_keepalives_idle", "60"),
            ],
        )
