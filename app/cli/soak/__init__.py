"""`nurseries soak`: many users for a long time, and whether everything stayed as it should."""
