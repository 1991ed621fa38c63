"""The table of verdicts on real logs: every combination of facts is brought about on a disk, and its row is reached.

What must hold for each: exactly the row of the table is reached. An error is of its class, says the label and the
place, and changes no byte, the first time and the second. Where it opens, what was acknowledged as durable is there,
what is there is a prefix, and the next opening finds the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mmwal import kernel as kernels
from mmwal.errors import DamageError, HeaderCorruptionError, OpenError, WalCorruptionError
from mmwal.format.control import LOG_CONTROL
from mmwal.format.segment import DATA_OFFSET, FOOTER, FOOTER_BYTES, LINK, LINK_OFFSET, SEGMENT_HEADER
from mmwal.log.segment import inspect_segment, spare_name
from mmwal.testing.simulator import SimulatedDisk
from mmwal.verdicts import END, HEADER, JOIN, MARK, NAME, OLDEST, REST, SEAL, SLOTS, Place, Verdict
from tests.recovery.damage import (
    FRAME,
    PER_SEGMENT,
    SIZE,
    WAL,
    Log,
    each,
    footer_states,
    link_states,
    names,
    put_footer,
    put_header,
    put_link,
    slot_pages,
)

PY = kernels.load("py")
Facts = dict[str, str]


def new(kernel: Any = PY) -> Log:
    return Log(SimulatedDisk(seed=5), kernel)


def row_of(place: Place, facts: Facts) -> Verdict:
    [verdict] = place.rows_of(facts)
    return verdict


def check(log: Log, place: Place, facts: Facts, path: str | None = None, *, label: str | None = None) -> str:
    """The row of the facts is reached, and what it promises holds; returns its label."""
    verdict = row_of(place, facts)
    found, reached = log.survey()
    if label is None:
        rows = {one.label for one in place.rows}
        labels = [one.verdict.label for one in reached if one.verdict.label in rows and path in (None, one.path)]
        if isinstance(found, OpenError) and found.verdict in rows:
            labels.append(found.verdict)
    else:
        labels = [label]
    assert labels == [verdict.label], (facts, labels, found)
    if verdict.error is not None:
        assert type(found) is verdict.error, facts
    if isinstance(found, OpenError):
        check_refused(log, found, facts)
        return verdict.label
    if verdict.noted:
        assert any(note.endswith(f"[{verdict.label}]") for note in found.notes), facts
    check_opens(log, facts)
    return verdict.label


def check_refused(log: Log, error: OpenError, facts: Facts) -> None:
    """Opening raises the same, twice, and changes no byte."""
    for _ in range(2):
        before = log.disk.digest()
        with pytest.raises(OpenError) as caught:
            log.open()
        assert (type(caught.value), str(caught.value)) == (type(error), str(error)), facts
        assert caught.value.verdict == error.verdict is not None, facts
        assert WAL in str(error), facts
        if isinstance(error, HeaderCorruptionError):
            layout = LOG_CONTROL if error.path == f"{WAL}/control" else SEGMENT_HEADER
            assert error.field in ("magic", *layout.names), facts
            assert f"field {error.field}" in str(error), facts
        if isinstance(error, DamageError) and error.offset and error.lsn:
            assert (error.offset - error.lsn) % SIZE == 0 or error.offset == LINK_OFFSET, facts
        log.disk = log.disk.kill()
        assert log.disk.digest() == before, facts


def check_opens(log: Log, facts: Facts) -> None:
    """What was durable is there, as a prefix; the next time the same; and it goes on."""
    found = log.ids()
    assert found == names(len(found)) and log.durable <= len(found) <= log.logged, (facts, len(found), log.durable)
    assert log.ids() == found, facts


# -- names and files


def test_every_name_in_the_directory_has_one_verdict() -> None:
    base = new().closed(50)
    spellings = {
        "control": ["control"],
        "segment": ["segment-00000000000000f0.wal"],
        "spare": [spare_name(base.disk)],
        "temporary": ["control.tmp"],
        "unknown": ["segment-1.wal", "foo.tmp", "control.bak", "segment-00000000000000F0.wal", "spare-0.wal", "x"],
    }
    seen = set()
    for facts in NAME.combinations():
        for name in spellings[facts["name"]]:
            log = base.copy()
            path = f"{WAL}/{name}"
            if facts["kind"] == "other":
                if name == "control":
                    log.unlink(path)
                log.disk.make_directory(path)
            elif name != "control":
                log.make(path, b"" if facts["name"] == "segment" else b"not ours")
            seen.add(check_name(log, facts, path))
    assert seen == {verdict.label for verdict in NAME.rows}


def check_name(log: Log, facts: Facts, path: str) -> str:
    verdict = row_of(NAME, facts)
    found, reached = log.survey()
    if verdict.error is not None:
        assert isinstance(found, verdict.error)
        assert found.verdict == verdict.label
        check_refused(log, found, facts)
        return verdict.label
    if facts["name"] == "control":
        return check(log, NAME, facts, path)
    assert [one.verdict.label for one in reached if one.path == path][:1] == [verdict.label]
    check_opens(log, facts)
    if facts["name"] in ("temporary", "unknown") or facts["kind"] == "other":
        assert log.disk.exists(path), facts
    return verdict.label


def test_what_is_left_over_is_cleared_away() -> None:
    log = new().killed(3 * PER_SEGMENT + 5, 5)
    wal = log.open()
    wal.release(log.lsns[2 * PER_SEGMENT + 3])
    kept = log.read(log.path(0), 0, SIZE)
    log.disk.run_workers()
    log.disk = log.disk.kill()
    assert not log.disk.exists(log.path(0))
    log.make(log.path(0), kept)  # its removal was not yet durable
    _, reached = log.survey()
    labels = {one.path: one.verdict.label for one in reached if one.verdict in REST.rows}
    assert labels[log.path(0)] == "rest-released"
    assert labels[log.path(2)] == "rest-log"
    assert "rest-behind" in labels.values()
    assert set(labels.values()) == {verdict.label for verdict in REST.rows}
    log.open()
    assert not log.disk.exists(log.path(0))


# -- control files


def test_every_pair_of_slots_has_one_verdict() -> None:
    seen = set()
    for base in (new().killed(20, 5), new().closed(20)):
        content = base.read(f"{WAL}/control", 0, 8192)
        for facts in SLOTS.combinations():
            log = base.copy()
            log.write(f"{WAL}/control", 0, slot_pages(LOG_CONTROL, content, facts))
            seen.add(check(log, SLOTS, facts, f"{WAL}/control"))
    assert seen == {verdict.label for verdict in SLOTS.rows}


@pytest.mark.parametrize("kept", [0, 1, 100, 4095, 4096, 5000, 8191])
def test_control_file_cut_short_is_judged_by_what_is_left_of_it(kept: int) -> None:
    log = new().killed(20, 5)
    log.make(f"{WAL}/control", log.read(f"{WAL}/control", 0, 8192)[:kept])
    found, _ = log.survey()
    if isinstance(found, OpenError):
        assert kept < 4096
        assert found.verdict in ("slots-lost", "slots-alien")
        check_refused(log, found, {})
    else:
        check_opens(log, {})


# -- headers


def sealed_and_open() -> Log:
    """Segments 0 and 1 sealed, 2 with durable entries, those behind prepared."""
    log = new().closed(PER_SEGMENT * 2 + 10)
    return log.killed(10, 2)


def test_every_pair_of_header_copies_has_one_verdict_wherever_the_segment_is() -> None:
    base = sealed_and_open()
    control, _ = base.survey()
    assert not isinstance(control, OpenError)
    identity = control.control.identity
    seen = set()
    for facts in HEADER.combinations():
        released = facts["where"] == "released"
        for index, number in enumerate((0, 1, 2, 4)):
            log = base.copy()
            assert log.disk.exists(log.path(number))
            put_header(log, number, facts, misplaced="overlapping" if index % 2 else "misplaced")
            verdict = row_of(HEADER, facts)
            try:
                info = inspect_segment(log.disk, WAL, identity, number, released=released)
                found = info.header.label if info else "header-released" if released else "header-blank"
                kind = None
            except OpenError as error:
                found, kind = str(error.verdict), type(error)
            assert (found, kind) == (verdict.label, verdict.error), (facts, number)
            seen.add(found)
            if not released and (facts["second"] in ("sound", "blank") or number == 2):
                check_header_promise(log, verdict, facts, number)
    assert seen == {verdict.label for verdict in HEADER.rows}


def check_header_promise(log: Log, verdict: Verdict, facts: Facts, number: int) -> None:
    found, reached = log.survey()
    if verdict.error is not None or (verdict.label == "header-blank" and number < 4):
        assert isinstance(found, OpenError), (facts, number)
        assert getattr(found, "path") == log.path(number)  # noqa: B009 (of every class that it can be)
        check_refused(log, found, facts)
        return
    assert not isinstance(found, OpenError), (facts, number, found)
    assert [one.verdict.label for one in reached if one.path == log.path(number) and one.verdict in HEADER.rows] == [
        verdict.label
    ]
    assert any("[header-one-lost]" in note for note in found.notes) == verdict.noted
    check_opens(log, facts)


# -- links and seals


def with_successor(kernel: Any, before: str, frames: str) -> Log:
    """Segment 0 sealed, full or at a cut; segment 1 behind it, with entries that record that, or without any."""
    log = new(kernel)
    if before == "full":
        log = log.closed(PER_SEGMENT + 10) if frames == "record" else log.closed(PER_SEGMENT)
    else:
        log = log.killed(10, 2).cut()
    return log.killed(6, 1) if frames == "record" else log.killed()


def test_every_link_behind_a_sealed_segment_has_one_verdict(kernel: Any) -> None:
    seen = set()
    for facts in JOIN.combinations():
        base = with_successor(kernel, facts["before"], facts["frames"])
        fields = link_fields(base)
        for content in link_states(fields)[facts["link"]]:
            log = base.copy()
            put_link(log, 1, content)
            seen.add(check(log, JOIN, facts, log.path(1)))
    assert seen == {verdict.label for verdict in JOIN.rows}


def link_fields(log: Log) -> dict[str, Any]:
    fields = LINK.unpack(log.read(log.path(1), LINK_OFFSET, LINK.size))
    footer = log.fields(FOOTER, log.path(0), SIZE - FOOTER_BYTES)
    if fields is None:  # the writer died before it wrote it
        info = log.fields(SEGMENT_HEADER, log.path(1), 0)
        fields = {"number": 1, "salt": info["salt"], "previous_last_crc": footer["last_crc"]}
    return {**fields, "previous_number": 0, "previous_end_lsn": footer["end_lsn"]}


def test_every_seal_has_one_verdict(kernel: Any) -> None:
    base = new(kernel).closed(PER_SEGMENT + 10).killed(6, 1)
    footer = base.fields(FOOTER, base.path(0), SIZE - FOOTER_BYTES)
    seen = set()
    for facts in SEAL.combinations():
        for content in footer_states(footer)[facts["footer"]]:
            log = base.copy()
            put_footer(log, 0, content)
            if facts["next"] == "silent":
                put_link(log, 1, bytes(LINK.size))
            if facts["frames"] == "broken":
                log.flip(log.start_of(7))
            if facts["footer"] == "sound" and facts["frames"] == "broken":
                seen.add(check_seal_that_hides_damage(log, facts))
            else:
                seen.add(check(log, SEAL, facts, log.path(0)))
    assert seen == {verdict.label for verdict in SEAL.rows}


def check_seal_that_hides_damage(log: Log, facts: Facts) -> str:
    """A sealed segment is not scanned when a log alone is opened; whoever reads it is told."""
    _, reached = log.survey()
    labels = [one.verdict.label for one in reached if one.path == log.path(0) and one.verdict in SEAL.rows]
    assert labels == [row_of(SEAL, facts).label]
    with pytest.raises(DamageError) as caught:
        log.ids()
    assert (caught.value.verdict, caught.value.lsn) == ("entry-damaged", log.start_of(7))
    return labels[0]


# -- where the log begins


def oldest(recorded: str, mark: str) -> Log:
    if mark == "yes":
        return new().closed(5) if recorded == "yes" else new().closed(0)
    return new().killed(5) if recorded == "yes" else new().begun()


def test_every_beginning_has_one_verdict() -> None:
    seen = set()
    for facts in OLDEST.combinations():
        log = oldest(facts["recorded"], facts["mark"])
        if facts["segment"] == "missing":
            log.unlink(log.path(0))
        seen.add(check(log, OLDEST, facts, None))
    assert seen == {verdict.label for verdict in OLDEST.rows}


def marked(end: str) -> Log:
    return new().closed(PER_SEGMENT * 2 if end == "closed" else PER_SEGMENT * 2 + 10)


def test_every_mark_of_a_clean_close_has_one_verdict() -> None:
    seen = set()
    for facts in MARK.combinations():
        log = marked(facts["end"])
        if facts["mark"] == "no":
            log = log.killed(3, 1)
        last = 1 if facts["end"] == "closed" else 2
        if facts["end"] == "missing":
            log.unlink(log.path(last))
        if facts["before"] == "missing":
            log.unlink(log.path(last - 1))
        if facts["before"] == "unsealed":
            log.write(log.path(last - 1), SIZE - FOOTER_BYTES, b"rot")
        if facts["before"] == "missing" and last == 1:
            seen.add(check_no_beginning(log))
        else:
            seen.add(check(log, MARK, facts, None))
    assert seen - {"oldest-missing"} == {verdict.label for verdict in MARK.rows}


def check_no_beginning(log: Log) -> str:
    """Before the mark is looked at, the log must begin."""
    found, _ = log.survey()
    assert isinstance(found, OpenError)
    check_refused(log, found, {})
    assert found.verdict is not None
    return found.verdict


# -- where the log ends


def broken(log: Log, stop: str, index: int) -> None:
    """Lets the frames stop at an entry: nothing is there, or something that is broken."""
    if stop == "nothing":
        log.zero(log.start_of(index), 8)
    else:
        log.flip(log.start_of(index))


def ends_inside(kernel: Any, facts: Facts) -> Log:
    """The frames end inside segment 0."""
    behind, proof = facts["behind"] == "frames", facts["proof"] == "yes"
    log = new(kernel)
    if not proof:
        log = log.killed(20)
        if behind or facts["stop"] == "broken":
            broken(log, facts["stop"], 12 if behind else 19)
    elif behind:
        log = log.killed(20, 1)
        broken(log, facts["stop"], 12)
    else:
        log = log.closed(20).killed()  # only the control file proves it
        broken(log, facts["stop"], 19)
    return log


def ends_full(kernel: Any, facts: Facts) -> Log:
    """Segment 0 is full, or sealed at a cut, and nothing that begins segment 1 is whole."""
    behind, proof, missing = facts["behind"] == "frames", facts["proof"] == "yes", facts["next"] == "missing"
    log = new(kernel)
    if not proof and missing:
        log = log.killed(20).cut().killed()  # a full segment would prove that there was another
    elif not proof:
        log = log.killed(PER_SEGMENT + 5 * behind)
        if behind:
            log.zero(log.start_of(PER_SEGMENT), 8)
    elif behind:
        log = log.killed(PER_SEGMENT * 2 + 5, 1)
        if not missing:
            log.zero(log.start_of(PER_SEGMENT), 8)
    else:
        log = log.closed(PER_SEGMENT + 5).killed()
        if not missing:
            log.zero(log.start_of(PER_SEGMENT), 5 * FRAME)
    if missing:
        log.unlink(log.path(1))
    for number in range(2, 9):
        if missing and not proof and log.disk.exists(log.path(number)):
            log.unlink(log.path(number))
    return log


def test_every_end_has_one_verdict(kernel: Any) -> None:
    seen = set()
    for facts in END.combinations():
        log = (ends_full if facts["stop"] == "full" else ends_inside)(kernel, facts)
        label = check(log, END, facts, None)
        seen.add(label)
    assert seen == {verdict.label for verdict in END.rows}


@pytest.mark.parametrize(
    "facts", list(each(END.combinations(), proof="yes")), ids=lambda facts: "-".join(facts.values())
)
def test_refusal_of_an_end_names_the_place(facts: Facts) -> None:
    log = (ends_full if facts["stop"] == "full" else ends_inside)(PY, facts)
    found, _ = log.survey()
    assert isinstance(found, DamageError)
    number = 1 if facts["stop"] == "full" else 0
    at = log.start_of(PER_SEGMENT if number else 12 if facts["behind"] == "frames" else 19)
    assert found.path == log.path(number)
    assert found.lsn in (at, number * SIZE + DATA_OFFSET)


def lengths() -> Iterator[tuple[str, Callable[[int], int]]]:
    yield "zero", lambda word: word >> 26 << 26
    yield "one", lambda word: word >> 26 << 26 | 1
    yield "one-less", lambda word: word - 1
    yield "one-more", lambda word: word + 1
    yield "to-the-end", lambda word: word >> 26 << 26 | (SIZE // 64)
    yield "greatest", lambda word: word | (1 << 26) - 1


@pytest.mark.parametrize("proven", [False, True], ids=["never-synced", "durable"])
@pytest.mark.parametrize("name", [name for name, _ in lengths()])
def test_hostile_length_under_a_valid_tag_is_a_cut_or_corruption(name: str, proven: bool, kernel: Any) -> None:
    log = new(kernel).killed(20, 1) if proven else new(kernel).killed(21)
    start = log.start_of(12)
    word = int.from_bytes(log.read(log.path(0), start % SIZE, 8), "little")
    log.write(log.path(0), start % SIZE, dict(lengths())[name](word).to_bytes(8, "little"))
    found, reached = log.survey()
    if proven:
        assert isinstance(found, DamageError)
        assert (found.verdict, found.lsn, found.offset) == ("end-damaged", start, start % SIZE)
        check_refused(log, found, {})
    else:
        assert reached[-1].verdict in REST.rows
        assert "end-torn" in [one.verdict.label for one in reached]
        assert log.ids() == names(12)


# -- the checks of this page


@pytest.mark.parametrize(
    ("place", "facts", "path"),
    [
        pytest.param(SEAL, {"footer": "sound", "next": "names", "frames": "whole"}, 0, id="another-row"),
        pytest.param(SEAL, {"footer": "none", "next": "names", "frames": "broken"}, 0, id="a-refusal"),
        pytest.param(SEAL, {"footer": "none", "next": "names", "frames": "whole"}, 1, id="another-file"),
    ],
)
def test_check_fails_where_another_row_is_reached(place: Place, facts: Facts, path: int) -> None:
    log = new().closed(PER_SEGMENT + 10).killed(6, 1)
    put_footer(log, 0, bytes(FOOTER.size))
    right = {"footer": "none", "next": "names", "frames": "whole"}
    assert check(log.copy(), SEAL, right, log.path(0)) == "seal-by-link"
    with pytest.raises(AssertionError):
        check(log, place, facts, log.path(path))


def test_check_fails_where_less_is_found_than_was_durable_or_more_than_was_logged() -> None:
    log = new().killed(20, 1)
    check_opens(log.copy(), {})
    for durable, logged in ((22, 22), (0, 20)):
        wrong = log.copy()
        wrong.durable, wrong.logged = durable, logged
        with pytest.raises(AssertionError):
            check_opens(wrong, {})


def test_check_fails_where_a_refusal_does_not_come_or_is_another() -> None:
    log = new().killed(20, 1)
    error = WalCorruptionError(log.path(0), "problem", offset=1, lsn=1)
    with pytest.raises(pytest.fail.Exception):
        check_refused(log.copy(), error, {})
    log.unlink(log.path(0))
    with pytest.raises(AssertionError):
        check_refused(log, error, {})
