"""What the repository does with the package: experiments, benchmarks, launchers. No wheel holds it."""
