"""A power cut: what the disk may be left with at one instant, and how one such image is chosen and rebuilt.

Every unsettled page is left, unit by unit, with its durable content or any later one; every unsettled size is
the old or the new one; of the pending name operations a prefix survives (ordered) or any feasible subset
(weak). All choices are independent of each other. Units are 4096, 512 or 8 bytes.

A choice is a string, ``names/sizes/kind.unit...``, from which the same image is rebuilt on the same state:

    names    bit i: pending operation i survived (hexadecimal)
    sizes    bit i: file i of those with an unsettled size has the new one (hexadecimal)
    new, old            every page has its newest, its durable content
    but.U.k, one.U.k    unit k alone is durable, alone is newest
    fwd.U.k, rev.U.k    of all changes of units in the order they were seen, the first k, the last k survived
    all.U.k             combination k of all, counted unit by unit
    rnd.U.P.s           each unit survives with P percent, from seed s; U = 0: each page draws its own unit
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmwal.testing.inode import PAGE, Content, History, Inode

if TYPE_CHECKING:
    from mmwal.testing.names import Entries, Names

Contents = dict[str, Content]  # by path

UNITS = (4096, 512, 8)
CHANCES = (50, 10, 90)
_FAR = 1 << 63
_PLACES = {unit: np.arange(PAGE // unit) for unit in UNITS}
FEW = 64  # where so few images are possible, a smaller budget takes a sample of them


class PowerCut:
    """What a power cut may leave of a state. Valid until the state changes."""

    def __init__(self, names: Names) -> None:
        self._names = names
        reachable = names.reachable()
        self.loose: list[tuple[Inode, int, History]] = [
            (inode, page, history) for inode in reachable for page, history in sorted(inode.history.items())
        ]
        self.unsized = [inode for inode in reachable if inode.size != inode.durable_size]
        self._units: dict[int, list[tuple[int, int]]] = {}
        self._variants: dict[int, list[tuple[int, int, list[int]]]] = {}
        self._updates: dict[int, list[tuple[int, int, int, list[int]]]] = {}
        self._after: dict[int, tuple[Entries, int]] = {}

    # ---- choosing

    def choices(self, rng: random.Random, budget: int, names: str = "both") -> Iterator[str]:
        """Yields up to ``budget`` choices: all if they fit, else telling ones, then random ones."""
        if budget <= 0:
            return
        if not (self.loose or self.unsized or self._names.pending):
            yield "0/0/new"
            return
        masks = self._name_masks(names, max(budget, FEW))
        units: tuple[int, ...] = UNITS
        for unit in reversed(UNITS) if masks else ():
            count, groups = self._groups(masks, unit, max(budget, FEW))
            if count <= budget or (count <= FEW and unit == 8):
                every = self._in_groups(groups, unit)
                yield from every if count <= budget else rng.sample(list(every), budget)
                budget -= min(count, budget)
                units = tuple(finer for finer in UNITS if finer < unit)
                break
        else:
            corners = list(dict.fromkeys(self._corners(names)))
            chosen = min(len(corners), int(budget / 3 + rng.random()))
            yield from corners if chosen == len(corners) else rng.sample(corners, chosen)
            budget -= chosen
        if units and budget:
            structured_max = int(budget / 2 + rng.random())
            yield from itertools.islice(self._drawn(rng, units, structured_max, names), budget)

    def words(self) -> int:
        """Returns how many 8-byte words have more than one content."""
        return len(self._unit_list(8))

    def _corners(self, names: str) -> Iterator[str]:
        every, sizes = (1 << len(self._names.pending)) - 1, (1 << len(self.unsized)) - 1
        for mask, size, kind in (
            (every, sizes, "new"),
            (every, 0, "old"),
            (0, 0, "old"),
            (every, sizes, "old"),
            (0, sizes, "new"),
        ):
            yield f"{self._left(mask)[1]:x}/{size:x}/{kind}"

    def _drawn(self, rng: random.Random, units: tuple[int, ...], structured_max: int, names: str) -> Iterator[str]:
        """Yields the structured choices, all or a sample of them, then random ones without end."""
        counts = [
            (kind, unit, count)
            for unit in units
            for kind, count in (
                ("but", len(self._unit_list(unit))),
                ("one", len(self._unit_list(unit))),
                ("fwd", self._update_count(unit) - 1),
                ("rev", self._update_count(unit) - 1),
            )
            if count > 0
        ]
        if sum(count for _, _, count in counts) <= structured_max:
            for kind, unit, count in counts:
                for k in range(count):
                    yield f"{self._metadata(rng, names)}/{kind}.{unit}.{k + (kind in ('fwd', 'rev'))}"
        elif counts:
            for _ in range(structured_max):
                ((kind, unit, count),) = rng.choices(counts, [min(count, 16) for _, _, count in counts])
                k = rng.randrange(count) + (kind in ("fwd", "rev"))
                yield f"{self._metadata(rng, names)}/{kind}.{unit}.{k}"
        if len(self.loose) < 6 and units != (4096,):
            units = tuple(unit for unit in units if unit != 4096)
        while True:
            unit, chance = rng.choice((0, 8, *units)), rng.choice(CHANCES)
            yield f"{self._metadata(rng, names)}/rnd.{unit}.{chance}.{rng.getrandbits(32):x}"

    def _metadata(self, rng: random.Random, names: str) -> str:
        """Draws names and sizes: often all, else each all, none or a part."""
        count, unsized = len(self._names.pending), len(self.unsized)
        mask, sizes = (1 << count) - 1, (1 << unsized) - 1
        if (count or unsized) and rng.random() < 0.5:
            way = rng.randrange(4)
            if way == 1:
                mask = 0
            elif way == 2 or (way == 3 and names == "ordered"):
                mask = (1 << rng.randrange(count + 1)) - 1
                if names == "weak":
                    mask = rng.getrandbits(count + 1) >> 1
            elif way == 3:
                mask = rng.getrandbits(count + 1) >> 1
            sizes = rng.choice((sizes, 0, rng.getrandbits(unsized + 1) >> 1))
        return f"{self._left(mask)[1]:x}/{sizes:x}"

    def _name_masks(self, names: str, limit: int) -> list[int]:
        """Returns every set of operations that may survive; none at all if they are too many."""
        count = len(self._names.pending)
        prefixes = [(1 << length) - 1 for length in range(count, -1, -1)]
        if names == "ordered":
            return prefixes
        subsets = range(1 << count) if 1 << count <= limit else ()
        return list(dict.fromkeys(self._left(mask)[1] for mask in [*prefixes, *subsets])) if subsets else []

    def _groups(self, masks: list[int], unit: int, limit: int) -> tuple[int, list[tuple[str, list[int]]]]:
        """Returns how many images there are, and for each choice of names and sizes which units are in them.

        Gives up beyond the limit.
        """
        total, groups = 0, []
        if len(self._unit_list(unit)) > limit.bit_length() + 8:
            return limit + 1, []
        placed = [
            (place, self.loose[loose][0].number, self.loose[loose][1] * PAGE + index * unit, len(distinct))
            for place, (loose, index, distinct) in enumerate(self._variant_list(unit))
        ]
        for mask in masks:
            named = {inode.number for inode in self._left(mask)[0].values()}
            sized = [1 << place for place, inode in enumerate(self.unsized) if inode.number in named]
            for kept in range(1 << len(sized)):
                sizes = sum(bit for place, bit in enumerate(sized) if kept >> place & 1)
                ends = {
                    inode.number: inode.durable_size
                    for place, inode in enumerate(self.unsized)
                    if not sizes >> place & 1
                }
                inside = [part for part in placed if part[1] in named and part[2] < ends.get(part[1], _FAR)]
                total += math.prod([count for _, _, _, count in inside])
                if total > limit:
                    return total, []
                groups.append((f"{mask:x}/{sizes:x}", [place for place, _, _, _ in inside]))
        return total, groups

    def _in_groups(self, groups: list[tuple[str, list[int]]], unit: int) -> Iterator[str]:
        """Yields the choices of the groups, with the newest content for each unit that an image does not have."""
        bases = [len(distinct) for _, _, distinct in self._variant_list(unit)]
        weights = [math.prod(bases[:place]) for place in range(len(bases))]
        for metadata, inside in groups:
            for digits in itertools.product(*(range(bases[place]) for place in inside)):
                k = sum(digit * weights[place] for digit, place in zip(digits, inside, strict=True))
                yield f"{metadata}/all.{unit}.{k}"

    def _size(self, inode: Inode, sizes: int) -> int:
        """Returns the size that a file is left with."""
        if inode in self.unsized and not sizes >> self.unsized.index(inode) & 1:
            return inode.durable_size
        return inode.size

    # ---- building

    def build(self, choice: str) -> Contents:
        """Returns the names and files that a choice leaves; what no choice can change is shared."""
        mask, sizes, kind = choice.split("/")
        names, _ = self._left(int(mask, 16))
        picked: dict[int, dict[int, bytes]] = {}
        for (inode, page, _), content in zip(self.loose, self._pages(kind), strict=True):
            picked.setdefault(inode.number, {})[page] = content
        kept = int(sizes, 16)
        return {path: inode.cut(self._size(inode, kept), picked.get(inode.number, {})) for path, inode in names.items()}

    def _pages(self, kind: str) -> list[bytes]:
        """Returns a content for every loose page."""
        name, *numbers = kind.split(".")
        if name == "new":
            return [history.contents[-1] for _, _, history in self.loose]
        if name == "old":
            return [history.contents[0] for _, _, history in self.loose]
        unit = int(numbers[0])
        if name == "rnd":
            return self._random(unit, int(numbers[1]), int(numbers[2], 16))
        k = int(numbers[1])
        if name == "all":
            return self._combination(unit, k)
        if name in ("but", "one"):
            return self._single(unit, k, name == "one")
        return self._first(unit, k) if name == "fwd" else self._last(unit, k)

    def _single(self, unit: int, k: int, only: bool) -> list[bytes]:
        pages = [history.contents[0 if only else -1] for _, _, history in self.loose]
        place, index = self._unit_list(unit)[k]
        other = self.loose[place][2].contents[-1 if only else 0]
        low, high = index * unit, (index + 1) * unit
        pages[place] = pages[place][:low] + other[low:high] + pages[place][high:]
        return pages

    def _first(self, unit: int, k: int) -> list[bytes]:
        """The first ``k`` changes: whole versions, then a part of one, in the order of the file."""
        pages = [history.contents[0] for _, _, history in self.loose]
        for _, place, version, units in self._update_list(unit):
            content = self.loose[place][2].contents[version]
            if k >= len(units):
                pages[place] = content
            else:
                cut = units[k] * unit
                pages[place] = content[:cut] + pages[place][cut:]
                break
            k -= len(units)
        return pages

    def _last(self, unit: int, k: int) -> list[bytes]:
        """The last ``k`` changes: each unit that one of them touched has its newest content."""
        touched: dict[int, npt.NDArray[np.bool_]] = {}
        for _, place, _, units in reversed(self._update_list(unit)):
            if k <= 0:
                break
            touched.setdefault(place, np.zeros(PAGE // unit, np.bool_))[units[-k:]] = True
            k -= len(units)
        return [
            mixed(history, unit, np.where(touched[place], len(history.contents) - 1, 0))
            if place in touched
            else history.contents[0]
            for place, (_, _, history) in enumerate(self.loose)
        ]

    def _combination(self, unit: int, k: int) -> list[bytes]:
        pages: list[Any] = [history.contents[-1] for _, _, history in self.loose]
        for place, index, distinct in self._variant_list(unit):
            k, digit = divmod(k, len(distinct))
            if digit:  # 0 is the newest
                if isinstance(pages[place], bytes):
                    pages[place] = bytearray(pages[place])
                content = self.loose[place][2].contents[distinct[-1 - digit]]
                pages[place][index * unit : (index + 1) * unit] = content[index * unit : (index + 1) * unit]
        return [bytes(page) for page in pages]

    def _random(self, unit: int, chance: int, seed: int) -> list[bytes]:
        rng = random.Random(seed)
        pages = []
        for _, _, history in self.loose:
            newest = len(history.contents) - 1
            drawn = unit or UNITS[rng.randrange(len(UNITS))]
            if drawn == PAGE:
                survives = rng.random() * 100 < chance
                version = newest if not survives or rng.random() < 0.5 else rng.randint(1, newest)
                pages.append(history.contents[version if survives else 0])
                continue
            count = PAGE // drawn
            survived = np.frombuffer(rng.randbytes(count), np.uint8) < chance * 256 // 100
            if newest == 1:
                chosen = survived.astype(np.intp)
            else:  # the newest content half of the time, else any later than the durable one
                draw = np.frombuffer(rng.randbytes(2 * count), np.uint16).astype(np.intp)
                later = np.where(draw < 1 << 15, 1 + (draw * newest >> 15), newest)
                chosen = np.where(survived, later, 0)
            pages.append(mixed(history, drawn, chosen))
        return pages

    # ---- tables, made when first asked for

    def _unit_list(self, unit: int) -> list[tuple[int, int]]:
        """Units with more than one content, as (place in `loose`, index in the page)."""
        if unit not in self._units:
            self._units[unit] = [
                (place, index) for place, (_, _, history) in enumerate(self.loose) for index in history.units(unit)
            ]
        return self._units[unit]

    def _variant_list(self, unit: int) -> list[tuple[int, int, list[int]]]:
        """The same with one version of every distinct content."""
        if unit not in self._variants:
            self._variants[unit] = [
                (place, index, self.loose[place][2].distinct(unit, index)) for place, index in self._unit_list(unit)
            ]
        return self._variants[unit]

    def _update_list(self, unit: int) -> list[tuple[int, int, int, list[int]]]:
        """Changes in the order seen, as (sequence, place in `loose`, version, units that it changed)."""
        if unit not in self._updates:
            self._updates[unit] = sorted(
                (history.sequence[version], place, version, changed)
                for place, (_, _, history) in enumerate(self.loose)
                for version, changed in enumerate(history.updates(unit), 1)
            )
        return self._updates[unit]

    def _update_count(self, unit: int) -> int:
        return sum(len(changed) for _, _, history in self.loose for changed in history.updates(unit))

    def _left(self, mask: int) -> tuple[Entries, int]:
        """The names left when the operations of ``mask`` survive, and which were feasible."""
        if mask not in self._after:
            self._after[mask] = self._names.after(mask)
        return self._after[mask]


def key_of(contents: Contents, directories: list[str]) -> int:
    """Returns a hash of all names, sizes and bytes; equal images have equal ones, in one process."""
    files = sorted([(path, content.key()) for path, content in contents.items()])
    return hash((*files, *directories))


def mixed(history: History, unit: int, versions: npt.NDArray[np.intp]) -> bytes:
    """Returns a page with each unit taken from the version given for it."""
    stack = history.stack()
    units = stack.reshape(len(stack), PAGE // unit, unit // 8)
    return units[versions, _PLACES[unit]].tobytes()
