"""Public benchmarks, each in one file that reads the original format and says what is measured.

    read(path)                    the questions, checked; an error names file:line, field and remedy
    Benchmark.measure(model)      plain data without statistics, so that it can be kept on disk
    Benchmark.rows(measured)      numbers with intervals, every checkpoint beside the others

Nothing is downloaded: paths are the user's. A question that does not fit a model's context is
counted as left out. A new benchmark is a file here that subclasses `benchmark.Benchmark`, and its
config and its entry in `stages.benchmark_tasks.BENCHMARKS`.
"""
