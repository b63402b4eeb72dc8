import subprocess
import sys

import reproduce
from results.catalog import find_tables


def test_help_answers_without_torch():
    code = (
        "import sys, reproduce\n"
        "try: reproduce.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'submitit' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert answer.returncode == 0
    assert b"svib/table1" in answer.stdout


def run(tmp_path, *arguments):
    folders = {"runs": tmp_path / "runs", "records": tmp_path / "records", "out": tmp_path / "out"}
    return reproduce.main(
        [*arguments, *[text for k, v in folders.items() for text in (f"--{k}", str(v))]]
    )


def test_an_unknown_table_is_one_sentence_and_status_2(tmp_path, capsys):
    assert run(tmp_path, "tabel1") == 2
    error = capsys.readouterr().err
    assert error.startswith("unknown table or figure 'tabel1': did you mean table1")
    assert len(error.splitlines()) == 1


def test_two_modes_at_once_are_refused(tmp_path, capsys):
    assert run(tmp_path, "table1", "--plan", "--status") == 2
    assert "--plan and --status exclude each other" in capsys.readouterr().err


def test_without_imagenet_the_default_scale_is_demo_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    assert run(tmp_path, "table1", "--render") == 0
    captured = capsys.readouterr()
    assert "running at the demo scale" in captured.err
    assert captured.out.count("Scale: DEMO") == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{paper}_table1.demo.{kind}" for paper in ("svib", "imsvd") for kind in ("md", "csv")
    }


def test_with_imagenet_the_default_scale_is_the_papers(tmp_path, capsys, monkeypatch):
    (tmp_path / "imagenet").mkdir()
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert run(tmp_path, "svib/table1", "--render") == 0
    assert "**Scale: paper**" in capsys.readouterr().out


def test_the_plan_of_both_tables_has_38_pretrainings_and_52_evaluations(tmp_path, capsys):
    assert run(tmp_path, "table1", "--scale", "demo", "--plan", "--cluster", "local") == 0
    assert capsys.readouterr().out.startswith(
        "90 jobs to run: 38 pretrainings, 52 evaluations; 0 evaluations are recorded"
    )
    assert not (tmp_path / "records").exists()


def test_the_plan_of_all_tables_lists_every_published_number(tmp_path, capsys):
    assert run(tmp_path, "all", "--scale", "paper", "--plan", "--cluster", "local") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "288 published numbers: 288 planned."
    rows = sum(len(table.rows) for table in find_tables(("all",)))
    published = lines[2 : 2 + rows]
    assert "  svib/table4, 2, ×, ✓, 0.1: planned: kNN-20 = divergence" in published
    assert (
        "  imsvd/table4, IMSVD: planned: Time/100epochs = 8.5h; Peak memory/GPU = 10.4G; "
        "Top-1 accuracy = 73.6"
    ) in published
    assert lines[2 + rows].startswith("pretrain ")


def test_status_has_a_line_per_cell(tmp_path, capsys):
    assert run(tmp_path, "svib/table1", "--scale", "demo", "--status") == 0
    out = capsys.readouterr().out
    assert out.startswith("svib/table1 at scale demo: 26 missing, 2 not run\n")
    assert out.count(" missing") == 27
    assert out.count("the paper has no number here") == 2


def test_why_without_a_record_says_so(tmp_path, capsys):
    assert run(tmp_path, "svib/table1", "--scale", "demo", "--why", "svib (ours), r", "knn") == 0
    out = capsys.readouterr().out
    assert "the paper's number: 69.4" in out
    assert "status: not run (no record yet)" in out


def test_clean_removes_kept_features_and_says_how_much(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    entry = tmp_path / "ssl-reproduce" / "features" / "key"
    entry.mkdir(parents=True)
    (entry / "00000-0of1.npy").write_bytes(bytes(20_000_000))
    assert reproduce.main(["clean"]) == 0
    assert capsys.readouterr().out.startswith("0.02 GB freed")
    assert not entry.exists()
