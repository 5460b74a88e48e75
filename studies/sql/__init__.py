"""Schema, connections and transactions."""
