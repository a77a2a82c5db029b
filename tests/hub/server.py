"""The server: a hub that runs while its test does."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.hub.handler import Handler, hang_up
from tests.hub.state import Hub


@contextmanager
def serve(folder: Path, xet: bool = False, port: int = 0, **sizes: int) -> Iterator[Hub]:
    """Run a hub over `folder`, which may hold one already; `xet` gives it a Xet store.

    sizes: `multipart_from` bytes (5 GB) LFS uploads come in parts of `part_size` (100 MB); a page
    of a listing has `page_size` entries (1000); from `lfs_from` bytes (10 MB) any file is a large
    one. Raises at the end if the server itself made a mistake.
    """
    hub = Hub(folder, xet, **sizes)
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler, bind_and_activate=False)
    server.request_queue_size, server.allow_reuse_address, server.daemon_threads = 128, True, True
    server.block_on_close = False
    server.server_bind()
    server.server_activate()
    # Clients follow a redirect within one origin as if it were the Hub: storage has another name.
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    hub.storage = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for connection in list(hub.connections):
            hang_up(connection)
        shutil.rmtree(hub.store.folder / "clients", ignore_errors=True)
    if hub.errors:
        raise AssertionError("the test hub failed:\n" + "\n".join(hub.errors))
