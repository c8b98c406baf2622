"""The one reader of CSV files: what it forgives, and what it says of the rest."""

from pathlib import Path

import pytest

from builder.csvfile import read_csv
from builder.errors import UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some.csv"


def test_a_byte_order_mark_blanks_and_empty_lines_change_nothing(file: Path):
    file.write_text('\ufeffa, b\r\n\r\n1, x \r\n,,\r\n"2\n3",\r\n', encoding="utf-8")
    assert read_csv(file, ["b"], ["a"]) == [
        (f"{file}: row 3", {"a": "1", "b": "x"}),
        (f"{file}: row 6", {"a": "2\n3", "b": ""}),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "missing column.* 'a'"),
        (b"\n\n", "missing column.* 'a'"),
        (b"a,b\n", "no rows"),
        (b"a,b\n,\n", "no rows"),
        (b"b\n1\n", "missing column.* 'a'"),
        (b"a;b\n1;2\n", "missing column.* 'a'; unknown column.* 'a;b'"),
        (b"a,b,c\n1,2,3\n", "unknown column.* 'c'"),
        (b"a,b,a\n1,2,3\n", "repeated column.* 'a'"),
        (b"a,b\n1,2\n\n1\n", "row 4: expected 2 fields, found 1"),
        (b"a,b\n1,2,3\n", "row 2: expected 2 fields, found 3"),
        (b'a,b\n1,"2\n1,2\n', "unexpected end of data"),
        ("a,b\n1,\u00e9\n".encode("latin-1"), "no UTF-8 text"),
        ("a,b\n1,2\n".encode("utf-16"), "no UTF-8 text"),
    ],
)
def test_a_wrong_file_is_one_message_that_names_it(file: Path, content: bytes, said: str):
    file.write_bytes(content)
    with pytest.raises(UsageError, match=said) as e:
        read_csv(file, ["a"], ["b"])
    assert str(file) in str(e.value)


def test_a_file_that_is_not_there_and_a_folder_are_one_message(tmp_path: Path):
    with pytest.raises(UsageError, match=r"none.csv: No such file or directory\.$"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="Is a directory"):
        read_csv(tmp_path)
