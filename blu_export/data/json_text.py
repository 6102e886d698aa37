"""JSON as annotation tools write it: in any encoding, and too large to be decoded in one piece."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

START, WHOLE = -2, -1
"""Numbers of what is not an element: where an array begins, and a value that is none."""

_SPACE = re.compile(r"[ \t\r\n]*")
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_SAMPLE = 64
"""Words with letters beyond ASCII that an encoding is guessed from."""
_KANA = re.compile("[\u3040-\u30ff]")
_GB2312 = re.compile(rb"(?:[\xb0-\xd7][\xa1-\xfe]|[\xa1-\xa3][\xa1-\xfe]|[\xd8-\xf7][\xa1-\xfe])+")
_BIG5 = re.compile(rb"(?:[\xa4-\xc6][\x40-\x7e\xa1-\xfe])+")


def decode_text(content: bytes) -> tuple[str, str]:
    """Text from bytes, and the name of its encoding where that was guessed ("" where it is told or UTF-8).

    Raises:
        ValueError: it is text in no encoding that is known here.
    """
    mark = next((name for start, name in _BYTE_ORDER_MARKS.items() if content.startswith(start)), "")
    if mark:
        return content.decode(mark), ""
    if b"\0" in content[:4]:  # UTF-16 or UTF-32 without a mark: JSON begins with ASCII
        return content.decode(json.detect_encoding(content[:8])), ""
    try:
        return content.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        encoding = guess_encoding(content)
        return content.decode(encoding), encoding


def guess_encoding(content: bytes) -> str:
    """The likeliest encoding of text that is not UTF-8, by the places of its bytes.

    Raises:
        ValueError: none of those that are tried.
    """
    words = re.findall(rb"[^\s\",:\[\]{}]*[\x80-\xff][^\s\",:\[\]{}]*", content)[:_SAMPLE]
    runs = [run for word in words for run in re.findall(rb"[\x80-\xff]+", word)]
    letters = b"".join(runs)
    beside_ascii = any(re.search(rb"[A-Za-z]", word) for word in words)
    longest = max(map(len, runs))
    likely = []
    if len(_KANA.findall(b" ".join(words).decode("cp932", "ignore"))) > len(words) / 2:
        likely.append("cp932")
    if sum(byte >= 0xE0 for byte in letters) > 0.7 * len(letters) and min(letters) >= 0xA8 and longest > 2:
        likely.append("cp1251")
    if all(_GB2312.fullmatch(run) for run in runs):
        likely.append("gb18030")
    if beside_ascii and longest <= 2:
        likely.append("cp1252")
    if all(_BIG5.fullmatch(word) for word in words):
        likely.append("big5")
    for encoding in (*likely, "gb18030", "cp932", "big5", "cp949", "cp1251", "cp1252"):
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    raise ValueError("its text is in no encoding that is known here")


def iterate(text: str) -> Iterator[tuple[str, int, Any]]:
    """(key, number, element) of each array in a JSON object, one at a time.

    Before the first element number is START; for a value that is not an array it is WHOLE.

    Memory is that of the text and of one element.

    Raises:
        ValueError: it is not JSON, or not an object.
    """
    decoder = json.JSONDecoder()

    def skip(at: int) -> int:
        return _SPACE.match(text, at).end()  # type: ignore[union-attr]

    def expect(at: int, letters: str) -> str:
        if at >= len(text) or text[at] not in letters:
            raise json.JSONDecodeError(f"Expecting {' or '.join(letters)}", text, at)
        return text[at]

    at = skip(0)
    expect(at, "{")
    at = skip(at + 1)
    while expect(at, '"}') == '"':
        key, at = decoder.raw_decode(text, at)
        at = skip(at)
        expect(at, ":")
        at = skip(at + 1)
        if at < len(text) and text[at] == "[":
            yield key, START, None
            at, number = skip(at + 1), 0
            while at < len(text) and text[at] != "]":
                element, at = decoder.raw_decode(text, at)
                yield key, number, element
                number, at = number + 1, skip(at)
                if expect(at, ",]") == ",":
                    at = skip(at + 1)
            expect(at, "]")
            at += 1
        else:
            value, at = decoder.raw_decode(text, at)
            yield key, WHOLE, value
        at = skip(at)
        if expect(at, ",}") == "}":
            break
        at = skip(at + 1)
        expect(at, '"')
    at = skip(at + 1)
    if at != len(text):
        raise json.JSONDecodeError("Extra data", text, at)
