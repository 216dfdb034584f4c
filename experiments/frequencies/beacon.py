"""The documents of a Beacon v2 (GA4GH, https://github.com/ga4gh-beacon/beacon-v2) over a table of allele frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedml.experiments.frequencies.assemblies import sequence_id
from fedml.experiments.frequencies.query import Asked, Query, kind_of, trimmed
from fedml.experiments.frequencies.table import Row, Table

API = "v2.0.0"
ENTRY = "genomicVariant"
_SCHEMAS = "https://raw.githubusercontent.com/ga4gh-beacon/beacon-v2/main"
_DEFAULT = {"entityType": ENTRY, "schema": "ga4gh-beacon-variant-v2.0.0"}


@dataclass(frozen=True)
class About:
    """Who serves what: the table, the URL at which it is reached, the network's name and page, the most detail of an answer."""

    table: Table
    url: str
    organization: str
    page: str
    granularity: str
    version: str

    @property
    def id(self) -> str:
        """The Beacon's id."""
        return f"fedml.frequencies.{self.table.about['study']}"


def _informational(about: About) -> dict[str, Any]:
    return {"beaconId": about.id, "apiVersion": API, "returnedSchemas": [_DEFAULT]}


def info(about: About) -> dict[str, Any]:
    """``/`` and ``/info``."""
    table = about.table.about
    response = {
        "id": about.id, "name": f"Allele frequencies of {table['study']}", "apiVersion": API, "environment": "prod",
        "organization": {"id": about.organization, "name": about.organization, "welcomeUrl": about.page},
        "description": table["question"] or "Allele frequencies over the persons of several sites; no data of single persons.",
        "version": about.version, "welcomeUrl": about.page,
        "info": {"assembly": about.table.build, "sites": table["sites"], "studySha256": table["study_sha256"]},
    }  # fmt: skip
    return {"meta": _informational(about), "response": response}


def service_info(about: About) -> dict[str, Any]:
    """``/service-info``: GA4GH Service Info 1.0.0."""
    return {
        "id": about.id, "name": f"Allele frequencies of {about.table.about['study']}",
        "type": {"group": "org.ga4gh", "artifact": "beacon", "version": API.removeprefix("v")},
        "organization": {"name": about.organization, "url": about.page}, "version": about.version, "environment": "prod",
    }  # fmt: skip


def _entry_types() -> dict[str, Any]:
    return {
        ENTRY: {
            "id": ENTRY, "name": "Genomic Variants", "description": "Variants with their allele frequencies in populations.",
            "ontologyTermForThisType": {"id": "ENSGLOSSARY:0000092", "label": "Variant"},
            "partOfSpecification": f"Beacon {API}",
            "defaultSchema": {
                "id": _DEFAULT["schema"], "name": "Default schema for a genomic variation",
                "referenceToSchemaDefinition": f"{_SCHEMAS}/models/json/beacon-v2-default-model/genomicVariations/defaultSchema.json",
                "schemaVersion": API,
            },
            "additionallySupportedSchemas": [], "nonFilteredQueriesAllowed": False,
        }
    }  # fmt: skip


def configuration(about: About) -> dict[str, Any]:
    """``/configuration``."""
    response = {
        "$schema": f"{_SCHEMAS}/framework/json/configuration/beaconConfigurationSchema.json",
        "maturityAttributes": {"productionStatus": "PROD"},
        "securityAttributes": {"defaultGranularity": "boolean", "securityLevels": ["PUBLIC"]},
        "entryTypes": _entry_types(),
    }  # fmt: skip
    return {"meta": _informational(about), "response": response}


def entry_types(about: About) -> dict[str, Any]:
    """``/entry_types``."""
    return {"meta": _informational(about), "response": {"entryTypes": _entry_types()}}


def filtering_terms(about: About) -> dict[str, Any]:
    """``/filtering_terms``: there are none."""
    return {"meta": _informational(about), "response": {"resources": [], "filteringTerms": []}}


def beacon_map(about: About) -> dict[str, Any]:
    """``/map``."""
    endpoints = {
        "entryType": ENTRY, "rootUrl": f"{about.url}/g_variants", "singleEntryUrl": f"{about.url}/g_variants/{{id}}",
        "openAPIEndpointsDefinition": f"{_SCHEMAS}/models/json/beacon-v2-default-model/genomicVariations/endpoints.json",
    }  # fmt: skip
    response = {"$schema": f"{_SCHEMAS}/framework/json/configuration/beaconMapSchema.json", "endpointSets": {ENTRY: endpoints}}
    return {"meta": _informational(about), "response": response}


def _meta(about: About, asked: Asked, given: dict[str, Any]) -> dict[str, Any]:
    received: dict[str, Any] = {
        "apiVersion": API, "requestedSchemas": asked.schemas, "pagination": {"skip": asked.skip, "limit": asked.limit},
        "requestedGranularity": asked.granularity, "includeResultsetResponses": asked.include, "testMode": asked.test,
    }  # fmt: skip
    if given:
        received["requestParameters"] = {"g_variant": given}
    return {**_informational(about), "returnedGranularity": asked.granularity, "testMode": asked.test, "receivedRequestSummary": received}


def error(about: About, code: int, message: str) -> dict[str, Any]:
    """A ``beaconErrorResponse``."""
    return {"meta": _meta(about, Asked(), {}), "error": {"errorCode": code, "errorMessage": message}}


def answer(about: About, asked: Asked, query: Query | None, total: int, page: Sequence[Row]) -> dict[str, Any]:
    """The answer to a query: whether a variant of the table matches, how many do, and the page's records, as far as they are asked for."""
    given: dict[str, Any] = {}
    if query is not None:
        given = query.given | {"start": list(query.start)} | ({"end": list(query.end)} if query.end else {})
    summary: dict[str, Any] = {"exists": total > 0}
    if asked.granularity != "boolean":
        summary["numTotalResults"] = total
    out: dict[str, Any] = {"meta": _meta(about, asked, given), "responseSummary": summary}
    if asked.granularity == "record":
        shown = {"ALL": True, "NONE": False, "HIT": total > 0, "MISS": total == 0}[asked.include]
        results = [record(about, row) for row in page]
        dataset = {
            "id": about.table.about["study"], "setType": "dataset", "exists": total > 0, "resultsCount": total, "results": results,
        }  # fmt: skip
        out["response"] = {"resultSets": [dataset] if shown else []}
    return out


def variant_id(row: Row) -> str:
    """The table's own name of a variant."""
    return f"{row.chromosome}-{row.position}-{row.ref}-{row.alt}"


def record(about: About, row: Row) -> dict[str, Any]:
    """A variant in the default schema of genomic variations, with its frequencies."""
    table, start = about.table.about, row.position - 1
    _, ref, alt = trimmed(start, row.ref, row.alt)
    place = {"start": start, "end": start + len(row.ref)}
    interval = {"type": "SequenceInterval", **{name: {"type": "Number", "value": value} for name, value in place.items()}}
    frequencies = [
        {
            "population": group.population, "alleleFrequency": group.af, "alleleCount": group.ac, "alleleNumber": group.an,
            **({} if group.homozygotes is None else {"genotypeHomozygous": group.homozygotes}), "genotypeHemizygous": group.hemizygotes,
        }
        for group in row.groups
    ]  # fmt: skip
    out: dict[str, Any] = {
        "variantInternalId": variant_id(row),
        "variation": {
            "variantType": kind_of(ref, alt), "referenceBases": row.ref, "alternateBases": row.alt,
            "location": {
                "type": "SequenceLocation", "sequence_id": sequence_id(about.table.build, row.chromosome), "interval": interval,
            },
        },
        "frequencyInPopulations": [
            {
                "source": table["study"], "sourceReference": about.page, "version": f"study {table['study_sha256']}",
                "frequencies": frequencies,
            }
        ],
    }  # fmt: skip
    ids = [name for name in row.rsid.split(";") if name.startswith("rs") and name[2:].isdigit()]
    if ids:
        out["identifiers"] = {
            "variantAlternativeIds": [{"id": f"dbSNP:{name}", "reference": f"https://www.ncbi.nlm.nih.gov/snp/{name}"} for name in ids]
        }
    return out
