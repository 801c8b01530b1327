"""The wave index on a GPU, in torch and Triton: a library for tensors. The engine's own index is the native one."""
