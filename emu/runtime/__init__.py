"""Running rewritten models: the op library and sessions that know it."""

from emu.runtime.doctor import Check, doctor
from emu.runtime.functions import register_device_function
from emu.runtime.library import library_path
from emu.runtime.sessions import register, session

__all__ = ["Check", "doctor", "library_path", "register", "register_device_function", "session"]
