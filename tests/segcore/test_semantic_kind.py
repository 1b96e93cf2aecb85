"""Semantic segmentation as a kind: its records, files and columns are what they always were."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.prediction import manifest
from segcore.inference import visualize
from segcore.inference.predictor import Prediction
from segcore.inference.spec import PackageSpec
from segcore.metrics import scores
from segcore.tasks import get_kind

KIND = get_kind("semantic")
SPEC = PackageSpec(
    architecture="unet",
    num_classes=3,
    classes=("sky", "road", "car"),
    palette=((1, 2, 3), (40, 50, 60), (200, 0, 9)),
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)
MASK = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
TRUTH = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)


def test_a_record_counts_true_by_predicted_and_leaves_void_out() -> None:
    record = KIND.record(Prediction(MASK), TRUTH, SPEC)
    assert record["confusion"].tolist() == [1, 0, 0, 1, 1, 0, 0, 1, 1]


def test_figures_under_weights_are_those_of_repeated_images() -> None:
    rng = np.random.default_rng(0)
    matrices = rng.integers(0, 9, (5, 3, 3))
    weights = rng.integers(0, 4, (7, 5)).astype(float)
    found = KIND.figures(matrices, weights)
    assert list(found) == list(KIND.figure_names)
    for index, draw in enumerate(weights.astype(int)):
        expected = scores(np.repeat(matrices, draw, axis=0).sum(0)).summary()
        assert {key: values[index] for key, values in found.items()} == expected
    whole = KIND.figures(matrices, np.ones((1, 5)))
    assert {k: v[0] for k, v in whole.items()} == scores(matrices.sum(0)).summary()


@pytest.mark.parametrize("counts", [[1, 2, 3], [-1] + [0] * 8])
def test_records_of_other_classes_are_refused(counts: list[int]) -> None:
    table = pa.table({"confusion": pa.array([counts], pa.list_(pa.int64()))})
    with pytest.raises(ValueError, match="for 3 classes"):
        KIND.records(table, SPEC)


def test_files_and_columns_of_a_prediction() -> None:
    prediction = Prediction(MASK)
    image = np.zeros((2, 3, 3), np.uint8)
    mask, overlay = KIND.outputs({"overlays"})
    assert KIND.outputs() == (mask,)
    assert (mask.path("a/b"), overlay.path("a/b")) == ("masks/a/b.png", "overlays/a/b.jpg")
    picture = mask.make(image, prediction, SPEC)
    assert picture.tobytes() == visualize.palette_png(MASK, SPEC.palette).tobytes()
    assert picture.mode == "P"
    shares = KIND.row(prediction, SPEC)["class_shares"]
    assert shares == [("car", 2 / 6), ("road", 2 / 6), ("sky", 2 / 6)]
    names = [*manifest.BEFORE.names, *dict(KIND.row_columns), *manifest.AFTER.names]
    assert " ".join(names).startswith(  # new columns come last
        "path sha256 status reason mask_path height width class_shares seconds model_digest "
        "model_version dataset_digest crf precision"
    )


def test_the_table_has_the_champion_in_its_first_column() -> None:
    own, other = np.eye(3, dtype=np.int64)[None] * 4, np.ones((1, 3, 3), np.int64)
    table = KIND.class_table(own, other, SPEC)
    assert [column.key for column in table.columns] == [
        "iou", "precision", "recall", "f1", "pixel_share"
    ]  # fmt: skip
    assert table.columns[0].values == [1.0, 1.0, 1.0]
    assert table.champion == pytest.approx([0.2] * 3)
    assert KIND.class_table(own, None, SPEC).champion is None
