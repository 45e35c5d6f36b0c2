"""Jobs: process groups that compute a stage, behind one interface for every launcher."""
