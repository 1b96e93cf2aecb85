"""What made a run: the code, the command, the person."""

import getpass
import os
import subprocess
import sys
from contextlib import suppress

from pipelines.storage import root

GIT_COMMIT = "mlflow.source.git.commit"


def source_tags() -> dict[str, str]:
    """Tags that name the code: git commit, command line, user."""
    tags = {"mlflow.source.name": " ".join(sys.argv), "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError):
        tags["mlflow.user"] = getpass.getuser()
    git = ["git", "-C", os.fspath(root())]
    with suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True)
        changes = [*git, "status", "--porcelain", "--untracked-files=no"]
        dirty = subprocess.run(changes, capture_output=True, check=True).stdout
        tags[GIT_COMMIT] = commit.stdout.decode().strip()
        tags["git_dirty"] = str(bool(dirty.strip())).lower()
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["dvc_experiment"] = experiment
    return tags
