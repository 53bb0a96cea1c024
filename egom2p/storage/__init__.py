"""Writing and reading what must survive: atomic files and folders, safetensors, JSON, fingerprints, object stores."""

from egom2p.storage.atomic import (
    atomic_directory,
    atomic_file,
    check_link,
    check_replaceable,
    copy_file,
    errors_name,
    inside,
    is_unfinished,
    load_json,
    only_writer,
    remove_directory,
    remove_unfinished,
    save_json,
)
from egom2p.storage.remote import is_remote, open_binary
from egom2p.storage.tensors import (
    fingerprint_of,
    load_tensor_metadata,
    load_tensors,
    save_tensors,
    stream_tensors,
    tensor_shapes,
)

__all__ = [
    "atomic_directory",
    "atomic_file",
    "check_link",
    "check_replaceable",
    "copy_file",
    "errors_name",
    "fingerprint_of",
    "inside",
    "is_remote",
    "is_unfinished",
    "load_json",
    "load_tensor_metadata",
    "load_tensors",
    "only_writer",
    "open_binary",
    "remove_directory",
    "remove_unfinished",
    "save_json",
    "save_tensors",
    "stream_tensors",
    "tensor_shapes",
]
