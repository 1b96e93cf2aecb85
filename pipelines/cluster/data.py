"""Many small jobs through a pool of actors, by Ray Data."""

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.cluster.session import Resources, check_room, connect
from pipelines.cluster.shared import check_shared
from pipelines.errors import ClusterError
from pipelines.params import ClusterParams

WINDOW = 20_000  # items that are held at once; the actors start anew after so many


def map_batches(
    items: Iterable[Any],
    make_worker: Callable[[str], Callable[[list[Any]], list[Any]]],
    *,
    batch_size: int,
    cluster: ClusterParams,
    shared: Mapping[str, str | Path],
) -> Iterator[Any]:
    """Send items in batches through actors that keep their model, and stream what they return.

    Args:
        items: picklable.
        make_worker: called once in each actor with its device ("cuda" or "cpu"); what it returns
            is called with lists of items.
        batch_size: items of one call.
        cluster: where Ray runs; one actor per GPU, else per `cpus_per_worker` CPUs.
        shared: what it is -> absolute folder or address that every node needs.

    Yields:
        The workers' results, batch after batch as they finish: in no fixed order.

    Raises:
        ClusterError: no cluster answers at the address, no node has room for an actor, or one fails
            for good.
    """
    with connect(cluster) as resources:
        check_shared(shared)
        if not resources.gpus:
            check_room(1, cluster, resources)
        from ray.exceptions import RayError

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            rest = iter(items)
            while some := list(islice(rest, WINDOW)):
                results = _results(
                    some, make_worker, batch_size=batch_size, cluster=cluster, resources=resources
                )
                for row in results.iter_rows():
                    yield pickle.loads(row["result"])
        except RayError as error:
            raise ClusterError(
                f"Ray could not predict ({str(error).splitlines()[0]}): run the command again, it "
                "goes on where it stopped; predict.ray_min_images above the number of images "
                "runs in this process"
            ) from error


def _results(
    items: Sequence[Any],
    make_worker: Callable[[str], Callable[[list[Any]], list[Any]]],
    *,
    batch_size: int,
    cluster: ClusterParams,
    resources: Resources,
) -> Any:
    from ray import data

    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    gpus = resources.gpus
    most = gpus or max(1, resources.room(cluster.cpus_per_worker))

    class Actor:
        """Holds one worker; pickled items in, pickled results out."""

        def __init__(self) -> None:
            import torch

            if not gpus:
                torch.set_num_threads(cluster.cpus_per_worker)
            self._worker = make_worker("cuda" if gpus else "cpu")

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            results = self._worker([pickle.loads(item) for item in batch["item"]])
            return {"result": [pickle.dumps(result) for result in results]}

    batches = -(-len(items) // batch_size)
    rows = [{"item": pickle.dumps(item)} for item in items]
    dataset = data.from_items(rows, override_num_blocks=min(len(rows), max(batches, 1)))
    return dataset.map_batches(
        Actor,
        batch_size=batch_size,
        compute=data.ActorPoolStrategy(min_size=1, max_size=max(1, min(most, batches))),
        num_cpus=None if gpus else cluster.cpus_per_worker,
        num_gpus=1 if gpus else None,
    )
