"""The tiny world: a made-up language of safe, seemingly toxic and harmful topics, and its judgement."""
