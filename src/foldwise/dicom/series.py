"""The slices of a series: which of a folder's files and frames they are, their order in space, one window for all.

Order: by ImagePositionPatient along the normal of ImageOrientationPatient (PS3.3 C.7.6.2.1.1), else by InstanceNumber
(C.7.6.1), else by name. What does not belong to one stack (localizers, C.8.2.1.1.1; other series, orientations, sizes,
acquisitions, echoes or times at the same places) is left out, and a ReadWarning says so: nothing is mixed silently.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.core import source
from foldwise.core.source import ReadWarning
from foldwise.dicom.decode import Array
from foldwise.dicom.parse import HUGE, DicomError, Parsed, parse_with_pydicom
from foldwise.dicom.render import (
    DicomOptions,
    Size,
    decode_frames,
    guarded,
    modality_values,
    read_header,
    resize,
    series_window,
    whole,
)

TAGS = [
    *("SeriesInstanceUID", "SOPInstanceUID", "InstanceNumber", "AcquisitionNumber", "EchoNumbers"),
    *("TemporalPositionIdentifier", "TriggerTime", "ImageType", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "SpacingBetweenSlices", "GridFrameOffsetVector"),
    *("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel"),
]
TELLING = ("AcquisitionNumber", "EchoNumbers", "TemporalPositionIdentifier", "TriggerTime", "StackID")
COLUMNS = ("path", "frame", "instance", "position", "spacing", "row_spacing", "column_spacing")
GAP = 1.5  # times the usual distance between slices: a slice is missing there
SAMPLED = 9  # slices that percentiles of a volume are taken from


def read_series(
    series: str | Path | Iterable[str | Path], size: Size = None, options: DicomOptions | None = None
) -> tuple[Array, pd.DataFrame]:
    """A folder's (or the files') slices in their order in space: uint8 (Z, H, W), or (Z, H, W, 3), and a table of them.

    size: as in read_image. The table has a row a slice: path; frame (of a multi-frame file); instance; position, mm
    along the normal of the slices; spacing, mm to the next one (of the last: to the one before); row_spacing and
    column_spacing, mm between pixels (PixelSpacing); NaN where the files do not tell. All slices are shown by one
    window (series_window). DicomError where there is nothing to read; a slice that can't be read is left out and said.
    """
    options = options or DicomOptions()
    if size is not None and min(np.atleast_1d(size)) < 1:
        raise DicomError(f"size={size}: pixels, 1 or more")
    if isinstance(series, str | Path):
        files = [Path(series)] if Path(series).is_file() else source.tree(Path(series)).files
    else:
        files = [Path(one) for one in series]
    if not files:
        raise DicomError(f"{series}: no such folder, or no files in it")
    table = slices(files)
    images, errors = render_slices(table, options, None if size is None else max(np.atleast_1d(size)))
    kept = [place for place, image in enumerate(images) if image is not None]
    if not kept:
        raise DicomError(errors[0])
    say(unread(errors))
    shown = [image if size is None else resize(image, size) for image in images if image is not None]
    return np.stack(shown), with_spacing(table.iloc[kept].reset_index(drop=True))


def slices(files: Sequence[Path]) -> pd.DataFrame:
    """The slices of one stack, COLUMNS, in their order; DicomError where no file is a DICOM image.

    What was left out, and how they were put in order where positions do not tell, is said by a ReadWarning each.
    """
    rows: list[dict[str, Any]] = []
    refused = []
    for file in files:
        try:
            rows += _frames(file)
        except DicomError as error:
            refused.append(str(error))
    if not rows:
        raise DicomError(refused[0] if refused else "no files in the series")
    if refused:
        say("files of the series left out that are no DICOM images")
    table = pd.DataFrame(rows)
    table = table.iloc[np.lexsort([table["path"].astype(str), table["uid"]])]
    copies = table.duplicated(["uid", "frame"]) & (table["uid"] != "None")
    if copies.any():
        say("copies of slices, at the same place as others, left out")
    table = _without_localizers(table[~copies])
    table = table.assign(orientation=_orientations(table["cosines"].tolist()))
    for column, what in (("series", "series"), ("shape", "image size"), ("orientation", "orientation")):
        table = _largest(table, column, what)
    table = _in_order(table).reset_index(drop=True)
    table = with_spacing(table.assign(spacing=pd.to_numeric(table["apart"])))
    steps = table["spacing"].to_numpy()[:-1]
    if len(steps) > 1 and (steps > GAP * np.median(steps)).any():
        say("gaps: slices are missing in the stack")
    return table[list(COLUMNS)]


def render_slices(
    table: pd.DataFrame, options: DicomOptions, at_least: int | None = None
) -> tuple[list[Array | None], list[str]]:
    """uint8 (H, W[, 3]) of each row of `slices`, None where it can't be read, and the reasons."""
    options = volume_options(table, options)
    images: list[Array | None] = [None] * len(table)
    errors = []
    frames = table["frame"].tolist()
    for path, places in _by_path(table).items():
        try:
            decoded = decode_frames(path, [frames[place] for place in places], at_least, options)
            for place, image in zip(places, decoded, strict=True):
                images[place] = image
        except DicomError as error:
            errors.append(str(error))
    return images, errors


def volume_options(table: pd.DataFrame, options: DicomOptions) -> DicomOptions:
    """The options with one window for all slices, so that neighbours can be compared.

    'auto': the window of the middle slice's file, or its modality's; of MR and nuclear medicine, whose values have no
    unit and whose files' windows differ, the `percentiles` of the volume, as for 'percentile'.
    """
    windows = [options.window] if isinstance(options.window, str) else options.window
    middle = table.iloc[len(table) // 2]
    fixed = []
    for window in windows:
        try:
            named = series_window(Path(middle["path"]), int(middle["frame"]), window, options)
        except DicomError:  # it will be said with its slice
            named = window
        fixed.append(_percentile_window(table, options) if named == "percentile" else named)
    return options.model_copy(update={"window": fixed if len(fixed) > 1 else fixed[0]})


def _percentile_window(table: pd.DataFrame, options: DicomOptions) -> str:
    """'center/width' of the ramp between two percentiles of some slices' values, padding left out."""
    chosen = np.unique(np.linspace(0, len(table) - 1, SAMPLED).round().astype(int))
    values = []
    part = table.iloc[chosen]
    for path, places in _by_path(part).items():
        try:
            values += modality_values(path, part["frame"].iloc[places].tolist(), options)
        except DicomError:
            continue
    known = np.concatenate([part[np.isfinite(part)] for part in values]) if values else np.zeros(0)
    if not len(known):
        return "percentile"
    low, high = np.percentile(known, options.percentiles, method="inverted_cdf")
    width = max(high - low + 1, 1.0)  # LINEAR ends half a value inside (C.11.2.1.2.1)
    return f"{(low + high + 1) / 2:.6f}/{width:.6f}"


def _by_path(table: pd.DataFrame) -> dict[Path, list[int]]:
    """The places of a table's rows, by file."""
    places: dict[Path, list[int]] = {}
    for place, path in enumerate(table["path"]):
        places.setdefault(path, []).append(place)
    return places


def say(*texts: str) -> None:
    """What was odd about a series, once each."""
    for text in filter(None, texts):
        warnings.warn(text, ReadWarning, stacklevel=3)


def unread(errors: Sequence[str]) -> str:
    """What is said of slices that can't be read, with the first one's reason; '' of none."""
    return f"slices left out that can't be read: {errors[0].partition(': ')[2] or errors[0]}" if errors else ""


# --- headers --------------------------------------------------------------------------------------------------


def _frames(path: Path) -> list[dict[str, Any]]:
    """A row for each frame of a file, from its header; DicomError where it has no image."""
    fields = read_header(path, TAGS)
    if not isinstance(fields["Rows"], int) or not isinstance(fields["Columns"], int):
        raise DicomError(f"{path}: DICOM file without an image")
    count = fields["NumberOfFrames"]
    if not isinstance(count, int) or count <= 1:
        return [_row(path, 0, fields)]
    parsed = guarded(path, lambda data: parse_with_pydicom(data, header_only=True), whole)
    return [_row(path, frame, fields | _of_frame(parsed, fields, frame)) for frame in range(count)]


def _row(path: Path, frame: int, fields: dict[str, Any]) -> dict[str, Any]:
    orientation, position = _vector(fields["ImageOrientationPatient"], 6), _vector(fields["ImagePositionPatient"], 3)
    spacing = _vector(fields["PixelSpacing"], 2)
    telling = {name: str(fields.get(name)) for name in TELLING}
    instance = fields["InstanceNumber"]
    return {
        **{"path": path, "frame": frame, "instance": float(instance) if _is_number(instance) else np.nan},
        **{"row_spacing": spacing[0], "column_spacing": spacing[1], "apart": fields.get("SpacingBetweenSlices")},
        "uid": str(fields["SOPInstanceUID"]),
        "series": str(fields["SeriesInstanceUID"]),
        "shape": f"{fields['Rows']} x {fields['Columns']} x {fields['SamplesPerPixel']}",
        "localizer": "LOCALIZER" in np.atleast_1d(fields["ImageType"] or ""),
        **{"cosines": orientation, "place": position, "offset": fields.get("offset", np.nan)},
        **telling,
    }


NEAR = 0.02  # between cosines of one orientation


def _orientations(cosines: Sequence[Array]) -> list[int]:
    """A number for each orientation, of those within NEAR of its first; -1 of slices without one."""
    first: list[Array] = []
    numbers = []
    for one in cosines:
        same = next((k for k, other in enumerate(first) if np.abs(one - other).max() <= NEAR), None)
        if same is None and not np.isnan(one).any():
            same = len(first)
            first.append(one)
        numbers.append(-1 if same is None else same)
    return numbers


def _vector(value: Any, length: int) -> Array:
    fits = isinstance(value, list) and len(value) == length and all(map(_is_number, value))
    return np.array(value, np.float64) if fits else np.full(length, np.nan)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < HUGE


def _of_frame(parsed: Parsed, fields: dict[str, Any], frame: int) -> dict[str, Any]:
    """A frame's own fields: functional groups (PS3.3 C.7.6.16.2.1, 2.3, 2.4), grid offsets of a dose (C.8.8.3.2)."""
    groups = parsed.items("PerFrameFunctionalGroupsSequence")[frame : frame + 1]
    groups += parsed.items("SharedFunctionalGroupsSequence")[:1]
    own: dict[str, Any] = {"InstanceNumber": frame + 1}
    for name, keywords in FUNCTIONAL.items():
        for item in [item for group in groups for item in group.items(name)[:1]][:1]:
            own |= {keyword: value for keyword in keywords if (value := item.get(keyword)) is not None}
    offsets = fields["GridFrameOffsetVector"]
    if isinstance(offsets, list) and frame < len(offsets):
        own["offset"] = float(offsets[frame])
    return own


FUNCTIONAL = {
    "PlanePositionSequence": ["ImagePositionPatient"],
    "PlaneOrientationSequence": ["ImageOrientationPatient"],
    "PixelMeasuresSequence": ["PixelSpacing", "SpacingBetweenSlices"],
    "FrameContentSequence": ["StackID"],
}


# --- one stack ------------------------------------------------------------------------------------------------


def _without_localizers(table: pd.DataFrame) -> pd.DataFrame:
    kept = table[~table["localizer"]]
    if not len(kept):
        return table
    if len(kept) < len(table):
        say("localizers left out (ImageType)")
    return kept


def _largest(table: pd.DataFrame, column: str, what: str) -> pd.DataFrame:
    """The slices of the commonest value of `column`."""
    if table[column].nunique() == 1:
        return table
    if what in ("orientation", "series") and table[column].is_unique:  # planes about an axis: no stack
        return table
    say(f"slices of more than one {what}: those of the one that most have are used")
    return table[table[column] == _commonest(table, column)]


def _commonest(table: pd.DataFrame, column: str) -> Any:
    """The value of `column` that most slices have; of those with equally many, the first by InstanceNumber."""
    counts = table.groupby(column, sort=False)["instance"].agg(["size", "min"])
    return counts.sort_values(["size", "min"], ascending=[False, True], kind="stable").index[0]


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Sorted by position, by instance or by name; one slice at each position."""
    table = table.assign(position=_positions(table))
    if table["position"].notna().all() and (len(table) == 1 or table["position"].nunique() > 1):
        order = np.lexsort([table["uid"], table["instance"], table["position"].round(3)])
        return _one_a_place(table.iloc[order])
    known = table["instance"].notna().all() and table["instance"].is_unique
    if len(table) > 1:
        turned = table["orientation"].nunique() > 1
        why = "an orientation each" if turned else "one position" if table["position"].notna().all() else "no positions"
        number = "frame number" if table["path"].nunique() == 1 else "InstanceNumber"
        say(f"slices with {why} (ImagePositionPatient): sorted by {number if known else 'file name'}")
    table = table.assign(position=np.nan)
    if known:
        return table.sort_values("instance")
    return table.loc[sorted(table.index, key=lambda row: (natural(table["path"][row]), table["frame"][row]))]


def natural(path: Path | str) -> list[Any]:
    """A sort key: numbers in a name count as numbers, IM9 before IM10."""
    parts = re.split(r"([0-9]+)", str(path))
    return [(k % 2 == 0, int(part) if k % 2 else 0, part) for k, part in enumerate(parts)]


def _positions(table: pd.DataFrame) -> Array:
    """mm along the normal, float (N,); NaN where a slice does not tell."""
    place, cosines = np.stack(table["place"].tolist()), np.stack(table["cosines"].tolist())
    if table["orientation"].nunique() > 1:
        return np.full(len(table), np.nan)
    if np.isnan(cosines).any():  # without an orientation: the axis that the positions move along
        spans = np.ptp(np.nan_to_num(place), axis=0)
        along = place[:, int(np.argmax(spans))]
    else:
        along = place @ np.cross(cosines[0, :3], cosines[0, 3:])
    offset = table["offset"].to_numpy(np.float64)
    return along if np.isnan(offset).any() else offset + (along if offset[0] == 0 else 0)


def _one_a_place(table: pd.DataFrame) -> pd.DataFrame:
    """Of slices at one place those of one acquisition, echo or time, else the first."""
    place = table["position"].round(3)
    twice = place.duplicated(keep=False)
    if not twice.any():
        return table
    told = next((column for column in TELLING if table.loc[twice, column].nunique() > 1), None)
    if told is None:
        say("copies of slices, at the same place as others, left out")
        return table[~place.duplicated()]
    say(f"slices of more than one {told} at the same places: one of each place is used")
    preferred = place.iloc[np.argsort((table[told] != _commonest(table, told)).to_numpy(), kind="stable")]
    return table[table.index.isin(preferred.index[~preferred.duplicated()])]


def with_spacing(table: pd.DataFrame) -> pd.DataFrame:
    """Slices in their order with the distances that their positions say; of a single one it stays as it is."""
    steps = np.diff(table["position"].to_numpy(np.float64))
    return table.assign(spacing=np.append(steps, steps[-1:])) if len(steps) else table
