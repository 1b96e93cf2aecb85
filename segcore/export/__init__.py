"""Models for other runtimes: files that hold network, normalisation, classes and palette.

Needs `pip install 'segcore[export]'` but for "torch-export". Nothing of it is imported before it is
needed.
"""

from segcore.export.check import Agreement
from segcore.export.engines import ENGINES, check_precision, load_exported
from segcore.export.files import FORMATS, export_package

__all__ = ["ENGINES", "FORMATS", "Agreement", "check_precision", "export_package", "load_exported"]
