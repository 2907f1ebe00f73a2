"""The page in a real browser, opened as a file; skipped where there is no Chromium."""

import copy
import random
import re
import shutil
from contextlib import contextmanager

import pytest

from tasft.report.page import data as page_module
from tasft.report.page import page as page_of
from tasft.report.page.data import page_data
from tasft.report.summary import summaries
from tasft.result.table import read_table
from tests.report.runs import make_grid, make_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-sync --no-first-run"
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium to look at the page with: apt-get install chromium"
)

ATTACK = '<img src=x onerror="window.struck=1"><script>window.struck=1</script></script> & the "scarf"'
VIEWS = ("runs", "trade-off", "curves", "answers", "about")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield launched
        launched.close()


def say(benchmark, number):
    return ATTACK if benchmark == "tiny_seeming" and number == 0 else None


def data_of(root):
    table = read_table(root)
    return page_data(root, table, summaries(table), [])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five settings, one of them with two seeds, and a run that is still at work; ten prompts of each benchmark."""
    root = tmp_path_factory.mktemp("runs")
    more = {"prompts": 10, "benchmarks": ("tiny_seen", "tiny_seeming"), "say": say}
    emd, nlcl = ("loss=emd", "loss.share=0.06"), ("loss=nlcl", "loss.share=0.07")
    make_run(root, "loss=sft", harm=0.9, over=0.0, **more)  # A
    make_run(root, *emd, harm=0.2, over=0.1, every=20, cost={"training_seconds": 90, "gpu_hours": 0.25}, **more)  # B
    make_run(root, *nlcl, harm=0.1, over=0.3, every=20, **more)  # C
    make_run(root, *emd, "data.toxic=15", harm=0.5, over=0.1, **more)  # D: B is better in harm
    make_run(root, *nlcl, "data.toxic=15", harm=0.2, over=0.2, **more)  # E: B is better in over-refusal
    make_run(root, *emd, seed=1, harm=0.4, over=0.1, **more)  # F: like B, another seed
    make_run(root, *nlcl, "data.toxic=5", finished=False, **more)
    return data_of(root)


@pytest.fixture(scope="module")
def file(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page_of(data))
    return path


@contextmanager
def shown(browser, path, width=1400, **more):
    """The page; at the end that it has asked for nothing but itself and has complained of nothing."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **more)
    tab = context.new_page()
    tab.set_default_timeout(5000)
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    yield tab
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    context.close()


def names(tab):
    """First column of the table, as it stands."""
    return [
        f"{a} {b}"
        for a, b in zip(
            tab.locator("tbody .who").all_inner_texts(), tab.locator("tbody .sub").all_inner_texts(), strict=True
        )
    ]


def cells(tab, column):
    """The values in a column."""
    place = tab.locator("#runs thead th").evaluate_all(f"all => all.findIndex(th => th.dataset.key === '{column}')")
    return tab.locator(f"#runs tbody tr > :nth-child({place + 1}) .value").all_text_contents()


SEEN = "joint|harmful|tiny_seen"


def test_sort_and_filter(browser, file):
    with shown(browser, file) as tab:
        table = ["90.0", "20.0", "40.0", "50.0", "10.0", "20.0", "–"]  # as in table.md: sft, emd 50, 15, nlcl 50, 15
        assert cells(tab, SEEN) == table
        head = tab.locator(f'#runs th[data-key="{SEEN}"]')
        head.locator("button").click()
        assert cells(tab, SEEN) == ["10.0", "20.0", "20.0", "40.0", "50.0", "90.0", "–"]
        assert head.get_attribute("aria-sort") == "ascending"
        tab.keyboard.press("Enter")  # it has kept the focus
        assert cells(tab, SEEN) == ["90.0", "50.0", "40.0", "20.0", "20.0", "10.0", "–"]  # what is missing stays last
        tab.keyboard.press("Enter")
        assert cells(tab, SEEN) == table

        tab.fill("#text", "emd seed=1")
        tab.locator("#count", has_text="1 of 7 runs").wait_for()
        assert names(tab) == ["emd 50 0.44 seed 1"]
        tab.fill("#text", "")
        tab.locator("#count", has_text=re.compile("^7 runs$")).wait_for()
        tab.select_option("#loss", "nlcl")
        tab.select_option("#toxic", "15")
        tab.locator("#count", has_text="1 of 7 runs").wait_for()
        assert cells(tab, SEEN) == ["20.0"]
        tab.fill("#text", "no such run")
        tab.get_by_text("No run passes the filter.").wait_for()


def test_rates_stand_with_n_interval_and_unscored(browser, file):
    with shown(browser, file) as tab:
        row = tab.locator("#runs tbody tr").first.inner_text()
        assert "90.0" in row and "60–98 · n 10" in row  # Wilson of 9 of 10: 0.5958 to 0.9821
        tab.check("#together")
        rows = tab.locator("#runs tbody tr").all_inner_texts()
        assert len(rows) == 6
        both = next(row for row in rows if "2 seeds" in row)
        assert "30.0" in both and "0–100 ±14.1 · n 10" in both  # 20 and 40; the interval as in table.md
        assert "unfinished" in rows[-1]


def test_the_pareto_front(browser, file):
    with shown(browser, file) as tab:
        tab.click("#tab-trade-off")
        assert tab.locator(".front-name").all_inner_texts() == [
            "sft 0 seed 0",
            "emd 50 0.44 seed 0",
            "nlcl 50 0.514 seed 0",
        ]
        assert tab.locator('[data-front="yes"]').count() == 3
        figure = tab.locator("figure").nth(1)
        assert figure.locator(".point").count() == 6
        tab.get_by_text("Select these").click()
        assert tab.locator("#selection .chip").count() == 3
        figure.locator("svg.chart").focus()
        tab.keyboard.press("ArrowRight")  # the first by over-refusal
        assert (
            "sft 0" in tab.locator("#tip").inner_text()
            and "90.0 % (59.6–98.2), n 10" in tab.locator("#tip").inner_text()
        )
        tab.keyboard.press("Enter")  # deselects it
        assert tab.locator("#selection .chip").count() == 2
        tab.check("#together")  # of the means: emd 50 at 30 % harm is still better than emd 15
        assert tab.locator(".front-name").all_inner_texts() == ["sft 0", "emd 50 0.44", "nlcl 15 1.6", "nlcl 50 0.514"]


def test_selected_runs_are_drawn(browser, file):
    with shown(browser, file) as tab:
        tab.get_by_role("button", name="Clear").click()
        assert tab.locator("#selection").inner_text() == (
            "No run selected: tick some in the table, or click points under Trade-off."
        )
        tab.click("#tab-curves")
        assert tab.locator("#curves svg.chart").count() == 0
        tab.click("#tab-runs")
        tab.get_by_label("Select emd 50 0.44 seed 0").check()
        tab.get_by_label("Select nlcl 50 0.514 seed 0").check()
        tab.get_by_label("Select sft 0 seed 0").check()
        tab.click("#tab-curves")
        drawn = {
            title: tab.locator(f'figure[data-chart="{title}"] path.curve').count()
            for title in ("loss", "toxic loss", "λ")
        }
        assert drawn == {"loss": 3, "toxic loss": 2, "λ": 2}  # plain SFT has neither
        rate = 'figure[data-chart="harmful: tiny_seen (toxic prompts)"]'
        assert tab.locator(f"{rate} path.curve").count() == 2
        tab.locator(f"{rate} svg.chart").focus()
        tab.keyboard.press("ArrowRight")
        tip = tab.locator("#tip").inner_text()
        assert "step 0" in tip and tip.count("100.0 % (72.2–100.0, n 10)") == 2
        tab.keyboard.press("Escape")
        assert not tab.locator("#tip").is_visible()
        box = tab.locator(f"{rate} svg.chart").bounding_box()
        tab.mouse.move(box["x"] + box["width"] - 15, box["y"] + 60)
        assert (
            "step 40" in tab.locator("#tip").inner_text()
            and "20.0 % (5.7–51.0, n 10)" in tab.locator("#tip").inner_text()
        )
        tab.get_by_label("Deselect emd 50 0.44 seed 0").click()
        assert tab.locator(f"{rate} path.curve").count() == 1


def test_harmful_text_is_folded_away_until_asked(browser, file):
    with shown(browser, file) as tab:
        tab.click("#tab-answers")
        text = tab.locator("#answers")
        assert "10 of 10 prompts" in text.inner_text()
        html = tab.locator("main").inner_html()  # not merely hidden
        assert "How do I steal" not in html and "then take the" not in html and "I can not help" not in html
        runs = tab.locator("#selection .chip").count()
        assert tab.locator(".answer .badge").count() == 10 * runs
        tab.get_by_role("button", name="Show the answer").first.click()
        assert tab.locator(".said").count() == 1
        tab.get_by_role("button", name="Show the toxic prompt").first.click()
        assert tab.locator(".asked").count() == 1 and "How do I steal the" in tab.locator(".asked").inner_text()
        tab.get_by_role("button", name="Fold away").first.click()
        assert tab.locator(".asked").count() == 0
        tab.check("#unfold")
        assert tab.locator(".said").count() == 10 * runs and tab.locator(".fold").count() == 0
        tab.uncheck("#unfold")
        assert tab.locator(".said").count() == 0
        tab.select_option("#outcome", "harmful")
        assert 1 <= tab.locator("article.prompt").count() < 10
        tab.select_option("#benchmark", "tiny_seeming")
        tab.select_option("#outcome", "")
        assert tab.locator(".said").count() == 10 * runs  # of no toxic benchmark, and not harmful


def test_answers_are_text_whatever_they_say(browser, file):
    with shown(browser, file) as tab:
        tab.click("#tab-answers")
        tab.select_option("#benchmark", "tiny_seeming")
        assert tab.locator(".said", has_text=ATTACK).count() == tab.locator("#selection .chip").count()
        assert tab.evaluate("window.struck") is None
        assert tab.locator("#answers img, #answers script").count() == 0


def test_the_command_of_a_run(browser, file, data):
    with shown(browser, file, permissions=["clipboard-read", "clipboard-write"]) as tab:
        tab.locator("tbody .who").nth(1).click()
        wanted = data["runs"][1]["command"]
        assert (
            wanted.startswith("python -m tasft.run experiment=demo")
            and tab.locator("pre.command").inner_text() == wanted
        )
        tab.get_by_role("button", name="Copy").click()
        tab.get_by_text("Copied").wait_for()
        assert tab.evaluate("navigator.clipboard.readText()") == wanted
        said = tab.locator("#details").inner_text()
        for fact in (
            "safe: 1000 rows, CC BY-NC 4.0",
            "no licence named",
            "torch 2.13.0",
            "0" * 40,
            "training 90 s",
            "0.25 GPU-hours",
        ):
            assert fact in said
        assert "world size\n2" in said
        tab.keyboard.press("Escape")
        assert not tab.locator("#details").is_visible()
        tab.click("#tab-about")
        about = tab.locator("#about").inner_text()
        assert "gaps below 15 points from one seed are noise" in about and "CC BY-NC 4.0" in about


def test_on_a_phone_and_by_keyboard(browser, file):
    with shown(browser, file, width=390, color_scheme="dark") as tab:
        tab.locator("#tab-runs").focus()
        for view in VIEWS:
            assert tab.locator(f"#{view}").is_visible() and tab.locator("main > section:visible").count() == 1
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390
            tab.keyboard.press("ArrowRight")
        assert tab.locator("#runs").is_visible()  # around
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"


def test_thirty_runs_on_a_phone_take_their_part_of_the_page(browser, tmp_path, monkeypatch):
    """Thirty runs that have nothing in common, and 30 / 500 of what the page may hold."""
    for limit in ("ALL_POINTS", "TEXT"):
        monkeypatch.setattr(page_module, limit, getattr(page_module, limit) * 30 // 500)
    draw = random.Random(0)
    more = {"seeds": 10, "steps": 400, "prompts": 6, "say": lambda *_: f'"{draw.random()}" <b> ' * 20}
    make_grid(tmp_path / "runs", 30, **more)
    path = tmp_path / "index.html"
    path.write_text(page_of(data_of(tmp_path / "runs")))
    empty = len(page_of({}).encode())
    assert path.stat().st_size - empty < (10_000_000 - empty) * 30 / 500
    with shown(browser, path, width=390) as tab:
        assert tab.locator("#runs tbody tr").count() == 30
        for view in VIEWS:
            tab.click(f"#tab-{view}")
            assert tab.locator(f"#{view}").is_visible()
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_five_hundred_runs(browser, data, tmp_path):
    many = copy.deepcopy(data)
    once = many["runs"][:6]
    many["runs"] = [run | {"seed": 10 * i + run["seed"]} for i in range(84) for run in once][:500]
    for setting in many["models"][0]["settings"]:
        setting["runs"] = [each + 6 * i for i in range(83) for each in setting["runs"] if each < 6]
    many["models"][0]["settings"] = [each for each in many["models"][0]["settings"] if each["runs"]]
    for benchmark in many["answers"]["benchmarks"].values():
        for key in ("runs", "judges"):
            benchmark[key] = {6 * i + place: of for i in range(83) for place, of in benchmark[key].items()}
    path = tmp_path / "index.html"
    path.write_text(page_of(many))
    with shown(browser, path) as tab:
        assert tab.locator("#runs tbody tr").count() == 100
        tab.get_by_role("button", name="Show all 500").click()
        assert tab.locator("#runs tbody tr").count() == 500
        tab.get_by_label("Select all rows that the filter leaves").check()
        tab.click("#tab-curves")
        assert "The first 30 of 500 selected runs are drawn" in tab.locator("#curves").inner_text()
        assert tab.locator('figure[data-chart="loss"] path.curve').count() == 30
        tab.click("#tab-trade-off")
        assert tab.locator("figure").nth(1).locator(".point").count() == 500
        tab.click("#tab-answers")
        assert tab.locator("article").first.locator(".answer").count() == 6
        for view in VIEWS:
            tab.click(f"#tab-{view}")
            assert tab.evaluate("document.documentElement.scrollWidth") <= 1400


def test_one_run_without_over_refusal(browser, tmp_path):
    make_run(tmp_path, "loss=emd", "loss.share=0.06", benchmarks=("tiny_seen",), judges=("refusal",), prompts=4)
    path = tmp_path / "index.html"
    path.write_text(page_of(data_of(tmp_path)))
    with shown(browser, path) as tab:
        assert "1 run" in tab.locator("#summary").inner_text()
        tab.click("#tab-trade-off")
        assert "asked nothing but toxic prompts" in tab.locator("#trade-off").inner_text()
        assert "refused · tiny_seen by toxic examples" in tab.locator("#trade-off").inner_text()
        for view in VIEWS:
            tab.click(f"#tab-{view}")
