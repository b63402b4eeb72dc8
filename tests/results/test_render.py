import csv
import io
from pathlib import Path

import pytest

from harness.scale import Scale
from results.cells import Findings, cell_results
from results.render import Drawing, render_csv, render_markdown, save
from tests.results import sample

GOLDEN = Path(__file__).parent.parent / "golden"
SCALES = {
    "paper": Scale(name="paper", about="as the papers"),
    "demo": Scale(name="demo", about="a few digits", dataset="mnist5k", image_size=28),
}


def drawing(scale: str, folder: Path) -> Drawing:
    records = sample.records()
    findings = Findings(
        records={r.key: r for r in records}, failures={"lin2": "the loss | isn't finite"}
    )
    resolved = sample.resolved()
    return Drawing(
        table=sample.TABLE,
        scale=SCALES[scale],
        resolved=resolved,
        results=cell_results(sample.TABLE, SCALES[scale], resolved, findings),
        records=folder / "records",
        folder=folder / "tables",
    )


@pytest.mark.parametrize("scale", ["paper", "demo"])
def test_the_markdown_of_a_table_is_the_golden_file(scale, tmp_path):
    expected = (GOLDEN / f"table9.{scale}.md").read_text()
    assert render_markdown(drawing(scale, tmp_path)) == expected


def test_the_demo_says_that_its_numbers_cannot_be_compared(tmp_path):
    text = render_markdown(drawing("demo", tmp_path))
    assert "**Scale: DEMO. These are not the paper's experiments.**" in text
    assert "+0" not in text
    assert "| match" not in text


def test_the_csv_has_a_line_per_cell_with_its_records(tmp_path):
    rows = list(csv.DictReader(io.StringIO(render_csv(drawing("paper", tmp_path)))))
    assert len(rows) == 6
    first = next(row for row in rows if (row["row"], row["column"]) == ("First", "Linear"))
    assert {k: first[k] for k in ("ours", "sd", "n", "paper", "delta", "status")} == {
        "ours": "70.3",
        "sd": "0.3",
        "n": "2",
        "paper": "70.0",
        "delta": "+0.3",
        "status": "match",
    }
    assert (first["low"], first["high"]) == ("", "")  # of two seeds the spread counts
    knn = next(row for row in rows if (row["row"], row["column"]) == ("Second", "KNN"))
    assert (knn["ours"], knn["low"], knn["high"]) == ("69.4", "69.2", "69.7")
    assert first["records"] == "../records/lin1.json ../records/lin1b.json"
    assert (rows[0]["paper"], rows[0]["paper_marks"]) == ("71.1", "†")


def test_files_are_named_by_table_and_scale(tmp_path):
    names = [path.name for path in save(drawing("demo", tmp_path))]
    assert names == ["paper_table9.demo.md", "paper_table9.demo.csv"]
