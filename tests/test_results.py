"""The scripts of results/: pages are made from stored figures, and what they name exists."""

from __future__ import annotations

import json

import pytest
import transformers

from clipdepth_plugin import find_towers
from clipdepth_plugin.shipped import DEMO_HEAD
from tests.results_scripts import ROOT, load_script


def test_page_and_card_show_the_stored_figures() -> None:
    script = load_script("demo_head")
    stored = json.loads((ROOT / "results" / "demo_head.json").read_text(encoding="utf-8"))
    table = script.page(script.Measured.model_validate(stored))
    page = (ROOT / "results" / "demo_head.md").read_text(encoding="utf-8")
    assert page.partition("\n\n")[2] == table
    assert table.strip() in (DEMO_HEAD / "README.md").read_text(encoding="utf-8")


def test_the_page_of_heads_is_made_from_its_run_files() -> None:
    script = load_script("heads")
    page = script.HERE / "heads.md"
    if not page.exists():
        pytest.skip("not measured yet")
    runs = script.read_runs(script.HERE / "heads_runs")
    cost = script.read_cost(script.HERE / "heads_cost.json")
    assert page.read_text("utf-8") == script.to_markdown(runs, cost)


def test_the_page_of_streams_is_made_from_its_figures() -> None:
    script = load_script("streams")
    measured = script.Measured.model_validate_json(script.STORED.read_text("utf-8"))
    assert (script.HERE / "streams.md").read_text("utf-8") == script.page(measured)


def test_the_page_of_depth_tokens_is_made_from_its_figures() -> None:
    script = load_script("depth_tokens")
    measured = script.Measured.model_validate_json(script.STORED.read_text("utf-8"))
    assert (script.HERE / "depth_tokens.md").read_text("utf-8") == script.page(measured)


def test_the_page_of_distilling_is_made_from_its_figures() -> None:
    script = load_script("distilling")
    stored = script.HERE / "distilling.json"
    if not stored.exists():
        pytest.skip("not measured yet")
    measured = script.Distilled.model_validate_json(stored.read_text("utf-8"))
    assert (script.HERE / "distilling.md").read_text("utf-8") == script.page(measured)


def test_the_transformers_page_is_made_from_its_runs_and_the_listed_tests_exist() -> None:
    script = load_script("transformers_compatibility")
    stored = json.loads((script.HERE / "transformers_compatibility.json").read_text("utf-8"))
    page = (script.HERE / "transformers_compatibility.md").read_text("utf-8")
    assert page == script.as_markdown(stored)
    assert [name for name in script.TESTS if not (ROOT / name).is_file()] == []


def test_the_sweep_page_is_made_from_its_rows_and_no_map_is_wrong() -> None:
    script = load_script("host_sweep")
    stored = json.loads((script.HERE / "host_sweep.json").read_text("utf-8"))
    page = (script.HERE / "host_sweep.md").read_text("utf-8")
    assert page == script.as_markdown(stored)
    verdicts = [script.best(rows)["verdict"] for rows in stored["folders"].values()]
    assert "wrong" not in verdicts
    assert "not run" not in verdicts
    assert verdicts.count("works") >= 100


def test_the_sweep_has_the_tests_hosts_for_those_that_it_cannot_make() -> None:
    hosts, proof = load_script("host_sweep_hosts"), load_script("host_sweep_proof")
    case = hosts.of_the_tests("mllama")
    host = case.host()
    (tower,) = find_towers(host)
    assert vars(proof.prove(host, tower, case)) == {
        "verdict": "works",
        "why": "",
        "through": "tests/tiny: mllama",
    }
    assert hosts.of_the_tests("resnet") is None


def test_the_sweep_notices_maps_in_a_wrong_order() -> None:
    """Of a tower whose rule reads columns for rows."""
    hosts, proof = load_script("host_sweep_hosts"), load_script("host_sweep_proof")
    host = hosts.tiny(transformers.ViTModel)
    (tower,) = find_towers(host)
    assert proof.prove(host, tower).verdict == "works"
    right = proof.pictures
    turned = lambda grid: [x.transpose(1, 2).contiguous() for x in right(grid)]  # noqa: E731
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(proof, "pictures", turned)
        assert proof.prove(host, tower).verdict == "wrong"
