"""The command that regenerates all results: what it runs, keeps, skips and says."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bundle.evaluation import RowStore


@pytest.fixture
def make_results():
    import make_results

    return make_results


@pytest.fixture
def stamps(tmp_path):
    return RowStore(tmp_path / "parts.jsonl")


@pytest.fixture
def args():
    return argparse.Namespace(fresh=False, quick=True)


def part(make_results, code="", **more):
    return make_results.Part("a", "a part", "docs/a.md", [["-c", code]], **more)


def test_a_part_that_keeps_nothing_itself_runs_once(make_results, stamps, args, tmp_path):
    mark = tmp_path / "runs"
    once = part(make_results, f"open({str(mark)!r}, 'a').write('x')", resumes=False)
    states = [make_results.run_part(once, args, stamps).state for _ in range(2)]
    assert states == ["done", "kept"] and mark.read_text() == "x"
    args.fresh = True
    assert make_results.run_part(once, args, stamps).state == "done"


def test_a_changed_input_is_measured_again(make_results, stamps, args, tmp_path):
    source = tmp_path / "weights"
    states = []
    for content in ("old", "old", "new"):
        source.write_text(content)
        states.append(make_results.run_part(part(make_results, resumes=False, inputs=[source]), args, stamps).state)
    assert states == ["done", "kept", "done"]


def test_a_part_that_fails_says_so_and_is_tried_again(make_results, stamps, args):
    broken = part(make_results, "raise SystemExit(3)", resumes=False)
    for _ in range(2):
        outcome = make_results.run_part(broken, args, stamps)
        assert (outcome.state, outcome.note) == ("failed", "exit status 3")


def test_a_missing_script_is_skipped_with_its_name(make_results, stamps, args):
    missing = make_results.Part("a", "a part", "docs/a.md", [[str(make_results.SCRIPTS / "no.py")]])
    outcome = make_results.run_part(missing, args, stamps)
    assert (outcome.state, outcome.note) == ("skipped", "scripts/no.py does not exist")


def given(**more):
    folders = dict.fromkeys(("dataset_dir", "development_dir", "measured_dir"))
    nowhere = dict.fromkeys(("trained_dir", "training_dir", "store"), Path("/nowhere"))
    chosen = {"weights": Path("model.pt"), "development_exclude": [], "adjacent": None}
    settings = {**folders, **nowhere, **chosen, "quick": False, "fresh": False}
    return argparse.Namespace(**{**settings, **more})


def test_without_data_every_part_that_needs_them_says_what_it_lacks(make_results):
    reasons = {part.name: part.skipped for part in make_results.find_parts(given())}
    assert reasons["quality"] == reasons["profile"] == "no --dataset_dir was given"
    assert reasons["tuning"] == "no --development_dir was given"
    assert reasons["stacks"] == "no --dataset_dir was given"
    assert reasons["measured"] == "no --measured_dir was given"
    assert reasons["operators"] is None


def test_slices_count_as_neighbours_only_where_someone_says_so(make_results, tmp_path):
    def stacks(**more):
        return next(
            part for part in make_results.find_parts(given(dataset_dir=tmp_path, **more)) if part.name == "stacks"
        )

    assert stacks().skipped == "no --adjacent names patients with slices side by side"
    said = stacks(adjacent=["ada", "b*"])
    assert said.skipped is None
    assert " --adjacent ada b* --" in " ".join(said.commands[0])


def test_a_quick_run_writes_nothing_into_the_documents(make_results, tmp_path):
    (tmp_path / "htc2022_ta_full.mat").write_bytes(b"")
    (tmp_path / "htc2022_ta_seg.mat").write_bytes(b"")
    parts = make_results.find_parts(given(dataset_dir=tmp_path, measured_dir=tmp_path, quick=True))
    words = [word for part in parts if part.skipped is None for command in part.commands for word in command]
    targets = [str(target) for part in parts for _, target in part.copies]
    assert not [word for word in [*words, *targets] if str(make_results.DOCS) in word]
    assert "--write" not in words and "--page" not in words


def test_the_index_links_what_is_there_and_names_what_is_missing(make_results, stamps):
    Outcome = make_results.Outcome
    there = make_results.Part("a", "method", "docs/method.md")
    absent = make_results.Part("b", "none", "docs/none.md")
    text = make_results.index([Outcome(there, "done"), Outcome(absent, "skipped", "no data")], stamps)
    assert "[docs/method.md](../../docs/method.md)" in text
    assert "skipped: no data" in text and "(../../docs/none.md)" not in text
