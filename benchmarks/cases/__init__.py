"""Cases of the benchmarks; each module has a function `measure`."""
