"""Several images at once on processors: one image leaves some of the cores idle."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from pipelines.prediction.job import Job

MAX_STREAMS = 4


def choose_streams(job: Job, device: str) -> int:
    """Images that run at once: several where the job's batch of one leaves cores idle."""
    if device != "cpu" or job.batch_size > 1 or job.exported is not None:
        return 1
    return min(MAX_STREAMS, torch.get_num_threads())


@contextmanager
def share_cores(streams: int) -> Iterator[ThreadPoolExecutor | None]:
    """Threads that have an equal part of torch's cores each; None for one stream."""
    if streams == 1:
        yield None
        return
    cores = torch.get_num_threads()
    part = max(1, cores // streams)
    pool = ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(part,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)
