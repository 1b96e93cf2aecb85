"""Datasets by name. A new one is one module here and one line in `DATASETS`."""

import importlib
from typing import cast

from segcore.datasets.base import Dataset, DataSource
from segcore.errors import unknown_name

__all__ = ["DATASETS", "DataSource", "Dataset", "create_dataset", "list_datasets"]

DATASETS: dict[str, str] = {
    "streets": "segcore.datasets.streets:Streets",
    "camvid": "segcore.datasets.camvid:CamVid",
    "folder": "segcore.datasets.folder:Folder",
    "isbi_em": "segcore.datasets.isbi_em:IsbiEm",
    "nuclei": "segcore.datasets.nuclei:Nuclei",
    "voc2012": "segcore.datasets.voc2012:Voc2012",
    "sbd": "segcore.datasets.sbd:Sbd",
    "nyuv2": "segcore.datasets.nyuv2:Nyuv2",
    "cityscapes": "segcore.datasets.cityscapes:Cityscapes",
    "sunrgbd": "segcore.datasets.sunrgbd:SunRgbd",
    "coco_instances": "segcore.datasets.coco2017:CocoInstances",
    "coco_stuff": "segcore.datasets.coco2017:CocoStuff",
    "coco_panoptic": "segcore.datasets.coco2017:CocoPanoptic",
    "ade20k": "segcore.datasets.ade20k:Ade20k",
    "oxford_pet": "segcore.datasets.oxford_pet:OxfordPet",
    "jsrt": "segcore.datasets.jsrt:Jsrt",
}


def list_datasets() -> list[str]:
    """Names that `create_dataset` takes, sorted."""
    return sorted(DATASETS)


def create_dataset(name: str, source: DataSource) -> Dataset:
    """Build the adapter of a dataset; reads nothing yet.

    Args:
        name: a key of `DATASETS`.
        source: where it comes from and where its raw files go.

    Raises:
        UnknownNameError: no dataset has this name.
        OptionError: the source has an option that the dataset does not know.
    """
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    module, _, adapter = DATASETS[name].partition(":")
    return cast(Dataset, getattr(importlib.import_module(module), adapter)(source))
