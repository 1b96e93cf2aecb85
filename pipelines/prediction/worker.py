"""Images in, files and manifest rows out: the same code in process and in every actor.

Files are read and decoded, and results encoded and written, in threads beside the model; each
queue is bounded, and a large image is decoded only when its turn has come. On processors several
images may run at once, each on a part of the cores: one image leaves some of them idle.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from threading import Lock

from pipelines.prediction import manifest, png_facts
from pipelines.prediction.files import encode, save
from pipelines.prediction.inputs import Input, read_bytes
from pipelines.prediction.intensity import channel_statistics
from pipelines.prediction.job import Job
from pipelines.prediction.journal import Journal
from pipelines.prediction.manifest import Row
from pipelines.prediction.streams import share_cores
from segcore.errors import DataError, SegcoreError
from segcore.inference.images import ImageArray, count_megapixels, to_array
from segcore.tasks.predictors import AnyPrediction, AnyPredictor

READERS = 2
WRITERS = 2
LARGE_MEGAPIXELS = 16.0  # above, an image is held alone: neither read ahead nor written behind

Work = tuple[Input, Row | None]


@dataclass
class Task:
    """One input on its way.

    Args:
        item: the input.
        row: what is known of it; final where there is neither image nor data.
        image: its pixels.
        data: of a large image, still encoded.
    """

    item: Input
    row: Row
    image: ImageArray | None = None
    data: bytes | None = None

    @property
    def is_final(self) -> bool:
        return self.image is None and self.data is None


class Worker:
    """Predicts inputs; loads the model at the first that needs it.

    Args:
        job: what is predicted.
        device: where the model runs.
        streams: images that run at once, each as a batch of its own; see `streams.choose_streams`.
    """

    def __init__(self, job: Job, device: str = "cpu", *, streams: int = 1) -> None:
        self._job = job
        self._device = device
        self._streams = streams
        self._predictor: AnyPredictor | None = None
        self._journal: Journal | None = None
        self._opening = Lock()

    def __call__(self, items: Sequence[Work]) -> list[Row]:
        """One row per input, in order; see `stream`."""
        return list(self.stream(items))

    def stream(self, items: Iterable[Work]) -> Iterator[Row]:
        """One row per input, in order, as results are written.

        Args:
            items: inputs with the row that an earlier run left, or None. Where its digests and
                files still hold, it is returned as it is.

        Raises:
            PackageError: the model cannot be loaded.
        """
        # At most twice as many, and a call's, wait to be run or written.
        ahead = max(self._job.images_per_call, self._streams) + READERS
        rows: deque[Future[Row]] = deque()
        readers, writers = ThreadPoolExecutor(READERS), ThreadPoolExecutor(WRITERS)
        with share_cores(self._streams) as runners:
            try:
                for tasks in self._batches(_ahead(readers, self._read, items, ahead)):
                    if runners is not None and tasks[0].data is None:
                        rows.extend(self._start(task, runners) for task in tasks)
                    else:
                        if runners is not None:
                            wait(rows)  # a large image has all cores and memory
                        rows.extend(self._predict(tasks, writers))
                    while rows and (len(rows) > ahead or rows[0].done()):
                        yield rows.popleft().result()
                while rows:
                    yield rows.popleft().result()
            finally:
                readers.shutdown(cancel_futures=True)
                writers.shutdown(cancel_futures=True)

    def _batches(self, tasks: Iterable[Task]) -> Iterator[list[Task]]:
        """Tasks up to the images of a call of the model; a large image is a call of its own."""
        batch: list[Task] = []
        images = 0
        for task in tasks:
            if task.data is not None and batch:
                yield batch
                batch, images = [], 0
            batch.append(task)
            images += not task.is_final
            if images == self._job.images_per_call or task.data is not None or not images:
                yield batch
                batch, images = [], 0
        if batch:
            yield batch

    def _read(self, work: Work) -> Task:
        item, known = work
        start = time.perf_counter()
        task = Task(item, self._job.row(item, "ok"))
        try:
            data = read_bytes(item, self._job.base)
            task.row = replace(task.row, sha256=hashlib.sha256(data).hexdigest())
            if known is not None and self._holds(item, task.row, known):
                return Task(item, known)
            if LARGE_MEGAPIXELS < count_megapixels(data) <= self._job.max_megapixels:
                task.data = data
            else:
                task.image = self._decode(data)
        except (SegcoreError, MemoryError) as error:
            task.row = _failed(task, error)
        task.row = replace(task.row, seconds=time.perf_counter() - start)
        return task

    def _decode(self, data: bytes) -> ImageArray:
        channels = self._job.spec.in_channels
        return to_array(data, channels, max_megapixels=self._job.max_megapixels)

    def _holds(self, item: Input, row: Row, known: Row) -> bool:
        return (
            known.status == "ok"
            and known.sha256 == row.sha256
            and self._job.made(item, known)
            and known.mask_path == self._job.files(item)[0]
            and self._job.is_whole(item, known)
        )

    def _start(self, task: Task, runners: ThreadPoolExecutor) -> Future[Row]:
        """Run the model over one image, and write what it makes of it, in one of the threads."""
        if task.is_final:
            return _done(task.row)
        self._load()
        return runners.submit(self._finish, task)

    def _finish(self, task: Task) -> Row:
        (result,) = self._run([task])
        return result if isinstance(result, Row) else self._write(task, *result)

    def _load(self) -> None:
        if self._predictor is None:
            self._predictor = self._job.load(self._device)

    def _predict(self, tasks: Sequence[Task], writers: ThreadPoolExecutor) -> list[Future[Row]]:
        """Run the model over the images of a batch, and hand over what is to be written."""
        if not all(task.is_final for task in tasks):
            self._load()
        large = [task for task in tasks if task.data is not None]
        for task in large:
            self._decode_large(task)
        pending = [task for task in tasks if task.image is not None]
        found = dict(zip(map(id, pending), self._run(pending), strict=True))
        rows: list[Future[Row]] = []
        for task in tasks:
            result = found.get(id(task), task.row)
            if isinstance(result, Row):
                rows.append(_done(result))
            elif large:
                rows.append(_done(self._write(task, *result)))
            else:
                rows.append(writers.submit(self._write, task, *result))
        return rows

    def _decode_large(self, task: Task) -> None:
        start = time.perf_counter()
        data, task.data = task.data, None
        try:
            task.image = self._decode(data or b"")
        except (SegcoreError, MemoryError) as error:
            task.row = _failed(task, error)
        seconds = task.row.seconds + time.perf_counter() - start
        task.row = replace(task.row, seconds=seconds)

    def _run(self, tasks: Sequence[Task]) -> list[tuple[AnyPrediction, float] | Row]:
        """Prediction and share of the time of each image, or its row if it fails."""
        images = [task.image for task in tasks if task.image is not None]
        if self._predictor is None or not images:
            return []
        start = time.perf_counter()
        try:
            found = self._predictor(images, self._job.batch_size)
        except (RuntimeError, MemoryError, SegcoreError) as error:
            if len(tasks) == 1:
                return [_failed(tasks[0], error)]
            return [self._run([task])[0] for task in tasks]
        seconds = (time.perf_counter() - start) / len(found)
        return [(prediction, seconds) for prediction in found]

    def _write(self, task: Task, prediction: AnyPrediction, seconds: float) -> Row:
        start = time.perf_counter()
        item, spec, image = task.item, self._job.spec, task.image
        names = self._job.files(item)
        files: dict[str, str] = {}
        try:
            for output, name in zip(self._job.outputs, names, strict=True):
                if image is not None:
                    content = encode(output.make(image, prediction, spec), name)
                    if name == names[0] and png_facts.is_png(content):
                        content = png_facts.embed(content, manifest.made_of(task.row))
                    save(content, name, self._job.shared)
                    files[name] = hashlib.sha256(content).hexdigest()
            means, stds = ((), ()) if image is None else channel_statistics(image)
            row = replace(
                task.row,
                mask_path=names[0],
                height=prediction.height,
                width=prediction.width,
                facts=self._job.kind.row(prediction, spec, self._job.extras),
                seconds=task.row.seconds + seconds + time.perf_counter() - start,
                files=files,
                channel_means=means,
                channel_stds=stds,
            )
            self._note(row)
        except (DataError, OSError, MemoryError) as error:
            return _failed(task, error)
        return row

    def _note(self, row: Row) -> None:
        """Leave the row where a job that follows after a kill finds it."""
        with self._opening:
            if self._journal is None:
                self._journal = Journal(self._job.out, self._job.columns)
        self._journal.append(manifest.record(row, {}))


def _ahead(
    readers: ThreadPoolExecutor, read: Callable[[Work], Task], items: Iterable[Work], count: int
) -> Iterator[Task]:
    """What `read` makes of each item, in order, begun for some of them before they are due."""
    rest = iter(items)
    due = deque(readers.submit(read, item) for item in islice(rest, count))
    while due:
        task = due.popleft().result()
        due.extend(readers.submit(read, item) for item in islice(rest, 1))
        yield task


def _done(row: Row) -> Future[Row]:
    future: Future[Row] = Future()
    future.set_result(row)
    return future


def _failed(task: Task, error: Exception) -> Row:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    for prefix in ("image bytes ", "image bytes: ", f"{task.item.path}: "):
        reason = reason.removeprefix(prefix)
    return replace(task.row, status="error", reason=reason)
