import subprocess
import sys

import pytest

from harness.errors import UserError
from results.catalog import all_tables, find_cell, find_tables
from results.table import Published


def numbers(table_name: str) -> dict[str, tuple[str, ...]]:
    table = all_tables()[table_name]
    return {table.row_name(i): row.published for i, row in enumerate(table.rows)}


def test_svib_table_1_carries_the_fourteen_rows_of_the_paper():
    rows = numbers("svib/table1")
    assert len(rows) == 14
    assert rows["SVIB (Ours), ResNet50, 300"] == ("74.8", "69.4")
    assert rows["SVIB (Ours), ViT-S/16, 300"] == ("76.4", "73.5")
    assert rows["DINO (Caron et al., 2021), ResNet50, 300"] == ("74.5", "65.6")
    assert rows["DINO (Caron et al., 2021), ViT-S/16, 300"] == ("76.1", "72.8")
    assert rows["MoCo v2 (Chen et al., 2020), ResNet50, 300"] == ("71.1†", "62.9*")
    assert rows["BYOL (Grill et al., 2020), ResNet50, 300"] == ("72.7^", "65.4*")
    assert rows["PIRL (Misra & van der Maaten, 2020), ResNet50, 800"] == ("63.6", "-")
    assert rows["Local aggregation (Zhuang et al., 2019), ResNet50, 200"] == ("60.2", "49.4")


def test_imsvd_table_1_carries_every_row_over_five_numbers_of_epochs():
    rows = numbers("imsvd/table1")
    assert rows == {
        "SimCLR [7]": ("66.5", "68.3", "69.8", "70.4", "-"),
        "MoCoV2 [9]": ("67.4", "69.9", "71.0", "72.2", "-"),
        "BYOL [43]": ("66.5", "70.6", "73.2", "74.3", "74.3"),
        "SwAV [42]": ("66.5", "69.1", "70.7", "71.8", "-"),
        "SimSiam [44]": ("68.1", "70.0", "70.8", "71.3", "-"),
        "DISSL [60]": ("68.9", "-", "-", "-", "-"),
        "CorInfoMax [16]": ("69.1", "71.4", "-", "-", "-"),
        "BT [19]": ("-", "71.4*", "-", "-", "73.2"),
        "VICReg [10]": ("68.7", "71.2*", "-", "-", "73.2"),
        "IMSVD": ("69.4", "71.8", "73.2", "73.4", "73.6"),
    }


def test_imsvd_table_2_carries_both_lines_of_the_paper():
    rows = numbers("imsvd/table2")
    assert [row[0] for row in rows.values()] == [
        *("-", "-", "54.5", "66.7", "65.7", "64.8", "64.5", "67.0")
    ]
    assert [row[1] for row in rows.values()] == [
        *("46.5", "49.4", "-", "64.9", "62.7", "62.9", "62.9", "64.9")
    ]


def test_a_footnote_mark_is_no_part_of_the_number():
    assert (Published("71.1†").value, Published("71.1†").marks) == (71.1, "†")
    assert (Published("74.1 *").value, Published("74.1 *").marks) == (74.1, "*")
    assert Published("-").value is None


def test_cells_that_the_paper_leaves_empty_run_only_on_request():
    table = all_tables()["imsvd/table1"]
    assert len(list(table.wanted())) == 2 + 3 + 5
    assert len(list(table.wanted(fill=True))) == 15


def test_table1_means_table_1_of_both_papers():
    assert [table.name for table in find_tables(("table1",))] == ["svib/table1", "imsvd/table1"]

    both = [table.name for table in find_tables(("svib/table1", "table1"))]
    assert both == ["svib/table1", "imsvd/table1"]


def test_an_unknown_table_suggests_the_closest_one():
    with pytest.raises(UserError, match="did you mean table1"):
        find_tables(("tabel1",))


def test_a_cell_is_found_by_parts_of_its_names_whatever_their_case():
    table, cell = find_cell(find_tables(("table1",)), "svib (ours), vit", "knn")
    assert table.cell_name(cell) == "SVIB (Ours), ViT-S/16, 300 | KNN"
    table, cell = find_cell(find_tables(("table1",)), "imsvd", "100")
    assert table.cell_name(cell) == "IMSVD | 100"


def test_an_ambiguous_cell_lists_the_candidates():
    with pytest.raises(UserError, match="matches 2 cells") as error:
        find_cell(find_tables(("table1",)), "svib", "linear")
    assert "ResNet50, 300 | Linear" in str(error.value)


def test_declarations_are_read_without_torch():
    code = (
        "import sys; from results.catalog import all_tables; import results.render, slurm.command;"
        "all_tables(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
