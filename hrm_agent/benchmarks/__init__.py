"""What `python -m hrm_agent.bench` measures: each case done by the plain path and by faster ones, in one run.

`paths` puts a network on a path, `peaks` measures what the machine can do, `cases` times competitors in turns and
compares what they compute, `suites` says what is measured, `published` is the recipe of HRM-Agent's authors.
"""
