"""This process among those of torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """This process among those of torchrun: rank of size, the local-th of local_size on this machine."""

    rank: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1


def current_ranks() -> Ranks:
    """As torchrun's environment says; one of one without it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Ranks(*(int(os.environ[name]) for name in names)) if all(n in os.environ for n in names) else Ranks()


@contextmanager
def joined_ranks() -> Iterator[int]:
    """This process's rank; under torchrun within torch.distributed's process group (nccl on GPUs, gloo on CPUs)."""
    ranks = current_ranks()
    if ranks.size == 1:
        yield 0
        return
    import torch
    import torch.distributed as dist

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield ranks.rank
    finally:
        dist.destroy_process_group()


def wait_for_ranks() -> None:
    """Return when every rank has come here."""
    if current_ranks().size > 1:
        import torch.distributed as dist

        dist.barrier()
