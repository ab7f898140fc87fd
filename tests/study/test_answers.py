"""The answers: computed from the scores, and withheld where the scores do not carry them."""

import re

import pytest
import torch

from evaluation.finding import Finding
from evaluation.scores import Scores
from storage.atomic_files import write_json
from study import answers
from study.answers import SHARE, Question

N = 400
ABOVE = Question("Is a above b?", "01_x/a", "01_x/b")
SHARES = Question("Does a keep more?", "01_x/a", "01_x/b", SHARE)


def scores(clean, robust, n=N, shift=0, split="cifar10 test", findings=()):
    """So many of n examples right, so many of them robust; `shift` moves which."""
    outcomes = {"clean": torch.arange(n) < clean, "PGD-20": (torch.arange(n) - shift) % n < robust}
    outcomes["PGD-20"] &= outcomes["clean"]
    return Scores(split, outcomes, {"PGD-20": "PGD"}, findings=list(findings))


def ask(question, **runs):
    row = answers.questions({"01_x": runs}, among=[question]).iloc[0]
    return row.answer, row.why


def test_a_run_that_was_taken_over_is_listed_again_where_more_was_measured(tmp_path):
    first, same, more = scores(300, 200), scores(300, 200), scores(300, 200)
    more.outcomes["AutoAttack"] = more.outcomes["PGD-20"]
    write_json(tmp_path / "02_y" / "c" / "environment.json", {"same_run_as": "01_x/a"})
    write_json(tmp_path / "02_y" / "d" / "environment.json", {"same_run_as": "01_x/a"})
    write_json(tmp_path / "02_y" / "e" / "environment.json", {"same_run_as": "01_x/not-tested-there"})
    experiments = {
        "01_x": {"a": first, "a, best": first},
        "02_y": {"c": same, "d": more, "e": same, "c, best": more},
    }
    experiments["mine"] = {"f": same}
    listed = answers.every_score(experiments, tmp_path)
    assert list(listed) == ["01 a", "01 a, best", "02 d", "02 e", "02 c, best", "mine f"]
    assert listed["02 d"] is more


def test_yes_no_and_no_difference():
    high, low, close = scores(300, 200), scores(350, 20), scores(300, 196, shift=3)
    answer, why = ask(ABOVE, a=high, b=low)
    assert answer == "yes"
    assert why.startswith("50.0 % (a) against 5.0 % (b) of n = 400, PGD-20, 1 seed: +45.0 points [")
    assert ask(ABOVE, a=low, b=high)[0] == "no"
    answer, why = ask(ABOVE, a=high, b=close)
    assert answer == answers.NULL
    low, high = map(float, re.search(r"\[(.*?), (.*?)\]", why).groups())
    assert low < 0 < high
    assert why.endswith(f": no difference of more than {max(-low, high):.1f} points.")


def test_what_seeds_disagree_on_is_bounded_where_their_mean_holds_zero():
    a = {"a-seed0": scores(300, 130), "a-seed1": scores(300, 125)}
    b = {"b-seed0": scores(300, 128), "b-seed1": scores(300, 128)}
    answer, why = ask(ABOVE, **a, **b)
    assert answer == answers.NULL
    assert re.search(r"no difference of more than \d\.\d points in the mean of the seeds\.$", why)


def test_seeds_must_agree():
    a = {"a-seed0": scores(300, 250), "a-seed1": scores(300, 90)}
    b = {"b-seed0": scores(300, 100), "b-seed1": scores(300, 100)}
    answer, why = ask(ABOVE, **a, **b)
    assert answer == "cannot be told"
    assert "2 seeds" in why
    assert "the seeds disagree" in why
    assert ask(ABOVE, **(a | {"a-seed1": scores(300, 240)}), **b)[0] == "yes"


@pytest.mark.parametrize("rows", [(), ("PGD-20",), ("clean",)])
def test_an_invalid_number_answers_nothing(rows):
    finding = Finding("masked gradient", "invalid", 1, 0, "no gradient gets through", rows)
    answer, why = ask(ABOVE, a=scores(300, 200, findings=[finding]), b=scores(300, 20))
    assert answer == "cannot be told"
    assert why == "A number is invalid: no gradient gets through."


def test_a_suspect_number_is_said_to_be_one():
    finding = Finding("step size", "suspect", 1, 0, "its steps are short", ("PGD-20",))
    answer, why = ask(ABOVE, a=scores(300, 200, findings=[finding]), b=scores(300, 20))
    assert answer == "yes"
    assert why.endswith("; suspect: its steps are short.")


def test_scores_that_cannot_be_compared_do_not_take_the_summary_down():
    answer, why = ask(ABOVE, a=scores(300, 200), b=scores(300, 20, n=500))
    assert answer == "cannot be told"
    assert "not of the same examples" in why
    other = scores(300, 20)
    other.attacks["PGD-20"] = "PGD(ε=2/255)"
    for question in (ABOVE, SHARES):
        assert "different attacks" in ask(question, a=scores(300, 200), b=other)[1]


def test_a_study_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the other notebooks"):
        answers.load_study(tmp_path / "none")


def test_a_finding_about_another_row_does_not_matter():
    finding = Finding("catastrophic overfitting", "invalid", 1, 0, "", ("FGSM",))
    assert ask(ABOVE, a=scores(300, 200, findings=[finding]), b=scores(300, 20))[0] == "yes"


def test_what_was_not_run_is_said_to_be_so():
    assert ask(ABOVE, a=scores(300, 200)) == ("not asked", "There are no scores of b under PGD-20.")
    without = Scores("cifar10 test", {"clean": torch.ones(N, dtype=torch.bool)})
    assert ask(ABOVE, a=without, b=without)[0] == "not asked"
    row = answers.questions({"02_y": {}}, among=[ABOVE]).iloc[0]
    assert (row.answer, row.why) == ("not run", "The notebook 01_x was not run.")


def test_what_has_no_runs_is_left_out_and_named():
    elsewhere, unasked = Question("Is it elsewhere?", "02_y/a", "02_y/b"), Question("Is c?", "01_x/c", "01_x/b")
    among, experiments = [ABOVE, elsewhere, unasked], {"01_x": {"a": A, "b": B}}
    assert list(answers.questions(experiments, among=among).answer) == ["yes", "not run", "not asked"]
    assert list(answers.questions(experiments, among=among, missing=False).question) == [ABOVE.text]
    assert answers.left_out(experiments, among=among) == (
        "Not asked by these runs, but by presets with more, 1 of 3 questions: Is c? "
        "Not asked, because their notebooks were not run, 1 of 3 questions: 02_y."
    )
    assert answers.left_out(experiments, "02_y", among).startswith(
        "Not asked, because their notebooks were not run, 1 of 1"
    )
    assert answers.left_out(experiments | {"02_y": experiments["01_x"]}, "02_y", among) == ""
    assert answers.questions({}, missing=False).empty


def test_what_matters_most_is_said_first_and_once():
    again = Question("First {a}, then {b}", "01_x/c", "01_x/d")
    open_one, same = Question("Is e?", "01_x/e", "01_x/a"), Question("Is c above d?", "01_x/c", "01_x/d")
    asked = {"first": [Question("No {a} or {b}", "02_y/c", "02_y/d"), again], "among": [open_one, ABOVE, same]}
    experiments = {"01_x": {"a": A, "b": B, "c": A, "d": OPEN}}
    own, question = answers.highlights(experiments, **asked)
    assert own.startswith("First 50.0 %, then 49.0 % (n = 400, PGD-20, 1 seed): +1.0 points [")
    assert question.startswith("Is a above b? Yes: 50.0 % (a) against 5.0 % (b) of n = 400")
    assert answers.highlights(experiments, most=1, **asked) == [own]
    assert answers.highlights({}) == []


def test_shares_of_right_answers_compare_different_tasks():
    ten, hundred = scores(360, 180), scores(160, 40, split="cifar100 test")
    answer, why = ask(SHARES, a=ten, b=hundred)
    assert answer == "yes"
    assert why.startswith("50.0 % (a) against 25.0 % (b) of the right answers withstand PGD-20 (180 of 360, 40 of")
    answer, why = ask(SHARES, a=ten, b=scores(12, 2, split="cifar100 test"))
    assert answer == "cannot be told"
    assert "one gives 12 right answers, and a share needs 30" in why


def test_shares_on_the_same_pictures_are_paired():
    answer, _ = ask(SHARES, a=scores(300, 200), b=scores(300, 180))  # all that withstand in b do so in a
    assert answer == "yes"
    answer, _ = ask(SHARES, a=scores(300, 200), b=scores(300, 180, split="cifar100 test"))
    assert answer == answers.NULL
    assert "not of the same examples" in ask(SHARES, a=scores(300, 200), b=scores(300, 180, n=500))[1]


def test_every_question_names_two_runs_of_an_experiment():
    for question in (*answers.QUESTIONS, *answers.FIRST):
        assert question.text.endswith("?") or question in answers.FIRST
        assert question in answers.QUESTIONS or re.findall("{.}", question.text) == ["{a}", "{b}"]
        assert question.experiment == question.b.partition("/")[0]


def test_the_questions_of_one_experiment():
    experiment = "03_from_scratch"
    mine = answers.questions({}, experiment)
    assert set(mine.experiment) == {experiment}
    assert set(mine.answer) == {"not run"}
    assert 0 < len(mine) < len(answers.questions({}))


def test_one_network_is_asked_about_two_attacks():
    both = scores(300, 200)
    both.outcomes["FGSM"], both.attacks["FGSM"] = both.outcomes["clean"] & (torch.arange(N) < 250), "FGSM"
    question = Question("Is FGSM weaker?", "01_x/a", "01_x/a", "FGSM", "PGD-20")
    answer, why = ask(question, a=both)
    assert answer == "yes"
    assert why.startswith("62.5 % (a, FGSM) against 50.0 % (a, PGD-20) of n = 400, 1 seed: +12.5 points [")
    both.findings.append(Finding("", "invalid", 1, 0, "broken", ("PGD-20",)))
    assert ask(question, a=both) == ("cannot be told", "A number is invalid: broken.")


def test_autoattack_is_asked_for_however_long_it_was():
    def under(label, *counts):
        found = {}
        for name, robust in zip("ab", counts, strict=True):
            found[name] = scores(300, robust)
            found[name].outcomes[label] = found[name].outcomes.pop("PGD-20")
            found[name].attacks = {label: "AutoAttack"}
        return found

    question = Question("Is a above b?", "01_x/a", "01_x/b", answers.AUTOATTACK)
    for label in ("AutoAttack", "AutoAttack, cut short"):
        answer, why = ask(question, **under(label, 200, 20))
        assert (answer, label in why) == ("yes", True)
    mixed = under("AutoAttack", 200, 20) | {"b": under("AutoAttack, cut short", 200, 20)["b"]}
    assert ask(question, **mixed)[0] == "not asked"


def test_accuracies_on_other_pictures_are_not_paired():
    answer, why = ask(ABOVE, a=scores(300, 200), b=scores(300, 20, n=500, split="cifar100 test"))
    assert answer == "yes"
    assert "50.0 % (a) against 4.0 % (b) of n = 400 and 500" in why


A, B, OPEN = scores(300, 200), scores(350, 20), scores(300, 196, shift=3)


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        ({"a": A, "b": B, "c": A, "d": B}, "holds"),
        ({"a": A, "b": B, "c": B, "d": A}, "does not hold"),
        ({"a": A, "b": B, "c": A, "d": OPEN}, "cannot be told"),
        ({"a": B, "b": A, "c": A, "d": OPEN}, "does not hold"),
        ({"a": A, "b": B}, "holds, as far as asked"),
        ({"a": B, "b": A}, "does not hold, as far as asked"),
        ({}, "cannot be told"),
    ],
)
def test_a_conclusion_holds_where_all_its_questions_say_yes(runs, verdict):
    questions = ABOVE, Question("Is c above d?", "01_x/c", "01_x/d")
    claim = answers.Conclusion("As it was said.", (("pgd", "PGD"),), questions)
    row = answers.conclusions({"01_x": runs}, [claim]).iloc[0]
    assert row.verdict == verdict
    assert row["its numbers"] == "43 % PGD (pgd)"
    assert row.here.startswith("Is a above b?: ")
    assert ("no difference of more than" in row.here) == (runs.get("d") is OPEN)
    assert "Is c above d?: " in row.here


def test_the_five_conclusions_stand_on_numbers_that_were_published():
    table = answers.conclusions({})
    assert len(table) == 5
    assert set(table.verdict) == {"cannot be told"}
    assert "74.4 % PGD (ResNet-18 from scratch: pgd 100 epochs)" in table["its numbers"][0]


def barely(n=N):
    """Two networks of which one is better at p = 0.03, and a hopeless one."""
    few = scores(300, 200)
    few.outcomes["PGD-20"] = few.outcomes["PGD-20"] & ~((torch.arange(n) >= 3) & (torch.arange(n) < 13))
    more = scores(300, 200)
    more.outcomes["PGD-20"] = more.outcomes["PGD-20"] & (torch.arange(n) >= 2)
    return {"a": more, "b": few, "c": scores(300, 20)}


def test_what_holm_takes_away_is_said_to_be_so():
    alone = answers.questions({"01_x": barely()}, among=[ABOVE]).iloc[0]
    assert alone.answer == "yes"
    assert 0.02 < alone.p < 0.05
    assert alone["p, Holm"] == alone.p
    assert "Holm" not in alone.why
    again = Question("Is a above b, once more?", "01_x/a", "01_x/b")
    among = [ABOVE, again, Question("Is a above c?", "01_x/a", "01_x/c"), Question("Is b?", "01_x/b", "01_x/b")]
    table = answers.questions({"01_x": barely()}, among=among).set_index("question")
    first = table.loc[ABOVE.text]
    assert first.answer == "yes"
    assert first["p, Holm"] == pytest.approx(
        2 * first.p
    )  # c's is smaller, b's is 1, and what is asked twice counts once
    assert first.why.endswith(f"but not after Holm's correction for 3 questions (p = {2 * first.p:.3f}).")
    assert "Holm" not in table.loc["Is a above c?"].why
    assert answers.highlights({"01_x": barely()}, 9, [], among)[0].endswith(f"(p = {2 * first.p:.3f}).")
    # Of whichever experiment they are.
    elsewhere = Question("Elsewhere?", "02_y/a", "02_y/c")
    own = answers.questions({"01_x": barely(), "02_y": barely()}, "01_x", [ABOVE, elsewhere])
    assert list(own["p, Holm"]) == pytest.approx([first.p])  # the second smallest of two
    own = answers.questions({"01_x": barely()}, "01_x", [ABOVE, elsewhere])
    assert list(own.question) == [ABOVE.text]


def test_a_conclusion_that_holm_takes_away_says_so():
    runs = barely() | {"d": scores(300, 196, shift=3)}
    questions = ABOVE, Question("Is a above d?", "01_x/a", "01_x/d")
    claims = [answers.Conclusion("As it was said.", (("pgd", "PGD"),), questions[:1])]
    assert answers.conclusions({"01_x": runs}, claims).verdict[0] == "holds"
    claims.append(answers.Conclusion("Another.", (("pgd", "PGD"),), questions[1:]))
    table = answers.conclusions({"01_x": runs}, claims)
    assert list(table.verdict) == ["holds, but not after Holm's correction", "cannot be told"]
    assert "but not after Holm's correction for 2 questions" in table.here[0]


def test_p_and_holm_stand_in_the_table_for_a_notebook():
    page = answers.shown({"01_shallow_cnn": {"pgd": A, "standard": B}}).to_html()
    assert page.count("&lt; 0.001") + page.count("< 0.001") >= 2
    assert "p, Holm: corrected" in page
    assert answers.p_in_table(None) == answers.p_in_table(float("nan")) == "–"
    assert [answers.p_in_table(p) for p in (0.0004, 0.03)] == ["< 0.001", "0.030"]


def test_seeds_are_paired_in_their_order_whichever_was_trained_first():
    counts = {"seed0": (260, 200), "seed1": (240, 176), "seed2": (250, 192)}
    there = {f"{run}-{seed}": scores(300, counts[seed][run == "b"]) for seed in counts for run in "ab"}
    orders = list(there), sorted(there, reverse=True), sorted(there, key=lambda name: name[::-1], reverse=True)
    told = [ask(ABOVE, **{name: there[name] for name in order}) for order in orders]
    assert told[0][0] == "yes"
    assert "3 seeds: +15.2 points [" in told[0][1]
    assert "over seeds [" in told[0][1]
    assert told[1] == told[2] == told[0]


def test_two_seeds_that_are_one_network_are_no_two_seeds():
    twins = [scores(300, 200), scores(300, 200)]
    for twin in twins:
        twin.weights = "same"
    row = answers.questions(
        {"01_x": {"a-seed0": twins[0], "a-seed1": twins[1], "b-seed0": B}}, among=[ABOVE]
    ).iloc[0]
    assert (row.answer, row.why) == ("cannot be told", "Two seeds of a are the same network.")


def test_unequal_numbers_of_seeds_tell_nothing():
    """An interval over the seeds of one alone would forget that the other has them too."""
    several = {f"a-seed{seed}": scores(300, 200 + 9 * seed) for seed in range(3)}
    row = answers.questions({"01_x": several | {"b-seed0": scores(300, 20)}}, among=[ABOVE]).iloc[0]
    assert (row.answer, row.why) == ("cannot be told", "a has 3 seeds and b 1: as many are needed.")


def test_the_whole_autoattack_is_preferred_where_both_were_run():
    def both(whole, cut):
        found = scores(300, whole)
        found.outcomes["AutoAttack"] = found.outcomes.pop("PGD-20")
        found.outcomes["AutoAttack, cut short"] = scores(300, cut).outcomes["PGD-20"]
        found.attacks = dict.fromkeys(("AutoAttack", "AutoAttack, cut short"), "AutoAttack")
        return found

    question = Question("Is a above b?", "01_x/a", "01_x/b", answers.AUTOATTACK)
    answer, why = ask(question, a=both(100, 200), b=both(20, 250))
    assert (answer, "25.0 % (a) against 5.0 % (b)" in why) == ("yes", True)
