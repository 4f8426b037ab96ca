"""The compiled part: kernels, and the worker threads that read, decode and place chunks without the GIL."""
