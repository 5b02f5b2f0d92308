"""Rows that are wrong: strict stops with reason, count and line; quarantine sets them aside."""

import pytest

from p2rec_core.errors import DataError

HEADER = "user_id,item_id,timestamp\n"
T = 1_500_000_000
GOOD = [f"u{i % 5},i{i % 7},{T + i}\n" for i in range(30)]

ROWS = [
    pytest.param("u1,i1,nan", "nan_timestamp", id="04-nan"),
    pytest.param("u1,i1,-inf", "infinite_timestamp", id="05-inf"),
    pytest.param("u1,i1,", "empty_timestamp", id="06-empty-timestamp"),
    pytest.param("u1,i1,yesterday", "text_timestamp", id="07-text"),
    pytest.param("u1,i1,1_500_000_000", "text_timestamp", id="07-underscores"),
    pytest.param("u1,i1,-5", "timestamp_out_of_range", id="09-negative"),
    pytest.param("u1,i1,9999999999", "timestamp_out_of_range", id="09-far-future"),
    pytest.param("u1,i1,2020-01-01T00:00:00Z", "text_timestamp", id="11-iso"),
    pytest.param(f",i1,{T}", "empty_user", id="22-empty-user"),
    pytest.param(f"u1,  ,{T}", "empty_item", id="22-empty-item"),
    pytest.param(f"u\0,i1,{T}", "nul_byte", id="29-nul"),
    pytest.param("u1,i1", "short_row", id="32-short"),
    pytest.param(f"u1,i1,{T},4", "long_row", id="33-long"),
    pytest.param(f'u1,"i"1,{T}', "bad_quoting", id="34-text-after-quote"),
    pytest.param(f'u1,"i\n1",{T}', "newline_in_id", id="35-newline-in-id"),
    pytest.param("user_id,item_id,timestamp", "repeated_header", id="40-header-again"),
    pytest.param('u1,i1,"1500000000,5"', "decimal_comma_timestamp", id="43-decimal-comma"),
    pytest.param("# comment", "short_row", id="44-comment"),
    pytest.param(f"u1,{'x' * 1025},{T}", "id_too_long", id="45-long-id"),
    pytest.param(f"u1,{'x' * 3_000_000},{T}", "id_too_long", id="45-3-MB-id"),
]


def content(bad: str) -> str:
    return HEADER + "".join(GOOD[:10]) + bad + "\n" + "".join(GOOD[10:])


@pytest.mark.parametrize(("bad", "reason"), ROWS)
def test_strict_stops_and_names_reason_and_line(put, read, bad, reason):
    with pytest.raises(DataError, match=rf"1 of 31 rows cannot be read\.\n(.|\n)*{reason} +1  12; "):
        read(put(content(bad)))


@pytest.mark.parametrize(("bad", "reason"), ROWS)
def test_quarantine_sets_the_row_aside_and_keeps_the_rest(put, read, bad, reason):
    raw = read(put(content(bad)), on_error="quarantine", max_rejected=0.05)
    rejects = raw.rejects.to_pylist()
    assert [(row["line"], row["reason"]) for row in rejects] == [(12, reason)]
    assert len(rejects[0]["content"]) <= 200
    assert raw.n_rows == 31
    assert raw.interactions["timestamp"].to_pylist() == [T + i for i in range(30)]
    skipped = 2 if "\n" in bad else 1
    assert raw.interactions["line"].to_pylist() == [i + 2 if i < 10 else i + 2 + skipped for i in range(30)]
    assert raw.interactions["position"].to_pylist() == list(range(30))


def test_quarantine_stops_above_its_bound(put, read):
    path = put(HEADER + "".join(GOOD) + "u1,i1,x\nu2,,5\n")
    assert read(path, on_error="quarantine", max_rejected=2 / 32).rejects.num_rows == 2
    with pytest.raises(DataError, match=r"2 of 32 rows cannot be read, more than max_rejected = 0\.06 allows") as e:
        read(path, on_error="quarantine", max_rejected=0.06)
    assert "raise max_rejected" in e.value.remedy


@pytest.mark.parametrize("on_error", ["strict", "quarantine"])
@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        (
            HEADER,
            "u{0},i1,{0} Nov",
            "Line 2 has '0 Nov' in that column, expected a number such as 1700000000, or a date",
        ),
        (HEADER, 'u{0},i1,"1700000000,{0}"', "Line 2 has '1700000000,0' in that column, expected a number such as"),
        (HEADER, "u{0},i1,", "Line 2 has '' in that column"),
        (HEADER, "u{0},i1", "Look at line 2, 'u0,i1': fewer fields than the header has"),
    ],
    ids=["text", "decimal-comma", "empty", "short"],
)
def test_where_hardly_any_row_can_be_read_the_remedy_is_not_to_lose_them(put, read, on_error, header, row, words):
    with pytest.raises(DataError) as caught:
        read(put(header + "".join(row.format(n) + "\n" for n in range(20))), on_error=on_error)
    assert words in caught.value.remedy
    assert "quarantine" not in caught.value.remedy
    assert "max_rejected" not in caught.value.remedy


@pytest.mark.parametrize(
    ("first", "others", "words"),
    [
        ("0", "2023-11-05", "this one of numbers, while line 3 has '2023-11-05'. Write all of them as dates"),
        ("2023-11-05", "1700000000", "this one of dates, while line 3 has '1700000000'. Write all of them as numbers"),
    ],
)
def test_a_first_row_unlike_all_others_is_named(put, read, first, others, words):
    with pytest.raises(DataError) as caught:
        read(put(HEADER + f"u,i,{first}\n" + f"u,j,{others}\n" * 20))
    assert words in caught.value.remedy


def test_a_file_of_rejects_holds_no_interactions(put, read):
    with pytest.raises(DataError, match="no usable row"):
        read(put(HEADER + "u,i,x\n"), on_error="quarantine", max_rejected=1)


def test_the_table_of_reasons_counts_each_and_shows_the_first_lines(put, read):
    bad = ["u,i,x\n", ",i,1500000000\n"] * 7
    with pytest.raises(DataError) as caught:
        read(put(HEADER + "".join(bad)))
    lines = caught.value.problem.splitlines()
    assert lines[0].endswith("14 of 14 rows cannot be read.")
    assert lines[2].split()[:7] == ["text_timestamp", "7", "2,", "4,", "6,", "8,", "10;"]
    assert lines[3].split()[:3] == ["empty_user", "7", "3,"]


@pytest.mark.parametrize(("scale", "unit"), [(1e3, "milliseconds"), (1e6, "microseconds")])
@pytest.mark.parametrize("on_error", ["strict", "quarantine"])
def test_mixed_units_of_time_are_an_error(put, read, scale, unit, on_error):
    """Row 8."""
    mixed = [f"u1,i{i},{(T + i) * (scale if i % 3 == 0 else 1):.0f}\n" for i in range(30)]
    with pytest.raises(DataError, match=rf"20 rows look like seconds \(first: line 3.*10 rows look like {unit}"):
        read(put(HEADER + "".join(mixed)), on_error=on_error)


@pytest.mark.parametrize("first", [0, -40, 2_000_000, 1e12, 1e18])
def test_numbers_of_one_kind_are_left_alone(put, read, first):
    raw = read(put(HEADER + "".join(f"u,i{i},{first + i}\n" for i in range(9))))
    assert raw.interactions.num_rows == 9


def test_rejects_of_sequences_are_lines(put, read):
    path = put("1 2 3\n# old 3\n2 4 " + "x" * 1025 + "\n3\0 5\n4\n5 6\n")
    raw = read(path, format="sequences", on_error="quarantine", max_rejected=0.5)
    rejected = [(row["line"], row["reason"]) for row in raw.rejects.to_pylist()]
    assert rejected == [(2, "comment"), (3, "id_too_long"), (4, "nul_byte")]
    assert raw.interactions["user_id"].to_pylist() == ["1", "1", "5"]
    assert raw.notices == ["1 users have no item at all and were left out."]
