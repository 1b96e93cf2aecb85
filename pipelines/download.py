"""Stage download: the raw dataset, rendered, fetched and verified, or your folder listed."""

from pipelines import stage
from pipelines.params import Params
from pipelines.sources import create_dataset, raw_folder, show_progress


def main() -> None:
    params = Params.load()
    dataset = create_dataset(params)
    with show_progress() as progress:
        dataset.download(progress)
    print(f"download: {params.data.name} is in {raw_folder(params)}")


if __name__ == "__main__":
    stage.run(main)
