from data_prep.files import write_json
from orchestrator.run.audit_only import lines
from orchestrator.store.run_dir import RunPaths

FACTS = {"n_photos": 10, "n_usable": 9, "n_groups": 4, "n_test": 2, "warnings": [], "probe": None}


def test_an_audit_prints_its_findings_and_what_to_do(tmp_path):
    finding = {"kind": "leak", "what": "people stand on both sides", "n": 3, "do": "split by group"}
    score = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    probe = {"labels": {"mask": {"macro_f1": score, "rim": score, "chance": {"estimate": 0.25}}}}
    paths = RunPaths(tmp_path)
    write_json(paths.audit, FACTS | {"warnings": [finding], "probe": probe})
    assert lines(paths) == [
        "10 photos, 9 usable, 4 groups, 2 for the test",
        "1. people stand on both sides (3)",
        "   do: split by group",
        "probe mask: macro F1 0.500 (0.400-0.600), rim alone 0.500, chance 0.250",
    ]
    write_json(paths.audit, FACTS)
    assert lines(paths)[1:] == ["no warnings"]
