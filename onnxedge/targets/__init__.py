"""Target descriptions that come with onnxedge, one TOML file each."""
