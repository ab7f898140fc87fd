"""The benchmarks run, compare like with like and keep what they measure; the pages say what they found."""

import re
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import models
from attacks import FGSM, NIFGSM, PGD, VMIFGSM
from benchmarks import (
    counting,
    devices,
    faults,
    golden,
    gpu,
    memory,
    peers,
    plan,
    plots,
    readme,
    scaling,
    show,
    speed,
    suite,
    timing,
)
from evaluation.golden import overestimates
from storage.atomic_files import read_json, write_json


@pytest.fixture(scope="module")
def tiny(folders, tmp_path_factory):
    """A folder with the results of the smallest run there is; memory is measured here, not in fresh processes."""
    folder = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "peak", memory._peak)
        for command in (speed, scaling):
            command.main(["--tiny", "--output", str(folder)])
    return folder


def read(folder, name):
    (path,) = folder.glob(f"{name}-*.json")
    return read_json(path)


def test_everything_is_measured_and_kept(tiny):
    known = read(tiny, "speed")
    assert known["complete"]
    assert known["tiny"]
    assert known["environment"]["torch"] == torch.__version__
    assert known["versions"]["torchattacks"]
    assert known["command"].startswith("python -m benchmarks.speed --tiny")
    groups = [result["group"] for result in known["results"]]
    assert set(groups) == {"loading", "training", "share", "evaluation", "memory"}
    assert groups.count("training") == groups.count("evaluation") == 8
    for result in known["results"]:
        for row in result.get("contenders", {}).values():
            assert row["rate"]["lowest"] > 0
    assert {r["along"] for r in read(tiny, "scaling")["results"]} == set(plots.AXES)


@pytest.mark.long
def test_memory_is_measured_in_fresh_processes(folders, tmp_path):
    speed.main(["--tiny", "--output", str(tmp_path), "--only", "memory"])
    (result,) = read(tmp_path, "speed")["results"]
    assert all(mib > 0 for mib in result["peak"].values())


@pytest.mark.long
def test_what_a_gpu_will_show_runs_here_at_its_smallest(folders, tmp_path):
    gpu.main(["--tiny", "--output", str(tmp_path)])
    known = read(tmp_path, "gpu")
    assert known["complete"]
    groups = {result["group"]: result for result in known["results"]}
    assert set(groups) == {"graphs", "whole run", "record", "AutoAttack", "training", "together", "share"}
    assert 0 < groups["whole run"]["found"]["not training"] < 1
    assert groups["AutoAttack"]["found"]["robust"] <= groups["AutoAttack"]["found"]["clean"]
    assert groups["graphs"]["weights_apart_after_20_steps"] == 0
    assert 0 <= groups["record"]["found"]["worst case"] <= groups["record"]["found"]["clean"]
    known = read(tmp_path, "fast_robust")
    assert known["seeds"][0]["seed"] == 0
    assert known["command"] == "python -m benchmarks.fast_robust --seeds 1 --pictures 1000 --preset smoke"
    assert known["share_of_peak"] is None or known["share_of_peak"] > 0
    (log,) = tmp_path.glob("fast_robust-*-seed0.csv")
    assert pd.read_csv(log)["time/epoch_s"].sum() == pytest.approx(known["seeds"][0]["steps_seconds"])


def test_tables_and_figures_are_made_of_the_results(tiny):
    text = show.table(tiny)
    assert "Tiny: this shows that it runs" in text
    assert "Training step: shallow CNN, VMI-FGSM" in text
    assert {path.stem.split("-")[0] for path in show.pictures(tiny)} == {"speed", "scaling"}
    assert show.table(tiny / "nowhere") == show.NOTHING


def test_the_pages_hold_what_the_command_would_write():
    for name, texts in show.pages().items():
        page = (show.ROOT / name).read_text(encoding="utf-8")
        assert show.filled(page, texts) == page, f"{name}: run python -m benchmarks.show"


def test_every_record_is_a_row_with_its_interval_over_seeds_and_no_rehearsal_is(tmp_path):
    known = read_json(show.RESULTS / "fast_robust-cuda-h200.json")
    quick, later = known | {"preset": "quick"}, known | {"command": "a command", "share_of_peak": 0.414}
    later["environment"] = known["environment"] | {"started": "2030-01-01T00:00:00+00:00"}
    one, two = known["seeds"][0] | {"wall_seconds": 90.0}, known["seeds"][0] | {"wall_seconds": 99.96, "seed": 1}
    one["worst case"], two["worst case"] = ({"accuracy": share, "interval": [0, 1]} for share in (0.48, 0.49))
    assert show.record(tmp_path) == "Nobody has run it yet."
    for name, row in {"a": later | {"seeds": [one, two]}, "b": known, "c": quick}.items():
        write_json(tmp_path / f"fast_robust-{name}.json", row)
    (tmp_path / "fast_robust-a-seed1.csv").touch()
    first, last = show.record(tmp_path).splitlines()[2:]
    assert first.startswith(
        "| 185.8 s | 47.6 (44.5–50.7) | 48 % in 120 s: not reached | 117.3 s | 81.8 (79.3–84.1) |"
    )
    assert "| cifar10 | 1 × 1,000 |" in first
    assert first.endswith("| not kept |  |")
    assert last.startswith(
        "| 100.0 s | 48.5 (42.1–54.9) | 48 % in 120 s: reached |"
    )  # 12.71 standard errors each way
    assert "| 2 × 1,000 |" in last
    assert "| 41 % |" in last
    assert last.endswith("| `a command` | [seed1](../benchmarks/results/fast_robust-a-seed1.csv) |")
    write_json(tmp_path / "fast_robust-b.json", known | {"seeds": [one | {"wall_seconds": None}]})
    assert "| broken off | 48.0 (0.0–100.0) | 48 % in 120 s: not reached |" in show.record(tmp_path)
    write_json(tmp_path / "fast_robust-b.json", known | {"seeds": [one | {"verdict": "invalid"}]})
    assert "| 90.0 s | ~~48.0 (0.0–100.0)~~ | 48 % in 120 s: not reached |" in show.record(tmp_path)


def test_a_page_keeps_what_stands_around_the_markers():
    begin, end = (show.MARKER.format(what="a", where=where) for where in ("begin", "end"))
    page = f"before\n{begin}\nold\n{end}\nafter"
    once = show.filled(page, {"a": "new"})
    assert once == f"before\n{begin}\n\nnew\n\n{end}\nafter"
    assert show.filled(once, {"a": "new"}) == once


def test_what_the_readme_says_of_its_table_is_so():
    """Its sentences under the table. That one source leaves more than another the notebook tests, in pairs."""
    scores = pd.read_csv(show.ROOT / readme.SHOWN / "scores.csv")
    scores = scores[scores.evaluation.str.startswith("AutoAttack")].set_index("model")
    of = {name: scores.loc[f"{readme.EXPERIMENT}/{name}-seed0"] for name in readme.NETWORKS}
    best = of.pop("from-robust-all-pgd")
    assert of["from-robust-head"].low > of["from-robust-all"].high
    assert of["source-robust"].low > of["from-robust-all"].high
    assert all(best.accuracy > other.high for other in of.values())
    again = pd.read_csv(show.ROOT / readme.AGAIN / "scores.csv").query("evaluation == 'AutoAttack, cut short'")
    again = again.set_index(again.model.str.split("/").str[1]).accuracy
    assert again["from-robust-all-pgd-seed1"] == again.max()
    assert again["from-robust-head-seed1"] > again["from-standard-head-seed1"] == 0


def test_the_readmes_figure_shows_the_numbers_of_its_table(tmp_path):
    axis = readme.plot_study(show.ROOT / readme.SHOWN / "scores.csv", readme.EXPERIMENT).axes[0]
    shown = {tuple(container.lines[0].get_xydata()[0].round(1)) for container in axis.containers}
    scores = pd.read_csv(show.ROOT / readme.SHOWN / "scores.csv").set_index(["model", "evaluation"])
    for name in [name for name in readme.NETWORKS if name.startswith("from")]:
        rows = scores.loc[f"{readme.EXPERIMENT}/{name}-seed0"]
        assert (rows.accuracy["clean"], rows.accuracy["AutoAttack, cut short"]) in shown
    assert (20.0, 0.0) not in shown  # an invalid one
    assert "invalid numbers left out" in axis.get_title()
    assert readme.picture_of_study(tmp_path / "a.png").stat().st_size > 10_000
    assert (show.ROOT / readme.FIGURE).exists()


def test_an_invalid_number_is_struck_out_in_the_readme(tmp_path):
    text = readme.results(networks={"from-standard-head-pgd": ("standard", "the head alone")})
    assert "| ~~20.0 (17.6–22.6)~~ | ~~0.0 (0.0–0.4)~~ |  |" in text
    pd.read_csv(show.ROOT / readme.AGAIN / "scores.csv").assign(verdict="invalid").to_csv(tmp_path / "scores.csv")
    text = readme.results(again=tmp_path).splitlines()
    assert text[-4].endswith("(36.6–42.7) | ~~39.3~~ |")
    assert text[-3].startswith("| none, at equal cost |")


def test_notebooks_that_ran_are_linked(tmp_path):
    copies = tmp_path / "notebooks" / "expected" / "hour-cifar"
    copies.mkdir(parents=True)
    for name, title in {"00_a": "# One?", "01_b": "# Two?"}.items():
        write_json(tmp_path / "notebooks" / f"{name}.ipynb", {"cells": [{"source": [title + "\n", "more"]}]})
    assert readme.notebooks(tmp_path).splitlines()[2:] == [
        "| [00](notebooks/00_a.ipynb) | One? |",
        "| [01](notebooks/01_b.ipynb) | Two? |",
    ]
    for folder in (copies, tmp_path / "notebooks" / "expected" / "hour-shapes", copies.with_name("quick-cifar-x")):
        folder.mkdir(exist_ok=True)
        (folder / "01_b.ipynb").touch()
    last = readme.notebooks(tmp_path).splitlines()[-1]
    assert last == "| [01](notebooks/01_b.ipynb) | Two? | [hour-cifar](notebooks/expected/hour-cifar/01_b.ipynb) |"


def test_a_run_that_is_broken_off_keeps_its_results(tmp_path):
    def stop():
        raise KeyboardInterrupt

    def cases(setting):
        yield "one", "done", lambda: {"unit": "s", "peak": {"ours": 1.0}}
        yield "two", "broken", stop

    with pytest.raises(KeyboardInterrupt):
        suite.run("", "speed", cases, ["--tiny", "--output", str(tmp_path)])
    known = read(tmp_path, "speed")
    assert [result["case"] for result in known["results"]] == ["done"]
    assert not known["complete"]
    with pytest.raises(SystemExit, match="no case has three"):
        suite.run("", "speed", cases, ["--tiny", "--output", str(tmp_path), "--only", "three"])


def test_the_same_command_goes_on_where_it_was_broken_off(tmp_path, monkeypatch, capsys):
    calls = []

    def cases(setting):
        for case in "abc":
            yield "one", case, lambda case=case: calls.append(case) or {"unit": "s", "peak": {"ours": 1.0}}

    command, now = ["--tiny", "--output", str(tmp_path), "--minutes", "1"], iter(range(0, 1000, 25))
    monkeypatch.setattr(suite.time, "perf_counter", lambda: next(now))
    suite.run("", "speed", cases, command)
    assert calls == ["a", "b"]
    assert "1 minutes are over" in capsys.readouterr().out
    assert not read(tmp_path, "speed")["complete"]
    suite.run("", "speed", cases, [*command, "--turns", "2"])  # another command begins anew
    assert calls == ["a", "b"] * 2
    for _ in range(2):  # the second time it is done, and begins anew, too
        suite.run("", "speed", cases, [*command, "--turns", "2"])
        assert read(tmp_path, "speed")["complete"] == (len(calls) == 5)
    assert calls == ["a", "b"] * 2 + ["c"] + ["a", "b"]


def test_turns_alternate_and_ratios_are_taken_turn_by_turn():
    calls = []
    setting = SimpleNamespace(device=torch.device("cpu"), turns=2, tiny=True)
    contenders = {name: (lambda name=name: calls.append(name), 1) for name in ("ours", "peer")}
    rates = timing.compare(contenders, setting)
    assert calls == ["ours", "peer"] * 2
    assert {name: len(values) for name, values in rates.items()} == {"ours": 2, "peer": 2}
    rows = timing.summary({"ours": [2.0, 9.0, 4.0], "peer": [1.0, 3.0, 4.0]})
    assert rows["peer"]["ratio"] == {"median": 2.0, "lowest": 1.0, "highest": 3.0}
    assert rows["ours"]["ratio"]["median"] == 1.0


@pytest.mark.parametrize("arguments", [{"name": "shallow_cnn"}, {"name": "resnet18", "width": 4}])
def test_the_usual_network_computes_the_same(arguments):
    model = models.build(num_classes=10, **arguments).eval()
    usual, images = peers.usual_network(model).eval(), torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(usual(images), model(images), rtol=1e-4, atol=1e-4)
    assert all(weight.is_contiguous() for weight in usual.parameters())
    assert sum(weight.numel() for weight in usual.parameters()) == sum(w.numel() for w in model.parameters())


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=3), NIFGSM(), VMIFGSM(steps=2, neighbours=3)], ids=repr)
def test_peers_attack_with_our_settings(attack):
    model = peers.usual_network(models.build("shallow_cnn", 10)).eval()
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    crafts = [peers.with_torchattacks(attack, model)]
    if peers.why_not_foolbox(attack) is None:
        crafts.append(peers.with_foolbox(attack, model))
    for craft in crafts:
        change = (craft(images, labels) - images).abs().amax()
        assert 0 < change <= attack.eps + 1e-6
    theirs = crafts[0]
    assert theirs.eps == attack.eps
    for ours, name in {"steps": "steps", "step_size": "alpha", "neighbours": "N", "radius": "beta"}.items():
        if hasattr(theirs, name):
            assert getattr(theirs, name) == getattr(attack, ours)


def test_what_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert peers.why_not_foolbox(PGD()) == "foolbox is not installed"


def test_flops_of_a_step_are_those_of_the_closed_form():
    first = 2 * 28 * 28 * 6 * 75  # two per multiplication and addition
    forward = first + 2 * (10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10)
    network = peers.usual_network(models.build("shallow_cnn", 10))
    assert timing.flops_of_step(network, crafting=10) == 23 * forward - first


@pytest.mark.parametrize(
    ("value", "shown"), [(0.1234, "0.12"), (45.67, "45.7"), (456.7, "457"), (12345, "12,300")]
)
def test_numbers_show_what_counts(value, shown):
    assert plots.number(value) == shown


@pytest.mark.long
def test_a_study_killed_in_all_its_phases_ends_as_if_nothing_had_happened(tmp_path, capsys):
    """The short form of benchmarks/faults.py: ten kills, and five times SIGTERM."""
    assert faults.main(["--studies", "2", "--polite", "1", "--seed", "7", "--output", str(tmp_path)]) == 0
    killed, asked = read(tmp_path, "faults")["results"]
    assert sum(row["stops"] for row in killed["phases"]) == 10
    assert {code for row in killed["phases"] for code in row["codes"]} == {-9}
    assert sum(row["stops"] for row in asked["phases"]) == 5
    assert {code for row in asked["phases"] for code in row["codes"]} == {75}
    assert max(row["longest"] for row in asked["phases"]) < 10
    assert "10 times SIGKILL, and 0 of 2 ended differently" in capsys.readouterr().out


def test_a_study_that_ends_differently_is_told(tmp_path, monkeypatch, capsys):
    """Something is lost in every study that was stopped: the table says so, and the command fails."""
    whole = {"weights": "a", "report": "b", "scores": "c"}
    monkeypatch.setattr(faults.Process, "through", lambda self: self.process.kill())
    monkeypatch.setattr(faults, "length", lambda _: dict.fromkeys(faults.PHASES, 1.0))
    monkeypatch.setattr(faults, "found", lambda _: whole)
    stop = {"phase": "training", "code": -9, "seconds": 0.1}
    monkeypatch.setattr(faults, "trial", lambda *_: ([stop], whole | {"scores": "d"}))
    assert faults.main(["--studies", "1", "--polite", "0", "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "differs in scores" in said
    assert "1 times SIGKILL, and 1 of 1 ended differently" in said


@pytest.mark.long
def test_what_several_processes_gain_is_measured_and_told(folders, tmp_path):
    devices.main(["--tiny", "--output", str(tmp_path), "--only", "one run through Ray"])
    (result,) = read(tmp_path, "devices")["results"]
    assert set(result["contenders"]) == {"as a task", "bare"}
    assert result["seconds beside the training"]["as a task"] > result["seconds beside the training"]["bare"] > 0
    assert "Many devices" in show.table(tmp_path)
    assert "as a task" in show.table(tmp_path)


def test_what_is_counted_is_divided_by_the_time_that_it_took(study):
    session, data, runs, _ = study
    rates = plan.timed(session.runs.parent)
    assert {key: len(found) for key, found in rates.items()} == {
        ("shallow_cnn", "training"): 2,
        ("shallow_cnn", "tests"): 2,
    }
    flops, run = timing.flops_of_step(models.build("shallow_cnn", 10), 0), runs["standard"]
    expected = flops * 2 * len(data.train) / run.history["time/epoch_s"].sum()
    assert any(rate == pytest.approx(expected) for rate in rates["shallow_cnn", "training"])


def test_the_plan_counts_each_run_once_and_more_gpus_are_never_slower(tmp_path, capsys, study):
    timed = shutil.copytree(study[0].runs.parent, tmp_path / "timed")
    (timed / "command.txt").write_text("python -m study\n")
    study = tmp_path / "smoke-shapes"
    names = {"02_transfer_learning": ["source-standard", "source-robust", "from-robust-all-pgd"]}
    names |= {"04_more_classes": ["resnet-100"]}
    names["06_robust_transfer"] = ["from-robust-all-pgd", "from-robust-awp", "from-robust-all-pgd-16-pictures"]
    for notebook, runs in names.items():
        for run in runs:
            model = {"name": "shallow_cnn", "num_classes": 10}
            defence = {"kind": "Standard" if run in ("source-standard", "resnet-100") else "Adversarial"}
            folder = study / notebook / f"{run}-seed0"
            write_json(folder / "recipe.json", {"recipe": {"defence": defence}, "model": model})
            twin = {"same_run_as": "02/source-standard-seed0"} if run == "resnet-100" else {}
            if notebook.startswith("06") and run == "from-robust-all-pgd":
                twin = {"same_run_as": "02_transfer_learning/from-robust-all-pgd-seed0"}
            write_json(folder / "environment.json", twin)
    jobs = list(counting.jobs_of(study))
    trained = [job for job in jobs if job.kind == "training"]
    assert len(trained) == counting.SEEDS["full"] * (
        4 + len(counting.SHARES)
    )  # no twin is; one stands for four shares
    sought = {job.name: job.after for job in jobs if job.kind == "AutoAttack"}
    assert sought["06/from-robust-all-pgd, 0, AutoAttack"] == "02/from-robust-all-pgd, 0"
    assert not [job for job in counting.jobs_of(study, "hour") if "awp" in job.name]  # the notebook leaves it out
    step = {job.name: job.flops for job in trained}
    assert step["02/source-robust, 0"] > 5 * step["02/source-standard, 0"]
    assert {job.after for job in trained if "from-robust" in job.name} == {
        f"02/source-robust, {n}" for n in range(3)
    }
    walls = [plan.makespan(jobs, gpus, lambda job: job.flops) for gpus in (1, 2, 8, 64)]
    assert walls == sorted(walls, reverse=True)
    assert walls[0] == pytest.approx(sum(job.flops for job in jobs))
    chain = step["02/source-standard, 0"] + step["02/source-robust, 0"] + step["02/from-robust-all-pgd, 0"]
    assert walls[-1] >= chain
    shutil.rmtree(timed / "notebooks", ignore_errors=True)
    (timed / "notebooks").mkdir()
    for name in ("01_shallow_cnn", *names):
        write_json(timed / "notebooks" / f"{name}.ipynb", {"metadata": {"papermill": {"duration": 60}}})
    outputs = ["--output", str(tmp_path / "scaling.md"), "--lengths", str(tmp_path / "lengths.json")]
    plan.main([str(study), str(timed), *outputs])
    known = read_json(tmp_path / "lengths.json", sealed=False)
    assert known["timed"]["seconds"]["02_transfer_learning"] == 60
    hour, full = (known[f"{preset}-cifar"]["seconds"]["02_transfer_learning"] for preset in ("hour", "full"))
    assert 0 < 3 * hour < full
    text = (tmp_path / "scaling.md").read_text()
    assert "| 64 |" in text
    assert "| shallow_cnn | training | 2 |" in text
    assert re.search(r"\| 02_transfer_learning \| \d+ min \| [1-9]", text)
    assert not re.search(r"\{\w+\}", text)
    with pytest.raises(SystemExit):
        plan.main([str(study), str(tmp_path / "nothing")])


def test_what_a_gpu_does_in_a_second_is_what_was_measured(monkeypatch, tmp_path):
    """Steps of PGD-10 and the whole of AutoAttack, where that takes long, by what each is counted at."""
    rates = {"ResNet-18 width 64, PGD-10": 8000.0, "shallow CNN, PGD-10": 40_000.0}
    rows = [
        {
            "group": "training",
            "case": case,
            "contenders": {"ours": {"rate": {"median": rate}}, "ours, float32": {"rate": {"median": rate / 8}}},
        }
        for case, rate in rates.items()
    ]
    write_json(tmp_path / "steps.json", {"results": rows})
    lines = ["model,evaluation,accuracy,n,seconds,attack", "a,clean,80.0,1000,1,", "b,clean,90.0,1000,1,"]
    lines += ['a,AutoAttack,40.0,1000,9,"AutoAttack(ε=8/255, 50 steps, targets=3, queries=200)"']
    lines += ['b,AutoAttack,0.0,1000,1,"AutoAttack(ε=8/255, 100 steps)"']
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    monkeypatch.setattr(counting, "STEPS", tmp_path / "steps.json")
    monkeypatch.setattr(counting, "ON_GPU", tmp_path)
    found, flops = counting.Rates.measured(), counting.flops_of("resnet18", 10)
    assert found.training == pytest.approx(8000 * (10 * flops["gradient"] + flops["update"]) / 1e12)
    passes = 0.8 * 2 * 50 + 0.4 * (2 * 2 * 50 * 3 + 200)
    assert found.evaluation == pytest.approx(1000 * passes * flops["forward"] / 9 / 1e12)
    assert 0 < found.small < found.training / 10
    t4 = found.on("T4")
    assert (t4.training, t4.small) == pytest.approx((found.training * 65 / 989, found.small * 0.32 / 3.35))
    assert (t4.evaluation, t4.float32) == pytest.approx(
        (found.evaluation * 65 / 495, found.training / 8 * 8.1 / 67)
    )
    test = counting.Job("", 3e12, "AutoAttack", float32=1e12)
    assert found.seconds(test) == pytest.approx(3 / found.evaluation)
    assert t4.seconds(test) == pytest.approx(2 / t4.evaluation + 1 / t4.float32)
    assert counting.autoattack(1, 1) == 200 + 1800 + 1800 + 5000  # the standard


def test_the_preset_hour_is_ten_minutes_a_notebook_on_a_large_gpu_and_two_hours_on_a_small_one():
    known = read_json(show.ROOT / "notebooks" / "lengths.json", sealed=False)["hour-cifar"]["seconds"]
    assert len(known) > 10
    assert max(known.values()) < 600
    page = (show.ROOT / "docs" / "scaling.md").read_text()
    rows = dict(re.findall(r"^\| (\d\d.*?) \| (\d+ min \| [\d.]+ \w+) \|$", page, re.M))
    small = {name: float(row.split()[3]) * (60 if row.endswith("h") else 1) for name, row in rows.items()}
    assert {name for name, minutes in small.items() if minutes > 120} == {"06_robust_transfer"}
    assert small["06 with `-p 'shares=[0.1]'`"] < 120
    assert {name: row.split(" |")[0] for name, row in rows.items() if name in known} == {
        name: f"{seconds / 60:.0f} min" for name, seconds in known.items()
    }


def test_grids_are_counted_in_their_lengths_and_sizes_and_what_two_of_them_train_once(tmp_path):
    pgd, fgsm = ({"kind": "Adversarial", "attack": {"kind": kind}} for kind in ("PGD", "FGSM"))
    runs = {
        "02_a/source-robust": (pgd, None),
        "02_a/from-robust-all-pgd": (pgd, None),
        "06_b/from-robust-n-fgsm": ({"kind": "NFGSM"}, None),
        "06_b/from-scratch-all-pgd": (pgd, None),
        "08_c/source-robust": (pgd, "02_a/source-robust-seed0"),
        "08_c/from-robust-all-pgd": (pgd, "02_a/from-robust-all-pgd-seed0"),
        "09_d/from-standard-fgsm-8": (fgsm, None),
        "09_d/from-standard-pgd-8": (pgd, None),
        "09_d/from-robust-n-fgsm-8": ({"kind": "NFGSM"}, "06_b/from-robust-n-fgsm-seed0"),
    }
    for run, (defence, twin) in runs.items():
        model = {"name": "shallow_cnn", "num_classes": 10}
        write_json(tmp_path / f"{run}-seed0" / "recipe.json", {"recipe": {"defence": defence}, "model": model})
        write_json(tmp_path / f"{run}-seed0" / "environment.json", {"same_run_as": twin} if twin else {})
    jobs = {preset: {job.name: job for job in counting.jobs_of(tmp_path, preset)} for preset in counting.SEEDS}
    names = {preset: {name for name in some if name[:2] in ("08", "09")} for preset, some in jobs.items()}
    trained, sought = (
        {
            preset: {name[3:].partition(",")[0] for name in some if name.endswith(end)}
            for preset, some in names.items()
        }
        for end in (", 0", ", 0, AutoAttack")
    )
    assert trained["hour"] == {"from-robust-2-epochs", "from-robust-n-fgsm-8"} | {  # which 06 leaves out there
        f"from-{name}"
        for name in (
            "standard-fgsm-8",
            "scratch-fgsm-8",
            "scratch-fgsm-16",
            "standard-pgd-8",
        )
    }
    assert "from-standard-pgd-late-8" in sought["full"]
    assert sought["hour"] == trained["hour"] | {
        "from-robust-all-pgd",
        "from-scratch-pgd-8",
    }  # trained by 02 and 06
    assert jobs["hour"]["09/from-scratch-pgd-8, 0, AutoAttack"].after == "06/from-scratch-all-pgd, 0"
    job = jobs["hour"]["08/from-robust-2-epochs, 0"]
    assert 0 < job.float32 == 2 * counting.VALIDATION * counting.flops_of("shallow_cnn", 10)["forward"] < job.flops
    job = jobs["hour"]["08/from-robust-2-epochs, 0, test"]
    assert job.float32 == job.flops
    job = jobs["hour"]["09/from-standard-pgd-8, 0, AutoAttack"]
    share = counting.left_of("09", "from-standard-pgd-8", True)
    assert job.float32 / job.flops == pytest.approx(1800 * share / (160 + 8600 * share))
    assert share == counting.left_of("06", "from-standard-all-pgd", True) == 0.34  # at full width, seed 0
    assert counting.left_of("09", "from-scratch-fgsm-8", True) == 0.303  # with another seed
    assert counting.left_of("06", "from-robust-distilled", True) == 0.138  # at a quarter of the width
    assert counting.left_of("08", "from-robust-2-epochs", True) == 0.396  # the most of any
    assert counting.left_of("08", "from-robust-2-epochs", False) == 0
    assert {"from-robust-4-epochs", "from-robust-12-epochs", "from-robust-n-fgsm-4"} < trained["full"]
    assert "from-robust-n-fgsm-8" in sought["full"] - trained["full"]
    full = {name: job.flops for name, job in jobs["full"].items()}
    assert full["08/from-robust-12-epochs, 0"] == pytest.approx(3 * full["08/from-robust-4-epochs, 0"])
    assert full["09/from-standard-pgd-4, 0"] > 3 * full["09/from-standard-fgsm-4, 0"]  # ten gradients to one
    assert full["09/from-standard-fgsm-4, 0"] == pytest.approx(full["09/from-robust-n-fgsm-4, 0"])


@pytest.mark.long
def test_the_table_of_known_truth_says_what_each_attack_leaves_too_many(tmp_path, capsys):
    """With a dash where an attack refuses a network."""
    golden.main(["--output", str(tmp_path), "--only", "FGSM(ε", "APGDT"])
    table = (tmp_path / "golden.md").read_text()
    many = " | ".join(f"{points:.1f}" for points in overestimates(FGSM())["too many"])
    assert f"| ours: FGSM(ε=8/255) | {many} |" in table
    assert "| ours: FGSM(ε=0.5, norm=L2) |" in table
    assert "| torchattacks: Torchattacks('APGDT', eps=0.03137) | – | " in table  # of two classes
    assert all(line in table for line in capsys.readouterr().out.splitlines())
