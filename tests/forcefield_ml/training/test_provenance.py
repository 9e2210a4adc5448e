"""The stages a model has gone through: told of new trainings, read off old ones as far as they tell."""

from __future__ import annotations

from forcefield_ml import pretrained
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.training.provenance import STAGE_KEYS, stages_of, with_progress


def test_shipped_models_of_former_versions_tell_their_stages() -> None:
    """Files without `stages` give what they know: the last training whole, of those before it batches and data."""
    first, last = stages_of(bundle.read_card(pretrained.path("amber14-fast"))["training"])
    assert set(first) == set(last) == set(STAGE_KEYS)
    assert first["n_batches"] == 31_673 and first["dataset_sha256"].startswith("568ef1ba") and first["seconds"] is None
    assert last["n_batches"] == 7_165 and last["optimiser"] == "soap" and last["seed"] == 2
    assert last["started_from"].startswith("2bfbc18a") and 839 < last["seconds"] < 842
    names = [data["name"] for data in last["datasets"]]
    assert names == ["dataset.h5", "v1a.h5", "v1b.h5", "v2a.h5", "v2b.h5"]
    assert all(data["content_sha256"] is None for data in last["datasets"])  # it holds the hash over all five alone
    (only,) = stages_of(bundle.read_card(pretrained.path("fast-thermal"))["training"])
    assert only["datasets"][0]["content_sha256"] == only["dataset_sha256"] and only["datasets"][0]["n_frames"] == 240
    assert only["started_from"] is None


def test_nothing_told_is_no_stage() -> None:
    """A card without training has no stages; one that has them is taken at its word."""
    assert stages_of({}) == []
    assert stages_of({"stages": [{"seed": 1}], "seed": 2}) == [{"seed": 1}]


def test_progress_is_the_last_stage_s_alone() -> None:
    """Batches and seconds go into the run and its own stage; nothing else is changed."""
    training = {"stages": [{"n_batches": 5, "seconds": 1.0}, {"n_batches": 0, "seconds": 0.0}]}
    found = with_progress(training, 7, 2.5)
    assert found == {
        "stages": [{"n_batches": 5, "seconds": 1.0}, {"n_batches": 7, "seconds": 2.5}],
        "n_batches": 7,
        "seconds": 2.5,
    }
    assert training["stages"][1] == {"n_batches": 0, "seconds": 0.0}
