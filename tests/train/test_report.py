"""The report page: self-contained, and it works in a browser where one is installed."""

import base64
import json
import re
import shutil
import subprocess
import types

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

from hos_jax.errors import UserError
from hos_jax.evaluation import figures, report
from hos_jax.evaluation.evaluate import evaluate_run
from hos_jax.evaluation.held_out import held_out_examples
from hos_jax.evaluation.picture import DenoisedPicture, multipliers_of, write
from hos_jax.linops import Diagonal
from hos_jax.training import loop
from hos_jax.training.problem import Problem
from hos_jax.training.runs import load_run
from hos_jax.uncertainty import Posterior, calibration

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)

# Errors are collected from the first line of the page on; the last script plays the user.
LISTEN = """<head><script>
window.problems = [];
const note = (event) => problems.push(String(event.message || event.target.outerHTML));
addEventListener("error", note, true);
const report = console.error;
console.error = (...words) => { problems.push(words.join(" ")); report(...words); };
</script>"""
EXPOSE = "window.row = (k, place) => Array.from(covarianceRow(images[k], place));\n"
PLAY = """<script>
addEventListener("load", () => {
  const picture = (id) => document.getElementById(id).toDataURL();
  const seen = { mean: picture("view-mean"), before: picture("view-moved") };
  const slider = document.getElementById("slider-0");
  slider.value = 3;
  slider.dispatchEvent(new Event("input"));
  seen.after = picture("view-moved");
  const canvas = document.getElementById("view-mean");
  canvas.focus();
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  seen.readout = document.getElementById("readout").textContent;
  seen.row = picture("view-row");
  document.getElementById("reset").click();
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
  seen.secondReadout = document.getElementById("readout").textContent;
  document.querySelectorAll("#choice button")[1].click();
  seen.secondImage = picture("view-mean");
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.figures = document.querySelectorAll("#figures img").length;
  const images = [...document.querySelectorAll("img")];
  seen.broken = images.filter((image) => image.complete && !image.naturalWidth).length;
  seen.covarianceRow = row(1, 30);
  seen.deviation = document.querySelectorAll("#views figcaption")[3].textContent;
  seen.problems = problems;
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = btoa(JSON.stringify(seen));
  document.body.append(result);
});
</script></body>"""


TO_THE_RIGHT = """<script>
const press = new KeyboardEvent("keydown", { key: "ArrowRight" });
document.getElementById("view-mean").dispatchEvent(press);
</script></body>"""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("low_rank", marks=pytest.mark.slow),
        pytest.param("dense", marks=pytest.mark.slow),
        "local_low_rank",
    ],
)
def run_folder(request, small_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    config = small_config(model__head=request.param)
    loop.train_and_evaluate(config, folder)
    evaluate_run(config, folder)
    return folder


def _shown(page):
    """The page as a browser has made it."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run([*command, f"file://{page}"], capture_output=True, text=True, timeout=120)
    return done.stdout


def _content(page):
    return json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S)[1])


def test_the_page_needs_nothing_else(run_folder):
    page = (run_folder / "report.html").read_text()
    assert "http:" not in page and "https:" not in page and "__DATA__" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    data = _content(page)
    assert len(data["images"]) == 8 and len(data["figures"]) == 8
    assert {row[0] for row in data["measures"]} >= {"denoise_mse", "calibration", "coverage_90"}


def test_a_small_dense_covariance_is_in_the_page_and_a_large_one_is_not(small_config, monkeypatch):
    problem = Problem.from_config(small_config(model__head="dense"))
    examples = held_out_examples(problem, problem.init().best_params, 2, directions=1)
    matrix = np.asarray(examples.denoised.posterior.covariance.to_dense())
    shown = report._images(problem, examples, None)
    for image, expected in zip(shown, matrix, strict=True):
        found = np.frombuffer(base64.b64decode(image["matrix"]), "<f4")
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    assert report._left_out(problem, examples) == ""
    monkeypatch.setattr(report, "LARGEST_DENSE", problem.data.dim - 1)
    assert "left out: with dense covariances of 64 values" in report._left_out(problem, examples)
    assert report._images(problem, examples, None) == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("size", ["390,844", "1400,900"])
def test_sliders_and_keys_change_the_pictures(run_folder, tmp_path, size):
    page = (run_folder / "report.html").read_text()
    played = tmp_path / "played.html"
    page = page.replace("<head>", LISTEN, 1).replace("</body>", PLAY)
    played.write_text(page.replace("  function moved() {", f"{EXPOSE}  function moved() {{", 1))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--window-size={size}",
            "--virtual-time-budget=10000",
            "--dump-dom",
            f"file://{played}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="result">([A-Za-z0-9+/=]+)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(base64.b64decode(found[1]))
    assert seen["problems"] == [] and seen["broken"] == 0 and seen["figures"] == 8
    assert seen["before"] == seen["mean"] != seen["after"]
    assert seen["secondImage"] != seen["mean"]
    assert re.match(r"Row \d+, column \d+: mean -?[\d.]+, 90% between", seen["readout"])
    assert seen["readout"] != seen["secondReadout"]
    assert seen["overflow"] <= 0
    examples = held_out_examples(load_run(run_folder).problem, load_run(run_folder).params, 2, 1)
    posterior = jax.tree.map(lambda leaf: leaf[1], examples.denoised.posterior)
    row = np.asarray(posterior.row(30))
    np.testing.assert_allclose(seen["covarianceRow"], row, atol=1e-5 * np.abs(row).max())
    title, largest = seen["deviation"].split(", 0 to ")
    assert title == "predicted std (data units)"
    assert float(largest) == pytest.approx(float(posterior.standard_deviation().max()), rel=0.06)


def test_the_page_has_the_colours_of_the_figures(run_folder):
    page = (run_folder / "report.html").read_text()
    anchors = np.array(json.loads(re.search(r"const magma = ([^;]*);", page)[1]))
    places = np.linspace(0, 255, len(anchors))
    expected = 255 * matplotlib.colormaps["magma"](np.arange(256))[:, :3]
    for found, wanted in zip(anchors.T, expected.T, strict=True):
        np.testing.assert_allclose(np.interp(np.arange(256), places, found), wanted, atol=3)


def test_the_page_of_a_table_speaks_of_rows_and_names_it(small_config, tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 1, 5)).astype(np.float32)
    np.save(tmp_path / "wine.npy", rows)
    data = {"data__name": "arrays", "data__root": str(tmp_path / "wine.npy")}
    problem = Problem.from_config(small_config(model__head="dense", **data))
    examples = held_out_examples(problem, problem.init().best_params, 2, directions=1)
    figure = tmp_path / "covariance_rows.png"
    figures.save(figures.sample_grid(rows[:1, ..., None], (-1.0, 1.0)), figure)
    numbers = {"denoise_mse": 0.1, "standard_error": {"denoise_mse": 0.01}}
    result = numbers | {"held_out_images": 2, "step": 7, "training_seconds": 0.0}
    report.write_report(problem, examples, result, [figure], tmp_path / "report.html")
    content = _content((tmp_path / "report.html").read_text())
    assert content["rows"] and content["heading"] == "Held-out rows"
    assert content["title"] == f"wine at sigma {problem.config.noise:g}"
    assert "7 steps. Measured on 2 rows that" in content["summary"]
    (shown,), (measure,) = content["figures"], content["measures"]
    assert shown["caption"] == "Posterior covariance of marked values with all others"
    assert measure[-1] == "mean squared error of the denoised row, data units squared"
    result["training_seconds"] = 12.3
    report.write_report(problem, examples, result, [], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "7 steps in 12 s. " in _content(page)["summary"]
    if CHROMIUM is not None:
        (tmp_path / "report.html").write_text(page.replace("</body>", TO_THE_RIGHT))
        shown = _shown(tmp_path / "report.html").split('<script id="data"')[0]
        assert "Choose a noisy row." in shown and "covariance with the chosen value" in shown
        assert re.search(r">Column 3: mean -?[\d.]+, 90% between", shown)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_page_without_posteriors_says_why(tmp_path):
    content = {"heading": "", "title": "", "summary": "", "measures": [], "figures": []}
    for reason in ("The interactive part is left out.", None):
        given = content | {"images": []} | ({} if reason is None else {"left_out": reason})
        report.write_page(given, tmp_path / "page.html")
        shown = _shown(tmp_path / "page.html").split("<script")[0]
        assert ("What the model is unsure about" in shown) == (reason is not None)
        assert 'id="sliders"' not in shown and (reason or "") in shown


@pytest.mark.parametrize(("height", "width", "enlarged"), [(8, 9, 4), (4, 256, 0)])
def test_a_small_picture_is_enlarged_in_its_page(tmp_path, height, width, enlarged):
    image = np.zeros((height, width, 1))
    known = dict.fromkeys(("noisy", "mean", "lower", "upper"), image) | {"deviation": image + 1.0}
    many = {"samples": image[None], "directions": image[None], "deviations": np.ones(1)}
    settings = {"sigma": 0.1, "value_range": (0.0, 1.0), "clean": None, "recalibrated": False}
    found = DenoisedPicture(tmp_path / "a.png", **known, **many, **settings)
    write(found, tmp_path)
    shown = _content((tmp_path / "page.html").read_text())["figures"]
    assert sum(figure["small"] for figure in shown) == enlarged


def test_images_are_drawn_without_ticks_and_curves_with_them():
    images = np.zeros((3, 4, 4, 1))
    assert not any(axis.axison for axis in figures.sample_grid(images, (-1.0, 1.0)).axes)
    history = [{"group": "train", "step": step, "score1": 1.0} for step in (1, 2)]
    assert all(axis.axison for axis in figures.loss_curves(history).axes)


@pytest.mark.parametrize("shape", [(1, 37, 1), (3, 300, 1), (300, 3, 1)])
def test_images_of_any_shape_leave_room_for_titles(shape):
    """Matplotlib warns where none is left, and a warning is an error here."""
    few, more = np.zeros((3, *shape)), np.zeros((3, 4, *shape))
    for figure in (
        figures.denoising_panel(few, few, few, few + 1.0, (-1.0, 1.0), 0.5),
        figures.posterior_directions(few, few, more, np.ones((3, 4)), (-1.0, 1.0)),
        figures.posterior_samples(few, few, more, (-1.0, 1.0)),
        figures.covariance_rows(few, np.zeros((3, 4), int), more, (-1.0, 1.0)),
        figures.covariance_rows(few[:1], np.zeros((1, 4), int), more[:1], (-1.0, 1.0)),
        figures.trajectories(more, ["step 100000"] * 3, (-1.0, 1.0)),
        figures.trajectories(more[:, :1], ["step 100000"] * 3, (-1.0, 1.0)),
        figures.sample_grid(few, (-1.0, 1.0)),
        *figures.size_maps(few[0] + 1.0),
    ):
        drawn = figures.as_array(figure)
        assert max(drawn.shape) < 4000
        for title in (axis.title for axis in figure.axes if axis.get_title()):
            assert figure.bbox.count_contains(title.get_window_extent().corners()) == 4


def test_flat_images_stand_close_together():
    """Four rows of a table are no higher than a square image, and square images as they were."""
    for side, height in ((1, 1.5), (9, 6.0)):
        images = np.zeros((4, side, 9, 1))
        rows = figures.covariance_rows(images, np.zeros((4, 1), int), images[:, None], (0.0, 1.0))
        assert rows.get_figheight() == pytest.approx(height + 0.2)
        course = figures.trajectories(images[None], ["step 1"], (0.0, 1.0))
        assert course.get_figheight() == pytest.approx(0.6 * height + 0.3)
        grid = figures.sample_grid(images, (0.0, 1.0))
        assert grid.get_figheight() == pytest.approx(0.3 * height)


def test_a_row_of_a_table_is_drawn_over_its_columns():
    clean = np.arange(6.0).reshape(2, 1, 3, 1)
    parts = clean, clean + 1.0, clean + 2.0
    figure = figures.denoising_panel(*parts, 0.0 * clean + 2.0, (-1.0, 1.0), 0.5, ["a", "b"])
    figures.as_array(figure)
    assert [axis.get_ylabel() for axis in figure.axes] == ["a", "b"]
    for index, axis in enumerate(figure.axes):
        assert axis.axison and {0.0, 1.0, 2.0} <= set(axis.get_xticks())
        (bars,) = axis.containers
        lines = {"clean": 0.0, "noisy": 1.0}
        found = {line.get_label(): line for line in axis.get_lines()}
        for line, more in [*((found[name], more) for name, more in lines.items()), (bars[0], 2.0)]:
            np.testing.assert_array_equal(line.get_xdata(), np.arange(3))
            np.testing.assert_array_equal(line.get_ydata(), clean[index, 0, :, 0] + more)
        (segments,) = (each.get_segments() for each in bars[2])
        ends = np.array([segment[:, 1] for segment in segments])
        middle = clean[index, 0, :, 0, None] + 2.0
        np.testing.assert_allclose(ends, middle + 2 * 1.645 * np.array([-1.0, 1.0]))
    first_order = figures.denoising_panel(*parts, None, (-1.0, 1.0), 0.5)
    assert all(not axis.collections for axis in first_order.axes)
    colour = figures.denoising_panel(*(np.zeros((1, 1, 4, 3)),) * 4, (0.0, 1.0), 0.5)
    assert len(colour.axes[0].containers) == 3


def test_a_predicted_deviation_has_a_unit():
    parts = (np.zeros((1, 4, 4, 1)),) * 4
    title = figures.denoising_panel(*parts, (0.0, 1.0), 0.5).axes[3].get_title()
    assert title == "predicted std (data units)"
    figure = figures.denoising_panel(*parts, (0.0, 1.0), 0.5, units="white = 1")
    assert figure.axes[3].get_title() == "predicted std (white = 1)"


def test_deviations_have_two_digits():
    images, directions = np.zeros((1, 4, 4, 1)), np.zeros((1, 3, 4, 4, 1))
    deviations = np.array([[12.3, 0.6189, 0.5]])
    figure = figures.posterior_directions(images, images, directions, deviations, (0.0, 1.0))
    titles = [axis.get_title() for axis in figure.axes[2:]]
    assert titles == ["deviation 12", "deviation 0.62", "deviation 0.50"]


def test_a_marked_pixel_is_seen_on_any_colour():
    images, pixels = np.zeros((1, 4, 4, 1)), np.array([[5, 6]])
    figure = figures.covariance_rows(images, pixels, np.ones((1, 2, 4, 4, 1)), (0.0, 1.0))
    first, *maps = figure.axes
    marks = [line.get_color() for line in first.get_lines()]
    assert [axis.title.get_color() for axis in maps] == marks
    for axis in maps:
        under, over = axis.get_lines()
        assert (under.get_color(), over.get_color()) == ("white", "black")
        assert under.get_markeredgewidth() > over.get_markeredgewidth()


@pytest.mark.parametrize("ends", [(0.62, 0.9), (0.6, 1.03), (2.1, 8.0), (0.3, 2.0), (1e-3, 30.0)])
def test_losses_have_plain_labels(ends):
    history = [{"group": "train", "step": k, "score1": v} for k, v in enumerate(ends)]
    figure = figures.loss_curves(history)
    figures.as_array(figure)
    (axis,) = figure.axes
    low, high = axis.get_ylim()
    ticks = axis.yaxis.get_ticklabels(which="both")
    shown = [tick for tick in ticks if tick.get_text() and low <= tick.get_position()[1] <= high]
    assert len(shown) >= 2
    for tick in shown:
        assert float(tick.get_text()) == pytest.approx(tick.get_position()[1])


def test_a_curve_of_one_point_is_seen():
    history = [{"group": "train", "step": 5, "score1": 1.0}]
    (line,) = figures.loss_curves(history).axes[0].get_lines()
    assert line.get_marker() == "o"


@pytest.mark.parametrize("predicted", [[0.25], [0.24, 0.25], [1e-4, 1.0], [np.nan]])
def test_axes_of_a_calibration_have_labels_however_near_its_points(predicted):
    levels = {f"coverage_{level}": 0.9 for level in (50, 90)}
    rows = [{"share": 0.5, "predicted": v, "realised": v, **levels} for v in predicted]
    figure = figures.calibration(rows, rows, {"model": [0.1, 0.2]})
    figures.as_array(figure)
    left, middle, _ = figure.axes
    for low, high, axis in (
        (*left.get_xlim(), left.xaxis),
        (*left.get_ylim(), left.yaxis),
        (*middle.get_xlim(), middle.xaxis),
    ):
        assert np.sum((low <= axis.get_ticklocs()) & (axis.get_ticklocs() <= high)) >= 2


def test_settings_of_the_process_do_not_reach_the_figures(tmp_path):
    images = np.linspace(-1.0, 1.0, 48).reshape(3, 4, 4, 1)
    history = [{"group": "train", "step": step, "score1": 1.0} for step in (1, 2)]

    def drawn(name):
        made = figures.sample_grid(images, (-1.0, 1.0)), figures.loss_curves(history)
        for number, figure in enumerate(made):
            figures.save(figure, tmp_path / f"{name}{number}.png")
        pictures = [figures.as_array(figure) for figure in made]
        return pictures, [path.read_bytes() for path in sorted(tmp_path.glob(f"{name}*"))]

    plain = drawn("plain")
    others = {"image.origin": "lower", "text.usetex": True, "savefig.bbox": "tight"}
    with matplotlib.rc_context(others | {"axes.facecolor": "red", "xtick.labelsize": 20}):
        before = dict(matplotlib.rcParams)
        again = drawn("again")
        assert dict(matplotlib.rcParams) == before
    assert again[1] == plain[1]
    for first, second in zip(plain[0], again[0], strict=True):
        np.testing.assert_array_equal(first, second)


def test_figures_are_not_written_among_the_files_of_others(run_folder):
    mine = run_folder / "mine"
    mine.mkdir()
    for name in ("denoising.png", "notes.txt"):
        (mine / name).write_text("mine")
    with pytest.raises(UserError, match="mine holds other files: choose another --image_folder"):
        evaluate_run(load_run(run_folder).problem.config, run_folder, "mine")
    assert (mine / "denoising.png").read_text() == "mine"


def test_the_numbers_are_kept_where_a_figure_fails(run_folder, monkeypatch):
    def fails(*_):
        raise RuntimeError("no figure")

    (run_folder / report.METRICS_FILE).unlink()
    monkeypatch.setattr(figures, "denoising_panel", fails)
    with pytest.raises(RuntimeError, match="no figure"):
        evaluate_run(load_run(run_folder).problem.config, run_folder)
    assert json.loads((run_folder / report.METRICS_FILE).read_text())["sampling"]["finite"] > 0


def test_learned_widths_are_of_the_level_that_was_tested(tmp_path, caplog):
    run = types.SimpleNamespace(sigma=0.3, sigma_range=(0.1, 0.9), step=5)
    assert multipliers_of(tmp_path, run, None) is None and not caplog.records
    table = calibration.interval_multipliers(np.ones(9), np.arange(9.0)).tolist()
    metrics = {"step": 5, "recalibrated": {"multipliers": table}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    for sigma in (None, 0.3001):
        np.testing.assert_array_equal(multipliers_of(tmp_path, run, sigma), table)
    assert not caplog.records
    for sigma in (0.1, 0.2, 0.9):
        assert multipliers_of(tmp_path, run, sigma) is None
        assert f"learned their widths at sigma 0.3, this is {sigma}" in caplog.text
    count = len(caplog.records)
    assert multipliers_of(tmp_path, run, 1.0) is None and len(caplog.records) == count
    run.step = 6
    assert multipliers_of(tmp_path, run, 0.3) is None and "tested at step 5" in caplog.text


def test_intervals_of_the_page_are_those_with_learned_widths():
    posterior = Posterior(jnp.zeros(3), Diagonal(jnp.array([0.01, 0.1, 1.0])))
    table = np.full((len(calibration.VARIANCE_EDGES) - 1, len(calibration.LEVELS)), 2.0)
    found = report.interval_fn(table, 1.0)(posterior)
    np.testing.assert_allclose(found.upper, 2.0 * posterior.standard_deviation(), rtol=1e-6)
    own = report.interval_fn(None, 1.0)(posterior)
    np.testing.assert_allclose(own.upper, 1.645 * posterior.standard_deviation(), rtol=1e-3)
