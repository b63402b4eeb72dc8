import json
import shutil
import subprocess
import sys

import pytest

from harness.recipe import fingerprint, pretrain_key
from harness.scale import SCALES
from results.catalog import all_tables
from results.resolve import ROOT, SOURCES, protocol_of, recipe_of, resolve, source_hash

KEYS = """
import json, sys
from pathlib import Path
from harness.scale import SCALES
from results.catalog import all_tables
from results.resolve import resolve
found = resolve(all_tables()["imsvd/table2"], SCALES["demo"], seeds=None, fill=False,
                cache=Path(sys.argv[1]))
print(json.dumps([sorted(found.evaluations), "torch" in sys.modules]))
"""


def keys_of_a_fresh_process(cache):
    answer = subprocess.run(
        [sys.executable, "-c", KEYS, str(cache)], capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout)


def test_keys_are_the_same_in_every_process_and_the_cache_needs_no_torch(tmp_path):
    here = resolve(
        all_tables()["imsvd/table2"], SCALES["demo"], seeds=None, fill=False, cache=tmp_path / "a"
    )
    assert keys_of_a_fresh_process(tmp_path / "b") == [sorted(here.evaluations), True]
    assert keys_of_a_fresh_process(tmp_path / "b") == [sorted(here.evaluations), False]


def test_what_comes_from_the_cache_is_what_went_in(tmp_path):
    ask = {"seeds": 2, "fill": False, "cache": tmp_path}
    table = all_tables()["svib/table1"]
    first = resolve(table, SCALES["demo"], **ask)
    assert len(list(tmp_path.glob("*.json"))) == 1
    assert resolve(table, SCALES["demo"], **ask) == first
    assert len(first.evaluations) == (14 * 2 - 2) * 2  # two cells are empty in the paper
    assert len(first.pretrainings) == 14 * 2


def test_both_neighbourhoods_of_imsvd_table_2_are_one_evaluation(tmp_path):
    found = resolve(
        all_tables()["imsvd/table2"], SCALES["demo"], seeds=1, fill=False, cache=tmp_path
    )
    assert len(found.cells) == 13
    assert len(found.evaluations) == len(found.pretrainings) == 8


def test_a_job_carries_the_recipe_that_its_key_names(tmp_path):
    from harness.recipe import pretrain_key

    found = resolve(all_tables()["learning"], SCALES["demo"], seeds=1, fill=False, cache=tmp_path)
    for key, pretraining in found.pretrainings.items():
        assert pretrain_key(recipe_of(pretraining), pretraining.seed) == key


def test_vicreg_at_100_epochs_has_its_own_learning_rate(tmp_path):
    found = resolve(
        all_tables()["imsvd/table1"], SCALES["paper"], seeds=1, fill=False, cache=tmp_path
    )
    recipes = [recipe_of(p) for k, p in found.pretrainings.items() if k.startswith("vicreg")]
    assert sorted((r.epochs, r.optim.lr) for r in recipes) == [(100, 0.3), (200, 0.2), (1000, 0.2)]


def test_five_runs_of_svib_table_2_are_five_fine_tunings_of_one_pretraining(tmp_path):
    table = all_tables()["svib/table2"]
    found = resolve(table, SCALES["paper"], seeds=None, fill=False, cache=tmp_path)
    for cell in found.cells:
        jobs = [found.evaluations[key] for key in cell.evaluations]
        assert len({e.pretraining for e in jobs}) == 1
        protocols = [protocol_of(e) for e in jobs]
        if jobs[0].variant.startswith("semisup"):
            assert [(e.seed, p.seed) for e, p in zip(jobs, protocols, strict=True)] == [
                (n, n) for n in range(5)
            ]
            assert len({fingerprint(p) for p in protocols}) == 5
        else:  # a network that classifies by itself has nothing to repeat
            assert jobs[0].variant == "classifier:center_crop" and len(jobs) == 1
    assert {p.seed for p in found.pretrainings.values()} == {0}


def test_a_job_carries_the_protocol_that_its_key_names(tmp_path):
    table = all_tables()["svib/table2"]
    found = resolve(table, SCALES["demo"], seeds=2, fill=False, cache=tmp_path)
    for key, e in found.evaluations.items():
        p = found.pretrainings[e.pretraining]
        assert fingerprint(recipe_of(p), protocol_of(e), p.seed) == key


def test_a_row_may_have_its_own_metric(tmp_path):
    table = all_tables()["svib/table2"]
    found = resolve(table, SCALES["demo"], seeds=1, fill=False, cache=tmp_path)
    metrics = {(table.rows[jobs.cell.row].label, jobs.metric) for jobs in found.cells}
    assert ("Pseudolabels (Zhai et al., 2019)", "classifier_top5") in metrics
    assert ("SVIB (Ours)", "semisup_top5") in metrics


def test_every_row_of_a_paper_plans_a_run(tmp_path):
    for name, table in all_tables().items():
        found = resolve(table, SCALES["paper"], seeds=1, fill=False, cache=tmp_path)
        assert {jobs.cell.row for jobs in found.cells} == set(range(len(table.rows))), name


def test_epochs_of_a_row_win_over_those_of_its_column(tmp_path):
    table = all_tables()["imsvd/table2"]
    found = resolve(table, SCALES["paper"], seeds=1, fill=False, cache=tmp_path)
    epochs = {p.recipe.partition(":")[0]: p.epochs for p in found.pretrainings.values()}
    assert (epochs["npid"], epochs["swav"], epochs["imsvd"]) == (200, 800, 1000)


def test_byol_is_pretrained_by_the_settings_for_its_epochs(tmp_path):
    table = all_tables()["imsvd/table1"]
    found = resolve(table, SCALES["paper"], seeds=1, fill=False, cache=tmp_path)
    recipes = [recipe_of(p) for p in found.pretrainings.values() if p.key.startswith("byol")]
    assert sorted((r.epochs, r.optim.lr) for r in recipes) == [
        (100, 0.45),
        (200, 0.3),
        (400, 0.3),
        (800, 0.2),
        (1000, 0.2),
    ]


def test_vits_take_the_linear_protocol_of_vits(tmp_path):
    found = resolve(
        all_tables()["svib/table1"], SCALES["paper"], seeds=1, fill=False, cache=tmp_path
    )
    variants = {
        (found.pretrainings[e.pretraining].backbone, e.variant)
        for e in found.evaluations.values()
        if e.variant.startswith("linear")
    }
    assert variants == {("resnet50", "linear:svib_resnet"), ("vit_small_16", "linear:svib_vit")}


def resolved(name, scale, folder):
    return resolve(all_tables()[name], SCALES[scale], seeds=1, fill=False, cache=folder)


def test_an_ablation_changes_what_its_table_says_and_survives_the_cache(tmp_path):
    for _ in range(2):  # the second time from the cache
        found = resolved("svib/table4", "paper", tmp_path)
        recipes = {p.key: recipe_of(p) for p in found.pretrainings.values()}
        assert all(pretrain_key(recipe, 0) == key for key, recipe in recipes.items())
        methods = [r.method for r in recipes.values()]
        assert [
            (m.reinitialise, m.information_bottleneck, m.beta, m.final_beta) for m in methods
        ] == [
            (True, False, 0.5, 0.01),
            (False, True, 0.1, None),
            (False, True, 0.5, None),
            (True, True, 0.5, None),
            (True, True, 0.1, None),
            (True, True, 0.5, 0.01),
        ]
        shared = {
            (r.method.means, len(r.views), r.epochs, r.batch_size, r.backbone.name)
            for r in recipes.values()
        }
        assert shared == {(8192, 4, 100, 512, "vit_small_16")}


def test_imsvd_after_100_epochs_is_one_run_in_six_tables(tmp_path):
    places = {
        "imsvd/table1": ("IMSVD", "100"),
        "imsvd/table5": ("IMSVD", "2048"),
        "imsvd/table6": ("Depth 2", "Top-1"),
        "imsvd/table7": ("8192 (VICReg's)", "IMSVD"),
        "imsvd/table8": ("DE+OE+TI", "Top-1"),
        "imsvd/table9": ("80 units", "Top-1"),
    }
    keys = set()
    for name, (row, column) in places.items():
        table, found = all_tables()[name], resolved(name, "paper", tmp_path)
        keys |= {
            jobs.evaluations
            for jobs in found.cells
            if table.rows[jobs.cell.row].label == row
            and table.columns[jobs.cell.column].label == column
        }
    assert len(keys) == 1


def test_vicreg_at_2048_is_one_run_in_tables_1_5_and_7_and_other_batches_have_their_rate(tmp_path):
    tables = {n: resolved(f"imsvd/table{n}", "paper", tmp_path).pretrainings for n in (1, 5, 7)}
    shared = set.intersection(*(set(found) for found in tables.values()))
    assert {p.recipe for key, p in tables[5].items() if key in shared} >= {"vicreg:RESNET50_100"}
    recipes = [recipe_of(p) for p in tables[5].values() if p.recipe == "vicreg:RESNET50_100"]
    ends = [(r.batch_size, r.optim.final_lr) for r in recipes]
    assert ends == [(512, 0.0006), (1024, 0.0012), (2048, 0.0024), (4096, 0.0048)]


def test_time_and_memory_come_with_the_linear_evaluation_and_its_units(tmp_path):
    found = resolved("imsvd/table6", "paper", tmp_path)
    assert len(found.evaluations) == len(found.pretrainings) == 3
    units = {(jobs.metric, jobs.unit, jobs.higher_is_better) for jobs in found.cells}
    assert units == {
        ("linear_top1", "%", True),
        ("linear_top5", "%", True),
        ("pretrain_hours_per_100_epochs", "h", False),
        ("pretrain_peak_memory_gb", "GB", False),
    }


def test_noise_floors_are_those_of_the_protocols(tmp_path):
    found = resolved("imsvd/table3", "paper", tmp_path)
    noise = {(jobs.unit, jobs.noise) for jobs in found.cells}
    assert noise == {("AP", 0.3), ("mAP", 0.5), ("%", 0.5)}


@pytest.mark.parametrize("scale", ["paper", "cifar10", "demo"])
def test_no_two_settings_of_an_ablation_are_one_run_at_any_scale(scale, tmp_path):
    for name in ("svib/table4", *(f"imsvd/table{n}" for n in range(5, 10))):
        found = resolved(name, scale, tmp_path)
        pairs = [(jobs.metric, jobs.evaluations) for jobs in found.cells]
        assert len(set(pairs)) == len(pairs), name


def test_a_narrow_scale_keeps_the_ratios_of_what_is_ablated(tmp_path):
    methods = [
        recipe_of(p).method
        for p in resolved("imsvd/table9", "demo", tmp_path).pretrainings.values()
    ]
    assert [m.units for m in methods] == [6, 13, 16, 19, 26]
    assert all(m.projector[-1] % m.units == 0 for m in methods)
    widths = [
        recipe_of(p).method.projector[-1]
        for p in resolved("imsvd/table7", "demo", tmp_path).pretrainings.values()
    ]
    assert widths == [32, 32, 64, 48, 128, 128, 256, 256, 512, 512]
    sizes = {
        (p.recipe, recipe_of(p).batch_size)
        for p in resolved("imsvd/table5", "demo", tmp_path).pretrainings.values()
    }
    assert {size for name, size in sizes if name.startswith("imsvd")} == {32, 64, 128, 256}


@pytest.fixture
def sources(tmp_path):
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.pyc"))
    return tmp_path


def test_a_changed_source_gives_another_cache_file(sources, tmp_path):
    before = source_hash(sources)
    assert source_hash(sources) == before
    path = sources / "methods" / "imsvd.py"
    path.write_text(path.read_text() + "\n")
    assert source_hash(sources) != before


def test_records_and_tables_are_no_sources(sources):
    before = source_hash(sources)
    (sources / "results" / "note.json").write_text("{}")
    assert source_hash(sources) == before


def test_svib_figure_3_evaluates_the_runs_of_table_4_whose_ends_share_its_records(tmp_path):
    found, table4 = (
        resolve(all_tables()[name], SCALES["demo"], seeds=1, fill=False, cache=tmp_path)
        for name in ("svib/beta", "svib/table4")
    )
    assert len(found.pretrainings) == 3 and len(found.evaluations) == 15
    assert set(found.pretrainings) < set(table4.pretrainings)
    ends = {key for key, e in found.evaluations.items() if e.after == 100}
    assert {key for cell in table4.cells[3:] for key in cell.evaluations} == ends
    for key, e in found.evaluations.items():
        p = found.pretrainings[e.pretraining]
        assert p.snapshots == recipe_of(p).snapshots == (20, 40, 60, 80)
        moment = () if e.after == 100 else (f"after {e.after} % of the steps",)
        assert fingerprint(recipe_of(p), protocol_of(e), p.seed, *moment) == key
