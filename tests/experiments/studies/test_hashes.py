"""The identity of every study that comes with the project: sites approve a study by this hash, so it must not change by itself."""

from __future__ import annotations

import hashlib
import json

import pytest

from fedml.study.read import read_study
from fedml.study.study import parse_study
from fedml.tracking.names import chosen
from tests.command import STUDIES

HASHES = {
    "adrenal": "9652db897bcc9d2ff30bc694f5456513396d139292457e7910b61b4fc9aa1b26",
    "ancestry": "68db1ffeacae3f225c546a1cc82e1bee95e8acaf0c006dcd7c503fd4915edace",
    "brca": "33e09a9aabe54eab481461f82216021fbea5b4a5c09ad9d641b6072af4e481d7",
    "demo": "dd2b4ffa9fd7aae282fab0aac333e7a79580fc95af2fc3e3f52a1cf0754c10f7",
    "demo_survival": "a040efb10b2e8c58db05816abf331375d4dd13e2b07598bdaea5cf6ae2055fcb",
    "genes": "aafe5f431443e5ae00879b0cdefe41db68c3c5fa2965cb4f3fda7235339a531f",
    "heart": "9e7c671cbe84eb5072cf81ecd004ff44de36583cf664caaf684852be9b4ebce2",
    "heart_glm": "76a92a21aa5ef94ff63530780927191a01295116cff530a55668500b973ca3df",
    "heart_private": "16c2a5acc925cd93e3dc68373e14a20327c33b1d34c28d3031442d398ba264c9",
    "height": "15a6062bdd8b6c2ffccbc52abe722992e8de80810374c0785add0b3552cd71bd",
    "lesions": "3e88f8b4f7f6ef66fd5a4fcc9a596e9e8f2641ce9c9548eccc9e4be057d4e648",
    "lung": "25a114eb7cc9fa66083ea8abe163aa765aa0f645c31e6ad1d478b425951782ef",
    "lung_egfr": "dc3a473a946a7ff4304ca343d41ba9bfb89190dc49e8b2baf0f169965eed6c96",
    "lung_survival": "1b4e31d7f753884cfb27d8f4c880a16e84b4ab1a1ec3691b6e5c15a753dbec46",
    "pneumonia": "348c1a68fcbc90e1bc0f5e08a97909ba9a1f6da371170816d9c350ec321a9275",
    "pneumonia_private": "e53e0e77648634904cfcc8eaff74d3a54f6e29709e2f442d48c087743496f984",
    "radiomics": "5e2a88db08dd635e2a7eedd23f036d1a5d6a6d4631799c51563d53b9d5f949ec",
    "slides": "3492b0abc3f8a675c555d8d693078d055a12cddfe78768343835037de8b030ae",
    "tall": "33b0c117eb8ea5e3f61a28f36603435a4485d8c7da50915e5be8349cfff8d411",
    "wbc": "4803d10e05aea4fd7e958ad55d63db5f71e5f42642409c716c949d756cffad1a",
}


def test_every_study_has_its_hash_here() -> None:
    assert {path.stem for path in STUDIES.glob("*.toml")} == set(HASHES)


@pytest.mark.parametrize("name", HASHES)
def test_the_hash_of_a_study_is_that_of_its_canonical_json_and_does_not_change(name: str) -> None:
    study = read_study(STUDIES / f"{name}.toml")
    canonical = json.dumps(json.loads(study.canonical), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert hashlib.sha256(canonical.encode("ascii")).hexdigest() == HASHES[name]
    assert study.sha256 == HASHES[name] == parse_study(study.canonical).sha256


@pytest.mark.parametrize("name", HASHES)
def test_each_key_that_a_study_changes_is_a_parameter_of_its_runs(name: str) -> None:
    study = read_study(STUDIES / f"{name}.toml")
    assert ("training.local_steps" in chosen(study)) == (study.training.local_steps > 0)
