"""What every measurement uses: services, workloads, contenders and meters."""
