"""`penstock service …`: run as a systemd service."""

from __future__ import annotations

import subprocess
from typing import Annotated

import typer

from . import service

app = typer.Typer(help="Run Penstock as a systemd service.", no_args_is_help=True)
Instance = Annotated[str, typer.Argument(help="which server, as penstock@NAME")]
User = Annotated[bool, typer.Option("--user", help="for this user only, without root")]


@app.command()
def install(
    instance: Instance = "main",
    user: User = False,
    edge: Annotated[
        bool, typer.Option("--edge", help="a camera's client (penstock edge), no server")
    ] = False,
) -> None:
    """Write the unit file; says how to start it."""
    service.check_systemd(user=user)
    template = service.EDGE_TEMPLATE if edge else service.TEMPLATE
    path = service.install(instance, user=user, template=template)
    manager = "systemctl --user" if user else "sudo systemctl"
    unit = template.replace("@.service", f"@{instance}")
    typer.echo(f"{path}\nstart it now and at boot:  {manager} enable --now {unit}")


@app.command()
def status(instance: Instance = "main", user: User = False) -> None:
    """What systemd knows about it."""
    service.check_systemd(user=True)
    raise typer.Exit(subprocess.run(service.status_command(instance, user=user), check=False).returncode)


@app.command()
def logs(
    instance: Instance = "main",
    user: User = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on as they come")] = False,
) -> None:
    """Its log."""
    service.check_systemd(user=True)
    command = service.logs_command(instance, user=user, follow=follow)
    raise typer.Exit(subprocess.run(command, check=False).returncode)
