"""The paged KV cache of the flow in device memory: a page holds what one chunk of one stream leaves for the next."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

from cosyserve.errors import MemoryTaken

EMPTY = 0
"""The page that stands for the time before a stream's first chunk: always zero."""

SCRATCH = 1
"""The page that is never read: rows that only pad a batch write there."""

RESERVED = 2
"""Pages that are never handed out."""


class Page:
    """A page in use; it is free again when the last reference to this object is gone."""

    __slots__ = ("__weakref__", "number")

    def __init__(self, number: int) -> None:
        self.number = number


class PagePool:
    """The pages of one network.

    Args:
        count: pages to hand out; memory must hold `RESERVED` more.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(RESERVED, RESERVED + count))

    @property
    def free(self) -> int:
        """Pages that are free."""
        return len(self._free)

    def take(self, count: int) -> list[Page]:
        """Hand out pages, all or none.

        Raises:
            MemoryTaken: fewer are free.
        """
        if count > len(self._free):
            raise MemoryTaken("the flow's cache memory is in use; try again shortly")
        return [self._page() for _ in range(count)]

    def _page(self) -> Page:
        page = Page(self._free.pop())
        weakref.finalize(page, self._free.append, page.number).atexit = False
        return page


@dataclass(eq=False)
class PageTable:
    """The pages of one stream in one network, oldest first.

    Attributes:
        shared: pages at the front that belong to another stream too.
        window: most pages of its own that it keeps, the newest; 0 keeps all.
        position: pages before the next one, those that a window has trimmed included.
    """

    pages: list[Page] = field(default_factory=list)
    shared: int = 0
    window: int = 0
    position: int = 0

    @property
    def own(self) -> int:
        """Pages of this stream alone."""
        return len(self.pages) - self.shared

    def append(self, page: Page) -> None:
        """Add the newest page."""
        self.pages.append(page)
        self.position += 1
        if self.window and self.own > self.window:
            del self.pages[self.shared]  # trim the oldest

    def fork(self, window: int = 0) -> PageTable:
        """A table that goes on from here; the pages so far are shared."""
        return PageTable(list(self.pages), len(self.pages), window, self.position)
