"""Jobs on a Kubernetes cluster whose pods mount the run folders."""
