"""The benchmarks: `make bench` runs all of them, `make bench ONLY=batch` one."""
