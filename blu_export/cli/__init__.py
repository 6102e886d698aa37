"""Commands: one thin file each; what they run is imported inside the command.

main ── the commands by name, errors and exit codes      interrupt ── Ctrl-C
├─ infer, batch, serve ── a model at work          infer_run, infer_table ── one run, and what it prints
├─ train ── a model from photos                    train_inputs, train_progress ── what it begins with, and prints
├─ data_check, data_convert, data_label, data_split ── data sets
├─ evaluate, verify, benchmark ── how good, how equal, how fast      evaluate_report ── tables and files
├─ export_onnx, export_triton, build_engine ── files for other runtimes
└─ inspect, doctor ── what a file is, and what is installed
options ── options that several commands have      common ── consoles, progress, the log
"""
