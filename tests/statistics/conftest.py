from tests.golden.conftest import crossbar

__all__ = ["crossbar"]
