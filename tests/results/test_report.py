"""The report: its structure as a parser sees it."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image, PngImagePlugin

import reproduce
from harness.record import load_records
from results.cells import Findings, cell_results
from results.provenance import Place, find_figures, render_record
from results.report import Report, render_report, save_report
from tests.results import sample
from tests.results.report_toys import ENVIRONMENT, SCALES, Page, report

ATTACK = """<script>alert(1)</script><img src=x onerror="alert(2)">"' \ud800 $policy"""


def page(**settings) -> Page:
    return Page(render_report(report(**settings)))


def test_every_table_has_a_caption_and_every_heading_a_scope():
    found = page()
    assert len(found.all("table")) == len(found.all("caption")) == 3  # results, cost, environment
    scopes = {attributes.get("scope") for attributes, _ in found.all("th")}
    assert scopes == {"col", "colgroup", "row"}
    heads = [
        parents
        for (tag, _), parents in zip(found.elements, found.parents, strict=True)
        if tag == "th"
    ]
    assert all("thead" in parents or "tbody" in parents for parents in heads)


def test_headings_count_the_columns_that_rows_have():
    found = page()
    for attributes, _ in found.all("table"):
        assert attributes["class"] == "sortable"
    columns = [int(a["data-column"] or "") for a, _ in found.all("th") if "data-column" in a]
    assert columns[:10] == [0, 1, *range(2, 10)]
    assert sum(int(a["span"] or "") for a, _ in found.all("colgroup")) == 10


def test_tables_scroll_in_containers_that_the_keyboard_reaches_and_captions_name():
    found = page()
    captions = {attributes["id"] for attributes, _ in found.all("caption")}
    regions = [a for a, _ in found.all("div") if a.get("class") == "scroll"]
    assert {a["aria-labelledby"] for a in regions} == captions
    assert all((a["tabindex"], a["role"]) == ("0", "region") for a in regions)
    for (tag, _), parents in zip(found.elements, found.parents, strict=True):
        assert tag != "table" or parents[-1] == "div"


def test_ids_are_unique_and_every_link_within_the_page_leads_to_one():
    found = page()
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    inner = [a["href"] or "" for a, _ in found.all("a") if (a["href"] or "").startswith("#")]
    assert {address[1:] for address in inner} <= set(ids)
    assert found.all("a")[0][0] == {"class": "skip", "href": "#tables"}


def test_every_measured_cell_leads_to_its_record_and_the_record_to_its_file():
    found = page()
    links = {text: a["href"] for a, text in found.all("a")}
    assert links["70.3 ± 0.3"] == "#record-lin1"
    assert links["seed 0: 70.1"] == "#record-lin1"
    assert links["seed 1: 70.5"] == "#record-lin1b"
    assert links["58.0†"] == "#record-older"
    assert links["69.4‡"] == "#record-knn2"
    assert links["knn2.json"] == "../records/knn2.json"
    details = found.by_id("record-knn2")
    for fact in ("0123abcd", "reproduce.py table9", "/logs/1.err", "sha256 abc", "7200 s"):
        assert fact in details
    assert "python 3.11.7, torch 2.15.0" in details
    assert "Paper, Table 9: Second, 300 | KNN" in details


def test_a_cell_shows_ours_the_papers_the_difference_and_the_status():
    html = render_report(report())
    row = next(line for line in html.splitlines() if ">First<" in line)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    texts = [re.sub("<[^>]+>", "", cell) for cell in cells]
    assert texts == [
        *("100", "70.3 ± 0.3 n = 2seed 0: 70.1seed 1: 70.5", "70.0", "+0.3", "match"),
        *("58.0† 57.8 - 58.3", "60.0", "-2.0", "stale"),
    ]
    assert 'data-sort="70.345"' in row


def test_reasons_are_notes_below_the_table():
    found = page()
    notes = [text for a, text in found.all("li") if "-note-" in (a.get("id") or "")]
    assert notes == ["no file yet", "the loss <i>isn't</i> finite", "the paper's number: k = 200"]
    assert [text for _, text in found.all("a")].count("note 1") == 2


def test_every_status_is_a_word_with_a_legend():
    found = page()
    terms = {text for _, text in found.all("dt")}
    statuses = [t for a, t in found.all("span") if (a.get("class") or "").startswith("status")]
    assert len(statuses) == 6
    assert set(statuses) == {"not run", "match", "stale", "different protocol"} <= terms


@pytest.mark.parametrize("scale", ["paper", "demo"])
def test_the_banner_the_title_and_every_caption_say_the_scale(scale):
    found = page(scale=scale)
    banner = next(t for a, t in found.all("p") if (a.get("class") or "").startswith("banner"))
    shown = [found.all("title")[0][1], *[t for _, t in found.all("caption")][:2]]
    if scale == "paper":
        assert banner == "Scale: paper (as the papers)."
        assert all(text.endswith("scale paper") for text in shown)
    else:
        assert banner.startswith("Scale: DEMO. These are not the papers' experiments.")
        assert all(text.endswith("scale demo, not the papers' experiments") for text in shown)
        assert "match" not in {t for a, t in found.all("span")}


def test_what_a_record_holds_is_shown_as_text(tmp_path):
    environment = dict.fromkeys(ENVIRONMENT, ATTACK) | {"versions": {ATTACK: ATTACK}, ATTACK: 1}
    changes = {
        "environment": environment,
        "checkpoint": {"sha256": ATTACK},
        "data": {ATTACK: {"checksum": ATTACK}},
        "protocol": {"class": ATTACK},
        "recipe": {"dataset": ATTACK, ATTACK: [ATTACK]},
        "predictions": ATTACK,
    }
    path = save_report(report(changes=changes), tmp_path / "report.html")
    found = Page(path.read_text(encoding="utf-8"))
    assert len(found.all("script")) == 1
    assert not found.all("img")
    assert not any(name.startswith("on") for _, a in found.elements for name in a)
    assert "<script>alert(1)</script>" in found.by_id("record-knn2")
    assert "$policy" in found.by_id("record-knn2")


def test_a_key_cannot_leave_its_attribute_or_become_an_address():
    key = 'javascript:alert(1)//"><script>'
    html = render_record(sample.record(key, 1.0), f"../records/{key}.json", [Place("x", key)])
    found = Page(html)
    assert not found.all("script")
    addresses = [a["href"] or "" for a, _ in found.all("a")]
    assert addresses[0] == "#x"
    assert addresses[1].startswith("../records/javascript%3A")
    assert unquote(addresses[1]) == f"../records/{key}.json"
    assert re.fullmatch(r"record-[0-9a-f]{16}", found.elements[0][1]["id"] or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"knn_20": "<b>99</b>"}},
        {"environment": "<b>none</b>"},
        {"data": ["<b>"]},
        {"seconds": None},
        {"key": 1},
    ],
)
def test_a_file_whose_values_are_of_another_kind_is_no_record(changes, tmp_path, capsys):
    good, bad = sample.record("good", 1.0), sample.record("bad", 2.0)
    good.save(tmp_path)
    (tmp_path / "bad.json").write_text(json.dumps(dataclasses.asdict(bad) | changes))
    assert load_records(tmp_path) == {"good": good}
    assert "bad.json is not a record" in capsys.readouterr().err


def test_nothing_is_loaded_and_only_the_pages_own_script_may_run(tmp_path):
    figure = tmp_path / "fig4.png"
    Image.new("RGB", (3, 2)).save(figure)
    found = page(figures=(figure,))
    for tag, attributes in found.elements:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert (attributes.get("src") or "data:").startswith("data:")
        assert not (attributes.get("href") or "").startswith(("http:", "https:", "//"))
        assert "style" not in attributes  # the policy would ignore it
    policy = next(a["content"] for a, _ in found.all("meta") if "http-equiv" in a) or ""
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(re.findall(r"(?:script|style)-src 'sha256-[\w+/=]{44}'", policy)) == 2
    style = found.all("style")[0][1]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_figures_are_embedded_with_their_descriptions_and_not_those_of_another_scale(tmp_path):
    about = PngImagePlugin.PngInfo()
    about.add_text("Title", "Attention")
    about.add_text("Description", "Where <each> head looks")
    Image.new("RGB", (3, 2)).save(tmp_path / "fig4.demo.png", pnginfo=about)
    Image.new("RGB", (3, 2)).save(tmp_path / "fig4.paper.png")
    (tmp_path / "fig5.png").write_bytes(b"<script>")
    found_paths = find_figures(tmp_path, SCALES["demo"])
    assert [path.name for path in found_paths] == ["fig4.demo.png", "fig5.png"]
    found = page(scale="demo", figures=found_paths)
    ((attributes, _),) = found.all("img")
    assert attributes["alt"] == "Where <each> head looks"
    assert (attributes["width"], attributes["height"]) == ("3", "2")
    assert [text for _, text in found.all("figcaption")] == ["Attention"]


def test_costs_and_environments_have_their_sections():
    found = page()
    assert "8 × V100" in found.by_id("table-paper_table9-cost")
    environments = found.by_id("environments")
    assert "0123abcd" in environments
    assert environments.rstrip().endswith("4")  # records


def test_without_records_the_page_is_whole():
    whole = report()
    findings = Findings(records={})
    table, scale, resolved = sample.TABLE, whole.scale, whole.drawings[0].resolved
    results = cell_results(table, scale, resolved, findings)
    drawing = dataclasses.replace(whole.drawings[0], results=results)
    found = Page(render_report(Report(scale=scale, drawings=[drawing], findings=findings)))
    assert "There are no records yet." in found.by_id("environment")
    assert not [a for a, _ in found.all("section") if a.get("class") == "record"]
    assert "not run" in found.by_id("table-paper_table9")


def test_the_command_writes_the_page_and_without_torch_where_keys_are_known(tmp_path, capsys):
    folders = ["--runs", str(tmp_path / "runs"), "--records", str(tmp_path / "records")]
    page = tmp_path / "pages" / "all.html"
    arguments = ["report", "quick", "--scale", "demo", *folders, "--out"]
    assert reproduce.main([*arguments, str(page)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert Page(page.read_text(encoding="utf-8")).all("h1")[0][1] == "Reproduced tables"
    assert reproduce.main([*arguments, str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err
    code = (
        "import sys, reproduce\n"
        "status = reproduce.main(sys.argv[1:])\n"
        "sys.exit(status or 'torch' in sys.modules)"
    )
    again = [sys.executable, "-c", code, *arguments, str(page)]
    assert subprocess.run(again, cwd=Path(reproduce.__file__).parent, check=False).returncode == 0
