"""Other walls around a whole program: OCI runtimes (gVisor's ``runsc``, ``runc``), CRIU, virtual machines.

They start a program per run and keep no slots: slower, and with ``runsc`` or a machine not on the host's kernel.
"""
