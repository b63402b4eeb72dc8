"""The report in a real browser, where there is one: it sorts, fits a phone, keeps its policy."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from results.report import render_report, save_report
from tests.results.report_toys import Page, report

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")


def in_a_browser(path: Path, *flags: str) -> Page:
    """The page after its scripts have run."""
    profile = path.with_suffix(".profile")
    flags = ("--headless", "--disable-gpu", "--no-sandbox", f"--user-data-dir={profile}", *flags)
    done = subprocess.run(
        [BROWSER, *flags, "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return Page(done.stdout)


def with_script(path: Path, script: str, scale: str = "paper") -> Path:
    """Write the page with one more script; its policy, which lets no other run, is left out."""
    html = re.sub(r"<meta http-equiv[^>]*>", "", render_report(report(scale)))
    path.write_text(html.replace("</script>", f"</script><script>{script}</script>"))
    return path


needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome on PATH")


@needs_browser
def test_a_browser_sorts_a_column_upwards_downwards_and_back(tmp_path):
    click = """
      const rows = () => [...document.querySelectorAll("#table-paper_table9 tbody th")]
        .map((th) => th.textContent).join(" ");
      const head = document.querySelector('th[data-name="Linear: Paper"]');
      const seen = [];
      for (let i = 0; i < 3; i++) {
        head.querySelector("button").click();
        seen.push(rows() + " " + head.getAttribute("aria-sort"));
      }
      document.title = seen.join("|");
    """
    found = in_a_browser(with_script(tmp_path / "report.html", click))
    assert found.all("title")[0][1].split("|") == [
        "First Quoted Second ascending",
        "Second Quoted First descending",
        "Quoted First Second null",
    ]
    assert found.by_id("sorting") == "Table in the paper's order"


@needs_browser
def test_a_column_without_some_numbers_keeps_those_rows_last(tmp_path):
    click = """
      const button = document.querySelector('th[data-name="KNN: Ours"] button');
      const rows = () => [...document.querySelectorAll("#table-paper_table9 tbody th")]
        .map((th) => th.textContent).join(" ");
      button.click();
      const up = rows();
      button.click();
      document.title = up + "|" + rows();
    """
    found = in_a_browser(with_script(tmp_path / "report.html", click))
    assert found.all("title")[0][1] == "First Second Quoted|Second First Quoted"


@needs_browser
def test_n_unfolds_to_every_seeds_number_which_leads_to_its_record(tmp_path):
    click = """
      const details = document.querySelector("td details");
      const seen = () => [...details.querySelectorAll("a")]
        .filter((link) => link.checkVisibility())
        .map((link) => link.textContent + " " + link.getAttribute("href")).join(", ");
      const summary = details.querySelector("summary");
      const folded = seen();
      summary.focus();
      const reached = document.activeElement === summary;
      summary.click();
      document.title = [summary.textContent, reached, folded, seen()].join("|");
    """
    found = in_a_browser(with_script(tmp_path / "report.html", click))
    runs = "seed 0: 70.1 #record-lin1, seed 1: 70.5 #record-lin1b"
    assert found.all("title")[0][1] == f"n = 2|true||{runs}"


@needs_browser
@pytest.mark.parametrize(
    ("scheme", "ground"), [("0", "rgb(20, 23, 27)"), ("1", "rgb(255, 255, 255)")]
)
def test_in_dark_and_in_light_every_text_stands_out_from_its_ground(tmp_path, scheme, ground):
    measure = """
      const channels = (colour) => colour.match(/[0-9.]+/g).map(Number);
      const luminance = (colour) => channels(colour).slice(0, 3).map((value) => value / 255)
        .map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
      const ground = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return channels(colour)[3] === 0 && element.parentElement
          ? ground(element.parentElement) : colour;
      };
      const contrast = (element) => {
        const pair = [getComputedStyle(element).color, ground(element)].map(luminance);
        return (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
      };
      const texts = [...document.querySelectorAll("body *:not(script)")].filter((element) =>
        [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
      document.title = [texts.length, Math.min(...texts.map(contrast)), ground(document.body)]
        .join("|");
    """
    flag = f"--blink-settings=preferredColorScheme={scheme}"
    path = with_script(tmp_path / "report.html", measure, scale="demo")  # it has a warning
    found = in_a_browser(path, flag)
    texts, least, body = found.all("title")[0][1].split("|")
    assert int(texts) > 100
    assert float(least) >= 4.5  # WCAG 2.2, 1.4.3
    assert body == ground


@needs_browser
def test_on_a_phone_only_tables_scroll_sideways(tmp_path):
    measure = """
      const beyond = [...document.querySelectorAll("body *")].filter((element) =>
        !element.closest(".scroll > table") && element.getBoundingClientRect().right > innerWidth);
      document.title = innerWidth + " " + document.documentElement.scrollWidth + " " +
        beyond.length + " " + document.querySelector(".scroll").scrollWidth;
    """
    path = with_script(tmp_path / "report.html", measure)
    found = in_a_browser(path, "--window-size=360,800").all("title")[0][1]
    window, whole, beyond, table = map(int, found.split())
    assert whole <= window
    assert beyond == 0
    assert table > window


@needs_browser
def test_the_policy_lets_the_pages_own_script_run(tmp_path):
    found = in_a_browser(save_report(report(), tmp_path / "report.html"))
    headings = [a for a, _ in found.all("th") if "data-column" in a]
    assert len(found.all("button")) == len(headings) > 0
