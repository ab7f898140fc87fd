"""judge() and judge_table(): published numbers, from tables, CSVs and RobustBench's files."""

import json
import math

import pandas as pd
import pytest

from evaluation.published_tables import judge, judge_table, judged
from storage.atomic_files import Damaged
from storage.paths import ROOT


def test_published_tables_are_judged():
    # The earlier study's rows: ResNet-18 trained on stale examples, and the small CNN.
    found = {f.check: f.severity for f in judge(0.11, {"FGSM": 0.743, "PGD": 0.744, "NI": 0.74}, chance=0.1)}
    assert found["robust above clean"] == found["no better than chance"] == "invalid"
    assert [f.check for f in judge(0.48, {"FGSM": 0.431, "PGD": 0.43, "NI": 0.429})] == ["attacks alike"]
    assert judge(0.824, {"FGSM": 0.56, "PGD": 0.52, "AutoAttack": 0.48}, chance=0.1) == []
    assert judge(0.9, {"FGSM": 0.897, "PGD": 0.896, "NI": 0.895, "VMI": math.nan}) == []
    assert [f.check for f in judge(0.9, {"FGSM": 0.8, "PGD-20": 0.05})] == ["catastrophic overfitting"]


def test_a_published_table_is_judged_row_by_row_in_percent():
    table = pd.DataFrame(
        {
            "clean": [82.4, 11.0, 90.0],
            "classes": [10, 10, 100],
            "FGSM": [56.0, 74.3, 80.0],
            "PGD": [52.0, 74.4, math.nan],
        },
        index=["sound", "stale", "half"],
    )
    judged = judge_table(table)
    assert judged.verdict["sound"] == judged.verdict["half"] == "no finding"
    assert "INVALID: no better than chance" in judged.verdict["stale"]
    assert "74.3 %, more than the 11.0 %" in judged.verdict["stale"]
    assert list(judged.drop(columns="verdict")) == list(table)
    hundred = judge_table(table.assign(clean=[11.0, 11.0, 2.9])[["clean", "classes"]])
    assert hundred.verdict["half"].startswith("INVALID: no better than chance")
    assert judge_table(table.assign(clean=[13.0] * 3)[["clean", "classes"]]).verdict["half"] == "no finding"


ENTRY = {"dataset": "cifar100", "eps": "8/255", "clean_acc": "60.0", "reported": "30.0", "autoattack_acc": "29.5"}


def test_a_robustbench_file_and_a_folder_of_them_are_read(tmp_path):
    (tmp_path / "Sound2020.json").write_text(json.dumps(ENTRY | {"unreliable": False, "footnote": "99.9% of it"}))
    (tmp_path / "Beaten2021.json").write_text(json.dumps(ENTRY | {"external": "20.0", "unreliable": True}))
    one = judge_table(tmp_path / "Sound2020.json")
    assert list(one.index) == ["Sound2020"]
    assert list(one.verdict) == ["no finding"]
    table = judge_table(str(tmp_path))
    assert list(table.index) == ["Beaten2021", "Sound2020"]
    assert set(table.classes) == {100}
    assert table.verdict["Sound2020"] == "no finding"
    beaten = table.verdict["Beaten2021"]
    assert "INVALID: refuted [AutoAttack]: 29.50 %, and external leaves 20.00 %, 9.5 points less" in beaten
    assert "INVALID: refuted [reported]" in beaten
    assert "SUSPECT: unreliable" in beaten
    (tmp_path / "Broken.json").write_text("{")
    with pytest.raises(Damaged, match="Broken"):
        judge_table(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no JSON"):
        judge_table(tmp_path / "none")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, []),
        ({"reported": 31.0}, []),
        ({"reported": 31.1}, [("refuted", "suspect", ("reported",))]),
        ({"reported": 38.0}, [("refuted", "suspect", ("reported",))]),
        ({"reported": 38.1}, [("refuted", "invalid", ("reported",))]),
        ({"external": 29.8}, []),
        ({"external": 29.7}, [("refuted", "suspect", ("AutoAttack",))]),
        ({"external": 29.0}, [("refuted", "suspect", ("AutoAttack",))]),
        ({"external": 28.9}, [("refuted", "invalid", ("AutoAttack",)), ("refuted", "suspect", ("reported",))]),
        ({"reported": 25.0}, [("refuted", "invalid", ("AutoAttack",))]),  # the paper's own attack was stronger
        ({"external": 50.0}, []),  # a weak attack refutes nothing
        ({"AutoAttack": math.nan}, [("no AutoAttack", "suspect", ())]),
        ({"eps": ""}, [("ε", "suspect", ())]),
        ({"eps": 0.031}, [("ε", "suspect", ())]),
        ({"eps": 8 / 255}, []),
        ({"classes": math.nan}, []),
    ],
)
def test_numbers_of_a_row_are_held_against_one_another(row, expected):
    sound = {"clean": 60.0, "classes": 100, "eps": "8/255", "reported": 30.0, "AutoAttack": 30.0}
    table = pd.DataFrame([sound, sound, {"external": math.nan} | sound | row])
    first, second, found = judged(table)
    assert first == second == []
    assert sorted((one.check, one.severity, one.rows) for one in found) == sorted(expected)


def test_a_csv_of_shares_and_one_of_other_columns(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(
        ",dataset,backbone,epochs,clean_acc,Linf_acc,L2_acc\n0,cars,vit,50,0.9,0.5,0.95\n1,cars,cnn,5,0.8,0.4,0.3\n"
    )
    table = judge_table(path)
    assert list(table) == ["clean", "Linf_acc", "L2_acc", "verdict"]
    assert list(table.index) == ["cars, vit", "cars, cnn"]
    assert list(table.clean) == pytest.approx([90, 80])
    assert "INVALID: robust above clean [L2_acc, worst case]" in table.verdict.iloc[0]
    assert table.verdict.iloc[1] == "no finding"
    path.write_text("model,clean,PGD,classes\na,90,50,10\na,9,50,10\nb,900,50,10\n")  # the same name twice
    table = judge_table(path)
    assert list(table) == ["clean", "PGD", "classes", "verdict"]
    assert [verdict.split(":")[0] for verdict in table.verdict] == ["no finding", "INVALID", "INVALID"]
    assert "900 % is no accuracy in percent" in table.verdict.iloc[2]
    path.write_text("model,accuracy\na,0.9\n")
    with pytest.raises(ValueError, match="'clean' is needed"):
        judge_table(path)


def test_robustbench_has_four_numbers_of_autoattack_that_were_beaten_by_a_point_and_more():
    table = judge_table(ROOT / "benchmarks" / "robustbench.csv")
    beaten = table[table.verdict.str.contains(r"INVALID: refuted \[AutoAttack\]")]
    gaps = (beaten.AutoAttack - beaten.external).round(2)
    assert sorted(gaps) == [2.18, 3.14, 7.08, 11.35]
    assert set(table[table.verdict.str.contains("unreliable")].index) == {"Kang2021Stable", "Xiao2020Enhancing"}
    assert "AutoAttack leaves 1.35 %" in table.verdict["JinRinard2020Manifold"]
    assert table.verdict["Bartoldson2024Adversarial_WRN-94-16"] == "no finding"


def test_a_larger_eps_is_known_from_its_column():
    """Above 8/255 healthy networks too withstand FGSM far better than PGD."""
    rows = pd.DataFrame(
        {"clean": [80.0, 80.0], "FGSM": [60.0, 60.0], "PGD-20": [25.0, 25.0], "eps": ["8/255", "16/255"]}
    )
    found = [[finding.check for finding in findings] for findings in judged(rows)]
    assert "catastrophic overfitting" in found[0]
    assert "catastrophic overfitting" not in found[1]
