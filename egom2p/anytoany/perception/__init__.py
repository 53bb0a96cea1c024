"""Where what the language model perceives comes from: EgoM2P's encoder, plain codes, vectors, image towers."""
