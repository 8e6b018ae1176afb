"""Streaming reader of a big json object: its lists by elements, so that memory holds only one of them.

By the standard library's decoder: orjson, msgspec and ijson refuse a whole file for one NaN, which here is one bad
record that is named and left out; and the first two want all of the file in memory.
"""

import codecs
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

_CHUNK = 1 << 22  # bytes read at a time
_LARGEST = 1 << 28  # characters of one element; more is a broken file (or no data set)
_TAIL = 16  # an error this close to the end of what was read may be due to the end alone: "\u12", "-Infin", "tru"
_BLANK = " \t\n\r"
_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


class Member(NamedTuple):
    """One piece of the object: an element of the list ``key`` with its ``position``, or a whole value.

    ``position`` is -1 for a whole value; a list that is read by elements comes first as an empty one.
    """

    key: str
    position: int
    value: Any


def read_members(path: str | os.PathLike, lists: Collection[str]) -> Iterator[Member]:
    """Members of the object in a json file, in the file's order; those named in ``lists`` element by element.

    A progress bar over the file's bytes shows when it takes more than a few seconds. NaN and infinity are taken.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not valid json (names line and column), not an object, a key twice, not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotation file not found: {path}")
    size = path.stat().st_size
    with tqdm(total=size, desc=f"read {path.name}", unit="B", unit_scale=True, delay=3, leave=False) as bar:
        with path.open("rb") as file:
            yield from _Reader(file, path, bar).members(lists)


class _Reader:
    """A window of text that moves over the file; ``_at`` is where in it the next token starts."""

    def __init__(self, file, path: Path, bar: tqdm):
        self._file, self._path, self._bar = file, path, bar
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._end_of_file = "", 0, False
        self._lines, self._columns = 1, 1  # of the window's first character
        self._bytes_read = 0

    def members(self, lists: Collection[str]) -> Iterator[Member]:
        if self._peek() not in ("{", ""):
            raise ValueError(f"{self._path}: expected an object with 'images', 'annotations' and 'categories'")
        if not self._text:
            self._fail("the file is empty")
        seen = set()
        for _ in self._elements("{", "}"):
            key = self._key()
            if key in seen:
                self._fail(f"key '{key}' is there twice")
            seen.add(key)
            if key in lists and self._peek() == "[":
                yield Member(key, -1, [])
                for position, _ in enumerate(self._elements("[", "]")):
                    yield Member(key, position, self._value())
            else:
                yield Member(key, -1, self._value())
        if self._peek():
            self._fail("data after the end of the object")

    def _elements(self, opening: str, closing: str) -> Iterator[None]:
        """Pauses at the start of every element; who asks for the next must have read this one."""
        self._at += len(opening)
        if self._peek() == closing:
            self._at += 1
            return
        while True:
            yield
            found = self._peek()
            if found not in (",", closing):
                self._fail(f"expected ',' or '{closing}'")
            self._at += 1
            if found == closing:
                return
            if self._peek() == closing:
                self._fail(f"a comma before '{closing}'")

    def _key(self) -> str:
        if self._peek() != '"':
            self._fail("expected a key in double quotes")
        key = self._value()
        if self._peek() != ":":
            self._fail("expected ':'")
        self._at += 1
        self._peek()
        return key

    def _peek(self) -> str:
        """The next character that is no space, without taking it; empty at the end of the file."""
        while True:
            found = self._text[self._at : self._at + 1]
            if found not in _BLANK:  # an empty one is in it
                return found
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at == len(self._text) and not self._read_more():
                return ""

    def _value(self) -> Any:
        while True:
            try:
                value, end = _decode(self._text, self._at)
                if end >= len(self._text) - _TAIL and self._read_more():
                    continue  # a number may go on in the next chunk
                self._at = end
                return value
            except json.JSONDecodeError as error:
                unterminated = error.msg.startswith("Unterminated")
                cut_off = unterminated or error.pos >= len(self._text) - _TAIL
                if not cut_off or len(self._text) - self._at > _LARGEST or not self._read_more():
                    self._fail(error.msg, error.pos, truncated=unterminated)
            except RecursionError:
                self._fail("nested too deeply")
            except ValueError as error:  # a number of thousands of digits
                self._fail(str(error))

    def _read_more(self) -> bool:
        """Drop what was read and append a chunk; False, and nothing changes, at the end of the file."""
        if self._end_of_file:
            return False
        chunk = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._end_of_file = not chunk
        try:
            fresh = self._bytes.decode(chunk, final=self._end_of_file)
        except UnicodeDecodeError as error:
            where = f"not UTF-8 text near byte {self._bytes_read + error.start} ({error.reason})"
            raise ValueError(f"{self._path} is not valid json: {where}") from error
        if self._end_of_file:
            return False
        done = self._text[: self._at]
        self._columns = len(done) - done.rfind("\n") if "\n" in done else self._columns + len(done)
        self._lines += done.count("\n")
        self._text, self._at = self._text[self._at :] + fresh, 0
        self._bytes_read += len(chunk)
        self._bar.update(len(chunk))
        return True

    def _fail(self, message: str, at: int | None = None, *, truncated: bool = False) -> None:
        before = self._text[: self._at if at is None else at]
        line = self._lines + before.count("\n")
        column = len(before) - before.rfind("\n") if "\n" in before else self._columns + len(before)
        rest = self._text[len(before) :]
        truncated = self._end_of_file and (truncated or not ("]" in rest or "}" in rest))
        state = "not valid json (truncated?)" if truncated else "not valid json"
        raise ValueError(f"{self._path} is {state}: line {line}, column {column}: {message}")
