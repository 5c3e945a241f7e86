"""Text that a model may safely read and learn: no control characters, no hidden direction marks, no turn markers.

A document may spell the special tokens of a chat template, such as `<|im_end|>`, to end its own message and begin one
in another's name; tokenizers take the spelling for the token. A space inside keeps what it says and undoes its effect.
"""

from __future__ import annotations

import re
import unicodedata

# Zero-width joiners (U+200C, U+200D) stay: Persian, Indic scripts and emoji are written with them.
_HIDDEN = frozenset("\u200b\u200e\u200f\u2060\ufeff\ufffd\u00ad\u061c") | {
    chr(code) for start, end in ((0x202A, 0x202E), (0x2066, 0x2069)) for code in range(start, end + 1)
}
_MARKER = re.compile(
    r"<(?=\|[^<>\n]{1,40}\|>|/?s>|(?:bos|eos|pad|unk)>|(?:start|end)_of_\w{1,10}>|[|｜][^<>\n]{1,40}[|｜]>)"
    r"|\[(?=/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\])"
)


def readable(text: str) -> tuple[str, int]:
    """The text without what nobody can read, and how many characters were taken out or markers undone."""
    unified = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    kept = "".join(character for character in unified if _is_readable(character))
    undone, markers = _MARKER.subn(lambda found: found.group() + " ", kept)
    return undone, len(unified) - len(kept) + markers


def _is_readable(character: str) -> bool:
    if character in "\n\t":
        return True
    return character not in _HIDDEN and unicodedata.category(character) not in ("Cc", "Cs", "Co", "Cn")
