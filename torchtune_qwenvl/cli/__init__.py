"""The command `tune-qwenvl`: torchtune's own with our recipes and configs, and commands of ours."""
