"""Speed measured beside the machine's limits, and beside other engines in the same run."""
