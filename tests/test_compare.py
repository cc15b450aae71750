"""Statistics against naive twins, groups, what is left out, every form of output, and bad input."""

import contextlib
import csv
import gzip
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from test_training import catch

import compare
from agents import evaluation
from agents.errors import ConfigError
from comparison import alignment, analysis, events, figures, groups, runs, statistics
from scripts import train

GAMES = np.array(["a"] * 2 + ["b"] * 5 + ["c"] * 3)  # with different numbers of seeds
SCORES = np.random.default_rng(0).normal(1, 1, (len(GAMES), 4))


# Statistics


def naive(name, scores, games):
    means = [np.mean([s for s, g in zip(scores, games, strict=True) if g == game]) for game in sorted(set(games))]
    if name == "iqm":
        ordered = sorted(scores)
        cut = len(ordered) // 4
        return np.mean(ordered[cut : len(ordered) - cut])
    if name == "optimality_gap":
        return 1 - np.mean([min(s, 1) for s in scores])
    return {"mean": np.mean, "median": np.median}[name](means)


@pytest.mark.parametrize("name", statistics.AGGREGATES)
def test_aggregates_are_the_naive_ones(name):
    result = statistics.aggregate(SCORES, GAMES, resamples=50)[name]
    index = statistics.resample(GAMES, 50, np.random.default_rng(0))
    for t in range(SCORES.shape[1]):
        samples = [naive(name, SCORES[drawn, t], GAMES) for drawn in index]
        expected = [naive(name, SCORES[:, t], GAMES), np.quantile(samples, 0.025), np.quantile(samples, 0.975)]
        np.testing.assert_allclose(result[:, t], expected)


@pytest.mark.parametrize("number", [8, 10, 12, 20])
def test_iqm_of_any_number_of_runs(number):
    scores = np.random.default_rng(number).gamma(1.0, size=(number, 1))
    games = np.zeros(number)
    assert statistics.aggregate(scores, games, 10)["iqm"][0, 0] == pytest.approx(naive("iqm", scores[:, 0], games))


def test_runs_are_drawn_within_their_game():
    """Every run of a game is drawn equally often, and none for another game."""
    index = statistics.resample(GAMES, 4000, np.random.default_rng(1))
    assert np.all(GAMES[index] == GAMES)
    for run, game in enumerate(GAMES):
        assert np.mean(index == run) * len(GAMES) == pytest.approx(1, abs=0.06), game


def test_probability_of_improvement_is_the_naive_one():
    games_y = np.array(["a", "b", "b", "c"])
    y = np.array([0.5, 0.7, SCORES[3, 0], 1.5])  # a tie among them
    value, lower, upper = statistics.probability_of_improvement(SCORES[:, 0], GAMES, y, games_y, resamples=200)
    random = np.random.default_rng(0)
    index_x, index_y = statistics.resample(GAMES, 200, random), statistics.resample(games_y, 200, random)

    def probability(xs, ys):
        of = lambda game: [(a > b) + (a == b) / 2 for a in xs[GAMES == game] for b in ys[games_y == game]]
        return np.mean([np.mean(of(game)) for game in "abc"])

    samples = [probability(SCORES[i, 0], y[j]) for i, j in zip(index_x, index_y, strict=True)]
    np.testing.assert_allclose(
        [value, lower, upper], [probability(SCORES[:, 0], y), *np.quantile(samples, [0.025, 0.975])]
    )


def test_profile_is_the_naive_one():
    thresholds = np.array([-1.0, 0.3, SCORES[2, 0], 9.0])
    result = statistics.profile(SCORES[:, 0], GAMES, thresholds, resamples=100)
    index = statistics.resample(GAMES, 100, np.random.default_rng(0))
    for k, threshold in enumerate(thresholds):
        samples = [np.mean([s > threshold for s in SCORES[drawn, 0]]) for drawn in index]
        expected = [np.mean(SCORES[:, 0] > threshold), *np.quantile(samples, [0.025, 0.975])]
        np.testing.assert_allclose(result[:, k], expected)


def test_bands_of_a_game_are_the_naive_ones():
    """Runs without a return in a window are left out of its means."""
    scores = SCORES[:4].copy()
    scores[2, 1:3] = scores[3, 2] = np.nan
    group = SimpleNamespace(scores=scores, games=np.array(["a"] * 4))
    result = analysis._per_game(group, ["a"], 100)["a"]
    index = statistics.resample(np.zeros(4), 100, np.random.default_rng(0))
    for t, column in enumerate(scores.T):
        drawn = [column[i][~np.isnan(column[i])] for i in index]
        samples = [np.mean(values) for values in drawn if len(values)]
        np.testing.assert_allclose(result[:, t], [np.nanmean(column), *np.quantile(samples, [0.025, 0.975])])


def test_golden():
    games = np.repeat([0, 1], 4)
    scores = np.array([0, 1, 2, 3, 4, 5, 6, 100.0])[:, None]
    assert {name: float(value[0, 0]) for name, value in statistics.aggregate(scores, games, 10).items()} == {
        "iqm": 3.5,  # of 2, 3, 4, 5
        "mean": (1.5 + 28.75) / 2,
        "median": (1.5 + 28.75) / 2,
        "optimality_gap": 1 - 7 / 8,
    }


# Runs on disk


def make_run(
    directory, game="Pong", seed=0, head="hl_gauss", level=10.0, settings=None, end=800_000, name=None, **protocol
):
    """A run directory as training leaves it: an episode every 10,000 frames, its return rising to `level`."""
    run_dir = directory / game / (name or f"dqn-{head}-quick") / f"seed{seed}"
    run_dir.mkdir(parents=True)
    settings = {
        "Experiment.head": f"@value_heads.{head}()",
        "Experiment.seed": str(seed),
        "Experiment.total_steps": "200000",
        "Atari.game": repr(game),
        **{f"Atari.{key}": str(value) for key, value in protocol.items()},
        **(settings or {}),
    }
    manifest = {
        "settings": settings,
        "num_envs": 8,
        "protocol": {"game": game, "frame_skip": 4, **protocol},
        "title": name or f"dqn-{head}-quick",
        "git_commit": "abc",
        "device": "CPU",
    }
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    frames = np.arange(10_000, end + 1, 10_000)
    random = np.random.default_rng(seed)
    rows = [{"frames": int(f), "episode/return": level * f / 800_000 + random.normal(0, 0.1)} for f in frames]
    rows.insert(3, {"frames": 35_000, "train/loss": 1.0})
    rows += [{"frames": end, "train/loss": 1.0}]  # a run ends a little later than planned
    rows += [{"frames": end + 12, "eval/return": level + seed}]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def small_sweep(directory, seeds=3):
    for game in ("Pong", "Breakout"):
        for head, level in (("mse", 5.0), ("hl_gauss", 15.0)):
            for seed in range(seeds):
                make_run(directory, game, seed, head, level)
    return directory


def read(directory, metric="train"):
    problems = []
    return runs.read(directory, metric, problems), problems


def test_windows(tmp_path):
    """An episode counts in the window that it ends in, the boundary included."""
    (run,), _ = read(make_run(tmp_path, end=60_000))
    values = run._replace(frames=np.array([10, 20, 21, 60]), returns=np.array([1.0, 3.0, 5.0, 7.0]))
    np.testing.assert_array_equal(values.windows(20, 3), [2.0, 5.0, 7.0])
    np.testing.assert_array_equal(values.windows(15, 4), [1.0, 4.0, np.nan, 7.0])
    assert (run.game, run.seed, run.name, run.planned_frames) == ("Pong", 0, "dqn-hl_gauss-quick", 800_000)


def test_everything_comes_out(tmp_path, capsys):
    """Two heads, two games, three seeds: tables, arrays, figures, a page, and TensorBoard runs."""
    out = small_sweep(tmp_path) / "_compare"
    assert compare.main([str(tmp_path), "--resamples=50"]) == 0
    printed = capsys.readouterr().out
    assert "2 games: Breakout, Pong" in printed and "| dqn-hl_gauss-quick | 2 | 6 |" in printed

    frames = np.arange(20_000, 800_001, 20_000)
    with np.load(out / "scores.npz") as file:
        scores = dict(file)
    assert scores["dqn-mse-quick"].shape == (3, 2) and list(scores["games"]) == ["Breakout", "Pong"]
    random, human = evaluation.scores()["Breakout"]
    of_last = 15.0 * (frames[-5:] - 5_000) / 800_000
    assert scores["dqn-hl_gauss-quick"][0, 0] == pytest.approx((of_last.mean() - random) / (human - random), rel=0.05)

    rows = list(csv.DictReader((out / "aggregates.csv").read_text().splitlines()))
    iqm = [row for row in rows if row["group"] == "dqn-hl_gauss-quick" and row["aggregate"] == "iqm"]
    assert [int(row["frames"]) for row in iqm] == list(frames)
    assert all(float(row["lower"]) <= float(row["value"]) <= float(row["upper"]) for row in iqm)
    assert len(list(csv.DictReader((out / "runs.csv").read_text().splitlines()))) == 12 * len(frames)

    for name in ("iqm", "aggregates", "profiles", "improvement", "per_game"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / "figures" / f"{name}.svg").read_text()
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 5 and figures.INK not in page and 'src="' not in page and "@import" not in page

    events = EventAccumulator(str(out / "dqn-hl_gauss-quick"), size_guidance={"tensors": 0}).Reload()
    points = {end: events.Tensors(f"iqm/{end}") for end in ("value", "lower", "upper")}
    assert [point.step for point in points["value"]] == list(frames)
    in_events = [point.tensor_proto.float_val[0] for point in points["lower"]]
    np.testing.assert_allclose(in_events, [float(row["lower"]) for row in iqm], rtol=1e-6)
    root = EventAccumulator(str(out)).Reload()
    layout = layout_pb2.Layout.FromString(root.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: chart.margin.series[0] for category in layout.category for chart in category.chart}
    assert charts["interquartile mean"].upper == "iqm/upper" and charts["Pong"].value == "game/Pong/value"
    assert root.Tensors("figures/iqm")[0].tensor_proto.string_val[2] == (out / "figures/iqm.png").read_bytes()

    table = {
        (row["group"], row["aggregate"]): row for row in csv.DictReader((out / "table.csv").read_text().splitlines())
    }
    assert f"{float(table['dqn-mse-quick', 'iqm']['value']):.2f}" in page
    pairs = list(csv.DictReader((out / "improvement.csv").read_text().splitlines()))
    assert [(row["x"], row["y"], row["probability"]) for row in pairs] == [
        ("dqn-hl_gauss-quick", "dqn-mse-quick", "1.0")
    ]
    (out / "my notes").touch()  # stay
    before = {path.name for path in out.iterdir()}
    assert compare.main([str(tmp_path), "--resamples=50"]) == 0  # reads the same runs, and none of its own
    assert {re.sub(r"\d.*", "", path.name) for path in out.iterdir()} == {re.sub(r"\d.*", "", name) for name in before}
    assert "| dqn-hl_gauss-quick | 2 | 6 |" in capsys.readouterr().out


def test_evaluations_compare_too(tmp_path):
    """They come once, at the end: one window."""
    result = alignment.compare(read(small_sweep(tmp_path), "eval")[0])
    assert result.frames.tolist() == [800_000]
    (mse,) = [group for group in result.groups if "mse" in group.name]
    np.testing.assert_array_equal(mse.scores[:, 0], [5.0, 6.0, 7.0] * 2)


def test_training_returns_and_evaluations_are_never_mixed(tmp_path, capsys, undrawn):
    """Tables say which they hold, reports too."""
    small_sweep(tmp_path / "runs")
    tables = {metric: tmp_path / f"{metric}/runs.csv" for metric in ("train", "eval")}
    for metric, of in {"train": "training episodes", "eval": "evaluations"}.items():
        argv = [str(tmp_path / "runs"), f"--metric={metric}", f"--output={tmp_path / metric}", "--resamples=20"]
        assert compare.main(argv) == 0
        assert f"Mean returns of {of} on 2 games" in (tmp_path / metric / "report.html").read_text()
        assert {run.metric for run in runs.read(tables[metric], None, [])} == {metric}
    both = [str(tmp_path / "runs"), str(tables["eval"]), f"--output={tmp_path / 'both'}", "--resamples=20"]
    with pytest.raises(ConfigError, match="others of evaluations: choose with --metric"):
        compare.main(both)
    capsys.readouterr()
    assert compare.main([*both, "--metric=train"]) == 0
    assert (
        "eval/runs.csv has returns of evaluations, not of training episodes (--metric train)" in capsys.readouterr().out
    )
    with pytest.raises(ConfigError, match="There are no runs in .* not of evaluations"):
        compare.main([str(tables["train"]), "--metric=eval", f"--output={tmp_path / 'none'}"])


def test_groups_are_what_differs(tmp_path):
    """Never pooled silently; merging is asked for, and said."""
    small_sweep(tmp_path, seeds=1)
    for game in ("Pong", "Breakout"):
        make_run(tmp_path, game, 0, "mse", settings={"adam.eps": "0.1"}, name="other")
        make_run(tmp_path, game, 1, "mse", settings={"adam.eps": "0.2"}, name="dqn-mse-quick2")
    found, _ = read(tmp_path)
    notes = []
    made = groups.make_groups(found, None, notes)
    assert sorted(made) == ["dqn-hl_gauss-quick", "dqn-mse-quick", "dqn-mse-quick2", "other"] and not notes
    made = groups.make_groups(found, ["head"], notes)
    assert {name: len(members) for name, members in made.items()} == {
        "dqn-hl_gauss-quick": 2,
        "dqn-mse-quick or dqn-mse-quick2 or other": 6,
    }
    assert notes == ["Merged runs that differ in adam.eps."]
    merged = [group for group in alignment.compare(found, ["head"]).groups if "other" in group.name]
    assert merged[0].settings["adam.eps"] == "- or 0.1 or 0.2"
    assert len(groups.make_groups(found[:1], ["head"], [])) == 1  # all runs may have the same
    with pytest.raises(ValueError, match=r"no run has a setting 'depth'.*Experiment\.head"):
        groups.make_groups(found, ["depth"], notes)


def test_names_of_groups_tell_them_apart(tmp_path):
    for sigma in (0.5, 0.75):
        make_run(tmp_path / str(sigma), settings={"HLGauss.sigma_ratio": str(sigma)})
    made = groups.make_groups(read(tmp_path)[0], None, [])
    assert sorted(made) == ["dqn-hl_gauss-quick sigma_ratio=0.5", "dqn-hl_gauss-quick sigma_ratio=0.75"]


def notes_of(directory, **options):
    result = alignment.compare(read(directory)[0], **options)
    return result, "\n".join(result.notes)


def test_unfinished_runs_are_left_out_and_listed(tmp_path):
    small_sweep(tmp_path, seeds=2)
    shutil.rmtree(tmp_path / "Pong/dqn-mse-quick/seed1")
    short = make_run(tmp_path, "Pong", 1, "mse", end=300_000)
    result, notes = notes_of(tmp_path)
    assert f"Left out, at 300,012 of 800,000 frames: {short}" in notes
    assert "dqn-mse-quick lacks Pong (seed 1)." in notes
    assert [len(group.runs) for group in result.groups if "mse" in group.name] == [3]
    result, notes = notes_of(tmp_path, frames=300_000)
    assert result.frames[-1] == 300_000 and "lacks" not in notes


def test_as_far_as_all_groups_go(tmp_path):
    """Each by its longest run; one that has only begun does not hold up the others."""
    make_run(tmp_path, end=500_000)
    make_run(tmp_path, head="mse", end=420_000)
    result, notes = notes_of(tmp_path)
    assert result.frames[-1] == 420_000 and "Compared up to 420,012 frames, as far as dqn-mse-quick goes" in notes
    assert "one run per game" in notes
    make_run(tmp_path, head="c51", end=30_000)
    result, notes = notes_of(tmp_path)
    assert len(result.groups) == 2 and "dqn-c51-quick has only begun (30,012 frames)" in notes
    assert len(notes_of(tmp_path, frames=30_000)[0].groups) == 3


def without(run_dir, drop):
    """Removes log points of returns from a run."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if not ("episode/return" in row and drop(row["frames"]))]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def offline(run_dir, paths, digest, behaviour_return):
    """Makes a run one of a data set, evaluated at its 30,000th update and its 80,000th, and no run of games."""
    manifest = json.loads((run_dir / "manifest.json").read_text())
    manifest["settings"] |= {"Dataset.paths": paths, "Experiment.total_steps": "80000"}
    manifest |= {"num_envs": 1, "dataset": {"digest": digest, "behaviour_return": behaviour_return}}
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    rows = [{"updates": 30_000, "eval/return": 1.0}, {"updates": 80_000, "eval/return": behaviour_return}]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_runs_on_different_data_are_never_pooled(tmp_path, capsys, undrawn):
    for game in ("Pong", "Breakout"):
        for name, more in (("a", 0.0), ("b", 4.0)):
            for seed in (0, 1):
                run_dir = make_run(tmp_path / name, game, seed)
                offline(run_dir, f"['{name}/{game}']", f"{game} {name}", 8.0 + more)
    result = alignment.compare(runs.read(tmp_path / "a", None, []))
    assert [group.name for group in result.groups] == ["dqn-hl_gauss-quick"]  # one data set per game
    result = alignment.compare(runs.read(tmp_path, None, []))
    assert {group.name: set(group.scores[:, -1]) for group in result.groups} == {
        "dqn-hl_gauss-quick paths=['a/*']": {8.0},
        "dqn-hl_gauss-quick paths=['b/*']": {12.0},
    }
    assert result.frames.tolist() == [30_000, 80_000]
    assert not [
        note for note in result.notes if "windows are left out" in note or "frames" in note
    ]  # between them none was due
    assert compare.main([str(tmp_path), f"--output={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "Breakout (there are several data sets: --normalise human), Pong (there are several" in printed
    run_dir = make_run(tmp_path / "a", seed=2)
    offline(run_dir, "['a/Pong']", "Pong changed", 8.0)
    names = groups.make_groups(runs.read(tmp_path, None, []), None, [])
    assert len(names) == 4 and sum("paths=['a/*'] (Pong cha)" in name for name in names) == 1


def test_why_a_game_has_no_behaviour_score_is_told():
    returns = {
        "Pong": [5.0],
        "Breakout": [None],
        "MinAtar-Breakout-v1": [5.0],
        "Boxing": [0.05],
        "Asterix": [400.0, 9.0],
    }
    made = [SimpleNamespace(game=game, behaviour_return=one) for game, ones in returns.items() for one in ones]
    pairs, why = analysis.behaviour_scores(SimpleNamespace(groups=[SimpleNamespace(runs=made)]), evaluation.scores())
    assert pairs == {"Pong": (-20.7, 5.0)}
    told = {"Breakout": "converted", "MinAtar-Breakout-v1": "--scores", "Boxing": "no better", "Asterix": "several"}
    assert why.keys() == told.keys() and all(told[game] in why[game] for game in told)


def test_settings_of_one_data_set_are_groups(tmp_path):
    """Noise makes no other data of the logs that it is added to; every game is in every group."""
    for game in ("Pong", "Breakout"):
        for noise in ("0.0", "1.0"):
            for seed in (0, 1):
                run_dir = make_run(tmp_path / noise, game, seed, settings={"Dataset.reward_noise": noise})
                offline(run_dir, f"['data/{game}']", game, 8.0)
    result = alignment.compare(runs.read(tmp_path, None, []))
    assert {group.name: len(group.runs) for group in result.groups} == {
        "dqn-hl_gauss-quick reward_noise=0.0": 4,
        "dqn-hl_gauss-quick reward_noise=1.0": 4,
    }
    assert not [note for note in result.notes if "lacks" in note]


def test_groups_without_a_return_are_waited_for(tmp_path):
    for head, name in (("hl_gauss", "begun"), ("mse", "going")):
        offline(make_run(tmp_path / name, head=head), "['data/Pong']", "Pong", 8.0)
    (tmp_path / "begun/Pong/dqn-hl_gauss-quick/seed0/metrics.jsonl").write_text('{"updates": 100, "train/loss": 1.0}\n')
    with pytest.raises(alignment.NothingYet, match="No run of these groups has a return yet"):
        compare.main([str(tmp_path), "--groups=hl_gauss"])


def test_groups_are_chosen_by_their_names_or_a_part_of_them(tmp_path):
    names = ("C51", "CNN C51", "CNN DQN", "DQN")
    path = write_table(tmp_path / "runs.csv", *(f"{name},Pong,0,100,1" for name in names))
    found = runs.read(path, None, [])
    chosen = lambda *texts: [group.name for group in alignment.compare(found, None, list(texts), 100).groups]
    assert chosen("C51") == ["C51"] and chosen("C51", "CNN") == ["C51", "CNN C51", "CNN DQN"]
    assert chosen("N C51", "DQ") == ["CNN C51", "CNN DQN", "DQN"]
    told = "--groups C51 is a group's whole name, so that it does not choose CNN C51."
    assert told in alignment.compare(found, None, ["C51", "DQN"], 100).notes
    assert not any("whole name" in note for note in alignment.compare(found, None, ["C51", "CNN C51"], 100).notes)


def test_probes_of_different_torsos_are_no_twins(tmp_path):
    """Runs of several seeds and games are one group, whose sources differ in these, too."""
    for head in ("mse", "c51"):
        for game in ("Pong", "MinAtar/Freeway-v1"):
            for seed in (0, 1):
                source = f"runs/{game.replace('/', '-')}/dqn-{head}-fast/seed{seed}"
                settings = {"Experiment.torso_from": repr(source)}
                make_run(tmp_path, game, seed, settings=settings, name=f"probe-{head}")
    result, notes = notes_of(tmp_path)
    assert sorted(len(group.runs) for group in result.groups) == [4, 4] and "the same settings" not in notes


def test_windows_without_a_return_are_left_out_and_said(tmp_path):
    make_run(tmp_path)
    without(make_run(tmp_path, head="mse"), lambda frames: frames <= 110_000)
    result, notes = notes_of(tmp_path, window=50_000)
    assert result.frames[0] == 150_000
    assert "2 of 16 windows are left out" in notes and "that end at 50,000, 100,000 frames" in notes


def test_a_run_without_a_return_leaves_the_window_to_others(tmp_path):
    """Long episodes: the run has gone on, though none of its last ones has ended."""
    for seed in range(3):
        make_run(tmp_path, seed=seed, level=100.0 * seed)
    run_dir = without(tmp_path / "Pong/dqn-hl_gauss-quick/seed2", lambda frames: frames > 500_000)
    result, notes = notes_of(tmp_path, window=100_000)
    assert result.frames[-1] == 800_000 and f"no return in 3 windows of {run_dir}" in notes
    (group,) = result.groups
    assert np.isnan(group.scores[2, -3:]).all() and not np.isnan(group.scores[:2]).any()
    done = analysis.analyse(result, ("human", {"Pong": (0.0, 1.0)}), resamples=50)
    of_two = np.mean(group.scores[:2, -1])
    assert done.curves[group.name]["mean"][0, -1] == pytest.approx(of_two)
    assert done.per_game[group.name]["Pong"][0, -1] == pytest.approx(of_two)
    assert done.last[group.name][0][2] == pytest.approx(np.nanmean(group.scores[2, -5:]))


def test_twins(tmp_path):
    """The same run twice counts once: that which got further."""
    make_run(tmp_path / "a", end=700_000)
    further = make_run(tmp_path / "b")
    result, notes = notes_of(tmp_path)
    assert [len(group.runs) for group in result.groups] == [1] and f"{further} counts" in notes


def test_protocols_that_differ_are_said(tmp_path):
    make_run(tmp_path / "a", sticky=0.25)
    make_run(tmp_path / "b", sticky=0.0)
    assert "differ in the protocol of their games: Atari.sticky" in notes_of(tmp_path)[1]


def test_keywords_of_gymnasium_that_differ_are_said(tmp_path):
    for name, probability in (("a", 0.1), ("b", 0.0)):
        make_run(tmp_path / name, settings={"Gymnasium.kwargs": f"{{'sticky_action_prob': {probability}}}"})
    assert "differ in the protocol of their games: Gymnasium.kwargs" in notes_of(tmp_path)[1]


def test_games_that_only_some_groups_have(tmp_path):
    small_sweep(tmp_path, seeds=1)
    make_run(tmp_path, "Asterix")
    result, notes = notes_of(tmp_path)
    assert result.games == ["Breakout", "Pong"]
    assert "left out of dqn-hl_gauss-quick: Asterix" in notes


def test_ids_of_gymnasium_are_accepted_for_names(tmp_path, capsys, undrawn):
    """In run directories, tables, --games and --scores alike."""
    for game, seed in (("MinAtar/Freeway-v1", 0), ("MinAtar-Freeway-v1", 1), ("Pong", 0)):
        make_run(tmp_path / "runs", game, seed)
    (tmp_path / "scores.csv").write_text("game,random,MSE\nMinAtar/Freeway-v1,0,10\n")
    command = [str(tmp_path / "runs"), "--resamples=20", f"--scores={tmp_path / 'scores.csv'}"]
    for game in ("MinAtar/Freeway-v1", "MinAtar-Freeway-v1"):
        assert compare.main([*command, f"--games={game}", f"--output={tmp_path / game}"]) == 0
        out = capsys.readouterr().out
        assert "1 game: MinAtar-Freeway-v1\n" in out and "| dqn-hl_gauss-quick | 1 | 2 |" in out
        assert "not in the aggregates" not in out


def test_games_without_a_human_score(tmp_path):
    """Shown, but not in the aggregates; alone, a game is aggregated raw; a table of scores can be given."""
    small_sweep(tmp_path, seeds=2)
    for head in ("mse", "hl_gauss"):
        for seed in (0, 1):
            make_run(tmp_path, "Carnival", seed, head)
    found, _ = read(tmp_path)
    analyse = lambda found, scores=None: analysis.analyse(alignment.compare(found), scores, resamples=20)
    result = analyse(found)
    assert "not in the aggregates: Carnival" in result.comparison.notes[-1] and result.games == ["Breakout", "Pong"]
    assert "Carnival" in result.per_game["dqn-mse-quick"] and len(result.last["dqn-mse-quick"][0]) == 4
    raw = analyse([run for run in found if run.game == "Carnival"])
    assert set(raw.table["dqn-mse-quick"]) == {"iqm", "mean", "median"} and len(figures.draw_all(raw)) == 5
    assert "returns are raw" in raw.comparison.notes[-1] and raw.unit == "return"
    (tmp_path / "scores.csv").write_text("# mine\ngame,random,human\nCarnival,0,10\nPong,-21,21\n")
    given = analyse(found, analysis.read_scores(tmp_path / "scores.csv"))
    assert given.games == ["Breakout", "Carnival", "Pong"]
    np.testing.assert_allclose(given.last["dqn-mse-quick"][0][2:4], raw.last["dqn-mse-quick"][0] / 10)
    (tmp_path / "scores.csv").write_text("game,random,MSE\nCarnival,0,20\nPong,-21,21\n")
    other = analyse(found, analysis.read_scores(tmp_path / "scores.csv"))  # never beside human ones
    assert other.games == ["Carnival", "Pong"] and other.unit == "MSE-normalised score"
    assert "No MSE score, so not in the aggregates: Breakout" in other.comparison.notes[-1]
    (tmp_path / "scores.csv").write_text("game,random,MSE\nFreeway,0,20\n")
    none = analyse(found, analysis.read_scores(tmp_path / "scores.csv"))
    assert not none.games and not none.table  # returns of one game are compared with each other all the same
    np.testing.assert_array_equal(*[list(one.improvement.values()) for one in (none, result)])
    np.testing.assert_allclose(other.last["dqn-mse-quick"][0][:2], raw.last["dqn-mse-quick"][0] / 20)


def test_what_stands_in_the_way_of_a_comparison_is_named(tmp_path):
    """A game of which a group has no return yet; groups without a common game."""
    for head in ("mse", "hl_gauss"):
        make_run(tmp_path / "early", "Pong", 0, head)
        run_dir = make_run(tmp_path / "early", "Freeway", 0, head)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name != "episode/return"} for row in rows]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="No return yet of dqn-hl_gauss-quick on Freeway"):
        alignment.compare(read(tmp_path / "early")[0])
    make_run(tmp_path / "apart", "Pong", 0, "mse")
    make_run(tmp_path / "apart", "Freeway", 0, "hl_gauss")
    with pytest.raises(ConfigError, match=r"no game in common.*Freeway \(1\), Pong \(1\)|Pong \(1\), Freeway \(1\)"):
        alignment.compare(read(tmp_path / "apart")[0])


# Published runs


def test_dopamines_layouts(tmp_path):
    """JSON lists runs one after the other, or iteration by iteration; a run may end early. CSV names the run."""
    value = lambda run, iteration: {"Iteration": iteration, "Value": 10.0 * run + iteration, "Agent": "DQN"}
    (tmp_path / "upndown.json").write_text(
        json.dumps([value(0, i) for i in range(3)] + [value(1, i) for i in range(4)])
    )
    by_iteration = [value(run, i) for i in range(3) for run in range(2)]
    (tmp_path / "mspacman_CNN.json").write_text(json.dumps(by_iteration))
    (tmp_path / "mspacman_CNN.vg.json").write_text("{}")
    found, problems = read(tmp_path)
    assert not problems
    assert [(run.name, run.game, run.seed, run.returns.tolist()) for run in found] == [
        ("CNN DQN", "MsPacman", 0, [0.0, 1.0, 2.0]),
        ("CNN DQN", "MsPacman", 1, [10.0, 11.0, 12.0]),
        ("DQN", "UpNDown", 0, [0.0, 1.0, 2.0]),
        ("DQN", "UpNDown", 1, [10.0, 11.0, 12.0, 13.0]),
    ]
    assert found[0].frames.tolist() == [1e6, 2e6, 3e6]
    with gzip.open(tmp_path / "all.csv.gz", "wt") as file:
        file.write(
            "game,agent,run,iteration,mean_return\nairraid,C51,0,1,5.5\nairraid,C51,0,0,4.5\nairraid,C51,3,0,1\n"
        )
    found, problems = read(tmp_path / "all.csv.gz")
    assert [(run.game, run.seed, run.returns.tolist()) for run in found] == [
        ("AirRaid", 0, [4.5, 5.5]),
        ("AirRaid", 3, [1.0]),
    ]


def test_published_runs_beside_ours(tmp_path):
    """On the windows of published runs, which are a million frames."""
    make_run(tmp_path / "ours", end=800_000)
    values = [{"Iteration": i, "Value": 1.0, "Agent": "DQN"} for i in range(3)]
    (tmp_path / "pong.json").write_text(json.dumps(values))
    found, _ = read(tmp_path)
    with pytest.raises(ValueError, match=r"--window is a multiple"):
        alignment.compare(found, window=100_000)
    with pytest.raises(ValueError, match=r"800,012 frames, less than a window of 1,000,000"):
        alignment.compare(found)
    (ours,), published = ([run for run in found if bool(run.settings) == told] for told in (True, False))
    longer = ours._replace(frames=ours.frames * 5, reached_frames=4_000_000, planned_frames=4_000_000)
    result = alignment.compare([longer, *published])
    assert [group.scores.shape for group in result.groups] == [(1, 3), (1, 3)]
    assert "protocol" not in "".join(result.notes)


# Bad input


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="There are no runs"):
        compare.main([str(tmp_path)])
    with pytest.raises(ConfigError, match="There is no .*nowhere"):
        compare.main([str(tmp_path / "nowhere"), "--output=x"])
    small_sweep(tmp_path, seeds=1)
    for flag, message in {
        "--games=Pongg": "no run of Pongg; there are",
        "--groups=c51": "no name contains c51. There are: dqn-hl_gauss-quick",
        "--window=900000": "less than a window of 900,000. Lower",
        "--frames=900000000": "No run reaches",
        "--updates=400000": "These runs count frames: pass --frames in place of the other's 400,000",
        "--normalise=behaviour": "from which these runs have not learned",
        "--group_by=depth": "no run has a setting 'depth'",
        f"--scores={tmp_path / 'Pong/dqn-mse-quick/seed0/manifest.json'}": "no CSV table",
        f"--output={tmp_path / 'Pong'}": "holds no comparison",
    }.items():
        with pytest.raises((ConfigError, ValueError), match=message):
            compare.main([str(tmp_path), flag])
    for flag in ("--window=0", "--resamples=-1", "--metric=loss"):
        with pytest.raises(SystemExit):
            compare.main([str(tmp_path), flag])
    assert not list(tmp_path.glob("*compare*"))


def test_damaged_runs_are_named_and_the_rest_comes(tmp_path, capsys, undrawn):
    small_sweep(tmp_path, seeds=3)
    backwards = [{"frames": 9, "episode/return": 1}, {"frames": 3, "episode/return": 1}]
    damaged = {
        "Pong/dqn-mse-quick/seed0/manifest.json": '{"settings": ',
        "Pong/dqn-mse-quick/seed1/manifest.json": "[]",
        "Pong/dqn-hl_gauss-quick/seed0/metrics.jsonl": "\n".join(map(json.dumps, backwards)),
    }
    for name, text in damaged.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "Breakout/dqn-mse-quick/seed0/metrics.jsonl").unlink()
    with (tmp_path / "Breakout/dqn-mse-quick/seed1/metrics.jsonl").open("a") as file:
        file.write('{"frames": 900000, "epi')  # cut short by a crash: read up to there
    (tmp_path / "notes.json").write_text('{"not": "ours"}')
    with (tmp_path / "Pong/dqn-mse-quick/seed2/metrics.jsonl").open("a") as file:
        file.write('{"frames": 800000, "episode/return": 1\n\n')
    assert compare.main([str(tmp_path), "--resamples=20"]) == 0
    printed = capsys.readouterr().out
    for name in (*damaged, "Breakout/dqn-mse-quick/seed0/metrics.jsonl", "notes.json"):
        assert str(tmp_path / name.removesuffix("/manifest.json").removesuffix("/metrics.jsonl")) in printed
    assert "seed2: left out of metrics.jsonl: 1 damaged line." in printed
    assert "| dqn-mse-quick | 2 | 3 |" in printed and "| dqn-hl_gauss-quick | 2 | 5 |" in printed
    assert "seed0 cannot be read" in (tmp_path / "_compare/report.html").read_text()


ODD = {
    "settings": [None, {"a": [1]}, [["Experiment.seed", {}]], {"Experiment.seed": "x"}],
    "protocol": [None, {}, {"game": [1], "frame_skip": 4}, {"game": "Pong", "frame_skip": float("inf")}, {"id": 3}],
    "title": [["list"], {"a": 1}, "x" * 400, "\n\x00", "$\\foo$", "report.html", "file"],
    "git_commit": [["a"], 5, None],
    "num_envs": ["eight", None],
}
RETURNS = ["NaN", "Infinity", '"text"', "null", "[]", "1e999", "true"]


def test_odd_runs_do_not_end_the_report(tmp_path):
    """Each value where another is expected: read as text, or the run is left out and named; never a traceback."""
    small_sweep(tmp_path / "good", seeds=1)
    number = 0
    for key, values in ODD.items():
        for value in values:
            run_dir = make_run(tmp_path / f"odd{number}")
            manifest = json.loads((run_dir / "manifest.json").read_text()) | {key: value}
            (run_dir / "manifest.json").write_text(json.dumps(manifest))
            number += 1
    for value in RETURNS:
        run_dir = make_run(tmp_path / f"odd{number}")
        (run_dir / "metrics.jsonl").write_text(f'{{"frames": 5, "episode/return": {value}}}\n{{"frames": 800000}}\n')
        number += 1
    (tmp_path / "nested.json").write_text("[" * 100_000)
    assert compare.main([str(tmp_path), "--resamples=5", "--group_by=head"]) == 0
    assert compare.main([str(tmp_path), "--resamples=5", "--output", str(tmp_path / "out")]) == 0


def test_names_that_collide(tmp_path):
    """Three groups in, three out."""
    for name, eps in (("a b", "1"), ("a_b", "2"), ("a b", "3"), ("figures", "4"), ("é", "5"), ("è", "6")):
        make_run(tmp_path / eps, settings={"adam.eps": eps}, name=name)
    result = alignment.compare(read(tmp_path)[0])
    names = [group.name for group in result.groups]
    assert sorted(names) == ["a b eps=1", "a b eps=3", "a_b", "figures", "è", "é"]
    assert len(set(events.folders(names).values())) == 6
    long = [f"dqn-hl_gauss-{'x' * 90}-{i}-{'y' * 90}" for i in range(3)]
    assert len(set(events.folders(long).values())) == 3


def test_labels_are_whole_words_that_tell_groups_apart():
    def labels(*names):
        return list(figures.labels(list(names)).values())

    common = f"dqn-hl_gauss-{'x' * 90}"
    assert labels(*(f"{common} {i} {'y' * 90}" for i in range(3))) == ["0", "1", "2"]
    rates = "learning_rate=6.25e-05 eps=0.00015", "learning_rate=0.00025 eps=0.000125"
    assert labels(*(f"{common} {rate}" for rate in rates)) == list(rates)
    bins = "num_bins=101 sigma_ratio=0.25", "num_bins=151 sigma_ratio=0.75"
    assert labels(*(f"{common} {name}" for name in bins)) == list(bins)
    start = "x" * 24
    assert labels(common, f"{common} double=True") == [f"{start}…{'x' * 23}", f"{start}…{'x' * 11} double=True"]
    assert labels(f"{common} a", f"{common} a b") == ["a", "a b"]
    alike = [f"{'x' * 90}{i}{'y' * 90}" for i in range(2)]
    assert labels(*alike) == [f"{'x' * 24}…{'y' * 23}", f"{'x' * 24}…{'y' * 17}… (2)"]
    smoothing = [f"dqn-hl_gauss-minatar sigma_ratio={sigma} num_bins=101" for sigma in (0.25, 0.75)]
    assert labels(*smoothing, "dqn-two_hot-minatar num_bins=101") == [
        *("hl_gauss sigma_ratio=0.25", "hl_gauss sigma_ratio=0.75", "two_hot")
    ]
    assert labels("short a", "short b") == ["short a", "short b"]


def test_what_is_not_a_comparison_is_left_alone(tmp_path, undrawn):
    small_sweep(tmp_path / "runs", seeds=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/comparison.json").write_text("{}")
    (tmp_path / "other/precious").touch()
    with pytest.raises(ConfigError, match="holds no comparison"):
        compare.main([str(tmp_path / "runs"), f"--output={tmp_path / 'other'}"])
    assert (tmp_path / "other/precious").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/comparison.json").write_text('{"comparison": []}')
    (tmp_path / "out/figures").mkdir()
    with pytest.raises(ConfigError, match="has a figures that is of no comparison"):
        compare.main([str(tmp_path / "runs"), f"--output={tmp_path / 'out'}", "--resamples=10"])
    assert [path.name for path in (tmp_path / "out/figures").parent.iterdir()].count("figures") == 1


def test_results_are_replaced_after_any_interruption(tmp_path, monkeypatch):
    """Killed before each of the moves in turn: the next comparison goes through, and nothing of the last is left."""
    names = [["a", "b", "figures"], ["figures", "c"]]

    def results(folder, which):
        for name in names[which]:
            (folder / name).mkdir(parents=True)
            (folder / name / "file").write_text(str(which))
        return folder

    replace_path, left = Path.replace, 0

    def replace(self, target):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return replace_path(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    for moves in range(4):
        output, left = tmp_path / str(moves) / "out", 99
        output.parent.mkdir()
        compare.replace(output, results(tmp_path / f"first{moves}", 0))
        left = moves
        with pytest.raises(KeyboardInterrupt):
            compare.replace(output, results(tmp_path / f"second{moves}", 1))
        left = 99
        compare.replace(output, results(tmp_path / f"third{moves}", 1))
        assert sorted(path.name for path in output.iterdir()) == ["c", "comparison.json", "figures"]
        assert (output / "figures/file").read_text() == "1" and compare.ours(output) == ["c", "figures"]


def test_names_are_escaped(tmp_path):
    """A page must not run what a run directory of a stranger is called."""
    make_run(tmp_path, settings={"adam.eps": "<script>alert(1)</script>"}, name="<script>alert(2)<")
    make_run(tmp_path, head="mse")
    assert compare.main([str(tmp_path), "--resamples=20"]) == 0
    page = (tmp_path / "_compare/report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def test_watches(tmp_path, monkeypatch, capsys, undrawn):
    """No folder yet, no run of the game, then one too short for a window, one as long as planned, and one more."""
    naps, folder = [], tmp_path / "runs"

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) > 4:
            raise KeyboardInterrupt
        if len(naps) == 1:
            make_run(folder, "Breakout")
        else:
            make_run(folder, seed=len(naps), end=20_000 if len(naps) == 2 else 800_000)

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        compare.main([str(folder), "--games=Pong", "--watch=7", "--resamples=10", "--window=40000"])
    printed = capsys.readouterr().out
    assert naps == [7] * 5 and "Not yet: There is no" in printed and "Not yet: --games: no run of Pong" in printed
    assert "Not yet: The runs compared have 20,012 frames, less than a window of 40,000." in printed
    assert "| dqn-hl_gauss-quick | 1 | 1 |" in printed and "| dqn-hl_gauss-quick | 1 | 2 |" in printed


# Against rliable, in an environment of its own

RLIABLE = """
import json, sys
import numpy as np
from rliable import library, metrics
scores = {name: np.array(values) for name, values in json.load(open(sys.argv[1])).items()}
functions = {"iqm": metrics.aggregate_iqm, "mean": metrics.aggregate_mean, "median": metrics.aggregate_median,
             "optimality_gap": metrics.aggregate_optimality_gap}
values, intervals = library.get_interval_estimates(
    scores, lambda x: np.array([function(x) for function in functions.values()]), reps=4000)
pairs = {"x,y": (scores["x"], scores["y"])}
improvement, ends = library.get_interval_estimates(pairs, metrics.probability_of_improvement, reps=1000)
out = {name: {key: [values[name][i], *intervals[name][:, i]] for i, key in enumerate(functions)} for name in scores}
out["improvement"] = [float(improvement["x,y"]), *np.ravel(ends["x,y"])]
print(json.dumps(out))
"""


@pytest.mark.slow
def test_agrees_with_rliable(tmp_path):
    """Values exactly; the ends of intervals up to the noise of two bootstraps."""
    random = np.random.default_rng(0)
    scores = {name: random.gamma(2, scale, (5, 12)) for name, scale in (("x", 0.6), ("y", 0.5))}  # [seeds, games]
    (tmp_path / "scores.json").write_text(json.dumps({name: value.tolist() for name, value in scores.items()}))
    run = lambda *command: subprocess.run(command, check=True, capture_output=True, text=True).stdout
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "rliable==1.2.0", "pandas<3")
    theirs = json.loads(run(python, "-W", "ignore", "-c", RLIABLE, tmp_path / "scores.json").splitlines()[-1])
    games = np.repeat(np.arange(12), 5)
    flat = {name: value.T.reshape(-1) for name, value in scores.items()}
    for name, values in flat.items():
        ours = statistics.aggregate(values[:, None], games, resamples=4000)
        for key, band in ours.items():
            assert band[0, 0] == pytest.approx(theirs[name][key][0], abs=1e-9)
            np.testing.assert_allclose(band[1:, 0], theirs[name][key][1:], atol=0.03)
    improvement = statistics.probability_of_improvement(flat["x"], games, flat["y"], games)
    assert improvement[0] == pytest.approx(theirs["improvement"][0], abs=1e-9)
    np.testing.assert_allclose(improvement[1:], theirs["improvement"][1:], atol=0.03)


# In a browser

LOOK = """
import sys, time
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

options = webdriver.ChromeOptions()
options.binary_location = sys.argv[1]
for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
             "disable-component-update", "disable-sync", "window-size=1400,1000"):
    options.add_argument("--" + flag)
browser = webdriver.Chrome(options=options, service=Service(sys.argv[2]))
TEXT = '''
const text = node => (node.shadowRoot ? text(node.shadowRoot) : "") + Array.from(node.childNodes).map(child =>
    child.nodeType == 3 ? child.data : child.tagName == "STYLE" ? "" : text(child)).join(" ");
const count = (node, name) => (node.shadowRoot ? count(node.shadowRoot, name) : 0) +
    Array.from(node.children || []).map(child => (child.localName == name ? 1 : 0) + count(child, name))
    .reduce((a, b) => a + b, 0);
return [text(document.body), count(document, arguments[0])];
'''
for page, element, wanted in (
    ("custom_scalars", "path", ["interquartile mean", "Catch-v0", "Aggregates"]),
    ("hparams", "td", ["Experiment.head", "DQN.discount"]),
    ("images", "img", ["figures/iqm", "figures/per_game"]),
):
    browser.get(sys.argv[3] + "/#" + page)
    browser.refresh()
    for _ in range(60):
        text, number = browser.execute_script(TEXT, element)
        if number and all(word in text for word in wanted):
            break
        time.sleep(1)
    else:
        sys.exit(f"{page}: {number} elements {element}; {[word for word in wanted if word not in text]} not in {text}")
    time.sleep(2)
    browser.save_screenshot(f"{sys.argv[4]}/{page}.png")
browser.get("file://" + sys.argv[5])
assert browser.execute_script("return document.querySelectorAll('svg').length") >= 5
browser.save_screenshot(f"{sys.argv[4]}/report.png")
browser.quit()
"""


@pytest.mark.slow
def test_tensorboard_shows_it(tmp_path):
    """The real TensorBoard in a real browser: margin charts, the table of hyper-parameters, pictures."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver")
    for head in ("mse", "hl_gauss"):
        for seed in (0, 1):
            run_dir = tmp_path / f"runs/Catch-v0/{head}/seed{seed}"
            assert train.main(catch(run_dir, head, 2000, f"--seed={seed}")) == 0
    logdir = tmp_path / "runs"
    assert compare.main([str(logdir), "--resamples=50"]) == 0
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "selenium"], check=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([Path(sys.executable).with_name("tensorboard"), "--logdir", logdir, "--port", str(port)])
    try:
        for _ in range(60):
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
                break
            time.sleep(1)
        command = [python, "-c", LOOK, chromium, driver, f"http://localhost:{port}", tmp_path]
        seen = subprocess.run([*command, logdir / "_compare/report.html"], capture_output=True, text=True)
    finally:
        server.terminate()
        server.wait()
    assert seen.returncode == 0, seen.stderr
    assert (tmp_path / "custom_scalars.png").stat().st_size > 20_000


def test_its_table_of_runs_gives_the_same_comparison_again(tmp_path, undrawn):
    """So a small file stands for runs that are no longer there; offline ones, too."""
    small_sweep(tmp_path / "runs")
    assert compare.main([str(tmp_path / "runs"), f"--output={tmp_path / 'first'}"]) == 0
    assert compare.main([str(tmp_path / "first/runs.csv"), f"--output={tmp_path / 'second'}"]) == 0
    for name in ("runs.csv", "aggregates.csv", "table.csv"):
        texts = [(tmp_path / which / name).read_text().splitlines() for which in ("first", "second")]
        first, second = (list(csv.reader(text)) for text in texts)
        assert len(first) == len(second) > 5
        for row, again in zip(first, second, strict=True):
            for one, other in zip(row, again, strict=True):
                assert one == other or float(one) == pytest.approx(float(other), abs=1e-3)
    offline = "group,game,seed,updates,return,count,behaviour_return\n"
    offline += "cql,Pong,0,100,-20,2,-10.0\ncql,Pong,0,200,-15,1,-10.0\n"
    (tmp_path / "offline.csv").write_text(offline)
    assert compare.main([str(tmp_path / "offline.csv"), f"--output={tmp_path / 'third'}"]) == 0
    assert (tmp_path / "third/runs.csv").read_text().replace("\r", "") == offline
    assert "behaviour-normalised" in (tmp_path / "third/report.html").read_text()


def write_table(path, *rows, header="group,game,seed,frames,return"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_wider_windows_of_a_table_are_those_of_its_runs(tmp_path, undrawn):
    """Of episodes, however many of them ended in each of the narrow ones; returns may be small."""
    run_dir, rng = make_run(tmp_path / "runs"), np.random.default_rng(0)
    frames, returns = np.sort(rng.integers(1, 800_000, 300)), rng.normal(0, 1e-4, 300)
    rows = [{"frames": int(at), "episode/return": value} for at, value in zip(frames, returns, strict=True)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = [f"--output={tmp_path / 'narrow'}", "--window=20000", "--frames=700000"]
    assert compare.main([str(tmp_path / "runs"), *output]) == 0
    [table] = runs.read(tmp_path / "narrow/runs.csv", None, [])
    [run] = read(tmp_path / "runs")[0]
    np.testing.assert_allclose(table.windows(100_000, 7), run.windows(100_000, 7), atol=1e-9)
    np.testing.assert_array_equal(table.counts(100_000, 7), run.counts(100_000, 7))


def test_tables_as_other_programs_write_them(tmp_path):
    """An empty cell is a return that is not there, whole numbers may have a point, and games be in lower case."""
    path = write_table(tmp_path / "runs.csv", "a,Pong,0.0,100.0,1", "a,Pong,0.0,200.0,", "a,pong,0.0,300.0,3.5")
    [run] = runs.read(path, None, problems := [])
    assert not problems and run.game == "Pong" and run.seed == 0 and run.reached_frames == 300
    np.testing.assert_array_equal([run.frames, run.returns], [[100, 300], [1, 3.5]])
    for row, where in (("a,Pong,0,1.5,1", "line 3, column frames"), ("a,Pong,,300,1", "line 3, column seed")):
        assert not runs.read(write_table(path, "a,Pong,0,100,1", row), None, problems := [])
        assert where in problems[0] and "1.5" not in problems[0]
    assert not runs.read(write_table(path, "a,Pong,1,2", header="group,game,frames,return"), None, problems := [])
    assert "line 2, column seed" in problems[0]


def test_groups_of_a_table_are_never_pooled(tmp_path):
    path = write_table(tmp_path / "runs.csv", "+dueling,Pong,0,100,1", "-dueling,Pong,0,100,2", "=dueling,Pong,0,100,3")
    result = alignment.compare(runs.read(path, None, []))
    assert {group.name: group.scores.item() for group in result.groups} == {
        "dueling": 1.0,
        "dueling'": 2.0,
        "dueling''": 3.0,
    }


def test_games_that_are_not_compared_do_not_shorten_a_comparison(tmp_path):
    """Nor do runs on them that are still going on."""
    rows = [f"{group},Pong,0,{at},1" for group in "ab" for at in (100, 200, 300)]
    path = write_table(tmp_path / "runs.csv", *rows, "a,Breakout,0,100,1")
    assert alignment.compare(runs.read(path, None, [])).frames[-1] == 300
    make_run(tmp_path / "runs", "Pong", head="mse")
    make_run(tmp_path / "runs", "Breakout", head="mse", end=600_000)
    make_run(tmp_path / "runs", "Breakout")
    result, notes = notes_of(tmp_path / "runs")
    assert result.games == ["Breakout"] and result.frames[-1] == 600_000
    assert "left out of dqn-mse-quick: Pong." in notes


def test_groups_are_in_the_order_of_their_settings(tmp_path):
    """By numbers, not letters; those of tables as they are there."""
    for bins in (201, 41, 101):
        for head in ("mse", "hl_gauss"):
            make_run(tmp_path / str(bins), head=head, settings={"HLGauss.num_bins": str(bins)})
    path = write_table(tmp_path / "runs.csv", "b,Pong,0,800000,1", "a,Pong,0,800000,1")
    groups = alignment.compare([*runs.read(path, None, []), *read(tmp_path)[0]], window=800_000).groups
    ours = [f"dqn-{head}-quick num_bins={bins}" for head in ("hl_gauss", "mse") for bins in (41, 101, 201)]
    assert [group.name for group in groups] == [*ours, "b", "a"]


def test_profiles_reach_the_best_group(tmp_path):
    rows = [
        f"{name},Pong,{seed},100,{level + seed}" for name, level in (("low", -20), ("high", 5)) for seed in range(9)
    ]
    result = analysis.analyse(
        alignment.compare(runs.read(write_table(tmp_path / "runs.csv", *rows), None, [])), None, 50
    )
    assert result.profiles["high"][0, -1] == pytest.approx(1 / 9) and result.profiles["high"][0, 0] == 1.0


def test_scores_of_all_groups_are_kept(tmp_path, undrawn):
    path = write_table(tmp_path / "runs.csv", *(f"{name},Pong,0,100,1" for name in ("a/b", "a_b", "games", "games'")))
    assert compare.main([str(path), f"--output={tmp_path / 'out'}"]) == 0
    assert sorted(np.load(tmp_path / "out/scores.npz")) == ["a_b", "a_b'", "games", "games'", "games''"]


def test_merged_groups_come_back_whole(tmp_path, undrawn):
    """Several of their runs may have the same seed."""
    for game in ("Pong", "Breakout"):
        for seed in range(2):
            for eps in ("1", "2"):
                make_run(tmp_path / eps, game, seed, level=10 * int(eps), settings={"adam.eps": eps})
    first, second = tmp_path / "first", tmp_path / "second"
    assert compare.main([str(tmp_path), "--group_by=head", f"--output={first}", "--resamples=50"]) == 0
    assert compare.main([str(first / "runs.csv"), f"--output={second}", "--resamples=50"]) == 0
    texts = [(path / "runs.csv").read_text() for path in (first, second)]
    assert texts[0] == texts[1] and len(texts[0].splitlines()) == 1 + 8 * 40


def test_tables_are_groups_of_their_own(tmp_path):
    """Two of one name may be of different experiments."""
    for number in (1, 2):
        rows = [f"dqn,Pong,{seed},{frames},{number}.0" for seed in (0, 1) for frames in (100, 200)]
        (tmp_path / f"{number}.csv").write_text("\n".join(["group,game,seed,frames,return", *rows]) + "\n")
    problems = []
    found = [run for number in (1, 2) for run in runs.read(tmp_path / f"{number}.csv", None, problems)]
    with_mark = tmp_path / "spreadsheet.csv"  # a byte order mark, as spreadsheets write it
    with_mark.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "1.csv").read_bytes())
    assert [run.game for run in runs.read(with_mark, None, problems)] == ["Pong", "Pong"]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert not runs.read(tmp_path / "other.csv", None, lines := []) and "columns group, game, seed, frames" in lines[0]
    result = alignment.compare(found)
    assert [group.name for group in result.groups] == ["dqn", f"dqn ({tmp_path / '2.csv'})"]
    assert [group.scores.mean() for group in result.groups] == [1.0, 2.0] and not problems


def test_what_is_cut_is_said(tmp_path):
    for seed, end in enumerate((300, 200)):
        rows = [f"dqn,Pong,{seed},{frames},1.0" for frames in range(100, end + 1, 100)]
        text = "" if seed else "group,game,seed,frames,return\n"
        with (tmp_path / "runs.csv").open("a") as file:
            file.write(text + "\n".join(rows) + "\n")
    result = alignment.compare(runs.read(tmp_path / "runs.csv", None, []))
    assert "Compared up to 200 frames, as far as every run of dqn goes." in result.notes
    assert "Tables hold the mean of all 2 windows." in result.notes
    make_run(tmp_path / "runs")
    result, notes = notes_of(tmp_path / "runs", window=300_000)
    assert "The last 200,012 of 800,012 frames are no whole window of 300,000 and are left out." in notes


@pytest.mark.parametrize(("every", "expected"), [(5_000, 20_000), (90_000, 100_000), (190_000, 100_000)])
def test_windows_are_as_wide_as_episodes_ask(tmp_path, every, expected):
    """But there are at least five of them."""
    frames = np.arange(every, 800_001, every)
    for game in ("Pong", "Breakout"):
        run_dir = make_run(tmp_path, game)
        rows = [{"frames": int(f), "episode/return": 1.0} for f in frames] + [{"frames": 800_000, "train/loss": 1.0}]
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, notes = notes_of(tmp_path)
    assert result.window == expected
    assert {*result.frames} == {-(-f // expected) * expected for f in frames}


def test_windows_are_many_enough():
    """The table holds the last five: a quarter of a run at most."""
    for frames in np.geomspace(100, 2e8, 200).astype(int):
        window = alignment.nice_window(int(frames))
        assert frames // window >= 20 and (frames // window <= 50 or window == alignment.WINDOW_FRAMES)
    assert alignment.nice_window(20_000_000) == alignment.nice_window(200_000_000) == 1_000_000
    assert alignment.nice_window(10_000_000) == 500_000
