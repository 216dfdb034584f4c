"""The ledger where the data are on the same machine: the local engine and Flower's simulation ask each site's policy and charge each site's
ledger as the gate of a deployment does (``fedml.clients.gate.charge``).

    app                                      the ClientApp of both engines: charges, then answers (``fedml.clients.work.client``)
    check_budgets([Plan(study, "oslo", site), ...])     before anything is started: would all of it fit the budgets?

Data that a site declares public have no ledger. A study without privacy of a patient is asked about only where the site has a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message

from fedml.clients.gate.charge import charge, check_budget, check_delta
from fedml.clients.gate.ledger import Ledger, Part
from fedml.clients.site.manifest import Site, read_site
from fedml.clients.site.read import load_cohort
from fedml.clients.work.client import answer as answered
from fedml.clients.work.client import app_of
from fedml.clients.work.request import Request
from fedml.errors import InputError, SiteError
from fedml.privacy.claims import rounded_up
from fedml.privacy.releases import whole_events
from fedml.study.sources import FOLDER, provide_folder
from fedml.study.study import Study


def has_ledger(site: Site, study: Study) -> bool:
    """Whether the site's ledger is asked about this study, where the data are on the same machine."""
    return not site.manifest.data.public and (study.privacy.unit == "patient" or site.manifest.policy.max_epsilon > 0)


def ledger_of(site: Site) -> Ledger:
    """The site's ledger, which is created if there is none.

    Raises:
        InputError: it cannot be used.
    """
    try:
        site.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _open(site.state.resolve() / "ledger.db")
    except OSError as error:
        raise InputError(
            f"{site.state}: the site's ledger cannot be used ({error.strerror}); run this as the account that runs the site's service."
        ) from error


_open = lru_cache(maxsize=128)(Ledger)  # opening verifies the whole file


def answer(message: Message, context: Context) -> Message:
    """The reply to any message, after its releases were charged to the ledgers of the node's sites; or the code of a refusal."""
    if "run" in context.run_config:  # in a simulation this is a process of its own
        _provide_once(str(context.run_config["run"]))
    run = _named(str(context.run_config.get("run", message.metadata.run_id)))

    def charge_sites(request: Request) -> None:
        for manifest in request.manifests:  # of pooled data, each site's ledger is charged for its own persons
            site = _site_now(manifest)
            if has_ledger(site, request.study):
                charge(ledger_of(site), site.manifest.policy, replace(request, manifests=(manifest,)), run)

    return answered(message, context, charge_sites)


app = app_of(answer)


def _site_now(manifest: str) -> Site:
    """The site as its manifest is now: its policy may have been changed since the process read it."""
    try:
        about = Path(manifest).stat()
    except OSError:
        return read_site(Path(manifest))  # which says what is wrong
    return _read(manifest, about.st_mtime_ns, about.st_size, about.st_ino)


_read = lru_cache(maxsize=4096)(lambda manifest, *_: read_site(Path(manifest)))
_named = lru_cache(maxsize=64)(lambda run: f"local {Path(run).name}")
_provide_once = lru_cache(maxsize=64)(lambda run: provide_folder(Path(run) / FOLDER))


@dataclass(frozen=True)
class Plan:
    """A study that is to run with ``site``'s persons under the name ``node``: the site's own, or another of pooled data.

    ``only_evaluated``: its persons are not trained on: a trained model is evaluated once on held-out persons.
    """

    study: Study
    node: str
    site: Site
    only_evaluated: bool = False


def check_budgets(plans: Sequence[Plan]) -> None:
    """Raises ``InputError`` if a site's policy does not allow a study, or if all of them together would exceed a site's budget."""
    by_site: dict[Path, list[Plan]] = {}
    for plan in plans:
        if has_ledger(plan.site, plan.study):
            by_site.setdefault(plan.site.file, []).append(plan)
    for file, mine in by_site.items():
        site, policy = mine[0].site, mine[0].site.manifest.policy
        parts: list[Part] = []
        try:
            for plan in mine:
                check_budget(plan.study, policy)
                parts += _parts(plan)
            for persons, _ in parts:
                check_delta(mine[0].study, policy, len(persons))
        except SiteError as error:
            raise InputError(f"{file}: {error}.") from error
        if not parts:
            continue
        names = ", ".join(dict.fromkeys(f'"{plan.study.study.name}"' for plan in mine))
        if not policy.max_epsilon:
            raise InputError(
                f"{file}: [policy] max_epsilon is 0, so no study with privacy of a patient runs, such as {names}; set max_epsilon, the "
                "budget of each person. For published or synthetic data set [data] public = true."
            )
        ledger = ledger_of(site)
        after = ledger.after(parts, policy.delta)
        if not after <= policy.max_epsilon:
            raise InputError(
                f"{file}: the privacy budget does not suffice: {names} ({len(mine)} trainings or evaluations) would raise a person's "
                f"epsilon to {rounded_up(after)} at delta {policy.delta:g}; [policy] max_epsilon grants {policy.max_epsilon:g}, of which "
                f"{rounded_up(ledger.spent(policy.delta))} are spent. Nothing was started; ask for less epsilon, fewer rounds or seeds."
            )


def _parts(plan: Plan) -> list[Part]:
    cohort = load_cohort((str(plan.site.file),), plan.study)
    events = whole_events(plan.study, plan.node, only_evaluated=plan.only_evaluated)
    rows = [([cohort.ids[row] for row in cohort.rows(part)], found) for part, found in events.items() if found]
    return [(persons, found) for persons, found in rows if persons]


def charge_whole(plans: Sequence[Plan], run: str, phase: str) -> None:
    """Charges everything that the plans release at once, for a command that has its own engine.

    Raises:
        InputError: a budget does not suffice, which is checked for all sites before any of them is charged.
    """
    check_budgets(plans)
    for plan in plans:
        policy = plan.site.manifest.policy
        if has_ledger(plan.site, plan.study) and (parts := _parts(plan)):
            ledger_of(plan.site).charge_all(
                parts, run=run, study=plan.study.sha256, study_name=plan.study.study.name, phase=phase, round=0,
                max_epsilon=policy.max_epsilon, delta=policy.delta,
            )  # fmt: skip
