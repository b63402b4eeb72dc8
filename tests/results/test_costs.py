import json
from dataclasses import asdict, replace

import pytest

from harness.record import Cost, Record
from harness.scale import SCALES
from results.cells import Findings, cell_results
from results.costs import row_costs
from results.render import Drawing, render_costs, save_costs
from results.why import trace
from tests.results import sample

V100 = "Tesla V100-SXM2-32GB"


def record(key, hours, evaluation_minutes=30):
    """IMSVD's row of its Table IV: 8.5 hours per 100 epochs on 32 GPUs, 10.4 GB each."""
    pretraining = Cost(
        seconds=hours * 3600,
        processes=32,
        gpus=32,
        gpu_hours=hours * 32,
        hardware=V100,
        images_per_s=4000.0,
        peak_memory_bytes=10_400_000_000,
        jobs=("7_0", "9_0"),
    )
    evaluation = Cost(
        seconds=evaluation_minutes * 60, gpus=1, gpu_hours=evaluation_minutes / 60, hardware=V100
    )
    return replace(sample.record(key, 69.0), pretrain_cost=pretraining, cost=evaluation)


def findings():
    records = [record("lin1", 0.08), record("knn1", 0.08), record("lin1b", 0.1)]
    records.append(sample.record("lin2", 70.0))  # from before records told a cost
    return Findings(records={r.key: r for r in records})


def drawing(folder):
    scale, found = SCALES["paper"], findings()
    return Drawing(
        table=sample.TABLE,
        scale=scale,
        resolved=sample.resolved(),
        results=cell_results(sample.TABLE, scale, sample.resolved(), found),
        records=folder,
        folder=folder,
    )


def test_a_row_costs_the_mean_of_its_runs_and_the_sum_of_its_evaluations():
    (cost,) = row_costs(sample.resolved(), findings())
    assert (cost.row, cost.epochs, cost.runs, cost.hardware) == (1, 1, 2, f"32 × {V100}")
    assert cost.hours_per_100_epochs == pytest.approx(9.0)
    assert cost.gpu_hours == cost.process_hours == pytest.approx(0.09 * 32)
    assert (cost.images_per_s, cost.peak_memory_gb) == (4000.0, pytest.approx(10.4))
    assert cost.evaluation_hours == cost.evaluation_gpu_hours == pytest.approx(1.5)


def test_the_cost_table_shows_what_the_papers_table_of_costs_does(tmp_path):
    shown = drawing(tmp_path)
    costs = row_costs(shown.resolved, findings())
    line = next(x for x in render_costs(shown, costs).splitlines() if x.startswith("| First"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        *("First, 100", "1", "2", f"32 × {V100}", "9.0", "2.9", "4000", "10.4", "1.5"),
    ]
    markdown, values = save_costs(shown, costs)
    assert (markdown.name, values.name) == (
        "paper_table9.paper.cost.md",
        "paper_table9.paper.cost.csv",
    )
    assert values.read_text().splitlines()[1].startswith('paper/table9,paper,"First, 100",1,2,32')


def test_on_cpu_hours_are_those_of_the_processes(tmp_path):
    cpu = Cost(seconds=7200.0, processes=2, hardware="x86_64", images_per_s=10.0)
    found = replace(record("lin1", 1.0), pretrain_cost=cpu)
    costs = row_costs(sample.resolved(), Findings(records={"lin1": found}))
    assert "| 4.0 (CPU)   |" in render_costs(drawing(tmp_path), costs)


def test_why_tells_the_cost_of_a_record_and_the_seconds_of_an_older_one(tmp_path):
    found = findings()
    for each in found.records.values():
        each.save(tmp_path)
    results = cell_results(sample.TABLE, SCALES["paper"], sample.resolved(), found)
    texts = {r.cell: trace(sample.TABLE, r, tmp_path) for r in results}
    new, old = (
        "\n".join(t for c, t in texts.items() if (c.row, c.column) == at) for at in ((1, 1), (2, 0))
    )
    assert (
        f"pretraining took: 288 s, 32 × {V100}, 2.56 GPU-hours, 4000 images/s, peak 10.40 GB, "
        "SLURM jobs 7_0, 9_0"
    ) in new
    assert "pretraining took: 20 s\n  evaluation took: 5 s" in old


def test_a_record_keeps_its_cost_and_one_without_still_loads(tmp_path):
    saved = record("lin1", 1.0)
    assert Record.load(saved.save(tmp_path)) == saved
    values = asdict(sample.record("old", 1.0))
    del values["cost"], values["pretrain_cost"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(values))
    assert Record.load(path) == sample.record("old", 1.0)
    path.write_text(json.dumps(values | {"cost": "much"}))
    with pytest.raises(ValueError, match="is not a record"):
        Record.load(path)
