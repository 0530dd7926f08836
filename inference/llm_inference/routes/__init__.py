"""HTTP routes. They know requests and the engine's interface, never torch."""
