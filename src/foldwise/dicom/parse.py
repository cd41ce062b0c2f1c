"""A DICOM file's bytes -> its header elements, typed, and where its pixel data lies.

`scan` is a small reader for well-formed files that touches only what it keeps; whatever looks unusual to
it is left to pydicom, which is permissive. Both give the same `Parsed`, and values are typed in one place.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from foldwise import UserError


class DicomError(UserError):
    """A DICOM file that cannot be read, or not safely: one line with the true reason."""


DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
IMPLICIT = "1.2.840.10008.1.2"
MAX_INFLATED = 1 << 30  # bytes; a deflated data set that grows past this is a bomb

# Float, Double Float and integer Pixel Data (PS3.3 C.7.6.24, C.7.6.25, C.7.6.3): the data set's last elements
PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
UNDEFINED = 0xFFFFFFFF

# Sequences that decide how pixels look: modality LUT, VOI LUT, shared and per-frame functional groups
PIXEL_SEQUENCES = frozenset({0x00283000, 0x00283010, 0x52009229, 0x52009230})

# PS3.5 7.1.2: these VRs have two reserved bytes and a 32-bit length
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"}
    | {b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)
_NUMBERS = {"US": "u2", "SS": "i2", "UL": "u4", "SL": "i4", "FL": "f4", "FD": "f8", "UV": "u8", "SV": "i8", "AT": "u2"}
_DELIMITERS: Any = {"\\", "\r", "\n", "\t", "\f"}  # they reset the character set (PS3.5 6.1.2.5.3)
_LONG_TEXT = frozenset({"LT", "ST", "UT"})  # one value, backslashes included (PS3.5 6.2)


@dataclass
class Parsed:
    """The elements of one data set, and its pixel data where there is some."""

    elements: dict[int, tuple[str, Any]]  # tag -> (VR, bytes, or a list of Parsed for a sequence)
    syntax: str  # transfer syntax UID; "" where the file names none
    little: bool
    pixel_tag: int = 0
    pixel_vr: str = ""
    pixels: memoryview = field(default_factory=lambda: memoryview(b""))
    encapsulated: bool = False

    def get(self, keyword: str, default: Any = None) -> Any:
        """The typed value of an element by keyword; `default` where it is absent or empty."""
        found = self.elements.get(_tag(keyword))
        if found is None:
            return default
        value = typed(found, _tag(keyword), self)
        return default if value is None else value

    def first(self, keyword: str, default: Any = None) -> Any:
        """`get`, but the first of several values."""
        value = self.get(keyword, default)
        return value[0] if isinstance(value, list) and value else value

    def number(self, keyword: str, default: Any = None) -> Any:
        """`first`, where it is a finite number; `default` where it is not."""
        value = self.first(keyword)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < HUGE:
            return value
        return default

    def items(self, keyword: str) -> list[Parsed]:
        """The items of a sequence; [] where it is absent or was skipped."""
        found = self.elements.get(_tag(keyword))
        return found[1] if found and isinstance(found[1], list) else []


HUGE = 1e300  # an IS of 400 digits is no number either


@lru_cache(maxsize=4096)
def is_keyword(name: str) -> bool:
    """True for the keyword of a header field (PS3.6), such as PatientID."""
    from pydicom.datadict import tag_for_keyword

    return tag_for_keyword(name) is not None


def is_sequence(keyword: str) -> bool:
    """True for the keyword of a field that holds items."""
    return dictionary_vr(_tag(keyword)) == "SQ"


@lru_cache(maxsize=4096)
def _tag(keyword: str) -> int:
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return int(tag)


def parse(data: bytes | memoryview) -> Parsed:
    """The elements and the pixel data of a whole file; DicomError where it is not DICOM."""
    view = memoryview(data)
    return scan(view) or parse_with_pydicom(view)


def scan(view: memoryview, header_only: bool = False) -> Parsed | None:
    """The elements of a well-formed file with a preamble; None where pydicom should look instead.

    With `header_only` the content of sequences does not matter, and the file may end early.
    """
    if len(view) < 140 or bytes(view[128:132]) != b"DICM":
        return None
    try:
        meta, position = _scan_meta(view)
        syntax = meta.get(0x00020010, ("UI", b""))[1].decode("ascii").strip(" \0")
        if syntax == DEFLATED:
            limit = 1 << 16 if header_only else MAX_INFLATED
            view, position = memoryview(inflate(view[position:], limit, cut=header_only)), 0
        elif not syntax.startswith("1.2.840.10008.1.2"):
            return None
        little, implicit = syntax != BIG_ENDIAN, syntax == IMPLICIT
        parsed = Parsed(meta, syntax, little)
        walk = _implicit(view, position) if implicit else _explicit(view, position, "<" if little else ">")
        return parsed if _collect(parsed, walk, view, header_only) else None
    except (struct.error, UnicodeDecodeError, zlib.error):
        return None


def _scan_meta(view: memoryview) -> tuple[dict[int, tuple[str, Any]], int]:
    """Group 0002, always explicit VR little endian (PS3.10 7.1), and where it ends."""
    meta: dict[int, tuple[str, Any]] = {}
    walk, position = _explicit(view, 132, "<"), 132
    while bytes(view[position : position + 2]) == b"\x02\x00":
        tag, vr, start, length = next(walk)
        if start + length > len(view):
            raise struct.error("group 0002 runs past the end of the file")
        meta[tag] = (vr, bytes(view[start : start + length]))
        position = start + length
    return meta, position


def _collect(parsed: Parsed, walk: Iterator[tuple[int, str, int, int]], view: memoryview, header_only: bool) -> bool:
    """Fill `parsed` from a walk over elements; False where the file is not what it says."""
    previous = 0
    for tag, vr, start, length in walk:
        if tag <= previous:  # PS3.5 7.1: ascending; anything else is a reader that lost its way
            return False
        previous = tag
        if tag in PIXEL_TAGS:
            parsed.pixel_tag, parsed.pixel_vr = tag, vr
            parsed.encapsulated = length == UNDEFINED
            parsed.pixels = view[start:] if parsed.encapsulated else view[start : start + length]
            return True
        if length == UNDEFINED or vr == "SQ" or tag in PIXEL_SEQUENCES:
            if tag in PIXEL_SEQUENCES and length and not header_only:
                return False
            continue
        if start + length > len(view):
            return False
        parsed.elements[tag] = (vr, view[start : start + length])
    return previous > 0


def _explicit(view: memoryview, position: int, order: str) -> Iterator[tuple[int, str, int, int]]:
    """(tag, VR, start of the value, its length) of each element in explicit VR; sequences are stepped over."""
    end = len(view)
    short, long = struct.Struct(order + "HH2sH"), struct.Struct(order + "I")
    while position + 8 <= end:
        group, element, vr, length = short.unpack_from(view, position)
        position += 8
        if vr in _LONG_VRS:
            length = long.unpack_from(view, position)[0]
            position += 4
        elif vr not in _SHORT_VRS:
            raise struct.error("no VR here")
        tag = group << 16 | element
        yield tag, vr.decode(), position, length
        if length == UNDEFINED:
            if vr == b"UN":  # PS3.5 6.2.2 note 4: implicit VR inside; rare enough for pydicom
                raise struct.error("UN of undefined length")
            position = _skip_sequence(view, position, order, explicit=True)
        else:
            position += length


def _implicit(view: memoryview, position: int) -> Iterator[tuple[int, str, int, int]]:
    """The same for implicit VR little endian; the VR comes later, from the dictionary."""
    end = len(view)
    short = struct.Struct("<HHI")
    while position + 8 <= end:
        group, element, length = short.unpack_from(view, position)
        position += 8
        yield group << 16 | element, "", position, length
        position = _skip_sequence(view, position, "<", False) if length == UNDEFINED else position + length


def _skip_sequence(view: memoryview, position: int, order: str, explicit: bool) -> int:
    """Where a sequence of undefined length ends (PS3.5 7.5.2)."""
    item = struct.Struct(order + "HHI")
    while True:
        group, element, length = item.unpack_from(view, position)
        position += 8
        if (group, element) == (0xFFFE, 0xE0DD):
            return position
        if (group, element) != (0xFFFE, 0xE000):
            raise struct.error("not an item")
        position = _skip_item(view, position, order, explicit) if length == UNDEFINED else position + length


def _skip_item(view: memoryview, position: int, order: str, explicit: bool) -> int:
    """Where an item of undefined length ends: its delimiter has no VR, so it is looked for first."""
    item = struct.Struct(order + "HHI")
    while True:
        group, element, length = item.unpack_from(view, position)
        if (group, element) == (0xFFFE, 0xE00D):
            return position + 8
        walk = _explicit(view, position, order) if explicit else _implicit(view, position)
        _, _, start, length = next(walk)
        position = _skip_sequence(view, start, order, explicit) if length == UNDEFINED else start + length


def inflate(data: bytes | memoryview, limit: int, cut: bool = False) -> bytes:
    """Raw deflate (PS3.5 A.5); where it grows past `limit` bytes cut there, or DicomError."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    out = stream.decompress(data, limit)
    if not cut and stream.unconsumed_tail and not stream.eof:
        raise DicomError(f"deflated data grows past {limit >> 20} MiB")
    return out


def parse_with_pydicom(view: memoryview, header_only: bool = False) -> Parsed:
    """The same by pydicom: no preamble, wrong transfer syntax, odd VRs, and the content of sequences."""
    from pydicom import dcmread
    from pydicom.uid import UID

    _refuse_what_is_not_dicom(view)
    _refuse_bombs(view)
    ds = dcmread(io.BytesIO(view), force=True, stop_before_pixels=header_only)
    syntax = str(getattr(ds.file_meta, "TransferSyntaxUID", "") or "")
    _, little = ds.original_encoding
    parsed = _from_dataset(ds, UID(syntax), little is not False)
    if not any(tag >> 16 >= 8 for tag in parsed.elements):
        raise DicomError("not a DICOM file, or no element of it can be read")
    return parsed


def _refuse_what_is_not_dicom(view: memoryview) -> None:
    """Without the DICM mark, the first element must be one of a group that data sets begin with."""
    if bytes(view[128:132]) == b"DICM":
        return
    if len(view) < 16:
        raise DicomError("not a DICOM file: too short")
    groups = {struct.unpack_from("<H", view, 0)[0], struct.unpack_from(">H", view, 0)[0]}
    if not groups & {0x0002, 0x0008}:
        raise DicomError("not a DICOM file: no DICM mark and no data set at its start")


def _refuse_bombs(view: memoryview) -> None:
    """pydicom inflates a deflated data set without a limit."""
    if DEFLATED.encode() not in bytes(view[:8192]):
        return
    try:
        _, position = _scan_meta(view)
    except (struct.error, StopIteration):
        raise DicomError("deflated data behind a damaged group 0002") from None
    inflate(view[position:], MAX_INFLATED)


def _from_dataset(ds: Any, syntax: str, little: bool) -> Parsed:
    parsed = Parsed({}, syntax, little)
    meta = getattr(ds, "file_meta", None) or ()
    for element in [*(meta[e.tag] for e in meta), *(ds.get_item(tag) for tag in ds.keys())]:  # noqa: SIM118
        tag, vr = int(element.tag), element.VR or ""
        if tag in PIXEL_TAGS:
            value = element.value or b""
            parsed.pixel_tag, parsed.pixel_vr, parsed.pixels = tag, vr, memoryview(value)
            parsed.encapsulated = getattr(element, "length", 0) == UNDEFINED
        elif vr == "SQ" or _is_sequence(tag, vr, element):
            sequence = ds[element.tag].value
            parsed.elements[tag] = ("SQ", [_from_dataset(item, syntax, little) for item in sequence or ()])
        else:
            parsed.elements[tag] = (vr, element.value)
    return parsed


def _is_sequence(tag: int, vr: str, element: Any) -> bool:
    return vr in ("", "UN") and dictionary_vr(tag) == "SQ"


@lru_cache(maxsize=8192)
def dictionary_vr(tag: int) -> str:
    """The VR of a tag by the data dictionary (PS3.6); 'UN' for what it does not know."""
    from pydicom.datadict import dictionary_VR

    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


# ---------------------------------------------------------------------------------------------- values


def typed(element: tuple[str, Any], tag: int, parsed: Parsed) -> Any:
    """An element's value as plain Python; None where it is empty or cannot be read as its VR.

    Numbers from IS, DS and the binary VRs; DA, TM and DT as ISO 8601 text; AS in years; several values as
    a list; bytes for OB, OW and the like; a list of `Parsed` for a sequence.
    """
    vr, raw = element
    if vr in ("", "UN"):
        vr = dictionary_vr(tag)
    if " or " in vr:  # "US or SS": by the sign of the pixels (PS3.5 A.1, PS3.6 note)
        signed = "SS" in vr and tag != 0x00280103 and parsed.first("PixelRepresentation", 0) == 1
        vr = "SS" if signed else "OW" if vr == "OB or OW" else "US"
    if raw is None or (vr == "SQ" and isinstance(raw, list)):
        return raw or None
    if not isinstance(raw, (bytes, memoryview)):
        # pydicom had read it already (file meta, character set)
        raw = "\\".join(map(str, raw)).encode() if _is_several(raw) else str(raw).encode()
    if vr in _NUMBERS:
        return _binary(raw, _NUMBERS[vr], parsed.little or tag >> 16 == 2)
    if vr[0] == "O" or vr in ("UN", "SQ"):
        return bytes(raw) or None
    return _text(bytes(raw), vr, parsed)


def _is_several(raw: Any) -> bool:
    return not isinstance(raw, str) and hasattr(raw, "__iter__")


def _binary(raw: bytes | memoryview, kind: str, little: bool) -> Any:
    size = int(kind[1])
    if len(raw) == size and kind[0] == "u":  # most of them; an array of one takes five times as long
        return int.from_bytes(raw, "little" if little else "big")
    whole = len(raw) - len(raw) % size
    values = np.frombuffer(raw[:whole], dtype=("<" if little else ">") + kind).tolist()
    return None if not values else values[0] if len(values) == 1 else values


def _text(raw: bytes, vr: str, parsed: Parsed) -> Any:
    text = _decode(raw, vr, parsed).rstrip(" \0")
    if vr in _LONG_TEXT:
        return text or None
    values = [_convert(part.strip(" \0"), vr) for part in text.split("\\")]
    return values if len(values) > 1 else values[0]


def _decode(raw: bytes, vr: str, parsed: Parsed) -> str:
    charset = parsed.elements.get(0x00080005)
    if charset is None or (raw.isascii() and b"\x1b" not in raw):
        return raw.decode("latin-1")
    from pydicom.charset import convert_encodings, decode_bytes

    names = bytes(charset[1] or b"").decode("ascii", "replace").strip(" \0").split("\\")
    try:
        return decode_bytes(raw, convert_encodings([n.strip() for n in names]), _DELIMITERS)
    except (LookupError, UnicodeError, ValueError):
        return raw.decode("latin-1")


def _convert(text: str, vr: str) -> Any:
    if not text:
        return None
    convert = _CONVERTERS.get(vr)
    return convert(text) if convert else text


def _decimal(text: str) -> float | None:
    try:
        value = float(text.replace(",", ".") if "," in text else text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _integer(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        return _decimal(text)  # "1.0" in an IS is common and harmless


def age(text: str) -> float | None:
    """'045Y' -> 45.0 years (PS3.5 6.2: AS is nnnD, nnnW, nnnM or nnnY)."""
    match = re.fullmatch(r"(\d{1,3})([DWMY]?)", text)
    if not match:
        return None
    per_year = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0, "": 1.0}[match[2]]
    return round(int(match[1]) / per_year, 4)


def _date(text: str) -> str | None:
    """'20040119', or the older '2004.01.19', -> '2004-01-19'."""
    match = re.fullmatch(r"(\d{4})[.\-]?(\d{2})[.\-]?(\d{2})", text)
    return f"{match[1]}-{match[2]}-{match[3]}" if match and "01" <= match[2] <= "12" else None


def _time(text: str) -> str | None:
    """'072731.5' -> '07:27:31.5'; parts that are not given are left out."""
    match = re.fullmatch(r"(\d{2}):?(\d{2})?:?(\d{2})?(\.\d{1,6})?", text)
    if not match or match[1] > "23":
        return None
    return ":".join(part for part in match.groups()[:3] if part) + (match[4] or "")


def _datetime(text: str) -> str | None:
    match = re.fullmatch(r"(\d{4})(\d{2})?(\d{2})?(\d[\d.]*)?([+-]\d{4})?", text)
    if not match:
        return None
    day = "-".join(part for part in match.groups()[:3] if part)
    clock = _time(match[4]) if match[4] else None
    return day + (f"T{clock}" if clock else "") + (match[5] or "")


_CONVERTERS = {"DS": _decimal, "IS": _integer, "AS": age, "DA": _date, "TM": _time, "DT": _datetime}


# ------------------------------------------------------------------------------------ metadata columns

# Who the patient and the people around them are: PS3.15 table E.1-1 (basic profile) with its options to
# retain UIDs, device and institution, longitudinal dates and patient characteristics, because those make
# or break a model (a scanner or a site that predicts the target is a leak that an audit must see).
PERSONAL = frozenset(
    """
    AccessionNumber ActualHumanPerformersSequence AdditionalPatientHistory AdmissionID
    AdmittingDiagnosesDescription Allergies AuthorObserverSequence BranchOfService CountryOfResidence
    ConfidentialityConstraintOnPatientDataDescription CurrentPatientLocation CustodialOrganizationSequence
    DistributionAddress DistributionName FillerOrderNumberImagingServiceRequest HumanPerformerOrganization
    IdentifyingComments ImageComments FrameComments InstitutionAddress InsurancePlanIdentification
    InterpretationApproverSequence InterpretationText IssuerOfAdmissionID IssuerOfPatientID
    IssuerOfServiceEpisodeID MedicalAlerts MedicalRecordLocator MilitaryRank ModifiedAttributesSequence
    MostRecentTreatmentDate Occupation OperatorIdentificationSequence OrderCallbackPhoneNumber
    OrderCallbackTelecomInformation OrderEnteredBy OrderEntererLocation OriginalAttributesSequence
    OtherPatientIDs OtherPatientIDsSequence PatientAddress PatientBirthDate
    PatientBirthDateInAlternativeCalendar PatientBirthTime PatientComments
    PatientDeathDateInAlternativeCalendar PatientAlternativeCalendar PatientID PatientInstitutionResidence
    PatientInsurancePlanCodeSequence PatientPrimaryLanguageCodeSequence PatientReligiousPreference
    PatientState PatientTelecomInformation PatientTelephoneNumbers PatientTransportArrangements
    PerformedLocation PersonAddress PersonIdentificationCodeSequence PersonTelecomInformation
    PersonTelephoneNumbers PhysiciansOfRecordIdentificationSequence PlacerOrderNumberImagingServiceRequest
    ReferencedPatientAliasSequence ReferencedPatientPhotoSequence ReferencedPatientSequence
    ReferringPhysicianAddress ReferringPhysicianIdentificationSequence ReferringPhysicianTelephoneNumbers
    RegionOfResidence RequestingService ResponsibleOrganization ResponsiblePersonRole ResultsComments
    ScheduledHumanPerformersSequence ScheduledPatientInstitutionResidence ServiceEpisodeDescription
    ServiceEpisodeID SmokingStatusText SourceOfPreviousValues SpecialNeeds StudyID TextComments TextString
    TimezoneOffsetFromUTC VerifyingOrganization VisitComments PatientSexNeutered PregnancyStatusText
    LastMenstrualDate EthnicGroup
    """.split()  # noqa: SIM905
)


def metadata(parsed: Parsed, tags: Iterable[str] | None) -> dict[str, Any]:
    """Keyword -> typed value; `tags` as asked for (None where absent), or all that are neither personal,
    private, person names, group lengths, sequences, nor bulk data."""
    if tags is not None:
        return {keyword: _plain(parsed.get(keyword)) for keyword in tags}
    found: dict[str, Any] = {}
    for tag, element in parsed.elements.items():
        keyword = public_keyword(tag)
        if not keyword or tag & 0xFFFF == 0 or keyword in PERSONAL or element[0] in ("PN", "SQ"):
            continue
        value = typed(element, tag, parsed)
        if value is not None and not isinstance(value, bytes) and dictionary_vr(tag) != "PN":
            found[keyword] = value
    return found


@lru_cache(maxsize=8192)
def public_keyword(tag: int) -> str:
    """The keyword of a public element; '' for private ones (odd groups) and those the dictionary lacks."""
    from pydicom.datadict import keyword_for_tag

    return "" if tag >> 16 & 1 else keyword_for_tag(tag)


def _plain(value: Any) -> Any:
    """Sequences asked for by name, as a list of dicts; bulk data is never given."""
    if isinstance(value, list) and value and isinstance(value[0], Parsed):
        return [metadata(item, None) for item in value]
    return None if isinstance(value, bytes) else value
