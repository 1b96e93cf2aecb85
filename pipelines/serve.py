"""The command that answers for a model over HTTP. Heavy imports stay inside it."""

from typing import Annotated, Any

import typer

from pipelines.console import TrackingUri, errors, load_params

LOCAL = ("127.0.0.1", "::1", "localhost")


def serve(
    model: Annotated[
        str,
        typer.Argument(help="models:/NAME@champion, models:/NAME/3, or the folder of a package"),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 8000,
    engine: Annotated[
        str, typer.Option(help="torch; or onnxruntime, openvino: the exported model, on the CPU")
    ] = "torch",
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1; default: the accelerator if there is one")
    ] = "",
    max_mb: Annotated[float, typer.Option(min=0.001, help="Largest body")] = 32,
    max_megapixels: Annotated[
        float | None, typer.Option(min=0.001, help="Largest picture; default: params.yaml")
    ] = None,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Pictures at a time, waiting ones too; more get 503")
    ] = 8,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least score of objects that are kept")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Answer for a model over HTTP: POST a picture, get PNG or JSON; with a page to try it on."""
    with errors():
        asked: dict[str, Any] = {
            "predict.max_megapixels": max_megapixels,
            "predict.min_score": min_score,
        }
        changes = {key: value for key, value in asked.items() if value is not None}
        params = load_params(tracking_uri).override(changes)
        from pipelines.serving.app import Limits
        from pipelines.serving.server import open_service
        from pipelines.serving.server import serve as run

        service = open_service(params, model=model, engine=engine, device=device)

        def ready(address: str) -> None:
            typer.echo(f"{service.job.version} by {engine} on {service.device}: {address}")
            if host not in LOCAL:
                line = "  whoever reaches this address can use it: there is no password"
                typer.secho(line, fg="yellow", err=True)

        try:
            run(service, Limits(max_mb, max_requests), host=host, port=port, ready=ready)
        except KeyboardInterrupt:
            typer.echo("stopped")
