"""A json read by elements is the json read whole, and what is wrong with it is named with line and column."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2x.data.index import json_stream
from d2x.data.index.clean_copy import write_members
from d2x.data.index.json_stream import Member, read_members

LISTS = ("images", "annotations")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(st.sampled_from(["images", "annotations", "info", "é", 'a"b']), values)


def gather(members) -> dict:
    """The object whose members these are."""
    content = {}
    for key, position, value in members:
        if position < 0:
            content[key] = value
        else:
            assert position == len(content[key])
            content[key].append(value)
    return content


@settings(max_examples=150, deadline=None)
@given(documents, st.sampled_from([1, 2, 3, 5, 17, 4096]), st.sampled_from([None, 2]), st.booleans())
def test_any_object_cut_anywhere(tmp_path_factory, document, chunk, indent, ascii_only):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(document, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", errors="replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        read = gather(read_members(path, LISTS))
    assert read == json.loads(path.read_text(encoding="utf-8"))
    assert list(read) == list(document), "in the file's order"


@settings(max_examples=50, deadline=None)
@given(documents)
def test_written_by_elements(tmp_path_factory, document):
    path = tmp_path_factory.getbasetemp() / "written.json"
    members = []
    for key, value in document.items():
        by_elements = key in LISTS and isinstance(value, list)
        members.append(Member(key, -1, [] if by_elements else value))
        members += [Member(key, i, element) for i, element in enumerate(value)] if by_elements else []
    write_members(members, path)
    assert json.loads(path.read_text()) == document


def test_elements_come_one_at_a_time_with_their_positions(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"images": [7, 8], "other": [1], "annotations": 3}')
    assert list(read_members(path, LISTS)) == [
        ("images", -1, []),
        ("images", 0, 7),
        ("images", 1, 8),
        ("other", -1, [1]),
        ("annotations", -1, 3),
    ]


@pytest.mark.parametrize("text, words", [
    ("", "truncated.*line 1, column 1.*empty"),
    ("[1]", "expected an object"),
    ("\x00", "expected an object"),
    ('{"images": [{"id": 1}, {"id"', r"truncated.*line 1, column 29"),
    ('{"images": [{"id": "abc', r"truncated.*Unterminated"),
    ('{"images": [\n  {"id": 1},\n  {"id": }\n]}', "line 3, column 10: Expecting value"),
    ('{"images": [\n  {"id": 1}\n  {"id": 2}\n]}', r"line 3, column 3: expected ',' or '\]'"),
    ('{"images": [1,]}', "line 1, column 15"),
    ('{"a": 1,}', "column 9: a comma before '}'"),
    ('{"a": 1} x', "column 10: data after the end"),
    ('{"a": 1, "a": 2}', "key 'a' is there twice"),
    ('{a: 1}', "column 2: expected a key in double quotes"),
    ('{"a" 1}', "column 6: expected ':'"),
    ('{"images": ' + "[" * 100_000, "nested too deeply"),
    ('{"images": [' + "9" * 5000 + "]}", "digits"),
])  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, text, words):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"(?s)broken.json.*{words}") as caught:
        list(read_members(path, LISTS))
    assert len(str(caught.value)) < 500


def test_place_of_an_error_far_into_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 64)
    path = tmp_path / "long.json"
    path.write_text('{"images": [\n' + '{"id": 1},\n' * 1000 + '{"id": oh}\n]}')
    with pytest.raises(ValueError, match="line 1002, column 8"):
        list(read_members(path, LISTS))


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes(b'{"images": [{"file_name": "caf\xe9.jpg"}]}')
    with pytest.raises(ValueError, match="latin.json.*not UTF-8 text near byte 30"):
        list(read_members(path, LISTS))


def test_byte_order_mark_and_missing_file(tmp_path):
    path = tmp_path / "mark.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert list(read_members(path, LISTS)) == [("a", -1, 1)]
    with pytest.raises(FileNotFoundError, match="none.json"):
        list(read_members(tmp_path / "none.json", LISTS))
