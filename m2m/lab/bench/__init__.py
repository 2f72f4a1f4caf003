"""The benches. None of them is a test: no figure fails a build.

Each is a module with an async ``run(plan, say)`` that returns rows for the table of
:mod:`~m2m.lab.bench.report`; what is compared is measured by turns in one run.
"""
