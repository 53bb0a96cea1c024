"""Whole shards streamed into memory, from their first byte to the last, through webdataset: for object stores.

An object store answers a request in tens of milliseconds, however few bytes are wanted; a clip of four modalities read
by ranges takes four of them, whole shards as many for a thousand clips. A reader should pass few shards at a time
(`data.clip_order.LaneOrder`), or it reads them again and again.
"""

import os
import tarfile
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from webdataset.tariterators import tar_file_expander

from egom2p.data.shards.shard_files import Member, split_member_name
from egom2p.storage import open_binary

_AT_ONCE = 4  # shards on their way: as many as a clip has folders
_REQUEST_BYTES = 16 << 20


class StreamedShards:
    """The shards that were asked for last, in memory; stands where `OpenShards` reads by ranges.

    capacity   most shards that are held
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._forget()

    def read(self, path: str, member: Member) -> bytes:
        """The bytes of a clip. ValueError when its shard cannot be read, or is not the one that was indexed."""
        self.ahead(path)
        self._shards.move_to_end(path)
        try:
            content = self._shards[path].result().get((member.key, member.suffix))
        except ValueError:
            del self._shards[path]  # whoever asks again has it read again
            raise
        if content is None or len(content) != member.size:
            found = "no such clip" if content is None else f"{len(content)} bytes of it"
            raise ValueError(
                f"{path}: clip {member.key} has {member.size} bytes in the index, its stream holds {found}"
            )
        return content

    def ahead(self, path: str) -> None:
        """Begin to read a shard, unless it is there or on its way."""
        if self._process != os.getpid():
            self._forget()  # threads of a parent do not run in its child
        if path not in self._shards:
            while len(self._shards) >= self._capacity:
                self._shards.popitem(last=False)[1].cancel()
            self._shards[path] = self._pool.submit(_streamed, path)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _forget(self) -> None:
        self._shards: OrderedDict[str, Future[Mapping[tuple[str, str], bytes]]] = OrderedDict()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="shard stream")
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, int]:
        return {"capacity": self._capacity}

    def __setstate__(self, state: Mapping[str, int]) -> None:
        self.__init__(state["capacity"])


def _streamed(path: str) -> dict[tuple[str, str], bytes]:
    """(key, suffix) -> bytes of all clips of a tar."""
    try:
        with open_binary(path, buffer_bytes=_REQUEST_BYTES) as stream:
            files = tar_file_expander([{"url": path, "stream": stream}], eof_value=None)
            return {split_member_name(file["fname"]): file["data"] for file in files}
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: cannot be streamed to its end: {error}") from error
