"""DLPack producers made by hand: any layout, any lie, through a capsule, an object or a C exchange table."""

import ctypes
from ctypes import (  # fmt: skip
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
    py_object,
)

CPU, CUDA, CUDA_HOST, METAL, ROCM, CUDA_MANAGED = 1, 2, 3, 8, 10, 13
INT32, INT64 = (0, 32, 1), (0, 64, 1)
READ_ONLY = 1


class Tensor(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class Managed(Structure):
    _fields_ = [("tensor", Tensor), ("context", c_void_p), ("deleter", c_void_p)]


class VersionedManaged(Structure):
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", Tensor),
    ]


Deleter = CFUNCTYPE(None, c_void_p)
Borrow = ctypes.PYFUNCTYPE(c_int, py_object, POINTER(Tensor))


class ExchangeTable(Structure):
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("previous", c_void_p),
        ("allocate", c_void_p),
        ("managed_from_object", c_void_p),
        ("managed_to_object", c_void_p),
        ("borrow_from_object", c_void_p),
        ("current_stream", c_void_p),
    ]


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = py_object, [c_void_p, c_char_p, c_void_p]

kept = {}  # what C code may still point to, by address
released = []  # addresses whose deleter ran


def keep(structure):
    address = ctypes.addressof(structure)
    kept[address] = structure
    return address


@Deleter
def release(address):
    released.append(address)
    kept.pop(address, None)


def int64s(values):
    return None if values is None else (c_int64 * max(len(values), 1))(*values)


class Layout:
    """An array as a producer states it. `memory` is a writable buffer, or None for no address."""

    def __init__(self, memory, shape, strides=None, dtype=INT32, device=(CPU, 0), byte_offset=0, ndim=None):
        self.memory, self.dtype, self.device, self.byte_offset = memory, dtype, device, byte_offset
        self.ndim = len(shape) if ndim is None else ndim
        self.shape, self.strides = int64s(shape), int64s(strides)
        self.address = None if memory is None else ctypes.addressof(c_uint8.from_buffer(memory))

    def tensor(self):
        pointer = POINTER(c_int64)
        shape, strides = (pointer() if at is None else ctypes.cast(at, pointer) for at in (self.shape, self.strides))
        return Tensor(self.address, *self.device, self.ndim, *self.dtype, shape, strides, self.byte_offset)

    def capsule(self, name=b"dltensor", deleter=True):
        managed = Managed(self.tensor(), None, ctypes.cast(release, c_void_p) if deleter else None)
        managed.layout = self
        return new_capsule(keep(managed), name, None)

    def versioned_capsule(self, major=1, flags=0):
        managed = VersionedManaged(major, 0, None, ctypes.cast(release, c_void_p), flags, self.tensor())
        managed.layout = self
        return new_capsule(keep(managed), b"dltensor_versioned", None)


class Exporter:
    """An object with the two methods of the protocol, from before exchange tables."""

    def __init__(self, layout, flags=0, versioned=True, major=1):
        self.layout, self.flags, self.versioned, self.major, self.asked = layout, flags, versioned, major, []

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        self.asked.append(stream)
        if self.versioned and max_version is not None:
            return self.layout.versioned_capsule(self.major, self.flags)
        return self.layout.capsule()

    def __dlpack_device__(self):
        return self.layout.device


@Borrow
def borrow(array, out):
    out[0] = array.layout.tensor()
    return 0


@Borrow
def borrow_fails_silently(array, out):
    return -1


# An entry that leaves an exception: it asks the array for its truth, and `__bool__` raises.
borrow_raises = ctypes.pythonapi.PyObject_IsTrue


def table_type(*, major=1, previous=None, capsule_name=b"dlpack_exchange_api", methods=(), **entries):
    """A type whose arrays are read through an exchange table with these entries; the others are null."""
    addresses = {name: ctypes.cast(entry, c_void_p) for name, entry in entries.items()}
    table = keep(ExchangeTable(major=major, minor=3, previous=previous, **addresses))
    attributes = {
        "__init__": lambda self, layout: setattr(self, "layout", layout),
        "__dlpack_c_exchange_api__": new_capsule(table, capsule_name, None),
        "table": table,
        **dict(methods),
    }
    return type("Tabled", (), attributes)
