"""What a search says without Ray: objectives, the choice, the front, contests, the page."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import segcore
from pipelines import tune
from pipelines.cluster import places
from pipelines.cluster.session import Resources
from pipelines.cluster.trial_facts import COMPLETED, FAILED, PRUNED, RECORDS, Trial, trial_params
from pipelines.errors import ClusterError
from pipelines.params import Params
from pipelines.params.tune import SEED, Objective
from pipelines.scoring.records import record_schema
from pipelines.searching import report
from pipelines.searching.choose import choose, front
from pipelines.searching.contest import Contest, contests
from pipelines.searching.importance import importances
from pipelines.searching.worker import trial_worker
from pipelines.training.build import with_goal
from segcore.errors import OptionError
from segcore.tasks import get_kind

ROOT = Path(__file__).parents[2]
SETTLED = {
    "data.name": "painted",
    "model.name": "unet",
    "model.options": {"base_channels": 4, "norm": "batch"},
    "loss.name": "cross_entropy",
    "loss.class_weights": "none",
    "train.budget_minutes": 1.0,
    "train.epochs": 9,
    "train.max_minutes": None,
    "train.epoch_steps": 2,
    "train.refit": False,
    "train.batch_size": 4,
    "train.lr": 0.002,
    "train.precision": "fp32",
    "train.augment.crop": None,
    "train.progressive": 0.0,
    "train.augment.class_crops": 0.0,
    "train.augment.vflip": 0.0,
    "train.augment.rot90": 0.0,
    "train.augment.scale": [1.0, 1.0],
    "train.augment.color": 0.0,
    "tune.trials": 4,
    "tune.epochs": 3,
    "tune.metric": "miou",
    "tune.mode": "max",
}
TWO = {"tune.metric": ["miou", "milliseconds"], "tune.mode": ["max", "min"]}
LOSSES = ("cross_entropy", "dice", "focal")
SPACE = {
    "loss.name": {"kind": "choice", "values": list(LOSSES)},
    "train.lr": {"kind": "loguniform", "low": 1e-4, "high": 1e-1},
}


def params(**values: Any) -> Params:
    return Params.load(ROOT / "params.yaml").override({**SETTLED, "tune.space": SPACE, **values})


def trial(number: int, miou: float, *, outcome: str = COMPLETED, **more: Any) -> Trial:
    values = {"loss.name": "dice", "train.lr": 1e-3 * (number + 1), **more.pop("values", {})}
    figures = {"miou": miou, **more.pop("figures", {})}
    return Trial(f"t{number}", f"r{number}", values, 3, outcome, figures, **more)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tune.metric": ["miou", "milliseconds"], "tune.mode": ["max"]}, "mode has 1 entries"),
        ({"tune.metric": ["milliseconds", "miou"]}, "name a figure of quality first"),
        ({"tune.metric": ["miou", "miou"]}, "name each once"),
        ({"tune.choose": {"milliseconds": 5.0}}, "add it to metric"),
        ({"tune.scheduler": "pbt", "tune.workers": 2}, "set both to 1"),
        ({"tune.scheduler": "pbtt"}, "did you mean pbt"),
        ({"tune.gpus": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        params(**values)


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("model.options", {"tune.scheduler": "pbt"}),
        ("train.batch_size", {"tune.scheduler": "pbt"}),
        ("train.optimizer", {"tune.scheduler": "pbt"}),
        ("train.seed", {"tune.seeds": 2}),
    ],
)
def test_keys_that_a_search_has_no_room_for_are_refused(key: str, settings: dict[str, Any]) -> None:
    space = {key: {"kind": "choice", "values": [1, 2]}}
    with pytest.raises(OptionError, match=key):
        tune.check_space(params(**{"tune.space": space, **settings}))


def test_auto_is_decided_for_each_objective(painted_shards: Path) -> None:
    dataset = segcore.open_shards(painted_shards)
    asked = params(**{"tune.metric": ["auto", "milliseconds"], "tune.mode": "auto"})
    found = with_goal(asked, dataset).tune.objectives
    assert found == (Objective("miou", "max"), Objective("milliseconds", "min"))
    single = with_goal(params(**{"tune.metric": "auto", "tune.mode": "auto"}), dataset)
    assert (single.tune.metric, single.tune.mode) == ("miou", "max")


def test_the_best_in_the_first_objective_is_taken_within_the_limits(capsys: Any) -> None:
    speeds = (30.0, 12.0, 9.0, 5.0)
    trials = [
        trial(i, miou, figures={"milliseconds": ms})
        for i, (miou, ms) in enumerate(zip((0.8, 0.7, 0.75, 0.4), speeds, strict=True))
    ]
    trials.append(trial(9, float("nan"), outcome=FAILED))
    assert choose(trials, params(**TWO).tune).trial.id == "t0"
    limited = params(**TWO, **{"tune.choose": {"milliseconds": 15.0}}).tune
    found = choose(trials, limited)
    assert (found.trial.id, found.figures) == ("t2", {"miou": 0.75, "milliseconds": 9.0})
    assert "3 of 4 within tune.choose (milliseconds <= 15)" in found.note
    assert capsys.readouterr().err == ""
    nearest = choose(trials, params(**TWO, **{"tune.choose": {"milliseconds": 4.0}}).tune)
    assert nearest.trial.id == "t3"
    assert "warning" in capsys.readouterr().err


def test_with_seeds_the_mean_of_the_same_values_decides() -> None:
    lr = ({"train.lr": 0.01}, {"train.lr": 0.02})
    trials = [
        trial(0, 0.9, values={**lr[0], SEED: 0}),
        trial(1, 0.1, values={**lr[0], SEED: 1}),
        trial(2, 0.6, values={**lr[1], SEED: 0}),
        trial(3, 0.7, values={**lr[1], SEED: 1}),
    ]
    found = choose(trials, params(**{"tune.seeds": 2}).tune)
    assert found.trial.id == "t3"
    assert found.overrides == {"loss.name": "dice", "train.lr": 0.02}
    assert found.figures["miou"] == pytest.approx(0.65)
    assert choose(trials, params().tune).trial.id == "t0"


scores = st.tuples(st.integers(0, 5), st.integers(0, 5))


@given(st.lists(scores, min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    goals = params(**TWO).tune.objectives
    trials = [trial(i, a, figures={"milliseconds": b}) for i, (a, b) in enumerate(points)]
    best = {one.id for one in front(trials, goals)}

    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and a != b

    for i, point in enumerate(points):
        assert (f"t{i}" in best) == (not any(beats(other, point) for other in points))
    early = [replace(one, outcome=PRUNED) for one in trials]
    assert front(early, goals) == []


def matrices(accuracy: float, seed: int, images: int = 24) -> bytes:
    """Records of images of which a share of the pixels is right."""
    kind = get_kind("semantic")
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(images):
        right = np.clip(accuracy + generator.normal(0, 0.03), 0, 1)
        pixels = np.full((3, 3), round(500 * (1 - right)))
        np.fill_diagonal(pixels, round(1000 * right))
        rows.append(pixels)
    table = pa.Table.from_arrays(
        [
            pa.array([f"v{i}" for i in range(images)]),
            *(column(name, kinds, rows) for name, kinds in kind.record_columns),
        ],
        schema=record_schema(kind),
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def column(name: str, kinds: pa.DataType, rows: list[Any]) -> pa.Array:
    assert name == "confusion", "the records of semantic segmentation have another column"
    return pa.array([row.ravel().tolist() for row in rows], kinds)


def contest_of(shards: Path, accuracies: dict[str, list[float]], **values: Any) -> list[Contest]:
    trials, number = [], 0
    for loss, found in accuracies.items():
        for seed, accuracy in enumerate(found):
            own = {"loss.name": loss, "train.lr": 0.01, SEED: seed}
            trials.append(
                trial(number, accuracy, values=own, records=matrices(accuracy, 7 * number))
            )
            number += 1
    dataset = segcore.open_shards(shards)
    return contests(trials, params(**values), dataset, get_kind("semantic"))


def test_a_better_loss_is_told_from_a_worse_one(painted_shards: Path) -> None:
    (found,) = contest_of(painted_shards, {"dice": [0.7], "focal": [0.9], "cross_entropy": [0.8]})
    assert [rival.value for rival in found.rivals] == ["focal", "cross_entropy", "dice"]
    assert found.verdict == "focal is better than cross_entropy"
    assert found.images == 24
    for rival in found.rivals[1:]:
        assert 0 < rival.behind.low < rival.behind.difference < rival.behind.high
    assert found.seeds is None
    assert not found.drowned


def test_seeds_that_differ_more_than_losses_are_warned_of(painted_shards: Path) -> None:
    (found,) = contest_of(painted_shards, {"dice": [0.80, 0.60], "focal": [0.75, 0.75]})
    assert found.drowned
    assert found.seeds > abs(found.second.difference)
    assert "the seed alone changes more" in found.verdict
    (clear,) = contest_of(painted_shards, {"dice": [0.80, 0.81], "focal": [0.6, 0.6]})
    assert not clear.drowned
    assert clear.verdict == "dice is better than focal"


def test_alike_losses_are_not_told_apart_and_one_alone_is_no_contest(painted_shards: Path) -> None:
    (found,) = contest_of(painted_shards, {"dice": [0.8], "focal": [0.8]})
    assert "not told apart on these images" in found.verdict
    assert contest_of(painted_shards, {"dice": [0.8, 0.7]}) == []


def test_importance_names_the_value_that_matters() -> None:
    generator = np.random.default_rng(0)
    trials = []
    for number in range(20):
        loss, lr = generator.choice(LOSSES), float(10 ** generator.uniform(-4, -1))
        values = {"loss.name": str(loss), "train.lr": lr}
        trials.append(trial(number, 0.5 + 0.1 * np.log10(lr), values=values))
    space, goal = params().search_space(), Objective("miou", "max")
    found = importances(trials, space, goal)
    assert next(iter(found)) == "train.lr"
    assert found["train.lr"] > 0.8
    assert sum(found.values()) == pytest.approx(1.0)
    assert importances(trials[:3], space, goal) == {}
    assert importances([replace(one, outcome=PRUNED) for one in trials], space, goal) == {}


def test_page_shows_trials_front_contest_and_links(painted_shards: Path, tmp_path: Path) -> None:
    settings = params(**TWO)
    trials = [
        trial(
            number,
            accuracy,
            values={"loss.name": LOSSES[number % 3]},
            figures={"milliseconds": 10.0 - number},
            records=matrices(accuracy, number),
        )
        for number, accuracy in enumerate((0.9, 0.8, 0.7, 0.85, 0.6, 0.75))
    ]
    trials += [trial(6, 0.3, outcome=PRUNED, figures={"milliseconds": 3.0})]
    trials += [Trial("t7", "r7", trials[0].values, 0, FAILED, {}, why="a <loss> is not finite")]
    dataset = segcore.open_shards(painted_shards)
    page = tmp_path / "tune" / "search.html"
    chosen = choose(trials, settings.tune)
    report.write(
        page, settings, dataset, trials, chosen, run_id="parent", link=lambda run: f"http://x/{run}"
    )
    text = page.read_text()
    assert all(f'href="http://x/r{number}"' in text for number in range(8))
    assert "Which loss.name is better on these data?" in text
    assert "a &lt;loss&gt; is not finite" in text
    assert text.count("data:image/png;base64") == 2
    assert "functional ANOVA" in text
    assert text.count("on the front") == len(front(trials, settings.tune.objectives))
    assert "<html" in text
    assert "http://" not in text.replace("http://x/", "")  # nothing is loaded from elsewhere


@pytest.fixture
def worker(painted_val: Path, tmp_path: Path) -> Callable[..., list[segcore.Epoch]]:
    def run(resume: Any = None, name: str = "trial", **values: Any) -> list[segcore.Epoch]:
        (tmp_path / name).mkdir(exist_ok=True)
        settings = trial_params(params(**values), {"train.lr": 0.004})
        return list(trial_worker(settings, painted_val, tmp_path / name, resume))

    return run


@pytest.fixture(scope="module")
def painted_val(painted_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The painted shards with validation images."""
    from segcore.data.shards import write_shards

    dataset = segcore.open_shards(painted_shards)
    rows = {
        "train": [dataset.split("train").read(i) for i in range(8)],
        "val": [dataset.split("test").read(i) for i in range(4)],
    }
    path = tmp_path_factory.mktemp("searched") / "painted"
    write_shards(path, dataset.meta, splits=rows, encode=lambda row: row)
    return path


def test_a_trial_measures_its_speed_and_leaves_its_records(
    worker: Callable[..., list[segcore.Epoch]], tmp_path: Path, painted_val: Path
) -> None:
    epochs = worker(**TWO)
    speeds = {epoch.metrics["val/milliseconds"] for epoch in epochs if epoch.complete}
    assert len(speeds) == 1
    assert 0.0 < speeds.pop() < 10_000.0
    table = pq.read_table(tmp_path / "trial" / RECORDS)
    kind, dataset = get_kind("semantic"), segcore.open_shards(painted_val)
    assert table.column("id").to_pylist() == list(dataset.split("val").ids)
    whole = kind.figures(kind.records(table, dataset), np.ones((1, 4)))["miou"][0]
    assert whole == pytest.approx(epochs[-1].metrics["val/miou"], abs=1e-6)


def test_what_is_measured_changes_nothing(
    worker: Callable[..., list[segcore.Epoch]], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    measured = worker(name="measured", **TWO)
    plain = worker(name="plain", **{"tune.space": {"train.lr": SPACE["train.lr"]}})
    assert not (tmp_path / "plain" / RECORDS).exists()
    for own, other in zip(measured, plain, strict=True):
        assert {**other.metrics, **own.metrics}["val/miou"] == other.metrics["val/miou"]
        assert own.metrics["train/loss"] == other.metrics["train/loss"]


@pytest.mark.parametrize(
    ("settings", "resources", "expected"),
    [
        ({"tune.concurrent": 4}, Resources(8, 1), 0.25),
        ({"tune.concurrent": 3}, Resources(8, 2), 0.5),
        ({"tune.concurrent": 2}, Resources(8, 8), 1.0),
        ({"tune.concurrent": 2, "tune.gpus": 0.2}, Resources(8, 1), 0.2),
        ({"tune.concurrent": 2, "tune.gpus": 0.2}, Resources(8, 0), 0.0),
    ],
)
def test_trials_share_gpus(settings: dict[str, Any], resources: Resources, expected: float) -> None:
    found = places.share(params(**settings), resources, here=True)
    assert found == {"CPU": 1, "GPU": expected}
    places.check(params(**settings), resources, here=True)


@pytest.mark.parametrize(
    ("concurrent", "nodes", "expected"),
    [(1, (1, 1), 1), (1, (4, 2), 4), (2, (4, 2), 2), (3, (4, 4), 2), (2, (3, 1), 1), (2, (), 4)],
)
def test_processors_of_a_trial_are_on_one_node(
    concurrent: int, nodes: tuple[int, ...], expected: int
) -> None:
    found = Resources(sum(nodes) or 8, 0, nodes)
    share = places.share(params(**{"tune.concurrent": concurrent}), found, here=False)
    assert share["CPU"] == expected
    places.check(params(**{"tune.concurrent": concurrent}), found, here=False)


def test_groups_of_workers_that_no_node_has_room_for_are_refused() -> None:
    wide = params(**{"tune.concurrent": 1, "tune.workers": 2, "cluster.cpus_per_worker": 3})
    places.check(wide, Resources(8, 0, (4, 4)), here=False)
    with pytest.raises(ClusterError, match=r"need 7 CPUs, 8 are there"):
        places.check(wide, Resources(8, 0, (4, 2, 2)), here=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tune.concurrent": 9}, "set tune.concurrent to 8"),
        ({"tune.concurrent": 3, "tune.workers": 3}, "set tune.concurrent to 2"),
        ({"tune.concurrent": 3, "tune.gpus": 0.4}, "do not fit on 1 GPUs"),
        ({"tune.concurrent": 1, "tune.workers": 2}, "do not fit on 1 GPUs"),
    ],
)
def test_more_trials_than_there_is_room_for_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        places.check(params(**settings), Resources(8, 1), here=False)


def test_facts_of_a_trial_survive_json() -> None:
    one = trial(1, 0.5, took_over=["t2"])
    assert Trial(**json.loads(json.dumps(one.__dict__))) == one
