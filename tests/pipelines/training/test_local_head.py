"""What a local Ray leaves out, by names that are Ray's own."""

import pytest

from pipelines.cluster import local_head

pytestmark = pytest.mark.ray


def test_a_lean_head_starts_no_helpers_and_gives_ray_its_own_back() -> None:
    import ray  # not above: whoever collects this would import it without our settings
    from ray._private.node import Node

    names = ("start_monitor", "start_log_monitor", "start_api_server")
    own = [getattr(Node, name) for name in names]
    assert ray.__version__.startswith(local_head.VERSION)
    with local_head.lean_head():
        assert not {getattr(Node, name) for name in names} & set(own)
    assert [getattr(Node, name) for name in names] == own


def test_actors_of_tune_share_the_environment_of_the_driver(monkeypatch) -> None:
    from ray.tune.execution import class_cache

    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

    class Trainable:
        pass

    class Other:
        pass

    cache = class_cache._ActorClassCache()
    with local_head.shared_environment():
        shared = cache.get(Trainable)
    apart = cache.get(Other)
    assert "env_vars" not in (shared._default_options.get("runtime_env") or {})
    assert apart._default_options["runtime_env"]["env_vars"]


def test_another_ray_is_left_as_it_is(monkeypatch) -> None:
    import ray
    from ray._private.node import Node
    from ray.tune.execution import class_cache

    monkeypatch.setattr(ray, "__version__", "2.99.0")
    own = Node.start_monitor
    with local_head.lean_head(), local_head.shared_environment():
        assert Node.start_monitor is own
        assert class_cache.DEFAULT_ENV_VARS
