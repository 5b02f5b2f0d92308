"""Flows and the command line.

A run that ``p2rec serve`` has started does not outlive it, from here on: nobody would be told how it ends, and it would
hold its turn. A run that has not come so far when its server ends finds none and ends by itself.
"""

import os

SERVED_BY_VARIABLE = "P2REC_SERVED_BY"
"""Number of the process that serves the flows."""

if "PREFECT__FLOW_RUN_ID" in os.environ and (_served_by := os.environ.pop(SERVED_BY_VARIABLE, None)):
    from tasks.process import die_with

    die_with(int(_served_by))
