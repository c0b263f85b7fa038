"""minicpm4 pull: brings a model to this machine, and prints where it is."""

from __future__ import annotations

from minicpm4.checkpoint import open_checkpoint, resolve
from minicpm4.cli import options as o
from minicpm4.cli.terminal import say, transfer_bar, write


def pull(
    model: o.ModelArgument = "default",
    revision: o.Revision = None,
    offline: o.Offline = False,
) -> None:
    """Download a model, check it, and print its path."""
    with transfer_bar() as bar:
        path = resolve(model, revision=revision, offline=offline, progress=lambda done, total: bar("downloading", done, total))
    with open_checkpoint(path) as checkpoint:
        say(f"{checkpoint.name}: {len(checkpoint.tensors)} tensors, {checkpoint.file_bytes / 1e6:.0f} MB")
    write(f"{path}\n")
