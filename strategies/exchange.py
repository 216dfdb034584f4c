"""Messages to the roster and their answers, one at a time and in the roster's order.

Only the next site's reply is fetched; the others wait at the SuperLink or in Flower's simulation, and the local engine has not computed
them yet. Memory therefore does not grow with the number of sites, and sums are added in the same order on every engine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedml.contract.witness import Witness, read_witness
from fedml.errors import Reason, RunError, SiteError
from fedml.flower.grid import NOT_THERE, pull_by, wants_packing
from fedml.study.study import Study
from fedml.wire.packing import bundle, unbundle
from fedml.wire.records import CONFIG, JOURNAL, Phase, config_record, holds, size_bytes

_FIRST_WAIT, _LONGEST_WAIT = 0.001, 0.1  # seconds between two polls for a reply


@dataclass(frozen=True)
class Answer:
    """One site's reply, or the reason for its absence. ``message`` has content only if ``reason`` is None; ``journal``: (head, entries).
    ``witness``: the site's signature on it, not checked. ``message_id``: of the request."""

    site: str
    message: Message
    reason: str | None = None
    bytes_out: int = 0
    bytes_in: int = 0
    seconds: float = 0.0
    journal: tuple[str, int] | None = None
    witness: Witness | None = None
    message_id: str = ""


@dataclass(frozen=True)
class Patience:
    """``seconds``: site -> for how long it is waited for, if the others are ``enough``; a site that is not in it has the whole timeout."""

    seconds: Mapping[str, float]
    enough: Callable[[Collection[str]], bool]


@dataclass
class Participation:
    """Who took part in one exchange: filled while its answers are read."""

    answered: dict[str, Answer] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def add(self, answer: Answer) -> None:
        if answer.reason is None:
            self.answered[answer.site] = answer
        else:
            self.refused[answer.site] = answer.reason

    def check_persons(self, study: Study, doing: str, persons: Mapping[str, int]) -> None:
        """Raises ``RunError`` if the sites that answered have fewer training persons than the study's quorum. ``persons``: by site."""
        found = sum(persons.get(site, 0) for site in self.answered)
        if found < study.federation.quorum_persons:
            why = ", ".join(f"{site} ({reason})" for site, reason in self.refused.items()) or "the roster has no other site"
            raise RunError(
                f"{doing}: the sites that answered have {found} training persons, quorum_persons is {study.federation.quorum_persons}; "
                f"missing: {why}. The log of the site explains the reason code."
            )

    def check_quorum(self, study: Study, doing: str, names: Mapping[str, str] | None = None) -> None:
        """Raises ``RunError`` naming each missing or refusing site, if fewer than the quorum answered, of the sites that train.

        Args:
            names: names of the sites in ``answered``, where they are identified in another way.
        """
        known = names or {}
        answered = [site for site in self.answered if known.get(site, site) not in study.federation.evaluate_only]
        if len(answered) < study.federation.needed:
            why = ", ".join(f"{site} ({reason})" for site, reason in self.refused.items()) or "the roster has no other site"
            raise RunError(
                f"{doing}: {len(answered)} of {len(study.federation.training)} sites answered, the quorum is "
                f"{study.federation.needed}; missing: {why}. The log of the site explains the reason code."
            )


def wait_for_nodes(grid: Grid, study: Study) -> dict[int, str]:
    """Node id -> site, once all nodes of the roster are connected or the timeout has passed.

    The name is the one under which the coordinator registered the node's key, and only nodes of the roster are kept. Nodes without a
    registered name (in this process, in Flower's simulation) have an empty name and are kept in any order.
    """
    roster = study.federation.sites
    deadline, wait = time.monotonic() + study.federation.timeout, _FIRST_WAIT
    while True:
        known = set(grid.get_node_ids())
        names = {node.node_id: node.name for node in grid.get_nodes() if node.node_id in known}
        if any(names.values()):
            names = {node: name for node, name in names.items() if name in roster}
        if len(names) >= len(roster) or time.monotonic() >= deadline:
            return names
        time.sleep(wait)
        wait = min(2 * wait, 1.0)


def request(study: Study, phase: Phase, round_number: int) -> ConfigRecord:
    """The configuration of every message: the complete study, which a site compares with its approvals, the phase and the round."""
    return ConfigRecord({"study": study.canonical, "phase": str(phase), "round": round_number})


def ask(node: int, content: RecordDict, kind: str, timeout: int) -> Message:
    """A message to ``node``. Its TTL exceeds the round timeout, because waiting for an earlier site may use up the whole timeout first."""
    return Message(content, node, kind, ttl=2.0 * timeout + 60)


def answers(
    grid: Grid, messages: Iterable[Message], names: Mapping[int, str], timeout: float, check: Callable[[str, RecordDict], None],
    patience: Patience | None = None,
) -> Iterator[Answer]:  # fmt: skip
    """Sends ``messages``, then yields one ``Answer`` for each, in their order; after ``timeout`` seconds the rest are ``no-answer``.

    Args:
        check: takes site and content, raises ``SiteError`` for an invalid reply; its reason becomes that of the answer.
        patience: a site that is not there in its time comes after the others: its answer if they are not enough, else ``late``.
    """
    start = time.monotonic()
    outgoing = list(messages)
    del messages  # their content is not needed after they are sent
    packing = wants_packing(grid)
    known = dict[int, int]()  # messages may share their content
    for message in outgoing:
        known.setdefault(id(message.content), size_bytes(message.content))
    sizes = [known[id(message.content)] for message in outgoing]
    shared: dict[int, ArrayRecord] = {}
    for message in outgoing if packing else ():
        message.content = bundle(message.content, shared)
    accepted = set(grid.push_messages(outgoing))  # in one call, so that shared records are sent once
    sent = [(m.metadata.dst_node_id, size, m.metadata.message_id) for m, size in zip(outgoing, sizes, strict=True)]
    del outgoing, shared
    slow, there = list[tuple[int, int, str]](), list[str]()

    def answered(site: str, node: int, size: int, message_id: str, reply: Message | None, why: Reason | None = None) -> Answer:
        seconds = time.monotonic() - start
        if reply is None:
            none = Message(RecordDict(), node, "train")
            return Answer(site, none, why or Reason.NO_ANSWER, size, 0, seconds, message_id=message_id)
        if reply.has_error():
            return Answer(site, reply, known_reason(reply.error), size, 0, seconds)
        problem, came = _problem(check, site, reply, packed=packing)
        return Answer(site, reply, problem, size, came, seconds, _journal(reply.content), _witness(reply.content))

    for node, size, message_id in sent:
        site = names.get(node, str(node))
        until = timeout if patience is None else min(timeout, patience.seconds.get(site, timeout))
        reply = _pull(grid, message_id, start + until, start + timeout) if message_id in accepted else None
        if reply is None and until < timeout and message_id in accepted:
            slow.append((node, size, message_id))
            continue
        answer = answered(site, node, size, message_id, reply)
        if answer.reason is None:
            there.append(site)
        yield answer
    while slow:
        assert patience is not None  # noqa: S101 - else nobody is slow
        over, enough = time.monotonic() - start >= timeout, patience.enough(there)
        reason = Reason.LATE if enough else Reason.NO_ANSWER if over else None
        still = []
        for node, size, message_id in slow:
            site = names.get(node, str(node))
            reply = _pull(grid, message_id, 0.0, start + timeout)
            if reply is None and reason is None:
                still.append((node, size, message_id))
                continue
            answer = answered(site, node, size, message_id, reply, reason)
            if answer.reason is None:
                there.append(site)
            yield answer
        slow = still
        if slow:
            time.sleep(_LONGEST_WAIT)


def _problem(check: Callable[[str, RecordDict], None], site: str, reply: Message, *, packed: bool) -> tuple[str | None, int]:
    """What is wrong with the reply, and its bytes as they came: the check may put decoded arrays in the place of others."""
    came = 0
    try:
        if packed:
            reply.content = unbundle(reply.content)
        came = size_bytes(reply.content)
        check(site, reply.content)
    except SiteError as error:
        return str(error.reason), came
    except Exception:  # a malicious reply may raise any exception
        return str(Reason.BAD_MESSAGE), came
    return None, came


def _pull(grid: Grid, message_id: str, deadline: float, whole: float) -> Message | None:
    """The reply if it is there by ``deadline``, with all its parts by ``whole``."""
    wait = _FIRST_WAIT
    while True:
        for reply in pull_by(grid, [message_id], whole):
            return reply
        if time.monotonic() >= deadline:
            return None
        time.sleep(wait)
        wait = min(1.5 * wait, _LONGEST_WAIT)


def known_reason(error: Error) -> str:
    """The reason of an error reply. Only known codes are passed on, because other software may send any text."""
    if error.reason in set(Reason):
        return str(error.reason)
    return Reason.NO_ANSWER if error.code in NOT_THERE else Reason.INTERNAL


def _journal(content: RecordDict) -> tuple[str, int] | None:
    """Head and length of the site's journal, if the reply has them in the valid form."""
    record = dict(config_record(content, JOURNAL)) if holds(content, JOURNAL, ConfigRecord) else {}
    head, count = record.get("head"), record.get("count")
    well_formed = isinstance(head, str) and re.fullmatch("[0-9a-f]{64}", head) and type(count) is int and 0 < count < 2**53
    return (str(head), int(str(count))) if well_formed else None


def _witness(content: RecordDict) -> Witness | None:
    """The site's signature, if the reply has one in the valid form."""
    try:
        return read_witness(dict(config_record(content, JOURNAL))) if holds(content, JOURNAL, ConfigRecord) else None
    except ValueError:
        return None


def config_with(message: Message, record: ConfigRecord) -> None:
    """Adds ``record``'s keys to the message's config, keeping the keys of the strategy."""
    config = config_record(message.content, CONFIG) if holds(message.content, CONFIG, ConfigRecord) else {}
    message.content[CONFIG] = ConfigRecord({**config, **record})
