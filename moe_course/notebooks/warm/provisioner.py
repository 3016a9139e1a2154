"""What jupyter_client asks for a warm kernel: forks one where that works, starts a plain one where it does not."""

import asyncio
import shutil
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

from moe_course.notebooks.transport import private_folder
from moe_course.notebooks.warm.client import fork
from moe_course.notebooks.warm.order import NoWarmKernel, Order


class WarmProvisioner(LocalProvisioner):
    """Provisions forked kernels. Signals, restarts and shutdowns are those of the plain kernels' provisioner."""

    process: Any = None
    is_warm = False
    sockets: str | None = None  # the folder of the kernel's sockets, if it is this provisioner's

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Before the connection file is written, choose sockets that no other kernel can take."""
        manager = self.parent
        if manager is not None and manager.transport == "tcp":
            self.sockets = private_folder()
            manager.cache_ports = False
            manager.transport, manager.ip = "ipc", f"{self.sockets}/kernel"
        return await super().pre_launch(**kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork a kernel, or start a plain one."""
        try:
            order = Order.of(cmd, **self._scrub_kwargs(kwargs))
            # A thread, for the first kernel waits for the fork server's imports, and a notebook server must not.
            self.process = await asyncio.to_thread(fork, order, self.sockets)
        except NoWarmKernel as reason:
            self.log.debug("A plain kernel instead of a warm one: %s", reason)
            self.is_warm = False
            return await super().launch_kernel(cmd, **kwargs)
        self.is_warm = True
        self.pid = self.pgid = self.process.pid  # it leads a session of its own
        self.cwd = order.cwd
        return self.connection_info

    async def cleanup(self, restart: bool = False) -> None:
        """Remove the sockets' folder, unless the kernel is started again."""
        await super().cleanup(restart=restart)
        if self.sockets and not restart:
            shutil.rmtree(self.sockets, ignore_errors=True)
