"""The store across machines: a daemon and its clients, a mirror, a witness. Who may do what is decided in ``roles``."""
