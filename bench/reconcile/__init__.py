"""What the operator costs and how fast it is with many LLMDeployments, on a real control plane."""
