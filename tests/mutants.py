"""Planted defects, one at a time, each of which a test must catch: `python -m tests.mutants`.

Each is put into a copy of the tree, and the tests that are to catch it are run there.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.db*")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    """A defect: in a file under relay/, the one place with the text gets another one.

    Attributes:
        tests: what of the suite is run, as pytest takes it.
    """

    name: str
    file: str
    text: str
    instead: str
    tests: str


MUTANTS = [
    Mutant(
        "a forwarder that hangs is left alone",
        "forwarder/supervisor.py",
        "while silent < most or self._stopping.is_set():",
        "while True:",
        "tests/forwarder/test_supervisor.py -k 'silent or hangs'",
    ),
    Mutant(
        "a forwarder that gets nowhere is left alone",
        "forwarder/runner.py",
        "if forwarders.check_heartbeats() >= STUCK_SECONDS:",
        "if False:",
        "tests/faults/test_hanging.py -k nowhere",
    ),
    Mutant(
        "relay is healthy whatever its commits do",
        "receiver/committer.py",
        "if self._heartbeats.check() >= STUCK_SECONDS:",
        "if False:",
        "tests/faults/test_hanging.py -k never_ends",
    ),
    Mutant(
        "an answer before the commit",
        "receiver/committer.py",
        "        self._arriving.append(pending)",
        "        self._answer(pending, True)\n        self._arriving.append(pending)",
        "tests/receiver/test_committer.py",
    ),
    Mutant(
        "an answer of 200 to what could not be stored",
        "receiver/answers.py",
        "return Answer(503, content,",
        "return Answer(200, content,",
        "tests/receiver/test_endpoint.py -k never_answered_200",
    ),
    Mutant(
        "SQLite does not sync what is added",
        "outbox/sqlite/connection.py",
        'connection.pragma("synchronous", "full")',
        'connection.pragma("synchronous", "normal")',
        "tests/faults/test_power.py tests/outbox/test_sqlite.py -k power",
    ),
    Mutant(
        "PostgreSQL does not flush what is added",
        "outbox/postgres/sessions.py",
        "pg_catalog.replace(pg_catalog.current_setting('synchronous_commit'), 'off', 'on')",
        "'off'",
        "tests/outbox/test_postgres.py -k outlives_a_crash",
    ),
    Mutant(
        "a silent PostgreSQL is waited for",
        "outbox/postgres/sessions.py",
        "return super().wait(gen, interval, self.seconds + _ANSWER_SECONDS)",
        "return super().wait(gen, interval)",
        "tests/outbox/test_postgres_silence.py -k add --timeout 60",
    ),
    Mutant(
        "what no standby has yet is answered as a duplicate",
        "outbox/postgres/statements.py",
        "WHERE current_setting('synchronous_standby_names') <> '' AND",
        "WHERE false AND",
        "tests/outbox/test_postgres_silence.py -k standby",
    ),
    Mutant(
        "functions in any schema run as relay",
        "outbox/postgres/sessions.py",
        "'pg_catalog, pg_temp'",
        "pg_catalog.current_setting('search_path')",
        "tests/outbox/test_postgres_strangers.py -k stranger_makes",
    ),
    Mutant(
        "settled before it is posted",
        "forwarder/delivery.py",
        "        try:\n            self._send(batch)\n",
        "        try:\n            self._claims.ack(batch.entries)\n"
        "            self._send(batch)\n",
        "tests/faults/test_kills.py -k sqlite",
    ),
    Mutant(
        "a random messageId",
        "destinations/message_ids.py",
        "    if dedupe_key is None:",
        "    if True:",
        "tests/destinations/test_segment.py tests/receiver/test_endpoint.py -k 'id or duplicate'",
    ),
    Mutant(
        "the same messageId for two sources",
        "destinations/message_ids.py",
        'sha256(b"relay write key " + credential.encode()).digest()',
        'sha256(b"relay write key ").digest()',
        "tests/destinations/test_segment.py -k id",
    ),
    Mutant(
        "no fence on a claim in SQLite",
        "outbox/sqlite/claims.py",
        "return claim is not None and claim.number == entry.claim",
        "return claim is not None",
        "tests/outbox/test_sqlite.py -k late",
    ),
    Mutant(
        "an entry is claimed for any destination",
        "outbox/sqlite/statements.py",
        "state = 'pending' AND destination = :destination",
        "state = 'pending' AND :destination <> ''",
        "tests/outbox/test_sqlite.py -k destination",
    ),
    Mutant(
        "one destination's question about changes answers the other's",
        "outbox/sqlite/store.py",
        "self._seen_versions[destination] = version",
        "self._seen_versions = dict.fromkeys(('segment', 'vero'), version)",
        "tests/outbox/test_sqlite.py -k learns",
    ),
    Mutant(
        "a migration that a kill can cut short",
        "outbox/sqlite/schema.py",
        "    with connection:\n        version: int",
        "    if connection:\n        version: int",
        "tests/outbox/test_sqlite_migration.py -k kill",
    ),
    Mutant(
        "no fence on a claim in PostgreSQL",
        "outbox/postgres/statements.py",
        "WHERE entry.id = held.id AND entry.claim = held.claim AND entry.state = 'pending'",
        "WHERE entry.id = held.id AND entry.state = 'pending'",
        "tests/outbox/test_postgres.py -k late",
    ),
    Mutant(
        "a file that is deleted is written to",
        "outbox/sqlite/disk.py",
        "            self.failure, self.lost = fault, True\n",
        "            pass\n",
        "tests/outbox/test_sqlite_files.py",
    ),
    Mutant(
        "a file that is deleted in the middle of a commit",
        "outbox/sqlite/disk.py",
        "            raise\n        self._refuse_lost()",
        "            raise",
        "tests/outbox/test_sqlite_files.py",
    ),
    Mutant(
        "a checkpoint waits for readers under the writers' lock",
        "outbox/sqlite/checkpointer.py",
        "        self._connection.set_busy_timeout(0)\n",
        "",
        "tests/faults/test_strangers.py -k long_reader",
    ),
    Mutant(
        "two forwarders on one file",
        "outbox/sqlite/locks.py",
        "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/outbox/test_sqlite.py",
    ),
    Mutant(
        "Retry-After ignored",
        "backoff.py",
        "asked = retry_after.total_seconds() if retry_after else 0",
        "asked = 0",
        "tests/forwarder/test_forwarder.py tests/test_throttle.py",
    ),
    Mutant(
        "a hold taken for a rejection",
        "destinations/segment.py",
        "_REJECTIONS: Final = frozenset({400, 413, 422})",
        "_REJECTIONS: Final = frozenset({400, 401, 403, 404, 413, 422})",
        "tests/forwarder/test_forwarder.py -k hold",
    ),
    Mutant(
        "an outage taken for a rejection",
        "destinations/segment.py",
        "_REJECTIONS: Final = frozenset({400, 413, 422})",
        "_REJECTIONS: Final = frozenset({400, 413, 422, 503})",
        "tests/forwarder/test_forwarder.py -k down",
    ),
    Mutant(
        "a rejected batch dies whole",
        "forwarder/delivery.py",
        "        if len(batch.entries) > 1:\n            claim.batches.extendleft",
        "        if len(batch.entries) > 1:\n            for entry in batch.entries:\n"
        '                self._claims.dead_letter(entry, Unusable(DeadReason.REJECTED, ""))\n'
        "            return\n            claim.batches.extendleft",
        "tests/forwarder/test_forwarder.py -k guilty",
    ),
    Mutant(
        "a redirect is followed",
        "destinations/http/client.py",
        "redirect=False",
        "redirect=True",
        "tests/destinations/test_segment.py",
    ),
    Mutant(
        "an answer has for ever to end",
        "destinations/http/deadline.py",
        "self._changed.wait(self._deadlines[0].left())",
        "self._changed.wait()",
        "tests/destinations/test_http.py --timeout 30 -k trailer",
    ),
    Mutant(
        "the time of receipt in place of the event's",
        "sources/vero.py",
        "occurred_at=plausible_time(reported_at, received_at)",
        "occurred_at=received_at",
        "tests/sources/test_vero.py",
    ),
    Mutant(
        "a time that cannot be read tells no events apart",
        "sources/vero.py",
        "    return unread and _UNREAD + unread",
        "    return None",
        "tests/sources/test_vero.py -k different_unreadable",
    ),
    Mutant(
        "opens without a time are taken for copies",
        "sources/vero.py",
        "if time is None and _COLLECTIONS[kind] in REPEATABLE:",
        "if False:",
        "tests/sources/test_vero.py -k without_a_time",
    ),
    Mutant(
        "any secret will do",
        "auth.py",
        "return any(matches)",
        "return bool(candidate) or any(matches)",
        "tests/receiver/test_endpoint.py -k secret",
    ),
    Mutant(
        "addresses in the log",
        "logs/configuration.py",
        "return mask_line(text)",
        "return text",
        "tests/logs/test_configuration.py",
    ),
    Mutant(
        "retention forgets what is still pending",
        "outbox/sqlite/statements.py",
        "SELECT id FROM entries WHERE state = 'delivered' AND delivered_at < ?",
        "SELECT id FROM entries WHERE coalesce(delivered_at, 0) < ?",
        "tests/outbox/test_sqlite.py -k purged",
    ),
    Mutant(
        "a message that kills is tried for ever",
        "forwarder/claims.py",
        "if entry.crashes >= CRASHES_BEFORE_ISOLATION + CRASHES_IN_ISOLATION:",
        "if False:",
        "tests/forwarder/test_forwarder.py tests/faults/test_poison.py",
    ),
    Mutant(
        "a message is guilty of whatever ends relay while it is posted",
        "forwarder/claims.py",
        "suspect = self._outbox.begin_post(suspect, self._lineage)",
        "pass",
        "tests/forwarder/test_forwarder.py -k silent",
    ),
    Mutant(
        "a full disk is not minded",
        "receiver/backpressure.py",
        "if free is not None and free < self._min_free_disk * _MEBIBYTE:",
        "if False:",
        "tests/receiver/test_backpressure.py",
    ),
    Mutant(
        "an interrupted replay begins anew",
        "operations/replay.py",
        "return max(settled) >= began_at",
        "return not settled and max(settled) >= began_at",
        "tests/cli/test_replay.py",
    ),
    Mutant(
        "a page of HTML taken for Segment's answer",
        "destinations/segment.py",
        "if is_page(response, text):",
        "if False:",
        "tests/destinations/test_segment.py",
    ),
    Mutant(
        "replays are not tallied",
        "outbox/sqlite/migrations.py",
        '        {_count("new", "requeued")}\n',
        "",
        "tests/outbox/test_sqlite.py -k counters_agree",
    ),
    Mutant(
        "an action for a page of any other origin",
        "console/access.py",
        'return site == "same-origin"',
        "return True",
        "tests/console/test_access.py",
    ),
    Mutant(
        "the console is open to whatever names this machine",
        "console/access.py",
        "        refusal = await self._authenticator.refusal(headers)",
        '        is_local = headers.get("host", "").startswith(("localhost", "127."))\n'
        "        refusal = None if is_local else await self._authenticator.refusal(headers)",
        "tests/console/test_access.py -k without_credentials",
    ),
    Mutant(
        "a link to the console works for ever",
        "console/sessions.py",
        "        self._link = None\n        self._end_old()",
        "        self._end_old()",
        "tests/console/test_sign_in.py",
    ),
    Mutant(
        "the console shows addresses unasked",
        "console/pages.py",
        "return text if reveal else mask(text)",
        "return text",
        "tests/console/test_pages.py",
    ),
    Mutant(
        "a signature over the time alone",
        "sources/customerio.py",
        "            mac.update(piece)",
        "            pass",
        "tests/sources/test_customerio.py",
    ),
    Mutant(
        "a SQLite file that was overwritten by a shorter one is not noticed",
        "outbox/sqlite/files.py",
        "not self._is_shortened(file, before)",
        "False",
        "tests/outbox/test_sqlite_files.py -k overwritten",
    ),
    Mutant(
        "an outbox that is away at the start is tried once",
        "outbox/opening.py",
        "            if time.monotonic() > give_up_at:",
        "            if time.monotonic() > 0:",
        "tests/faults/test_away_at_start.py -k tried_with_growing",
    ),
    Mutant(
        "an oversized body is stored without its signature",
        "receiver/endpoint.py",
        "            if fault := verifier.fault():",
        "            if (fault := verifier.fault()) and not body.is_truncated:",
        "tests/receiver/test_large_bodies.py",
    ),
    Mutant(
        "a browser's write key may do all",
        "routes.py",
        "if sender is Sender.RESTRICTED:",
        "if False:",
        "tests/receiver/test_browsers.py -k privilege",
    ),
    Mutant(
        "a visitor can take the message id of a server's call",
        "routes.py",
        "if dedupe_key and sender is not Sender.TRUSTED:",
        "if False:",
        "tests/receiver/test_browsers.py -k message_id",
    ),
    Mutant(
        "pages of any origin may call",
        "receiver/cors.py",
        "return not origin or origin in self._origins",
        "return True",
        "tests/receiver/test_browsers.py -k no_other_page",
    ),
    Mutant(
        "a bad call refuses its batch",
        "receiver/tracking_api.py",
        "if is_batch or each[0].status",
        "if each[0].status",
        "tests/receiver/test_tracking_api.py -k bad_calls",
    ),
    Mutant(
        "open connections are closed when the end begins",
        "receiver/connections.py",
        "connection.close_after_answer()",
        "connection.evict()",
        "tests/faults/test_leaving.py -k 'begins or moment'",
    ),
    Mutant(
        "an opt-out by a part of an event's name",
        "destinations/vero/mapping.py",
        'return _SEPARATORS.sub("", event).lower() in _OPT_OUTS',
        'return "unsubscribe" in event.lower()',
        "tests/destinations/test_vero_calls.py -k unsubscribe",
    ),
    Mutant(
        "an alias holds the lane of the old id only",
        "destinations/vero/requests.py",
        'ids = (who.get("id") or who["email"], self.body.get("new_id"))',
        'ids = (who.get("id") or who["email"], None)',
        "tests/destinations/test_vero_calls.py -k lanes",
    ),
    Mutant(
        "a browser writes to other people",
        "destinations/vero/privileges.py",
        'return None if request.people == own_ids else "another_id"',
        "return None",
        "tests/destinations/test_vero_calls.py -k privilege",
    ),
    Mutant(
        "a dead letter with Vero's token",
        "destinations/vero/destination.py",
        'text = text.replace(secret, "***")',
        "pass",
        "tests/destinations/test_vero.py -k 'secret or token'",
    ),
    Mutant(
        "one call that fails pauses everything to Vero",
        "destinations/vero/answers.py",
        "affects_all=too_many",
        "affects_all=True",
        "tests/destinations/test_vero.py -k due_to_one_call",
    ),
    Mutant(
        "a crash between a call and its tags repeats the call",
        "forwarder/delivery.py",
        "self._claims.advance(entry, following.sent)",
        "None",
        "tests/forwarder/test_ordered.py -k crash",
    ),
    Mutant(
        "one person whose calls fail holds all others",
        "forwarder/failures.py",
        "if error.affects_all or not self._destination.ordered:",
        "if True:",
        "tests/forwarder/test_ordered.py -k holds_only",
    ),
    Mutant(
        "a call that fails for ever is kept for ever",
        "forwarder/failures.py",
        "if now - since >= PATIENCE:",
        "if False:",
        "tests/forwarder/test_ordered.py -k four_hours",
    ),
    Mutant(
        "what nobody can have done is taken for done",
        "forwarder/delivery.py",
        "if error.done_if_repeated and may_have_arrived_at(self._outbox.entries, entry):",
        "if error.done_if_repeated:",
        "tests/forwarder/test_ordered.py -k no_earlier_attempt",
    ),
    Mutant(
        "a wrong URL taken for calls that Vero refuses",
        "destinations/vero/answers.py",
        "return _document(text) is not None",
        "return True",
        "tests/destinations/test_vero.py -k 'status or html'",
    ),
    Mutant(
        "a signature vouches for the whole array",
        "sources/segment/signatures.py",
        "return Coverage.FIRST if others else Coverage.ALL",
        "return Coverage.ALL",
        "tests/sources/test_segment.py -k signature",
    ),
    Mutant(
        "an audience of Engage is excluded",
        "sources/segment/bodies.py",
        'named.get("vero", b"null") == b"null"',
        "False",
        "tests/sources/test_segment.py -k excluded",
    ),
    Mutant(
        "a loop through Segment",
        "sources/segment/calls.py",
        "    if _was_relayed(document, context):",
        "    if False:",
        "tests/sources/test_segment.py -k ignored",
    ),
    Mutant(
        "write keys are stored",
        "sources/segment/bodies.py",
        'if name != "writeKey"}',
        "if True}",
        "tests/sources/test_segment.py -k write_key",
    ),
    Mutant(
        "one call that is nested too deeply spoils its batch",
        "sources/segment/nesting.py",
        "except NestingError:",
        "except ZeroDivisionError:",
        "tests/sources/test_segment.py -k depths",
    ),
    Mutant(
        "an event that is sent again late counts once",
        "destinations/vero/destination.py",
        "request.path != EVENTS_TRACK",
        "True",
        "tests/operations/test_replay.py -k window",
    ),
    Mutant(
        "what waits for a destination without its credential is not named",
        "service.py",
        "stranded(self._outbox.counts(), self._routes)",
        "[]",
        "tests/receiver/test_endpoint.py -k readiness_names",
    ),
]


def caught_by(mutant: Mutant, tree: Path) -> str | None:
    """The first test that fails with the mutant in the tree; None if none does."""
    path = tree / "relay" / mutant.file
    sound = path.read_text()
    assert sound.count(mutant.text) == 1, f"{mutant.name}: not one such place in {mutant.file}"
    path.write_text(sound.replace(mutant.text, mutant.instead))
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {mutant.tests}"
    try:
        done = subprocess.run(  # noqa: S602 (its own commands)
            command, cwd=tree, shell=True, capture_output=True, text=True, check=False
        )
    finally:
        path.write_text(sound)
    failed = _FAILED.search(done.stdout)
    assert failed or done.returncode == 0, f"{mutant.name}: no test ran:\n{done.stdout[-2000:]}"
    return failed[1] if failed else None


def main() -> int:
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="relay-mutants-") as directory:
        tree = Path(directory) / "relay"
        shutil.copytree(_ROOT, tree, ignore=_LEFT_OUT)
        for number, mutant in enumerate(MUTANTS, 1):
            test = caught_by(mutant, tree)
            survivors += test is None
            fate = f"caught by {test}" if test else "SURVIVED"
            print(f"{number:2} {mutant.name}: {fate}", flush=True)
    print(f"{len(MUTANTS) - survivors} of {len(MUTANTS)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
