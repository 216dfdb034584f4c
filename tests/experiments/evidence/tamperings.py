"""Tamperings with a bundle, each by a forger who then has every derived file made anew and signs with a key of their own.

``Case.expected`` is FOUND, or the words of the verdict's line about what rests on the signer's word alone that cover the change.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load, save

from fedml.contract.witness import agreement_digest, arrays_digest, meaning_digest
from tests.evidence import events

Files = dict[str, bytes]
Rows = list[dict[str, Any]]
FOUND = "found"
# Parts of the verdict's line.
DATES, TEXTS, TOML, CODE = "the dates and durations", "the study's texts", "the author's study file", "the code and package versions"
POLICIES, CHECKS, REFUSALS, LOSSES = "the policies and excluded images", "the table of checks", "the refusals", "training losses"
ROUNDS, SITES, ENGINE = "the metrics of earlier rounds", "that the sites exist, took part", "the engine, and the journals' heads"


class Case(NamedTuple):
    """``of``: local (demo run in one process), deployed (the same through gates, signed by the sites, whose keys the reader has), stranger
    (the same, without the keys), private. ``change``: files -> the changed ones. ``rederive``: derived files are made anew."""

    name: str
    of: str
    change: Callable[[Files], Mapping[str, bytes]]
    expected: str
    rederive: bool = True


# --- what a forger does


def log(change: Callable[[Rows], Any]) -> Callable[[Files], Files]:
    """A change of the log's events."""

    def run(rows: Rows) -> None:
        change(rows)

    return lambda files: {"events.jsonl": events(files, run)}


def the(rows: Rows, kind: str, at: int = 0) -> dict[str, Any]:
    return [row for row in rows if row["event"] == kind][at]


def put(kind: str, *path: Any, to: Any) -> Callable[[Files], Files]:
    """Sets one value of one event."""

    def change(rows: Rows) -> None:
        place = the(rows, kind)
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to(place[path[-1]]) if callable(to) else to

    return log(change)


def raw(old: bytes, new: bytes, name: str = "events.jsonl") -> Callable[[Files], Files]:
    """A replacement of bytes, once."""

    def change(files: Files) -> Files:
        assert old in files[name]
        return {name: files[name].replace(old, new, 1)}

    return change


def arrays(name: str, change: Callable[[dict[str, Any]], Any], metadata: dict[str, str] | None = None) -> Callable[[Files], Files]:
    """A change of the arrays of a file."""

    def run(files: Files) -> Files:
        found = {key: value.copy() for key, value in load(files[name]).items()}
        change(found)
        return {name: save(found, metadata)}

    return run


def fitted(change: Callable[[Files], Files]) -> Callable[[Files], Files]:
    """``change``, with every digest in the log made to fit it: hash of the study, weights, and meaning."""

    def run(files: Files) -> Files:
        new = files | change(files)

        def fit(rows: Rows) -> None:
            start, agreed, final, model = the(rows, "start"), the(rows, "agreed"), the(rows, "final"), load(new["model.safetensors"])
            start["study_sha256"] = hashlib.sha256(new["study.json"]).hexdigest()
            final["weights_sha256"] = arrays_digest(model)
            constants = {k: v for k, v in model.items() if k.startswith(("preprocess.", "target."))}
            found = agreement_digest(start["study_sha256"], new["panel.tsv"], agreed["image_shape"], constants)
            final["meaning_sha256"] = meaning_digest(found, agreed["first_sha256"], agreed.get("started", ()), final["weights_sha256"])

        return {k: v for k, v in new.items() if v != files.get(k)} | {"events.jsonl": events(new, fit)}

    return run


def lines(change: Callable[[list[list[bytes]]], Any]) -> Callable[[Files], Files]:
    """A change of the panel's fields."""

    def run(files: Files) -> Files:
        rows = [line.split(b"\t") for line in files["panel.tsv"].splitlines()]
        change(rows)
        return {"panel.tsv": b"".join(b"\t".join(row) + b"\n" for row in rows)}

    return run


def study(*path: str, to: Any) -> Callable[[Files], Files]:
    """A change of the study with its hash."""

    def run(files: Files) -> Files:
        plan = json.loads(files["study.json"])
        place = plan
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        return {"study.json": json.dumps(plan, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()}

    return fitted(run)


def text(name: str, pattern: str, new: str) -> Callable[[Files], Files]:
    """An edit of a derived file."""

    def run(files: Files) -> Files:
        found = re.sub(pattern, new, files[name].decode(), count=1, flags=re.DOTALL)
        assert found != files[name].decode()
        return {name: found.encode()}

    return run


def swap_lines(rows: list[list[bytes]]) -> None:
    rows[0], rows[1] = rows[1], rows[0]


def swap_alleles(rows: list[list[bytes]]) -> None:
    rows[0][-1], rows[0][-2] = rows[0][-2], rows[0][-1]


def moved(rows: list[list[bytes]]) -> None:
    rows[0][1] = b"%d" % (int(rows[0][1]) + 1)


def scaled(array: str, by: float) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        found[next(k for k in sorted(found) if array in k)] *= by

    return change


def more_persons(part: str, by: int) -> Callable[[Files], Files]:
    return put("agreed", "persons", "oslo", part, to=lambda classes: [n * by for n in classes])


def times(change: Callable[[float], float], kinds: tuple[str, ...] = ()) -> Callable[[Files], Files]:
    def run(rows: Rows) -> None:
        for row in rows:
            if not kinds or row["event"] in kinds:
                row["time"] = change(row["time"])

    return log(run)


def a_year_earlier(rows: Rows) -> None:
    """With the run's name, which has its date."""
    for row in rows:
        row["time"] -= 365 * 86_400.0
    name = the(rows, "start")["run_id"]
    year = re.search(r"-(\d{4})", name)
    assert year is not None
    the(rows, "start")["run_id"] = name.replace(year[0], f"-{int(year[1]) - 1}", 1)


def scores(rows: Rows, name: str, value: Any, kind: str = "round", who: str = "all") -> None:
    for row in rows:
        for part in row["metrics"].values() if row["event"] == kind else ():
            (part["all"] if who == "all" else part["sites"][who])[name] = value


def every(kind: str, key: str, value: Any) -> Callable[[Files], Files]:
    """Sets a key of every site's row."""

    def run(rows: Rows) -> None:
        for row in (row for row in rows if row["event"] == kind):
            for site in row["sites"].values():
                site[key] = value

    return log(run)


def without_journals(rows: Rows) -> None:
    the(rows, "start")["engine"] = "local"
    for row in rows:
        for site in row.get("sites", {}).values() if isinstance(row.get("sites"), dict) else ():
            site["journal"] = None
            site.pop("witness", None)


def without_witnesses(rows: Rows) -> None:
    for row in rows:
        for site in row["sites"].values() if isinstance(row.get("sites"), dict) else ():
            site.pop("witness", None)


def invented_journals(rows: Rows) -> None:
    the(rows, "start")["engine"] = "deployment"
    at = 1
    for row in rows:
        for name, site in row["sites"].items() if isinstance(row.get("sites"), dict) else ():
            at += 2
            site["journal"] = [hashlib.sha256(f"{name}{at}".encode()).hexdigest(), at]


def unplug(site: str) -> Callable[[Files], Files]:
    """Takes a site out of the last evaluation, from counts and log, and says that it refused."""

    def run(files: Files) -> Files:
        kept = {k: v for k, v in load(files["counts.safetensors"]).items() if not k.startswith(f"{site}/")}

        def change(rows: Rows) -> None:
            final = the(rows, "final")
            del final["sites"][site]
            final["refused"][site] = "no-answer"

        out = {"counts.safetensors": save(kept), "events.jsonl": events(files, change)}
        if "received.safetensors" in files:
            left = {k: v for k, v in load(files["received.safetensors"]).items() if not k.startswith(f"{site}/")}
            out["received.safetensors"] = save(left)
        return recounted(files | out)

    return run


def recounted(files: Files) -> Files:
    """The last evaluation's metrics from the counts, as the run makes them."""
    from fedml.runs.log import plain
    from fedml.strategies.rounds import groups_of, metrics_of
    from fedml.study.study import parse_study

    plan = parse_study(files["study.json"].decode())
    by_site: dict[str, dict[str, Any]] = {}
    given = load(files["counts.safetensors"])
    for site in plan.federation.sites:
        own = {key.partition("/")[2]: value for key, value in given.items() if key.startswith(f"{site}/")}
        if own:
            by_site[site] = own

    def change(rows: Rows) -> None:
        the(rows, "final").update(metrics=plain(metrics_of(plan, by_site)), groups=plain(groups_of(plan, by_site)))

    return files | {"events.jsonl": events(files, change)}


def better_counts(files: Files) -> Files:
    """All test persons of one site right: the confusion matrix, and a histogram with every case above every control."""
    found = {key: value.copy() for key, value in load(files["counts.safetensors"]).items()}
    confusion = found["oslo/test/confusion"]
    found["oslo/test/confusion"] = np.diag(confusion.sum(1)).astype(confusion.dtype)
    histogram = found["oslo/test/histogram"]
    for side in (0, 1):
        total = histogram[0, side].sum()
        histogram[0, side] = 0
        histogram[0, side, 1000 + 2000 * side] = total
    return recounted(files | {"counts.safetensors": save(found)})


def other_model(files: Files) -> Files:
    return fitted(arrays("model.safetensors", scaled("weight", 1.5)))(files)


def renamed(rows: Rows, old: str, new: str) -> None:
    changed = json.loads(json.dumps(rows).replace(f'"{old}"', '"@"').replace(f'"{new}"', f'"{old}"').replace('"@"', f'"{new}"'))
    rows[:] = changed


def twice(kind: str) -> Callable[[Files], Files]:
    return log(lambda rows: rows.insert(rows.index(the(rows, kind)), copy.deepcopy(the(rows, kind))))


def json_file(name: str, change: Callable[[Any], Any]) -> Callable[[Files], Files]:
    def run(files: Files) -> Files:
        value = json.loads(files[name])
        change(value)
        return {name: json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"}

    return run


def one_site_signs(files: Files) -> Files:
    """A round's signature of porto in the place of that of oslo."""

    def change(rows: Rows) -> None:
        sites = the(rows, "final")["sites"]
        sites["oslo"]["witness"] = sites["porto"]["witness"]

    return {"events.jsonl": events(files, change)}


def new_keys(files: Files) -> Files:
    """A forger with keys of their own in the sites' names, who signs a better result."""
    from cryptography.hazmat.primitives.asymmetric import ec

    from fedml.contract.witness import Said, witness

    better = other_model(files)
    new = files | better
    model, plan = load(new["model.safetensors"]), hashlib.sha256(new["study.json"]).hexdigest()
    received: dict[str, dict[str, Any]] = {}
    for key, value in load(new["received.safetensors"]).items():
        received.setdefault(key.partition("/")[0], {})[key.partition("/")[2]] = value

    def change(rows: Rows) -> None:
        constants = {k: v for k, v in model.items() if k.startswith("preprocess.")}
        agreement = agreement_digest(plan, new["panel.tsv"], the(rows, "agreed")["image_shape"], constants)
        weights = arrays_digest({k: v for k, v in model.items() if k not in constants})
        keys = {site: ec.generate_private_key(ec.SECP384R1()) for site in received}
        for row in (row for row in rows if row["event"] in ("round", "final")):
            for site, own in row["sites"].items():
                final = row["event"] == "final"
                first = the(rows, "agreed")["first_sha256"]
                said = Said(
                    site, plan, "1", "evaluate" if final else "round", row["round"], own["journal"][0], own["journal"][1], agreement,
                    weights if final else first, arrays_digest(received[site]) if final else "", "0" * 64,
                )  # fmt: skip
                own["witness"] = witness(keys[site], said)._asdict()

    return better | {"events.jsonl": events(new, change)}


def _cases() -> list[Case]:
    at: list[Case] = []

    def add(
        name: str, change: Callable[[Files], Mapping[str, bytes]], expected: str = FOUND, of: str = "local", rederive: bool = True
    ) -> None:
        at.append(Case(name, of, change, expected, rederive))

    # figures of the last evaluation, and derived files
    for metric, value in {"auroc": 0.99, "accuracy": 0.99, "brier": 0.01, "log_loss": 0.01, "sensitivity": 1.0, "f1": 0.99}.items():
        add(f"final {metric}", log(lambda rows, m=metric, v=value: scores(rows, m, v, "final")))
    add("final AUROC of one site", log(lambda rows: scores(rows, "auroc", 0.99, "final", "oslo")))
    add("final AUROC 1.7", log(lambda rows: scores(rows, "auroc", 1.7, "final")))
    add("the worst site", put("final", "metrics", "test", "worst", to=lambda now: "oslo" if now != "oslo" else "porto"))
    add("a subgroup's AUROC", put("final", "groups", to=lambda g: {k: {**v, "all": {**v["all"], "auroc": 0.99}} for k, v in g.items()}))
    add("a subgroup left out", put("final", "groups", to=lambda groups: dict(list(groups.items())[1:])))
    add("two subgroups exchanged", put("final", "groups", to=lambda g: dict(zip(g, reversed(list(g.values())), strict=True))))
    add("an invented subgroup", put("final", "groups", to=lambda g: {**g, "rich": next(iter(g.values()))}))

    def described(rows: Rows, key: str, by: float) -> None:
        column = next(iter(the(rows, "agreed")["columns"]["oslo"].values()))
        column[key] = type(column[key])(column[key] * by)

    add("Table 1: ten times the persons", log(lambda rows: described(rows, "known", 10)))
    add("Table 1: a mean", log(lambda rows: described(rows, "mean", 1.2)))
    add("Table 1: another column", put("agreed", "columns", "oslo", to=lambda own: {"wealth": next(iter(own.values())), **own}))
    add("an invented metric", log(lambda rows: scores(rows, "wisdom", 0.99, "final")))
    add("a part taken out", put("final", "metrics", to=lambda m: {k: v for k, v in m.items() if k == "test"}))
    add("counts of one site better, log left", lambda files: {"counts.safetensors": better_counts(files)["counts.safetensors"]})
    add("report: a number", text("report.html", r"(?<=>)0\.\d\d+(?= |<)", "0.987"), rederive=False)
    add("report: a homoglyph", text("report.html", "AUROC", "АUROC"), rederive=False)
    add("report: a fullwidth digit", text("report.html", r"(?<=>)0\.", "０."), rederive=False)
    add("report: a limit taken out", text("report.html", r"<li>No external validation.*?</li>", ""), rederive=False)
    add("report: hidden by a style", text("report.html", "</style>", "#limits{display:none}</style>"), rederive=False)
    add("report: a point of a plot", text("report.html", r'cx="(\d)', r'cx="9\1'), rederive=False)
    add("report: a sentence", text("report.html", "</main>", "<p>Approved by the ethics committee.</p></main>"), rederive=False)
    add("report: a script", text("report.html", "</body>", "<script>document.title='x'</script></body>"), rederive=False)
    add("card: a word", text("model_card.md", "Model details", "Model facts"), rederive=False)
    add("checklist: author to filled", text("checklists.md", r"\| author \|", "| filled |"), rederive=False)
    add("checklist as JSON", text("checklists.json", '"author"', '"filled"'), rederive=False)
    add("figures: a number", text("figures.json", r'"value":0\.\d+', '"value":0.987'), rederive=False)
    add("figures: false as 0", text("figures.json", '"noised":false', '"noised":0'), rederive=False)
    add("metrics.json", text("metrics.json", r'"auroc":0\.\d+', '"auroc":0.987'), rederive=False)
    add("policies.json", text("policies.json", '"min_count":5', '"min_count":50'), rederive=False)
    add("crate: a licence", text("ro-crate-metadata.json", "Not stated in the run", "CC0, stated in the run"), rederive=False)
    add("crate: an agent", text("ro-crate-metadata.json", "The coordinating centre", "The ethics committee"), rederive=False)

    # persons
    for part in ("train", "test", "val"):
        add(f"ten times the {part} persons", more_persons(part, 10))
        add(f"twice the {part} persons", more_persons(part, 2))
    add(
        "test persons of two classes exchanged",
        put("agreed", "persons", "oslo", "test", to=lambda n: n[::-1] if n[0] != n[1] else [n[0] + 1, n[1] - 1]),
    )
    add("training persons of two classes moved", put("agreed", "persons", "oslo", "train", to=lambda n: [n[0] + 5, n[1] - 5]), LOSSES)
    add("one test person more", put("agreed", "persons", "oslo", "test", to=lambda n: [n[0] + 1, *n[1:]]))
    add("no persons described", put("agreed", "persons", to={}))
    add("persons of a site that is not there", put("agreed", "persons", to=lambda p: {**p, "paris": p["oslo"]}))
    add("negative persons", put("agreed", "persons", "oslo", "test", to=lambda n: [-1, *n[1:]]))
    add("half a person", put("agreed", "persons", "oslo", "test", to=lambda n: [n[0] + 0.5, *n[1:]]))
    add("ten times as many seen", put("round", "sites", "oslo", "seen", to=lambda n: n * 10))
    add("none seen", put("round", "sites", "oslo", "seen", to=0.0))
    add("persons of a round's metrics", log(lambda rows: scores(rows, "persons", 400.0)))
    add("counts: ten times the persons", arrays("counts.safetensors", scaled("oslo/test/persons", 10)))
    add(
        "counts: ten times the persons, log made to fit",
        lambda files: recounted(files | arrays("counts.safetensors", scaled("oslo/test/persons", 10))(files)),
    )
    add(
        "counts: the confusion matrix twice",
        arrays("counts.safetensors", lambda c: c.update({"oslo/test/confusion": c["oslo/test/confusion"] * 2})),
    )
    add(
        "counts: one site's as another's",
        arrays("counts.safetensors", lambda c: c.update({"oslo/test/confusion": c["porto/test/confusion"]})),
    )

    # the form of the record
    add("an invented event", log(lambda rows: rows.insert(2, {"event": "approved", "time": rows[1]["time"], "by": "the ethics committee"})))
    add(
        "an invented key of start",
        log(lambda rows: the(rows, "start").update(approved_by="x")),
    )
    add("an invented key of a site", log(lambda rows: the(rows, "round")["sites"]["oslo"].update(approved="yes")))
    add("an invented key of a policy", log(lambda rows: the(rows, "agreed")["disclosed"]["oslo"]["policy"].update(approved="yes")))
    add("an invented key of the last metrics", log(lambda rows: the(rows, "final")["metrics"]["test"].update(best="oslo")))
    add("a key twice", raw(b'{"event": "final"', b'{"metrics": {"test": {"all": {"auroc": 0.99}}}, "event": "final"'))
    add("a key twice, deep inside", raw(b'"seen": ', b'"seen": 1.0, "seen": '))
    add("spaces in the log", raw(b"\n", b" \n"))
    add("CR LF", lambda files: {"events.jsonl": files["events.jsonl"].replace(b"\n", b"\r\n")})
    add("a blank line", raw(b"\n", b"\n\n"))
    add("a number in another notation", raw(b'"round": 1,', b'"round": 1.0,'))
    add("text after the last line", lambda files: {"events.jsonl": files["events.jsonl"] + b"approved"})
    add("round 1 twice", twice("round"))
    add("round 1 left out", log(lambda rows: rows.remove(the(rows, "round"))))
    add("the agreement twice", twice("agreed"))
    add("the end before the last evaluation", log(lambda rows: rows.insert(-2, rows.pop())))
    add(
        "an event of an association study",
        log(lambda rows: rows.insert(2, {"event": "step", "time": rows[1]["time"], "doing": "x", "done": 1, "total": None, "log": False})),
    )
    add("a study that failed", put("end", "reason", to="the ethics committee stopped it"))
    add("study.json with a key twice", raw(b'{"', b'{"approved":"yes","', "study.json"))
    add("study.json with spaces", raw(b'":', b'": ', "study.json"))
    add("layout.json: a key", lambda files: {"layout.json": json.dumps({**json.loads(files["layout.json"]), "approved": True}).encode()})
    add("layout.json: spaces", lambda files: {"layout.json": files["layout.json"] + b" "})
    add("versions.json: a key", json_file("versions.json", lambda v: v.update(approved="yes")))
    add("versions.json: a key twice", raw(b'{"bundle"', b'{"bundle":{},"bundle"', "versions.json"))
    add("versions.json: a package of the run", json_file("versions.json", lambda v: v["run"].update(torch="9.9.9")))
    add("an extra array in the counts", arrays("counts.safetensors", lambda c: c.update({"oslo/test/zz": np.ones(1)})))
    add("counts of a site that is not there", arrays("counts.safetensors", lambda c: c.update({"paris/test/persons": np.ones(1)})))
    add(
        "counts in another type",
        arrays("counts.safetensors", lambda c: c.update({"oslo/test/persons": c["oslo/test/persons"].astype(np.float32)})),
    )
    add("metadata of the counts", arrays("counts.safetensors", lambda c: None, {"approved": "yes"}))
    add("negative counts", arrays("counts.safetensors", lambda c: c["oslo/test/confusion"].__setitem__((0, 0), -1)))
    add("metadata of the model", arrays("model.safetensors", lambda m: None, {"approved": "yes"}))
    add("an audit that is no audit", lambda files: {"audit.json": b'{"approved": "yes"}\n'})
    add("a file of another name", lambda files: {"approved.txt": b"yes"}, rederive=False)
    add("code that the study does not pin", lambda files: {"code/x.py": b"x = 1\n"}, rederive=False)
    add("counts signed by nobody", lambda files: {"received.safetensors": files["counts.safetensors"]})

    # the model's meaning
    fixed = {
        "two variants exchanged": lines(swap_lines), "alleles exchanged": lines(swap_alleles), "a variant moved": lines(moved),
        "a weight": arrays("model.safetensors", scaled("weight", 1.5)),
        "a constant": arrays("model.safetensors", scaled("preprocess", 1.001)),
    }  # fmt: skip
    for name, change in fixed.items():
        add(name, change)
        add(f"{name}, every digest made to fit", fitted(change), FOUND if name == "a constant" else SITES)  # it is not Table 1's mean
        add(f"{name}, every digest made to fit, signed by sites", fitted(change), FOUND, "deployed")
        add(f"{name}, every digest made to fit, signed by keys nobody knows", fitted(change), FOUND, "stranger")
    add("an extra array in the model", arrays("model.safetensors", lambda m: m.update(zz=np.ones(1, np.float32))))
    add("an extra array in the model, made to fit", fitted(arrays("model.safetensors", lambda m: m.update(zz=np.ones(1, np.float32)))))
    add(
        "an extra constant, made to fit",
        fitted(arrays("model.safetensors", lambda m: m.update({"preprocess.age.mean": np.ones(1, np.float32)}))),
    )
    add("a weight that is no number, made to fit", fitted(arrays("model.safetensors", scaled("weight", float("nan")))))
    add("a variant twice, made to fit", fitted(lines(lambda rows: rows.__setitem__(1, rows[0]))))
    add("a variant less, made to fit", fitted(lines(lambda rows: rows.pop())))
    add("the first weights", put("agreed", "first_sha256", to="0" * 64))
    add("the first weights, made to fit", fitted(put("agreed", "first_sha256", to="0" * 64)), SITES)
    add("the first weights, made to fit, signed by sites", fitted(put("agreed", "first_sha256", to="0" * 64)), FOUND, "deployed")
    add("no first weights", log(lambda rows: the(rows, "agreed").pop("first_sha256")))
    add("no digest of the meaning", log(lambda rows: the(rows, "final").pop("meaning_sha256")))
    add("weights said to be pinned", log(lambda rows: the(rows, "agreed").update(started=["encoder.variants.weight"])))
    add("fewer parameters", put("agreed", "parameters", to=10))
    add("another image shape", put("agreed", "image_shape", to=[1, 8, 8, 8]))
    add("more variants", put("agreed", "variants", to=400))
    add("more variants matched", put("agreed", "matching", "oslo", to={"same": 4000}), CHECKS)
    add("the model of another run, made to fit", other_model, SITES)
    add("the model of another run, signed by sites", other_model, FOUND, "deployed")

    # engine, journals, sites' signatures
    add("engine local to deployment", put("start", "engine", to="deployment"))
    add("engine local to simulation", put("start", "engine", to="simulation"), ENGINE)
    add("engine unknown", put("start", "engine", to="hospital"))
    add("deployment with invented journals", log(invented_journals), ENGINE)
    add("one invented journal", put("round", "sites", "oslo", "journal", to=["0" * 64, 3]))
    add("deployment to local", put("start", "engine", to="local"), FOUND, "deployed")
    add("deployment to local, without journals", log(without_journals), FOUND, "deployed")
    add("deployment to local, without journals, to a stranger", log(without_journals), FOUND, "stranger")
    add(
        "a journal that does not grow",
        log(lambda rows: the(rows, "round", 1)["sites"]["oslo"].update(journal=the(rows, "round")["sites"]["oslo"]["journal"])),
        FOUND,
        "deployed",
    )
    add("a journal's head", put("round", "sites", "oslo", "journal", 0, to="0" * 64), FOUND, "deployed")
    add("a journal's length", put("final", "sites", "oslo", "journal", 1, to=lambda n: n + 1000), FOUND, "deployed")
    add("a journal that is a sentence", put("round", "sites", "oslo", "journal", to=["approved", 3]), FOUND, "deployed")
    add("signatures taken out", log(without_witnesses), FOUND, "deployed")
    add(
        "signatures and counts as they came taken out, to a stranger",
        lambda files: {**log(without_witnesses)(files), "received.safetensors": b""},
        SITES,
        "stranger",
    )
    add("porto's signature for oslo", one_site_signs, FOUND, "deployed")
    add("signatures by keys of the forger", new_keys, FOUND, "deployed")
    add("signatures by keys of the forger, to a stranger", new_keys, "whose the sites' keys are", "stranger")
    add("counts of one site better, made to fit", lambda files: better_counts(files), SITES)
    add("counts of one site better, made to fit, signed by sites", lambda files: better_counts(files), FOUND, "deployed")
    add("a site taken out, said to have refused", unplug("porto"), REFUSALS)
    add("a site taken out, signed by sites", unplug("porto"), REFUSALS, "deployed")
    add("two sites exchanged in the log", log(lambda rows: renamed(rows, "oslo", "porto")))
    add("a site that is not in the roster", log(lambda rows: the(rows, "agreed")["sites"].append("paris")))
    add("a reason that there is not", log(lambda rows: the(rows, "round")["refused"].update(paris="bored")))

    # code, versions, dates
    add("another commit of the study's folder", put("start", "git_commit", to="0" * 40), CODE)
    add("a commit that is none", put("start", "git_commit", to="approved"))
    add("other code", put("start", "code", "sha256", to="0" * 64), CODE)
    add("another version", put("start", "code", "version", to="9.9.9"), CODE)
    add("a version that is a sentence", put("start", "code", "version", to="approved by the ethics committee"))
    add("another torch", log(lambda rows: the(rows, "start")["versions"].update(torch="9.9.9")))
    add("a year earlier", times(lambda t: t - 365 * 86_400.0))
    add("a year earlier, with the run's name", lambda files: dated(files), DATES)
    add("the year 3009", times(lambda t: t + 3.1e10))
    add("1970", times(lambda t: t - 1.7e9))
    add("the end before the start", times(lambda t: t - 366 * 86_400.0, ("end",)))
    add("an hour between name and start", times(lambda t: t + 3600.0))
    add("a round longer than the run", put("round", "seconds", to=86_400.0))
    add("an answer longer than its round", put("round", "sites", "oslo", "seconds", to=86_400.0))
    add("negative seconds", put("round", "seconds", to=-1.0))
    add("a shorter round", put("round", "seconds", to=0.001), DATES)
    add("another run's name", put("start", "run_id", to="approved"))

    # study, policies, the rest of the log
    add("the question", study("study", "question", to="Is everything fine?"), TEXTS)
    add("the question, signed by sites", study("study", "question", to="Is everything fine?"), FOUND, "deployed")
    add("the study without its hash", raw(b"Does this person", b"Does that person", "study.json"))
    add("another seed", study("study", "seed", to=99))
    add("more rounds planned", study("federation", "rounds", to=50))
    add("a higher quorum", study("federation", "quorum", to=3), SITES)
    add("another learning rate", study("training", "lr", to=0.5), SITES)
    add("another learning rate, signed by sites", study("training", "lr", to=0.5), FOUND, "deployed")
    add("another strategy", study("strategy", "name", to="fedavgm"), SITES)
    add("privacy that was not there", study("privacy", "unit", to="site"))
    add("a comment in the author's file", lambda files: {"study.toml": files.get("study.toml", b"") + b"# protocol v3\n"}, TOML)
    add(
        "min_count 50 at the sites",
        log(lambda rows: [d["policy"].update(min_count=50) for d in the(rows, "agreed")["disclosed"].values()]),
        POLICIES,
    )
    add("min_count 0 at the sites", log(lambda rows: [d["policy"].update(min_count=0) for d in the(rows, "agreed")["disclosed"].values()]))
    add("a policy that nobody has", log(lambda rows: the(rows, "agreed")["disclosed"]["oslo"]["policy"].update(deidentification="perfect")))
    add("other data", log(lambda rows: the(rows, "agreed")["disclosed"]["oslo"].update(dataset="0" * 64)), POLICIES)
    add("excluded for no reason", log(lambda rows: the(rows, "agreed")["disclosed"]["oslo"].update(quarantined={"bored": 3})))
    add(
        "an invented check",
        log(
            lambda rows: the(rows, "checks")["checks"].append(
                {"site": "all sites", "check": "ethics", "value": "yes", "verdict": "ok", "fix": ""}
            )
        ),
        CHECKS,
    )
    add(
        "a check of a site that is not there",
        log(lambda rows: the(rows, "checks")["checks"].append({"site": "paris", "check": "x", "value": "", "verdict": "ok", "fix": ""})),
    )
    add("an invented verdict", log(lambda rows: the(rows, "checks")["checks"][0].update(verdict="approved")))
    add("AUROC of a round", log(lambda rows: scores(rows, "auroc", 0.99)), ROUNDS)
    add("AUROC 1.7 of a round", log(lambda rows: scores(rows, "auroc", 1.7)))
    add("accuracy of a round over all persons", log(lambda rows: scores(rows, "accuracy", 0.99)))
    add("log loss below 0", log(lambda rows: scores(rows, "log_loss", -5.0)))
    add("an invented metric of a round", log(lambda rows: scores(rows, "wisdom", 0.9)))
    add("training loss -5", every("round", "train_loss", -5.0))
    add("training loss halved", put("round", "sites", "oslo", "train_loss", to=lambda x: x / 2), LOSSES)
    add("a negative size of an update", every("round", "update_norm", -1.0))
    add("negative bytes", every("final", "bytes_in", -1))
    add("another round evaluated", put("final", "round", to=1))
    add("a round chosen by metrics", log(lambda rows: the(rows, "final").update(kept=1)))

    # privacy of a patient
    def lower(rows: Rows) -> None:
        row = the(rows, "privacy")
        row["epsilon"] *= 0.9
        for claim in row["claims"].values():
            claim["epsilon"] *= 0.9

    for name, change_of in {
        "a lower epsilon": log(lower),
        "a lower epsilon of all": put("privacy", "epsilon", to=0.1),
        "another sentence": put("privacy", "sentence", to="Perfectly private."),
        "a claim less": put("privacy", "claims", to=lambda claims: dict(list(claims.items())[:1])),
        "no privacy": log(lambda rows: rows.__setitem__(-3, {"event": "privacy", "time": rows[-3]["time"], "unit": "none"})),
        "the noise": put("privacy", "claims", "a", "events_json", to=lambda text: text.replace("noise_multiplier", "noise")),
        "a lower delta": put("privacy", "delta", to=1e-9),
        "numbers of persons that nobody described": put(
            "agreed", "persons", to={s: {"train": [9, 9], "val": [1, 1], "test": [2, 2]} for s in "ab"}
        ),
        "a round less": log(lambda rows: rows.remove(the(rows, "round"))),
        "more epsilon planned": study("privacy", "epsilon", to=8.0),
        "training persons of the plan": study("privacy", "persons", to={"a": 1400, "b": 900}),
    }.items():  # fmt: skip
        add(name, change_of, FOUND, "private")
    return at


def dated(files: Files) -> Files:
    """The log a year earlier; the manifest's name of the run is made to fit where it is signed."""
    return log(a_year_earlier)(files)


CASES = _cases()
