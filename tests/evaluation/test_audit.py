"""audit(): what it measures and finds, and how little the checks of test() cost."""

import importlib
import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from small import Quarters, late, small_network
from torch.nn.functional import cross_entropy

from attacks import APGD, FGSM, NIFGSM, PGD, VMIFGSM, AutoAttack, Noise, Square, Torchattacks
from attacks.base import whole_range
from evaluation import testing
from evaluation.audit import Audit, audit
from evaluation.finding import ATTACKED, CLEAN, Finding
from evaluation.per_example import Extent, predict
from evaluation.scores import Scores
from loaders import Split
from models.model import Wrapped
from study import tables

module = importlib.import_module("evaluation.audit")  # by its name the wing hands on the function
CUT = {"steps": 5, "queries": 50, "targets": 2}


@pytest.mark.parametrize("name", ["standard", "pgd"])
@pytest.mark.parametrize(
    "attack",
    [PGD(), NIFGSM(), APGD(steps=20), late(PGD(norm="L2", eps=0.2)), late(AutoAttack(norm="L2", eps=0.2, **CUT))],
    ids=str,
)
def test_sound_models_are_not_accused(name, attack, sound, blobs):
    audited = audit(sound[name], blobs.test, attack, surrogates={"other": sound["standard"]}, progress=False)
    assert [finding for finding in audited.findings if finding.severity == "invalid"] == []
    assert len(audited.findings) <= 1


def test_an_audit_says_what_it_measured(sound, blobs):
    audited = audit(sound["pgd"], blobs.test, PGD(), surrogates={"its twin": sound["standard"]}, progress=False)
    rows = set(audited.table().index)
    assert {CLEAN, "PGD-10", "FGSM", "50 steps", "5 restarts", "noise", "Square-1000"} <= rows
    assert {"carried from its twin", "ε = 4/255", "ε = 16/255", "ε = 64/255", "ε = 255/255"} <= rows
    assert audited.share("ε = 255/255") == 0
    assert audited.share("noise") == audited.share("PGD-10")  # it fools nothing that PGD does not
    assert {"logits × 0.01", "logits × 100"} <= rows
    tested = testing.test(sound["pgd"], blobs.test, [PGD()], progress=False)
    assert audited.share("PGD-10") == pytest.approx(tested.robust_accuracy(), abs=0.02)
    assert "audit of PGD(ε=8/255, α=2/255, 10 steps), blobs test, n = 128" in str(audited)


def test_its_number_is_the_attacks_and_what_was_not_tried_again_has_no_interval(sound, blobs):
    audited = audit(sound["pgd"], blobs.test, PGD(), progress=False)
    assert audited.robust_accuracy() == audited.share("PGD-10") > 0
    table, tried = audited.table(), audited.again["Square-1000"]
    assert tried < audited.n
    assert table.n["Square-1000"] == tried
    assert math.isnan(table.low["Square-1000"])
    assert table.low["PGD-10"] > 0
    assert f"upper bound: {tried} tried again" in str(audited)


def test_an_audit_leaves_the_model_as_it_was(sound, blobs):
    model = deepcopy(sound["pgd"]).train()  # a copy: other tests share the network, and its mode
    before = {name: value.clone() for name, value in model.state_dict().items()}
    audit(model, blobs.test.first(32), PGD(steps=2), progress=False)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def kept(folder, model, split, weights, attack, findings, epoch="last"):
    """Scores under PGD-10 in a run's folder, and an audit of `attack` on `weights` beside them."""
    folder.mkdir()
    testing.test(model, split, [FGSM(), PGD()], progress=False).save(folder, epoch)
    outcomes = {CLEAN: torch.ones(3) > 0, attack.label: torch.ones(3) > 0}
    audited = Audit(split.name, outcomes, {attack.label: repr(attack)}, findings=findings)
    audited.weights = testing.fingerprint(weights)
    audited.save(folder)


def test_the_findings_join_the_scores_that_they_concern(sound, blobs, tmp_path):
    model, split = sound["pgd"], blobs.test
    found = [Finding("collapse", "invalid", 1, 0, "planted", ("PGD-10",))]
    kept(tmp_path / "same", model, split, model, PGD(), found)
    kept(tmp_path / "best", model, split, model, PGD(), found, "best")
    kept(tmp_path / "weights", model, split, sound["standard"], PGD(), found)
    kept(tmp_path / "settings", model, split, model, PGD(step_size=1 / 255), found)
    everywhere = [Finding("masked gradient", "invalid", 1, 0, "planted", ATTACKED)]
    kept(tmp_path / "everywhere", model, split, model, PGD(step_size=1 / 255), everywhere)
    loaded = tables.load_scores(tmp_path)
    verdicts = {name: list(score.table().verdict == "invalid") for name, score in loaded.items()}
    assert verdicts["same"] == verdicts["best, best"] == [False, False, True, False]
    assert verdicts["weights"] == verdicts["settings"] == [False] * 4
    assert verdicts["everywhere"] == [False, True, True, True]
    (path,) = (tmp_path / "best").glob("audit-*.json")
    assert path.name == "audit-PGD-ε-8_255-α-2_255-10-steps.json"
    assert Scores.read(path).share("PGD-10") == 1


def test_rows_of_an_audit_that_are_not_in_doubt_have_no_verdict():
    audited = Audit("x", {CLEAN: torch.ones(3) > 0, "PGD-10": torch.ones(3) > 0, "noise": torch.ones(3) > 0})
    audited.attacks = {"PGD-10": "PGD"}
    audited.findings = [Finding("masked gradient", "invalid", 1, 0, "planted", ATTACKED)]
    assert list(audited.table().verdict) == ["no finding", "invalid", "–"]
    assert audited.verdict() == "invalid"


@pytest.mark.parametrize(
    "attack", [FGSM(), AutoAttack(steps=5, queries=20, targets=2), Torchattacks("PGD")], ids=str
)
def test_other_attacks_can_be_audited(attack, sound, blobs):
    audited = audit(sound["pgd"], blobs.test.first(40), attack, progress=False)
    assert audited.verdict() != "invalid"


@pytest.mark.parametrize(
    ("attack", "ours"),
    [(Torchattacks("FGSM"), "FGSM(ε=8/255)"), (Noise(draws=1), "Noise(ε=8/255)")],
    ids=["FGSM", "noise"],
)
def test_the_attack_in_doubt_keeps_its_row_beside_one_of_its_name(attack, ours, sound, blobs):
    few = blobs.test.first(20)
    audited = audit(sound["standard"], few, attack, progress=False)
    alone = testing.test(sound["standard"], few, [attack], progress=False)
    assert torch.equal(audited.outcomes[attack.label], alone.outcomes[attack.label])
    assert ours in audited.outcomes
    assert audited.attacks == {attack.label: repr(attack)}


def test_no_eps_no_audit(sound, blobs):
    with pytest.raises(ValueError, match="no ε to vary"):
        audit(sound["pgd"], blobs.test, PGD(eps=0))
    with pytest.raises(TypeError, match="'pgd' is no attack"):
        audit(sound["pgd"], blobs.test, "pgd")
    with pytest.raises(TypeError, match="a dictionary"):
        audit(sound["pgd"], blobs.test, surrogates=sound["standard"])
    with pytest.raises(ValueError, match="built for another data set"):
        audit(small_network(classes=3), blobs.test)
    with pytest.raises(ValueError, match="norm='L1'"):
        audit(sound["pgd"], blobs.test, Torchattacks("FAB", norm="L1"))
    with pytest.raises(ValueError, match="no ε to scale"):
        audit(sound["pgd"], blobs.test, Torchattacks("CW"))


def test_a_model_that_is_always_wrong_is_no_error(blobs):
    model = small_network()
    with torch.no_grad():
        model[-1].bias[0] = 1e6
    audited = audit(model, blobs.test.first(20), progress=False)
    assert audited.verdict() == "invalid"


def test_the_checks_of_test_cost_little(sound, blobs, monkeypatch):
    """Counted in pictures that pass the network, which is what takes the time."""
    passed = {"all": 0, "checks": 0}
    real = testing.examine

    def examine(*arguments):
        before = passed["all"]
        found = real(*arguments)
        passed["checks"] += passed["all"] - before
        return found

    monkeypatch.setattr(testing, "examine", examine)
    model = sound["pgd"]
    hook = model.register_forward_hook(lambda _, inputs, out: passed.update(all=passed["all"] + len(inputs[0])))
    for attacks in ([FGSM()], [PGD()], [FGSM(), PGD(steps=20), NIFGSM(), VMIFGSM()]):
        passed.update(all=0, checks=0)
        testing.test(model, blobs.test, attacks, progress=False)
        assert passed["checks"] < 0.3 * passed["all"]  # few pictures here; 0.15 of those of a real test
    hook.remove()


# --- what exactly is measured, and what is made of it: with outcomes that are planted -----------------


class Right(torch.nn.Module):
    """Right on the first `share` of 100 pictures, whose first pixel says which they are and which class."""

    def __init__(self, share=1.0):
        super().__init__()
        self.share = share

    def forward(self, images):
        value = (255 * images[:, 0, 0, 0]).round()
        label, number = value.long() % 2, value.long()
        label = torch.where(number < 100 * self.share, label, 1 - label)
        logits = torch.nn.functional.one_hot(label, 2).to(images)
        # The higher the number, the nearer it is to being wrong.
        return (3 - value[:, None] / 100) * logits - 1 + images.flatten(1)[:, 1:3]


@pytest.fixture
def hundred():
    images = torch.zeros(100, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(100)
    return Split(images, torch.arange(100) % 2, ["even", "odd"], "hundred")


@pytest.fixture
def planted(monkeypatch):
    """attacked() answers from {what an attack prints: the share that withstands}; what was asked is noted."""
    shares, asked = {}, []

    def attacked(source, victim, split, attack, indices, seed, bar=None, kept=None):
        asked.append((repr(attack), source is victim))
        share = shares[repr(attack)] if repr(attack) in shares else shares["else"]
        stood = indices < round(share * len(split))
        return stood, Extent(attack.eps, 0.0, 1.0, 0, 0, 0.1)

    monkeypatch.setattr(module, "attacked", attacked)
    monkeypatch.setattr(module.checks, "masked_gradient", lambda *_, **__: None)
    return shares, asked


def common(eps=8 / 255):
    """What stands beside every attack: noise and Square, and the grid to its ends."""
    return [repr(Noise(eps=eps)), repr(Square(eps=eps, queries=1000))]


def grid(attack, *sizes):
    return [repr(attack.scaled(size / attack.eps)) for size in sizes]


BEYOND = (4 / 255, 16 / 255, 64 / 255, 1.0)


@pytest.mark.parametrize(
    ("attack", "more"),
    [
        (PGD(steps=20), [PGD(steps=100), PGD(steps=20, restarts=5)]),
        (PGD(steps=4, restarts=3), [PGD(steps=20, restarts=3), PGD(steps=4, restarts=15)]),
        (PGD(steps=4, random_start=False), [PGD(steps=20, random_start=False)]),
        (NIFGSM(steps=5), [NIFGSM(steps=25)]),
        (APGD(steps=5), []),
        (FGSM(), [PGD()]),
    ],
    ids=str,
)
def test_exactly_what_an_audit_runs(attack, more, planted, hundred):
    shares, asked = planted
    shares["else"] = 0.0
    audited = audit(Right(), hundred, attack, surrogates={"another": Right(0.9)}, progress=False)
    single = [] if type(attack) is FGSM else [repr(FGSM())]
    expected = [
        repr(attack),
        *single,
        *map(repr, more),
        repr(attack),  # twice, on scaled logits
        repr(attack),
        *common(),
        repr(PGD(step_size=2 / 255)),
        *grid(attack, *BEYOND),
    ]
    assert [name for name, _ in asked] == expected
    assert [name for name, white in asked if not white] == [repr(attack)] * 2 + [repr(PGD(step_size=2 / 255))]
    assert "carried from another" in audited.outcomes
    names = set(audited.outcomes)
    for other in more:
        if other != PGD():
            longer = other.steps != attack.steps
            assert (f"{other.steps} steps" if longer else f"{other.restarts} restarts") in names


def test_the_dear_attacks_get_the_nearest_of_what_stands(planted, hundred):
    """An eighth of 100 pictures, the last of those that withstand; what they leave counts beside the attack."""
    shares, _ = planted
    shares.update(HEALTHY | {repr(Square(queries=1000)): 0.4})
    auditor = module._Auditor(Right(), hundred, PGD(), 0, False)
    audited = auditor.run({})
    assert auditor.nearest.tolist() == list(range(38, 50))
    assert (audited.share("PGD-10"), audited.share("Square-1000")) == (0.5, 0.4)


@pytest.mark.parametrize("name", ["noise", "square"])
def test_a_blind_attack_is_not_held_against_itself(name, planted, hundred):
    shares, asked = planted
    shares["else"] = 0.0
    attack = {"noise": Noise(), "square": Square(queries=1000)}[name]
    audit(Right(), hundred, attack, progress=False)
    assert [asked_for for asked_for, _ in asked].count(repr(attack)) == 1


def healthy(pgd, ball, beyond):
    """What an audit of `pgd` measures of a sound network, by what the attacks print."""
    return {
        repr(pgd): 0.5,
        repr(FGSM(**ball)): 0.55,
        repr(replace(pgd, steps=50)): 0.49,
        repr(replace(pgd, restarts=5)): 0.495,
        repr(Noise(**ball)): 0.97,
        repr(Square(**ball, queries=1000)): 0.6,
        repr(replace(pgd, step_size=pgd.eps / 4)): 0.5,
        **dict(zip(grid(pgd, *beyond), (0.7, 0.3, 0.1, 0.0), strict=True)),
    }


def wrong(pgd, ball, beyond):
    """What differs where something is wrong, and the severity, by the name of the check."""
    return {
        "more steps": (repr(replace(pgd, steps=50)), 0.40, "suspect"),
        "restarts": (repr(replace(pgd, restarts=5)), 0.45, "suspect"),
        "black box wins": (repr(Noise(**ball)), 0.4, "suspect"),
        "black box wins, Square": (repr(Square(**ball, queries=1000)), 0.4, "suspect"),
        "collapse": (grid(pgd, beyond[3])[0], 0.1, "invalid"),
        "collapse, at chance": (grid(pgd, beyond[2])[0], 0.55, "invalid"),
        "monotone in ε": (grid(pgd, beyond[1])[0], 0.6, "suspect"),
        "attack order": (repr(FGSM(**ball)), 0.4, "suspect"),
        "catastrophic overfitting": (repr(FGSM(**ball)), 0.9, "invalid"),
    }


HEALTHY = healthy(PGD(), {}, BEYOND)
WRONG = wrong(PGD(), {}, BEYOND)


def test_where_nothing_is_wrong_nothing_is_found(planted, hundred):
    planted[0].update(HEALTHY)
    assert audit(Right(), hundred, PGD(), progress=False).findings == []


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name, planted, hundred):
    attack, share, severity = WRONG[name]
    planted[0].update(HEALTHY | {attack: share})
    found = audit(Right(), hundred, PGD(), progress=False).findings
    there = {finding.check: finding.severity for finding in found}
    assert there[name.partition(",")[0]] == severity, there


@pytest.mark.parametrize("name", [name for name in WRONG if name != "catastrophic overfitting"])
def test_what_is_wrong_is_found_in_l2(name, planted, hundred):
    whole = whole_range("L2", hundred.images)
    setting = PGD(norm="L2"), {"norm": "L2"}, (0.25, 1.0, 64 / 255 * whole, whole)
    planted[0].update(healthy(*setting))
    audited = audit(Right(), hundred, setting[0], progress=False)
    assert audited.findings == []
    assert {"ε = 0.25", "ε = 1", f"ε = {whole:.4g}"} <= set(audited.outcomes)
    attack, share, severity = wrong(*setting)[name]
    planted[0].update({attack: share})
    there = {f.check: f.severity for f in audit(Right(), hundred, setting[0], progress=False).findings}
    assert there[name.partition(",")[0]] == severity, there


def test_a_carried_attack_that_wins_is_found_by_its_name(planted, hundred):
    planted[0].update(HEALTHY)
    # The carried attack prints itself as PGD() does, so the second call of the two is told by its number.
    real, calls = module.attacked, []

    def once_weaker(source, victim, *rest, **named):
        stood, extent = real(source, victim, *rest, **named)
        own = source is victim or isinstance(source, Wrapped)
        calls.append(own)
        return (stood, extent) if own else (stood & (torch.arange(len(stood)) < 30), extent)

    module.attacked = once_weaker
    try:
        audited = audit(Right(), hundred, PGD(), surrogates={"my twin": Right(0.9)}, progress=False)
    finally:
        module.attacked = real
    (finding,) = audited.findings
    assert finding.check == "black box wins"
    assert "carried from my twin leaves 20.0 points less than PGD-10" in finding.message
    assert calls.count(False) == 1
    assert audited.attacks == {"PGD-10": repr(PGD())}


def test_fgsm_alone_is_held_against_pgd(planted, hundred):
    far = dict(zip(grid(FGSM(), *BEYOND), (0.95, 0.5, 0.3, 0.2), strict=True))  # a single step may fail far out
    planted[0].update(HEALTHY | far | {repr(FGSM()): 0.62, repr(Square(queries=1000)): 0.65})
    (finding,) = audit(Right(), hundred, FGSM(), progress=False).findings
    assert finding.check == "more steps"
    assert "PGD-10 leaves 12.0 points less than FGSM, over 2.5: a single step is not an attack" in finding.message
    planted[0].update({repr(FGSM()): 0.9, repr(Square(queries=1000)): 0.95})
    checks = {f.check for f in audit(Right(), hundred, FGSM(), progress=False).findings}
    assert checks == {"more steps", "catastrophic overfitting"}


def test_the_growth_of_the_loss_is_that_of_what_stands(hundred):
    """By hand: mean loss of the standing examples now, minus theirs ten steps before, less two standard
    errors; 0 where hardly any stand."""
    auditor = module._Auditor(Right(), hundred, PGD(steps=20), 0, False)
    images, labels = hundred.batch(torch.arange(100))
    later, earlier = images.clone(), images.clone()
    later[:, 0, 0, 1], later[:, 0, 0, 2] = 0.5 * (labels == 1), 0.5 * (labels == 0)  # towards the other class
    logits = Right()(later)
    now, before = (cross_entropy(some, labels, reduction="none") for some in (logits, Right()(earlier)))
    growth = now.mean() - before.mean() - 2 * (now - before).std(correction=0) / 10
    assert growth > 0.01
    assert auditor._gain(earlier, logits, labels) == pytest.approx(growth.item(), rel=1e-4)
    for standing, counts in ((4, False), (5, True)):
        flipped = logits.clone()
        flipped[standing:] = flipped[standing:].flip(1)
        gain = auditor._gain(earlier, flipped, labels)
        assert (gain != 0) == counts


@pytest.mark.parametrize(
    ("count", "attacks", "looked_at"),
    [
        (100, [PGD(steps=10)], 15),  # 100 · (1 + 30) passes, of which one in 200
        (100, [PGD(steps=10), FGSM()], 17),
        (40, [FGSM()], 2),
        (1, [FGSM()], 1),
        (100, [PGD(steps=100)], 64),
        (30, [PGD(steps=100)], 30),
    ],
)
def test_how_many_pictures_the_cheap_checks_look_at(count, attacks, looked_at, hundred, monkeypatch):
    seen = []
    monkeypatch.setattr(module.checks, "masked_gradient", lambda model, images, *_: seen.append(len(images)))
    split = hundred.first(count)
    named = {attack.label: attack for attack in attacks}
    outcomes = {label: torch.ones(count, dtype=torch.bool) for label in (CLEAN, *named)}
    extents = {label: Extent(attack.eps, 0.0, 1.0, 0, 0, 0.0) for label, attack in named.items()}
    module.examine(Right(), split, predict(Right(), split), Scores("x", outcomes), named, extents)
    assert seen == [looked_at]


def compared(**shares):
    """Findings of _compared for attacks, by what they print, and the shares that they leave of 100."""
    attacks = {label: attack for label, (attack, _) in shares.items()}
    outcomes = {CLEAN: torch.ones(100, dtype=torch.bool)}
    outcomes |= {label: torch.arange(100) < count for label, (_, count) in shares.items()}
    return {f.check: f for f in module._compared(attacks, Scores("x", outcomes, {a: a for a in attacks})) if f}


AA = AutoAttack(steps=5, queries=20)


def test_what_stands_beside_one_another_is_compared():
    assert compared(weak=(PGD(), 50), strong=(AA, 45)) == {}
    gap = compared(weak=(PGD(), 50), strong=(AA, 40))["AutoAttack gap"]
    assert gap.rows == ("weak",)
    assert gap.measured == pytest.approx(10)
    for other in (PGD(norm="L2", eps=8 / 255), PGD(eps=4 / 255), PGD(restarts=2), NIFGSM()):
        assert "AutoAttack gap" not in compared(weak=(other, 50), strong=(AA, 40))
    in_l2 = AutoAttack(norm="L2", steps=5, queries=20)
    assert "AutoAttack gap" in compared(weak=(PGD(norm="L2"), 50), strong=(in_l2, 40))
    assert "AutoAttack gap" not in compared(weak=(PGD(), 50), strong=(in_l2, 40))
    assert "AutoAttack gap" not in compared(weak=(PGD(), 50), strong=(PGD(restarts=9), 40))
    steps = compared(few=(PGD(steps=10), 50), many=(PGD(steps=50), 46))["more steps"]
    assert steps.rows == ("few",)
    assert "many leaves 4.0 points less than few" in steps.message
    assert "more steps" not in compared(few=(PGD(steps=10), 46), many=(PGD(steps=50), 50))
    for other in (
        PGD(steps=50, eps=4 / 255),
        PGD(steps=50, norm="L2", eps=8 / 255),
        PGD(steps=10, step_size=0.01),
    ):
        assert "more steps" not in compared(few=(PGD(steps=10), 50), other=(other, 46))

    order = "attack order"
    assert compared(one=(FGSM(), 40), many=(PGD(), 50))[order].rows == ("one", "many")
    for other in (FGSM(eps=1 / 255), FGSM(norm="L2", eps=8 / 255)):
        assert order not in compared(one=(other, 40), many=(PGD(), 50))


def test_blind_attacks_and_autoattack_have_their_place():
    lost = compared(pgd=(PGD(), 50), noise=(Noise(), 45))["black box wins"]
    assert lost.rows == ("pgd",)
    assert list(compared(pgd=(PGD(), 50), noise=(Noise(eps=16 / 255), 45))) == ["one ball"]  # at another ε it may
    assert compared(pgd=(PGD(), 50), noise=(Noise(), 90)) == {}
    beaten = compared(pgd=(PGD(), 40), best=(AA, 50))["black box wins"]
    assert beaten.rows == ("best",)
    two = compared(weak=(PGD(steps=5), 60), strong=(PGD(steps=6), 59), square=(Square(), 55))["black box wins"]
    assert two.rows == ("strong",)  # the strongest white box is what a blind attack may not beat
    assert compared(noise=(Noise(), 45)) == {}
    assert list(compared(pgd=(PGD(norm="L2"), 50), noise=(Noise(eps=0.5), 45))) == ["one ball"]
    both = {"one": (PGD(norm="L2"), 50), "other": (PGD(), 10), "noise": (Noise(norm="L2"), 45)}
    assert compared(**both)["black box wins"].rows == ("one",)


def test_attacks_that_agree_too_well_are_suspect_only_where_one_takes_a_single_step():
    alike = {"fgsm": (FGSM(), 50), "pgd": (PGD(), 50), "ni": (NIFGSM(), 50)}
    assert "attacks alike" in compared(**alike)
    assert "attacks alike" not in compared(**(alike | {"fgsm": (PGD(steps=1), 50)}))
    assert "attacks alike" not in compared(**(alike | {"ni": (NIFGSM(eps=4 / 255), 50)}))
    assert "attacks alike" not in compared(**(alike | {"fgsm": (FGSM(), 56)}))


def test_the_pictures_of_an_audit_are_those_that_it_gets_right(hundred, monkeypatch):
    """At most 32 of them; at ε = 0 four; and of the last ten steps the difference."""
    seen = []

    class Noted(PGD):
        def craft(self, model, images, labels, generator, targeted=False):
            seen.append((self.eps, self.steps, len(images)))
            return images

    auditor = module._Auditor(Right(0.3), hundred, Noted(steps=20), 0, False)
    auditor._pictures(auditor.attack)
    assert seen == [(0.0, 20, 4), (8 / 255, 20, 30), (8 / 255, 10, 30)]
    seen.clear()
    auditor.attack = replace(auditor.attack, steps=19)
    auditor._pictures(auditor.attack)
    assert len(seen) == 2


def test_attacks_agree_on_a_linear_network(sound, blobs):
    """One step does there what many do. Where the examples are another model's, that they agree is still found."""
    one, several, third = FGSM(eps=4 / 255), PGD(eps=4 / 255), NIFGSM(eps=4 / 255)
    linear = testing.test(Quarters(), blobs.test, [one, several, third], progress=False)
    shares = [linear.share(label) for label in linear.attacks]
    assert max(shares) - min(shares) < 0.01
    assert 0.02 < min(shares) < linear.clean_accuracy - 0.03
    assert linear.findings == []

    def elsewhere(kind):
        """An attack that holds a model of its own, as none of ours can."""

        def craft(self, model, images, labels, generator, targeted=False):
            return FGSM.craft(FGSM(eps=self.eps), other, images, labels, generator)

        return type(kind.__name__, (kind,), {"craft": craft})(eps=12 / 255)

    other = Quarters()
    stale = testing.test(sound["pgd"], blobs.test, [*map(elsewhere, (FGSM, PGD, NIFGSM))], progress=False)
    assert "attacks alike" in {finding.check for finding in stale.findings}


@pytest.mark.parametrize(
    ("attack", "shape", "found"),
    [
        (PGD(norm="L2", eps=8 / 255), (3, 32, 32), True),
        (FGSM(norm="L2", eps=16 / 255), (3, 32, 32), True),
        (Square(norm="L2", eps=8 / 255), (1, 28, 28), True),
        (PGD(norm="L2", eps=4 / 255), (3, 224, 224), True),
        (Torchattacks("AutoAttack", norm="L2"), (3, 32, 32), True),
        (PGD(eps=0.5), (3, 32, 32), True),
        (APGD(eps=0.75), (3, 224, 224), True),
        *((PGD(eps=eps / 255), (3, 32, 32), False) for eps in (0.5, 1, 8, 16, 32, 64, 255)),
        (PGD(eps=0.3), (1, 28, 28), False),  # as for MNIST
        *((PGD(norm="L2", eps=eps), (3, 32, 32), False) for eps in (36 / 255, 0.25, 0.5, 3, 55)),
        *((PGD(norm="L2", eps=eps), (3, 224, 224), False) for eps in (0.5, 1, 3)),
        (FGSM(norm="L2", eps=0), (3, 32, 32), False),
        (Torchattacks("CW"), (3, 32, 32), False),
    ],
    ids=str,
)
def test_an_eps_of_the_other_norm_is_suspect(attack, shape, found):
    finding = module.size_of_eps("x", attack, torch.zeros(2, *shape))
    assert bool(finding) == found
    if found:
        assert (finding.severity, finding.rows) == ("suspect", ("x",))
        assert "a size of" in finding.message


def test_the_size_of_eps_is_looked_at_by_test(sound, blobs):
    scores = testing.test(sound["pgd"], blobs.test.first(8), [PGD(norm="L2", eps=2 / 255)], progress=False)
    assert "size of ε" in {finding.check for finding in scores.findings}


def test_an_audit_has_a_row_of_the_expected_robustness(tmp_path):
    """Half of the way with the mean of clean and half, the other half with that of half and all."""
    counts = {CLEAN: 80, "PGD-10": 20, "ε = 4/255": 60, "ε = 16/255": 0, "noise": 79}
    outcomes = {label: torch.arange(100) < count for label, count in counts.items()}
    audited = Audit("x", outcomes, {"PGD-10": repr(PGD())})
    assert list(audited.table().index) == list(counts)
    audited.curve = {8 / 255: 0.2, 4 / 255: 0.6, 16 / 255: 0.0}
    row = audited.table().loc["expected robustness"]
    assert row.accuracy == pytest.approx((80 + 60) / 4 + (60 + 20) / 4)
    assert row.low < row.accuracy < row.high
    assert row.verdict == "no finding"
    audited.findings = [Finding("masked gradient", "invalid", 1, 0, "planted", ATTACKED)]
    assert audited.table().verdict["expected robustness"] == "invalid"
    audited.save(tmp_path)
    (path,) = tmp_path.glob("*.json")
    assert set(Audit.read(path).outcomes) == set(counts)  # it is computed, not stored
