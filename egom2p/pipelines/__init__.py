"""The stages of the main job, each one function of its config."""
