"""From preference data to a promoted, safety-checked language model as one lineage-tracked DAG."""

__version__ = "0.1.0"
