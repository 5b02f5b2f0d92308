"""What the results of an experiment say: metrics per user, tests, gains, groups, and the paper's own figures."""
