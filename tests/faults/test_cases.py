"""The table of faults: its rows are what the cases found, and the committed page holds one of every case."""

import json
from pathlib import Path

import pytest

from tests.faults import __main__ as faults
from tests.faults.cases import CASES, Outcome

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fault_tolerance.md"


def rows(page: str) -> list[str]:
    return page.partition(faults.MARKS[0])[2].partition(faults.MARKS[1])[0].strip().splitlines()


def test_the_committed_table_has_every_case_and_no_broken_promise():
    header, line, *found = rows(PAGE.read_text())
    assert [header, line] == faults.write_table({}).splitlines()
    assert len(found) == len(CASES)
    assert all(row.endswith("| yes |") for row in found)
    assert any(row.startswith("| 50 SIGKILLs at random moments of one run |") for row in found)


def test_what_a_case_finds_goes_into_the_page_and_a_broken_promise_into_the_exit_status(tmp_path, monkeypatch, capsys):
    places = []

    def case(kept):
        return lambda place: places.append(place) or Outcome("a fault", "no harm", "harm", kept)

    monkeypatch.setattr(faults, "CASES", {"one": case(True), "other": case(False)})
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "model_final.pth").touch()
    page = tmp_path / "page.md"
    page.write_text(f"before\n{faults.MARKS[0]}\nold\n{faults.MARKS[1]}\nafter\n")
    assert faults.main(["--output", str(tmp_path), "--table", str(page), "--kills", "7"]) == 1
    assert [place.kills for place in places] == [7, 7]
    assert rows(page.read_text())[2:] == [
        "| a fault | no harm | harm | yes |",
        "| a fault | no harm | harm | **no** |",
    ]
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
    assert json.loads((tmp_path / "results.json").read_text())["other"][-1] is False
    # what is finished is not run again
    assert faults.main(["--output", str(tmp_path)]) == 1 and len(places) == 2


def test_a_page_without_a_place_for_the_table_is_named(tmp_path):
    (tmp_path / "page.md").write_text("text")
    with pytest.raises(ValueError, match="page.md: the lines <!-- table"):
        faults.put_into(tmp_path / "page.md", "table")
