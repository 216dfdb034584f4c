"""What no check of a bundle can show: what rests on the word of whoever signed it. One line of the verdict of ``fedml verify``."""

from __future__ import annotations

from collections.abc import Collection

from fedml.experiments.evidence.contents import AUDIT
from fedml.experiments.evidence.publication import AUTHORS
from fedml.experiments.evidence.witnesses import signers
from fedml.experiments.runs.record import Record

# Each phrase names what a signer can choose freely, as long as the record fits together.
ALWAYS = (
    "the dates and durations",
    "the study's texts (question, purpose, names)",
    "the author's study file",
    "the code and package versions that are stated, and the repository of the study",
    "the policies and excluded images that sites are said to have disclosed, and the digests of their data",
    "the table of checks before training, and how many variants matched",
    "the refusals",
    "training losses, sizes of updates and messages, and persons of classes where they are rounded",
    "the metrics of earlier rounds",
    "numbers of training persons where rounds are counted in steps, or under privacy of a patient",
)
UNSIGNED = (
    "that the sites exist, took part and counted what the record says, with a study, model, panel and constants that fit together",
    "the engine, and the journals' heads",
)
PARTLY = "what of this the sites without a confirmed key answered"
KEYS = "whose the sites' keys are (compare their fingerprints with the sites', or give --site-key), and until then"


def on_the_signers_word(record: Record, files: Collection[str], keys: Collection[str]) -> str:
    """The sentence.

    Args:
        files: names of the files in the bundle. keys: sites whose key the reader knows.
    """
    signed, answered = signers(record).keys(), record.final.sites.keys()
    confirmed = signed & set(keys)
    more = list[str]()
    if not answered or not confirmed >= answered:
        more += [f"{KEYS} {UNSIGNED[0]}" if signed - confirmed else UNSIGNED[0], *UNSIGNED[1:], *([PARTLY] if confirmed else [])]
    if AUDIT in files:
        more.append("the audit with canaries")
    if AUTHORS in files:
        more.append("the authors, title and licence of the publication")
    if any(name.startswith("examples/") for name in files):
        more.append("the pictures of examples")
    if record.study.evaluation.metrics:
        more.append("the measures of own code")
    trust = "; a site's signature shows what it received and sent, not that its data are true" if signed else ""
    return f"{'; '.join([*more, *ALWAYS])}{trust}"
