"""The mapping (``mapping.h``, ``publish.h``) and the restoring of frames (``restore.h``), in the
same C that the patched libpcap is built from.

Times are milliseconds of CLOCK_REALTIME, 32 bits, wrapping. Flows are of IPv4; with others every
method raises :class:`ValueError`.
"""

from typing import Final, final

from m2m.protocol.flow import Flow

MIN_CELLS: Final[int]
MAX_CELLS: Final[int]

def size_of(cells: int) -> int:
    """Bytes of a mapping with so many cells."""

def lay_out(memory: object, cells: int, netns_dev: int, netns_ino: int) -> None:
    """Make zeroed *memory* an empty mapping. *cells* is a power of two."""

@final
class Table:
    """A mapping in memory, for its one writer; reading needs no more than ``find``."""

    def __init__(self, memory: object) -> None:
        """*memory*: a writable buffer. Raises :class:`ValueError` telling what is wrong with it."""

    def __len__(self) -> int:
        """How many cells there are."""

    @property
    def netns(self) -> tuple[int, int]:
        """Device and inode of the network namespace that it is of."""

    @property
    def refused(self) -> int:
        """How many tuples have found no room."""

    def replace(self) -> None:
        """Tell readers that another file is at this one's path now."""

    def publish(self, flow: Flow, name: Flow, again: bool, now: int) -> int:
        """Packets with the tuple *flow* belong to *name*. 1: they had not, 0: they had already,
        -1: there is no room. *again*: this host has received them as another tuple before."""

    def end(self, flow: Flow) -> bool:
        """The tuple is of no session any more; late packets still find the name for a while."""

    def find(self, flow: Flow, when: int | None = None) -> tuple[Flow, bool] | None:
        """The name of *flow* as captured at *when*, and whether it is seen again."""

    def sweep(self, cells: int) -> None:
        """Go through the next *cells*: what was over at the sweep before is forgotten."""

    def take_over(self) -> None:
        """Doubt all tuples that are there until they are published again."""

    def taken_over(self) -> int:
        """Those that were not published again are over; how many."""

    def count(self) -> tuple[int, int]:
        """Tuples of sessions, and those that are over but not forgotten."""

@final
class Restorer:
    """What the patched libpcap has for each handle."""

    def __init__(self, table: Table) -> None: ...
    def restore(
        self, link: int, frame: bytes, when: int = 0, *, partial: bool = False, timed: bool = True
    ) -> tuple[bytes, int]:
        """The frame as captured with link type *link* (a DLT), restored; and 0: as it was,
        1: restored, 2: restored and seen again."""

    @property
    def fragments(self) -> int:
        """Later fragments whose first was not seen."""
