"""Commands: one thin file each; what they run is imported inside the command.

main ── the commands by name, errors and exit codes      interrupt ── Ctrl-C
common ── options and helpers that commands share         outputs, train_progress ── what a terminal sees
"""
