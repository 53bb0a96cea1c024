"""Pages and plots for people: self-contained, no network, colour-blind safe."""
