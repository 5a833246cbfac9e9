"""Language models: adapters for their providers, and the cascade that chooses among them."""
