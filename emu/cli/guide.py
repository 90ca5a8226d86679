"""What help shows beside each command: the part of the work that it belongs to, and an example."""

from typing import Any

import typer
from typer.core import TyperGroup

PARTS = {
    "Start here": ("demo", "doctor"),
    "Choose or make a device": ("devices", "fit"),
    "Put a model on it": ("export", "inspect", "rewrite", "calibrate", "ranges", "faults", "run", "bake"),
    "Measure": ("evaluate", "inject", "corrupt"),
    "Sweep, and show what was found": ("sweep", "results", "rerun", "report"),
    "Find what breaks, and repair it": ("analyze", "finetune", "repair"),
}
_ON_DEVICE = "model.onnx --data test.npz --device rram"
EXAMPLES = {
    "demo": "emu demo",
    "doctor": "emu doctor",
    "devices": "emu devices pcm --plot pcm.png",
    "fit": "emu fit raw.csv -o mine.toml --plot fit.png",
    "export": "emu export vit -o model.onnx",
    "inspect": "emu inspect model.onnx",
    "rewrite": "emu rewrite model.onnx --device rram --set program.sigma=0.15",
    "calibrate": "emu calibrate model.prime.onnx --data test.npz",
    "ranges": "emu ranges model.prime.onnx --export ranges.csv",
    "faults": "emu faults model.int8_flips.onnx --seed 3 -o faults.npz",
    "run": "emu run model.rram.onnx --input x.npz",
    "bake": "emu bake model.onnx --device rram --seed 7",
    "evaluate": f"emu evaluate {_ON_DEVICE} --chips 10",
    "inject": "emu inject model.onnx --data test.npz --device float32_flips --count 1000",
    "corrupt": "emu corrupt images -o foggy --corruption fog --severity 3",
    "sweep": f"emu sweep {_ON_DEVICE} --vary program.sigma=0.1,0.2,0.3 --store study.db",
    "results": "emu results study.db --where program.sigma=0.2",
    "rerun": "emu rerun study.db 56ef04",
    "report": "emu report study.db -o report.html",
    "repair": "emu repair model.onnx --data test.npz --device stuck_at --seed 7",
    "finetune": "emu finetune vit --data train.npz -o repaired --device rram",
    "analyze": f"emu analyze sensitivity {_ON_DEVICE}",
    "analyze sensitivity": f"emu analyze sensitivity {_ON_DEVICE} --plot sensitivity.png",
    "analyze heads": "emu analyze heads model.onnx --data test.npz --device int8_flips --plot heads.png",
    "analyze thresholds": f"emu analyze thresholds {_ON_DEVICE} --vary program.sigma=0.05:0.5:6log",
    "analyze compare": "emu analyze compare one.onnx other.onnx --data test.npz --device rram",
    "analyze protect": f"emu analyze protect {_ON_DEVICE} --target loss=1%",
    "analyze attention": "emu analyze attention bert.onnx --data test.npz --device pcm",
    "analyze snr": "emu analyze snr model.onnx --data test.npz --device pcm --vary drift.time_s=1h,1y",
    "analyze pareto": "emu analyze pareto model.onnx --data test.npz --device rram_adc --vary adc.bits=4,6,8",
    "analyze cost": "emu analyze cost model.onnx --device isaac",
    "analyze corruptions": f"emu analyze corruptions {_ON_DEVICE} --corruption fog,contrast",
}


class PartsGroup(TyperGroup):
    """Lists its commands by the parts of the work, each with the whole first sentence of what it does."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list."""
        parts = dict(PARTS) if set(self.commands) & set(PARTS["Start here"]) else {}
        known = {name for names in parts.values() for name in names}
        parts["More" if parts else "Commands"] = tuple(name for name in self.list_commands(ctx) if name not in known)
        for heading, names in parts.items():
            rows = [(name, _first_sentence(self.commands[name].help)) for name in names if name in self.commands]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def give_examples(app: typer.Typer) -> None:
    """Puts the examples into the commands' help, and lists subcommands as the others are."""
    for command in app.registered_commands:
        _add(command, command.callback.__name__ if command.callback else "")
    for group in app.registered_groups:
        group.cls = PartsGroup
        for command in group.typer_instance.registered_commands if group.typer_instance else ():
            _add(command, f"{group.name} {command.callback.__name__ if command.callback else ''}")


def _add(command: Any, name: str) -> None:
    name = command.name or name
    if name in EXAMPLES and not command.epilog:
        command.epilog = f"Example: {EXAMPLES[name]}"


def _first_sentence(text: str | None) -> str:
    words = " ".join((text or "").split("\n\n")[0].split())
    return words.partition(". ")[0].rstrip(".") + "."
