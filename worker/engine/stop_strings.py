"""Stop strings across token borders: which text may be released, and where a choice stops. No torch.

An automaton over all stop strings (Aho and Corasick, "Efficient string matching", CACM 1975,
doi:10.1145/360825.360855) reads each character once; its depth is the length of the text to hold back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class _Node:
    """One prefix of a stop string; the root is the empty one.

    Attributes:
        depth: length of the prefix.
        fallback: the node of its longest proper suffix that is a prefix too; None for the root.
        found: the longest stop string that the prefix ends with.
    """

    depth: int
    fallback: _Node | None = None
    found: str | None = None
    children: dict[str, _Node] = field(default_factory=dict)


class StopMatcher:
    """Finds the first stop string in a text that comes in pieces.

    The match that starts first wins. A complete match waits while one that starts earlier may still become
    complete. It does not wait for a longer one of equal start, since the text before it is the same; of those
    that one piece completes, the longest is reported.
    Invariant: `_held` is the end of the text read so far, as far as it has not been released.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        """Args: stop_strings: none of them empty; there may be none at all."""
        self._root = _build_automaton(stop_strings)
        self._node = self._root
        self._held = ""
        self._match: tuple[int, str] | None = None  # start in `_held`, stop string

    def push(self, piece: str) -> tuple[str, str | None]:
        """Read a piece; return the text that it releases, and the stop string if the choice ends here."""
        if not self._root.children:
            return piece, None
        position = len(self._held)
        self._held += piece
        for character in piece:
            position += 1
            self._advance(character)
            self._note_match(position)
        alive_start = position - self._node.depth
        if self._match is None or alive_start < self._match[0]:
            return self._release(alive_start), None
        return self.flush()

    def flush(self) -> tuple[str, str | None]:
        """The text still held back when no more comes, and the stop string that it would have ended with."""
        if self._match is None:
            return self._release(len(self._held)), None
        start, stop_string = self._match
        return self._release(start), stop_string

    def _advance(self, character: str) -> None:
        node = self._node
        while character not in node.children and node.fallback is not None:
            node = node.fallback
        self._node = node.children.get(character, self._root)

    def _note_match(self, end: int) -> None:
        found = self._node.found
        if found is None:
            return
        start = end - len(found)
        if self._match is None or start <= self._match[0]:  # of equal start the later one is the longer
            self._match = (start, found)

    def _release(self, length: int) -> str:
        released, self._held = self._held[:length], self._held[length:]
        if self._match is not None:
            self._match = (self._match[0] - length, self._match[1])
        return released


def _build_automaton(stop_strings: Sequence[str]) -> _Node:
    root = _Node(depth=0)
    for stop_string in stop_strings:
        node = root
        for character in stop_string:
            node = node.children.setdefault(character, _Node(node.depth + 1))
        node.found = stop_string
    queue = deque([root])
    while queue:  # shorter prefixes first: a fallback is complete before it is followed
        node = queue.popleft()
        for character, child in node.children.items():
            child.fallback = _fallback_of_child(node, character) or root
            child.found = child.found or child.fallback.found
            queue.append(child)
    return root


def _fallback_of_child(node: _Node, character: str) -> _Node | None:
    fallback = node.fallback
    while fallback is not None and character not in fallback.children:
        fallback = fallback.fallback
    return None if fallback is None else fallback.children[character]
