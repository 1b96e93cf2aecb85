"""Stage download: the raw dataset, rendered, fetched and verified, or your folder listed."""

from pathlib import Path

from pipelines import stage, storage
from pipelines.params import Params
from pipelines.seen import Seen, signature
from pipelines.sources import create_dataset, own_path, raw_folder, show_progress

MEMORY = Path("outputs/runs/downloaded")
DEPENDS_ON = ("data.name", "data.path", "data.options", "data.seed")


def seen(params: Params) -> Seen:
    """What a download depends on, and what it made, as they are now."""
    path = own_path(params)
    facts = {
        "params": params.pick(DEPENDS_ON),
        "code": storage.code_version("datasets"),
        "own": None if path is None else signature(storage.absolute(path)),
        "raw": signature(storage.absolute(raw_folder(params))),
    }
    return Seen(storage.absolute(MEMORY / f"{params.data.name}.json"), facts)


def main() -> None:
    params = Params.load()
    if storage.absolute(raw_folder(params)).is_dir() and seen(params).is_same():
        print(f"download: as before, {raw_folder(params)}")
        return
    dataset = create_dataset(params)
    with show_progress() as progress:
        dataset.download(progress)
    seen(params).remember()
    print(f"download: {params.data.name} is in {raw_folder(params)}")


if __name__ == "__main__":
    stage.run(main)
