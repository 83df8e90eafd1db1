"""Contents of files that are truncated, edited by hand, saved by another program, or malicious."""

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

BOM = b"\xef\xbb\xbf"
SNIPPETS = [
    b"\0", b'"', b'""', b",", b"\r", b"\n", b"\n\n", b"\xff", b"\xc3", b"\xed\xa0\x80", BOM, b"\xe2\x80\xa8",
    b"\x1b[31m", b"{", b"}", b"[", b"null", b"-1", b"1e999", b"NaN", b"\\", b"\\ud800", b": ", b"#", b"<<: ", b"&a ",
    b"*a", b"!!int ", b"../", b"%s", b"\t", b"\x80" * 8, b"\xff" * 8, b"9" * 5000, b"[" * 3000, b'{"a":' * 500,
    b"\n" * 500, b"a, " * 9000, b"a" * 140_000,
]  # fmt: skip
ROUGH = [
    "", " ", "\n", "\r", "\r\n", "\t", "\0", '"', '""', "'", ",", ";", "\\", "\\n", "\ufeff", "\u2028", "\u00a0",
    "\u200b", "\x1c", "\x85", "\x1b[31mred", "null", "NaN", "nan", "-1", "0", "01", "+1", "1.0", "1e999", "true", "é",
    "漢字", "🦊", "e\u0301", "a" * 3000, "9" * 5000, "{}", "[]", "%s", "{x}", "../..", "~", "</s>", "[SEP]", "a,b",
    "line\nline", "'; --", "-" * 40,
]  # fmt: skip

texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(ROUGH),
    st.lists(st.sampled_from(ROUGH), min_size=2, max_size=4).map("".join),
)
filled_texts = texts.filter(str.strip)


@st.composite
def damaged(draw: st.DrawFn, contents: SearchStrategy[bytes]) -> bytes:
    """A content with one or two kinds of damage."""
    content = draw(contents)
    for damage in draw(st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=2)):
        place, other = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
        content = damage(draw, content, place, other)
    return content


def _cut(draw: st.DrawFn, content: bytes, place: int, other: int) -> bytes:
    return content[:other]


def _begun_late(draw: st.DrawFn, content: bytes, place: int, other: int) -> bytes:
    return content[place:]


def _bit_flipped(draw: st.DrawFn, content: bytes, place: int, other: int) -> bytes:
    changed = bytearray(content)
    for position in {place, other} - {len(content)}:
        changed[position] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


def _inserted(draw: st.DrawFn, content: bytes, place: int, other: int) -> bytes:
    return (
        content[:place]
        + draw(st.one_of(st.sampled_from(SNIPPETS), st.binary(min_size=1, max_size=4)))
        + content[place:]
    )


def _overwritten(draw: st.DrawFn, content: bytes, place: int, other: int) -> bytes:
    new = draw(st.one_of(st.sampled_from(SNIPPETS[:-4]), st.binary(min_size=1, max_size=8)))
    return content[:place] + new + content[place + len(new) :]


def _removed(draw: st.DrawFn, content: bytes, place: int, other: int) -> bytes:
    return content[:place] + content[other:]


def _emptied(draw: st.DrawFn, content: bytes, place: int, other: int) -> bytes:
    return content[:place] + bytes(other - place) + content[other:]


def _repeated(draw: st.DrawFn, content: bytes, place: int, other: int) -> bytes:
    return content[:other] + content[place:other] * draw(st.integers(1, 3)) + content[other:]


def _saved_elsewhere(draw: st.DrawFn, content: bytes, place: int, other: int) -> bytes:
    encoding = draw(st.sampled_from(["latin-1", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037", "utf-7"]))
    return content.decode("utf-8", "replace").encode(encoding, "replace")


def _with_other_line_ends(draw: st.DrawFn, content: bytes, place: int, other: int) -> bytes:
    return content.replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r", b"\n\n", b" \n"])))


DAMAGES = [
    _cut, _begun_late, _bit_flipped, _inserted, _overwritten, _removed, _emptied, _repeated, _saved_elsewhere,
    _with_other_line_ends,
]  # fmt: skip
