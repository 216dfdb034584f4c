"""Reads the headers of many DICOM files at once, with a process for each processor: ``python -m fedml.cohort.dicom.first_read`` is one of
them (its folders and files as JSON on standard input, a line of JSON for each file on standard output).

    with remembering(cache / INDEX):
        read_ahead(Path("images"), persons)      # the index knows their headers then; what is known already is not read

Python parses one header at a time in a process, so threads do not help. Where no process may be started, or one ends early, the
headers are read one after the other later, as without it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import IO, cast

from fedml.cohort.dicom.headers import READ_AS, below, read_header
from fedml.cohort.images.parallel import workers
from fedml.cohort.images.reasons import ItemError
from fedml.cohort.state_index import StateIndex, current_index, settled_state
from fedml.flower.parent import end_with_parent, owned
from fedml.quiet import hush_process

_FEWEST = 400  # files: fewer are read before the processes have started
_WAITING = 1_000  # lines of the processes that wait to be written
log = logging.getLogger("fedml.site")


def read_ahead(folder: Path, persons: Sequence[str]) -> int:
    """Reads the headers of those ``persons`` of whom the index that is open knows no file; returns how many files were read. Memory: a
    thousand headers, whatever their number."""
    index = current_index()
    count = workers()
    if index is None or not index.kept or count < 2:
        return 0
    new = _unknown(index, folder, persons)
    if not _many(new):
        return 0
    log.info("reading the headers of %d persons for the first time, with %d processes", len(new), count)
    begun: list[subprocess.Popen[str]] = []
    try:
        begun.extend(_process([str(path) for path in new[at::count]]) for at in range(count))
        return _gather(index, begun)
    except OSError:  # no process may be started, as in the confined one of own code
        return 0
    finally:
        for process in begun:
            process.kill()
            process.wait()


def _unknown(index: StateIndex, folder: Path, persons: Sequence[str]) -> list[Path]:
    """The folder, or else the file, of each person of whom no file is known."""
    known, files = index.below(str(folder))
    new = []
    for person in persons:
        if person not in known and (folder / person).is_dir():
            new.append(folder / person)
        elif f"{person}.dcm" not in files and (folder / f"{person}.dcm").is_file():
            new.append(folder / f"{person}.dcm")
    return new


def _many(places: Sequence[Path]) -> bool:
    count = 0
    for place in places:
        count += 1 if place.is_file() else sum(1 for _ in below(place))
        if count >= _FEWEST:
            return True
    return False


def _process(places: Sequence[str]) -> subprocess.Popen[str]:
    words = [sys.executable, "-P", "-I", "-m", "fedml.cohort.dicom.first_read"]
    process = subprocess.Popen(
        words, env=owned(os.environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with suppress(BrokenPipeError), cast(IO[str], process.stdin) as pipe:  # it ended at once: its files are read later
        json.dump(places, pipe)
    return process


def _gather(index: StateIndex, begun: Sequence[subprocess.Popen[str]]) -> int:
    """Writes what the processes say, in this thread, to which the index belongs."""
    lines: Queue[str | None] = Queue(_WAITING)

    def listen(process: subprocess.Popen[str]) -> None:
        try:
            for line in cast(IO[str], process.stdout):
                lines.put(line)
        finally:
            lines.put(None)

    threads = [threading.Thread(target=listen, args=(process,), daemon=True) for process in begun]
    for thread in threads:
        thread.start()
    open_ones, count = len(threads), 0
    while open_ones:
        line = lines.get()
        if line is None:
            open_ones -= 1
            continue
        with suppress(ValueError):  # the last line of a process that was killed
            folder, name, state, told = json.loads(line)
            index.put(folder, name, state, told)
            count += 1
    index.write()
    return count


def _headers(places: Sequence[str]) -> Iterator[str]:
    for place in map(Path, places):
        for path in sorted([place] if place.is_file() else below(place)):
            with suppress(ItemError, OSError):  # its person's turn comes later, with the reason
                state = settled_state(os.stat(path))
                if state is not None:
                    folder, name = os.path.split(path)
                    yield json.dumps([folder, f"{name}/{READ_AS}", state, json.dumps(read_header(path))])


def main() -> None:
    """The process."""
    end_with_parent()
    places = json.load(sys.stdin)
    hush_process()
    for line in _headers(places):
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
