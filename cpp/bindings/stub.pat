#What the stub generator cannot see : names that carry no type of this module.

_ext.__suffix__:
    class CudaError(RuntimeError):
        """A CUDA call failed."""

        code: int
        """The cudaError_t."""

    __version__: str
