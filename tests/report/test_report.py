"""The page of a store: its numbers, its text, and how it behaves in a browser."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("pandas")
pytest.importorskip("sqlalchemy")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from emu.cli import app
from emu.demo import data_path, model_path
from emu.errors import InputError
from emu.evaluation import Bench, Trial
from emu.report import report_page, write_report
from emu.sweep import Plan, Store, run_plan, run_trials, summarize

SAMPLES = 40
HOSTILE = "<script>alert(1)</script>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Tables (rows of the `data-value` and text of each cell), headlines, commands and all attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[tuple[str, str]]]] = []
        self.headlines: dict[str, str] = {}
        self.commands: list[str] = []
        self.text: list[str] = []
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append((given.get("data-value", ""), ""))
        if "data-headline" in given:
            self.headlines[given["data-headline"]] = given["data-value"]
        if given.get("class") == "command":
            self.commands.append("")
        self._inside = given.get("class") if tag == "pre" else tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._inside in ("td", "button"):
            value, before = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (value, before + data)
        if self._inside == "command":
            self.commands[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    @property
    def points(self) -> list[list[tuple[str, str]]]:
        return self.tables[0]


def plan(**settings: Any) -> Plan:
    files = {"model": model_path("digits_vit"), "data": data_path("digits_test")}
    return Plan(**{**files, "device": "rram", "only": "*", "samples": SAMPLES, **settings})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Four studies: a number, a number with a hostile name, layers by components, and trials that are no product."""
    with Store(tmp_path_factory.mktemp("report") / "study.db") as kept:
        run_plan(plan(vary={"program.sigma": "0.1,0.9,0.5,0.25"}, seeds=3), store=kept, study="sigma")
        run_plan(plan(vary={"program.sigma": "0.5"}, seeds=2), store=kept, study=HOSTILE)
        places = {"layer": "0-1", "component": "query,ffn_*"}
        run_plan(plan(vary=places, set={"program.sigma": 0.6}, seeds=2), store=kept, study="places")
        bench = Bench(model_path("digits_vit"), data_path("digits_test"), device="rram", only="*", samples=SAMPLES)
        alone = [Trial(seed=seed, only="component=query") for seed in (0, 1)]
        but = [Trial(seed=seed, exclude=f"component={name}") for seed in (0, 1) for name in ("query", "key")]
        run_trials(bench, [Trial(), *alone, *but], store=kept, study="parts")
        yield kept


@pytest.fixture(scope="module")
def page(store: Store) -> Page:
    return Page(report_page(store, study="sigma"))


def test_the_points_are_those_of_the_store_to_the_last_digit(store: Store, page: Page) -> None:
    summary = summarize(store.frame("sigma"))
    head, *rows = page.points
    assert [text for _, text in head][:4] == ["program.sigma", "chips", "trials", "accuracy"]
    wanted = summary[["program.sigma", "chips", "trials", *(f"accuracy.{x}" for x in ("mean", "std", "low", "high"))]]
    shown = [[float(value or "nan") for value, _ in row] for row in rows]  # equal chips have no interval
    np.testing.assert_array_equal(shown, wanted.astype(float).to_numpy())
    assert [row[3][1] for row in rows] == [f"{mean:.2%}" for mean in summary["accuracy.mean"]]


def test_the_headlines_are_the_clean_the_best_and_the_worst(store: Store, page: Page) -> None:
    means = summarize(store.frame("sigma"))["accuracy.mean"]
    clean = Bench(model_path("digits_vit"), data_path("digits_test"), device="rram", only="*", samples=SAMPLES).clean
    found = {name: float(value) for name, value in page.headlines.items()}
    assert found == {
        "Clean accuracy": clean.metrics["accuracy"],
        "Best point": means.max(),
        "Worst point": means.min(),
    }


def test_of_a_loss_the_lowest_is_the_best(store: Store) -> None:
    found = Page(report_page(store, study="sigma", metrics=["loss"], clean=False)).headlines
    assert float(found["Best point"]) < float(found["Worst point"])
    assert found["Clean loss"] == ""


def test_every_trial_has_its_command(store: Store, page: Page) -> None:
    frame = store.frame("sigma")
    rows = page.tables[1][1:]
    assert [row[0][1] for row in rows] == frame["id"].tolist()
    assert [shlex.split(row[-1][1]) for row in rows] == [["emu", "rerun", store.where, id] for id in frame["id"]]
    place = [text for _, text in page.tables[1][0]].index("accuracy")
    assert [float(row[place][0]) for row in rows] == frame["accuracy"].tolist()


@pytest.mark.parametrize("study", ["sigma", "places", HOSTILE])
def test_the_command_of_a_study_gives_its_trials_again(
    store: Store, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = Page(report_page(store, study=study, clean=False)).commands
    done = CliRunner().invoke(app, shlex.split(command.replace("\\\n", " "))[1:])
    assert done.exit_code == 0, done.output
    with Store("again.db", create=False) as again:
        assert again.studies()[0].name == study
        same = [kept.frame(study)[["id", "accuracy", "loss"]].sort_values("id") for kept in (store, again)]
    assert same[0].to_numpy().tolist() == same[1].to_numpy().tolist()


def test_a_changed_device_that_has_no_preset_comes_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text('name = "own"\n[program]\nmodel = "lognormal_w"\nsigma = 0.3\n', "utf-8")
    with Store("own.db") as kept:
        run_plan(plan(device="own.toml", vary={"program.sigma": "0.3"}, seeds=2), store=kept)
        text = report_page(kept, clean=False)
        ids = kept.frame()["id"].tolist()
    (command,) = Page(text).commands
    (file,) = re.findall(r"with this file as <code>own.toml</code>:</p>\s*<pre>(.*?)</pre>", text, re.DOTALL)
    Path("own.toml").write_text(Page(file).text[0], "utf-8")
    assert CliRunner().invoke(app, shlex.split(command.replace("\\\n", " "))[1:]).exit_code == 0
    with Store("again.db") as again:
        assert again.frame()["id"].tolist() == ids


def test_trials_that_are_no_product_have_no_sweep(store: Store) -> None:
    page = Page(report_page(store, study="parts", clean=False))
    assert page.commands == []
    assert "no product of axes" in " ".join(page.text)


def test_each_kind_of_study_has_its_figure(store: Store) -> None:
    captions = {
        study: re.findall("<figcaption>(.*?)</figcaption>", report_page(store, study=study, clean=False))
        for study in ("sigma", "places", "parts", HOSTILE)
    }
    assert captions["sigma"] == ["Accuracy over program.sigma, mean over 3 chips; the band is the 95 % interval."]
    assert captions["places"] == ["Accuracy by layer and component, mean over 2 chips."]
    assert captions["parts"] == ["Accuracy, mean over 2 chips, with the 95 % interval; all disturbed but this."]
    assert captions[HOSTILE] == []


def test_names_are_text_and_never_markup(store: Store) -> None:
    text = report_page(store, clean=False)
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "alert(1)</script>" not in text
    assert any(HOSTILE in each for each in page.text)


def test_the_page_refers_to_nothing_outside(store: Store) -> None:
    text = report_page(store, clean=False)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    for tag, given in Page(text).tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
        assert "src" not in given
        assert given.get("href", "#").startswith(("#", "data:,"))


def test_ids_are_unique_and_every_reference_has_its_target(store: Store) -> None:
    text = report_page(store, clean=False)
    tags = Page(text).tags
    ids = [given["id"] for _, given in tags if "id" in given]
    assert len(ids) == len(set(ids))
    wanted = [given["href"][1:] for _, given in tags if given.get("href", "").startswith("#")]
    wanted += re.findall(r"url\(#([^)]+)\)", text)
    assert wanted
    assert set(wanted) <= set(ids)


def test_study_chooses_one(store: Store) -> None:
    sections = [given["data-study"] for tag, given in Page(report_page(store, clean=False)).tags if tag == "section"]
    assert sections == ["1", "2", "3", "4"]
    text = report_page(store, study="places", clean=False)
    assert [given["data-study"] for tag, given in Page(text).tags if tag == "section"] == ["3"]
    assert "alert" not in text


def test_a_model_that_is_gone_costs_the_clean_number_only(tmp_path: Path) -> None:
    model = tmp_path / "gone.onnx"
    shutil.copy(model_path("digits_vit"), model)
    with Store(tmp_path / "study.db") as kept:
        run_plan(plan(model=model, vary={"program.sigma": "0.3"}, seeds=2), store=kept)
        model.unlink()
        page = Page(report_page(kept))
    assert page.headlines["Clean accuracy"] == ""
    assert "gone.onnx any more" in " ".join(page.text)
    assert len(page.points) == 2


def test_a_page_is_not_replaced_unasked_nor_half_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "page.html"
    target.write_text("before", "utf-8")
    with pytest.raises(InputError, match="--overwrite"):
        write_report(store, target, clean=False)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left"):
        write_report(store, target, clean=False, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert target.read_text("utf-8") == "before"


def test_without_jinja_a_sentence_says_what_to_install(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r"needs jinja2: pip install .emu-onnx\[analysis\]"):
        report_page(store)


def test_wrong_stores_and_targets_are_a_sentence(store: Store, tmp_path: Path) -> None:
    wrong, empty = tmp_path / "wrong.db", tmp_path / "empty.db"
    wrong.write_text("no database " * 100, "utf-8")
    with Store(empty) as kept:
        kept.study("nothing yet", store.studies()[0].setup)
    target = tmp_path / "page.html"
    for arguments, said in (
        ([tmp_path / "none.db", "-o", target], "no store"),
        ([empty, "-o", target], "has no results of any study yet"),
        ([wrong, "-o", target], "is no database"),
        ([store.where, "-o", target, "--study", "other"], "no study 'other'"),
        ([store.where, "-o", target, "--metric", "speed"], "no metric 'speed'"),
        ([store.where, "-o", tmp_path / "page.pdf"], "in .html"),
        ([store.where, "-o", tmp_path / "none" / "page.html"], "no folder"),
    ):
        done = CliRunner().invoke(app, ["report", *map(str, arguments)])
        assert done.exit_code == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert not target.exists()


PROBE = """<script>
const table = document.querySelector(".points table"), found = { errors: window.failed, start: {}, };
const column = (name) => {
  const index = Array.from(table.querySelectorAll("th button")).findIndex((each) => each.textContent === name);
  return Array.from(table.tBodies[0].rows, (row) => row.cells[index].dataset.value);
};
const press = (name) => {
  const button = Array.from(table.querySelectorAll("th button")).find((each) => each.textContent === name);
  button.focus();
  found.focused = document.activeElement === button;
  button.click();
  found.sort = Array.from(table.querySelectorAll("th[aria-sort]"), (each) => [each.textContent, each.ariaSort]);
};
press("accuracy"); found.up = column("accuracy");
press("accuracy"); found.down = column("accuracy");
press("program.sigma"); found.sigma = column("program.sigma");
found.requests = performance.getEntriesByType("resource").map((each) => each.name);
found.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
found.drawn = document.querySelector("svg").getBoundingClientRect().width;
document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_in_a_browser_it_sorts_without_errors_requests_or_sideways_scrolling(store: Store, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    text = report_page(store, clean=False)
    watch = "<head><script>window.failed = []; addEventListener('error', (e) => failed.push(e.message)); "
    watch += "addEventListener('securitypolicyviolation', (e) => failed.push(e.blockedURI));</script>"
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("<head>", watch, 1).replace("</body>", PROBE, 1), "utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,800", "--virtual-time-budget=5000"]
    done = subprocess.run([*command, "--dump-dom", probed.as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(done.stdout.partition("FOUND")[2].partition("END")[0])
    assert "CONSOLE" not in done.stderr
    assert found["errors"] == []
    assert found["requests"] == []
    assert not found["wide"]
    assert found["focused"]
    assert found["drawn"] > 200
    up = [float(value) for value in found["up"]]
    assert up == sorted(up) == [float(value) for value in reversed(found["down"])]
    assert len(set(up)) > 1
    assert [float(value) for value in found["sigma"]] == [0.1, 0.25, 0.5, 0.9]
    assert found["sort"] == [["program.sigma", "ascending"]]
    assert not math.isnan(sum(up))
