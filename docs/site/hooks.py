"""MkDocs calls this: it adds the pages that are written from the code itself."""

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import pages  # beside this file, which MkDocs loads by its path


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to those of docs/."""
    for name, text in pages.write_all(Path(config.config_file_path).parent).items():
        files.append(File.generated(config, name, content=text))
    return files
