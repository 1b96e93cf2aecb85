"""The history of aliases on a real store: every move, by whom and why, and none that is lost."""

import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.errors import TrackingError
from pipelines.params import Params
from pipelines.tracking.connection import connect
from pipelines.tracking.history import Evidence, History
from pipelines.tracking.registry import CANDIDATE, CHAMPION, Registry
from segcore.errors import OptionError

pytestmark = pytest.mark.ray

NAME = "segcore-painted"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one store for all tests; making a database takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def project(project: Params, home: Path) -> Params:
    return project.override({"tracking.uri": f"sqlite:///{home}/mlflow.db"})


def test_every_move_is_kept_and_a_past_champion_comes_back(
    project: Params, good_package: Path, bad_package: Path
) -> None:
    models = Registry(project)
    first, second = models.register(bad_package), models.register(good_package)
    models.promote(first, Evidence("There was no champion", "e1", {"miou": 0.25}))
    better = Evidence("better", "e2", {"miou": 0.75}, 0.25, (0.4, 0.6), 0.95)
    models.promote(second, better)
    models.promote(second, better)  # it is there already: no move
    assert models.ensure_registered(good_package) == second
    moves = models.history(NAME).moves()
    assert [(m.number, m.alias, m.previous, m.version) for m in moves] == [
        (1, CANDIDATE, "", "1"),
        (2, CANDIDATE, "1", "2"),
        (3, CHAMPION, "", "1"),
        (4, CHAMPION, "1", "2"),
    ]
    assert moves[3].evidence == better
    assert moves[3].digest == second.package_digest
    assert moves[1].evidence.run_id == second.run_id
    assert not any(move.undone for move in moves)

    store = ["--tracking-uri", project.tracking.uri]
    result = CliRunner().invoke(app, ["history", "painted", *store])
    assert result.exit_code == 0, result.output
    for text in ("1 -> 2", "miou 0.7500 against 0.2500: +0.4000 to +0.6000 at 95%", "better"):
        assert text in " ".join(result.output.split())

    result = CliRunner().invoke(app, ["history", NAME, "--restore", "1", *store])
    assert result.exit_code == 0, result.output
    assert models.get(NAME, CHAMPION) == first
    last = models.history(NAME).moves()[-1]
    assert (last.number, last.previous, last.version, last.evidence.run_id) == (5, "2", "1", "e1")
    assert last.evidence.figures == {"miou": 0.25}
    assert "brought back" in last.evidence.reason
    with pytest.raises(OptionError, match=r"version 7 .* never champion\. Champions: 1, 2"):
        models.restore(NAME, "7")
    with pytest.raises(TrackingError, match=f"no model other. Registered: {NAME}"):
        models.full_name("other")

    # Somebody moves an alias in MLflow's pages.
    models._client.set_registered_model_alias(NAME, CHAMPION, "2")
    result = CliRunner().invoke(app, ["history", "painted", *store])
    assert "champion is at version 2: it was moved by other means" in result.output
    models.promote(first, Evidence("again"))
    moves = models.history(NAME).moves()
    assert [move.undone for move in moves] == [False] * 4 + [True, False]


def test_rows_cannot_be_changed(project: Params) -> None:
    history = History(connect(project.tracking), "kept")
    history.append("champion", version="1", previous="", digest="d", evidence=Evidence("x"))
    run = history._runs()[0]
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException):
        history._client.log_param(run.info.run_id, "move-000001", "{}")
    assert [move.evidence.reason for move in history.moves()] == ["x"]


def test_moves_at_once_are_all_kept(project: Params) -> None:
    def move(index: int) -> None:
        history = History(connect(project.tracking), "busy")
        for step in range(3):
            reason = f"{index}.{step}"
            history.append("a", version="1", previous="", digest="", evidence=Evidence(reason))

    connect(project.tracking)
    threads = [threading.Thread(target=move, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moves = History(connect(project.tracking), "busy").moves()
    expected = {f"{index}.{step}" for index in range(6) for step in range(3)}
    assert {move.evidence.reason for move in moves} == expected
    assert len({(move.number, move.time) for move in moves}) == 18


def test_a_reason_and_figures_of_any_length_fit(project: Params) -> None:
    history = History(connect(project.tracking), "long")
    figures = {f"figure_{index}_of_a_very_long_name" + "x" * 60: 0.123456789 for index in range(99)}
    evidence = Evidence("ü" * 9999, "r", figures, 0.5, (0.1, 0.2), 0.95)
    history.append("champion", version="1", previous="", digest="d" * 64, evidence=evidence)
    found = history.moves()[0].evidence
    assert found.run_id == "r"
    assert found.reason
    assert found.reason in evidence.reason
    assert found.figures.items() <= figures.items()
