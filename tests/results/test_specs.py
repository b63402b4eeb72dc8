import subprocess
import sys

import pytest

from harness import registry
from harness.errors import UserError
from harness.recipe import fingerprint, with_changes
from harness.scale import SCALES
from results.catalog import all_tables, find_cell, find_tables
from results.resolve import recipe_of, resolve
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


def test_svib_table_2_carries_the_eleven_rows_of_the_paper():
    rows = numbers("svib/table2")
    # top-1 of 1 % and of 10 %, top-5 of both
    assert rows == {
        "Random (Wu et al., 2018), ResNet-50, -": ("-", "-", "22.0", "59.0"),
        "Supervised baseline (Zhai et al., 2019), ResNet-50, -": ("-", "-", "48.4", "80.4"),
        "Pseudolabels (Zhai et al., 2019), ResNet-50v2, -": ("-", "-", "51.6", "82.4"),
        "S4LRotation (Zhai et al., 2019), ResNet-50v2, -": ("-", "-", "53.4", "83.8"),
        "PIRL (Misra & van der Maaten, 2020), ResNet-50, 800": ("30.7", "60.4", "57.2", "83.8"),
        "SimCLR (Chen et al., 2020), ResNet-50-MLP, 1000": ("48.3", "65.6", "75.5", "87.8"),
        "DINO (Caron et al., 2021), ResNet-50-MLP, 800": ("52.9*", "66.6*", "77.5*", "87.6*"),
        "BYOL (Grill et al., 2020), ResNet-50-MLPbig, 1000": ("53.2", "68.8", "78.4", "89.0"),
        "MoCov2 (Chen et al., 2020), ResNet-50-MLP, 800": ("52.4", "65.3", "78.4", "86.6"),
        "SwAV (Caron et al., 2020), ResNet-50-MLP, 800": ("53.9", "70.2", "78.5", "89.9"),
        "SVIB (Ours), ResNet-50-MLP, 300": ("55.9", "68.6", "78.6", "88.6"),
    }
    table = all_tables()["svib/table2"]
    assert table.seeds == 5 and {column.repeats for column in table.columns} == {"evaluation"}


def test_svib_table_3_carries_boxes_and_masks_of_four_systems():
    rows = numbers("svib/table3")
    assert len(rows) == 4
    boxes = {label.partition(" ")[0]: row[:6] for label, row in rows.items()}
    masks = {label.partition(" ")[0]: row[6:] for label, row in rows.items()}
    assert boxes == {
        "Supervised": ("38.9", "59.6", "42.0", "23.0", "42.9", "49.9"),
        "MoCo": ("39.2", "59.9", "42.7", "23.8", "42.7", "50.0"),
        "BYOL": ("39.9", "60.2", "43.2", "23.3", "43.2", "52.8"),
        "SVIB": ("40.0", "61.7", "43.4", "24.8", "43.9", "50.4"),
    }
    assert masks == {
        "Supervised": ("35.4", "56.5", "38.1", "17.5", "38.2", "51.3"),
        "MoCo": ("35.7", "56.8", "38.1", "17.8", "38.1", "50.5"),
        "BYOL": ("-",) * 6,
        "SVIB": ("36.7", "58.6", "39.1", "18.4", "39.8", "51.8"),
    }


def test_svib_figure_3_carries_three_schedules_at_five_moments_of_one_pretraining_each():
    assert numbers("svib/beta") == {
        "β = 0.5": ("48.5", "", "", "", "64.2"),
        "β = 0.1": ("48.1", "", "", "", "66.8"),
        "β = 0.5 → 0.01": ("48.4", "", "", "", "67.3"),
    }
    table = all_tables()["svib/beta"]
    assert [column.after for column in table.columns] == [20, 40, 60, 80, 100]
    assert {column.epochs for column in table.columns} == {None}


def test_imsvd_table_3_carries_six_systems_over_three_data_sets():
    rows = numbers("imsvd/table3")
    assert rows == {
        "Sup.": ("38.2", "58.2", "41.2", "33.3", "54.7", "35.2", "87.5", "53.2"),
        "MoCo-v2": ("39.3", "58.9", "42.5", "34.4", "55.8", "36.5", "86.4", "51.8"),
        "SwAV": ("38.4", "58.6", "41.3", "33.8", "55.2", "35.9", "86.4", "52.8"),
        "SimSiam": ("39.2", "59.3", "42.1", "34.4", "56.0", "36.7", "-", "-"),
        "BT": ("39.2", "59.0", "42.5", "34.3", "56.0", "36.5", "86.2", "54.1"),
        "IMSVD (Ours)": ("39.3", "59.1", "42.6", "34.4", "55.8", "36.6", "86.5", "54.8"),
    }


def test_svib_table_4_carries_six_ablations_one_of_which_diverges():
    rows = numbers("svib/table4")
    assert rows == {
        "1, ✓, ×, ×": ("66.3",),
        "2, ×, ✓, 0.1": ("divergence",),
        "3, ×, ✓, 0.5": ("61.3",),
        "4, ✓, ✓, 0.5": ("64.2",),
        "5, ✓, ✓, 0.1": ("66.8",),
        "6, ✓, ✓, 0.5 → 0.01": ("67.3",),
    }
    table = all_tables()["svib/table4"]
    assert table.may_diverge(0) and not all_tables()["svib/table1"].may_diverge(1)


def test_imsvd_table_4_carries_time_memory_and_accuracy_of_five_systems():
    assert numbers("imsvd/table4") == {
        "SwAV": ("9h", "9.5G", "71.8"),
        "BYOL": ("10h", "14.6G", "74.3"),
        "Barlow Twins": ("12h", "11.3G", "73.2"),
        "VICReg": ("11h", "11.3G", "73.2"),
        "IMSVD": ("8.5h", "10.4G", "73.6"),
    }
    assert all_tables()["imsvd/table4"].hardware == (32, "V100")


def test_imsvd_table_5_carries_three_systems_at_four_batch_sizes():
    assert numbers("imsvd/table5") == {
        "SimSiam": ("68.1", "68.0", "67.9", "64.0"),
        "VICReg": ("68.2", "68.3", "68.6", "67.8"),
        "IMSVD": ("68.3", "69.3", "69.4", "68.7"),
    }


def columns(table_name: str) -> dict[str, tuple[str, ...]]:
    """A turned table as the paper prints it: heading of a column → its numbers."""
    table = all_tables()[table_name]
    labels = [column.label for column in table.columns]
    return dict(zip(labels, zip(*(r.published for r in table.rows), strict=True), strict=True))


def test_imsvd_table_6_carries_three_depths():
    assert columns("imsvd/table6") == {
        "Top-1": ("69.4", "68.5", "67.9"),
        "Top-5": ("89.3", "88.3", "87.9"),
        "Time/100ep": ("8.5h", "9.6h", "10.8h"),
        "Memory/GPU": ("10.4G", "11.5G", "12.5G"),
    }


def test_imsvd_table_7_carries_five_dimensions_of_either_system():
    assert columns("imsvd/table7") == {
        "VICReg": ("62.4", "65.1", "67.3", "68.6", "68.8"),
        "IMSVD": ("64.1", "66.6", "69.2", "69.4", "69.1"),
        "Time/100ep": ("7.6h", "7.7h", "8.0h", "8.5h", "10.9h"),
        "Memory/GPU": ("7.6G", "8.0G", "8.5G", "10.4G", "15.9G"),
    }
    labels = [(row.label.split()[0], *row.fields) for row in all_tables()["imsvd/table7"].rows]
    assert labels == [
        ("1024", "960"),
        ("2048", "2000"),
        ("4096", "4080"),
        ("8192", "8160"),
        ("16384", "16320"),
    ]


def test_imsvd_tables_8_and_9_carry_top_1_and_top_5():
    assert columns("imsvd/table8") == {
        "Top-1": ("65.4", "64.1", "68.3", "69.4"),
        "Top-5": ("86.9", "86.4", "88.6", "89.3"),
    }
    assert list(numbers("imsvd/table8")) == ["DE+OE", "OE+TI", "DE+OE+TIC", "DE+OE+TI"]
    assert columns("imsvd/table9") == {
        "Top-1": ("67.8", "69.1", "69.4", "69.2", "68.4"),
        "Top-5": ("88.5", "89.1", "89.3", "89.1", "88.5"),
    }
    assert [label.split()[0] for label in numbers("imsvd/table9")] == [
        "32",
        "64",
        "80",
        "96",
        "128",
    ]


def test_the_one_hot_statistics_are_two_numbers():
    assert numbers("imsvd/onehot") == {"IMSVD": ("91.18", "81.25")}


def test_the_papers_print_288_numbers_in_fifteen_tables():
    tables = find_tables(("all",))
    papers = {"svib": 5, "imsvd": 10}
    assert len(tables) == sum(papers.values())
    stated = [
        table.published(cell)
        for table in tables
        for cell in table.cells()
        if table.published(cell).states_something
    ]
    assert len(stated) == 288
    assert sum(cell.diverged for cell in stated) == 1


def test_no_row_is_only_quoted():
    for table in all_tables().values():
        assert [row.label for row in table.rows if row.reason] == []


def test_the_learning_check_has_a_row_for_every_method_and_the_quick_one_for_five():
    tables = all_tables()
    methods = {row.recipe.partition(":")[0] for row in tables["learning"].rows}
    assert methods == set(registry.names("method"))
    assert tables["learning"].rows[0] == tables["quick"].rows[0]
    assert tables["learning"].rows[0].recipe == "untrained:RESNET50"
    assert len(tables["quick"].rows) == 6


def test_rows_of_svib_table_4_that_cannot_differ_in_one_epoch_are_named_below_it(tmp_path):
    table = all_tables()["svib/table4"]
    found = resolve(table, SCALES["demo"], seeds=1, fill=False, cache=tmp_path)
    rows: dict[str, list[str]] = {}
    for jobs in found.cells:
        trained = found.pretrainings[found.evaluations[jobs.evaluations[0]].pretraining]
        assert trained.epochs == 1
        alike = with_changes(recipe_of(trained), {"method.reinitialise": True})
        rows.setdefault(fingerprint(alike), []).append(table.rows[jobs.cell.row].label)
    assert list(rows.values()) == [["1"], ["2", "5"], ["3", "4"], ["6"]]
    assert "there rows 2 and 5 are one experiment, rows 3 and 4 are another" in table.footnotes[1]


def test_a_footnote_mark_is_no_part_of_the_number():
    assert (Published("71.1†").value, Published("71.1†").marks) == (71.1, "†")
    assert (Published("74.1 *").value, Published("74.1 *").marks) == (74.1, "*")
    assert Published("-").value is None


def test_hours_gigabytes_and_divergence_are_read_as_printed():
    assert [Published(text).value for text in ("8.5h", "9h", "10.4G")] == [8.5, 9.0, 10.4]
    assert Published("8.5h").marks == ""
    assert (Published("divergence").value, Published("divergence").diverged) == (None, True)
    assert not Published("-").states_something


def test_cells_that_the_paper_leaves_empty_run_only_on_request():
    table = all_tables()["imsvd/table1"]
    assert len(list(table.wanted())) == 34
    assert len(list(table.wanted(fill=True))) == 50


def test_table1_means_table_1_of_both_papers():
    for name in ("table1", "table2", "table3"):
        both = [f"svib/{name}", f"imsvd/{name}"]
        assert [table.name for table in find_tables((name,))] == both
    both = [table.name for table in find_tables(("svib/table1", "table1"))]
    assert both == ["svib/table1", "imsvd/table1"]


def test_all_means_every_table_of_the_papers_and_no_other():
    names = [table.name for table in find_tables(("all",))]
    assert names == [
        *(f"svib/table{n}" for n in range(1, 5)),
        "svib/beta",
        *(f"imsvd/table{n}" for n in range(1, 10)),
        "imsvd/onehot",
    ]
    assert [table.name for table in find_tables(("onehot",))] == ["imsvd/onehot"]


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
