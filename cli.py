"""The command line from a checkout, without installing: python cli.py rewrite model.onnx --device rram."""

from emu.__main__ import main

if __name__ == "__main__":
    main()
