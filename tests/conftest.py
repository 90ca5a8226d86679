"""What all tests share: one thread each, so that workers side by side do not wait for each other's cores."""

import gc
import os

# Before NumPy, PyTorch and onnxruntime are imported, here and in the processes that tests start.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import onnxruntime  # noqa: E402
from hypothesis import settings  # noqa: E402

# A shared machine may stand still for longer than any deadline.
settings.register_profile("emu", deadline=None)
settings.load_profile("emu")


class _OneThread(onnxruntime.SessionOptions):
    """Options of a session whose default is one thread; threads that wait for each other spin."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


onnxruntime.SessionOptions = _OneThread


def pytest_collection_finish() -> None:
    """Leaves what was imported out of every later search for garbage, which takes long among so much."""
    gc.collect()
    gc.freeze()
