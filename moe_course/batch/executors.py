"""Where work runs: threads of this machine, or a Dask cluster that is already there. Both are one kind of executor."""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 10.0  # seconds that a scheduler has to answer


class ClusterError(Exception):
    """There is no cluster to work on; the message says what to do."""


@contextmanager
def executor(jobs: int, scheduler: str | None = None) -> Iterator[Executor]:
    """An executor for as long as the block lasts; an exception that leaves the block cancels what waits.

    On a cluster, a task whose worker dies runs again on another. What is submitted there, and what comes back, is
    pickled; the workers need moe-course installed.

    Args:
        jobs: threads, where this machine does the work.
        scheduler: address of a Dask scheduler, such as tcp://10.0.0.5:8786; None for threads.

    Raises:
        ClusterError: `distributed` is not installed, or no scheduler answers at this address.
    """
    pool: Any = ThreadPoolExecutor(jobs, thread_name_prefix="run") if scheduler is None else _on_cluster(scheduler)
    try:
        yield pool
    except BaseException:
        if isinstance(pool, ThreadPoolExecutor):
            pool.shutdown(wait=False, cancel_futures=True)
        else:
            pool.shutdown(wait=False)  # cancels, too
        raise
    else:
        pool.shutdown()
    finally:
        if scheduler is not None:
            pool._client.close()


def available_cores() -> int:
    """The cores that this process may use: a batch system or a container often grants only some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cluster_threads(pool: Executor) -> int:
    """How many tasks a cluster runs at once just now; 0 where `pool` is threads, or no worker is up yet."""
    client = getattr(pool, "_client", None)
    return sum(client.nthreads().values()) if client is not None else 0


def _on_cluster(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError("a cluster needs `distributed`; run `pip install 'moe-course[cluster]'`") from None
    _knock(address)
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except Exception as error:  # whatever a server that speaks something else provokes
        raise ClusterError(
            f"the scheduler at {address} does not let us in ({error or type(error).__name__}); use the same version "
            "of `distributed` there and here"
        ) from None
    return client.get_executor(pure=False)


def _knock(address: str) -> None:
    """Fail at once, and in plain words, where nothing listens; Dask's own attempt ends in pages of log."""
    parts = urlsplit(address)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not (parts.scheme and host and port):
        raise ClusterError(f"{address!r} is no address of a scheduler; one looks like tcp://10.0.0.5:8786")
    try:
        line = socket.create_connection((host, port), PATIENCE)
    except OSError as error:
        raise ClusterError(
            f"nothing answers at {address} ({error.strerror or error}); start the scheduler with `dask scheduler`, "
            "or leave --scheduler out to use this machine alone"
        ) from None
    with line:
        if parts.scheme == "tcp":  # a scheduler speaks first; to a server that does not, Dask would talk for ever
            line.settimeout(PATIENCE)
            try:
                speaks = bool(line.recv(1))
            except OSError:
                speaks = False
            if not speaks:
                raise ClusterError(
                    f"what listens at {address} is no Dask scheduler; give the address that `dask scheduler` "
                    "printed, not that of its dashboard"
                )
