"""The parts of `qwench bench`."""
