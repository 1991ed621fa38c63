"""The table of verdicts: whatever recovery can find at a place, what it means and what is done.

A `Place` lists the facts that are looked at there, with all their values, and rows. Each combination of values has
exactly one row, or a reason why it cannot be; a test enumerates them. The rooms that read the disk establish the facts
and look the row up with `Place.verdict`; they decide nothing that is not a row.

Not here: reading (`log/segment.py`, `log/control_file.py`, `checkpoint/load.py`, `recovery/`). `docs/verdicts.md` shows
the table (`python -m tools.render_verdicts`).

* A label is unique in all places. It is the `OpenError.verdict` of what is raised, and stands in brackets in a note.
* A row with an ``error`` is raised as exactly that class, and no byte was changed. All others open.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mmwal.errors import (
    ConsistencyError,
    ForeignDirectoryError,
    FormatVersionError,
    HeaderCorruptionError,
    OpenError,
    SegmentMissingError,
    WalCorruptionError,
)

Case = Mapping[str, str | tuple[str, ...]]
Raised = TypeVar("Raised", bound=OpenError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One row: what was found, what it means, what is done; ``error`` is what it costs, ``noted`` goes into the report.

    It is right for a combination of facts that matches one of the cases of ``when``; a fact that a case does not name
    may have any value.
    """

    label: str
    when: tuple[Case, ...]
    found: str
    means: str
    done: str
    error: type[OpenError] | None = None
    noted: bool = False

    def mark(self, error: Raised) -> Raised:
        """Returns the error, labelled with this row."""
        assert type(error) is self.error, (self.label, error)
        error.verdict = self.label
        return error

    def matches(self, facts: Mapping[str, str]) -> bool:
        """Returns whether a whole combination of facts has this row."""
        return any(
            all(facts[name] in ((values,) if isinstance(values, str) else values) for name, values in case.items())
            for case in self.when
        )


@dataclass(frozen=True, slots=True)
class Reached:
    """A verdict reached at a place: a file, and what the report adds."""

    verdict: Verdict
    path: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.detail or self.verdict.found} [{self.verdict.label}]"


class Place:
    """Where recovery looks: the facts it looks at, and a row for every combination of them."""

    def __init__(
        self,
        name: str,
        about: str,
        facts: Mapping[str, Sequence[str]],
        rows: Sequence[Verdict],
        *,
        impossible: Sequence[tuple[Case, str]] = (),
    ) -> None:
        """``impossible`` names combinations that cannot be, each with the reason."""
        self.name = name
        self.about = about
        self.facts = {fact: tuple(values) for fact, values in facts.items()}
        self.rows = tuple(rows)
        self.impossible = tuple(impossible)
        self._rows = {
            tuple(facts.values()): [row for row in self.rows if row.matches(facts)] for facts in self.combinations()
        }
        self._looked_up: dict[tuple[tuple[str, str], ...], Verdict] = {}  # a dict item is set at once: any thread may

    def combinations(self) -> Iterator[dict[str, str]]:
        """Yields every combination of facts that can be."""
        for values in itertools.product(*self.facts.values()):
            facts = dict(zip(self.facts, values, strict=True))
            if not any(_is(facts, case) for case, _ in self.impossible):
                yield facts

    def rows_of(self, facts: Mapping[str, str]) -> list[Verdict]:
        """Returns the rows that a whole combination has: one, if the table is right."""
        return self._rows[tuple(facts[name] for name in self.facts)]

    def verdict(self, **known: str) -> Verdict:
        """Returns the row for what is known. Facts may be left out where the row does not depend on them.

        Raises `LookupError` where that leaves none, or several: a mistake in the caller.
        """
        key = tuple(known.items())
        row = self._looked_up.get(key)
        if row is None:
            row = self._looked_up[key] = self._look_up(known)
        return row

    def _look_up(self, known: Mapping[str, str]) -> Verdict:
        wanted = [(index, known[name]) for index, name in enumerate(self.facts) if name in known]
        found = {
            row.label: row
            for facts, rows in self._rows.items()
            if all(facts[index] == value for index, value in wanted)
            for row in rows
        }
        if len(wanted) != len(known) or len(found) != 1:
            raise LookupError(f"{self.name}: {dict(known)} has the rows {sorted(found)}, not one")
        return next(iter(found.values()))


def _is(facts: Mapping[str, str], case: Case) -> bool:
    return all(facts[name] in ((values,) if isinstance(values, str) else values) for name, values in case.items())


def _either(first: str, second: str, state: str, others: Sequence[str]) -> tuple[Case, ...]:
    """One of two copies is in a state, the other one in that or one of the others."""
    both = (state, *others)
    return {first: state, second: both}, {first: both, second: state}


# -- names --------------------------------------------------------------------------------------------------------

NAME = Place(
    "name",
    "A name in `wal_dir`, and whether a regular file has it. A link, a directory or a device is `other`.",
    {
        "name": ("control", "segment", "spare", "temporary", "unknown"),
        "kind": ("file", "other"),
    },
    [
        Verdict(
            label="name-control",
            when=({"name": "control", "kind": "file"},),
            found="the control file",
            means="there is a log",
            done="its slots are judged",
        ),
        Verdict(
            label="name-segment",
            when=({"name": "segment", "kind": "file"},),
            found="a segment's name",
            means="perhaps a part of the log",
            done="its header is judged",
        ),
        Verdict(
            label="name-spare",
            when=({"name": "spare", "kind": "file"},),
            found="a spare's name, whatever is in it",
            means="blocks kept for reuse, no part of the log; a segment whose making was cut short",
            done="kept if it has a segment's size, else removed",
        ),
        Verdict(
            label="name-spare-ignored",
            when=({"name": "spare", "kind": "other"},),
            found="a link, directory or device under a spare's name",
            means="not ours",
            done="ignored and left alone",
        ),
        Verdict(
            label="name-temporary",
            when=({"name": "temporary"},),
            found="`control.tmp`",
            means="the making of the control file was cut short, or somebody else's file",
            done="ignored; a new log removes it before it makes its control file",
        ),
        Verdict(
            label="name-unknown",
            when=({"name": "unknown"},),
            found="any other name",
            means="not ours",
            done="ignored and left alone",
        ),
        Verdict(
            label="name-obstructed",
            when=({"name": ("control", "segment"), "kind": "other"},),
            found="a link, directory or device where a file of the log should be",
            means="put there by somebody; never followed",
            done="refused",
            error=ForeignDirectoryError,
        ),
    ],
)

_THERE = ("free", "owned")

DIRECTORY = Place(
    "directory",
    "Which control files there are, and whether they belong together. `opened`: as a store, or as a log alone, which "
    "looks at `wal_dir` only. `log`: its control file is missing, or says whether a store owns the log. `data` is "
    "`orphan` where rows are there without a control file. `begins`: whether the log still has its first entry.",
    {
        "opened": ("store", "log"),
        "log": ("missing", *_THERE),
        "segments": ("none", "some"),
        "data": ("missing", "orphan", "same", "other-store", "other-history"),
        "begins": ("start", "later"),
    },
    [
        Verdict(
            label="directory-new",
            when=({"log": "missing", "segments": "none", "data": "missing"},),
            found="nothing",
            means="a new log or store, or one whose creation was cut short",
            done="created",
        ),
        Verdict(
            label="directory-log",
            when=({"opened": "log", "log": "free"},),
            found="a log that no store owns",
            means="the ordinary case of a log alone",
            done="followed to its end",
        ),
        Verdict(
            label="directory-whole",
            when=({"opened": "store", "log": _THERE, "data": "same"},),
            found="log and data of one store and one history",
            means="the ordinary case of a store",
            done="the checkpoint is loaded, the log behind it replayed",
        ),
        Verdict(
            label="directory-no-data-yet",
            when=({"opened": "store", "log": _THERE, "data": "missing", "begins": "start"},),
            found="a log from its first entry on, and no data",
            means="a store before its first vector, or one whose creation was cut short",
            done="everything comes from the log",
        ),
        Verdict(
            label="directory-owned",
            when=({"opened": "log", "log": "owned"},),
            found="a log that a store owns",
            means="its store would not see what is logged",
            done="refused",
            error=ForeignDirectoryError,
        ),
        Verdict(
            label="directory-no-control",
            when=({"log": "missing", "segments": "some", "data": ("missing", "orphan")},),
            found="segments, and no control file",
            means="the control file was removed: where the log begins is unknown",
            done="refused",
            error=ForeignDirectoryError,
        ),
        Verdict(
            label="directory-no-log",
            when=({"log": "missing", "data": ("same", "other-store", "other-history")},),
            found="data, and no control file of the log",
            means="the log that the checkpoint goes on in is missing",
            done="refused",
            error=ConsistencyError,
        ),
        Verdict(
            label="directory-no-data",
            when=({"opened": "store", "log": _THERE, "data": ("missing", "orphan"), "begins": "later"},),
            found="a log that begins behind its first entry, and no control file of the data",
            means="the checkpoint that covers what was released is missing",
            done="refused",
            error=ConsistencyError,
        ),
        Verdict(
            label="directory-orphan",
            when=(
                {"log": "missing", "segments": "none", "data": "orphan"},
                {"opened": "store", "log": _THERE, "data": "orphan", "begins": "start"},
            ),
            found="a matrix with rows, and no control file of the data",
            means="the control file was removed, or the rows are somebody else's",
            done="refused; where no vector told the dimension yet, at the first one",
            error=ForeignDirectoryError,
        ),
        Verdict(
            label="directory-other-store",
            when=({"opened": "store", "log": _THERE, "data": "other-store"},),
            found="log and data of two stores",
            means="the directories were mixed up",
            done="refused",
            error=ForeignDirectoryError,
        ),
        Verdict(
            label="directory-other-history",
            when=({"opened": "store", "log": _THERE, "data": "other-history"},),
            found="log and data of two histories of one store",
            means="one of them was restored without the other",
            done="refused",
            error=ForeignDirectoryError,
        ),
    ],
    impossible=[
        ({"log": "missing", "begins": "later"}, "only the control file says where the log begins"),
        (
            {"opened": "log", "data": ("orphan", "same", "other-store", "other-history")},
            "a log alone has no data directory",
        ),
    ],
)

# -- control files ------------------------------------------------------------------------------------------------

_LOST = ("blank", "damaged", "alien", "later")

SLOTS = Place(
    "slots",
    "The two slots of a control file, of the log or of the data. `blank`: zeros, or beyond the end of the file. "
    "`damaged`: our magic, and a checksum that does not hold. `alien`: neither. `later`: the same as damaged, but the "
    "version is greater than ours. `newer`: whole, of a greater version. `impossible`: whole, with a value that cannot "
    "be. `agree`: whether the two are of one store.",
    {
        "first": ("sound", "impossible", "newer", *_LOST),
        "second": ("sound", "impossible", "newer", *_LOST),
        "agree": ("yes", "no"),
    },
    [
        Verdict(
            label="slots-sound",
            when=({"first": "sound", "second": "sound", "agree": "yes"},),
            found="two sound slots",
            means="the ordinary case",
            done="the newer one is used",
        ),
        Verdict(
            label="slots-single",
            when=({"first": "sound", "second": "blank"}, {"first": "blank", "second": "sound"}),
            found="one sound slot, the other never written",
            means="just created",
            done="it is used",
        ),
        Verdict(
            label="slots-one-lost",
            when=(
                {"first": "sound", "second": ("damaged", "alien", "later")},
                {"first": ("damaged", "alien", "later"), "second": "sound"},
            ),
            found="one of two slots cannot be read; the other stands in for it",
            means="a write was torn by a crash, or the slot is damaged: each slot alone is enough",
            done="the other one is used; the next write replaces it",
            noted=True,
        ),
        Verdict(
            label="slots-contradict",
            when=({"first": "sound", "second": "sound", "agree": "no"},),
            found="two sound slots of two stores, or with different sizes",
            means="one of them was put there by somebody",
            done="refused",
            error=HeaderCorruptionError,
        ),
        Verdict(
            label="slots-newer",
            when=(
                *_either("first", "second", "newer", ("sound", "impossible", *_LOST)),
                {"first": "later", "second": ("later", "blank", "alien")},
                {"first": ("blank", "alien"), "second": "later"},
            ),
            found="a slot of a newer version, or of a layout that only a newer version knows",
            means="a newer mmwal was here",
            done="refused",
            error=FormatVersionError,
        ),
        Verdict(
            label="slots-impossible",
            when=_either("first", "second", "impossible", ("sound", *_LOST)),
            found="a slot with a sound checksum and a value that cannot be",
            means="not written by mmwal",
            done="refused",
            error=HeaderCorruptionError,
        ),
        Verdict(
            label="slots-lost",
            when=(
                *_either("first", "second", "damaged", ("blank", "alien", "later")),
                {"first": "blank", "second": "blank"},
            ),
            found="no sound slot",
            means="both slots are damaged",
            done="refused",
            error=HeaderCorruptionError,
        ),
        Verdict(
            label="slots-alien",
            when=_either("first", "second", "alien", ("blank",)),
            found="a file of another kind under the name of a control file",
            means="the directory is somebody else's",
            done="refused",
            error=ForeignDirectoryError,
        ),
    ],
    impossible=[
        ({"first": ("impossible", "newer", *_LOST), "agree": "no"}, "only two sound slots are compared"),
        ({"second": ("impossible", "newer", *_LOST), "agree": "no"}, "only two sound slots are compared"),
    ],
)

# -- the file of a segment ----------------------------------------------------------------------------------------

_NO_HEADER = ("blank", "damaged")
_SAME = {"first": "sound", "second": "sound", "agree": "yes"}

HEADER = Place(
    "header",
    "The two copies of a segment's header. `blank`: the page is zero or beyond the end of the file. `newer`: of a "
    "greater version, by a sound copy or, where none is sound, by magic and version alone. `foreign`: of another "
    "store. `history`: of another history of this one. `misplaced`: of another segment number, size or position. "
    "`file`: whether it is as long as a segment. `where`: whether the control file still needs it.",
    {
        "first": ("sound", "misplaced", "history", "foreign", "newer", *_NO_HEADER),
        "second": ("sound", "misplaced", "history", "foreign", "newer", *_NO_HEADER),
        "agree": ("yes", "no"),
        "file": ("whole", "short"),
        "where": ("needed", "released"),
    },
    [
        Verdict(
            label="header-sound",
            when=({**_SAME, "file": "whole", "where": "needed"},),
            found="two sound copies that say the same",
            means="the ordinary case",
            done="link, footer and frames are judged",
        ),
        Verdict(
            label="header-one-lost",
            when=(
                {"first": "sound", "second": _NO_HEADER, "file": "whole", "where": "needed"},
                {"first": _NO_HEADER, "second": "sound", "file": "whole", "where": "needed"},
            ),
            found="one of two header copies is damaged; the other one stands in for it",
            means="both were durable before the file got its name, so this is damage",
            done="the other one is used",
            noted=True,
        ),
        Verdict(
            label="header-blank",
            when=({"first": "blank", "second": "blank", "where": "needed"},),
            found="zeros, or an empty file, where a header would be",
            means="never a segment: the name of one that was cut short, or emptied by somebody",
            done="as if it were not there",
        ),
        Verdict(
            label="header-released",
            when=(
                {
                    "first": ("sound", "misplaced", *_NO_HEADER),
                    "second": ("sound", "misplaced", *_NO_HEADER),
                    "where": "released",
                },
            ),
            found="any segment of this history below the oldest position, damaged or not",
            means="a retirement was cut short",
            done="removed, or kept as a spare",
        ),
        Verdict(
            label="header-short",
            when=(
                {**_SAME, "file": "short", "where": "needed"},
                {"first": "sound", "second": _NO_HEADER, "file": "short", "where": "needed"},
                {"first": _NO_HEADER, "second": "sound", "file": "short", "where": "needed"},
            ),
            found="a sound header in a file that is too short",
            means="cut by somebody: a file gets its name at full length",
            done="refused before it is mapped",
            error=HeaderCorruptionError,
        ),
        Verdict(
            label="header-contradicts",
            when=({"first": "sound", "second": "sound", "agree": "no", "where": "needed"},),
            found="two sound copies that differ",
            means="one of them was put there by somebody",
            done="refused",
            error=HeaderCorruptionError,
        ),
        Verdict(
            label="header-lost",
            when=(
                {"first": "damaged", "second": _NO_HEADER, "where": "needed"},
                {"first": "blank", "second": "damaged", "where": "needed"},
            ),
            found="no sound copy",
            means="both copies are damaged; what the segment held cannot be told",
            done="refused",
            error=HeaderCorruptionError,
        ),
        Verdict(
            label="header-misplaced",
            when=tuple(
                {**case, "where": "needed"} for case in _either("first", "second", "misplaced", ("sound", *_NO_HEADER))
            ),
            found="the header of another segment: a duplicate, or one that overlaps its neighbours",
            means="a file was copied or renamed by somebody",
            done="refused",
            error=HeaderCorruptionError,
        ),
        Verdict(
            label="header-history",
            when=_either("first", "second", "history", ("sound", "misplaced", *_NO_HEADER)),
            found="a segment of another history of this store",
            means="restored beside a log that went another way",
            done="refused; the file is left alone",
            error=ForeignDirectoryError,
        ),
        Verdict(
            label="header-foreign",
            when=_either("first", "second", "foreign", ("sound", "misplaced", "history", *_NO_HEADER)),
            found="a segment of another store",
            means="copied here by somebody",
            done="refused; the file is left alone",
            error=ForeignDirectoryError,
        ),
        Verdict(
            label="header-newer",
            when=_either("first", "second", "newer", ("sound", "misplaced", "history", "foreign", *_NO_HEADER)),
            found="a segment of a newer format version",
            means="a newer mmwal was here",
            done="refused",
            error=FormatVersionError,
        ),
    ],
    impossible=[
        ({"first": first, "agree": "no"}, "only two sound copies are compared")
        for first in ("misplaced", "history", "foreign", "newer", *_NO_HEADER)
    ]
    + [
        ({"second": second, "agree": "no"}, "only two sound copies are compared")
        for second in ("misplaced", "history", "foreign", "newer", *_NO_HEADER)
    ],
)

JOIN = Place(
    "link",
    "How a segment goes on behind a sealed one. `link`: `names` the end where that one ended, names another one "
    "(`elsewhere`), or there is `none`: never written, damaged, of an earlier life, or impossible. `before`: sealed at "
    "its `full` length, or `cut` by a recovery. `frames`: whether one of them records that all before this segment was "
    "durable.",
    {
        "link": ("names", "elsewhere", "none"),
        "before": ("full", "cut"),
        "frames": ("record", "silent"),
    },
    [
        Verdict(
            label="link-names",
            when=({"link": "names"},),
            found="a link that names the end of the segment before",
            means="the log goes on here",
            done="followed",
        ),
        Verdict(
            label="link-none-full",
            when=({"link": "none", "before": "full"},),
            found="no link, behind a full segment",
            means="the writer had not come to write it, or it is damaged; a full segment has one successor",
            done="followed; written where the segment is still open",
        ),
        Verdict(
            label="link-none-recorded",
            when=({"link": "none", "before": "cut", "frames": "record"},),
            found="the link is damaged; its entries record that they follow the cut before them",
            means="the link was durable before the file got its name, so this is damage",
            done="followed",
            noted=True,
        ),
        Verdict(
            label="link-none-cut",
            when=({"link": "none", "before": "cut", "frames": "silent"},),
            found="no link, behind a segment that was cut",
            means="left from before the cut",
            done="the log ends before it, unless something proves more",
        ),
        Verdict(
            label="link-elsewhere",
            when=({"link": "elsewhere", "frames": "silent"},),
            found="a link that names another end",
            means="the segment belongs to another end of the log",
            done="the log ends before it, unless something proves more",
        ),
        Verdict(
            label="link-contradicts",
            when=({"link": "elsewhere", "frames": "record"},),
            found="a link that names another end, before entries that record that all before them was durable",
            means="footer and link of two backups, or not written by mmwal",
            done="refused; nothing is cut",
            error=WalCorruptionError,
        ),
    ],
)

SEAL = Place(
    "seal",
    "A segment that the log goes on in. `footer`: `sound` or `none` (never written, damaged, of an earlier life, or "
    "impossible). `next`: whether the next segment's link says where this one ended. `frames`: whether they are whole "
    "up to that end; looked at only where the footer is missing.",
    {
        "footer": ("sound", "none"),
        "next": ("names", "silent"),
        "frames": ("whole", "broken"),
    },
    [
        Verdict(
            label="seal-footer",
            when=({"footer": "sound"},),
            found="a sound footer",
            means="all in it was durable",
            done="not scanned now; replay verifies what it reads",
        ),
        Verdict(
            label="seal-by-link",
            when=({"footer": "none", "next": "names", "frames": "whole"},),
            found="the footer is damaged; the link of the next segment stands in for it",
            means="all in it was durable",
            done="verified, the footer written again",
            noted=True,
        ),
        Verdict(
            label="seal-broken",
            when=({"footer": "none", "next": "names", "frames": "broken"},),
            found="no footer, a damaged entry, and a link that proves that all was durable",
            means="durable entries are damaged",
            done="refused",
            error=WalCorruptionError,
        ),
        Verdict(
            label="seal-open",
            when=({"footer": "none", "next": "silent"},),
            found="no footer, and no link names its end",
            means="not sealed",
            done="scanned from its first entry",
        ),
    ],
)

# -- where the log begins and ends --------------------------------------------------------------------------------

OLDEST = Place(
    "oldest",
    "The segment in which the log begins. `recorded`: whether control file or checkpoint prove that something behind "
    "the first position of all was durable, or that there was a writer who did not close the log: none writes before "
    "that segment is there. `mark`: whether the log was closed cleanly with segments there.",
    {
        "segment": ("found", "missing"),
        "recorded": ("yes", "no"),
        "mark": ("yes", "no"),
    },
    [
        Verdict(
            label="oldest-found",
            when=({"segment": "found"},),
            found="the segment in which the log begins",
            means="the ordinary case",
            done="the log is followed from there",
        ),
        Verdict(
            label="oldest-none",
            when=({"segment": "missing", "recorded": "no", "mark": "no"},),
            found="no such segment, and nothing says that there was one",
            means="nobody ever wrote",
            done="the log is empty",
        ),
        Verdict(
            label="oldest-missing",
            when=(
                {"segment": "missing", "recorded": "yes"},
                {"segment": "missing", "recorded": "no", "mark": "yes"},
            ),
            found="no such segment, and there was one",
            means="deleted by somebody: a gap at the beginning",
            done="refused",
            error=SegmentMissingError,
        ),
    ],
)

MARK = Place(
    "mark",
    "The mark of a clean close, with the end of the log; `no` also where no segment is there. `end`: the segment of "
    "that position: `open`, `closed` (sealed, or full), or `missing`. `before`: the segments before it: all `sealed`, "
    "one `unsealed`, or one `missing`.",
    {
        "mark": ("yes", "no"),
        "end": ("open", "closed", "missing"),
        "before": ("sealed", "unsealed", "missing"),
    },
    [
        Verdict(
            label="mark-absent",
            when=({"mark": "no"},),
            found="no mark",
            means="a writer was here, and did not close",
            done="the log is followed and scanned to its end",
        ),
        Verdict(
            label="mark-taken",
            when=({"mark": "yes", "end": "open", "before": "sealed"},),
            found="the mark, and every segment up to it",
            means="the end is known",
            done="nothing is scanned; the log goes on in the same segment",
        ),
        Verdict(
            label="mark-passed-by",
            when=(
                {"mark": "yes", "end": "closed"},
                {"mark": "yes", "end": "open", "before": "unsealed"},
            ),
            found="the mark, and a segment that is full, or one before it that lost its footer",
            means="the end is known, and so is that all up to it was durable",
            done="the log is followed, and must reach the mark",
        ),
        Verdict(
            label="mark-gap",
            when=(
                {"mark": "yes", "end": "missing"},
                {"mark": "yes", "end": "open", "before": "missing"},
            ),
            found="the mark, and a segment up to it is missing",
            means="deleted by somebody: a gap in the log",
            done="refused",
            error=SegmentMissingError,
        ),
    ],
)

END = Place(
    "end",
    "Where the frames end in what is not sealed. `stop`: behind the last whole frame is `nothing` (zeros, or bytes of "
    "an earlier life), something `broken` (a frame that contradicts itself or its checksum), or the segment is `full`, "
    "as one that was sealed at a cut is. "
    "`behind`: whether whole frames lie behind that place. `proof`: whether anything proves that more was durable: a "
    "later frame, a link or footer behind, the control file, the checkpoint; a full segment before one that is "
    "missing, since nothing fills a segment before the next one is there; and, without a mark of a clean close, "
    "segments behind one that is missing, since names come in order and go in reverse. `next`: whether the segment is "
    "there in which the log should go on.",
    {
        "stop": ("nothing", "broken", "full"),
        "behind": ("nothing", "frames"),
        "proof": ("no", "yes"),
        "next": ("found", "missing"),
    },
    [
        Verdict(
            label="end-whole",
            when=({"stop": ("nothing", "full"), "behind": "nothing", "proof": "no"},),
            found="nothing behind the last whole frame",
            means="the end of the log",
            done="the rest is zeroed and sealed; the log goes on in a new segment",
        ),
        Verdict(
            label="end-torn",
            when=({"stop": "broken", "proof": "no"}, {"stop": ("nothing", "full"), "behind": "frames", "proof": "no"}),
            found="a broken frame, or a hole with frames behind it, and no proof that it was durable",
            means="a torn tail, as a crash leaves it: never acknowledged as durable",
            done="cut at the last whole frame, the rest zeroed and sealed; `torn_tail_bytes` says how much",
        ),
        Verdict(
            label="end-damaged",
            when=(
                {"stop": ("nothing", "broken"), "proof": "yes"},
                {"stop": "full", "proof": "yes", "next": "found"},
            ),
            found="a broken frame or a hole, and something that proves that more was durable",
            means="durable entries are damaged",
            done="refused; nothing is cut",
            error=WalCorruptionError,
        ),
        Verdict(
            label="end-missing",
            when=({"stop": "full", "proof": "yes", "next": "missing"},),
            found="the next segment is not there, and something proves that it held durable entries",
            means="deleted by somebody: a gap in the log",
            done="refused",
            error=SegmentMissingError,
        ),
    ],
    impossible=[
        ({"stop": ("nothing", "broken"), "next": "missing"}, "the frames end in a segment that is there"),
        (
            {"stop": "full", "behind": "frames", "proof": "no", "next": "missing"},
            "the segment with those frames proves that the missing one was there",
        ),
    ],
)

REST = Place(
    "rest",
    "A segment file, once the log is known.",
    {"where": ("log", "released", "behind")},
    [
        Verdict(
            label="rest-log",
            when=({"where": "log"},),
            found="a segment of the log",
            means="the ordinary case",
            done="kept",
        ),
        Verdict(
            label="rest-released",
            when=({"where": "released"},),
            found="a segment below the oldest position",
            means="a retirement was cut short",
            done="removed, or kept as a spare; the oldest first",
        ),
        Verdict(
            label="rest-behind",
            when=({"where": "behind"},),
            found="a segment behind the end",
            means="prepared and not used, or cut off with the tail",
            done="removed, or kept as a spare, durably, before a new segment takes its name",
        ),
    ],
)

# -- entries ------------------------------------------------------------------------------------------------------

ENTRY = Place(
    "entry",
    "A frame between the redo point and the end of the log, when it is replayed. `content` is what it says under a "
    "sound checksum: it `contradicts` itself, it has vectors of another `shape` than the store, or it commits a "
    "transaction of which entries are missing (`half`).",
    {
        "checksum": ("sound", "damaged"),
        "content": ("sound", "contradicts", "shape", "half"),
    },
    [
        Verdict(
            label="entry-sound",
            when=({"checksum": "sound", "content": "sound"},),
            found="a whole entry",
            means="the ordinary case",
            done="applied",
        ),
        Verdict(
            label="entry-damaged",
            when=({"checksum": "damaged"},),
            found="a damaged entry before the end of the log",
            means="a durable entry is damaged",
            done="refused",
            error=WalCorruptionError,
        ),
        Verdict(
            label="entry-contradicts",
            when=({"checksum": "sound", "content": "contradicts"},),
            found="an entry whose sizes or ids contradict each other",
            means="not written by mmwal",
            done="refused",
            error=WalCorruptionError,
        ),
        Verdict(
            label="entry-shape",
            when=({"checksum": "sound", "content": "shape"},),
            found="vectors of another dimension or dtype",
            means="the entry is not this store's",
            done="refused",
            error=ConsistencyError,
        ),
        Verdict(
            label="entry-half",
            when=({"checksum": "sound", "content": "half"},),
            found="a commit, and not all entries of its transaction",
            means="a part of the log is missing",
            done="refused; never half a transaction",
            error=ConsistencyError,
        ),
    ],
)

# -- checkpoints --------------------------------------------------------------------------------------------------

IMAGE = Place(
    "image",
    "The directory image that a slot names: a base and deltas, each with its checksum. `file`: `whole`, `short`, "
    "`missing`, or `unreadable` (an error of the disk). `base`, `deltas`: `none` where the slot names none. `slot`: "
    "whether what the image says agrees with its slot and with itself.",
    {
        "file": ("whole", "short", "missing", "unreadable"),
        "base": ("sound", "damaged"),
        "deltas": ("none", "sound", "damaged"),
        "slot": ("agrees", "contradicts"),
    },
    [
        Verdict(
            label="image-sound",
            when=({"file": "whole", "base": "sound", "deltas": ("none", "sound"), "slot": "agrees"},),
            found="every section is sound",
            means="the ordinary case",
            done="loaded",
        ),
        Verdict(
            label="image-missing",
            when=({"file": "missing"},),
            found="the image file is not there",
            means="deleted by somebody",
            done="this checkpoint is not used",
            noted=True,
        ),
        Verdict(
            label="image-short",
            when=({"file": "short"},),
            found="the image file is shorter than the slot says",
            means="cut by somebody",
            done="this checkpoint is not used",
            noted=True,
        ),
        Verdict(
            label="image-unreadable",
            when=({"file": "unreadable"},),
            found="the disk cannot read the image",
            means="the disk is failing",
            done="this checkpoint is not used",
            noted=True,
        ),
        Verdict(
            label="image-damaged",
            when=(
                {"file": "whole", "base": "damaged"},
                {"file": "whole", "base": "sound", "deltas": "damaged"},
            ),
            found="a section of the image is damaged",
            means="damage to durable data",
            done="this checkpoint is not used",
            noted=True,
        ),
        Verdict(
            label="image-contradicts",
            when=({"file": "whole", "base": "sound", "deltas": ("none", "sound"), "slot": "contradicts"},),
            found="sound sections that are not what the slot names, or name a row twice",
            means="image and control file are of two backups, or not written by mmwal",
            done="this checkpoint is not used",
            noted=True,
        ),
    ],
)

CHECKPOINT = Place(
    "checkpoint",
    "The checkpoints of the two slots: `whole` where image and matrix are. `log`: from where on it is there: from "
    "before the `older` redo point, only from before the `newer` one, or from `behind` both.",
    {
        "newer": ("whole", "damaged"),
        "older": ("whole", "damaged", "none"),
        "log": ("older", "newer", "behind"),
    },
    [
        Verdict(
            label="checkpoint-newest",
            when=({"newer": "whole", "log": ("older", "newer")},),
            found="the newest checkpoint is whole",
            means="the ordinary case",
            done="the log behind it is replayed",
        ),
        Verdict(
            label="checkpoint-older",
            when=({"newer": "damaged", "older": "whole", "log": "older"},),
            found="the older checkpoint is used instead, and more of the log is replayed",
            means="damage; nothing is lost, the log reaches back far enough",
            done="its slot is written over the newer one; then the log is replayed from it",
            noted=True,
        ),
        Verdict(
            label="checkpoint-lost",
            when=({"newer": "damaged", "older": ("damaged", "none")},),
            found="no checkpoint is whole",
            means="damage to both",
            done="refused",
            error=ConsistencyError,
        ),
        Verdict(
            label="checkpoint-gap",
            when=(
                {"newer": "whole", "log": "behind"},
                {"newer": "damaged", "older": "whole", "log": ("newer", "behind")},
            ),
            found="the log begins behind the checkpoint that it should go on from",
            means="log and data are of two backups, or the log was released by hand",
            done="refused",
            error=ConsistencyError,
        ),
    ],
)

MATRIX = Place(
    "matrix",
    "The matrix of rows. `file`: `whole`, `short` of rows that a slot names, or `missing`. `rows`: whether those that "
    "the checkpoint names have the checksums that it recorded.",
    {
        "file": ("whole", "short", "missing"),
        "rows": ("sound", "damaged"),
    },
    [
        Verdict(
            label="matrix-sound",
            when=({"file": "whole", "rows": "sound"},),
            found="every row is sound",
            means="the ordinary case",
            done="mapped",
        ),
        Verdict(
            label="matrix-row-damaged",
            when=({"file": "whole", "rows": "damaged"},),
            found="a row with another checksum than the checkpoint recorded",
            means="damage to durable data",
            done="found by verification and by every reader; refused there. A writer maps the matrix and reads no row",
            error=ConsistencyError,
        ),
        Verdict(
            label="matrix-short",
            when=({"file": "short"},),
            found="the matrix is too short for the rows that the slot names",
            means="cut by somebody",
            done="this checkpoint is not used",
            noted=True,
        ),
        Verdict(
            label="matrix-missing",
            when=({"file": "missing"},),
            found="no matrix, and a checkpoint that names it",
            means="deleted by somebody",
            done="refused",
            error=ConsistencyError,
        ),
    ],
)

PLACES = (
    NAME,
    DIRECTORY,
    SLOTS,
    HEADER,
    JOIN,
    SEAL,
    OLDEST,
    MARK,
    END,
    REST,
    ENTRY,
    IMAGE,
    CHECKPOINT,
    MATRIX,
)
