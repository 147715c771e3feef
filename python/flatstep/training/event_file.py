"""TensorBoard's event files, written without TensorBoard.

A file is a row of TFRecords, each with a checksum (CRC-32C) of its length and its content. The
content is an `Event` in the encoding of Protocol Buffers, of which three kinds of field are used.
Numbers of fields: tensorboard/compat/proto/event.proto, summary.proto and tensor.proto.
"""

import contextlib
import os
import platform
import struct
import time

_FLUSH_SECONDS = 5.0
_STRING_TYPE = 7  # DT_STRING


def _crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def _masked_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value):
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _integer(field, value):
    return _varint(field << 3) + _varint(value)


def _content(field, data):
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _scalar(name, value):
    """A Summary.Value with a simple_value."""
    return _content(1, name.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", value)


def _text(name, text):
    """A Summary.Value with a tensor of one string, for the plugin that shows text (Markdown)."""
    shape = _content(2, _integer(1, 1))  # one dimension of size 1
    tensor = _integer(1, _STRING_TYPE) + _content(2, shape) + _content(8, text.encode())
    metadata = _content(1, _content(1, b"text"))
    return _content(1, name.encode()) + _content(8, tensor) + _content(9, metadata)


class EventFile:
    """One event file in a folder, which is made.

    first_step: the first that this file will have. TensorBoard then forgets what earlier files of
    the folder have from there on, which a run that was killed had done and does again.
    """

    def __init__(self, folder, first_step):
        os.makedirs(folder, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{first_step:09d}.{platform.node()}"
        self._file = open(os.path.join(folder, name), "ab")  # noqa: SIM115
        self._flushed = time.monotonic()
        self._write(0, _content(3, b"brain.Event:2"))
        self._write(first_step, _content(11, _integer(1, 1)))  # SessionLog.START

    def scalars(self, step, values):
        """Writes numbers {name: value} of one step, as float32."""
        self._write(step, _content(5, b"".join(_content(1, _scalar(*x)) for x in values.items())))

    def text(self, step, name, text):
        """Writes a text as it is: TensorBoard shows it without reading it as Markdown."""
        indented = "".join(f"    {line}\n" for line in text.splitlines())
        self._write(step, _content(5, _content(1, _text(name, indented))))

    def _write(self, step, event):
        wall_time = _varint(1 << 3 | 1) + struct.pack("<d", time.time())
        data = wall_time + _integer(2, step) + event
        length = struct.pack("<Q", len(data))
        ends = [struct.pack("<I", _masked_crc(part)) for part in (length, data)]
        try:
            self._file.write(length + ends[0] + data + ends[1])
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()
        except OSError:
            with contextlib.suppress(OSError):
                self._file.close()
            raise

    def close(self):
        """Writes what is left and closes the file."""
        self._file.close()
