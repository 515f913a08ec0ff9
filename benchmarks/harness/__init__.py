"""What every case uses: private services, workloads, load generators and meters."""
