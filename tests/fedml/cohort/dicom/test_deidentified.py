"""De-identification is checked: what is planted anywhere is found, the real public files hold nothing that refuses them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from fedml.cohort.dicom.deidentified import ACTIONS, Finding, Severity, findings, require_de_identified
from fedml.cohort.images.reasons import ItemError, Unusable
from fedml.errors import InputError
from tests.conftest import public_data
from tests.dicom_files import item

NAME, NUMBER = "Schäfer^Ännchen", "HN-4711-0815"
REAL = ["UCSF-BR-06/image_dce_ser", "UCSF-BR-06/mask", "CMB-CRC-SCAN_001/adc_image"]
Plant = Callable[[Dataset, str], None]


def real(name: str) -> list[Path]:
    return sorted((public_data("dicom_mr") / name).glob("*.dcm"))


def refusing(found: list[Finding]) -> set[str]:
    return {f.where for f in found if f.severity is Severity.REFUSE}


def reviewed(found: list[Finding]) -> set[str]:
    return {f.where for f in found if f.severity is Severity.REVIEW}


@pytest.mark.parametrize("name", REAL)
def test_real_public_files_hold_nothing_that_refuses_them(name: str) -> None:
    """What remains to be reviewed is there by the trial's own choice; the set is what the files hold today."""
    files = real(name)
    left: set[str] = set()
    for path in files:
        found = findings(path, identifiers=[NAME, NUMBER])
        assert not refusing(found)
        left |= {f.where for f in found if not f.where.startswith("(0117,")}
    characteristics = {"PatientAge", "PatientSex", "PatientWeight", "PatientID", "StudyDescription", "SeriesDescription"}
    trial = {"ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription"}
    if name.startswith("CMB"):
        assert left == characteristics | trial | {"PatientSize", "ProtocolName", "RequestedProcedureDescription"}
    else:
        site = {f"ClinicalTrial{k}" for k in ("SponsorName", "ProtocolID", "ProtocolName", "SiteID", "SiteName", "SubjectID")}
        assert left == characteristics | trial | site | {"AccessionNumber", "StudyID", "DerivationDescription", "PatientIdentityRemoved"}


def put(keyword: str) -> Plant:
    return lambda dataset, value: setattr(dataset, keyword, value)


def nested(*way: str) -> Plant:
    """The value at the end of a way through sequences."""

    def plant(dataset: Dataset, value: str) -> None:
        for keyword in way[:-1]:
            if keyword not in dataset:
                setattr(dataset, keyword, Items([Dataset()]))
            dataset = dataset[keyword].value[-1]
        setattr(dataset, way[-1], value)

    return plant


def private(vr: str, *, within: str = "", group: int = 0x0099, owner: str = "SOMEBODY'S 1.0") -> Plant:
    def plant(dataset: Dataset, value: str) -> None:
        if within:
            setattr(dataset, within, Items([Dataset()]))
            dataset = dataset[within].value[0]
        data: object = value
        if vr in ("OB", "UN"):
            data = b"\x01\x00\x07" + value.encode("utf-8") + b"\x00\x02"
        elif vr == "OW":
            data = value.encode("utf-16-le")
        elif vr == "SQ":
            data = Items([item(SeriesDescription=value)])
        dataset.private_block(group, owner, create=True).add_new(0x10, vr, data)

    return plant


def private_owner(dataset: Dataset, value: str) -> None:
    dataset.private_block(0x0099, value, create=True).add_new(0x10, "US", 1)


def preamble(dataset: Dataset, value: str) -> None:
    dataset.preamble = value.encode("ascii", "replace").ljust(128, b"\0") if value.isascii() else b"Schafer Annchen".ljust(128, b"\0")


def meta(keyword: str) -> Plant:
    return lambda dataset, value: setattr(dataset.file_meta, keyword, value)


def meta_private(dataset: Dataset, value: str) -> None:
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
    dataset.file_meta.PrivateInformation = value.encode("utf-8").ljust(40, b"\0")


def overlay(keyword: int, vr: str) -> Plant:
    return lambda dataset, value: dataset.add_new((0x6002, keyword), vr, value)


def unknown(dataset: Dataset, value: str) -> None:
    dataset.add_new((0x0018, 0xFFF0), "UN", value.encode("utf-8"))


def after_pixels(dataset: Dataset, value: str) -> None:
    dataset.add_new((0xFFFC, 0xFFFC), "OB", value.encode("utf-8").ljust(40, b"\0"))


PLAIN = [
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientAddress",
    "PatientTelephoneNumbers", "MedicalRecordLocator", "PatientComments", "AdditionalPatientHistory", "Occupation",
    "ReferringPhysicianName",
    "PerformingPhysicianName", "OperatorsName", "NameOfPhysiciansReadingStudy", "RequestingPhysician", "InstitutionName",
    "InstitutionAddress", "StationName", "StudyDescription", "SeriesDescription", "ImageComments", "AccessionNumber", "StudyID",
    "AdmissionID", "DeviceSerialNumber", "ProtocolName", "RequestedProcedureDescription", "DerivationDescription", "StudyComments",
    "SoftwareVersions", "ReceiveCoilName", "ContentDescription", "VisitComments",
]  # fmt: skip
PLACES: dict[str, Plant] = {
    **{keyword: put(keyword) for keyword in PLAIN},
    "PatientName=ideographic": lambda d, v: setattr(d, "PatientName", f"06^Pilot=={v}"),
    "PatientName suffix": lambda d, v: setattr(d, "PatientName", f"06^Pilot^^^{v.split('^')[0]} {v.split('^')[-1]}"),
    "1 deep": nested("RequestAttributesSequence", "ScheduledProcedureStepDescription"),
    "1 deep, an id": nested("OtherPatientIDsSequence", "PatientID"),
    "2 deep": nested("ReferencedPatientSequence", "ReferencedStudySequence", "StudyDescription"),
    "3 deep": nested("ContentSequence", "ContentSequence", "ContentSequence", "TextValue"),
    "3 deep, a name": nested("ContentSequence", "ContentSequence", "ContentSequence", "PersonName"),
    "in a code": nested("ProcedureCodeSequence", "CodeMeaning"),
    "in a real sequence": nested("SourceImageSequence", "ImageComments"),
    "private LO": private("LO"),
    "private UT": private("UT"),
    "private PN": private("PN"),
    "private UN": private("UN"),
    "private OB": private("OB"),
    "private OW, two bytes a letter": private("OW"),
    "private SQ": private("SQ"),
    "private in a sequence": private("LO", within="RequestAttributesSequence"),
    "private after the pixels": private("LO", group=0x7FE1),
    "private of the tool": private("LO", owner="CTP"),
    "private creator": private_owner,
    "overlay label": overlay(0x1500, "LO"),
    "overlay comments": overlay(0x4000, "LT"),
    "unknown attribute": unknown,
    "after the pixels": after_pixels,
    "preamble": preamble,
    "meta: application": meta("SourceApplicationEntityTitle"),
    "meta: private": meta_private,
}  # fmt: skip


def spellings(identifier: str) -> st.SearchStrategy[str]:
    words = identifier.replace("^", " ").split()
    return st.sampled_from(
        [identifier, identifier.upper(), identifier.lower(), " ".join(words), " ".join(reversed(words)), identifier.replace("-", "")]
        + (["Schafer^Annchen", "Ännchen, Schäfer"] if identifier == NAME else ["x4711/0815".replace("x", "hn")])
    )


@given(place=st.sampled_from(sorted(PLACES)), planted=st.sampled_from([NAME, NUMBER]).flatmap(lambda i: spellings(i).map(lambda s: (i, s))),
       file=st.integers(0, 2))  # fmt: skip
@settings(max_examples=70)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_an_identifier_is_found_wherever_it_is_planted(
    tmp_path_factory: pytest.TempPathFactory, place: str, planted: tuple[str, str], file: int
) -> None:
    dataset = pydicom.dcmread(real(REAL[file])[0])
    dataset.SpecificCharacterSet = "ISO_IR 192"
    PLACES[place](dataset, planted[1])
    path = tmp_path_factory.mktemp("planted") / "image.dcm"
    dataset.save_as(path)
    found = findings(path, identifiers=["somebody else", planted[0]])
    assert len(refusing(found)) >= 1, place
    assert all(w not in f.why and w not in f.where for f in found for w in ("Schäfer", "4711", "0815"))
    with pytest.raises(ItemError) as caught:
        require_de_identified(path, identifiers=[planted[0]])
    assert caught.value.reason is Unusable.NOT_DE_IDENTIFIED


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_each_place_by_itself_is_found_and_there_are_fifty(tmp_path: Path) -> None:
    missed = []
    for place, plant in PLACES.items():
        dataset = pydicom.dcmread(real(REAL[0])[0])
        dataset.SpecificCharacterSet = "ISO_IR 192"
        plant(dataset, NAME if "creator" not in place else "Schafer Annchen")
        dataset.save_as(tmp_path / "image.dcm")
        if len(refusing(findings(tmp_path / "image.dcm", identifiers=[NAME]))) != 1:
            missed.append(place)
    assert missed == []
    assert len(PLACES) + 1 >= 50  # and the file's name


def test_a_file_name_is_looked_at(tmp_path: Path) -> None:
    source = real(REAL[2])[0]
    folder = tmp_path / "schaefer" / "SCHAFER_ANNCHEN_0001"
    folder.mkdir(parents=True)
    (folder / "1.dcm").write_bytes(source.read_bytes())
    assert refusing(findings(folder / "1.dcm", identifiers=[NAME])) == {"file name"}
    assert refusing(findings(pydicom.dcmread(source), identifiers=[NAME], path=folder / "1.dcm")) == {"file name"}
    assert not refusing(findings(folder / "1.dcm", identifiers=["Ann Chafer"]))


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "Doe^Jane"), ("PatientID", "Jane Doe"), ("PatientAge", "093Y"), ("PatientAddress", "1 Long Road"),
        ("OtherPatientIDs", "12345"), ("PatientTelephoneNumbers", "0441 1234"), ("ReferringPhysicianName", "House^Gregory"),
        ("OperatorsName", "Roe^Richard"), ("AdmissionID", "A77"), ("PatientIdentityRemoved", "NO"), ("BurnedInAnnotation", "YES"),
    ],
)  # fmt: skip
def test_a_person_is_recognised_without_being_searched_for(keyword: str, value: str) -> None:
    dataset = pydicom.dcmread(real(REAL[0])[0])
    setattr(dataset, keyword, value)
    assert refusing(findings(dataset)) == {keyword}


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("InstitutionName", "St. Elsewhere"), ("DeviceSerialNumber", "SN1"), ("ImageComments", "seen by"), ("StationName", "MR2"),
     ("RecognizableVisualFeatures", "YES"), ("OperatorsName", "op7")],
)  # fmt: skip
def test_what_may_identify_is_left_to_a_person(keyword: str, value: str) -> None:
    dataset = pydicom.dcmread(real(REAL[0])[0])
    setattr(dataset, keyword, value)
    assert keyword in reviewed(findings(dataset))
    assert not refusing(findings(dataset))


def test_dates_have_to_be_said_to_be_moved() -> None:
    dataset = pydicom.dcmread(real(REAL[0])[0])
    del dataset.LongitudinalTemporalInformationModified
    assert refusing(findings(dataset)) == {"StudyDate", "SeriesDate", "ContentDate"}
    dataset.StudyDate, dataset.SeriesDate, dataset.ContentDate = "19910101", "", "19910101"  # a year alone
    assert not refusing(findings(dataset))
    dataset.PatientBirthDate = "19200314"
    assert refusing(findings(dataset)) == {"PatientBirthDate"}
    dataset.DeidentificationMethodCodeSequence = Items(
        [item(CodeValue="113107", CodingSchemeDesignator="DCM", CodeMeaning="Modified dates")]
    )
    assert "PatientBirthDate" in reviewed(findings(dataset))
    assert not refusing(findings(dataset))


def test_the_pseudonym_is_held_against_the_file() -> None:
    dataset = pydicom.dcmread(real(REAL[2])[0])
    own = str(dataset.PatientID)
    assert "PatientID" not in {f.where for f in findings(dataset, pseudonym=own)}
    assert refusing(findings(dataset, pseudonym="site-a-0001")) == {"PatientID"}
    dataset.PatientID, dataset.PatientName = "ANONYMOUS", "Anonymous^^^"
    assert not {f.where for f in findings(dataset, pseudonym="site-a-0001")} & {"PatientID", "PatientName"}
    dataset.PatientID = "8f3a1c"
    dataset.PatientName = "8f3a1c"
    assert not {f.where for f in findings(dataset, pseudonym="8f3a1c")} & {"PatientID", "PatientName"}


def test_private_text_is_reviewed_unless_its_owner_is_known_to_be_safe() -> None:
    dataset = pydicom.dcmread(real(REAL[2])[0])
    private("LO")(dataset, "some text")
    assert "(0099,1010)" in reviewed(findings(dataset))
    assert "(0099,1010)" not in {f.where for f in findings(dataset, safe_private=["SOMEBODY'S 1.0"])}
    assert "(0099,1010)" in refusing(findings(dataset, safe_private=["SOMEBODY'S 1.0"], identifiers=["some text"]))


def test_overlays_documents_and_cameras_are_flagged() -> None:
    dataset = pydicom.dcmread(real(REAL[2])[0])
    dataset.add_new((0x6000, 0x3000), "OW", b"\x01\x80" * 8)
    dataset.EncapsulatedDocument = b"\x01\x02\x03\x04"
    dataset.Modality = "US"
    found = findings(dataset)
    assert {"OverlayData", "BurnedInAnnotation"} <= reviewed(found)
    assert refusing(found) == {"EncapsulatedDocument"}


def test_what_cannot_be_looked_at_is_refused(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(real(REAL[2])[0])
    nested(*["ContentSequence"] * 40, "TextValue")(dataset, "deep")
    assert any(f.why == "is nested too deeply to be checked" for f in findings(dataset) if f.severity is Severity.REFUSE)
    head = real(REAL[2])[0].read_bytes()
    head = head[: head.index(struct.pack("<HH", 0x7FE0, 0x0010))]
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 250_000
    (tmp_path / "many").write_bytes(head + struct.pack("<HH2sHI", 0x7FE1, 0x1010, b"SQ", 0, len(items)) + items)
    assert any(f.why == "has too many items to be checked" for f in findings(tmp_path / "many"))
    (tmp_path / "text").write_text("nothing")
    with pytest.raises(ItemError):
        findings(tmp_path / "text")
    with pytest.raises(InputError):
        findings(dataset, identifiers=["x"])


def test_the_table_holds_the_profile() -> None:
    """Entries of PS3.15 table E.1-1, one of each action; UIDs are exempt."""
    expected = {
        0x00100010: "Z", 0x00100020: "Z/D", 0x00100030: "Z", 0x00080050: "Z", 0x00080080: "X/Z/D", 0x00081070: "X/Z/D", 0x00104000: "X",
        0x00080021: "X/D", 0x0040A123: "D", 0x00080022: "X/Z", 0x00181000: "X/Z/D", 0x00204000: "X", 0x00080020: "Z", 0x00080023: "Z/D",
    }  # fmt: skip
    assert {tag: ACTIONS.get(tag) for tag in expected} == expected
    assert not {0x0020000D, 0x0020000E, 0x00080018, 0x00200052} & set(ACTIONS)
    assert len(ACTIONS) > 550
