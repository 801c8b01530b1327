"""The whole platform from one file: every room's process, one address, one end. ``statepool up``."""
