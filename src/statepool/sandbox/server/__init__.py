"""Sandboxes over HTTP: the wire of E2B, so that its SDKs work unchanged, and what other clients of code
interpreters speak.
"""
