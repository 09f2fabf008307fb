"""Parcel: results of any form as a skeleton and the bytes of their tensors, for other processes.

Results are tensors, payloads, and lists, dicts and dataclasses of them. The skeleton is a pickle in
which places in the bytes stand for tensors; only processes of one run exchange it.

What is unpacked is laid out in memory as what was packed: a vector expanded to rows stays one, and
transposed rows stay transposed, so that sums over them are rounded alike.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ALIGNMENT = 16
"""Bytes at whose multiples tensors begin, so that any type can be read in place."""


class _Place(NamedTuple):
    """A tensor within the bytes: without its expanded dimensions, the slowest one first."""

    start: int
    dtype: torch.dtype
    stored: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]
    device: str


def pack(results: Any, device: torch.device) -> tuple[bytes, Tensor]:
    """The skeleton, and the bytes of all tensors, uint8 on a device."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(results)
    data = torch.empty(packer.nbytes, dtype=torch.uint8, device=device)
    for start, piece in packer.pieces:
        data[start : start + len(piece)] = piece
    return file.getvalue(), data


def unpack(skeleton: bytes, data: Tensor) -> Any:
    """The results, whose tensors are views of `data`."""
    return _Unpacker(io.BytesIO(skeleton), data).load()


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.pieces: list[tuple[int, Tensor]] = []
        self.nbytes = 0

    def persistent_id(self, obj: Any) -> _Place | None:
        if not isinstance(obj, Tensor):
            return None
        order = tuple(sorted(range(obj.dim()), key=lambda d: -obj.stride()[d]))
        once = obj[tuple(slice(0, 1) if s == 0 else slice(None) for s in obj.stride())]
        stored = once.permute(order).contiguous()
        piece = stored.flatten().view(torch.uint8)
        start, self.nbytes = self.nbytes, self.nbytes + -(-len(piece) // _ALIGNMENT) * _ALIGNMENT
        self.pieces.append((start, piece))
        where = obj.device.type
        return _Place(start, obj.dtype, tuple(stored.shape), order, tuple(obj.shape), where)


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, data: Tensor) -> None:
        super().__init__(file)
        self._data = data

    def persistent_load(self, pid: _Place) -> Tensor:
        nbytes = torch.Size(pid.stored).numel() * pid.dtype.itemsize
        stored = self._data[pid.start : pid.start + nbytes].view(pid.dtype).view(pid.stored)
        back = sorted(range(len(pid.order)), key=pid.order.__getitem__)
        tensor = stored.permute(back).expand(pid.shape)
        return tensor if tensor.device.type == pid.device else tensor.to(pid.device)
