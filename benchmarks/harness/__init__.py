"""Private services, workloads, load generators and meters, which all cases share."""
