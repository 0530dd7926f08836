"""The demonstration: everything from nothing to an answer, on this machine."""
