"""The commands that print reference tables: all settings, all metrics."""

import click

from relay.cli.app import main, settings_models
from relay.metrics.definitions import ALL
from relay.settings import variables


@main.command("settings")
def settings_table() -> None:
    """Print the table of all settings."""
    click.echo("| variable | default | meaning |\n|---|---|---|")
    for variable in variables(*settings_models()):
        click.echo(f"| `{variable.name}` | {variable.default} | {variable.description} |")


@main.command("metrics")
def metrics_table() -> None:
    """Print the table of all metrics."""
    click.echo("| metric | kind | the question it answers |\n|---|---|---|")
    for metric in ALL:
        labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
        click.echo(f"| `{metric.name}{labels}` | {metric.kind} | {metric.question} |")
