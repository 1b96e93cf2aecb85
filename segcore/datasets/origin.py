"""Where the raw files of a dataset came from, by digest: the last link but one of a lineage."""

import hashlib
import json
from pathlib import Path

from segcore.datasets.archive import tree_digest
from segcore.datasets.streets.store import PLAN

SOURCE = "source.json"


def read_origin(raw: Path) -> dict[str, str]:
    """What `download` left about the files in a raw folder.

    Returns:
        origin: address of the archive or page, "folder" for files of the user's, "rendered".
        digest: of the archive's files or of the user's, by `archive.tree_digest`, of the list of
            a published dataset's images, or the sha256 of the plan that was rendered. The folder's
            place is no part of it.
        Nothing of both where `download` has left nothing that can be read.
    """
    try:
        plan = (raw / PLAN).read_bytes() if (raw / PLAN).is_file() else None
        if plan is not None:
            return {"origin": "rendered", "digest": hashlib.sha256(plan).hexdigest()}
        found = json.loads((raw / SOURCE).read_bytes())
        if "files_sha256" in found:
            return {"origin": str(found["origin"]), "digest": str(found["files_sha256"])}
        if "listing_sha256" in found:
            return {"origin": str(found["origin"]), "digest": str(found["listing_sha256"])}
        return {"origin": "folder", "digest": tree_digest(found["files"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
