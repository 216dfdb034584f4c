"""The journal as text for a person at the site."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from fedml.clients.gate.journal import START, TORN, Entry

_SENTENCES = {
    TORN: "a line that a crash cut short was moved to another file",
    "not-in-roster": "the study does not name this site",
    "bad-message": "the message is not a request of a study",
    "bad-data": "this site's data do not fit the study",
    "non-finite": "a number was not finite",
    "implausible": "a number that the persons of this site cannot have",
    "internal": "an error at this site; the site's log describes the error",
    "own-code": "the study's own code failed, was changed after its approval, or cannot be confined on this machine (see site.log)",
    "state-lost": "the state that this site kept of earlier rounds of the run was lost",
}


def _described(entry: Entry) -> str:
    # An Entry that a caller built was not checked, so characters that a terminal would interpret are replaced.
    words = []
    if entry.study_name or entry.study:
        words.append(f"study {entry.study_name}" + (f" ({entry.study[:8]}…)" if entry.study else ""))
    words.append(f"round {entry.round}: {entry.phase}" if entry.round else entry.phase)
    why = _SENTENCES.get(entry.reason, entry.reason if " " in entry.reason else entry.reason.replace("-", " "))
    sizes = ", ".join(f"{r.name} {r.bytes / 1e3:.1f} kB" if r.bytes < 1e6 else f"{r.name} {r.bytes / 1e6:.1f} MB" for r in entry.records)
    refused = entry.verdict == "refused"
    begin = f"{entry.time[:19].replace('T', ' ')}  {entry.direction:4}  {entry.verdict:8}  "
    lines = [begin + "  ".join(filter(None, [" ".join(filter(None, words)), "" if refused else why, sizes]))]
    if refused:
        lines.append(" " * len(begin) + f"because: {why or 'no reason was recorded'}")
    return "\n".join("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line).rstrip() for line in lines)


def show(entries: Iterable[Entry], limit: int | None = None) -> str:
    """The journal as text, times in UTC: a summary line, then the last ``limit`` entries, or all entries."""
    last: deque[Entry] = deque(maxlen=limit)
    count, refused, head = 0, 0, START
    for entry in entries:
        last.append(entry)
        count, refused, head = count + 1, refused + (entry.verdict == "refused"), entry.digest
    part = f"; the last {len(last)}:" if len(last) < count else ""
    begin = f"{count} {'entry' if count == 1 else 'entries'}, {refused} refused, head {head}{part}"
    return "\n".join([begin, *map(_described, last)])
