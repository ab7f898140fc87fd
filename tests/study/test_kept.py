"""What is kept of a study."""

from storage.atomic_files import read_json
from study import figures, kept


def test_what_is_kept_for_readers(study, tmp_path):
    session, _, _, scores = study
    folder = session.runs.parent
    figures.save(figures.plot_scores(scores), session, "scores")
    (folder / "command.txt").write_text("python -m study\n")
    kept.keep(folder, tmp_path / "expected")
    there = {str(path.relative_to(tmp_path / "expected")) for path in (tmp_path / "expected").rglob("*.*")}
    assert {"scores.csv", "provenance.json", f"{session.experiment}/figures/scores.png"} <= there
    assert not [name for name in there if name.endswith((".safetensors", ".pt", ".pdf"))]
    provenance = read_json(tmp_path / "expected" / "provenance.json")
    assert provenance["commands"] == ["python -m study"]
    assert [group["runs"] for group in provenance["environments"]] == [2]
