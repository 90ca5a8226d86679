"""The self-test of an installation passes where emu's other tests do."""

from emu.runtime import doctor


def test_an_installation_that_works_passes_its_own_checks() -> None:
    assert [each for each in doctor() if not each.ok] == []
