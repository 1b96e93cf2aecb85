"""fit on several gloo ranks: as one process at the same global batch, and exact after a resume."""

from pathlib import Path
from typing import Any

import fit_ranks
import pytest
import torch

Seen = list[dict[str, Any]]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return fit_ranks.launch(tmp_path_factory.mktemp("ranks"))


def agree(seen: Seen, name: str) -> None:
    """Same weights and figures on all ranks; a resumed run equals the straight one."""
    for rank in seen:
        for mine, first in zip(rank[name], seen[0][name], strict=True):
            assert mine["metrics"] == first["metrics"], "also images_per_s"
            for key, value in first["weights"].items():
                assert torch.equal(value, mine["weights"][key]), key
        straight, resumed = rank[name][2:], rank[f"{name}, resumed"]
        assert len(straight) == len(resumed) > 0
        for left, right in zip(straight, resumed, strict=True):
            assert left["step"] == right["step"]
            for key, value in left["weights"].items():
                assert torch.equal(value, right["weights"][key]), (left["step"], key)
            for key, value in left["metrics"].items():
                if key != "images_per_s":
                    assert right["metrics"][key] == pytest.approx(value, rel=1e-9), key


def test_ranks_agree_and_resume_exactly(two_ranks: Seen) -> None:
    for name in ("tiles", "noisy", "boxes"):
        agree(two_ranks, name)


@pytest.mark.parametrize("name", ["tiles", "boxes"])
def test_two_ranks_follow_the_curve_of_one(two_ranks: Seen, name: str) -> None:
    start = {"tiles": fit_ranks.start_tiles, "boxes": fit_ranks.start_boxes}[name]
    single = fit_ranks.watch(start(0, 1))
    assert len(single) == len(two_ranks[0][name])
    for alone, shared in zip(single, two_ranks[0][name], strict=True):
        for key, value in alone["metrics"].items():
            if key != "images_per_s":
                assert shared["metrics"][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
        for key, value in alone["weights"].items():
            assert torch.allclose(value, shared["weights"][key], atol=1e-4), key


def test_every_rank_hears_of_one_ranks_loss_that_is_not_finite(two_ranks: Seen) -> None:
    for rank in two_ranks:
        assert "is not finite by step 5" in rank["error"]


def test_all_ranks_end_at_the_step_where_one_is_asked_to(two_ranks: Seen) -> None:
    for rank in two_ranks:
        assert rank["ended"] == [3, 4]


def test_no_rank_goes_on_alone_when_the_process_group_is_destroyed(two_ranks: Seen) -> None:
    for rank in two_ranks:
        for said in rank["lost"]:
            assert said.startswith("the process group of 2 processes is gone (1 left)"), said


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("sharded", "tiles"),
        ("whole to parts", "tiles"),
        ("parts to whole", "tiles"),
        ("sharded sgd", "whole sgd"),
        ("sharded sgd, resumed", "whole sgd"),
    ],
)
def test_a_model_in_parts_takes_the_steps_of_a_whole_one(
    two_ranks: Seen, name: str, whole: str
) -> None:
    for rank in two_ranks:
        begun = 0 if name in ("sharded", "sharded sgd") else 2  # reports before the resume
        assert len(rank[name]) == len(rank[whole]) - begun
        for parts, expected in zip(reversed(rank[name]), reversed(rank[whole]), strict=False):
            assert parts["step"] == expected["step"]
            for key, value in expected["metrics"].items():
                if key != "images_per_s":
                    assert parts["metrics"][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
            for kind in ("weights", "state"):
                first, second = expected[kind], parts[kind]
                if kind == "state":
                    first, second = first["model"], second["model"]
                for key, value in first.items():
                    assert torch.allclose(value, second[key], atol=1e-5), (kind, key)


def test_what_needs_the_whole_model_refuses_parts(two_ranks: Seen) -> None:
    for rank in two_ranks:
        average, scaled = rank["refused"]
        assert "ema_decay keeps a second model: leave shard out" in average
        assert "take bf16 or fp32" in scaled


def test_state_of_two_ranks_resumes_in_one_process(two_ranks: Seen) -> None:
    state = two_ranks[0]["tiles"][1]["state"]
    alone = fit_ranks.watch(fit_ranks.start_tiles(0, 1, state))[-1]
    shared = two_ranks[0]["tiles"][-1]
    for key, value in alone["weights"].items():
        assert torch.allclose(value, shared["weights"][key], atol=1e-4), key
    assert alone["metrics"]["train/loss"] == pytest.approx(
        shared["metrics"]["train/loss"], rel=1e-4
    )


def test_figures_of_an_epoch_that_two_ranks_began_and_one_ends_weigh_each_batch_alike(
    two_ranks: Seen,
) -> None:
    within, end = two_ranks[0]["tiles"][:2]
    alone = next(iter(fit_ranks.watch(fit_ranks.start_tiles(0, 1, within["state"]))))
    assert (within["step"], alone["step"], end["step"]) == (3, 5, 5)
    assert alone["metrics"]["train/loss"] == pytest.approx(end["metrics"]["train/loss"], rel=1e-5)


def test_ddp_and_our_own_averaging_take_the_same_steps(two_ranks: Seen) -> None:
    for rank in two_ranks:
        for key, value in rank["averaged"].items():
            assert torch.allclose(value, rank["ddp"][key], atol=1e-6), key
            assert torch.equal(value, two_ranks[0]["averaged"][key]), key


@pytest.mark.slow
def test_four_ranks_resume_exactly(tmp_path: Path) -> None:
    seen = fit_ranks.launch(tmp_path, world_size=4)
    for name in ("tiles", "noisy", "boxes"):
        agree(seen, name)
