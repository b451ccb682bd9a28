"""Lists the commands: python -m segmenter_jax."""

COMMANDS = {
    "main": "trains a model, from a config to a workdir",
    "evaluate": "scores a model on a split of a dataset",
    "predict": "segments pictures, folders of them and videos",
    "demo": "serves a web page that segments the pictures given to it",
    "manifest": "lists what predict made, one line for each source",
    "convert": "turns pretrained weights into a model directory, and back",
    "publish": "uploads a model with a model card to the Hugging Face hub",
    "export": "writes a model as StableHLO or ONNX files, for use without this package",
    "prepare_data": "builds a dataset from its original files, checks one, or lists them",
    "visualize": "draws attention, training curves and samples of a dataset",
    "benchmark": "measures training step, inference, evaluation and loader",
}

if __name__ == "__main__":
    print("Commands, each with --help:")
    for name, what in COMMANDS.items():
        print(f"  python -m segmenter_jax.{name:<14}{what}")
