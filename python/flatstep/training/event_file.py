"""TensorBoard's event files, written with its own records and messages (extra [tensorboard])."""

import contextlib
import os
import platform
import time

_FLUSH_SECONDS = 5.0


class EventFile:
    """One event file in a folder, which is made.

    first_step: the first that this file will have. TensorBoard then forgets what earlier files of
    the folder have from there on, which a run that was killed had done and does again.

    TensorBoard's EventFileWriter is not used: it writes from a thread of its own, which ends
    silently when a disk refuses.
    """

    def __init__(self, folder, first_step):
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        os.makedirs(folder, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{first_step:09d}.{platform.node()}"
        self._records = RecordWriter(open(os.path.join(folder, name), "ab"))  # noqa: SIM115
        self._flushed = time.monotonic()
        self._write(0, file_version="brain.Event:2")
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step, values):
        """Writes numbers {name: value} of one step, as float32."""
        self._summary(step, *({"tag": k, "simple_value": v} for k, v in values.items()))

    def text(self, step, name, text):
        """Writes a text as it is: TensorBoard shows it without reading it as Markdown."""
        from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        indented = "".join(f"    {line}\n" for line in text.splitlines())
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[indented.encode()])
        plugin = SummaryMetadata.PluginData(plugin_name="text")
        metadata = SummaryMetadata(plugin_data=plugin)
        self._summary(step, {"tag": name, "tensor": tensor, "metadata": metadata})

    def _summary(self, step, *values):
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(step, summary=Summary(value=[Summary.Value(**value) for value in values]))

    def _write(self, step, **content):
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, **content)
        try:
            self._records.write(event.SerializeToString())
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._records.flush()
                self._flushed = time.monotonic()
        except OSError:
            with contextlib.suppress(OSError):  # what its buffer holds is refused once more
                self._records.close()
            raise

    def close(self):
        """Writes what is left and closes the file."""
        self._records.close()
